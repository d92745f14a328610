"""A notebook's parameter, and what it can take: types, and one table of ranges by name."""

from __future__ import annotations

import fnmatch
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

from depthprune_core.records import PRECISIONS, TRAINED_PARTS, Recipe
from depthprune_core.selection import RULES
from depthprune_core.sources import SOURCES
from depthprune_study.yaml_files import short

TYPES = {"str": str, "int": int, "float": float, "bool": bool}


@dataclass(frozen=True)
class Parameter:
    """One line of a notebook's parameters cell."""

    name: str
    type: str  # str, int, float, bool, list, list[one of them], or dict (of lists)
    default: Any
    help: str

    @property
    def single(self) -> str:
        """The type of a value, or of each member of a list; of an empty `list`, text."""
        if "[" in self.type or self.type != "list":
            return self.type.removeprefix("list[").removesuffix("]")
        kinds = {type(member).__name__ for member in self.default} or {"str"}
        return "float" if "float" in kinds else kinds.pop()


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
    "*seeds": between(0, 2**32 - 1),
    "rule": one_of(*RULES),
    "rules": one_of(*RULES),
    "shapes": one_of(*(name for name, source in SOURCES.items() if source.kind == "config")),
    "formats": one_of("Q8_0", "Q4_0"),
    "rivals": one_of("prune_and_comp", "linear_patch", "replaceme", "ghosted_layers"),
    "*lr": RATE,
    "*lrs": RATE,
    "*rates": RATE,
    "max_documents": ("0 (all) or 2 and more", lambda value: value == 0 or value >= 2),
    "*seq_len": between(8, 8192),
    "*batch_tokens": between(8, 10**7),
    "*tokens": between(0, 10**10),  # a sample lies in memory, 17 bytes a token
    "budgets": between(8, 10**10),
    "exhaustive_to": between(1, 4),
    "cheap_layers": between(2, 1_000),
    "*_pairs": between(0, 10**6),
    "*_items": between(0, 10**6),
    "*drop_count": between(1, 1_000),
    "*drop_counts": between(1, 1_000),
    "*rounds": between(3, 200),
    "*temperature": ("above 0, at most 20", lambda value: 0 < value <= 20),
    "*warmup": ("0 to below 1", lambda value: 0 <= value < 1),
    "*draws": between(1, 50),
}


def problems_of(known: Mapping[str, Parameter], values: Mapping[str, Any]) -> Iterator[str]:
    """A sentence for each value that a notebook's parameter cannot take."""
    for name, value in values.items():
        if name not in known:
            yield f"{name} is not a parameter; known are {', '.join(known)}"
        elif known[name].type == "dict":
            yield from _problems_of_dict(known[name], value)
        else:
            yield from _problems_of_values(name, known[name], value)


def _problems_of_values(name: str, parameter: Parameter, value: Any) -> Iterator[str]:
    """Of a single value or a list."""
    is_list, single = parameter.type.startswith("list"), parameter.single
    members = value if is_list else [value]
    if not isinstance(members, list):
        yield f"{name} must be a list, not {short(value)}"
        return
    for member in members:
        if wrong := _wrong_type(single, member):
            yield f"{name} must be {wrong}, not {short(member)}{_hint(single, member)}"
        elif wrong := _out_of_range(name, member):
            yield f"{name} must be {wrong}, not {short(member)}"
    if is_list and len(set(map(str, members))) < len(members):
        yield f"{name} names a value twice: {short(value)}"


def _problems_of_dict(parameter: Parameter, value: Any) -> Iterator[str]:
    """Of a mapping to lists: keys as in the default; levels of a recipe's field by its type."""
    name, kind = parameter.name, type(next(iter(parameter.default), ""))
    if not isinstance(value, dict) or not all(isinstance(v, list) for v in value.values()):
        yield f"{name} must map {kind.__name__} to lists, not {short(value)}"
        return
    recipe = {f.name: Parameter(f.name, f"list[{f.type}]", [], "") for f in fields(Recipe)}
    for key, levels in value.items():
        if type(key) is not kind or (name == "factors" and key not in recipe):
            yield f"{name}: {short(key)} is not possible as a name"
        elif key in recipe:
            yield from (f"{name}: {p}" for p in _problems_of_values(key, recipe[key], levels))


def _wrong_type(wanted: str, value: Any) -> str:
    is_one = type(value) is TYPES[wanted] or (wanted == "float" and type(value) is int)
    if not is_one:
        return {
            "str": "text",
            "int": "a whole number",
            "float": "a number",
            "bool": "true or false",
        }[wanted]
    return "finite" if wanted == "float" and not math.isfinite(value) else ""


def _hint(wanted: str, value: Any) -> str:
    """What PyYAML makes of something that looks right."""
    if (
        wanted == "float"
        and isinstance(value, str)
        and re.fullmatch(r"[+-]?\d+[eE][+-]?\d+", value)
    ):
        return f" (YAML reads {value} as text: write {value.lower().replace('e', '.0e')})"
    if wanted == "str" and isinstance(value, bool):
        return ' (YAML reads yes, no, on and off as true or false: put it in "quotes")'
    return ""


def _out_of_range(name: str, value: Any) -> str:
    """What a value should be instead; empty where it may be what it is."""
    for pattern, (words, allows) in RANGES.items():
        if fnmatch.fnmatchcase(name, pattern):
            try:
                return "" if allows(value) else words
            except TypeError:  # a text under a name of numbers, such as drop_counts="8%"
                return ""
    return ""
