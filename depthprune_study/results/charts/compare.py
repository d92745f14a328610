"""Students side by side: perplexities, seeds, accuracies."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from depthprune_study.results.charts import parts, rows
from depthprune_study.results.statistics import Interval
from depthprune_study.results.style import styled

Ratios = Mapping[str, Interval]


@styled
def ratios(named: Ratios, *, title: str, in_order: bool = False) -> Figure:
    """One row a name, the lowest perplexity on top (`in_order`: as given); more than seven are summed up."""
    lines = {name: ratio for name, ratio in named.items() if name != "whole"}
    if not in_order:
        lines = dict(sorted(lines.items(), key=lambda line: rows.rank(line[1].point)))
    shown, rest = rows.first(lines)
    look = parts.looks(shown)
    figure, ax = rows.frame(title, [parts.words(name) for name in shown], more=bool(rest))
    ax.set_xlim(parts.zoom(shown.values(), 1.0))
    for row, (name, ratio) in enumerate(shown.items()):
        parts.dot(ax, row, ratio, look[name])
        rows.value(ax, row, parts.whole_number(ratio), look[name][0])
    rows.sum_up(ax, len(shown), rest)
    rows.finish(ax, parts.RATIO, 1.0)
    parts.remark(ax, parts.units(lines.values()))
    told = {parts.words(name): ratio for name, ratio in lines.items()}
    figure.set_label(parts.in_words(title, parts.RATIO, told))
    return figure


@styled
def seeds(ratios: Mapping[str, Ratios], *, title: str) -> Figure:
    """One row a model or setup, one point a seed with its own interval."""
    shown, rest = rows.first(ratios)
    figure, ax = rows.frame(
        title, [parts.words(name) for name in shown], pitch=0.55, more=bool(rest)
    )
    every = [ratio for by_seed in shown.values() for ratio in by_seed.values()]
    ax.set_xlim(parts.zoom(every, 1.0))
    for row, (name, by_seed) in enumerate(shown.items()):
        look = parts.looks([name], ideas={name: "cut" if "cut" in name else "healed"})[name]
        places = row + np.linspace(-0.24, 0.24, len(by_seed)) if len(by_seed) > 1 else [row]
        for place, ratio in zip(places, by_seed.values(), strict=True):
            parts.dot(ax, place, ratio, look, size=6)
        rows.value(ax, row, rows.spread(by_seed.values(), "seed"), look[0])
    rows.sum_up(ax, len(shown), {name: i for name, by in rest.items() for i in by.values()})
    rows.finish(ax, parts.RATIO, 1.0)
    parts.remark(ax, f"One point a seed. {parts.units(every)}".strip())
    told = {
        f"{parts.words(name)}, {_seed(label)}": ratio
        for name, by_seed in ratios.items()
        for label, ratio in by_seed.items()
    }
    figure.set_label(parts.in_words(title, parts.RATIO, told))
    return figure


@styled
def probes(accuracies: Mapping[str, Ratios], *, title: str) -> Figure:
    """One group of rows a family of items, one row a student: the share it got right."""
    shown, rest = rows.first(accuracies)
    students = list(dict.fromkeys(name for by in shown.values() for name in by))[: parts.MAX_ROWS]
    look = parts.looks(students)
    pitch = 0.19 * len(students) + 0.12
    figure, ax = rows.frame(
        title, [parts.words(name) for name in shown], pitch=pitch, more=bool(rest)
    )
    every = [i for by in shown.values() for i in by.values()]
    low = min([0.0, *(i.low for i in every if np.isfinite(i.low))])
    ax.set_xlim(low, max([0.1, *(min(1.0, i.high) for i in every if np.isfinite(i.high))]) + 0.02)
    step = 0.19 / pitch
    for row, by_student in enumerate(shown.values()):
        for index, name in enumerate(name for name in students if name in by_student):
            place = row + step * (index - (len(students) - 1) / 2)
            parts.dot(ax, place, by_student[name], look[name], size=6)
            text = f"{100 * by_student[name].point:.0f} %"
            text += f"  {parts.words(name)}" if row == 0 else ""
            rows.value(ax, place, text, look[name][0])
        if row:
            ax.axhline(row - 0.5, color="#E4E4E4", linewidth=0.6)
    rows.sum_up(ax, len(shown), {name: i for name, by in rest.items() for i in by.values()})
    rows.finish(ax, "items answered rightly", None)
    ax.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    parts.remark(ax, parts.units(every, "items a family"))
    told = {
        f"{parts.words(family)}, {parts.words(name)}": i
        for family, by in accuracies.items()
        for name, i in by.items()
    }
    figure.set_label(parts.in_words(title, "the share of items answered rightly", told))
    return figure


def _seed(label: str) -> str:
    return f"seed {label}" if re.fullmatch(r"\d+", label) else parts.words(label)
