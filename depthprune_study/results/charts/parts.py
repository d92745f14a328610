"""What the charts are put together from: names in words, numbers, points with intervals, zoom, labels."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from scipy.optimize import isotonic_regression

from depthprune_study.results.statistics import Interval
from depthprune_study.results.style import FAINT, IDEAS, INK, SMALL, SOFT

MAX_ROWS = 7
RATIO = "perplexity ÷ the whole model's"
BASELINE = "whole model"
MARKERS = "o^DsvPX*"

_NAMES = {
    "whole": "whole model",
    "whole, same text": "whole model, same text",
    "ce": "student, trained on the text",
    "narrower, cut": "narrower, not healed",
    "adapters": "adapters, healed",
    "adapters, ce": "adapters, trained on the text",
    "Q8_0": "8-bit weights (Q8_0)",
    "Q4_0": "4-bit weights (Q4_0)",
    "prune_and_comp": "Prune&Comp",
    "linear_patch": "LinearPatch",
    "replaceme": "ReplaceMe",
    "ghosted_layers": "Ghosted Layers",
}
_RIVALS = ("narrower", "adapters", "Q8_0", "Q4_0", *list(_NAMES)[-4:])


def words(name: str) -> str:
    """A record's name as a reader reads it: `random_0-2` is "random 0, 2 fewer"."""
    if name in _NAMES:
        return _NAMES[name]
    first, comma, rest = name.partition(", ")
    if comma and (first in _NAMES or rest == "ce"):
        return f"{_NAMES.get(first, first)}, {_NAMES.get(rest, rest) if rest == 'ce' else rest}"
    name = re.sub(r"-(\d+)$", r", \1 fewer", name)
    return name.replace("_", " ")


def idea(name: str) -> str:
    """Which idea of the study a name stands for (a key of style.IDEAS)."""
    if "same text" in name:
        return "control"
    if name.startswith(_RIVALS):
        return "rival"
    for key, sign in (
        ("text", r"\bce\b|the text"),
        ("healed", "healed"),
        ("refitted", "refit"),
        ("whole", "^whole"),
    ):
        if re.search(sign, name):
            return key
    return "cut"


def looks(names: Iterable[str], *, ideas: Mapping[str, str] | None = None) -> dict[str, tuple]:
    """Name -> colour and marker: the colour is the idea's, the marker no other name has."""
    chosen, taken = {}, set()
    for name in names:
        colour, marker = IDEAS[(ideas or {}).get(name, idea(name))]
        free = [marker, *(other for other in MARKERS if other not in taken), marker]
        marker = next((m for m in free if m not in taken), marker)
        taken.add(marker)
        chosen[name] = colour, marker
    return chosen


def number(value: float) -> str:
    if not math.isfinite(value):
        return (
            "not a number" if math.isnan(value) else "infinite" if value > 0 else "minus infinite"
        )
    if abs(value) >= 1e6:
        return f"{value:.1e}".replace("e+0", "e").replace("e+", "e")
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.{1 if abs(value) >= 10 else 3}f}"


def span(interval: Interval) -> str:
    """Its 95 % interval; empty where it has none."""
    low, high = interval.low, interval.high
    if low == high == interval.point or math.isnan(low) or math.isnan(high):
        return ""
    if math.isinf(low) or math.isinf(high):
        return "no interval"
    return f"{number(low)}{' to ' if low < 0 else '–'}{number(high)}"


def whole_number(interval: Interval) -> str:
    """The point with its interval and its note, for a row or for alt text."""
    inside = span(interval)
    text = number(interval.point) + (f" ({inside})" if inside else "")
    return f"{text}, {interval.note}" if interval.note else text


def in_words(title: str, what: str, values: Mapping[str, Interval | float], more: str = "") -> str:
    """Alt text: the finding, what is drawn, and every value."""
    told = (
        f"{name} {number(value) if isinstance(value, int | float) else whole_number(value)}"
        for name, value in values.items()
    )
    return f"{title.rstrip('.')}. Chart of {what}: {'; '.join(told)}.{' ' + more if more else ''}"


