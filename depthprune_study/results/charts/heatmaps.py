"""Heat maps over the layers: how criteria agree, and what pairs cost."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
import seaborn
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from depthprune_core.records import Profile, SetCosts
from depthprune_study.results import statistics
from depthprune_study.results.charts import parts, wording
from depthprune_study.results.charts.layers import KEPT, REACH, RISE, layer_axis
from depthprune_study.results.statistics import Interval
from depthprune_study.results.style import INK, SMALL, SOFT, blank, new_figure, styled

_CRITERIA = {  # in words, and in which unit
    "drop_nll_nats": ("loss without it", "nats/token"),
    "drop_kl_nats": ("KL without it", "nats/token"),
    "block_influence": ("block influence", "1 − cosine"),
    "angular_distance": ("angular distance", "units of π"),
    "taylor": ("first-order Taylor", ""),
    "magnitude": ("size of weights", ""),
}


@styled
def criteria(profile: Profile, *, title: str) -> Figure:
    """Above, how far the criteria rank the layers alike; below, each criterion over the layers."""
    values = profile.criteria
    names = sorted(values, key=lambda n: list(_CRITERIA).index(n) if n in _CRITERIA else 99)
    n_rows = math.ceil(len(names) / 3)
    figure = blank(title, 2.4 + 1.5 * n_rows)
    above, below = figure.subfigures(2, 1, height_ratios=(2.4, 1.5 * n_rows))
    correlations = statistics.spearman(values)
    _agreement(above.subplots(), correlations, names)
    panels = below.subplots(n_rows, 3, squeeze=False).ravel()
    for index, (ax, name) in enumerate(zip(panels, names, strict=False)):
        words, unit = _CRITERIA.get(name, (name.replace("_", " "), ""))
        _panel(ax, values[name])
        ax.set_title(f"{words}\n{unit}".strip(), loc="left", fontsize=SMALL, pad=6)
        ax.set_xlabel("layer" if index >= len(names) - 3 else "")
    for ax in panels[len(names) :]:
        ax.remove()
    told = {
        f"{_in_words(a)} and {_in_words(b)}": correlations[a][b]
        for a, b in itertools.combinations(names, 2)
    }
    figure.set_label(wording.alt(title, "rank correlation of criteria over the layers", told))
    return figure


@styled
def pairs(costs: SetCosts, chosen: Sequence[int] | None = None, *, title: str) -> Figure:
    """Left, what each pair costs; right, by how much that exceeds the two layers' single costs."""
    both = costs.of_size(2)
    beyond = {pair: costs.interaction(*pair) for pair in both}
    figure, (left, right) = new_figure(title, 3.7, ncols=2)
    finite = [cost for cost in both.values() if math.isfinite(cost)] or [0.0]
    ends = float(min(finite)), float(np.quantile(finite, 0.6))
    _triangle(left, both, costs.n_layers, cmap="viridis_r", ends=ends)
    clip = (
        float(np.quantile([abs(b) for b in beyond.values() if math.isfinite(b)] or [1], 0.9)) or 1.0
    )
    _triangle(right, beyond, costs.n_layers, cmap="PuOr_r", ends=(-clip, clip))
    below = [pair for pair, value in beyond.items() if value < 0]
    right.scatter([i + 0.5 for i, _ in below], [j + 0.5 for _, j in below], s=2, color="black")
    parts.measure(left, "cost of the pair,\nnats per token")
    parts.measure(right, "cost beyond the two single ones\n(dot: below 0)")
    outlined = list(itertools.combinations(sorted(chosen or ()), 2))
    for ax in (left, right):
        _outline(ax, outlined)
    best = sorted(both, key=lambda pair: (both[pair], pair))
    told = {f"layers {i} and {j}": both[i, j] for i, j in {*best[:5], *outlined} & set(both)}
    told = dict(sorted(told.items(), key=lambda item: item[1]))
    if len(best) > 5:
        i, j = best[-1]
        told |= {f"the dearest of {len(best)} pairs, layers {i} and {j}": both[i, j]}
    figure.set_label(wording.alt(title, f"pairs left out together, {RISE}", told))
    return figure


