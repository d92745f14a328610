"""The study `ci` alone, and beside a second torch process: `python -m benchmarks.busy`, ~45 min.

OpenMP's threads spin while they wait for each other. Where two processes share the cores, a thread
that spins keeps one from working that the others wait for; GOMP_SPINCOUNT limits the spinning.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time

from benchmarks import machine
from depthprune_core import evaluation

MODEL, SEQ_LEN, WINDOWS = "gpt2-mini", 128, 8  # what the other process scores, again and again
STUDY = "ci"
SETTINGS = {"as torch comes": "300000", "GOMP_SPINCOUNT=10000": "10000"}  # libgomp's default first
MOST = 6  # a run beside another is stopped at so many times its time alone


def main() -> None:
    """Measure every setting and save what a second process costs."""
    if len(sys.argv) > 1:
        work()
    found = {}
    for name, spins in SETTINGS.items():
        environment = os.environ | {"GOMP_SPINCOUNT": spins}
        alone, _ = _study_seconds(environment)
        other = _other(environment)
        try:
            beside, ended = _study_seconds(environment, limit=MOST * alone)
        finally:
            other.kill()
            other.wait()
        found[name] = {
            "alone_s": alone,
            "beside_s": beside,
            "ratio": beside / alone,
            "ended": ended,
        }
        told = "" if ended else ", stopped there"
        print(f"{name}: {alone:.0f} s alone, {beside:.0f} s beside another{told}", flush=True)
    print(f"saved {machine.save('busy', {'study': STUDY, 'settings': found})}")


def work() -> None:
    """Score the same windows until killed."""
    teacher = machine.load(MODEL)
    windows = machine.windows(teacher, "validation", seq_len=SEQ_LEN, count=WINDOWS)
    while True:
        evaluation.score(teacher.model, windows)
        print("ready", flush=True)


def _other(environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """A process that works; it has done its first round."""
    command = [sys.executable, "-m", "benchmarks.busy", "work"]
    with tempfile.NamedTemporaryFile() as output:
        process = subprocess.Popen(command, env=environment, stdout=output)
        while not os.path.getsize(output.name):
            if process.poll() is not None:
                raise RuntimeError(f"{' '.join(command)} ended before its first round")
            time.sleep(0.1)
    return process


def _study_seconds(environment: dict[str, str], limit: float | None = None) -> tuple[float, bool]:
    """Seconds of the whole study, from nothing to its report; whether it ended within `limit`."""
    command = [sys.executable, "-m", "depthprune_study", "run", STUDY]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        places = {"DEPTHPRUNE_RUNS": f"{folder}/runs", "DEPTHPRUNE_REPORTS": f"{folder}/reports"}
        with open(f"{folder}/log", "wb") as log:
            start = time.perf_counter()
            study = subprocess.Popen(
                command, env=environment | places, stdout=log, stderr=log, start_new_session=True
            )
            try:
                code = study.wait(limit)
            except subprocess.TimeoutExpired:
                os.killpg(study.pid, signal.SIGKILL)
                study.wait()
                return time.perf_counter() - start, False
            if code:
                raise RuntimeError(f"{' '.join(command)} ended with code {code}")
            return time.perf_counter() - start, True


if __name__ == "__main__":
    main()
