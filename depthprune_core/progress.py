"""How the core, which prints nothing, speaks: a callback for progress, one line for an error."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int, str], None]  # done, of (0 = not known), what is counted


def silent(done: int, of: int, what: str) -> None:
    """The callback that says nothing."""


def reason(error: BaseException) -> str:
    """What a library says, over however many lines, in one."""
    return " ".join(str(error).split())[:200]
