"""The frame of a chart of rows: names at the left, points in the middle, numbers at the right."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from depthprune_study.results.charts import parts
from depthprune_study.results.statistics import Interval
from depthprune_study.results.style import INK, SMALL, SOFT, WIDTH, new_figure, wrapped

PLOT_INCHES = 2.8  # about what names and numbers leave of the width
Row = TypeVar("Row")


def first(lines: Mapping[str, Row]) -> tuple[dict[str, Row], dict[str, Row]]:
    """The rows that are drawn, and the rest."""
    items = list(lines.items())
    return dict(items[: parts.MAX_ROWS]), dict(items[parts.MAX_ROWS :])


def rank(value: float) -> float:
    """As a key of sorting: what is not a number comes last."""
    return math.inf if math.isnan(value) else value


def frame(
    title: str, labels: Sequence[str], *, pitch: float = 0.32, more: bool = False
) -> tuple[Figure, Axes]:
    """Axes with one named row a label, the first on top; `more` leaves room for the line that sums up."""
    n = len(labels)
    depth = 0.3 / pitch if more else 0.0  # in rows
    figure, ax = new_figure(title, 0.75 + pitch * (n + depth) + 0.16)
    ax.set_ylim(n - 0.5 + depth, -0.5 - 0.12 / pitch)
    lines = [
        "\n".join(
            w for part in label.split("\n") for w in wrapped(part, 1.9, size=SMALL, weight="normal")
        )
        for label in labels
    ]
    ax.set_yticks(range(n), lines, fontsize=SMALL, color=INK)
    parts.quiet(ax, "y")
    return figure, ax


def value(ax: Axes, row: float, text: str, colour: str) -> None:
    """The number of a row, in a column at the right."""
    place = {"xycoords": ("axes fraction", "data"), "xytext": (9, 0), "textcoords": "offset points"}
    style: dict[str, Any] = {"fontsize": SMALL, "va": "center", "color": colour}
    text = "\n".join(wrapped(text, 1.75, size=SMALL, weight="normal"))
    ax.annotate(text, (1.0, row), **place, **style, annotation_clip=False)


def sum_up(
    ax: Axes, n_rows: int, rest: Mapping[str, Interval], *, lines: int | None = None
) -> None:
    """One line for the rows that are not drawn."""
    if not rest:
        return
    named = {name: i.point for name, i in rest.items() if not math.isnan(i.point)} or {"": math.nan}
    low, high = (by(named, key=lambda name: named[name]) for by in (min, max))
    text = f"and {lines or len(rest)} more: {parts.number(named[low])}"
    if len(rest) > 1:
        text += f" ({parts.words(low)}) to {parts.number(named[high])} ({parts.words(high)})"
    text = "\n".join(wrapped(text, WIDTH - 0.2, size=SMALL, weight="normal"))
    bottom = max(ax.get_ylim())
    ax.text(
        1.0,
        bottom,
        text,
        fontsize=SMALL,
        color=SOFT,
        va="bottom",
        ha="right",
        transform=ax.get_yaxis_transform(),
    )


def spread(intervals: Iterable[Interval], unit: str) -> str:
    """From the lowest to the highest of several points."""
    points = sorted((i.point for i in intervals), key=rank)
    count = f"{len(points)} {unit}{'s' if len(points) != 1 else ''}"
    low, high = parts.number(points[0]), parts.number(points[-1])
    return f"{low}, {count}" if low == high else f"{low} to {high}, {count}"


def finish(ax: Axes, measures: str, base: float | None, *, name: str = parts.BASELINE) -> None:
    """The axis's unit, and the baseline with its name above it."""
    ax.set_xlabel(measures)
    low, high = ax.get_xlim()
    if base is None or not low <= base <= high:
        return
    parts.baseline(ax, base, upright=False)
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
