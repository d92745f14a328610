"""Charts of one thing against another: depth, text, bytes, layers dropped, ranks before and after."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from depthprune_study.results import statistics
from depthprune_study.results.charts import parts
from depthprune_study.results.charts.compare import ratios as ratio_rows
from depthprune_study.results.statistics import Interval
from depthprune_study.results.style import FAINT, IDEAS, INK, SMALL, SOFT, new_figure, styled

Ratios = Mapping[str, Interval]
HEIGHT = 3.1
_OURS = {"articles": "healed", "own words": "rival"}


@styled
def depth(
    curves: Mapping[str, Mapping[float, Interval]], source: Mapping[float, float], *, title: str
) -> Figure:
    """Perplexity over the share of parameters removed, one line a stage; the source's figures are stars."""
    percent = {s: {100 * x: r for x, r in line.items()} for s, line in curves.items()}
    figure, ax = new_figure(title, HEIGHT)
    stars = [Interval(v, v, v, 0, 0.0) for v in source.values()]
    told = _lines(ax, percent, also=stars)
    for index, (share, value) in enumerate(source.items()):
        ax.plot(
            100 * share, value, "*", color=INK, markersize=13, markeredgecolor="white", zorder=6
        )
        style = {"fontsize": SMALL, "color": INK, "ha": "right", "va": "top"}
        if index == 0:
            ax.annotate(
                "the source", (100 * share, value), (-5, -4), textcoords="offset points", **style
            )
    ax.set_xlabel("parameters removed")
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:g} %")
    more = "; ".join(f"{parts.number(100 * x)} % {parts.number(v)}" for x, v in source.items())
    told = {f"{name} %": i for name, i in told.items()}
    more = f"The source's figures: {more}." if more else ""
    figure.set_label(
        parts.in_words(title, f"{parts.RATIO} by share of parameters removed", told, more)
    )
    return figure


@styled
def budget(curves: Mapping[str, Mapping[int, Interval]], *, title: str) -> Figure:
    """Perplexity over the tokens of training text, one line a source of text; the token axis is logarithmic."""
    figure, ax = new_figure(title, HEIGHT)
    ax.set_xscale("log")
    ideas = {name: _OURS.get(name, parts.idea(name)) for name in curves}
    told = _lines(ax, curves, ideas=ideas)
    ticks = sorted({x for line in curves.values() for x in line})
    ax.set_xticks(ticks, [_tokens(tick) for tick in ticks])
    ax.minorticks_off()
    ax.set_xlabel("tokens of training, log scale")
    told = {f"{name} tokens": i for name, i in told.items()}
    figure.set_label(parts.in_words(title, f"{parts.RATIO} by tokens of training", told))
    return figure


@styled
def rivals(ratios: Mapping[str, Mapping[int, Interval]], *, title: str) -> Figure:
    """Perplexity over the number of layers dropped, one line a method; rows where there is but one number."""
    counts = sorted({k for line in ratios.values() for k in line})
    if len(counts) == 1:
        named = {name: line[counts[0]] for name, line in ratios.items() if name != "whole"}
        return ratio_rows(named, title=title)
    figure, ax = new_figure(title, HEIGHT + 0.2)
    told = _lines(ax, ratios)
    ax.set_xticks(counts)
    ax.set_xlabel("layers dropped, no training")
    told = {f"{name} layers": i for name, i in told.items()}
    figure.set_label(parts.in_words(title, f"{parts.RATIO} by layers dropped", told))
    return figure