def units(intervals: Iterable[Interval], unit: str = "articles") -> str:
    """The line below a chart: what the intervals are."""
    counts = sorted({i.n for i in intervals if span(i) not in ("", "no interval")})
    if not counts:
        return ""
    n = f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"
    return f"Lines: 95 % intervals over {n} {unit}."


def zoom(intervals: Iterable[Interval], baseline: float | None = None) -> tuple[float, float]:
    """Limits of an axis that holds the contenders; what lies several times further out stays outside.

    A value is outside where its distance from the baseline is over four times that of the value
    before it, and at least half of the values are nearer.
    """
    inside = [i for i in intervals if math.isfinite(i.point)]
    points = np.array([i.point for i in inside])
    if not len(points):
        base = 0.0 if baseline is None else baseline
        return base - 0.5, base + 0.5
    base = float(np.median(points)) if baseline is None else baseline
    distances = np.abs(points - base)
    ranked = np.sort(distances)
    limit = ranked[-1]
    for before, after in itertools.pairwise(ranked):
        nearer = (ranked <= before).sum()
        jumps = after > 4 * max(before, 1e-9) and 2 * nearer >= len(ranked)
        if jumps and (nearer > 1 or before > 0):
            limit = before
            break
    kept = [i for i, distance in zip(inside, distances, strict=True) if distance <= limit]
    width = max(abs(i.point - base) for i in kept) or 0.1
    ends = [base] if baseline is not None else []
    for i in kept:  # a wide interval may not stretch the axis without end
        ends += [i.point]
        ends += [np.clip(e, base - 2 * width, base + 2 * width) for e in (i.low, i.high) if e == e]
    low, high = float(min(ends)), float(max(ends))
    pad = 0.07 * ((high - low) or abs(high) or 1.0)
    return low - pad, high + pad


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
    """A point with its interval, at the place `at`; False (and an arrow at the edge) where it is off the scale.

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
    """The places moved as little as keeps them `gap` apart, in their order, between low and high."""
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
    """Names at the right edge, each at its line's end (value, colour), moved apart where they would overlap."""
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
            color=colour,
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
    """Writes the values above the axes at their upper edge, one below the other where they share a place."""
    (low, top), (left, right) = ax.get_ylim(), ax.get_xlim()
    used: dict[bool, int] = {}
    for name, points in lines.items():
        for at, value in points.items():
            if low <= value <= top:
                continue
            late = at > (left + right) / 2
            used[late] = used.get(late, 0) + 1
            text = f"{words(name)}, {number(value)}" if names else number(value)
            arrow = "" if math.isnan(value) else "↓ " if value < low else "↑ "
            style = {"fontsize": SMALL, "color": look[name][0], "ha": "right" if late else "left"}
            offset = (-6 if late else 6, -2 - 12 * (used[late] - 1))
            place = {"xytext": offset, "textcoords": "offset points", "va": "top"}
            ax.annotate(arrow + text, (at, top), **place, **style)


def measure(ax: Axes, text: str) -> None:
    """What an upright axis measures, written above it."""
    ax.set_title(text, loc="left", fontsize=SMALL, color=SOFT, pad=6)


def remark(ax: Axes, text: str) -> None:
    """One line in small type at the figure's foot."""
    if text:
        ax.figure.supxlabel(text, x=0.012, ha="left", fontsize=SMALL, color=SOFT)


def baseline(ax: Axes, value: float, *, upright: bool = False) -> None:
    (ax.axhline if upright else ax.axvline)(value, color=INK, linewidth=1.1, zorder=2)


def quiet(ax: Axes, axis: str) -> None:
    """No spine and no ticks where the labels say all; a faint grid along the other axis."""
    ax.spines["left" if axis == "y" else "bottom"].set_visible(False)
    ax.tick_params(axis=axis, length=0)
    ax.grid(axis="x" if axis == "y" else "y", color=FAINT, linewidth=0.6)
