"""A study killed at random moments, again and again, and started again each time: for `make torture`, and a short form in the tests.

A series that is stopped goes on where it was; results.json in its folder says what was tried, lost and wrong.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from depthprune_core import records

RUN = [sys.executable, "-m", "depthprune_study.cli", "run", "ci"]
VICTIMS = ("kernel", "runner", "both")
BY_THE_CLOCK = ("timing", "timed", "pace")  # measured times live in records of their own


def environment(folder: Path) -> dict[str, str]:
    return {**os.environ, "DEPTHPRUNE_RUNS": str(folder / "runs"), "DEPTHPRUNE_REPORTS": str(folder / "reports")}


def undisturbed(folder: Path) -> dict[str, str]:
    """The study run once to its end, unless that was done before; the content of its records."""
    if not (folder / "reports" / "ci" / "report.html").exists():
        subprocess.run(RUN, env=environment(folder), check=True, capture_output=True)
    return hashes(folder)


def hashes(folder: Path) -> dict[str, str]:
    """Content of every record but the measured times."""
    root = folder / "reports" / "ci" / "records"
    kept = [p for p in sorted(root.rglob("*.json")) if not any(word in p.name for word in BY_THE_CLOCK)]
    return {str(p.relative_to(root)): records.data_hash(p) for p in kept}


def killed(folder: Path, victim: str, after_seconds: float) -> bool:
    """Start the study, and kill it after so long with SIGKILL: its kernel, its runner, or both. False where it ended before.

    A runner whose kernel has died must end by itself, with a sentence and without a traceback.
    """
    with open(folder / "stderr", "w+", encoding="utf-8") as stderr:
        process = subprocess.Popen(
            RUN, env=environment(folder), stdout=subprocess.DEVNULL, stderr=stderr, start_new_session=True
        )
        try:
            process.wait(after_seconds)
            return False
        except subprocess.TimeoutExpired:
            pass
        if victim == "kernel" and (kernels := _children(process.pid)):
            for kernel in kernels:
                os.kill(kernel, signal.SIGKILL)
            code = process.wait(120)
            stderr.seek(0)
            said = stderr.read()
            if code != 1 or "Traceback" in said:
                raise AssertionError(f"the runner ended with {code} when its kernel was killed, and said: {said[-500:]}")
        elif victim == "runner":
            orphans = _children(process.pid)
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            for (
                orphan
            ) in orphans:  # a kernel notices that its parent is gone, in a second or so; the next run must not need to wait
                _wait_until_gone(orphan)
        else:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return True


def harry(
    folder: Path, expected: dict[str, str], *, kills: int, seed: int, said: Callable[[dict], None] = lambda state: None
) -> dict:
    """Kill and restart until so many kills are done, and the last study has ended; each that ends is compared and begun anew.

    Goes on from `results.json`; the moments are drawn by seed and number, so that a stopped series goes on as it would have.
    """
    path = folder / "results.json"
    state = (
        json.loads(path.read_text()) if path.exists() else {"seed": seed, "kills": {}, "studies": 0, "wrong": [], "lost": []}
    )
    folder.mkdir(parents=True, exist_ok=True)

    def compare() -> None:
        found = hashes(folder)
        state["studies"] += 1
        state["lost"] += sorted(expected.keys() - found.keys())
        state["wrong"] += sorted(name for name in expected.keys() & found.keys() if expected[name] != found[name])
        shutil.rmtree(folder / "runs")
        shutil.rmtree(folder / "reports")

    while sum(state["kills"].values()) < kills:
        draw = random.Random(f"{seed} {sum(state['kills'].values())} {state['studies']}")
        victim = draw.choice(VICTIMS)
        if killed(folder, victim, draw.uniform(3, 25)):
            state["kills"] = dict(Counter(state["kills"]) + Counter([victim]))
        else:
            compare()
        records.write_atomically(path, json.dumps(state, indent=1))
        said(state)
    subprocess.run(RUN, env=environment(folder), check=True, capture_output=True)
    compare()
    records.write_atomically(path, json.dumps(state, indent=1))
    said(state)
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
