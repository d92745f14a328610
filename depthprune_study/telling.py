"""Reports why a command stopped: one sentence, no traceback, and what is kept."""

from __future__ import annotations

import errno
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import typer

from depthprune_study import paths
from depthprune_study.errors import StudyError


def say(line: str) -> None:
    """Print one line and flush."""
    print(line, flush=True)


@contextmanager
def stopping(doing: str, *, kept: str | Callable[[], str]) -> Iterator[None]:
    """Report any error in the block as one sentence and exit with a non-zero code.

    `kept`: what remains of the work after Ctrl-C.
    """
    try:
        yield
    except typer.Exit:
        raise
    except KeyboardInterrupt:
        still = kept if isinstance(kept, str) else kept()
        print(f"\nstopped while {doing}: {still}", file=sys.stderr)
        raise typer.Exit(130) from None
    except Exception as error:
        print(sentence(error, doing), file=sys.stderr)
        raise typer.Exit(1) from None


def sentence(error: Exception, doing: str) -> str:
    """The message for an error; an unexpected error also gets a log with the traceback."""
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, StudyError):
        return str(error)
    if "No space left" in text or (isinstance(error, OSError) and error.errno == errno.ENOSPC):
        return "the disk is full: free some space, then run the same command again to resume"
    if isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text:
        return f"memory ran out while {doing} ({text}): use a smaller model or fewer tokens at once"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename or ''}".rstrip(": ")
    if isinstance(error, ModuleNotFoundError):
        return f"package {error.name} is missing: pip install 'depthprune[study]'"
    frames = traceback.extract_tb(error.__traceback__)
    ours = (str(paths.PACKAGE), str(paths.CODE / "depthprune_core"))
    if isinstance(error, ValueError | RuntimeError) and frames and frames[-1][0].startswith(ours):
        return str(error)  # raised by this package: already a sentence
    return (
        f"an unexpected error, {type(error).__name__} ({text[:300]}), stopped this command while "
        f"{doing}: please report it with {_log(error)} at "
        f"https://github.com/{paths.REPOSITORY}/issues"
    )


def _log(error: BaseException) -> Path:
    """The traceback, in a file."""
    name = f"depthprune-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
    path = Path(tempfile.gettempdir()) / name
    path.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
    return path
