"""What was tried: speed-ups, and the levels of a recipe's factors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from depthprune_core.records import Timing
from depthprune_study.results.charts import parts, rows
from depthprune_study.results.statistics import Interval, decode_gain, median_ratio
from depthprune_study.results.style import IDEAS, INK, SMALL, SOFT, styled

Ratios = Mapping[str, Interval]
DRAWN = IDEAS["healed"][0]


@styled
def speed(timings: Mapping[str, Timing], *, title: str) -> Figure:
    """Times faster than the whole model, decode and prefill, with what layers and bytes allow in decode."""
    lines: dict[str, tuple[Interval, Timing, bool]] = {}
    both = len(timings) <= 3
    for name, timing in timings.items():
        lines[f"{parts.words(name)}: decode"] = decode_gain(timing), timing, True
        prefill = median_ratio(timing.teacher_prefill_ms, timing.student_prefill_ms)
        lines[f"{parts.words(name)}: prefill"] = prefill, timing, False
    drawn, rest = rows.first({n: line for n, line in lines.items() if both or line[2]})
    figure, ax = rows.frame(title, list(drawn), more=bool(rest))
    allowed = [v for _, t, _ in drawn.values() for v in (t.by_layer_count, t.by_weight_bytes)]
    marks = [Interval(v, v, v, 0, 0) for v in allowed]
    ax.set_xlim(parts.zoom([*(i for i, _, _ in drawn.values()), *marks], 1.0))
    for row, (gain, timing, is_decode) in enumerate(drawn.values()):
        if is_decode:
            suspect = gain.point > timing.by_layer_count
            _allowed(ax, row, timing, named=row == 0)
        parts.dot(ax, row, gain, (DRAWN, "o"), filled=is_decode)
        text = parts.number(gain.point) + (f" ({parts.span(gain)})" if parts.span(gain) else "")
        rows.value(ax, row, text + (", suspect" if is_decode and suspect else ""), DRAWN)
    rows.sum_up(ax, len(drawn), {name: row[0] for name, row in rest.items()})
    rows.finish(ax, "times as fast as the whole model", 1.0)
    parts.remark(ax, _setting(timings.values()))
    told = {name: line[0] for name, line in lines.items()}
    limits = "; ".join(
        f"{parts.words(name)} {parts.number(t.by_layer_count)} and {parts.number(t.by_weight_bytes)}"
        for name, t in timings.items()
    )
    more = f"Decode by layer count and by weight bytes: {limits}."
    figure.set_label(parts.in_words(title, "times as fast as the whole model", told, more))
    return figure


@styled
def sweep(ratios: Mapping[str, Ratios], kept: Mapping[str, str], *, title: str) -> Figure:
    """One row a factor, one point a level: perplexity against the level that was kept; widest on top."""
    effects = {
        name: max(rows.rank(abs(r.point - 1)) for r in by.values()) for name, by in ratios.items()
    }
    ordered = {name: ratios[name] for name in sorted(effects, key=lambda n: -effects[n])}
    shown, rest = rows.first(ordered)
    labels = [f"{parts.words(name)}\nkept: {kept.get(name, '–')}" for name in shown]
    figure, ax = rows.frame(title, labels, pitch=0.56, more=bool(rest))
    ax.set_xlim(parts.zoom([r for by in shown.values() for r in by.values()], 1.0))
    for row, (name, by_level) in enumerate(shown.items()):
        look = {level: (DRAWN if level == kept.get(name) else SOFT, "o") for level in by_level}
        for level, ratio in by_level.items():
            is_kept = level == kept.get(name)
            parts.dot(
                ax, row + 0.12, ratio, look[level], filled=is_kept, size=8 if is_kept else 6.5
            )
        _levels(ax, row, {lv: r for lv, r in by_level.items() if lv != kept.get(name)})
    rows.sum_up(ax, len(shown), {name: i for name, by in rest.items() for i in by.values()})
    rows.finish(ax, "perplexity ÷ that of the level kept", 1.0, name="kept")
    parts.remark(
        ax, "Filled: kept. " + parts.units(r for by in ratios.values() for r in by.values())
    )
    told = {
        f"{parts.words(name)} {level}{' (kept)' if level == kept.get(name) else ''}": ratio
        for name, by_level in ordered.items()
        for level, ratio in by_level.items()
    }
    figure.set_label(parts.in_words(title, "perplexity against the level kept", told))
    return figure


def _allowed(ax: Axes, row: int, timing: Timing, *, named: bool) -> None:
    """The decode ratios that layer count and weight bytes allow, as marks around the row."""
    limits = ax.get_xlim()
    by_bytes, by_layers = timing.by_weight_bytes, timing.by_layer_count
    for value, name, side in (
        (by_bytes, "weight bytes", "right" if by_bytes <= by_layers else "left"),
        (by_layers, "layer count", "left" if by_bytes <= by_layers else "right"),
    ):
        if not limits[0] <= value <= limits[1]:
            continue
        ax.vlines(value, row - 0.32, row + 0.32, color=INK, linewidth=1.4, zorder=1)
        if named:
            place = {"xytext": (2 if side == "left" else -2, 1), "textcoords": "offset points"}
            style = {"fontsize": SMALL, "color": SOFT, "ha": side, "va": "bottom"}
            ax.annotate(f"by {name}", (value, row - 0.32), **place, **style)


def _setting(timings: Iterable[Timing]) -> str:
    told = {f"{t.device}, {t.dtype}, batch {t.batch_size}, context {t.context}" for t in timings}
    return f"Median and 95 % interval of rounds taken in turn; {'; '.join(sorted(told))}."


def _levels(ax: Axes, row: int, levels: Ratios) -> None:
    """The names of the levels above their points; those that would overlap share one place."""
    low, high = ax.get_xlim()
    inside = {
        lv: float(np.clip(r.point, low, high)) for lv, r in levels.items() if r.point == r.point
    }
    width = 0.6 * SMALL / 72 / rows.PLOT_INCHES * (high - low)  # of a letter
    line: list[tuple[str, float]] = []
    for level, at in sorted(inside.items(), key=lambda item: item[1]):
        text = (
            level
            if levels[level].point <= high
            else f"{level}: {parts.number(levels[level].point)}"
        )
        if line and at - line[-1][1] < width * (len(text) + len(line[-1][0])) / 2:
            text, before = f"{line[-1][0]} · {text}", line.pop()[1]
            at = (before + at) / 2
        line.append((text, at))
    for text, at in line:
        at = min(max(at, low + width * len(text) / 2), high - width * len(text) / 2)
        ax.text(at, row - 0.14, text, fontsize=SMALL, color=SOFT, ha="center", va="bottom")
