"""Charts over the layers: what each is worth, how the criteria agree, what pairs cost."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
import seaborn
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from depthprune_core.records import Profile, SetCosts
from depthprune_study.results import statistics
from depthprune_study.results.charts import parts
from depthprune_study.results.statistics import Interval
from depthprune_study.results.style import (
    FAINT,
    IDEAS,
    INK,
    SMALL,
    SOFT,
    new_figure,
    styled,
)

RISE = "rise in loss, nats per token"
_KEPT, _DROPPED = ("#6B7785", "o"), IDEAS["cut"]
_CRITERIA = {  # in words, and in which unit
    "drop_nll_nats": ("loss without it", "nats/token"),
    "drop_kl_nats": ("KL without it", "nats/token"),
    "block_influence": ("block influence", "1 − cosine"),
    "angular_distance": ("angular distance", "units of π"),
    "taylor": ("first-order Taylor", "no unit"),
    "magnitude": ("size of weights", "no unit"),
}


@styled
def profile(profile: Profile, dropped: Sequence[int] = (), *, title: str) -> Figure:
    """The rise in loss when each layer alone is left out; `dropped` layers and dear middle ones are named."""
    rises = statistics.layer_intervals(profile, "drop_nll_nats")
    figure, ax = new_figure(title, 3.1)
    ax.set_ylim(parts.zoom(rises, 0.0))
    _layer_axis(ax, profile.n_layers, 5.4)
    size = 7 if profile.n_layers <= 32 else 5
    outside = {}
    for layer, rise in enumerate(rises):
        look = _DROPPED if layer in dropped else _KEPT
        if not parts.dot(ax, layer, rise, look, upright=True, size=size):
            outside[layer] = rise.point
    parts.baseline(ax, 0.0, upright=True)
    dear = _dear_middle(rises)
    for layer in {*dropped, *dear} - set(outside):
        text = f"layer {layer}" + (",\ndropped" if layer in dropped else "")
        _name(ax, layer, rises[layer], text, (_DROPPED if layer in dropped else (INK, ""))[0])
    _at_the_edge(ax, outside, 5.4)
    ax.grid(axis="y", color=FAINT, linewidth=0.6)
    parts.measure(ax, f"{RISE}, when the layer is left out")
    parts.remark(ax, parts.units(rises, "articles"))
    told = {
        f"layer {layer}{' (dropped)' if layer in dropped else ''}": rise.point
        for layer, rise in enumerate(rises)
    }
    figure.set_label(parts.in_words(title, RISE, told))
    return figure


@styled
def criteria(profile: Profile, *, title: str) -> Figure:
    """Above, how far the criteria rank the layers alike; below, each criterion over the layers."""
    values = profile.criteria
    names = list(values)
    n_rows = math.ceil(len(names) / 3)
    figure, axes = new_figure(
        title,
        2.5 + 1.25 * n_rows,
        nrows=n_rows + 1,
        ncols=3,
        squeeze=False,
        gridspec_kw={"height_ratios": [2.1, *[1] * n_rows]},
    )
    for ax in axes[0][1:]:
        ax.remove()
    axes[0][0].set_subplotspec(axes[0][0].get_gridspec()[0, :])
    correlations = statistics.spearman(values)
    _agreement(axes[0][0], correlations, names)
    panels = axes[1:].ravel()
    for index, (ax, name) in enumerate(zip(panels, names, strict=False)):
        words, unit = _CRITERIA.get(name, (name.replace("_", " "), ""))
        _panel(ax, values[name])
        ax.set_title(f"{words}\n{unit}" if unit else words, loc="left", fontsize=SMALL, pad=4)
        ax.set_xlabel("layer" if index >= len(names) - 3 else "")
    for ax in panels[len(names) :]:
        ax.remove()
    told = {
        f"{_CRITERIA.get(a, (a,))[0]} and {_CRITERIA.get(b, (b,))[0]}": correlations[a][b]
        for a, b in itertools.combinations(names, 2)
    }
    figure.set_label(parts.in_words(title, "rank correlation of criteria over the layers", told))
    return figure


@styled
def stability(stability: Mapping[int, float], *, title: str) -> Figure:
    """How soon the ranking of the layers settles as articles are added."""
    figure, ax = new_figure(title, 2.5)
    counts, values = list(stability), list(stability.values())
    colour = IDEAS["healed"][0]
    ax.plot(counts, values, color=colour, marker="o", markersize=6)
    ax.set_ylim(min([0.9, *(v - 0.05 for v in values if v == v)]), 1.02)
    parts.baseline(ax, 1.0, upright=True)
    style = {"textcoords": "offset points", "ha": "center", "va": "top", "fontsize": SMALL}
    for count, value in itertools.islice(stability.items(), 0, None, max(1, len(counts) // 6)):
        ax.annotate(f"{value:.2f}", (count, value), (0, -8), color=colour, **style)
    name = {"xytext": (0, 2), "textcoords": "offset points", "fontsize": SMALL, "ha": "right"}
    ax.annotate("the ranking from all of them", (max(counts, default=1), 1.0), **name, va="bottom")
    ax.set_xticks(counts if len(counts) <= 12 else counts[:: math.ceil(len(counts) / 12)])
    ax.set_xlabel("calibration articles")
    parts.measure(ax, "rank correlation (1 = same order of the layers)")
    told = {f"{count} articles": value for count, value in stability.items()}
    figure.set_label(parts.in_words(title, "rank correlation with the full ranking", told))
    return figure


@styled
def pairs(costs: SetCosts, chosen: Sequence[int] | None = None, *, title: str) -> Figure:
    """Left, what each pair costs; right, by how much that exceeds the two layers' single costs."""
    both = costs.of_size(2)
    beyond = {pair: costs.interaction(*pair) for pair in both}
    figure, (left, right) = new_figure(title, 3.7, ncols=2)
    finite = [c for c in both.values() if math.isfinite(c)] or [0.0]
    ends = float(np.quantile(finite, 0.0)), float(np.quantile(finite, 0.6))
    _triangle(left, both, costs.n_layers, "viridis_r", ends, "max")
    sizes = [abs(b) for b in beyond.values() if math.isfinite(b)] or [1.0]
    clip = float(np.quantile(sizes, 0.9)) or 1.0
    _triangle(right, beyond, costs.n_layers, "PuOr_r", (-clip, clip), "both")
    below = [pair for pair, value in beyond.items() if value < 0]
    right.scatter([i + 0.5 for i, _ in below], [j + 0.5 for _, j in below], s=2, color="black")
    parts.measure(left, "cost of the pair\nnats per token")
    parts.measure(right, "cost beyond the two single ones\n(dot: below 0)")
    for ax, pair in itertools.product(
        (left, right), itertools.combinations(sorted(chosen or ()), 2)
    ):
        for edge, width in (("white", 3.5), ("black", 1.6)):  # seen on light and on dark
            ax.add_patch(
                Rectangle(pair, 1, 1, fill=False, edgecolor=edge, linewidth=width, zorder=5)
            )
        if len(chosen or ()) == 2:
            style = {
                "fontsize": SMALL,
                "arrowprops": {"arrowstyle": "-", "color": INK, "linewidth": 0.8},
            }
            text = f"chosen:\n{pair[0]} and {pair[1]}"
            at = (0.98, 0.98)
            spot = (pair[0] + 1, pair[1])
            ax.annotate(text, spot, at, textcoords="axes fraction", ha="right", va="top", **style)
    best = sorted(both, key=lambda pair: (both[pair], pair))
    told = {f"layers {i} and {j}": both[i, j] for i, j in best[:5]}
    if len(best) > 5:
        told |= {
            f"the dearest of {len(best)} pairs, layers {best[-1][0]} and {best[-1][1]}": both[
                best[-1]
            ]
        }
    figure.set_label(parts.in_words(title, f"pairs left out together, {RISE}", told))
    return figure


