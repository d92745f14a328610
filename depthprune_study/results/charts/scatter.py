"""Scattered points: bytes against perplexity, ranks before healing against ranks after it."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from depthprune_study.results import statistics
from depthprune_study.results.charts import parts, wording
from depthprune_study.results.statistics import Interval
from depthprune_study.results.style import (
    FAINT,
    IDEAS,
    INK,
    SMALL,
    SOFT,
    new_figure,
    readable,
    styled,
)

HEIGHT = 3.1


@styled
def bytes_against_ppl(points: Mapping[str, tuple[int, Interval]], *, title: str) -> Figure:
    """Perplexity over the bytes of the weights: lower left is better."""
    shown = dict(list(points.items())[: parts.MAX_ROWS])
    figure, ax = new_figure(title, HEIGHT)
    ax.set_ylim(parts.zoom([ratio for _, ratio in shown.values()], 1.0))
    sizes = [n / 1e6 for n, _ in shown.values()]
    room = 0.12 * ((max(sizes) - min(sizes)) or max(sizes))
    ax.set_xlim(max(0, min(sizes) - room), max(sizes) + room)
    looks = parts.looks(shown)
    parts.baseline(ax, 1.0, upright=True)
    outside: dict[str, dict[float, float]] = {}
    named = {}
    for (name, (_, ratio)), size in zip(shown.items(), sizes, strict=True):
        if parts.dot(ax, size, ratio, looks[name], upright=True):
            named[name] = size, ratio.point
        else:
            outside[name] = {size: ratio.point}
    parts.off_scale(ax, outside, looks, names=True)
    _names(ax, named, {name: looks[name][0] for name in named})
    ax.set_xlabel("weights, megabytes")
    ax.grid(axis="y", color=FAINT, linewidth=0.6)
    parts.measure(ax, f"{wording.RATIO} (lower left is better)")
    left_out = len(points) - len(shown)
    units = wording.units(ratio for _, ratio in points.values())
    parts.remark(ax, f"{units} And {left_out} more, not drawn." if left_out else units)
    told = {
        f"{wording.words(name)}, {n / 1e6:,.0f} MB,": ratio for name, (n, ratio) in points.items()
    }
    figure.set_label(wording.alt(title, f"{wording.RATIO} by megabytes", told))
    return figure


@styled
def choice(
    before: Mapping[str, float], after: Mapping[str, float], *, tail: int, title: str
) -> Figure:
    """Each pair's rank before healing and after it, with the diagonal and the rank correlation.

    The `tail` pairs that are dearest before healing were taken from far down; they are hollow.
    """
    names = [n for n in sorted(before, key=lambda n: (before[n], n)) if n in after and n != "whole"]
    by_after = sorted(names, key=lambda name: (after[name], name))
    places = {name: (names.index(name) + 1, by_after.index(name) + 1) for name in names}
    contenders, n = names[: len(names) - tail], len(names)
    figure, ax = new_figure(title, 4.0)
    ax.plot([0.5, n + 0.5], [0.5, n + 0.5], color="#9A9A9A", linewidth=1, zorder=1)
    for name, place in places.items():
        colour = IDEAS["healed"][0] if name in contenders else SOFT
        face = colour if name in contenders else "white"
        style = {"markersize": 7, "markerfacecolor": face, "markeredgewidth": 1.4, "zorder": 3}
        ax.plot(*place, "o", color=colour, **style)
        best = name in (names[0], by_after[0])
        weight = {"color": INK, "fontweight": "bold"} if best else {"color": SOFT}
        text = name.replace(",", "+")
        to = {"xytext": (7, 0), "textcoords": "offset points", "va": "center", "bbox": parts.GROUND}
        ax.annotate(text, place, fontsize=SMALL, **weight, **to)
    ticks = sorted({1, *range(5, n, 5), n} - ({n - 1} if n > 5 else set()))
    ax.set(xlim=(0.3, n + 1.3), ylim=(0.3, n + 0.7), xticks=ticks, yticks=ticks)
    ax.set_xlabel("rank before healing (1: the cheapest pair)")
    ax.grid(color=FAINT, linewidth=0.6)
    parts.measure(ax, "rank after healing")
    rho = {"of all": _rho(names, before, after)} if n > 2 else {}
    if tail and len(contenders) > 2:
        rho["of the filled ones"] = _rho(contenders, before, after)
    remark = "On the line: the rank stays. "
    remark += "Hollow: taken from far down the ranking. " if tail else ""
    remark += (
        f"Rank correlation: {', '.join(f'{k} {v:.2f}' for k, v in rho.items())}." if rho else ""
    )
    parts.remark(ax, remark.strip())
    told = [
        f"layers {name.replace(',', ' and ')} from rank {x} to {y}"
        for name, (x, y) in places.items()
    ]
    told += [f"rank correlation {k} {v:.2f}" for k, v in rho.items()]
    figure.set_label(f"{title.rstrip('.')}. Ranks before and after healing: {'; '.join(told)}.")
    return figure


def _rho(names: list[str], before: Mapping[str, float], after: Mapping[str, float]) -> float:
    pairs = [before[n] for n in names], [after[n] for n in names]
    return statistics.rank_correlation(*pairs).point


def _names(ax: Axes, named: Mapping[str, tuple[float, float]], colours: Mapping[str, str]) -> None:
    """Names beside scattered points, kept apart from each other in height."""
    left, right = ax.get_xlim()
    low, high = ax.get_ylim()
    gap = 1.3 * SMALL / 72 / (HEIGHT - 0.8) * (high - low)
    for late in (False, True):
        group = {n: at for n, at in named.items() if (at[0] > (left + right) / 2) == late}
        heights = parts.apart([y for _, y in group.values()], gap, low, high)
        for (name, (x, y)), place in zip(group.items(), heights, strict=True):
            style = {"fontsize": SMALL, "color": readable(colours[name]), "va": "center"}
            style |= {"ha": "right" if late else "left"}
            shift = (-9 if late else 9, (place - y) / (high - low) * (HEIGHT - 0.8) * 72)
            text = f"{wording.words(name)}, {wording.number(y)}"
            ax.annotate(text, (x, y), shift, textcoords="offset points", **style, bbox=parts.GROUND)
