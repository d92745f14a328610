"""How far a piece of work is: one tqdm bar, of which nothing stays in a saved notebook."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from depthprune_core import storage


class Bar:
    """The core's progress callback. Between `of(piece)` and its end it draws one bar."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._piece, self._bar = folder, "", None
        self._counts, self._done = ("", 0), 0

    def __call__(self, done: int, of: int, what: str) -> None:
        if self._bar is None or self._counts != (what, of):
            self._close()
            self._counts, self._bar = (what, of), self._new(what, of)
        self._bar.update(done - self._done)
        self._done = done

    def _new(self, what: str, of: int) -> tqdm:
        stream, shown = where()
        return tqdm(
            desc=self._piece,
            total=of or None,
            unit=f" {what}",
            file=stream,
            disable=not shown,
            leave=False,
            mininterval=1,
            miniters=1,
        )

    @contextmanager
    def of(self, piece: str) -> Iterator[None]:
        """Within the block the bar carries this name."""
        before, self._piece = self._piece, piece
        try:
            yield
        finally:
            self._close()
            self._piece = before
            if torch.cuda.is_initialized():  # the runner sees main memory only
                peak = {"peak_gpu_bytes": torch.cuda.max_memory_allocated()}
                storage.write_atomically(self._folder / "progress.json", json.dumps(peak))

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar, self._done = None, 0


@cache
def where() -> tuple[Any, bool]:
    """The stream that a bar is drawn on, and whether anyone sees it.

    A reader's own kernel draws in the cell. A kernel without input is papermill's or nbclient's:
    under the runner, which knows it by DEPTHPRUNE_HOME, the runner hands stderr on and drops it;
    else the bar goes past the notebook to the terminal that the kernel was started from.
    """
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    kernel = getattr(shell, "kernel", None)
    if kernel is None:
        return sys.stderr, sys.stderr.isatty()
    if getattr(kernel, "_allow_stdin", True):
        return sys.stdout, True
    if "DEPTHPRUNE_HOME" in os.environ:
        return sys.stderr, True
    terminal = getattr(sys.stderr, "_original_stdstream_copy", None)  # ipykernel's copy of fd 2
    if terminal is None:
        return sys.stderr, False
    stream = os.fdopen(os.dup(terminal), "w", encoding="utf-8", errors="replace")
    return stream, stream.isatty()
