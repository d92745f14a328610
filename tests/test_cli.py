"""The command line: its messages, and that no error shows a traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from depthprune_core.records import Plan
from depthprune_study import cli, telling
from depthprune_study.errors import StudyError
from depthprune_study.runner import chain

ROOT = Path(__file__).resolve().parents[1]
OWN = ("--text", "t", "--out", "o")
COMMANDS = ("run", "status", "report", "restore", "verify", "prune", "cut-gguf", "sweep")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Runs, reports and logs of a test go to a temporary folder."""
    monkeypatch.setenv("DEPTHPRUNE_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(cli.app, list(words))
    assert "Traceback" not in result.output
    return result.exit_code, result.output


def test_every_command_has_help_and_the_version_is_printed() -> None:
    said = call("--help")[1]
    assert all(f" {name} " in said and call(name, "--help")[0] == 0 for name in COMMANDS)
    assert call("--version")[1].startswith("depthprune ")


@pytest.mark.parametrize("study", ["quick", "ci"])
def test_a_dry_run_names_every_notebook_and_does_nothing(home: Path, study: str) -> None:
    code, said = call("run", study, "--dry-run")
    assert code == 0 and said.startswith(f"study {study}: ")
    assert "01_sensitivity" in said and "10_report" in said and "are free" in said
    assert not (home / "runs").exists()


def test_status_says_what_is_done(home: Path) -> None:
    code, said = call("status", "ci")
    assert code == 0 and said.count("run: to do") == said.count("report: missing") == 11


@pytest.mark.parametrize(
    "words",
    [
        ("run", "x"),
        ("status", "../quick"),
        ("report", "x"),
        ("restore", "x"),
        ("restore", "ci", "--from", "nowhere"),
        ("report", "ci"),
        ("verify", "nowhere"),
        ("prune", "gpt2-mini", *OWN),
        ("prune", "gpt2-mini", *OWN, "--layers", "a"),
        ("prune", "gpt2-mini", *OWN, "--drop", "2", "--recover-tokens", "-1"),
        ("prune", "nowhere", *OWN, "--drop", "2"),
        ("cut-gguf", "nowhere.gguf", "x.gguf", "--drop", "1"),
        ("cut-gguf", "nowhere.gguf", "x.gguf", "--drop", "one"),
        ("sweep", "nowhere.yaml"),
    ],
)
def test_impossible_requests_are_refused_in_a_sentence(words: tuple[str, ...]) -> None:
    code, said = call(*words)
    assert code == 1 and 10 < len(said) < 400, said
    assert "unexpected error" not in said


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (StudyError("Do this."), "Do this."),
        (OSError(28, "No space left on device", "x"), "the disk is full: free some space"),
        (PermissionError(13, "Permission denied", "/x"), "Permission denied: /x"),
        (MemoryError("1 TB"), "memory ran out while testing (1 TB)"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "memory ran out"),
        (ModuleNotFoundError("No module named 'x'", name="x"), "package x is missing"),
    ],
)
def test_errors_that_the_user_can_fix_are_explained(error: Exception, sentence: str) -> None:
    assert telling.sentence(error, "testing").startswith(sentence)


@pytest.mark.parametrize("error", [KeyError("x"), ValueError("of a library"), ZeroDivisionError()])
def test_unexpected_errors_come_with_a_log_to_report(home: Path, error: Exception) -> None:
    try:
        raise error
    except Exception as raised:
        said = telling.sentence(raised, "running study x")
    (log,) = [Path(word) for word in said.split() if word.endswith(".log")]
    assert type(error).__name__ in said and "while running study x: please report it" in said
    assert "Traceback" in log.read_text() and type(error).__name__ in log.read_text()


def test_a_sentence_of_the_core_is_shown_unchanged() -> None:
    with pytest.raises(ValueError) as raised:
        Plan(3, (7,), "x")
    sentence = "the plan drops layer 7, but the model has layers 0..2"
    assert telling.sentence(raised.value, "x") == sentence


def test_a_stopped_run_says_what_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(chain, "run", stop)
    code, said = call("run", "ci")
    assert code == 130
    assert "stopped while running study ci: no notebook is finished; partial results" in said


def test_the_module_is_the_command_and_spins_only_briefly(home: Path) -> None:
    script = (
        "import sys\nsys.argv = ['depthprune', 'status', 'x']\nimport os, runpy\n"
        "try:\n    runpy.run_module('depthprune_study', run_name='__main__')\n"
        "except SystemExit as end:\n    print(end.code, os.environ['GOMP_SPINCOUNT'])\n"
        "print('torch' in sys.modules)"
    )
    environment = {name: v for name, v in os.environ.items() if name != "GOMP_SPINCOUNT"}
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == ["1", "10000", "False"], done.stderr
    assert "study 'x' is not known" in done.stderr
