"""Progress callbacks and one-line error reasons; the core itself prints nothing."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int, str], None]  # done, of (0 = not known), what is counted


def silent(done: int, of: int, what: str) -> None:
    """The callback that does nothing."""


def reason(error: BaseException) -> str:
    """A library's error message on one line."""
    return " ".join(str(error).split())[:200]
