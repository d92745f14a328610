"""Charts over the layers: what each is worth, and how soon their order settles."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from depthprune_core.records import Profile
from depthprune_study.results import statistics
from depthprune_study.results.charts import parts, wording
from depthprune_study.results.statistics import Interval
from depthprune_study.results.style import FAINT, IDEAS, INK, SMALL, new_figure, readable, styled

RISE = "rise in loss, nats per token"
KEPT, DROPPED = ("#6B7785", "o"), IDEAS["cut"]
INCHES = 5.4  # of the axis of layers
REACH = 6.0  # layers that cost more than six times the median one are off the scale


@styled
def profile(profile: Profile, dropped: Sequence[int] = (), *, title: str) -> Figure:
    """The rise in loss when each layer alone is left out.

    `dropped` layers are named, and so are dear ones in the middle and those off the scale.
    """
    rises = statistics.layer_intervals(profile, "drop_nll_nats")
    figure, ax = new_figure(title, 3.1)
    low, high = parts.zoom(rises, 0.0, reach=REACH)
    ax.set_ylim(low, high)
    unnamed = ""
    layer_axis(ax, profile.n_layers, INCHES)
    size = 7 if profile.n_layers <= 32 else 5
    parts.baseline(ax, 0.0, upright=True)
    far = {}
    for layer, rise in enumerate(rises):
        look = DROPPED if layer in dropped else KEPT
        if not parts.dot(ax, layer, rise, look, upright=True, size=size):
            far[layer] = rise.point
    named = [layer for layer in sorted(dropped) if layer not in far]
    for group in _neighbours(named, profile.n_layers / 6):
        layers = "layers" if len(group) > 1 else "layer"
        text = f"{layers} {', '.join(map(str, group))}:\ndropped"
        _name(ax, float(np.mean(group)), rises, text, readable(DROPPED[0]))
    for layer in set(_dear_middle(rises)) - set(far) - set(dropped):
        _name(ax, layer, rises, f"layer {layer}", INK)
    if far:
        ax.set_ylim(low, high + 0.3 * (high - low))  # room for the names above the arrows
        ax.set_yticks([tick for tick in ax.get_yticks() if low <= tick <= high])
        unnamed = _at_the_edge(ax, far, dropped)
    ax.grid(axis="y", color=FAINT, linewidth=0.6)
    parts.measure(ax, f"{RISE}, when the layer is left out")
    parts.remark(ax, f"{wording.units(rises)}{unnamed}")
    told = {
        f"layer {layer}{' (dropped)' if layer in dropped else ''}": rise.point
        for layer, rise in enumerate(rises)
    }
    figure.set_label(wording.alt(title, RISE, told))
    return figure


@styled
def stability(stability: Mapping[int, float], *, title: str) -> Figure:
    """How soon the ranking of the layers settles as articles are added."""
    figure, ax = new_figure(title, 2.6)
    counts, values = list(stability), list(stability.values())
    colour = IDEAS["healed"][0]
    ax.plot(counts, values, color=colour, marker="o", markersize=6)
    lowest = min([0.98, *(v for v in values if v == v)])
    ax.set_ylim(lowest - 0.35 * (1 - lowest), 1 + 0.12 * (1 - lowest))
    parts.baseline(ax, 1.0, upright=True)
    style = {"textcoords": "offset points", "va": "top", "fontsize": SMALL, "color": colour}
    every = max(1, math.ceil(len(counts) / 7))
    for index in {*range(0, len(counts) - 1, every), len(counts) - 1}:
        last = index == len(counts) - 1
        at = counts[index], values[index]
        place = {"xytext": (0 if last else 4, -7), "ha": "right" if last else "left"}
        ax.annotate(f"{values[index]:.2f}", at, **place, **style)
    name = {"xytext": (0, 2), "textcoords": "offset points", "fontsize": SMALL, "ha": "right"}
    ax.annotate("the same order of the layers", (max(counts), 1.0), **name, va="bottom")
    ax.set_xticks(counts if len(counts) <= 12 else counts[:: math.ceil(len(counts) / 12)])
    ax.set_xlabel("calibration articles")
    ax.grid(axis="y", color=FAINT, linewidth=0.6)
    measured = "rank correlation with the order by all articles"
    parts.measure(ax, measured)
    told = {f"{count} articles": value for count, value in stability.items()}
    figure.set_label(wording.alt(title, measured, told))
    return figure


def layer_axis(ax: Axes, n_layers: int, inches: float) -> None:
    """Layer numbers along an axis of that length, as many as have room."""
    step = next(s for s in (1, 2, 5, 10, 20, 50, 1000) if n_layers / s <= 4.2 * inches)
    ax.set_xticks(range(0, n_layers, step))
    ax.set_xlim(-0.8, n_layers - 0.2)
    ax.set_xlabel("layer, counted from 0")


def _neighbours(layers: Sequence[int], gap: float) -> list[list[int]]:
    """The layers in groups that are too close for a label each."""
    groups: list[list[int]] = []
    for layer in layers:
        if groups and layer - groups[-1][-1] <= gap:
            groups[-1].append(layer)
        else:
            groups.append([layer])
    return groups


def _dear_middle(rises: Sequence[Interval]) -> list[int]:
    """At most two layers of the middle three fifths that cost far more than the median layer."""
    n = len(rises)
    points = [rise.point for rise in rises]
    limit = 2.0 * float(np.median(points))
    middle = range(math.ceil(n / 5), n - math.ceil(n / 5))
    dear = [layer for layer in middle if points[layer] > limit > 0]
    return sorted(dear, key=lambda layer: -points[layer])[:2]


def _name(ax: Axes, at: float, rises: Sequence[Interval], text: str, colour: str) -> None:
    """Words above a layer, and above what its neighbours' points would hide."""
    (_, top), (left, right) = ax.get_ylim(), ax.get_xlim()
    longest = max(map(len, text.split("\n")))
    half = 0.5 * longest * 0.6 * SMALL / 72 / INCHES * (right - left)
    near = [r for layer, r in enumerate(rises) if abs(layer - at) <= half]
    ends = [r.high if math.isfinite(r.high) else r.point for r in near]
    end = max([e for e in ends if e <= top], default=0.0)
    place = min(max(at, left + half), right - half)
    style = {"ha": "center", "va": "bottom", "fontsize": SMALL, "color": colour}
    ax.annotate(text, (place, end), (0, 5), textcoords="offset points", **style)


def _at_the_edge(ax: Axes, outside: Mapping[int, float], dropped: Sequence[int]) -> str:
    """Names seven layers off the scale, with their values; returns a remark on the rest."""
    low, high = ax.get_xlim()
    width = 0.68 / INCHES * (high - low)
    first = sorted(outside, key=lambda layer: (layer not in dropped, -outside[layer], layer))
    named = sorted(first[: parts.MAX_ROWS])
    places = parts.apart(named, width, low + width / 2, high - width / 2)
    for layer, place in zip(named, places, strict=True):
        value = outside[layer]
        text = f"layer {layer}\n{parts.arrow(value, 0.0, 0.0)}{wording.number(value)}"
        colour = readable(DROPPED[0]) if layer in dropped else INK
        style = {"ha": "center", "va": "top", "fontsize": SMALL, "color": colour}
        ax.annotate(text, (place, 0.955), xycoords=("data", "axes fraction"), **style)
    rest = [str(layer) for layer in outside if layer not in named]
    return f" Off the scale too: layers {', '.join(rest)}." if rest else ""
