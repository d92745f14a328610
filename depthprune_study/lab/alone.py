"""One process at a time writes a folder."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from filelock import FileLock, Timeout

from depthprune_study.errors import StudyError
from depthprune_study.lab.job import Job

LOCK = ".lock"  # in the work folder


@contextmanager
def alone(job: Job) -> Iterator[None]:
    """One process at a time writes `out`. Raises StudyError for a second one."""
    job.work.mkdir(parents=True, exist_ok=True)
    lock = FileLock(job.work / LOCK)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise StudyError(f"{job.out} is being written by another process: wait for it") from None
    try:
        yield
    finally:
        lock.release()
        if job.work.exists() and {path.name for path in job.work.iterdir()} <= {LOCK}:
            shutil.rmtree(job.work, ignore_errors=True)
