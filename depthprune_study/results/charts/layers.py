"""Charts of the layers: the cost of each, their ranks by each criterion, the cost of pairs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import seaborn
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats

from depthprune_core.records import Profile, SetCosts
from depthprune_study.results import statistics
from depthprune_study.results.charts import parts, wording
from depthprune_study.results.style import IDEAS, INK, SMALL, new_figure, remark, styled

RISE = "rise in loss, nats per token"


@styled
def profile(profile: Profile, dropped: Sequence[int] = (), *, title: str) -> Figure:
    """The rise in loss when one layer is skipped; dropped and costly layers are numbered."""
    rises = statistics.layer_intervals(profile)
    figure, ax = new_figure(title, 3.1)
    ax.set_ylim(parts.zoom(rises, 0.0))
    costly = statistics.costly_layers(profile)
    for layer, rise in enumerate(rises):
        look = IDEAS["cut" if layer in dropped else "other"]
        inside = parts.dot(ax, layer, rise, look, upright=True)
        style = {"textcoords": "offset points", "fontsize": SMALL, "ha": "center"}
        style |= {"color": look[0], "annotation_clip": False}
        if not inside:  # its value below the arrow
            text = f"{layer}: {wording.number(rise.point)}"
            at = layer, float(np.clip(rise.point, *ax.get_ylim()))
            ax.annotate(text, at, (0, -8), rotation=90, va="top", **style)
        elif layer in dropped or layer in costly:
            top = min(rise.high, ax.get_ylim()[1])
            ax.annotate(str(layer), (layer, top), (0, 3), **style)
    parts.baseline(ax, 0.0, upright=True)
    ax.locator_params(axis="x", nbins=16, integer=True)
    ax.set_xlabel("layer, counted from 0")
    ax.set_title(f"{RISE}, when the layer is skipped")
    crosses = "Crosses: dropped layers. " if dropped else ""
    remark(ax, crosses + wording.units(rises))
    described = {
        f"layer {layer}{' (dropped)' if layer in dropped else ''}": rise.point
        for layer, rise in enumerate(rises)
    }
    figure.set_label(wording.alt(title, RISE, described))
    return figure


@styled
def criteria(profile: Profile, *, title: str) -> Figure:
    """How each criterion ranks the layers; the one closest to the loss is on top."""
    values = profile.criteria
    rho = {
        name: statistics.rank_correlation(of, profile.drop_one).point for name, of in values.items()
    }
    names = sorted(values, key=lambda name: (name != "drop_nll_nats", -rho[name]))
    ranks = np.array([stats.rankdata(values[name]) for name in names])  # (criteria, layers)
    figure, ax = new_figure(title, 1.1 + 0.33 * len(names))
    labels = [f"{wording.words(name)}: {rho[name]:.2f}" for name in names]
    bar = {"location": "bottom", "aspect": 45, "ticks": [1, profile.n_layers]}
    seaborn.heatmap(ranks, ax=ax, cmap="viridis_r", linewidths=0.6, cbar_kws=bar)
    ax.collections[0].colorbar.set_ticklabels(["cheapest layer", "costliest layer"])
    ax.set_yticks(np.arange(len(names)) + 0.5, labels, rotation=0, color=INK)
    _layer_ticks(ax, profile.n_layers, "x")
    ax.tick_params(length=0)
    remark(ax, "Colour: the rank of each layer. Numbers: rank correlation with the loss.")
    described = {f"{wording.words(name)} and the loss": rho[name] for name in names}
    figure.set_label(wording.alt(title, "ranks of the layers; rank correlation of", described))
    return figure


@styled
def pairs(costs: SetCosts, *, title: str) -> Figure:
    """Left: the cost of each pair. Right: this cost minus the two layers' single costs."""
    both = costs.of_size(2)
    beyond = costs.interactions()
    figure, (left, right) = new_figure(title, 3.82, ncols=2)
    finite = [cost for cost in both.values() if math.isfinite(cost)]
    most = np.quantile([abs(value) for value in beyond.values() if math.isfinite(value)], 0.9)
    _triangle(left, both, costs.n_layers, "viridis_r", (min(finite), np.quantile(finite, 0.6)))
    _triangle(right, beyond, costs.n_layers, "PuOr_r", (-most, most))
    left.set_title("cost of the pair,\nnats per token")
    right.set_title("minus the two single costs\n(dot: below 0)")
    below = [pair for pair, value in beyond.items() if value < 0]
    right.scatter([i + 0.5 for i, _ in below], [j + 0.5 for _, j in below], s=2, color="black")
    ranked = sorted(both, key=lambda pair: (both[pair], pair))
    i, j = ranked[0]
    line = {"arrowstyle": "-", "color": INK, "linewidth": 0.8}
    style = {"fontsize": SMALL, "ha": "right", "va": "top", "arrowprops": line}
    place = {"xytext": (0.98, 0.98), "textcoords": "axes fraction"}
    left.annotate(f"cheapest:\n{i} and {j}", (i + 0.5, j + 0.5), **place, **style)
    described = {f"layers {i} and {j}": both[i, j] for i, j in ranked[:5]}
    i, j = ranked[-1]
    described[f"the costliest of {len(ranked)} pairs, layers {i} and {j}"] = both[i, j]
    figure.set_label(wording.alt(title, f"pairs skipped together, {RISE}", described))
    return figure


def _triangle(
    ax: Axes,
    cells: Mapping[tuple[int, int], float],
    n_layers: int,
    cmap: str,
    ends: tuple[float, float],
) -> None:
    """Coloured cells, first layer across, second down; unmeasured pairs stay empty."""
    grid = np.full((n_layers, n_layers), np.nan)
    for (i, j), value in cells.items():
        grid[j, i] = value
    bar = {"location": "bottom", "extend": "both" if ends[0] < 0 else "max", "aspect": 25}
    style = {"vmin": ends[0], "vmax": ends[1], "cmap": cmap, "square": True, "cbar_kws": bar}
    seaborn.heatmap(grid, ax=ax, rasterized=True, **style)
    _layer_ticks(ax, n_layers, "x")
    _layer_ticks(ax, n_layers, "y")
    ax.set(xlabel="first layer", ylabel="second layer")


def _layer_ticks(ax: Axes, n_layers: int, axis: str) -> None:
    """At most eleven layer numbers along an axis of cells."""
    ticks = range(0, n_layers, math.ceil(n_layers / 11))
    put = ax.set_xticks if axis == "x" else ax.set_yticks
    put([tick + 0.5 for tick in ticks], map(str, ticks), rotation=0)
