"""Kills, damaged files, damaged parameters: no finished result is lost, no wrong one is kept."""

from __future__ import annotations

import io
import random
import shutil
import sys
from pathlib import Path

import killing
import pytest
import toy
import yaml
from toy import enter

from depthprune_study import parameters, paths
from depthprune_study.errors import StudyError
from depthprune_study.runner import chain

DAMAGES = ("cut", "flipped", "emptied", "gone", "of another")
RUN_TOY = (
    "from depthprune_study.errors import StudyError\nfrom depthprune_study.runner import chain\n"
    "import sys\ntry:\n    chain.run('toy', say=print)\n"
    "except StudyError as error:\n    sys.exit(str(error))"
)


def test_a_killed_recovery_resumes_and_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    state = killing.harry_recovery(tmp_path, kills=1, seed=0)
    assert state["kills"] == 1 and state["wrong"] == state["repeated"] == 0


@pytest.mark.slow
def test_a_killed_study_ends_with_the_records_of_an_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = toy.checkout(tmp_path / "toy")
    command = [sys.executable, "-c", RUN_TOY]
    monkeypatch.setattr(killing, "ROOT", home)
    monkeypatch.chdir(home)
    where, records = {"DEPTHPRUNE_HOME": str(home)}, home / "runs" / "toy" / "records"
    assert killing.killed(command, where, "runner", 600) == ""  # a calm one
    expected = killing.contents(records)
    shutil.rmtree(home / "runs")
    state = killing.harry(home, command, records, expected, kills=4, seed=0, seconds=(2, 15))
    assert len(expected) == 3 and state["lost"] == state["wrong"] == []


def damage(path: Path, how: str, seed: int) -> None:
    content = bytearray(path.read_bytes())
    if how == "gone":
        path.unlink()
    elif how == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif how == "emptied":
        path.write_bytes(b"")
    elif how == "of another":
        others = [p for p in path.parents[1].rglob(f"*{path.suffix}") if p != path]
        path.write_bytes(others[0].read_bytes() if others else b"{}")
    else:
        at = random.Random(seed).randrange(len(content))
        content[at] ^= 1
        path.write_bytes(content)


@pytest.mark.slow
def test_any_damaged_file_of_a_run_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    enter(toy.build(tmp_path / "toy"), monkeypatch)

    def run() -> dict[str, str]:
        chain.run("toy", say=lambda line: None, terminal=io.StringIO())
        assert all(step.done for step in chain.plan("toy"))
        return killing.contents(paths.runs("toy") / "records")

    expected = run()
    for how in DAMAGES:
        files = [p for p in paths.runs("toy").rglob("*") if p.suffix in (".json", ".ipynb")]
        for seed, path in enumerate(sorted(files)):
            damage(path, how, seed)
        assert run() == expected


def spoilt(text: str, seed: int) -> str:
    """A parameter file with one to three places changed."""
    draw, lines = random.Random(seed), text.splitlines() or ["study: ci"]
    for _ in range(draw.randint(1, 3)):
        at = draw.randrange(len(lines))
        line = lines[at]
        lines[at] = draw.choice(
            (
                line[: draw.randrange(len(line) + 1)],
                line.replace(":", draw.choice(["", "::", ": -", ": [", ": !!"])),
                f"{line.split(':')[0]}: {draw.choice(['1e-4', 'no', '.nan', '[]', '1e99'])}",
                f"{line}\n{line}",
                line.replace("0", draw.choice(["", "9" * 40, "-0", "0x"])),
                draw.choice(["\t", "- x", "{", "? y", "&a [*a]", "%"]) + line,
            )
        )
    return "\n".join(lines) + "\n"


def test_a_damaged_parameter_file_is_accepted_or_refused_in_readable_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(toy.ROOT / "params", tmp_path / "params")
    real = paths.shipped
    monkeypatch.setattr(
        paths, "shipped", lambda name: tmp_path / name if name == "params" else real(name)
    )
    files = sorted((tmp_path / "params/ci").glob("*.yaml"))
    for seed in range(40):
        path = files[seed % len(files)]
        whole = path.read_text()
        path.write_text(spoilt(whole, seed))
        try:
            found = parameters.of_study("ci")
            assert yaml.safe_load(path.read_text()) is None or path.stem in found
        except StudyError as error:
            assert all(5 < len(line) < 600 for line in str(error).splitlines())
            assert path.name in str(error)
        path.write_text(whole)
