from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given
from hypothesis import settings as given_settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from typer.testing import CliRunner, Result

from depthprune_study import cli, places, report, run, settings
from depthprune_study.settings import StudyError


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEPTHPRUNE_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("DEPTHPRUNE_REPORTS", str(tmp_path / "reports"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")


def depthprune(*words: str) -> Result:
    return CliRunner().invoke(cli.app, list(words))


def assert_refused(result: Result, *sentences: str) -> None:
    assert result.exit_code == 1, result.output
    assert "Traceback" not in result.output
    assert result.stderr.strip().split("\n") == list(sentences)
    assert isinstance(result.exception, SystemExit)


@pytest.mark.parametrize(
    "words", [["--help"], ["run", "--help"], ["report", "--help"], ["status", "--help"], ["restore", "--help"]]
)
def test_help_is_there(words: list[str]) -> None:
    result = depthprune(*words)
    assert result.exit_code == 0
    assert "Usage:" in result.output


def test_without_a_word_it_says_what_it_can_do() -> None:
    output = depthprune().output
    assert all(command in output for command in ("run", "report", "status"))


@pytest.mark.parametrize("study", ["ci", "quick", "full"])
def test_a_dry_run_says_what_it_would_do_and_does_nothing(tmp_path: Path, study: str) -> None:
    result = depthprune("run", study, "--dry-run")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(f"study {study}: {len(run.READS)} notebooks, {len(run.READS)} to run")
    assert all(notebook in result.stdout for notebook in run.READS)
    for told in (" tokens x ", "hours, by arithmetic", "GPU memory, by arithmetic"):
        assert told in result.stdout
    assert "scaled from the rehearsal" not in result.stdout  # none is published here
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("study", ["full", "full-t4"])
def test_a_dry_run_of_the_full_study_tells_what_the_rehearsal_found_and_what_is_done(
    study: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEPTHPRUNE_REPORTS", str(places.ROOT / "reports"))
    steps = [replace(step, done=step.notebook == "01_sensitivity") for step in run.plan(study)]
    monkeypatch.setattr(run, "plan", lambda study: steps)
    lines = depthprune("run", study, "--dry-run").stdout.split("\n")
    assert lines[0] == f"study {study}: 8 notebooks, 7 to run"
    assert lines[1].split() == ["01_sensitivity", "done", "gpt2"]
    assert [line for line in lines if line.startswith("  hours, scaled from the rehearsal (")]


def test_the_default_study_is_quick() -> None:
    assert depthprune("run", "--dry-run").stdout == depthprune("run", "quick", "--dry-run").stdout


def test_status_says_what_is_done_and_what_is_current(tmp_path: Path) -> None:
    result = depthprune("status", "quick")
    assert result.exit_code == 0
    lines = result.stdout.strip().split("\n")
    assert [line.split()[0] for line in lines] == list(run.READS)
    assert all("run: to do" in line and "report: made by other code or parameters, or missing" in line for line in lines)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "words",
    [["run", "nosuch"], ["run", "nosuch", "--dry-run"], ["report", "nosuch"], ["status", "nosuch"], ["restore", "nosuch"]],
)
def test_an_unknown_study_is_refused_in_one_sentence(words: list[str]) -> None:
    result = depthprune(*words)
    assert result.exit_code == 1
    assert result.stderr.startswith("study 'nosuch' is not known: name one of ci, full, full-t4, quick")
    assert len(result.stderr.strip().split("\n")) == 1


ODD = ("", " ", "nosuch", "..", "/", "-1", "--drop", "1e99", "é 東京", "<script>", "C4", "recovery", "06_report", "14,17")
COMMANDS = {  # how many words each wants, and some of its options
    "run": (1, ("--dry-run",)),  # else a study would begin
    "report": (1, ("--unfinished",)),
    "restore": (1, ("--from", "empty")),
    "status": (1, ()),
    "verify": (1, ("--no-recompute",)),
    "why": (2, ()),
    "sweep": (1, ("--workers", "1")),
    "cut-gguf": (2, ("--drop", "1,3")),
    "to-gguf": (2, ("--type", "f32")),
}


@st.composite
def given_words(draw: st.DrawFn) -> tuple[str, list[str]]:
    """A command and what it is given: mostly as many words as it wants."""
    command = draw(st.sampled_from(sorted(COMMANDS)))
    wanted = COMMANDS[command][0]
    any_text = st.text(st.characters(exclude_characters="\0"), max_size=8).filter(lambda word: word not in settings.studies())
    word = st.sampled_from(("empty", "unfinished", "text", "text/below", *ODD)) | any_text
    n = draw(st.sampled_from((wanted, wanted, wanted, wanted, wanted + 1)))
    words = draw(st.lists(word, min_size=n, max_size=n))
    if command == "why" and draw(st.booleans()):
        words[0] = str(places.reports("ci"))  # a real report, which has a claim C4 and a section `recovery`
    return command, words


@given_settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(given_words(), st.booleans())
def test_whatever_a_command_is_given_it_is_done_or_refused_in_a_sentence(
    tmp_path: Path, command_and_words: tuple[str, list[str]], with_options: bool
) -> None:
    """In a folder that holds nothing that a command could work on for long."""
    (tmp_path / "unfinished" / "records" / "03_recovery").mkdir(parents=True, exist_ok=True)
    (tmp_path / "empty").mkdir(exist_ok=True)
    (tmp_path / "text").write_text("neither a GGUF file nor a sweep", encoding="utf-8")
    before = sorted(tmp_path.rglob("*"))
    command, words = command_and_words
    options = COMMANDS[command][1] if with_options or command == "run" else ()
    with contextlib.chdir(tmp_path):
        result = depthprune(command, *words, *options)
    assert result.exit_code in (0, 1, 2), result.output
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
    assert "Traceback" not in result.output + result.stderr
    assert result.exit_code == 0 or sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("study", ["../params/ci", "..", "", "/etc", "ci/"])
def test_a_study_is_a_name_and_no_path(study: str) -> None:
    assert_refused(depthprune("run", study, "--dry-run"), depthprune("run", study).stderr.strip())
    assert "is not known: name one of" in depthprune("run", study).stderr


def test_a_report_of_an_unfinished_study_is_refused() -> None:
    waiting = ", ".join(run.READS)
    assert_refused(
        depthprune("report", "ci"),
        f"study ci is not finished: {waiting} wait; `depthprune run ci` runs them, `--unfinished` publishes what there is",
    )


@pytest.mark.parametrize("command", [["run"], ["run", "--dry-run"], ["status"], ["report"]])
def test_bad_parameters_are_told_all_at_once_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    shutil.copytree(places.PARAMS, tmp_path / "params")
    monkeypatch.setattr(places, "PARAMS", tmp_path / "params")
    for notebook, values in {"01_sensitivity": {"seq_len": 1}, "03_recovery": {"temperatures": ["1e-4"]}}.items():
        path = tmp_path / "params" / "ci" / f"{notebook}.yaml"
        path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **values}))
    assert_refused(
        depthprune(command[0], "ci", *command[1:]),
        "ci/01_sensitivity.yaml: seq_len=1: Input should be greater than or equal to 8",
        "ci/03_recovery.yaml: temperatures.0='1e-4': Input should be a valid number (YAML reads 1e-4 as text: write 1.0e-4)",
    )
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("content", [b"", b'{"cells"', b"{}", b"\xff\xfe"])
@pytest.mark.parametrize("file", ["notebooks/02_prune_gpt2.ipynb", "params/claims.yaml"])
@pytest.mark.parametrize("command", [["run"], ["status"], ["report"]])
def test_a_damaged_source_is_told_by_name_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str], file: str, content: bytes
) -> None:
    for name, folder in (("PARAMS", places.PARAMS), ("NOTEBOOKS", places.NOTEBOOKS)):
        shutil.copytree(folder, tmp_path / folder.name)
        monkeypatch.setattr(places, name, tmp_path / folder.name)
    (tmp_path / file).write_bytes(content)
    result = depthprune(*command, "ci")
    assert result.exit_code == 1 and isinstance(result.exception, SystemExit), result.output
    lines = result.stderr.strip().split("\n")
    assert all(file in line for line in lines) and (len(lines) == 1 or "claims" in file)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (StudyError("notebook 01 stopped"), "notebook 01 stopped"),
        (ValueError("member.bin has sha256 0"), "member.bin has sha256 0"),
        (RuntimeError("could not fetch gensim with pip"), "could not fetch gensim with pip"),
        (PermissionError(13, "Permission denied", "/x/runs"), "Permission denied: /x/runs"),
        (OSError("disk full"), "disk full"),
        (
            SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
            "Error while serializing: I/O error: No space left on device (os error 28); free some space, then the same command "
            "goes on from here",
        ),
        (SafetensorError("Error while deserializing header"), "Error while deserializing header"),
        (MemoryError(), "memory ran out: give the machine more, or take a smaller model"),
        (
            MemoryError("Unable to allocate 8 GiB"),
            "memory ran out (Unable to allocate 8 GiB): give the machine more, or take a smaller model",
        ),
        (
            ImportError("\nLlamaTokenizer requires the SentencePiece library\nbut it was not found. "),
            "a package is missing, or does not fit: LlamaTokenizer requires the SentencePiece library but it was not found.",
        ),
        (ModuleNotFoundError("No module named 'optimum'"), "a package is missing, or does not fit: No module named 'optimum'"),
    ],
)
def test_what_the_user_can_mend_is_told_in_a_sentence(monkeypatch: pytest.MonkeyPatch, error: Exception, sentence: str) -> None:
    def fail(*args: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(run, "run", fail)
    assert_refused(depthprune("run", "ci"), sentence)


def test_a_full_disk_is_told_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(study: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(run, "plan", fail)
    assert_refused(depthprune("run", "ci"), "No space left on device; free some space, then the same command goes on from here")


def test_a_stopped_run_says_that_nothing_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "run", stop)
    result = depthprune("run", "ci")
    assert result.exit_code == 130
    assert result.stderr == "stopped: what is finished is kept, the same command goes on from here\n"


def test_a_run_without_a_network_is_refused_before_any_notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = {"PIP_NO_INDEX": "1", "DEPTHPRUNE_CACHE": str(tmp_path / "cache")}
    for name, value in empty.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("DEPTHPRUNE_ASSETS", raising=False)
    result = depthprune("run", "ci")
    assert result.exit_code == 1
    (sentence,) = result.stderr.strip().split("\n")
    assert sentence.startswith("could not fetch gensim==4.4.0 with pip (ERROR: ")
    assert sentence.endswith("check the network, or put the file in the assets folder")
    assert not list((tmp_path / "runs").rglob("*.ipynb"))
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []


def test_a_finished_study_with_a_current_report_is_only_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = [run.Step(notebook, {}, "key", True, 0) for notebook in run.READS]
    monkeypatch.setattr(run, "plan", lambda study: steps)
    monkeypatch.setattr(run, "run", lambda study, say: None)
    monkeypatch.setattr(report, "is_current", lambda study: dict.fromkeys(run.READS, True))
    monkeypatch.setattr(report, "publish", lambda study: pytest.fail("published again"))
    monkeypatch.setattr(cli, "_say_answer", lambda study, page: print(f"report: {page}"))
    page = places.reports("ci") / "report.html"
    page.parent.mkdir(parents=True)
    page.write_text("<!DOCTYPE html>")
    result = depthprune("run", "ci")
    assert result.exit_code == 0, result.output
    assert result.stdout.strip().endswith(f"report: {page}")
    page.unlink()
    monkeypatch.setattr(report, "publish", lambda study: tmp_path / "anew.html")
    assert depthprune("run", "ci").stdout.strip().endswith(f"report: {tmp_path / 'anew.html'}")


def test_a_report_is_verified_and_followed_back(tmp_path: Path) -> None:
    ci = str(places.ROOT / "reports" / "ci")
    assert depthprune("verify", ci, "--no-recompute").stdout == "records, notebooks, figures and verdicts fit together\n"
    assert depthprune("why", ci, "C1").stdout.startswith("C1: ")
    copy = Path(shutil.copytree(ci, tmp_path / "ci"))
    (copy / "records" / "01_sensitivity" / "profile.json").write_text("")
    sentence = "records/01_sensitivity/profile.json is damaged: its content is not what its checksum says"
    assert_refused(depthprune("verify", str(copy)), sentence)


def test_nothing_to_restore_is_told_in_a_sentence(tmp_path: Path) -> None:
    assert_refused(
        depthprune("restore", "ci", "--from", str(tmp_path)),
        f"{tmp_path} holds no records of a study: name a folder like reports/ci",
    )
    assert not (tmp_path / "runs").exists()


def test_a_report_is_restored_to_where_the_study_runs(tmp_path: Path) -> None:
    (tmp_path / "reports" / "ci" / "records" / "01_sensitivity").mkdir(parents=True)
    (tmp_path / "reports" / "ci" / "records" / "01_sensitivity" / "profile.json").write_text("{}")
    assert depthprune("restore", "ci").stdout.startswith("1 files restored to ")
    assert (tmp_path / "runs" / "ci" / "records" / "01_sensitivity" / "profile.json").read_text() == "{}"


def test_a_published_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "reports" / "ci" / "records" / "01_sensitivity" / "profile.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(b'{"kind": "\xff"}')
    assert_refused(
        depthprune("restore", "ci"), f"{path} is damaged: it is no text; take a whole copy of the report, or remove it"
    )
    assert not list((tmp_path / "runs").rglob("*.json"))


def test_the_program_itself_says_the_same_in_a_process_of_its_own() -> None:
    command = [sys.executable, "-m", "depthprune_study.cli", "run", "nosuch"]
    done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ))
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("study 'nosuch' is not known")
    assert "Traceback" not in done.stderr
