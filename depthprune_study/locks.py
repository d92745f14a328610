"""Locks that let one process at a time work in a folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock

from depthprune_study.errors import StudyError


@contextmanager
def alone(
    folder: Path, doing: str, say: Callable[[str], None] = lambda line: None
) -> Iterator[None]:
    """Lock a folder for one process; the lock ends with the process.

    Raises StudyError if another process holds it. Prints a warning if locks are not supported.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise StudyError(f"another process is {doing}: wait, or stop it") from None
    except (OSError, NotImplementedError) as error:  # NFS without its lock daemon, some drives
        say(f"{folder} cannot be locked ({error}): do not start a second process in it")
    try:
        yield
    finally:
        lock.release()
