"""How many layers to drop: a number, a share of the parameters, or a size to reach."""

from __future__ import annotations

import re
from collections.abc import Callable

from depthprune_core.decoder import anatomy
from depthprune_core.models import Teacher
from depthprune_study.errors import StudyError

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "G": 10**9}


def parsed(drop: int | str) -> tuple[str, float]:
    """`2` -> layers, `8%` -> share of the parameters, `120M` -> parameters left."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(%|[KMBG]?)\s*", str(drop), re.IGNORECASE)
    number, unit = (float(match[1]), match[2].upper()) if match else (0.0, "")
    if match and unit == "%" and 0 < number < 100:
        return "share", number / 100
    if match and unit in _UNITS and unit and number > 0:
        return "size", number * _UNITS[unit]
    if match and unit == "" and number >= 1 and number == int(number):
        return "layers", number
    raise StudyError(
        f"drop={drop!r} is not possible: a number of layers (2), a share of the parameters (8%), "
        "or the size to reach (120M)"
    )


def n_dropped(teacher: Teacher, drop: int | str, say: Callable[[str], None]) -> int:
    """How many layers come nearest to the goal. Raises StudyError for one that is out of reach."""
    kind, value = parsed(drop)
    layers, n = anatomy(teacher.model).layers, teacher.model.num_parameters()
    if len(layers) == 1:
        raise StudyError(
            f"drop={drop} is not possible: {teacher.name} has one layer, which must stay"
        )
    most = len(layers) - 1
    if kind == "layers":
        if value > most:
            raise StudyError(
                f"drop={drop} is not possible: {teacher.name} has {len(layers)} layers, 1..{most} "
                "can go"
            )
        return int(value)
    each = sum(p.numel() for layer in layers for p in layer.parameters()) / len(layers)
    wanted = (value * n if kind == "share" else n - value) / each
    if not 0 < wanted <= most + 0.5:
        least = n - most * each
        raise StudyError(
            f"drop={drop} is out of reach: {teacher.name} has {n:,} parameters, and {least:,.0f} "
            "without all layers but one"
        )
    k = max(1, min(most, round(wanted)))
    say(f"{drop}: {k} of {len(layers)} layers, about {k * each / n:.1%} of the parameters")
    return k
