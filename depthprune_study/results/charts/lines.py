"""Lines: perplexity over depth, text or layers dropped; training curves; how soon ranks settle."""

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
from depthprune_study.results.style import IDEAS, INK, SMALL, new_figure, remark, styled

HEIGHT = 3.1
TOKENS = EngFormatter(places=0)
TRAINED = ("healed", "text", "control")  # ideas

Lines = Mapping[str, Mapping[float, Interval]]


@styled
def depth(curves: Lines, source: Mapping[float, float], *, title: str) -> Figure:
    """Perplexity over the share of parameters removed, one line a stage; the source's are stars.

    The scale is that of the students that were trained.
    """
    figure, ax = new_figure(title, HEIGHT)
    trained = [r for n in curves if wording.idea(n) in TRAINED for r in curves[n].values()]
    told = _lines(ax, curves, scale=[*trained, *map(exactly, source.values())])
    ax.plot([*source], [*source.values()], "*", color=INK, markersize=12, zorder=5)
    for share, value in list(source.items())[-1:]:
        place = {"xytext": (8, -8), "textcoords": "offset points", "va": "top"}
        ax.annotate("★ the source", (share, value), fontsize=SMALL, **place)
    ax.xaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    ax.set_xlabel("parameters removed")
    told |= {f"the source at {share:.3g}": exactly(value) for share, value in source.items()}
    figure.set_label(wording.alt(title, f"{wording.RATIO} by share of parameters removed", told))
    return figure


@styled
def budget(curves: Mapping[str, Mapping[int, Interval]], *, title: str) -> Figure:
    """Perplexity over the tokens of training (log scale), one line a source of text."""
    figure, ax = new_figure(title, HEIGHT)
    told = _lines(ax, curves)
    ticks = sorted({x for line in curves.values() for x in line})
    smallest = min(tick for tick in ticks if tick)
    ax.set_xscale("symlog", linthresh=smallest)  # logarithmic, but 0 has its place
    ax.set_xlim(min(ticks) - 0.2 * smallest, 1.3 * max(ticks))
    ax.set_xticks(ticks, ["refit alone" if x == 0 else TOKENS(x) for x in ticks])
    ax.minorticks_off()
    ax.set_xlabel("tokens of training, log scale")
    figure.set_label(wording.alt(title, f"{wording.RATIO} by tokens of training", told))
    return figure


@styled
def rivals(ratios: Mapping[str, Mapping[int, Interval]], *, title: str) -> Figure:
    """Perplexity over the number of layers dropped, a line a method; for one number, a row."""
    counts = sorted({k for line in ratios.values() for k in line})
    if len(counts) == 1:
        return rows_of_ratios({n: line[counts[0]] for n, line in ratios.items()}, title=title)
    figure, ax = new_figure(title, HEIGHT)
    told = _lines(ax, ratios)
    ax.set_xticks(counts)
    ax.set_xlabel("layers dropped, nothing trained")
    figure.set_label(wording.alt(title, f"{wording.RATIO} by layers dropped", told))
    return figure


@styled
def curves(named: Mapping[str, Curve], whole_nll_nats: float, *, title: str) -> Figure:
    """Validation perplexity over the tokens of training, one named line a student."""
    figure, ax = new_figure(title, HEIGHT)
    lines = {}
    for name, curve in named.items():
        rises = [nll - whole_nll_nats for nll in curve.validation_nll_nats]
        points = [exactly(math.exp(min(rise, 50))) for rise in rises]
        if points:
            label = f"{name}, diverged" if curve.diverged else name
            lines[label] = dict(zip(curve.validation_tokens, points, strict=True))
    told = _lines(ax, lines)
    ax.xaxis.set_major_formatter(TOKENS)
    ax.set_xlabel("tokens of training")
    ax.set_title(f"validation {wording.RATIO}")
    figure.set_label(wording.alt(title, f"validation {wording.RATIO} during training", told))
    return figure


@styled
def stability(stability: Mapping[int, float], *, title: str) -> Figure:
    """How soon the ranking of the layers settles as articles are added."""
    figure, ax = new_figure(title, 2.5)
    colour, marker = IDEAS["healed"]
    ax.plot([*stability], [*stability.values()], color=colour, marker=marker)
    parts.baseline(ax, 1.0, upright=True)
    for count in (min(stability), max(stability)):
        style = {"textcoords": "offset points", "color": colour, "ha": "center", "va": "top"}
        text = f"{stability[count]:.2f}"
        ax.annotate(text, (count, stability[count]), (0, -7), fontsize=SMALL, **style)
    ax.margins(y=0.25)
    ax.locator_params(axis="x", integer=True)
    ax.set_xlabel("calibration articles")
    measure = "rank correlation with the order by all articles"
    ax.set_title(measure)
    told = {f"{count} articles": value for count, value in stability.items()}
    figure.set_label(wording.alt(title, measure, told))
    return figure


def _lines(
    ax: Axes, lines: Lines, *, scale: Iterable[Interval] | None = None
) -> dict[str, Interval]:
    """One line a name with its intervals as a band, named at its right end.

    Returns every point under its name and place. `scale`: what the axis must hold (default: all).
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
    remark(ax, wording.units(every).replace("Lines", "Bands") + left)
    return {
        f"{wording.words(name)} at {x:,.4g}": ratio
        for name, line in lines.items()
        for x, ratio in line.items()
    }