def _dear_middle(rises: Sequence[Interval]) -> list[int]:
    """At most two layers of the middle three fifths that cost far more than the median layer."""
    n = len(rises)
    points = [rise.point for rise in rises]
    limit = 2.0 * float(np.median(points))
    middle = range(math.ceil(n / 5), n - math.ceil(n / 5))
    dear = [layer for layer in middle if points[layer] > limit > 0]
    return sorted(dear, key=lambda layer: -points[layer])[:2]


def _name(ax: Axes, layer: int, rise: Interval, text: str, colour: str) -> None:
    top = ax.get_ylim()[1]
    end = min(rise.high if math.isfinite(rise.high) else rise.point, top)
    late = layer > 0.9 * ax.get_xlim()[1]
    style = {
        "ha": "right" if late else "center",
        "va": "bottom",
        "fontsize": SMALL,
        "color": colour,
    }
    ax.annotate(text, (layer, end), (0, 3), textcoords="offset points", **style)


def _at_the_edge(ax: Axes, outside: Mapping[int, float], inches: float) -> None:
    """The layers above the scale, named with their values below the upper edge; a line says what is left."""
    low, high = ax.get_xlim()
    width = 0.62 / inches * (high - low)
    named = dict(sorted(outside.items(), key=lambda item: -item[1])[: parts.MAX_ROWS])
    named = dict(sorted(named.items()))
    places = parts.apart(list(named), width, low + width / 2, high - width / 2)
    for (layer, value), place in zip(named.items(), places, strict=True):
        text = f"layer {layer}\n{parts.number(value)} {'↑' if value > 0 else '↓'}"
        style = {"ha": "center", "va": "top", "fontsize": SMALL, "color": INK}
        ax.annotate(text, (place, 0.965), xycoords=("data", "axes fraction"), **style)
    if len(outside) > len(named):
        rest = sorted(set(outside) - set(named))
        text = f"off the scale too: layers {', '.join(map(str, rest))}"
        ax.annotate(
            text,
            (0.5, 0.8),
            xycoords="axes fraction",
            ha="center",
            va="top",
            fontsize=SMALL,
            color=SOFT,
        )


