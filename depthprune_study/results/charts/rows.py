"""Row charts: names at the left, points with intervals, numbers at the right."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import replace

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from depthprune_core.records import Timing
from depthprune_study.results.charts import parts, wording
from depthprune_study.results.charts.parts import Look, exactly
from depthprune_study.results.statistics import (
    CHANCE,
    Interval,
    decode_gain,
    is_suspect,
    median_ratio,
)
from depthprune_study.results.style import FAINT, IDEAS, INK, SMALL, new_figure, remark, styled

Ratios = Mapping[str, Interval]
Row = tuple[str, Interval, Look]


@styled
def ratios(named: Ratios, *, title: str) -> Figure:
    """One row per name, the lowest perplexity on top; "whole" is the baseline, not a row."""
    names = [name for name in named if name != "whole"]
    names.sort(key=lambda name: (named[name].point != named[name].point, named[name].point))
    groups = {name: [(wording.words(name), named[name], parts.look(name))] for name in names}
    return _rows(groups, wording.RATIO, title=title)


@styled
def bytes_against_ppl(points: Mapping[str, tuple[int, Interval]], *, title: str) -> Figure:
    """One row per model, the fewest bytes on top: megabytes and perplexity."""
    groups = {
        name: [(f"{wording.words(name)}: {n / 1e6:,.0f} MB", ratio, parts.look(name))]
        for name, (n, ratio) in sorted(points.items(), key=lambda item: item[1][0])
    }
    return _rows(groups, f"{wording.RATIO}; fewest bytes on top", title=title)


@styled
def seeds(ratios: Mapping[str, Ratios], *, title: str) -> Figure:
    """One group per model or setup, one row per seed."""
    groups = {
        name: [(label, ratio, parts.look("healed")) for label, ratio in by_seed.items()]
        for name, by_seed in ratios.items()
    }
    return _rows(groups, wording.RATIO, title=title)


@styled
def probes(accuracies: Mapping[str, Ratios], *, title: str) -> Figure:
    """One row per probe family: the share of right answers of at most four students.

    The stages of a path where they are there, else the whole model and three of the others.
    """
    named = list(dict.fromkeys(name for by_student in accuracies.values() for name in by_student))
    stages = [name for name in ("whole", "cut", "healed") if name in named]
    others = [name for name in named if name not in stages]
    if stages == ["whole"]:
        stages += list(dict.fromkeys(others[i] for i in (0, len(others) // 2, -1)))
    looks = parts.looks(stages)
    figure, ax = new_figure(title, 0.9 + 0.45 * len(accuracies))
    intervals = [by[name] for by in accuracies.values() for name in stages]
    ax.set_xlim(parts.zoom(intervals, 0.0))
    ax.set_ylim(len(accuracies) - 0.5, -0.8)
    place = ax.get_yaxis_transform()
    for column, (name, look) in enumerate(looks.items()):
        style = {"color": look[0], "fontsize": SMALL, "va": "center", "transform": place}
        ax.text(1.03 + 0.13 * column, -0.75, textwrap.fill(wording.words(name), 9), **style)
        for row, by in enumerate(accuracies.values()):
            parts.dot(ax, row + 0.18 * (column - (len(looks) - 1) / 2), by[name], look)
            ax.text(1.03 + 0.13 * column, row, f"{by[name].point:.2f}", **style)
    for row, family in enumerate(accuracies):
        if family in CHANCE:
            ax.plot(CHANCE[family], row, "|", color=INK, markersize=16, zorder=0)
    ax.set_yticks(range(len(accuracies)), map(wording.words, accuracies), fontsize=SMALL, color=INK)
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.grid(axis="x", color=FAINT, linewidth=0.6)
    ax.set_xlabel("share of items answered correctly")
    remark(ax, f"Upright line: random answers. {wording.units(intervals, 'items')}")
    described = {
        f"{family}, {wording.words(name)}": by[name]
        for family, by in accuracies.items()
        for name in stages
    }
    figure.set_label(wording.alt(title, "share of items answered correctly", described))
    return figure


@styled
def sweep(ratios: Mapping[str, Ratios], kept: Mapping[str, str], *, title: str) -> Figure:
    """One group per factor, one row per level: KL to the whole model against the kept level.

    The most important factor is on top.
    """

    def effect(factor: str) -> float:
        return max(abs(ratio.point - 1) for ratio in ratios[factor].values())

    groups: dict[str, list[Row]] = {}
    for factor in sorted(ratios, key=effect, reverse=True):
        groups[wording.factor(factor)] = [
            (f"{wording.words(level)} (kept)", exactly(1.0), IDEAS["healed"])
            if level == kept.get(factor)
            else (wording.words(level), ratio, IDEAS["other"])
            for level, ratio in ratios[factor].items()
        ]
    return _rows(
        groups, "KL to the whole model ÷ that of the kept level", name="kept level", title=title
    )


@styled
def speed(timings: Mapping[str, Timing], *, title: str) -> Figure:
    """Speed relative to the whole model, beside the limits of decoding from layers and bytes."""
    groups: dict[str, list[Row]] = {}
    for name, timing in timings.items():
        if timing.by_layer_count <= 1:  # the whole model compared with itself
            continue
        decode, prefill = (
            replace(gain, note="suspect") if is_suspect(gain, timing) else gain
            for gain in (
                decode_gain(timing),
                median_ratio(timing.teacher_prefill_ms, timing.student_prefill_ms),
            )
        )
        groups[wording.words(name)] = [
            ("decode", decode, IDEAS["healed"]),
            ("layer count alone", exactly(timing.by_layer_count), (INK, "|")),
            ("weight bytes alone", exactly(timing.by_weight_bytes), (INK, "|")),
            ("prefill", prefill, IDEAS["other"]),
        ]
    settings = {
        f"{t.device}, {t.dtype}, batch {t.batch_size}, context {t.context}"
        for t in timings.values()
    }
    figure = _rows(groups, "times as fast as the whole model", unit="rounds", title=title)
    remark(figure.axes[0], f"{figure.get_supxlabel()} {'; '.join(sorted(settings))}.")
    return figure


def _rows(
    groups: Mapping[str, Sequence[Row]],
    measure: str,
    *,
    title: str,
    name: str = wording.BASELINE,
    unit: str = "articles",
) -> Figure:
    """Groups of rows below each other; groups after the seventh are listed in one line.

    `name`: the label of the baseline, which is 1.
    """
    shown, rest = parts.first(groups)
    n_rows = sum(len(rows) for rows in shown.values())
    figure, ax = new_figure(title, 0.9 + (0.3 if n_rows == len(shown) else 0.18) * n_rows)
    ax.set_xlim(parts.zoom([row[1] for rows in shown.values() for row in rows], 1))
    ax.set_ylim(n_rows - 0.5, -0.7)
    labels: list[str] = []
    for group, rows in shown.items():
        if labels and len(rows) > 1:
            ax.axhline(len(labels) - 0.5, color=FAINT, linewidth=0.8)
        for label, interval, look in rows:
            _row(ax, len(labels), interval, look)
            starts = len(rows) > 1 and label == rows[0][0]
            labels.append(f"{wording.words(group)}: {label}" if starts else label)
    lines = ["\n".join(textwrap.wrap(label, 40)) for label in labels]
    ax.set_yticks(range(n_rows), lines, fontsize=SMALL, color=INK)
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.set_xlabel(measure)
    ax.locator_params(axis="x", nbins=5)
    parts.baseline(ax, 1)
    style = {"fontsize": SMALL, "ha": "center", "va": "bottom"}
    ax.text(1, 1.0, name, transform=ax.get_xaxis_transform(), **style)
    described = {
        label if len(rows) == 1 else f"{wording.words(group)}, {label}": interval
        for group, rows in groups.items()
        for label, interval, _ in rows
    }
    drawn = [interval for rows in shown.values() for _, interval, _ in rows]
    left = "; ".join(
        f"{name} {wording.number(described[name].point)}" for name in list(described)[n_rows:]
    )
    remark(ax, wording.units(drawn, unit) + (f" Not drawn: {left}." if rest else ""))
    figure.set_label(wording.alt(title, measure, described))
    return figure


def _row(ax: Axes, row: int, interval: Interval, look: Look) -> None:
    parts.dot(ax, row, interval, look)
    style = {"fontsize": SMALL, "va": "center", "color": look[0]}
    ax.text(1.04, row, wording.interval(interval), transform=ax.get_yaxis_transform(), **style)
