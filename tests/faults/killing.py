"""A study, or one recovery, killed at random moments, again and again, and started again each time: for `make torture` and the tests.

A series that is stopped goes on where it was; results.json in its folder says what was tried, lost and wrong.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

from depthprune_core import records
from depthprune_study import places, run

RUN = [sys.executable, "-m", "depthprune_study.cli", "run", "ci"]
HERE = Path(__file__).resolve().parent
PIECE = [sys.executable, str(HERE / "piece.py")]
PIECE_ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(places.ROOT), str(HERE.parent)])}
VICTIMS = ("kernel", "runner", "both")
BY_THE_CLOCK = re.compile(r"timing-.*|timed_.*|.* \(timed\)|pace")  # measured times live in records of their own


def code() -> str:
    """A hash of all that a series depends on: results of other code are not gone on with."""
    folders = ("depthprune_core", "depthprune_study", "notebooks", "params/ci", "tests/faults")
    kinds = (".py", ".ipynb", ".yaml", ".json")
    files = [path for folder in folders for path in (places.ROOT / folder).rglob("*.*") if path.suffix in kinds]
    files.append(places.PARAMS / "claims.yaml")
    digest = hashlib.sha256((places.ROOT / "constraints.txt").read_bytes())
    for path in sorted(files):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def environment(folder: Path) -> dict[str, str]:
    return {**os.environ, "DEPTHPRUNE_RUNS": str(folder / "runs"), "DEPTHPRUNE_REPORTS": str(folder / "reports")}


def undisturbed(folder: Path) -> dict[str, str]:
    """The study run once to its end, unless that was done before; the content of its records."""
    if not (folder / "reports" / "ci" / "report.html").exists():
        subprocess.run(RUN, env=environment(folder), check=True, capture_output=True)
    return hashes(folder)


def hashes(folder: Path) -> dict[str, str]:
    """The bytes of every record, those of recovered students too, but for measured times and what is told by them."""
    root = folder / "reports" / "ci"
    found = [path for part in ("records", "arms") for path in sorted((root / part).rglob("*.json"))]
    kept = {path: path.read_bytes() for path in found if not BY_THE_CLOCK.fullmatch(path.stem)}
    timed = _trained_by_the_clock(root)
    return {
        str(path.relative_to(root)): hashlib.sha256(content).hexdigest()
        for path, content in kept.items()
        if not any(weights in content for weights in timed)
    }


def _trained_by_the_clock(root: Path) -> set[bytes]:
    """Weights of students that were trained for as long as another: on how many tokens depends on the machine's pace."""
    weights = {True: set(), False: set()}
    for path in (root / "records").rglob("test/*.json"):
        inputs = records.read_stamp(path).inputs
        weights["(timed)" in path.name] |= {content.encode() for name, content in inputs.items() if name.startswith("0 ")}
    return weights[True] - weights[False]


def killed(folder: Path, victim: str, after_seconds: float) -> str:
    """Start the study, and kill it after so long with SIGKILL: its kernel, its runner, or both; what was killed, empty where it ended before.

    A runner whose kernel has died must end by itself, with a sentence and without a traceback.
    """
    with open(folder / "stderr", "w+", encoding="utf-8") as stderr:
        process = subprocess.Popen(
            RUN, env=environment(folder), stdout=subprocess.DEVNULL, stderr=stderr, start_new_session=True
        )
        kernels: list[int] = []

        def ended_by_itself(code: int, *allowed: int) -> None:
            stderr.seek(0)
            said = stderr.read()
            if code not in allowed or "Traceback" in said:
                raise AssertionError(f"the runner ended with {code}, and said: {said[-500:]}")

        try:
            with suppress(subprocess.TimeoutExpired):
                ended_by_itself(process.wait(after_seconds), 0)
                return ""
            kernels = _children(process.pid)
            while victim == "kernel" and not kernels and process.poll() is None:  # between two notebooks
                time.sleep(0.1)
                kernels = _children(process.pid)
            if victim == "kernel":
                _kill(*kernels)  # a session of its own: no signal to the runner's group reaches it
                with suppress(subprocess.TimeoutExpired):
                    code = process.wait(120)
                    ended_by_itself(code, 0, 1)
                    return "kernel" if kernels and code else ""  # 0: the last kernel had nothing left to do
                _kill(process.pid)  # the kernel had nothing left to do, and the runner went on
                return "runner"
            _kill(process.pid, *(kernels if victim == "both" else ()))
            return victim if kernels else "runner"
        finally:
            kernels = kernels or _children(process.pid)
            _kill(process.pid)
            process.wait()
            # An orphan notices in a second or so that its parent is gone; the next run must not need to wait.
            for kernel in kernels:
                _wait_until_gone(kernel)


