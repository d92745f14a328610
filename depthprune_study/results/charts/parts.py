"""Parts of charts: looks, limits, points with intervals, labels at line ends."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

import numpy as np
from matplotlib.axes import Axes
from scipy.optimize import isotonic_regression

from depthprune_study.results.charts import wording
from depthprune_study.results.statistics import Interval
from depthprune_study.results.style import FAINT, IDEAS, INK, SMALL

MAX_ROWS = 7
REACH = 6  # points beyond this multiple of the median distance from the baseline are off-scale
MARKERS = "^osDvPXh"

Look = tuple[str, str]  # colour, marker
Drawn = TypeVar("Drawn")


def exactly(value: float) -> Interval:
    """A number without an interval."""
    return Interval(value, value, value, 0)


def look(name: str) -> Look:
    """The colour and marker of the idea behind a name."""
    return IDEAS[wording.idea(name)]


def looks(names: Iterable[str]) -> dict[str, Look]:
    """Name -> the colour of its idea, and a unique marker."""
    chosen: dict[str, Look] = {}
    for name in names:
        colour, marker = look(name)
        taken = {shape for _, shape in chosen.values()}
        free = [shape for shape in (marker, *MARKERS) if shape not in taken]
        chosen[name] = colour, (free or [marker])[0]
    return chosen


def first(items: Mapping[str, Drawn]) -> tuple[dict[str, Drawn], dict[str, Drawn]]:
    """The items that are drawn, and the rest."""
    pairs = list(items.items())
    return dict(pairs[:MAX_ROWS]), dict(pairs[MAX_ROWS:])


def zoom(intervals: Iterable[Interval], base: float) -> tuple[float, float]:
    """Axis limits that show the baseline and the contenders with their intervals.

    A point is off-scale if its distance from the baseline exceeds both REACH times the median
    distance and a fifth of the baseline.
    """
    finite = [i for i in intervals if math.isfinite(i.point)]
    distances = [abs(i.point - base) for i in finite if i.point != base]
    limit = max(REACH * float(np.median(distances or [0.0])), abs(base) / 5)
    kept = [i for i in finite if abs(i.point - base) <= limit]
    width = max([0.0, *(abs(i.point - base) for i in kept)])
    width = max(2 * width, abs(base) / 50) or 0.1
    ends = [base, *(end for i in kept for end in (i.low, i.point, i.high))]
    inside = np.clip(ends, base - width, base + width)  # a wide interval is cut off
    low, high = float(inside.min()), float(inside.max())
    pad = 0.07 * (high - low) or 0.1
    return low - pad, high + pad


def dot(ax: Axes, at: float, interval: Interval, look: Look, *, upright: bool = False) -> bool:
    """Draws a point with its interval at `at`; if it is off-scale, an arrow and returns False.

    Set the axis limits first.
    """
    colour, marker = look
    low, high = sorted(ax.get_ylim() if upright else ax.get_xlim())
    point = interval.point
    inside = low <= point <= high
    if inside:
        ends = np.clip([interval.low, interval.high], low, high)
        (ax.vlines if upright else ax.hlines)(at, *ends, color=colour, linewidth=2, zorder=3)
    else:
        marker = "v^<>"[2 * (not upright) + (point > low)]
        point = np.clip(point, low, high)
    x, y = (at, point) if upright else (point, at)
    style = {"markersize": 10 if marker == "|" else 7, "markeredgewidth": 1.4}
    ax.plot(x, y, marker, color=colour, clip_on=False, zorder=4, **style)
    return bool(inside)


def baseline(ax: Axes, value: float, *, upright: bool = False) -> None:
    """The line of the whole model, with a faint grid."""
    (ax.axhline if upright else ax.axvline)(value, color=INK, linewidth=1.1, zorder=2)
    ax.grid(axis="y" if upright else "x", color=FAINT, linewidth=0.6)


def end_labels(ax: Axes, ends: Mapping[str, tuple[float, str]]) -> None:
    """Labels at the right edge, each at its line's end (value, colour), moved apart."""
    limits = ax.get_ylim()
    heights = [float(np.interp(value, limits, (0, 1))) for value, _ in ends.values()]
    inches = 0.7 * ax.figure.get_figheight()  # roughly the height without title and ticks
    places = apart(heights, 1.3 * SMALL / 72 / inches)
    for (text, (_, colour)), place in zip(ends.items(), places, strict=True):
        style = {"color": colour, "fontsize": SMALL, "va": "center"}
        ax.text(1.02, place, text, transform=ax.transAxes, **style)


def apart(places: Sequence[float], gap: float) -> np.ndarray:
    """The places, moved as little as possible to be `gap` apart, in order, between 0 and 1."""
    order = np.argsort(places, kind="stable")
    steps = gap * np.arange(len(places))
    fitted = isotonic_regression(np.asarray(places)[order] - steps).x
    result = np.empty(len(places))
    result[order] = np.clip(fitted, 0, max(0, 1 - steps[-1])) + steps
    return result


def arrow(value: float, limits: tuple[float, float]) -> str:
    """The direction of an off-scale value; empty for other values."""
    return "↑ " if value > limits[1] else "↓ " if value < limits[0] else ""
