"""Progress: one tqdm bar, which does not remain in a saved notebook."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm


class Bar:
    """The core's progress callback: one bar at a time, named by `of(piece)`."""

    def __init__(self) -> None:
        self._piece, self._bar = "", None

    def __call__(self, done: int, of: int, what: str) -> None:
        stream, shown = _where()
        if not shown:
            return
        if self._bar is None or (self._bar.unit, self._bar.total) != (f" {what}", of or None):
            self._close()
            often = {"mininterval": 1, "miniters": 1}
            about = {"desc": self._piece, "total": of or None, "unit": f" {what}"}
            self._bar = tqdm(**about, **often, file=stream, leave=False)
        self._bar.update(done - self._bar.n)

    @contextmanager
    def of(self, piece: str) -> Iterator[None]:
        """Names the bar within the block."""
        before, self._piece = self._piece, piece
        try:
            yield
        finally:
            self._close()
            self._piece = before

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _where() -> tuple[Any, bool]:
    """The stream for the bar, and whether it is visible.

    An interactive kernel draws in the cell. A kernel without input (papermill, nbclient) draws on
    stderr only under the runner (DEPTHPRUNE_BARS), which shows it and does not save it.
    """
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    kernel = getattr(shell, "kernel", None)
    if kernel is None:
        return sys.stderr, sys.stderr.isatty()
    if getattr(kernel, "_allow_stdin", True):
        return sys.stdout, True
    return sys.stderr, os.environ.get("DEPTHPRUNE_BARS") == "stderr"
