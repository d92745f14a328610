"""The frame of a chart of rows: names at the left, points in the middle, numbers at the right."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from depthprune_study.results.charts import parts, wording
from depthprune_study.results.statistics import Interval
from depthprune_study.results.style import INK, SMALL, new_figure, readable, wrapped

PLOT_INCHES = 2.8  # about what names and numbers leave of the width
Row = TypeVar("Row")


def first(lines: Mapping[str, Row]) -> tuple[dict[str, Row], dict[str, Row]]:
    """The rows that are drawn, and the rest."""
    items = list(lines.items())
    return dict(items[: parts.MAX_ROWS]), dict(items[parts.MAX_ROWS :])


def rank(value: float) -> float:
    """As a key of sorting: what is not a number comes last."""
    return math.inf if math.isnan(value) else value


def frame(title: str, labels: Sequence[str], *, pitch: float = 0.32) -> tuple[Figure, Axes]:
    """Axes with one named row a label, the first on top, `pitch` inches each."""
    n = len(labels)
    figure, ax = new_figure(title, 0.93 + pitch * n)
    ax.set_ylim(n - 0.5, -0.5 - 0.12 / pitch)
    ax.set_yticks(range(n), [_narrow(label) for label in labels], fontsize=SMALL, color=INK)
    parts.quiet(ax, "y")
    return figure, ax


def _narrow(label: str) -> str:
    lines = (wrapped(line, 1.9, size=SMALL, weight="normal") for line in label.split("\n"))
    return "\n".join("\n".join(line) for line in lines)


def value(ax: Axes, row: float, text: str, colour: str) -> None:
    """The number of a row, in a column at the right."""
    place = {"xycoords": ("axes fraction", "data"), "xytext": (9, 0), "textcoords": "offset points"}
    style: dict[str, Any] = {"fontsize": SMALL, "va": "center", "color": readable(colour)}
    text = "\n".join(wrapped(text, 2.4, size=SMALL, weight="normal"))
    ax.annotate(text, (1.0, row), **place, **style, annotation_clip=False)


def rest_in_words(rest: Mapping[str, Interval], n_rows: int | None = None) -> str:
    """One sentence for the rows that are not drawn; empty where there are none."""
    if not rest:
        return ""
    named = {name: rank(i.point) for name, i in rest.items()}
    low, high = (by(named, key=lambda name: named[name]) for by in (min, max))
    least, most = (wording.number(rest[name].point) for name in (low, high))
    text = f"And {n_rows or len(rest)} more, not drawn: {least} ({wording.words(low)})"
    if len(rest) > 1:
        text += f" to {most} ({wording.words(high)})"
    return f" {text}."


def spread(intervals: Iterable[Interval], unit: str) -> str:
    """From the lowest to the highest of several points."""
    points = sorted((i.point for i in intervals), key=rank)
    count = f"{len(points)} {unit}{'s' if len(points) != 1 else ''}"
    low, high = wording.number(points[0]), wording.number(points[-1])
    return f"{low}, {count}" if low == high else f"{low} to {high}, {count}"


def finish(ax: Axes, measures: str, base: float | None, *, name: str = wording.BASELINE) -> None:
    """The axis's unit, and the baseline with its name above it."""
    ax.set_xlabel(measures)
    low, high = ax.get_xlim()
    if base is None or not low <= base <= high:
        return
    parts.baseline(ax, base)
    at = (base - low) / (high - low)
    side = "left" if at < 0.2 else "right" if at > 0.8 else "center"
    style: dict[str, Any] = {"fontsize": SMALL, "color": INK, "ha": side, "va": "bottom"}
    ax.annotate(
        name,
        (at, 1.0),
        xycoords="axes fraction",
        xytext=(0, 1),
        textcoords="offset points",
        **style,
    )
