"""A notebook parameter and its valid values: types, and one table of ranges by name."""

from __future__ import annotations

import fnmatch
import math
import re
import reprlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

from depthprune_core.records import PRECISIONS, TRAINED_PARTS, Recipe
from depthprune_core.selection import RULES
from depthprune_core.sources import SOURCES

TYPES = {
    "str": (str, "text"),
    "int": (int, "a whole number"),
    "float": (float, "a number"),
    "bool": (bool, "true or false"),
}


@dataclass(frozen=True)
class Parameter:
    """One line of a notebook's parameters cell, or a recipe field."""

    name: str
    type: str  # str, int, float, bool, list, list[one of them], or dict (recipe field -> levels)
    default: Any
    help: str = ""

    @property
    def single(self) -> str:
        """The type of a value or of a list's members; text for an empty `list`."""
        if self.type != "list":
            return self.type.removeprefix("list[").removesuffix("]")
        kinds = {type(member).__name__ for member in self.default} or {"str"}
        return "float" if "float" in kinds else kinds.pop()


def between(low: float, high: float) -> tuple[str, Any]:
    """A number from low to high, ends included."""
    return f"{low:,} to {high:,}", lambda value: low <= value <= high


def one_of(*values: Any) -> tuple[str, Any]:
    """One of these values."""
    return "one of " + ", ".join(map(str, values)), lambda value: value in values


RATE = ("above 0, at most 1", lambda value: 0 < value <= 1)
# Name or pattern -> valid values. The first pattern that matches a name counts.
RANGES: dict[str, tuple[str, Any]] = {
    "study": ("a-z, 0-9, - and _", lambda value: re.fullmatch(r"[a-z0-9_-]+", value) is not None),
    "model": ("a named model, a folder or a hub id", bool),
    "text": ("a named text, a file, a folder or ORG/NAME:column", bool),
    "device": one_of("auto", "cpu", "cuda"),
    "trained": one_of("recipe", *TRAINED_PARTS),
    "precision": one_of("auto", *PRECISIONS),
    "*seed": between(0, 2**32 - 1),
    "*seeds": between(0, 2**32 - 1),
    "rule": one_of(*RULES),
    "shapes": one_of(*(name for name, source in SOURCES.items() if source.kind == "config")),
    "formats": one_of("Q8_0", "Q4_0"),
    "rivals": one_of("prune_and_comp", "linear_patch", "replaceme", "ghosted_layers"),
    "*lr": RATE,
    "*rates": RATE,
    "max_documents": ("0 (all) or 2 and more", lambda value: value == 0 or value >= 2),
    "*seq_len": between(8, 8192),
    "*batch_tokens": between(8, 10**7),
    "*tokens": between(0, 10**10),  # a sample is kept in memory, 17 bytes per token
    "budgets": between(8, 10**10),
    "exhaustive_to": between(1, 4),
    "cheap_layers": between(2, 1_000),
    "*_pairs": between(0, 10**6),
    "*_items": between(0, 10**6),
    "*_count": between(1, 1_000),
    "*_counts": between(1, 1_000),
    "*rounds": between(3, 200),
    "temperature": ("above 0, at most 20", lambda value: 0 < value <= 20),
    "warmup": ("0 to below 1", lambda value: 0 <= value < 1),
    "*draws": between(1, 50),
}


def problems_of(known: Mapping[str, Parameter], values: Mapping[str, Any]) -> Iterator[str]:
    """A sentence for each invalid value."""
    for name, value in values.items():
        if name not in known:
            yield f"{name} is not a parameter; the parameters are {', '.join(known)}"
        elif known[name].type == "dict":
            yield from _problems_of_levels(name, value)
        elif not known[name].type.startswith("list"):
            yield from _problems_of_value(name, known[name].single, value)
        elif not isinstance(value, list):
            yield f"{name} must be a list, not {short(value)}"
        else:
            for member in value:
                yield from _problems_of_value(name, known[name].single, member)
            if len(set(map(str, value))) < len(value):
                yield f"{name} contains a value twice: {short(value)}"


def _problems_of_levels(name: str, value: Any) -> Iterator[str]:
    """Problems of a mapping from recipe fields to lists of values."""
    if not isinstance(value, dict):
        yield f"{name} must map names to lists, not {short(value)}"
        return
    known = {f.name: Parameter(f.name, f"list[{f.type}]", []) for f in fields(Recipe)}
    yield from (f"{name}: {problem}" for problem in problems_of(known, value))


def _problems_of_value(name: str, wanted: str, value: Any) -> Iterator[str]:
    kind, words = TYPES[wanted]
    if type(value) is not kind and not (wanted == "float" and type(value) is int):
        yield f"{name} must be {words}, not {short(value)}{_hint(wanted, value)}"
    elif wanted == "float" and not math.isfinite(value):
        yield f"{name} must be finite, not {value}"
    else:
        ranges = (RANGES[pattern] for pattern in RANGES if fnmatch.fnmatchcase(name, pattern))
        words, allows = next(ranges, ("", None))
        if allows is not None and not allows(value):
            yield f"{name} must be {words}, not {short(value)}"


def _hint(wanted: str, value: Any) -> str:
    """Explains how PyYAML reads a value that looks right."""
    if wanted == "float" and re.fullmatch(r"[+-]?\d+[eE][+-]?\d+", str(value)):
        return f" (YAML reads {value} as text: write {value.lower().replace('e', '.0e')})"
    if wanted == "str" and isinstance(value, bool):
        return ' (YAML reads yes, no, on and off as true or false: put it in "quotes")'
    return ""


def short(value: Any) -> str:
    """A value shortened for a message: a line of YAML can describe a huge value."""
    try:
        return reprlib.repr(value)
    except ValueError:  # Python does not print numbers with more than 4,300 digits
        return "a number too long to show"
