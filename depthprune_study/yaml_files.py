"""A YAML file and a pydantic model -> the checked values, or its problems in sentences. Whatever the file holds, no traceback."""

from __future__ import annotations

import reprlib
from collections import Counter
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

# What PyYAML lets through of a value that is not what its tag or form says: `!!bool maybe`, 2026-13-45, a number of 5,000 digits.
OF_A_VALUE = (ValueError, LookupError, TypeError, AttributeError, OverflowError)


def read(path: Path, schema: type[BaseModel]) -> tuple[list[str], Any]:
    """Problems, one sentence each, and the model: None where there are problems."""
    try:
        written = path.read_text(encoding="utf-8")
        values, node = yaml.safe_load(written), yaml.compose(written, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, RecursionError, *OF_A_VALUE) as error:
        return [f"not readable as YAML ({' '.join(str(error).split())[:200]})"], None
    if not isinstance(values, dict):
        return ["a list of `name: value` lines is wanted"], None
    if twice := _twice(node):  # papermill would silently take the last
        return [f"{name} is given more than once" for name in twice], None
    try:
        return [], schema.model_validate(values)
    except ValidationError as error:
        return sentences(error, schema), None


def _twice(node: yaml.MappingNode) -> list[str]:
    """Names that a mapping, or one right inside it, gives more than once."""
    found = []
    for mapping in (node, *(value for _, value in node.value if isinstance(value, yaml.MappingNode))):
        names = Counter(key.value for key, _ in mapping.value if isinstance(key, yaml.ScalarNode))
        found += [name for name, n in names.items() if n > 1]
    return found


def sentences(error: ValidationError, schema: type[BaseModel]) -> list[str]:
    """What pydantic found wrong, in words for the file's author."""
    found = []
    for item in error.errors(include_url=False):
        key = ".".join(str(part) for part in item["loc"]) or "parameters"
        value = short(item.get("input"))[:80]
        if item["type"] in {"extra_forbidden", "invalid_key"}:
            known = f"; known are {', '.join(schema.model_fields)}" if len(item["loc"]) == 1 else ""
            found.append(f"{key} is not a parameter{known}")
        elif item["type"] == "missing":
            found.append(f"{key} is missing")
        else:
            hint = (
                " (YAML reads 1e-4 as text: write 1.0e-4)"
                if isinstance(item.get("input"), str) and item["type"] == "float_type"
                else ""
            )
            found.append(f"{key}={value}: {item['msg'].removeprefix('Value error, ')}{hint}")
    return found


def short(value: Any) -> str:
    """A value as a message may show it."""
    return _SHORT.repr(value)


class _Short(reprlib.Repr):
    """A few lines of YAML can hold a value whose full text would fill the memory, or a number that Python refuses to write out."""

    def repr_int(self, x: int, level: int) -> str:
        return super().repr_int(x, level) if x.bit_length() < 10_000 else f"a number of {x.bit_length():,} bits"


_SHORT = _Short()
_SHORT.maxlevel, _SHORT.maxlist, _SHORT.maxdict, _SHORT.maxstring, _SHORT.maxlong = 3, 8, 4, 80, 80
