"""What values parameters can take, by their names: one table for all notebooks."""

from __future__ import annotations

import fnmatch
import re
from typing import Any

from depthprune_core.records import PRECISIONS, TRAINED_PARTS


def between(low: float, high: float) -> tuple[str, Any]:
    """A number from low to high, ends included."""
    return f"{low:,} to {high:,}", lambda value: low <= value <= high


def one_of(*values: Any) -> tuple[str, Any]:
    """One of some values."""
    return "one of " + ", ".join(map(str, values)), lambda value: value in values


RATE = ("above 0, at most 1", lambda value: 0 < value <= 1)
# Name or pattern -> what each value may be. The first pattern that fits a name counts.
RANGES: dict[str, tuple[str, Any]] = {
    "study": ("a-z, 0-9, - and _", lambda value: re.fullmatch(r"[a-z0-9_-]+", value) is not None),
    "model": ("a named model, a folder or a hub id", bool),
    "text": ("a named text, a file, a folder or ORG/NAME:column", bool),
    "device": one_of("auto", "cpu", "cuda"),
    "trained": one_of("recipe", *TRAINED_PARTS),
    "precision": one_of("recipe", "auto", *PRECISIONS),
    "seed": between(0, 2**32 - 1),
    "seeds": between(0, 2**32 - 1),
    "*lr": RATE,
    "*lrs": RATE,
    "max_documents": ("0 (all) or 2 and more", lambda value: value == 0 or value >= 2),
    "*seq_len": between(8, 8192),
    "*seq_lens": between(8, 8192),
    "*batch_tokens": between(8, 10**7),
    "*_new_tokens": between(1, 10**6),
    "new_tokens": between(1, 10**6),
    "*tokens": between(0, 10**10),  # a sample lies in memory, 17 bytes a token
    "*token_counts": between(8, 10**10),
    "*drop_count": between(1, 1_000),
    "*drop_counts": between(1, 1_000),
    "*rounds": between(3, 200),
    "*temperature": ("above 0, at most 20", lambda value: 0 < value <= 20),
    "*temperatures": ("above 0, at most 20", lambda value: 0 < value <= 20),
    "*warmup": ("0 to below 1", lambda value: 0 <= value < 1),
    "*warmups": ("0 to below 1", lambda value: 0 <= value < 1),
    "*draws": between(1, 50),
    "n_*": between(0, 10**6),
    "windows_at_once": between(0, 10**6),
}


def wrong(name: str, value: Any) -> str:
    """What a value should be instead; empty where it may be what it is."""
    for pattern, (words, allows) in RANGES.items():
        if fnmatch.fnmatchcase(name, pattern):
            try:
                return "" if allows(value) else words
            except TypeError:  # a text under a name of numbers, such as drop_counts="8%"
                return ""
    return ""
