"""How a notebook at work tells that it advances: to the runner through a small file, to a reader through one line that is replaced."""

from __future__ import annotations

import json
import re
import resource
import sys
import time
from pathlib import Path

import torch
from IPython.display import display

from depthprune_core import records


class Progress:
    """Tells the runner through a small file, and a reader of the live notebook through one line that is replaced."""

    def __init__(self, path: Path, notebook: str) -> None:
        self.path, self.notebook = path, notebook
        self.piece, self.began, self.told, self.line = "", 0.0, 0.0, None

    def begin(self, piece: str) -> None:
        self.piece, self.began, self.told = piece, time.monotonic(), 0.0
        self.line = display({"text/plain": f"{piece} ..."}, raw=True, display_id=True)

    def tell(self, done: int, of: int, what: str) -> None:
        now = time.monotonic()
        if now - self.told < 1 and done != of:
            return
        self.told = now
        share = f"{done:,} of {of:,} {what}" if of else f"{done:,} {what}"
        left = f", about {(now - self.began) * (of - done) / done:.0f} s left" if of and done else ""
        line = f"{self.piece}: {share}{left}"
        records.write_atomically(self.path, json.dumps({"notebook": self.notebook, "line": line}))
        if self.line is not None:
            self.line.update({"text/plain": line}, raw=True)

    def end(self) -> None:
        state = {
            "notebook": self.notebook,
            "line": f"{self.piece}: done",
            "peak_bytes": peak_bytes(),
            "peak_gpu_bytes": peak_gpu_bytes(),
        }
        records.write_atomically(self.path, json.dumps(state))
        if self.line is not None:
            self.line.update({"text/plain": ""}, raw=True)
            self.line = None


def peak_gpu_bytes() -> int:
    """The most memory that this process has held on its GPU so far; 0 without one."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else 0


def peak_bytes() -> int:
    """The most memory that this process has held so far (main memory, not a GPU's)."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux: getrusage would count the process that started this one too
        kib = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
        return int(kib[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
