"""Timing two sides in turn, and the most memory that each takes on top of what was there."""

from __future__ import annotations

import ctypes
import gc
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from depthprune_study.results.statistics import Interval, median_ratio

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass
class Row:
    """One line of the table."""

    work: str
    model: str
    size: str  # what one repetition worked on
    plain_seconds: list[float] = field(default_factory=list)  # of the whole work, each repetition
    our_seconds: list[float] = field(default_factory=list)
    plain_peak_bytes: int = 0  # on top of weights; 0 = not measured
    our_peak_bytes: int = 0
    counts_allow: float = 0.0  # ratio by operation counts; 0 = none
    largest_difference: float = 0.0  # between the two sides' numbers, nats per token
    note: str = ""

    @property
    def ratio(self) -> Interval:
        return median_ratio(self.plain_seconds, self.our_seconds)


def in_turn(
    row: Row, plain: Callable[[int], Any], ours: Callable[[int], Any], *, repetitions: int
) -> list[tuple[Any, Any]]:
    """Plain, ours, plain, ours ...: fills the row, returns both sides' results."""
    results = []
    for repetition in range(repetitions):
        a, seconds, peak = timed(lambda r=repetition: plain(r))
        row.plain_seconds.append(seconds)
        row.plain_peak_bytes = max(row.plain_peak_bytes, peak)
        b, seconds, peak = timed(lambda r=repetition: ours(r))
        row.our_seconds.append(seconds)
        row.our_peak_bytes = max(row.our_peak_bytes, peak)
        results.append((a, b))
    return results


def timed(work: Callable[[], Any]) -> tuple[Any, float, int]:
    """Result, seconds, and the most memory (bytes) above what the process held before."""
    _give_back()
    before = _bytes("VmRSS", torch.cuda.memory_allocated)
    start = time.perf_counter()
    result = work()
    seconds = time.perf_counter() - start
    return result, seconds, max(0, _bytes("VmHWM", torch.cuda.max_memory_allocated) - before)


def _give_back() -> None:
    """Freed memory goes back to the system, and the high-water mark to where we are."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    elif CLEAR.exists():  # Linux; elsewhere there is no peak
        ctypes.CDLL(None).malloc_trim(0)
        CLEAR.write_text("5")


def _bytes(status: str, of_gpu: Callable[[], int]) -> int:
    if torch.cuda.is_available():
        return of_gpu()
    if not STATUS.exists():
        return 0
    return int(re.search(rf"{status}:\s+(\d+) kB", STATUS.read_text())[1]) * 1024
