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

import killing

from benchmarks import machine

HERE = Path(__file__).parent
FAMILIES = {  # words for README, the tests, and how many faults each of them tries
    "files that a run reads: cut, a bit flipped, emptied, another's": ("test_corruption.py", 1),
    "parameter files spoilt in one to three places": ("test_parameters.py", 100),
    "a full disk, files that may not grow, a clock that goes back": ("test_resources.py", 1),
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
    for words, (file, faults_a_test) in FAMILIES.items():
        rows[words] = tested(HERE / file, faults_a_test)
        print(f"{words}: {rows[words]}", flush=True)
    print(f"saved {machine.save('reliability', {'seed': asked.seed, 'faults': rows})}")
    return int(any(row["lost_or_wrong"] for row in rows.values()))


def killed(folder: Path, kills: int, seed: int) -> dict[str, int]:
    """How often a study was killed and begun again, and what of its records was lost or came out otherwise."""

    def said(state: dict) -> None:
        print(
            f"{sum(state['kills'].values())} kills {state['kills']}, {state['studies']} studies ended, "
            f"{len(state['lost'])} records lost, {len(state['wrong'])} wrong",
            flush=True,
        )

    expected = killing.undisturbed(folder / "calm")
    state = killing.harry(folder / f"seed-{seed}", expected, kills=kills, seed=seed, said=said)
    return {"tried": sum(state["kills"].values()), "lost_or_wrong": len(state["lost"]) + len(state["wrong"])}


def recoveries_killed(folder: Path, kills: int, seed: int) -> dict[str, int]:
    """How often a recovery was killed and begun again, and how many of them ended otherwise than a calm one."""
    state = killing.harry_recovery(folder / f"recovery-{seed}", kills=kills, seed=seed)
    print(
        f"{state['kills']} recoveries killed, {state['resumed']} went on behind their first step, {state['wrong']} ended otherwise",
        flush=True,
    )
    return {"tried": state["kills"], "lost_or_wrong": state["wrong"]}


def tested(file: Path, faults_a_test: int) -> dict[str, int]:
    """How many faults the file's tests try, slow ones too, and how many of the tests failed (each holds a whole run to its results)."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.xml"
        subprocess.run([sys.executable, "-m", "pytest", "-q", "-m", "", str(file), f"--junitxml={result}"], check=False)
        suite = ElementTree.parse(result).getroot().find("testsuite")
    counts = {name: int(suite.get(name)) for name in ("tests", "failures", "errors", "skipped")}
    tried = faults_a_test * (counts["tests"] - counts["skipped"])
    return {"tried": tried, "lost_or_wrong": counts["failures"] + counts["errors"]}


if __name__ == "__main__":
    sys.exit(main())