def _kill(*processes: int) -> None:
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def harry(
    folder: Path,
    expected: dict[str, str],
    *,
    kills: int,
    seed: int,
    seconds: tuple[float, float] = (3, 45),
    said: Callable[[dict], None] = lambda state: None,
) -> dict:
    """Kill and restart until so many kills are done, and the last study has ended; each that ends is compared and begun anew.

    seconds: between which two a start is killed. `where`: how many kills fell on each notebook.

    Goes on from `results.json`; the moments are drawn by seed and number, so that a stopped series goes on as it would have. The folders
    of a study that lost something, or ended otherwise, are kept.
    """
    path = folder / "results.json"
    state = (
        json.loads(path.read_text())
        if path.exists()
        else {"seed": seed, "kills": {}, "where": {}, "studies": 0, "wrong": [], "lost": []}
    )
    folder.mkdir(parents=True, exist_ok=True)

    def compare() -> None:
        found = hashes(folder)
        lost = sorted(expected.keys() - found.keys())
        wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        state["studies"] += 1
        state["lost"] += lost
        state["wrong"] += [name for name in wrong if name not in lost]
        records.write_atomically(path, json.dumps(state, indent=1))
        for part in ("runs", "reports"):
            if wrong:
                (folder / part).rename(folder / f"{part}-{state['studies']}")
            else:
                shutil.rmtree(folder / part)

    if state.get("ended_after") == kills:  # asked for once more: nothing is left to be done
        return state
    while sum(state["kills"].values()) < kills:
        n = sum(state["kills"].values())
        draw = random.Random(f"{seed} {n} {state['studies']}")
        if hit := killed(folder, draw.choice(VICTIMS), draw.uniform(*seconds)):
            state["kills"] = dict(Counter(state["kills"]) + Counter([hit]))
            state["where"] = dict(Counter(state["where"]) + Counter([_first_undone(folder)]))
            records.write_atomically(path, json.dumps(state, indent=1))
        else:
            compare()
        said(state)
    subprocess.run(RUN, env=environment(folder), check=True, capture_output=True)
    state["ended_after"] = kills
    compare()
    said(state)
    return state


def _first_undone(folder: Path) -> str:
    done = {path.stem for path in (folder / "runs" / "ci" / "done").glob("*.json")}
    return next((notebook for notebook in run.READS if notebook not in done), "none")


def harry_recovery(folder: Path, *, kills: int, seed: int) -> dict:
    """Kill one recovery, which keeps a checkpoint every step, until so many kills are done; each end is compared with a calm one's.

    `resumed`: how many of the starts after a kill went on where the one before had been, or at most one step before; `repeated`: how many
    did more again. Goes on from `results.json`.
    """
    path, calm, work = folder / "results.json", folder / "calm", folder / "work"
    state = (
        json.loads(path.read_text())
        if path.exists()
        else {"seed": seed, "kills": 0, "resumed": 0, "repeated": 0, "ends": 0, "wrong": 0}
    )
    if not (calm / "ended").exists():
        subprocess.run([*PIECE, str(calm)], env=PIECE_ENVIRONMENT, check=True, capture_output=True)

    if state.get("ended_after") == kills:
        return state

    def ended() -> None:
        steps = [[int(n) for n in path.read_text(encoding="utf-8").split()] for path in sorted((work / "told").iterdir())]
        steps = [told for told in steps if told]  # one that was killed after its last step finds the student
        on = [later[0] >= earlier[-1] for earlier, later in pairwise(steps)]
        state["resumed"] += sum(on)
        state["repeated"] += len(on) - sum(on)
        state["ends"] += 1
        state["wrong"] += (work / "ended").read_text() != (calm / "ended").read_text()
        shutil.rmtree(work)

    while state["kills"] < kills:
        draw = random.Random(f"{seed} {state['kills']} {state['ends']}")
        starts = len(list((work / "told").glob("*")))
        process = subprocess.Popen(
            [*PIECE, str(work)], env=PIECE_ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        own = work / "told" / f"{starts:03d}"
        while process.poll() is None and not (own.exists() and own.stat().st_size):
            time.sleep(0.01)
        with suppress(subprocess.TimeoutExpired):
            process.wait(draw.uniform(0, 1.5))
        if process.poll() is None:
            process.kill()
            process.wait()
            state["kills"] += 1
        elif process.returncode == 0:
            ended()
        else:
            raise AssertionError(f"a recovery that was begun again ended with {process.returncode}")
        records.write_atomically(path, json.dumps(state, indent=1))
    subprocess.run([*PIECE, str(work)], env=PIECE_ENVIRONMENT, check=True, capture_output=True)
    ended()
    state["ended_after"] = kills
    records.write_atomically(path, json.dumps(state, indent=1))
    return state


def _children(parent: int) -> list[int]:
    """The kernels that a runner has started, by /proc."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
            if int(fields[1]) == parent and b"ipykernel" in (stat.parent / "cmdline").read_bytes():
                found.append(int(stat.parent.name))
        except (OSError, IndexError):
            continue
    return found


def _wait_until_gone(process: int, seconds: float = 60) -> None:
    for _ in range(int(seconds * 10)):
        try:
            state = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except OSError:
            return
        if state == "Z":
            return
        time.sleep(0.1)
    raise AssertionError("a kernel went on for a minute after its runner was killed")