def _outline(ax: Axes, pairs: Sequence[tuple[int, int]]) -> None:
    """Frames the chosen cells; a single one is named too."""
    for pair in pairs:
        for edge, width in (("white", 3.5), ("black", 1.6)):  # seen on light and on dark
            frame = {"fill": False, "edgecolor": edge, "linewidth": width, "zorder": 5}
            ax.add_patch(Rectangle(pair, 1, 1, **frame))
    if len(pairs) == 1:
        ((i, j),) = pairs
        line = {"arrowstyle": "-", "color": INK, "linewidth": 0.8}
        style = {"fontsize": SMALL, "ha": "right", "va": "top", "arrowprops": line}
        ax.annotate(
            f"chosen:\n{i} and {j}", (i + 1, j), (0.98, 0.98), textcoords="axes fraction", **style
        )


def _in_words(criterion: str) -> str:
    return _CRITERIA.get(criterion, (criterion.replace("_", " "),))[0]


def _panel(ax: Axes, values: Sequence[float]) -> None:
    """One criterion over the layers; at most two values off the scale are written at the edge."""
    layer_axis(ax, len(values), 1.5)
    smooth = np.ptp(values) <= REACH * abs(float(np.median(values)))
    points = [Interval(v, v, v, 0, 0.0) for v in values]
    ax.set_ylim(parts.zoom(points) if smooth else parts.zoom(points, 0.0, reach=REACH))
    high = ax.get_ylim()[1]
    ax.plot(range(len(values)), values, color=KEPT[0], marker="o", markersize=2.5, linewidth=1)
    ax.yaxis.set_major_locator(MaxNLocator(3))
    ax.yaxis.set_major_formatter(lambda v, _: f"{v / 1000:g}k" if abs(v) >= 10_000 else f"{v:g}")
    for late in (False, True):  # in one line for each half of the layers
        half = [v for layer, v in enumerate(values) if (layer > len(values) / 2) == late]
        above = [f"{v:.2g}" for v in half if v > high]
        if above:
            text = f"↑ {', '.join(above[:2])}{' …' if len(above) > 2 else ''}"
            place = {"xytext": (-6 if late else 9, 1), "textcoords": "offset points"}
            style = {"fontsize": SMALL, "ha": "right" if late else "left", "va": "top"}
            at = float(late), 1.0
            ax.annotate(text, at, xycoords="axes fraction", **place, **style, bbox=parts.GROUND)


def _agreement(
    ax: Axes, correlations: Mapping[str, Mapping[str, float]], names: Sequence[str]
) -> None:
    grid = np.array([[correlations[a][b] for b in names] for a in names], dtype=float)
    labels = [_in_words(name) for name in names]
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
    *,
    cmap: str,
    ends: tuple[float, float],
) -> None:
    """Coloured cells, first layer across, second down; a pair that was not measured stays empty."""
    grid = np.full((n_layers, n_layers), np.nan)
    for (i, j), value in cells.items():
        grid[j, i] = value
    bar = {
        "location": "bottom",
        "extend": "both" if ends[0] < 0 else "max",
        "pad": 0.02,
        "aspect": 25,
    }
    style = {"vmin": ends[0], "vmax": ends[1], "cmap": cmap, "square": True, "cbar_kws": bar}
    seaborn.heatmap(grid, ax=ax, rasterized=True, **style)
    step = next(s for s in (1, 2, 5, 10, 20, 50) if n_layers / s <= 10)
    ticks = range(0, n_layers, step)
    ax.set_xticks([t + 0.5 for t in ticks], map(str, ticks), rotation=0)
    ax.set_yticks([t + 0.5 for t in ticks], map(str, ticks), rotation=0)
    ax.set(xlabel="first layer", ylabel="second layer")
