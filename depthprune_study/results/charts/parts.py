"""What charts are put together from: points with intervals, zoom, labels, remarks."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from scipy.optimize import isotonic_regression

from depthprune_study.results.charts.wording import idea, number, words
from depthprune_study.results.statistics import Interval
from depthprune_study.results.style import FAINT, IDEAS, INK, SMALL, SOFT, WIDTH, readable, wrapped

MAX_ROWS = 7
NEAR = 0.05  # from the baseline: nothing within four times this is off the scale
MARKERS = "^osDvPXh"
GROUND = {
    "facecolor": "white",
    "edgecolor": "none",
    "pad": 0.8,
    "alpha": 0.85,
}  # of words over lines


def look(name: str, known: Mapping[str, str] | None = None) -> tuple[str, str]:
    """The colour and the marker of the idea that a name stands for; `known` names some ideas."""
    return IDEAS[(known or {}).get(name, idea(name))]


def looks(names: Iterable[str], known: Mapping[str, str] | None = None) -> dict[str, tuple]:
    """Name -> the colour of its idea, and a marker that no other name has."""
    chosen: dict[str, tuple[str, str]] = {}
    for name in names:
        colour, marker = look(name, known)
        taken = {shape for _, shape in chosen.values()}
        free = [shape for shape in (marker, *MARKERS) if shape not in taken]
        chosen[name] = colour, (free or [marker])[0]
    return chosen


def zoom(
    intervals: Iterable[Interval], baseline: float | None = None, *, reach: float = 0.0
) -> tuple[float, float]:
    """Limits of an axis that holds the contenders; what lies far out stays outside.

    A value is outside where its distance from the baseline is over `reach` times the median one;
    without `reach`, where it is over four times that of the value before it, while at least half of
    the values are nearer.
    """
    inside = [i for i in intervals if math.isfinite(i.point)]
    points = np.array([i.point for i in inside])
    if not len(points):
        base = 0.0 if baseline is None else baseline
        return base - 0.5, base + 0.5
    base = float(np.median(points)) if baseline is None else baseline
    distances = np.abs(points - base)
    limit = _limit(np.sort(distances), reach)
    kept = [i for i, distance in zip(inside, distances, strict=True) if distance <= limit]
    width = max(abs(i.point - base) for i in kept) or 0.1
    ends = [base] if baseline is not None else []
    for i in kept:  # a wide interval may not stretch the axis without end
        ends += [i.point]
        ends += [np.clip(e, base - 2 * width, base + 2 * width) for e in (i.low, i.high) if e == e]
    low, high = float(min(ends)), float(max(ends))
    pad = 0.07 * ((high - low) or abs(high) or 1.0)
    return low - pad, high + pad


def _limit(ranked: np.ndarray, reach: float) -> float:
    """How far from the baseline a contender lies at most."""
    middle = float(np.median(ranked))
    if reach and middle > 0:
        return reach * middle
    for before, after in itertools.pairwise(ranked):
        most_are_nearer = 2 * (ranked <= before).sum() >= len(ranked)
        if before > 0 and most_are_nearer and after > 4 * max(before, NEAR):
            return float(before)
    return float(ranked[-1])


def dot(
    ax: Axes,
    at: float,
    interval: Interval,
    look: tuple[str, str],
    *,
    upright: bool = False,
    filled: bool = True,
    size: float = 7.5,
) -> bool:
    """A point with its interval at the place `at`; where it is off the scale, an arrow, and False.

    The limits of the axis must be set before.
    """
    colour, marker = look
    low, high = sorted(ax.get_ylim() if upright else ax.get_xlim())
    point = interval.point
    inside = math.isfinite(point) and low <= point <= high

    def put(value: float, shape: str, points: float, face: str = colour) -> None:
        x, y = (at, value) if upright else (value, at)
        style = {"markersize": points, "markerfacecolor": face, "markeredgewidth": 1.4}
        ax.plot(x, y, shape, color=colour, clip_on=False, zorder=4, **style)

    if not inside:
        if not math.isnan(point):
            above = point > low
            put(high if above else low, "v^<>"[2 * (not upright) + above], 7)
        return False
    if math.isfinite(interval.low) and math.isfinite(interval.high):
        ends = [max(interval.low, low), min(interval.high, high)]
        line = ([at, at], ends) if upright else (ends, [at, at])
        ax.plot(*line, color=colour, linewidth=2, alpha=0.75, solid_capstyle="butt", zorder=3)
    put(point, marker, size, colour if filled else "white")
    return True


def apart(places: Sequence[float], gap: float, low: float, high: float) -> np.ndarray:
    """The places, moved as little as keeps them `gap` apart, in order, from low to high."""
    places = np.asarray(places, dtype=float)
    if not len(places):
        return places
    order = np.argsort(places, kind="stable")
    steps = gap * np.arange(len(places))
    fitted = isotonic_regression(places[order] - steps).x
    fitted = np.clip(fitted, low, max(low, high - steps[-1])) + steps
    result = np.empty_like(fitted)
    result[order] = fitted
    return result


def end_labels(ax: Axes, ends: Mapping[str, tuple[float, str]], inches: float) -> None:
    """Names at the right edge, each where its line ends (value, colour), moved apart."""
    low, high = ax.get_ylim()
    scale = ax.transScale.transform
    bottom, top = (scale((1, v))[1] for v in (low, high))
    wanted = [
        (scale((1, float(np.clip(value, low, high))))[1] - bottom) / (top - bottom)
        for value, _ in ends.values()
    ]
    gap = 1.25 * SMALL / 72 / inches
    for (text, (_, colour)), y, place in zip(
        ends.items(), wanted, apart(wanted, gap, 0.0, 1.0), strict=True
    ):
        line = {"arrowstyle": "-", "color": "#AAAAAA", "linewidth": 0.7, "shrinkA": 0, "shrinkB": 0}
        ax.annotate(
            text,
            (1.0, y),
            (1.035, place),
            xycoords="axes fraction",
            textcoords="axes fraction",
            color=readable(colour),
            fontsize=SMALL,
            va="center",
            arrowprops={**line, "relpos": (0, 0.5)},
            annotation_clip=False,
        )


def off_scale(
    ax: Axes,
    lines: Mapping[str, Mapping[float, float]],
    look: Mapping[str, tuple[str, str]],
    *,
    names: bool = False,
) -> None:
    """Writes values off the scale at the upper edge, each at its place, one below the other."""
    (low, top), (left, right) = ax.get_ylim(), ax.get_xlim()
    used: dict[bool, int] = {}
    for name, points in lines.items():
        for at, value in points.items():
            if low <= value <= top:
                continue
            late = at > (left + right) / 2
            used[late] = used.get(late, 0) + 1
            text = f"{words(name)}, {number(value)}" if names else number(value)
            style = {"color": readable(look[name][0]), "ha": "right" if late else "left"}
            offset = (-6 if late else 6, -2 - 13 * (used[late] - 1))
            place = {"xytext": offset, "textcoords": "offset points", "va": "top"}
            at_edge = ax.annotate(arrow(value, low, top) + text, (at, top), **place, **style)
            at_edge.set(fontsize=SMALL, bbox=GROUND)


def arrow(value: float, low: float, high: float) -> str:
    """The way to a value that lies off the scale."""
    return "↑ " if value > high else "↓ " if value < low else ""


def measure(ax: Axes, text: str) -> None:
    """What an upright axis measures, written above it."""
    ax.set_title(text, loc="left", fontsize=SMALL, color=SOFT, pad=6)


def remark(ax: Axes, text: str) -> None:
    """Small type at the figure's foot."""
    if text:
        text = "\n".join(wrapped(text, WIDTH - 0.2, size=SMALL, weight="normal"))
        ax.figure.supxlabel(text, x=0.012, ha="left", fontsize=SMALL, color=SOFT)


def baseline(ax: Axes, value: float, *, upright: bool = False) -> None:
    (ax.axhline if upright else ax.axvline)(value, color=INK, linewidth=1.1, zorder=2)


def quiet(ax: Axes, axis: str) -> None:
    """No spine and no ticks where the labels say all; a faint grid along the other axis."""
    ax.spines["left" if axis == "y" else "bottom"].set_visible(False)
    ax.tick_params(axis=axis, length=0)
    ax.grid(axis="x" if axis == "y" else "y", color=FAINT, linewidth=0.6)
