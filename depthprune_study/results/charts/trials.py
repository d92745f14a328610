"""What was tried, a row each: speed-ups, and the levels of a recipe's factors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from depthprune_core.records import Timing
from depthprune_study.results.charts import parts, rows, wording
from depthprune_study.results.statistics import Interval, decode_gain, median_ratio
from depthprune_study.results.style import IDEAS, INK, SMALL, SOFT, styled

Ratios = Mapping[str, Interval]
DRAWN = IDEAS["healed"][0]


@styled
def speed(timings: Mapping[str, Timing], *, title: str) -> Figure:
    """How many times faster than the whole model, beside what layers and bytes allow in decode.

    Decode is filled, prefill hollow; from four students on, prefill is left to the alt text.
    """
    decode = {name: decode_gain(timing) for name, timing in timings.items()}
    prefill = {
        name: median_ratio(timing.teacher_prefill_ms, timing.student_prefill_ms)
        for name, timing in timings.items()
    }
    lines: dict[str, tuple[str, Interval, bool]] = {}
    for name in timings:
        lines[f"{wording.words(name)}: decode"] = name, decode[name], True
        if len(timings) <= 3:
            lines[f"{wording.words(name)}: prefill"] = name, prefill[name], False
    shown, rest = rows.first(lines)
    figure, ax = rows.frame(title, list(shown))
    allowed = [
        (timings[n].by_weight_bytes, timings[n].by_layer_count) for n, _, _ in shown.values()
    ]
    marks = [Interval(v, v, v, 0, 0.0) for two in allowed for v in two]
    ax.set_xlim(parts.zoom([*(gain for _, gain, _ in shown.values()), *marks], 1.0))
    for row, (name, gain, is_decode) in enumerate(shown.values()):
        text = wording.with_interval(gain)
        if is_decode:
            _allowed(ax, row, timings[name], named=row == 0)
            text += ", suspect" if gain.point > timings[name].by_layer_count else ""
        parts.dot(ax, row, gain, (DRAWN, "o"), filled=is_decode)
        rows.value(ax, row, text, DRAWN)
    rows.finish(ax, "times as fast as the whole model", 1.0)
    more = rows.rest_in_words({name: line[1] for name, line in rest.items()})
    parts.remark(ax, _setting(timings.values()) + more)
    told = {f"{wording.words(name)}, decode": gain for name, gain in decode.items()}
    told |= {f"{wording.words(name)}, prefill": gain for name, gain in prefill.items()}
    told |= {f"{wording.words(n)}, by layer count": t.by_layer_count for n, t in timings.items()}
    told |= {f"{wording.words(n)}, by weight bytes": t.by_weight_bytes for n, t in timings.items()}
    figure.set_label(wording.alt(title, "times as fast as the whole model", told))
    return figure


@styled
def sweep(ratios: Mapping[str, Ratios], kept: Mapping[str, str], *, title: str) -> Figure:
    """One row a factor, one point a level: perplexity against the level kept; the widest on top."""
    effect = {
        factor: max(rows.rank(abs(ratio.point - 1)) for ratio in levels.values())
        for factor, levels in ratios.items()
    }
    ordered = {factor: ratios[factor] for factor in sorted(effect, key=lambda f: -effect[f])}
    shown, rest = rows.first(ordered)
    labels = [f"{wording.factor(f)}\nkept: {kept.get(f, 'none')}" for f in shown]
    figure, ax = rows.frame(title, labels, pitch=0.56)
    ax.set_xlim(parts.zoom([r for levels in shown.values() for r in levels.values()], 1.0))
    for row, (factor, levels) in enumerate(shown.items()):
        others = {level: ratio for level, ratio in levels.items() if level != kept.get(factor)}
        for ratio in others.values():
            parts.dot(ax, row + 0.12, ratio, (SOFT, "o"), filled=False, size=6.5)
        _levels(ax, row, others)
        if kept.get(factor) in levels:
            parts.dot(ax, row + 0.12, levels[kept[factor]], (DRAWN, "o"), size=8)
    rows.finish(ax, "perplexity ÷ that of the level kept", 1.0, name="kept")
    every = [ratio for levels in ratios.values() for ratio in levels.values()]
    left_out = {
        f"{wording.factor(factor)} {level}": ratio
        for factor, levels in rest.items()
        for level, ratio in levels.items()
    }
    more = rows.rest_in_words(left_out, len(rest))
    parts.remark(ax, f"Filled: kept. {wording.units(every)}{more}")
    told = {
        f"{wording.factor(factor)} {level}{' (kept)' if level == kept.get(factor) else ''}": ratio
        for factor, levels in ordered.items()
        for level, ratio in levels.items()
    }
    figure.set_label(wording.alt(title, "perplexity against the level kept", told))
    return figure


def _allowed(ax: Axes, row: int, timing: Timing, *, named: bool) -> None:
    """The decode ratios that layer count and weight bytes allow, as marks around the row."""
    low, high = ax.get_xlim()
    both = {"by weight bytes": timing.by_weight_bytes, "by layer count": timing.by_layer_count}
    for name, at in both.items():
        if not low <= at <= high:
            continue
        ax.vlines(at, row - 0.32, row + 0.32, color=INK, linewidth=1.6, zorder=1)
        if named:
            left = (at == min(both.values()) and name == "by weight bytes") or at < max(
                both.values()
            )
            place = {
                "xytext": (-2 if left else 2, 2),
                "textcoords": "offset points",
                "va": "bottom",
            }
            style = {"fontsize": SMALL, "color": SOFT, "ha": "right" if left else "left"}
            ax.annotate(name, (at, row - 0.32), **place, **style, bbox=parts.GROUND)


def _setting(timings: Iterable[Timing]) -> str:
    told = {f"{t.device}, {t.dtype}, batch {t.batch_size}, context {t.context}" for t in timings}
    return f"Lines: 95 % intervals of the median; {'; '.join(sorted(told))}."


def _levels(ax: Axes, row: int, levels: Ratios) -> None:
    """The names of the levels above their points; those that would overlap share one place."""
    low, high = ax.get_xlim()
    letter = 0.6 * SMALL / 72 / rows.PLOT_INCHES * (high - low)  # its width
    placed: list[tuple[str, float]] = []
    known = {level: r.point for level, r in levels.items() if r.point == r.point}
    for level, point in sorted(known.items(), key=lambda item: item[1]):
        at = float(np.clip(point, low, high))
        text = level if low <= point <= high else f"{level}: {wording.number(point)}"
        if placed and at - placed[-1][1] < letter * (len(text) + len(placed[-1][0])) / 2:
            before, at_before = placed.pop()
            text, at = f"{before} · {text}", (at_before + at) / 2
        placed.append((text, at))
    for text, at in placed:
        half = letter * len(text) / 2
        at = min(max(at, low + half), high - half)
        style = {"fontsize": SMALL, "color": SOFT, "ha": "center", "va": "bottom"}
        ax.text(at, row - 0.14, text, **style, bbox=parts.GROUND)