def _layer_axis(ax: Axes, n_layers: int, inches: float) -> None:
    step = next(s for s in (1, 2, 5, 10, 20, 50, 1000) if n_layers / s <= 4.2 * inches)
    ax.set_xticks(range(0, n_layers, step))
    ax.set_xlim(-0.8, n_layers - 0.2)
    ax.set_xlabel("layer, counted from 0")


def _panel(ax: Axes, values: Sequence[float]) -> None:
    points = [Interval(v, v, v, 0, 0.0) for v in values]
    ax.set_ylim(parts.zoom(points))
    _layer_axis(ax, len(values), 1.5)
    low, high = ax.get_ylim()
    colour = _KEPT[0]
    ax.plot(range(len(values)), values, color=colour, marker="o", markersize=2.5, linewidth=1)
    outside = [layer for layer, value in enumerate(values) if not low <= value <= high]
    for layer in outside[:2]:
        late = layer > len(values) / 2
        up = values[layer] > high
        text = f"{'↑' if up else '↓'} {parts.number(values[layer])}"
        style = {
            "ha": "right" if late else "left",
            "va": "top" if up else "bottom",
            "fontsize": SMALL,
        }
        place = {"xycoords": ("data", "axes fraction"), "color": INK}
        ax.annotate(text, (layer, 0.99 if up else 0.01), **place, **style)


def _agreement(
    ax: Axes, correlations: Mapping[str, Mapping[str, float]], names: Sequence[str]
) -> None:
    grid = np.array([[correlations[a][b] for b in names] for a in names], dtype=float)
    labels = [_CRITERIA.get(name, (name.replace("_", " "),))[0] for name in names]
    hidden = np.triu(np.ones_like(grid, dtype=bool), 1)
    style = {"annot": True, "fmt": ".2f", "annot_kws": {"size": SMALL}, "linewidths": 1.2}
    colours = {"vmin": -1, "vmax": 1, "cmap": "PuOr_r", "cbar": False}
    seaborn.heatmap(
        grid, ax=ax, mask=hidden, yticklabels=labels, xticklabels=False, **style, **colours
    )
    ax.tick_params(length=0, labelcolor=INK)
    for index, label in enumerate(labels[:-1]):
        ax.text(index + 1.1, index + 0.5, label, fontsize=SMALL, color=SOFT, va="center")
    parts.measure(ax, "rank correlation over the layers")


def _triangle(
    ax: Axes,
    cells: Mapping[tuple[int, int], float],
    n_layers: int,
    cmap: str,
    ends: tuple[float, float],
    extend: str,
) -> None:
    """Coloured cells, first layer across, second down; a pair that was not measured stays empty."""
    grid = np.full((n_layers, n_layers), np.nan)
    for (i, j), value in cells.items():
        grid[j, i] = value
    bar = {"location": "bottom", "extend": extend, "pad": 0.02, "aspect": 25}
    style = {"vmin": ends[0], "vmax": ends[1], "cmap": cmap, "square": True, "cbar_kws": bar}
    seaborn.heatmap(grid, ax=ax, **style)
    step = next(s for s in (1, 2, 5, 10, 20, 50) if n_layers / s <= 10)
    ticks = range(0, n_layers, step)
    ax.set_xticks([t + 0.5 for t in ticks], map(str, ticks), rotation=0)
    ax.set_yticks([t + 0.5 for t in ticks], map(str, ticks), rotation=0)
    ax.set(xlabel="first layer", ylabel="second layer")