@styled
def bytes_against_ppl(points: Mapping[str, tuple[int, Interval]], *, title: str) -> Figure:
    """Perplexity over the bytes of the weights: lower left is better."""
    shown = dict(list(points.items())[: parts.MAX_ROWS])
    figure, ax = new_figure(title, HEIGHT)
    ax.set_ylim(parts.zoom([ratio for _, ratio in shown.values()], 1.0))
    sizes = [n / 1e6 for n, _ in shown.values()]
    room = 0.12 * ((max(sizes) - min(sizes)) or max(sizes))
    ax.set_xlim(max(0, min(sizes) - room), max(sizes) + room)
    look = parts.looks(shown)
    parts.baseline(ax, 1.0, upright=True)
    outside: dict[str, dict[float, float]] = {}
    named = {}
    for (name, (_, ratio)), size in zip(shown.items(), sizes, strict=True):
        if parts.dot(ax, size, ratio, look[name], upright=True):
            named[name] = size, ratio.point
        else:
            outside[f"{name}"] = {size: ratio.point}
    parts.off_scale(ax, outside, look, names=True)
    _names(ax, named, {name: look[name][0] for name in named})
    ax.set_xlabel("weights, megabytes")
    ax.grid(axis="y", color=FAINT, linewidth=0.6)
    parts.measure(ax, f"{parts.RATIO} (lower left is better)")
    left_out = len(points) - len(shown)
    units = parts.units(ratio for _, ratio in points.values())
    parts.remark(ax, f"{units} And {left_out} more, not drawn." if left_out else units)
    told = {
        f"{parts.words(name)}, {n / 1e6:,.0f} MB,": ratio for name, (n, ratio) in points.items()
    }
    figure.set_label(parts.in_words(title, f"{parts.RATIO} by megabytes", told))
    return figure


@styled
def choice(
    before: Mapping[str, float], after: Mapping[str, float], *, tail: int, title: str
) -> Figure:
    """Each pair's rank before healing and after it; the `tail` dearest pairs, taken from far down, are hollow."""
    names = [n for n in sorted(before, key=lambda n: (before[n], n)) if n in after and n != "whole"]
    by_after = sorted(names, key=lambda n: (after[n], n))
    first = {name: names.index(name) + 1 for name in names}
    last = {name: by_after.index(name) + 1 for name in names}
    figure, ax = new_figure(title, 4.0)
    n = len(names)
    ax.plot([0.5, n + 0.5], [0.5, n + 0.5], color="#9A9A9A", linewidth=1, zorder=1)
    style = {"fontsize": SMALL, "color": SOFT, "rotation": 45, "rotation_mode": "anchor"}
    ax.text(
        n + 0.4, n + 0.5, "same rank", ha="right", va="bottom", transform_rotates_text=True, **style
    )
    contenders = names[: n - tail]
    for name in names:
        kept = name in contenders
        colour = IDEAS["healed"][0] if kept else SOFT
        face = colour if kept else "white"
        ax.plot(
            first[name], last[name], "o", color=colour, markerfacecolor=face, markersize=7, zorder=3
        )
        best = name in (names[:1] + by_after[:1])
        text = {
            "fontsize": SMALL,
            "color": INK if best else SOFT,
            "fontweight": "bold" if best else "normal",
        }
        ax.annotate(
            name.replace(",", "+"),
            (first[name], last[name]),
            (6, -3),
            textcoords="offset points",
            **text,
        )
    ticks = sorted({1, *range(5, n + 1, 5), n})
    ax.set(xlim=(0.3, n + 1.2), ylim=(n + 0.7, 0.3), xticks=ticks, yticks=ticks)
    ax.set_xlabel("rank before healing (1 = the cheapest pair)")
    ax.grid(color=FAINT, linewidth=0.6)
    parts.measure(ax, "rank after healing")
    rho = {"all pairs": names, "the cheap ones (filled)": contenders}
    rho = {
        k: _rho(v, before, after)
        for k, v in rho.items()
        if len(v) >= 3 and (tail or k == "all pairs")
    }
    parts.remark(
        ax,
        "Rank correlation: " + "; ".join(f"{k} {v:.2f}" for k, v in rho.items()) + "."
        if rho
        else "",
    )
    told = {
        f"layers {name.replace(',', ' and ')}, rank {first[name]} before, after": float(last[name])
        for name in names
    }
    told |= {f"rank correlation of {k}": v for k, v in rho.items()}
    figure.set_label(
        parts.in_words(title, "ranks of pairs before and after healing", told).replace(".000", "")
    )
    return figure


