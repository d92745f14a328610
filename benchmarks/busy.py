"""Scoring alone, and beside a second torch process: `python -m benchmarks.busy`.

OpenMP's threads spin while they wait for each other. Where two processes share the cores, a thread
that spins keeps one from working that the others wait for; GOMP_SPINCOUNT limits the spinning.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from typing import Any

from benchmarks import machine
from depthprune_core import evaluation

MODEL, SEQ_LEN, WINDOWS = "gpt2-mini", 128, 8  # about what the study `ci` scores at a time
ROUNDS, LIMIT_SECONDS = 5, 120
SETTINGS = {"as torch comes": {}, "GOMP_SPINCOUNT=10000": {"GOMP_SPINCOUNT": "10000"}}


def main() -> None:
    """Measure every setting and save what a second process costs."""
    if len(sys.argv) > 1:
        work(forever=sys.argv[1] == "forever")
        return
    found: dict[str, Any] = {}
    for name, environment in SETTINGS.items():
        alone = _seconds(environment)
        other = _started("forever", environment)
        try:
            beside = _seconds(environment)
        finally:
            other.kill()
            other.wait()
        found[name] = {"alone_s": alone, "beside_s": beside, "ratio": beside / alone}
        print(f"{name}: {alone:.2f} s alone, {beside:.2f} s beside another: x{beside / alone:.1f}")
    print(f"saved {machine.save('busy', {'model': MODEL, 'settings': found})}")


def work(*, forever: bool) -> None:
    """Score the same windows again and again; tells the fastest round's seconds."""
    teacher = machine.load(MODEL)
    windows = machine.windows(teacher, "validation", seq_len=SEQ_LEN, count=WINDOWS)
    evaluation.score(teacher.model, windows)
    print("ready", flush=True)
    seconds, begun = [], time.monotonic()
    while forever or (len(seconds) < ROUNDS and time.monotonic() - begun < LIMIT_SECONDS):
        start = time.perf_counter()
        evaluation.score(teacher.model, windows)
        seconds.append(time.perf_counter() - start)
    print(json.dumps(sorted(seconds)[len(seconds) // 2]))


def _started(kind: str, environment: dict[str, str]) -> subprocess.Popen[str]:
    """A process that has done its first round."""
    command = [sys.executable, "-m", "benchmarks.busy", kind]
    unset = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    process = subprocess.Popen(
        command, env={**unset, **environment}, stdout=subprocess.PIPE, text=True
    )
    for line in process.stdout:
        if line.strip() == "ready":
            return process
    raise RuntimeError(f"{' '.join(command)} ended before its first round")


def _seconds(environment: dict[str, str]) -> float:
    """Median seconds a round."""
    process = _started("once", environment)
    return float(json.loads(process.communicate()[0].strip().splitlines()[-1]))


if __name__ == "__main__":
    main()
