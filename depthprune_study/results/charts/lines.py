"""Line charts: perplexity over depth, text or dropped layers; training curves."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, PercentFormatter

from depthprune_core.records import Curve
from depthprune_study.results.charts import parts, wording
from depthprune_study.results.charts.parts import exactly
from depthprune_study.results.charts.rows import ratios as rows_of_ratios
from depthprune_study.results.statistics import Interval
from depthprune_study.results.style import INK, SMALL, new_figure, remark, styled

HEIGHT = 3.1
TOKENS = EngFormatter(places=0)
TRAINED = ("healed", "text", "control")  # ideas

Lines = Mapping[str, Mapping[float, Interval]]


@styled
def depth(curves: Lines, source: Mapping[float, float], *, title: str) -> Figure:
    """Perplexity over the share of removed parameters, one line per stage; stars: the source.

    The scale fits the trained students.
    """
    figure, ax = new_figure(title, HEIGHT)
    trained = [r for n in curves if wording.idea(n) in TRAINED for r in curves[n].values()]
    described = _lines(ax, curves, scale=[*trained, *map(exactly, source.values())])
    ax.plot([*source], [*source.values()], "*", color=INK, markersize=12, zorder=5)
    for share, value in list(source.items())[-1:]:
        place = {"xytext": (8, -8), "textcoords": "offset points", "va": "top"}
        ax.annotate("★ the source", (share, value), fontsize=SMALL, **place)
    ax.xaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    ax.set_xlabel("parameters removed")
    described |= {f"the source at {share:.3g}": exactly(value) for share, value in source.items()}
    figure.set_label(
        wording.alt(title, f"{wording.RATIO} by share of parameters removed", described)
    )
    return figure


@styled
def budget(curves: Mapping[str, Mapping[int, Interval]], *, title: str) -> Figure:
    """Perplexity over training tokens (log scale), one line per source of text."""
    figure, ax = new_figure(title, HEIGHT)
    described = _lines(ax, curves)
    ticks = sorted({x for line in curves.values() for x in line})
    smallest = min(tick for tick in ticks if tick)
    ax.set_xscale("symlog", linthresh=smallest)  # logarithmic, but 0 has its place
    ax.set_xlim(min(ticks) - 0.2 * smallest, 1.3 * max(ticks))
    ax.set_xticks(ticks, ["refit only" if x == 0 else TOKENS(x) for x in ticks])
    ax.minorticks_off()
    ax.set_xlabel("training tokens, log scale")
    figure.set_label(wording.alt(title, f"{wording.RATIO} by training tokens", described))
    return figure


@styled
def rivals(ratios: Mapping[str, Mapping[int, Interval]], *, title: str) -> Figure:
    """Perplexity over the number of dropped layers, one line per method; rows for one number."""
    counts = sorted({k for line in ratios.values() for k in line})
    if len(counts) == 1:
        return rows_of_ratios({n: line[counts[0]] for n, line in ratios.items()}, title=title)
    figure, ax = new_figure(title, HEIGHT)
    described = _lines(ax, ratios)
    ax.set_xticks(counts)
    ax.set_xlabel("layers dropped, nothing trained")
    figure.set_label(wording.alt(title, f"{wording.RATIO} by layers dropped", described))
    return figure


@styled
def curves(named: Mapping[str, Curve], whole_nll_nats: float, *, title: str) -> Figure:
    """Validation perplexity over training tokens, one labelled line per student."""
    figure, ax = new_figure(title, HEIGHT)
    lines = {}
    for name, curve in named.items():
        rises = [nll - whole_nll_nats for nll in curve.validation_nll_nats]
        points = [exactly(math.exp(min(rise, 50))) for rise in rises]
        if points:
            label = f"{name}, diverged" if curve.diverged else name
            lines[label] = dict(zip(curve.validation_tokens, points, strict=True))
    described = _lines(ax, lines)
    ax.xaxis.set_major_formatter(TOKENS)
    ax.set_xlabel("training tokens")
    ax.set_title(f"validation {wording.RATIO}")
    figure.set_label(wording.alt(title, f"validation {wording.RATIO} during training", described))
    return figure


@styled
def _lines(
    ax: Axes, lines: Lines, *, scale: Iterable[Interval] | None = None
) -> dict[str, Interval]:
    """One line per name, with its intervals as a band and its label at the right end.

    Returns every point by name and x. `scale`: values that fit on the axis (default: all).
    """
    lines = {name: dict(sorted(line.items())) for name, line in lines.items() if line}
    shown, rest = parts.first(lines)
    every = [ratio for line in shown.values() for ratio in line.values()]
    ax.set_ylim(parts.zoom(list(scale or ()) or every, 1.0))
    looks = parts.looks(shown)
    ends = {wording.BASELINE: (1.0, INK)}
    for name, line in shown.items():
        colour, marker = looks[name]
        points = [ratio.point for ratio in line.values()]
        bounds = [r.low for r in line.values()], [r.high for r in line.values()]
        ax.plot([*line], points, color=colour, marker=marker, markersize=6)
        ax.fill_between([*line], *bounds, color=colour, alpha=0.15, linewidth=0)
        if len(line) == 1:
            ax.vlines([*line], *bounds, color=colour)
        to = parts.arrow(points[-1], ax.get_ylim())
        ends[f"{to}{wording.words(name)}, {wording.number(points[-1])}"] = points[-1], colour
    parts.baseline(ax, 1.0, upright=True)
    parts.end_labels(ax, ends)
    ax.set_title(wording.RATIO)
    left = f" Not drawn: {', '.join(map(wording.words, rest))}." if rest else ""
    remark(ax, wording.units(every).replace("Error bars", "Bands") + left)
    return {
        f"{wording.words(name)} at {x:,.4g}": ratio
        for name, line in lines.items()
        for x, ratio in line.items()
    }
