"""Perplexity over what is varied, a line each: depth, text, the number of layers dropped."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from depthprune_study.results.charts import parts, wording
from depthprune_study.results.charts.compare import ratios as rows_of_ratios
from depthprune_study.results.statistics import Interval
from depthprune_study.results.style import FAINT, INK, SMALL, new_figure, styled

HEIGHT = 3.1
FAR = 1e9  # where a line to infinity leads
_CONTENDERS = ("healed", "text", "control")
_TEXTS = {"articles": "healed", "own words": "other"}

Lines = Mapping[str, Mapping[float, Interval]]


@styled
def depth(curves: Lines, source: Mapping[float, float], *, title: str) -> Figure:
    """Perplexity over the share of parameters removed, one line a stage; the source's are stars.

    The scale is that of the students that were trained, where there are any.
    """
    figure, ax = new_figure(title, HEIGHT)
    percent = {name: {100 * x: ratio for x, ratio in line.items()} for name, line in curves.items()}
    scale = [r for name, line in percent.items() for r in line.values() if _contends(name)]
    scale += [Interval(value, value, value, 0, 0.0) for value in source.values()]
    told = _lines(ax, percent, scale=scale if any(map(_contends, percent)) else None)
    style = {"markersize": 13, "markeredgecolor": "white", "zorder": 6, "linestyle": "none"}
    ax.plot([100 * x for x in source], list(source.values()), marker="*", color=INK, **style)
    if source:
        at = 100 * max(source), source[max(source)]
        place = {"xytext": (8, -8), "textcoords": "offset points", "va": "top"}
        ax.annotate("★ the source", at, fontsize=SMALL, **place, bbox=parts.GROUND)
    shares = sorted({x for line in percent.values() for x in line})
    if len(shares) <= 7:
        ax.set_xticks(shares)
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:.3g} %")
    ax.set_xlabel("parameters removed")
    told = {f"{name} %": ratio for name, ratio in told.items()}
    told |= {f"the source at {100 * x:.3g} %": value for x, value in source.items()}
    figure.set_label(wording.alt(title, f"{wording.RATIO} by parameters removed", told))
    return figure


@styled
def budget(curves: Mapping[str, Mapping[int, Interval]], *, title: str) -> Figure:
    """Perplexity over the tokens of training (log scale), one line a source of text."""
    figure, ax = new_figure(title, HEIGHT)
    ax.set_xscale("log")
    known = {name: _TEXTS.get(name, wording.idea(name)) for name in curves}
    trained = [x for line in curves.values() for x in line if x > 0]
    untrained = min(trained, default=4) // 4  # no place on a log scale: to the left of the others
    placed = {
        name: {x or untrained: ratio for x, ratio in line.items()} for name, line in curves.items()
    }
    told = _lines(ax, placed, known=known)
    ticks = sorted({x for line in placed.values() for x in line})
    ax.set_xticks(ticks, ["refit alone" if x == untrained else _tokens(x) for x in ticks])
    ax.minorticks_off()
    ax.set_xlabel("tokens of training, log scale")
    told = {
        name.replace(f" at {untrained:,}", " at 0") + " tokens": ratio
        for name, ratio in told.items()
    }
    figure.set_label(wording.alt(title, f"{wording.RATIO} by tokens of training", told))
    return figure


@styled
def rivals(ratios: Mapping[str, Mapping[int, Interval]], *, title: str) -> Figure:
    """Perplexity over the number of layers dropped, a line a method; for one number, a row."""
    counts = sorted({k for line in ratios.values() for k in line})
    lines = {name: line for name, line in ratios.items() if name != "whole" and line}
    if len(counts) == 1:
        named = {f"{name}, {counts[0]} fewer": line[counts[0]] for name, line in lines.items()}
        return rows_of_ratios(named, title=title)
    figure, ax = new_figure(title, HEIGHT + 0.3)
    told = _lines(ax, lines)
    ax.set_xticks(counts)
    ax.set_xlabel("layers dropped, nothing trained")
    told = {f"{name} layers": ratio for name, ratio in told.items()}
    figure.set_label(wording.alt(title, f"{wording.RATIO} by layers dropped", told))
    return figure


def _contends(name: str) -> bool:
    return wording.idea(name) in _CONTENDERS


def _lines(
    ax: Axes,
    lines: Lines,
    *,
    scale: Iterable[Interval] | None = None,
    known: Mapping[str, str] | None = None,
) -> dict[str, Interval]:
    """Draws one line a name, named at its right end; returns every point under its name and place.

    `scale`: what the axis must hold (default: all); `known`: the ideas of some names.
    """
    lines = {name: dict(sorted(line.items())) for name, line in lines.items() if line}
    shown = dict(list(lines.items())[: parts.MAX_ROWS])
    looks = parts.looks(shown, known)
    every = [ratio for line in shown.values() for ratio in line.values()]
    ax.set_ylim(parts.zoom(every if scale is None else scale, 1.0))
    places = _beside_each_other(shown, log=ax.get_xscale() == "log")
    across = [x for line in places.values() for x in line] or [1.0]
    if ax.get_xscale() == "linear":
        room = 0.04 * (max(across) - min(across)) or 0.5
        ax.set_xlim(min(across) - room, max(across) + room)
    limits = ax.get_ylim()
    ends: dict[str, tuple[float, str]] = {wording.BASELINE: (1.0, INK)}
    outside: dict[str, dict[float, float]] = {}
    for name, line in shown.items():
        colour = looks[name][0]
        heights = [r.point if math.isfinite(r.point) else FAR for r in line.values()]
        width = 1.1 if wording.idea(name) == "rival" else 1.8
        ax.plot(places[name], heights, color=colour, linewidth=width, zorder=2.5)
        for x, ratio in zip(places[name], line.values(), strict=True):
            if not parts.dot(ax, x, ratio, looks[name], upright=True, size=7):
                outside.setdefault(name, {})[x] = ratio.point
        last = list(line.values())[-1].point
        text = f"{parts.arrow(last, *limits)}{wording.words(name)}, {wording.number(last)}"
        ends[text] = heights[-1], colour
        outside.get(name, {}).pop(places[name][-1], None)  # its label says it
    parts.off_scale(ax, outside, looks)
    parts.baseline(ax, 1.0, upright=True)
    parts.end_labels(ax, ends, HEIGHT - 0.7)
    ax.grid(axis="y", color=FAINT, linewidth=0.6)
    parts.measure(ax, wording.RATIO)
    left_out = len(lines) - len(shown)
    more = f" And {left_out} more, not drawn." if left_out else ""
    parts.remark(ax, wording.units(r for line in lines.values() for r in line.values()) + more)
    return {
        f"{wording.words(name)} at {_place(x)}": ratio
        for name, line in lines.items()
        for x, ratio in line.items()
    }


def _place(x: float) -> str:
    return f"{x:,}" if isinstance(x, int) else f"{x:.3g}"


def _beside_each_other(
    lines: Mapping[str, Mapping[float, Interval]], *, log: bool
) -> dict[str, list[float]]:
    """The places of the points, a little apart, so that no interval hides another."""
    every = sorted({x for line in lines.values() for x in line})
    middle = (len(lines) - 1) / 2
    if log:
        step = (every[-1] / every[0]) ** 0.012
        return {
            name: [x * step ** (index - middle) for x in line]
            for index, (name, line) in enumerate(lines.items())
        }
    step = 0.012 * (every[-1] - every[0]) if every else 0.0
    return {
        name: [x + step * (index - middle) for x in line]
        for index, (name, line) in enumerate(lines.items())
    }


def _tokens(count: float) -> str:
    for unit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= unit:
            return f"{count / unit:.3g} {letter}"
    return f"{count:g}"
