"""The path from the whole model to the healed one, and ranks before and after healing."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from depthprune_study.results import statistics
from depthprune_study.results.charts import parts, wording
from depthprune_study.results.charts.parts import exactly
from depthprune_study.results.statistics import Interval
from depthprune_study.results.style import (
    FAINT,
    IDEAS,
    INK,
    LARGE,
    SMALL,
    SOFT,
    new_figure,
    remark,
    styled,
)

Ratios = Mapping[str, Interval]

_BELOW = {  # labels of the stages at the axis
    "whole": "whole model\nunchanged",
    "cut": "cut\nlayers\nremoved",
    "refitted": "refitted\nin closed\nform",
    "healed": "healed\ndistilled",
    "ce": "refitted\nstudent",
    statistics.CONTROL: "whole model",
}


@styled
def path(
    stages: Ratios, control: Ratios, *, title: str, model: str, dropped: Sequence[int]
) -> Figure:
    """Whole, cut, refitted, healed as one path; beside it the control trained on the same text.

    `control`: the student trained on the text ("ce") and the whole model trained on it
    ("whole, same text"). Their quotient is written above them. `model` lost `dropped`.
    """
    points = {"whole": exactly(1.0), **stages, **control}
    figure, ax = new_figure(title, 3.3)
    low, high = parts.zoom(points.values(), 1.0)
    ax.set_ylim(low, high + 0.15 * (high - low))  # room for the numbers
    ax.set_xlim(-0.4, len(points) + 0.1)
    parts.baseline(ax, 1.0, upright=True)
    path = [min(points[name].point, ax.get_ylim()[1]) for name in ("whole", *stages)]
    for at, (before, after) in enumerate(itertools.pairwise(path)):
        arrow = {"arrowstyle": "-|>", "color": "#8A8A8A", "linewidth": 1.6, "shrinkB": 7}
        ax.annotate("", (at + 1, after), (at, before), arrowprops=arrow, zorder=2)
    for at, (name, ratio) in enumerate(points.items()):
        _point(ax, at, ratio, parts.look(name))
    if {"ce", statistics.CONTROL} <= set(control):
        ax.axvspan(len(stages) + 0.5, ax.get_xlim()[1], color="#F1F1F1", zorder=0)
        quotient = wording.number(control["ce"].point / control[statistics.CONTROL].point)
        words = f"control: trained on the same text\nstudent ÷ whole model = {quotient}"
        ax.set_title(words, loc="right", color=SOFT)
    ax.set_xticks(range(len(points)), [_BELOW[name] for name in points], color=INK)
    ax.set_title(wording.RATIO)
    without = f"{model} without layers {' and '.join(map(str, dropped))}."
    remark(ax, f"{without} {wording.units(points.values())}")
    described = {wording.words(name): ratio for name, ratio in points.items()}
    figure.set_label(wording.alt(title, wording.RATIO, described))
    return figure


def _point(ax: Axes, at: int, ratio: Interval, look: parts.Look) -> None:
    """A point of the path with its number; its line is its interval, which the alt text names."""
    limits = ax.get_ylim()
    inside = parts.dot(ax, at, ratio, look, upright=True)
    if ratio == exactly(1.0):
        return
    ground = {"facecolor": "white", "edgecolor": "none", "pad": 0.5, "alpha": 0.8}
    style = {"textcoords": "offset points", "color": look[0], "zorder": 5, "bbox": ground}
    place = at, float(np.clip(ratio.point, *limits)) if inside else limits[1]
    text = f"{parts.arrow(ratio.point, limits)}{wording.number(ratio.point)}"
    ax.annotate(text, place, (6, 6 if inside else -20), fontsize=LARGE, fontweight="bold", **style)


@styled
def choice(
    before: Mapping[str, float], after: Mapping[str, float], *, tail: int, title: str
) -> Figure:
    """Each pair's rank before and after healing, with the diagonal and the rank correlation.

    `tail`: the number of pairs, the cheapest before healing, that are filled.
    """
    names = sorted((n for n in before if n in after), key=lambda n: (before[n], n))
    ranked = sorted(names, key=lambda name: (after[name], name))
    contenders, n = names[:tail], len(names)
    figure, ax = new_figure(title, 4.0)
    ax.plot([1, n], [1, n], color="#9A9A9A", linewidth=1, zorder=1)
    colour, marker = IDEAS["healed"]
    described = {}
    for x, name in enumerate(names, start=1):
        y = ranked.index(name) + 1
        ax.plot(x, y, marker, color=colour, fillstyle="full" if name in contenders else "none")
        if 1 in (x, y) or abs(x - y) > n / 8:  # few names, else they cover each other
            left = x < n and abs(ranked.index(names[x]) + 1 - y) <= 1  # the next is near
            style = {"va": "center", "ha": "right" if left else "left", "fontsize": SMALL}
            style |= {"textcoords": "offset points", "color": SOFT}
            ax.annotate(name.replace(",", "+"), (x, y), (-7 if left else 7, 0), **style)
        described[f"layers {name.replace(',', ' and ')} from rank {x} to"] = y
    ax.set(xlabel="rank before healing (1: the cheapest pair)", title="rank after healing")
    ax.grid(color=FAINT, linewidth=0.6)
    ax.locator_params(integer=True)
    correlations = []
    for label, of in (("of all pairs", names), ("of the filled pairs", contenders)):
        described[f"rank correlation {label}"] = rho = statistics.rank_correlation(
            [before[n] for n in of], [after[n] for n in of]
        ).point
        correlations.append(f"{label} {rho:.2f}")
    words = f"On the line, the rank does not change. Rank correlation: {', '.join(correlations)}."
    remark(ax, words + (f" Filled: the {tail} cheapest before healing." if tail < n else ""))
    figure.set_label(wording.alt(title, "ranks before and after healing", described))
    return figure