def _rho(names: list[str], before: Mapping[str, float], after: Mapping[str, float]) -> float:
    pairs = [before[n] for n in names], [after[n] for n in names]
    return statistics.rank_correlation(*pairs).point


def _lines(
    ax: Axes,
    lines: Mapping[str, Mapping[float, Interval]],
    *,
    also: Iterable[Interval] = (),
    ideas: Mapping[str, str] | None = None,
) -> dict[str, Interval]:
    """Draws one line a name, named at its right end; returns every point under its name and place."""
    lines = {name: dict(sorted(line.items())) for name, line in lines.items() if line}
    shown = dict(list(lines.items())[: parts.MAX_ROWS])
    look = parts.looks(shown, ideas=ideas)
    every = [ratio for line in shown.values() for ratio in line.values()]
    ax.set_ylim(parts.zoom([*every, *also], 1.0))
    places = _beside_each_other(shown, log=ax.get_xscale() == "log")
    across = [x for line in places.values() for x in line] or [1.0]
    room = 0.04 * (max(across) - min(across))
    if ax.get_xscale() == "linear":
        ax.set_xlim(min(across) - room, max(across) + room)
    ends: dict[str, tuple[float, str]] = {parts.BASELINE: (1.0, INK)}
    outside: dict[str, dict[float, float]] = {}
    for name, line in shown.items():
        points = [ratio.point for ratio in line.values()]
        finite = [p if math.isfinite(p) else 1e9 for p in points]
        ax.plot(
            places[name], np.clip(finite, -1e9, 1e9), color=look[name][0], linewidth=1.4, zorder=2
        )
        for x, ratio in zip(places[name], line.values(), strict=True):
            if not parts.dot(ax, x, ratio, look[name], upright=True, size=7):
                outside.setdefault(name, {})[x] = ratio.point
        text = f"{parts.words(name)}, {parts.number(points[-1])}"
        ends[text] = (points[-1] if math.isfinite(points[-1]) else 1e9), look[name][0]
    parts.off_scale(ax, outside, look)
    parts.baseline(ax, 1.0, upright=True)
    parts.end_labels(ax, ends, HEIGHT - 0.7)
    ax.grid(axis="y", color=FAINT, linewidth=0.6)
    parts.measure(ax, parts.RATIO)
    left_out = len(lines) - len(shown)
    text = parts.units(ratio for line in lines.values() for ratio in line.values())
    parts.remark(ax, f"{text} And {left_out} more, not drawn.".strip() if left_out else text)
    return {
        f"{parts.words(name)} at {x:g}": ratio
        for name, line in lines.items()
        for x, ratio in line.items()
    }


def _beside_each_other(
    lines: Mapping[str, Mapping[float, Interval]], *, log: bool
) -> dict[str, list[float]]:
    """The places of the points, moved a little so that intervals at one place do not hide each other."""
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


def _names(ax: Axes, named: Mapping[str, tuple[float, float]], colours: Mapping[str, str]) -> None:
    """Names beside scattered points, kept apart from each other in height."""
    left, right = ax.get_xlim()
    low, high = ax.get_ylim()
    gap = 1.3 * SMALL / 72 / (HEIGHT - 0.8) * (high - low)
    for late in (False, True):
        group = {n: at for n, at in named.items() if (at[0] > (left + right) / 2) == late}
        heights = parts.apart([y for _, y in group.values()], gap, low, high)
        for (name, (x, y)), place in zip(group.items(), heights, strict=True):
            style = {"fontsize": SMALL, "color": colours[name], "va": "center"}
            style |= {"ha": "right" if late else "left"}
            shift = (-9 if late else 9, (place - y) / (high - low) * (HEIGHT - 0.8) * 72)
            text = f"{parts.words(name)}, {parts.number(y)}"
            ax.annotate(text, (x, y), shift, textcoords="offset points", **style)


def _tokens(count: float) -> str:
    for unit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= unit:
            return f"{count / unit:.3g} {letter}"
    return f"{count:g}"
