"""What a command says when it stops: a sentence, never a traceback; and what is kept."""

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
    """One line on standard output, at once."""
    print(line, flush=True)


@contextmanager
def stopping(doing: str, *, kept: str | Callable[[], str]) -> Iterator[None]:
    """Whatever stops the block is said in a sentence; the exit code is not 0.

    `kept`: what is true of the work when it is stopped by Ctrl-C.
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
    """What to tell a user about an error; a log with the traceback where nobody foresaw it."""
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, StudyError):
        return str(error)
    if "No space left" in text or (isinstance(error, OSError) and error.errno == errno.ENOSPC):
        return "the disk is full: free some space, then the same command goes on from here"
    if isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text:
        return (
            f"memory ran out while {doing} ({text}): take a smaller model or fewer tokens at once"
        )
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename or ''}".rstrip(": ")
    if isinstance(error, ModuleNotFoundError):
        return f"package {error.name} is missing: pip install 'depthprune[study]'"
    frames = traceback.extract_tb(error.__traceback__)
    ours = (str(paths.PACKAGE), str(paths.CODE / "depthprune_core"))
    if isinstance(error, ValueError | RuntimeError) and frames and frames[-1][0].startswith(ours):
        return str(error)  # our own code raised it: it is a sentence already
    return (
        f"an error that nobody foresaw, {type(error).__name__} ({text[:300]}), stopped this while "
        f"{doing}: please report it with {_log(error)} at "
        f"https://github.com/{paths.REPOSITORY}/issues"
    )


def _log(error: BaseException) -> Path:
    """The traceback, in a file."""
    name = f"depthprune-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
    path = Path(tempfile.gettempdir()) / name
    path.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
    return path
