"""`make torture`: a study killed at random moments, every file damaged, every parameter file spoilt, and what came of it.

The kills go on where they were stopped (killing.py). What was tried, lost and wrong is kept in benchmarks/results/reliability.json.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import killing
import test_parameters

from benchmarks import machine
from depthprune_study import run

TESTS = Path(__file__).resolve().parents[1]
SHARES = (0.02, 0.25)  # of what a calm study takes: so it is killed ten times and more on its way, wherever it is
FAMILIES = {  # words for README, and the tests as pytest takes them
    "a file that a run reads: cut, a bit flipped, emptied, another's": ["faults/test_corruption.py"],
    "a parameter file spoilt in one to three places": ["faults/test_parameters.py"],
    "a model folder: tensors missing, added, swapped, not finite; pickles, code, another's tokenizer": [
        "faults/test_folders.py",
        "-k=not whole",  # which are no faults
    ],
    "no room on a disk or in memory, a clock that goes back, a file in a folder's place": [
        "faults/test_resources.py",
        "test_run.py::test_a_disk_that_fills_stops_the_study_in_a_sentence_and_room_lets_it_go_on",
    ],
    "no network, a read-only folder, two runs at once, no locks, a path with spaces and other letters, no home": [
        "test_assets.py::test_without_a_network_the_reason_is_one_sentence",
        "test_full_offline.py::test_without_the_hub_the_reason_is_one_sentence",
        "test_full_offline.py::test_without_the_data_hub_the_reason_is_one_sentence",
        "test_run.py::test_a_folder_that_cannot_be_written_to_stops_the_study_before_any_work",
        "test_run.py::test_runs_that_became_read_only_stop_the_study_and_lose_nothing",
        "test_report.py::test_a_folder_of_reports_that_is_read_only_costs_no_result",
        "test_report.py::test_a_file_where_the_reports_should_be_costs_no_result",
        "test_run.py::test_a_second_run_at_once_is_refused_in_a_sentence",
        "test_run.py::test_a_folder_that_cannot_be_locked_is_run_in_without_a_lock",
        "test_run.py::test_a_folder_with_spaces_and_other_letters_is_as_good_as_any",
        "test_report.py::test_a_folder_of_reports_with_spaces_and_other_letters_is_as_good_as_any",
        "test_assets.py::test_a_cache_with_spaces_and_other_letters_is_as_good_as_any",
        "test_smollm2.py::test_a_cache_with_spaces_and_other_letters_is_as_good_as_any",
        "test_run.py::test_a_home_that_is_not_there_is_not_needed",
    ],
}


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    options.add_argument("--kills", type=int, default=50)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--folder", type=Path, default=Path("runs") / "torture")
    asked = options.parse_args()
    folder = asked.folder.resolve() / killing.code()
    rows = {
        "SIGKILL to a study's kernel, its runner or both, at random moments": killed(folder, asked.kills, asked.seed),
        "SIGKILL to a recovery, which goes on from its checkpoint": recoveries_killed(folder, asked.kills, asked.seed),
    }
    for words, tests in FAMILIES.items():
        rows[words] = tested(tests)
        print(f"{words}: {rows[words]}", flush=True)
    print(f"saved {machine.save('reliability', {'seed': asked.seed, 'faults': rows})}")
    return int(any(row["lost_or_wrong"] for row in rows.values()))


def killed(folder: Path, kills: int, seed: int) -> dict[str, Any]:
    """How often a study was killed and begun again, and what of its records was lost or came out otherwise."""

    def said(state: dict) -> None:
        print(
            f"{sum(state['kills'].values())} kills {state['kills']}, {state['studies']} studies ended, "
            f"{len(state['lost'])} records lost, {len(state['wrong'])} wrong",
            flush=True,
        )

    expected = killing.undisturbed(folder / "calm")
    whole = sum(cost["seconds"] for cost in run.read_costs(folder / "calm" / "reports" / "ci").values())
    seconds = (max(3, SHARES[0] * whole), SHARES[1] * whole)
    state = killing.harry(folder / f"seed-{seed}", expected, kills=kills, seed=seed, seconds=seconds, said=said)
    notebooks = len(state["where"].keys() & run.READS.keys())
    return {
        "tried": sum(state["kills"].values()),
        "lost_or_wrong": len(state["lost"]) + len(state["wrong"]),
        "note": f"of the kernel {state['kills'].get('kernel', 0)}, the runner {state['kills'].get('runner', 0)}, both "
        f"{state['kills'].get('both', 0)}; studies ended: {state['studies']}; records of each compared: {len(expected)}; "
        f"notebooks that were hit: {notebooks} of {len(run.READS)}",
    }


def recoveries_killed(folder: Path, kills: int, seed: int) -> dict[str, Any]:
    """How often a recovery was killed and begun again, and how many ended otherwise than a calm one, or did more than a step twice."""
    state = killing.harry_recovery(folder / f"recovery-{seed}", kills=kills, seed=seed)
    told = f"recoveries ended: {state['ends']}, otherwise than a calm one: {state['wrong']}; starts that went on: {state['resumed']}"
    print(f"{state['kills']} kills of recoveries: {told}; {state['repeated']} did more than a step twice", flush=True)
    return {"tried": state["kills"], "lost_or_wrong": state["wrong"] + state["repeated"], "note": told}


def tested(tests: list[str]) -> dict[str, Any]:
    """How many faults these tests try, slow ones too, and how many of them failed (each holds a whole run to its results)."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-m", "", "-n", "2", *tests, f"--junitxml={result}"]
        code = subprocess.run(command, cwd=TESTS, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False).returncode
        suite = ElementTree.parse(result).getroot().find("testsuite") if result.exists() else None
    counts = {name: int(suite.get(name)) for name in ("tests", "failures", "errors", "skipped")} if suite is not None else {}
    if code not in (0, 1) or not counts.get("tests"):  # pytest itself failed, so that no fault was tried
        raise RuntimeError(f"pytest {' '.join(tests)} ended with {code} and ran {counts.get('tests', 0)} tests")
    row = {"tried": counts["tests"] - counts["skipped"], "lost_or_wrong": counts["failures"] + counts["errors"], "note": ""}
    if counts["skipped"]:
        row["note"] = f"{counts['skipped']} more could not be tried on this machine"
    if tests == ["faults/test_parameters.py"]:  # a hundred a test
        row["tried"] = len({test_parameters.spoilt_file(seed) for seed in range(100 * test_parameters.HUNDREDS)})
    return row


if __name__ == "__main__":
    sys.exit(main())
