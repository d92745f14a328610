"""A study that is killed and started again ends in the same records as one that was left alone; `make torture` is the long form."""

from __future__ import annotations

import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import killing
import nbformat
import pytest

from depthprune_core import records
from depthprune_study import places, run


def test_a_recovery_killed_at_random_moments_goes_on_and_ends_as_a_calm_one(tmp_path: Path) -> None:
    state = killing.harry_recovery(tmp_path, kills=2, seed=0)
    assert state["kills"] == 2 and state["wrong"] == state["repeated"] == 0 and state["ends"] >= 1
    assert state["resumed"] >= 1


def test_what_depends_on_the_pace_of_the_machine_is_not_compared() -> None:
    scores = places.reports("ci") / "records" / "03b_controls" / "test"
    by_tokens, by_time = (records.read_stamp(scores / f"{name}.json").inputs["0 model"] for name in ("ce", "ce (timed)"))
    compared = "".join((places.reports("ci") / name).read_text() for name in killing.hashes(places.ROOT) if "arms/ce/" in name)
    assert by_tokens != by_time  # training without a teacher is the faster
    assert by_tokens in compared and by_time not in compared


def test_everything_else_is() -> None:
    compared = killing.hashes(places.ROOT)
    every = {path.relative_to(places.reports("ci")) for path in places.reports("ci").glob("records/**/*.json")}
    left_out = {path.stem for path in every if str(path) not in compared}
    assert {"ce (timed)", "pace", "timing-2", "timed_test_scores"} <= left_out
    assert all(killing.BY_THE_CLOCK.fullmatch(name) for name in left_out)
    assert {path.stem for path in every if "evenly_spaced" in path.stem} and not any("evenly" in name for name in left_out)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="kernels are found by /proc")
def test_a_study_that_stops_by_itself_is_no_ended_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(killing, "RUN", [sys.executable, "-c", "import sys; sys.exit('it stopped')"])
    with pytest.raises(AssertionError, match="the runner ended with 1, and said: it stopped"):
        killing.killed(tmp_path, "runner", 60)
    monkeypatch.setattr(killing, "RUN", [sys.executable, "-c", "import time; time.sleep(60)"])
    assert killing.killed(tmp_path, "both", 0.5) == "runner"  # no kernel was there


SLEEPS_AND_WRITES = """
import os, sys, time
from pathlib import Path
time.sleep(float(sys.argv[1]))
Path(os.environ["DEPTHPRUNE_RUNS"]).mkdir(parents=True, exist_ok=True)
folder = Path(os.environ["DEPTHPRUNE_REPORTS"], "ci", "records")
folder.mkdir(parents=True, exist_ok=True)
for word in sys.argv[2:]:
    name, content = word.split("=")
    (folder / f"{name}.json").write_text(content)
"""


def stand_in(*files: str) -> list[str]:
    """Command of a study of a second and a half that leaves these files (name=content)."""
    return [sys.executable, "-c", SLEEPS_AND_WRITES, "1.5", *files]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="kernels are found by /proc")
def test_a_series_of_kills_that_is_stopped_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(killing, "RUN", stand_in("one=1"))
    monkeypatch.setattr(killing, "VICTIMS", ("runner", "both"))
    expected = killing.undisturbed(tmp_path / "calm")
    told: list[int] = []

    def stop_at(kills: int, state: dict) -> None:
        told.append(sum(state["kills"].values()))
        if told[-1] == kills:
            raise KeyboardInterrupt

    series = partial(killing.harry, tmp_path / "harried", expected, kills=4, seed=3, seconds=(0.1, 0.5))
    with pytest.raises(KeyboardInterrupt):
        series(said=partial(stop_at, 2))
    state = series(said=partial(stop_at, -1))
    assert told == [1, 2, 3, 4, 4]  # the last: the study that was let alone after it
    assert (state["kills"], state["studies"], state["lost"], state["wrong"]) == ({"runner": 4}, 1, [], [])
    assert series(said=partial(stop_at, -1)) == state  # nothing is done again, nor counted twice
    assert len(told) == 5


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="kernels are found by /proc")
def test_a_record_that_a_kill_costs_or_changes_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(killing, "RUN", stand_in("one=1", "two=1", "three=1"))
    expected = killing.undisturbed(tmp_path / "calm")
    monkeypatch.setattr(killing, "RUN", stand_in("one=1", "two=2"))
    state = killing.harry(tmp_path / "harried", expected, kills=1, seed=0, seconds=(0.1, 0.5))
    assert (state["studies"], [Path(name).stem for name in state["lost"]]) == (1, ["three"])
    assert [Path(name).stem for name in state["wrong"]] == ["two"]
    assert (tmp_path / "harried" / "reports-1").is_dir()  # kept, to be looked at


