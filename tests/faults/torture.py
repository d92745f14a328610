"""`make torture`: a study killed at random moments, every file damaged, every parameter file spoilt, and what came of it.

The kills go on where they were stopped (killing.py). What was tried, lost and wrong is kept in benchmarks/results/reliability.json.
"""

from __future__ import annotations

import argparse
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

HERE = Path(__file__).parent
SECONDS = ((3, 45), (3, 45), (45, 240))  # the last is long enough for a whole study on most machines
FAMILIES = {  # words for README and the tests
    "a file that a run reads: cut, a bit flipped, emptied, another's": "test_corruption.py",
    "a parameter file spoilt in one to three places": "test_parameters.py",
    "a model folder: tensors missing, added, swapped, not finite; pickles, code, another's tokenizer": "test_folders.py",
    "no room on a disk or in memory, a clock that goes back, a file in a folder's place": "test_resources.py",
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
    for words, file in FAMILIES.items():
        rows[words] = tested(HERE / file)
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
    state = killing.harry(folder / f"seed-{seed}", expected, kills=kills, seed=seed, seconds=SECONDS, said=said)
    notebooks = len(state["where"].keys() & run.READS.keys())
    return {
        "tried": sum(state["kills"].values()),
        "lost_or_wrong": len(state["lost"]) + len(state["wrong"]),
        "note": f"studies ended: {state['studies']}; records of each compared: {len(expected)}; "
        f"notebooks that were hit: {notebooks} of {len(run.READS)}",
    }


def recoveries_killed(folder: Path, kills: int, seed: int) -> dict[str, Any]:
    """How often a recovery was killed and begun again, and how many ended otherwise than a calm one, or did more than a step twice."""
    state = killing.harry_recovery(folder / f"recovery-{seed}", kills=kills, seed=seed)
    told = f"recoveries ended: {state['ends']}, otherwise than a calm one: {state['wrong']}; starts that went on: {state['resumed']}"
    print(f"{state['kills']} kills of recoveries: {told}; {state['repeated']} did more than a step twice", flush=True)
    return {"tried": state["kills"], "lost_or_wrong": state["wrong"] + state["repeated"], "note": told}


def tested(file: Path) -> dict[str, Any]:
    """How many faults the file's tests try, slow ones too, and how many of the tests failed (each holds a whole run to its results)."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.xml"
        subprocess.run([sys.executable, "-m", "pytest", "-q", "-m", "", str(file), f"--junitxml={result}"], check=False)
        suite = ElementTree.parse(result).getroot().find("testsuite")
    counts = {name: int(suite.get(name)) for name in ("tests", "failures", "errors", "skipped")}
    row = {"tried": counts["tests"] - counts["skipped"], "lost_or_wrong": counts["failures"] + counts["errors"], "note": ""}
    if counts["skipped"]:
        row["note"] = f"{counts['skipped']} more could not be tried on this machine"
    if file.name == "test_parameters.py":  # a hundred a test
        row["tried"] = len({test_parameters.spoilt_file(seed) for seed in range(100 * test_parameters.HUNDREDS)})
    return row


if __name__ == "__main__":
    sys.exit(main())
