"""How long work tells that it advances: by a callback, since the core prints nothing."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int, str], None]  # done, of (0 = not known), what is counted


def silent(done: int, of: int, what: str) -> None:
    """The callback that says nothing."""
