"""A study that is killed and started again ends in the same records as one that was left alone."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from depthprune_core import records

RUN = [sys.executable, "-m", "depthprune_study.cli", "run", "ci"]


def _environment(folder: Path) -> dict[str, str]:
    return {**os.environ, "DEPTHPRUNE_RUNS": str(folder / "runs"), "DEPTHPRUNE_REPORTS": str(folder / "reports")}


def _hashes(folder: Path) -> dict[str, str]:
    """Content of every record but the measured times, which live in records of their own."""
    root = folder / "reports" / "ci" / "records"
    by_the_clock = ("timing", "timed", "pace")
    kept = [p for p in sorted(root.rglob("*.json")) if not any(word in p.name for word in by_the_clock)]
    return {str(p.relative_to(root)): records.data_hash(p) for p in kept}


@pytest.mark.slow
def test_a_study_killed_at_random_moments_ends_in_the_records_of_an_undisturbed_one(tmp_path: Path) -> None:
    calm, harried = tmp_path / "calm", tmp_path / "harried"
    subprocess.run(RUN, env=_environment(calm), check=True, capture_output=True)
    moments = random.Random(0)
    for _ in range(6):
        process = subprocess.Popen(
            RUN, env=_environment(harried), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        time.sleep(moments.uniform(5, 25))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    subprocess.run(RUN, env=_environment(harried), check=True, capture_output=True)
    assert _hashes(harried) == _hashes(calm)
    assert len(_hashes(calm)) > 20