def test_a_recovery_that_ends_otherwise_is_counted(tmp_path: Path) -> None:
    (tmp_path / "calm").mkdir()
    (tmp_path / "calm" / "ended").write_text("otherwise")
    state = killing.harry_recovery(tmp_path, kills=1, seed=0)
    assert state["wrong"] == state["ends"] >= 1


def test_tests_that_fail_are_counted(tmp_path: Path) -> None:
    import torture

    file = tmp_path / "test_some.py"
    file.write_text(
        "import pytest\n\n"
        "@pytest.mark.parametrize('n', range(5))\n"
        "def test_some(n):\n"
        "    if n == 0:\n        pytest.skip('not here')\n"
        "    assert n > 2\n"
    )
    for nothing in (f"{file}::test_none", "-k=none_of_them"):  # a test that is gone is no fault that was survived
        with pytest.raises(RuntimeError, match="ran 0 tests"):
            torture.tested([str(file), nothing] if nothing.startswith("-") else [nothing])
    assert torture.tested([str(file)]) == {"tried": 4, "lost_or_wrong": 2, "note": "1 more could not be tried on this machine"}


def test_the_tests_that_the_long_form_names_are_there() -> None:
    import torture

    for test in (test for tests in torture.FAMILIES.values() for test in tests if not test.startswith("-")):
        file, _, name = test.partition("::")
        assert f"def {name}{'(' if name else ''}" in (torture.TESTS / file).read_text(encoding="utf-8"), test


def test_a_recovery_that_is_read_back_counts_as_the_one_that_was_written(tmp_path: Path) -> None:
    for _ in range(2):
        subprocess.run([*killing.PIECE, str(tmp_path)], env=killing.PIECE_ENVIRONMENT, check=True, capture_output=True)
        ended = (tmp_path / "ended").read_text()
        (tmp_path / "ended").rename(tmp_path / f"ended-{ended}")
    assert len(list(tmp_path.glob("ended-*"))) == 1


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the whole study has run, undisturbed."""
    folder = tmp_path_factory.mktemp("calm")
    killing.undisturbed(folder)
    return folder


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="kernels are found by /proc")
def test_a_study_killed_at_random_moments_ends_in_the_records_of_an_undisturbed_one(calm: Path, tmp_path: Path) -> None:
    expected = killing.hashes(calm)
    state = killing.harry(tmp_path, expected, kills=6, seed=0)
    assert (state["lost"], state["wrong"]) == ([], [])
    assert sum(state["kills"].values()) == sum(state["where"].values()) == 6
    assert set(state["where"]) <= {*run.READS, "none"}
    assert len(expected) > 20


OF_TIME = re.compile(
    "timing|timed|pace|faster|on_the_clock|ratios"
)  # what a cell that shows measured times, or what rests on them, speaks of


def outputs_of(folder: Path, notebook: str) -> list[tuple[str, object]]:
    cells = nbformat.read(folder / "reports" / "ci" / "notebooks" / f"{notebook}.ipynb", as_version=4).cells
    return [(cell.source, cell.outputs) for cell in cells if cell.cell_type == "code"]


@pytest.mark.slow
def test_two_runs_of_the_whole_study_agree_byte_for_byte_but_for_measured_times(calm: Path, tmp_path: Path) -> None:
    again = killing.undisturbed(tmp_path)
    assert again == killing.hashes(calm)
    for notebook in [name for name in run.READS if name != "06_report"]:  # which tells of all the others
        ours, theirs = outputs_of(tmp_path, notebook), outputs_of(calm, notebook)
        differing = [source for (source, here), (_, there) in zip(ours, theirs, strict=True) if here != there]
        assert all(OF_TIME.search(source) for source in differing), notebook
        if notebook in ("01_sensitivity", "03_recovery", "03c_choice", "05_seed_stability"):
            assert differing == [], notebook
            pages = {(folder / "reports" / "ci" / f"{notebook}.html").read_bytes() for folder in (calm, tmp_path)}
            assert len(pages) == 1, notebook
