"""A small YAML file -> its values, or its problems in sentences; never a traceback."""

from __future__ import annotations

import reprlib
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

# What PyYAML lets through of values that do not fit their tag: `!!bool maybe`, 2026-13-45, ...
OF_A_VALUE = (ValueError, LookupError, TypeError, AttributeError, OverflowError)


def read(path: Path) -> tuple[list[str], dict[str, Any]]:
    """Problems, one sentence each, and the values: none where there are problems."""
    try:
        written = path.read_text(encoding="utf-8")
        values, node = yaml.safe_load(written), yaml.compose(written, Loader=yaml.SafeLoader)
    except (OSError, yaml.YAMLError, RecursionError, *OF_A_VALUE) as error:
        return [f"not readable as YAML: {' '.join(str(error).split())[:200]}"], {}
    if values is None:
        return [], {}
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        return ["the file must hold `name: value` lines"], {}
    names = Counter(key.value for key, _ in node.value)
    twice = [name for name, n in names.items() if n > 1]  # PyYAML would silently take the last
    return ([f"{name} is given more than once" for name in twice], {} if twice else values)


def short(value: Any) -> str:
    """A value as a message may show it."""
    return _SHORT.repr(value)


class _Short(reprlib.Repr):
    """A few lines of YAML can hold a value whose full text would fill the memory."""

    def repr_int(self, x: int, level: int) -> str:
        whole = x.bit_length() < 10_000  # Python refuses to write out longer ones
        return super().repr_int(x, level) if whole else f"a number of {x.bit_length():,} bits"


_SHORT = _Short()
_SHORT.maxlevel, _SHORT.maxlist, _SHORT.maxdict = 3, 8, 4
_SHORT.maxstring, _SHORT.maxlong = 80, 80
