"""Kills a study or a recovery at random moments and restarts it, for tests and torture."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import psutil

from depthprune_core import storage

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
RECOVERY = [sys.executable, str(HERE / "recovery.py")]
VICTIMS = ("kernel", "runner", "both")
BY_THE_CLOCK = re.compile(r"timing|shape_timing")  # records of measured times


def environment(**more: str) -> dict[str, str]:
    """The environment of this harness's commands: the code of this checkout."""
    python = os.pathsep.join([str(ROOT), str(HERE.parent)])
    return {**os.environ, "PYTHONPATH": python, "OMP_NUM_THREADS": "1", **more}


def contents(records: Path) -> dict[str, str]:
    """Hashes of the content of all records below a folder, except measured times."""
    found = [path for path in sorted(records.rglob("*.json")) if not BY_THE_CLOCK.match(path.stem)]
    return {path.relative_to(records).as_posix(): storage.data_hash(path) for path in found}


def killed(command: list[str], where: Mapping[str, str], victim: str, after_seconds: float) -> str:
    """Start a study and kill its kernel, its runner or both with SIGKILL; returns which, or "".

    A runner whose kernel has died must end by itself, with a sentence and without a traceback.
    """
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment(**where), **pipes) as process:
        this, kernels = psutil.Process(process.pid), []
        try:
            with suppress(subprocess.TimeoutExpired):
                process.wait(after_seconds)
            if process.poll() is None:
                with suppress(psutil.Error):
                    kernels = this.children(recursive=True)
                hit = _kill(victim, this, kernels)
                if hit == "kernel":
                    process.wait(120)
            else:
                hit = ""
            said = process.stderr.read() if hit in ("", "kernel") else ""
            if "Traceback" in said or (hit == "" and process.returncode != 0):
                raise AssertionError(f"the runner ended with {process.returncode}: {said[-500:]}")
            return "" if hit == "kernel" and process.returncode == 0 else hit
        finally:
            process.kill()
            alive = psutil.wait_procs(kernels, timeout=60)[1]
            assert not alive, "a kernel outlives its runner"


def _kill(victim: str, runner: psutil.Process, kernels: list[psutil.Process]) -> str:
    victim = victim if kernels else "runner"
    for process in {"kernel": kernels, "runner": [runner], "both": [runner, *kernels]}[victim]:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    return victim


def harry(
    folder: Path,
    command: list[str],
    records: Path,
    expected: Mapping[str, str],
    *,
    kills: int,
    seed: int,
    seconds: tuple[float, float],
) -> dict:
    """Kill and restart a study; compare each finished run with `expected` and begin again.

    folder: its DEPTHPRUNE_HOME. records: the folder of its records. seconds: the range of times
    after which a start is killed. Results are kept in results.json; a stopped series resumes.
    """
    path = folder / "results.json"
    state = {"kills": {}, "studies": 0, "lost": [], "wrong": []}
    state |= json.loads(path.read_text()) if path.exists() else {}
    where = {"DEPTHPRUNE_HOME": str(folder)}

    def compare() -> None:
        found = contents(records)
        state["studies"] += 1
        state["lost"] += sorted(expected.keys() - found.keys())
        state["wrong"] += sorted(n for n in found if expected.get(n) != found[n])
        for part in ("runs", "reports"):
            shutil.rmtree(folder / part, ignore_errors=True)

    while (n := sum(state["kills"].values())) < kills:
        draw = random.Random(f"{seed} {n} {state['studies']}")
        if hit := killed(command, where, draw.choice(VICTIMS), draw.uniform(*seconds)):
            state["kills"] = dict(Counter(state["kills"]) + Counter([hit]))
        else:
            compare()
        storage.write_atomically(path, json.dumps(state, indent=1))
    subprocess.run(command, env=environment(**where), check=True, capture_output=True)
    compare()
    storage.write_atomically(path, json.dumps(state, indent=1))
    return state


def harry_recovery(folder: Path, *, kills: int, seed: int) -> dict:
    """Kill a recovery with a checkpoint every step; compare each end with an uninterrupted run.

    `repeated`: the number of starts that repeated more than one step.
    """
    calm, work = folder / "calm", folder / "work"
    subprocess.run([*RECOVERY, str(calm)], env=environment(), check=True)
    state = {"kills": 0, "ends": 0, "wrong": 0, "repeated": 0}

    def ended() -> None:
        starts = [
            [int(n) for n in p.read_text().split()] for p in sorted((work / "steps").iterdir())
        ]
        starts = [steps for steps in starts if steps]
        later = [(one[-1], two[0]) for one, two in pairwise(starts)]
        state["repeated"] += sum(first < last for last, first in later)
        state["wrong"] += (work / "ended").read_text() != (calm / "ended").read_text()
        state["ends"] += 1
        shutil.rmtree(work)

    while state["kills"] < kills:
        draw = random.Random(f"{seed} {state['kills']} {state['ends']}")
        steps = work / "steps" / f"{len(list((work / 'steps').glob('*'))):03d}"
        with subprocess.Popen([*RECOVERY, str(work)], env=environment()) as process:
            while process.poll() is None and not (steps.exists() and steps.stat().st_size):
                time.sleep(0.01)
            with suppress(subprocess.TimeoutExpired):
                process.wait(draw.uniform(0, 0.5))
            if process.poll() is None:
                process.kill()
                state["kills"] += 1
                continue
        if process.returncode != 0:
            raise AssertionError(f"a recovery that went on ended with {process.returncode}")
        ended()
    subprocess.run([*RECOVERY, str(work)], env=environment(), check=True)
    ended()
    return state
