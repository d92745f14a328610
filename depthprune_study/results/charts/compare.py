"""Students side by side, a row each: perplexities, seeds, accuracies."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from depthprune_study.results.charts import parts, rows, wording
from depthprune_study.results.statistics import Interval
from depthprune_study.results.style import FAINT, styled

Ratios = Mapping[str, Interval]


@styled
def ratios(named: Ratios, *, title: str, in_order: bool = False) -> Figure:
    """One row a name, the lowest perplexity on top; with `in_order` as given.

    "whole" is the baseline, no row. What more than seven names say stands in one line.
    """
    lines = {name: ratio for name, ratio in named.items() if name != "whole"}
    if not in_order:
        lines = dict(sorted(lines.items(), key=lambda line: rows.rank(line[1].point)))
    shown, rest = rows.first(lines)
    labels, of_all = wording.without_common_end([wording.words(name) for name in shown])
    figure, ax = rows.frame(title, labels)
    ax.set_xlim(parts.zoom(shown.values(), 1.0))
    for row, (name, ratio) in enumerate(shown.items()):
        look = parts.look(name)
        parts.dot(ax, row, ratio, look)
        rows.value(ax, row, wording.with_interval(ratio), look[0])
    rows.finish(ax, wording.RATIO + of_all, 1.0)
    parts.remark(ax, wording.units(lines.values()) + rows.rest_in_words(rest))
    told = {wording.words(name): ratio for name, ratio in lines.items()}
    figure.set_label(wording.alt(title, wording.RATIO, told))
    return figure


@styled
def seeds(ratios: Mapping[str, Ratios], *, title: str) -> Figure:
    """One row a model or setup, one point a seed with its own interval."""
    shown, rest = rows.first(ratios)
    most = max((len(by_seed) for by_seed in shown.values()), default=1)
    pitch = 0.2 + 0.14 * max(2, most)
    figure, ax = rows.frame(title, [wording.words(name) for name in shown], pitch=pitch)
    every = [ratio for by_seed in shown.values() for ratio in by_seed.values()]
    ax.set_xlim(parts.zoom(every, 1.0))
    for row, (name, by_seed) in enumerate(shown.items()):
        look = parts.look("cut" if "cut" in name else "healed")
        places = row + (np.arange(len(by_seed)) - (len(by_seed) - 1) / 2) * 0.14 / pitch
        for place, ratio in zip(places, by_seed.values(), strict=True):
            parts.dot(ax, place, ratio, look, size=6)
        rows.value(ax, row, rows.spread(by_seed.values(), "seed"), look[0])
    rows.finish(ax, wording.RATIO, 1.0)
    left_out = {f"{name}, {_seed(s)}": r for name, by in rest.items() for s, r in by.items()}
    more = rows.rest_in_words(left_out, len(rest))
    parts.remark(ax, f"One point a seed. {wording.units(every)}{more}")
    told = {
        f"{wording.words(name)}, {_seed(label)}": ratio
        for name, by_seed in ratios.items()
        for label, ratio in by_seed.items()
    }
    figure.set_label(wording.alt(title, wording.RATIO, told))
    return figure


@styled
def probes(accuracies: Mapping[str, Ratios], *, title: str) -> Figure:
    """One group of rows a family of items, one row a student: the share it got right."""
    shown, rest = rows.first(accuracies)
    students = list(dict.fromkeys(name for by in shown.values() for name in by))
    students, left_out = students[: parts.MAX_ROWS], students[parts.MAX_ROWS :]
    looks = parts.looks(students)
    pitch = 0.19 * len(students) + 0.14
    figure, ax = rows.frame(title, [wording.words(name) for name in shown], pitch=pitch)
    every = [i for by in shown.values() for i in by.values()]
    high = max([0.1, *(min(1.0, i.high) for i in every if np.isfinite(i.high))])
    ax.set_xlim(-0.01, high + 0.02)
    step = 0.19 / pitch
    for row, by_student in enumerate(shown.values()):
        for index, name in enumerate(name for name in students if name in by_student):
            place = row + step * (index - (len(students) - 1) / 2)
            parts.dot(ax, place, by_student[name], looks[name], size=6)
            text = f"{100 * by_student[name].point:.0f} %".replace("nan %", "not a number")
            text += f" {wording.words(name)}" if row == 0 else ""
            rows.value(ax, place, text, looks[name][0])
        if row:
            ax.axhline(row - 0.5, color=FAINT, linewidth=0.8)
    rows.finish(ax, "items answered rightly", None)
    ax.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    more = rows.rest_in_words({f"{f}, {n}": i for f, by in rest.items() for n, i in by.items()})
    more += f" Not drawn: {', '.join(map(wording.words, left_out))}." if left_out else ""
    parts.remark(ax, wording.units(every, "items a family") + more)
    told = {
        f"{wording.words(family)}, {wording.words(name)}": i
        for family, by in accuracies.items()
        for name, i in by.items()
    }
    figure.set_label(wording.alt(title, "the share of items answered rightly", told))
    return figure


def _seed(label: str) -> str:
    return f"seed {label}" if re.fullmatch(r"\d+", label) else wording.words(label)
