"""From the whole model to the healed one: the answer's path, and the curves of training."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from depthprune_core.records import Curve
from depthprune_study.results.charts import parts, wording
from depthprune_study.results.statistics import Interval
from depthprune_study.results.style import (
    FAINT,
    INK,
    LARGE,
    SMALL,
    SOFT,
    new_figure,
    readable,
    styled,
)

Ratios = Mapping[str, Interval]

_STEPS = {  # what was done to reach a stage
    "whole": "as it came",
    "cut": "layers\nremoved",
    "refitted": "maps\nre-solved",
    "healed": "distilled",
}
_CONTROL = {"ce": "student", "whole, same text": "whole model"}


@styled
def path(stages: Ratios, control: Ratios, *, title: str) -> Figure:
    """Whole, cut, refitted, healed as one path; beside it what the same text does by itself.

    `control` holds the student trained on the text ("ce") and the whole model trained on it
    ("whole, same text"); their quotient is written between them.
    """
    whole = Interval(1.0, 1.0, 1.0, 0, 0.0)
    stages = {"whole": stages.get("whole", whole), **stages}
    figure, ax = new_figure(title, 3.35)
    gap = len(stages) - 0.1
    places = {name: float(at) for at, name in enumerate(stages)}
    beside = {name: gap + 0.4 + at for at, name in enumerate(control)}
    low, high = parts.zoom([*stages.values(), *control.values()], 1.0)
    room = 0.3 if any(ratio.point < 1 for ratio in control.values()) else 0.16  # for the numbers
    ax.set_ylim(low - room * (high - low), high + 0.27 * (high - low))
    right = max([*beside.values(), *places.values()]) + 0.55
    ax.set_xlim(-0.5, right)
    parts.baseline(ax, 1.0, upright=True)
    _steps(ax, stages, places)
    before = 1.0
    for name, ratio in stages.items():
        side = "center" if name == "whole" or ratio.point >= before else "left"
        _point(ax, places[name], ratio, parts.look(name), side=side, down=name == "whole")
        before = ratio.point
    _beside(ax, control, beside, gap)
    labels = [f"{wording.words(n)}\n{_STEPS.get(n, '')}" for n in stages]
    labels += [f"{_CONTROL.get(n, wording.words(n))}\n" for n in control]
    ax.set_xticks([*places.values(), *beside.values()], labels, color=INK)
    parts.quiet(ax, "x")
    parts.measure(ax, wording.RATIO)
    parts.remark(ax, wording.units([*stages.values(), *control.values()]))
    told = {wording.words(name): ratio for name, ratio in {**stages, **control}.items()}
    figure.set_label(wording.alt(title, wording.RATIO, told))
    return figure


@styled
def curves(named: Mapping[str, Curve], whole_nll_nats: float, *, title: str) -> Figure:
    """Validation perplexity over the tokens of training, one named line a student."""
    drawn = {name: curve for name, curve in named.items() if curve.validation_tokens}
    shown = dict(list(drawn.items())[: parts.MAX_ROWS])
    height = 3.0
    figure, ax = new_figure(title, height)
    lines = {
        name: np.exp(np.clip(np.array(curve.validation_nll_nats) - whole_nll_nats, -50, 50))
        for name, curve in drawn.items()
    }
    points = [Interval(p, p, p, 0, 0.0) for name in shown for p in lines[name].tolist()]
    ax.set_ylim(parts.zoom(points, 1.0))
    look = parts.looks(shown)
    ends: dict[str, tuple[float, str]] = {wording.BASELINE: (1.0, INK)}
    longest = max([1, *(curve.validation_tokens[-1] for curve in shown.values())])
    unit, unit_name = (1e6, "million ") if longest >= 2e6 else (1e3, "thousand ")
    starts = {}
    for name, curve in shown.items():
        colour, marker = look[name]
        tokens = np.array(curve.validation_tokens) / unit
        ax.plot(tokens, lines[name], color=colour, marker=marker, markersize=4.5)
        starts[name] = {float(tokens[0]): float(lines[name][0])}
        last = float(lines[name][-1])
        text = f"{parts.arrow(last, *ax.get_ylim())}{wording.words(name)}, {wording.number(last)}"
        ends[text + (", diverged" if curve.diverged else "")] = last, colour
    ax.set_xlim(0, longest / unit)
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    parts.off_scale(ax, starts, look)
    parts.baseline(ax, 1.0, upright=True)
    parts.end_labels(ax, ends, height - 0.8)
    ax.grid(axis="y", color=FAINT, linewidth=0.6)
    ax.set_xlabel(f"{unit_name}tokens of training")
    parts.measure(ax, f"validation {wording.RATIO}")
    left_out = len(drawn) - len(shown)
    parts.remark(ax, f"And {left_out} more, not drawn." if left_out else "")
    told = {
        f"{wording.words(n)}, from {wording.number(r[0])} to": float(r[-1])
        for n, r in lines.items()
    }
    figure.set_label(wording.alt(title, f"validation {wording.RATIO} during training", told))
    return figure


def _steps(ax: Axes, stages: Ratios, places: Mapping[str, float]) -> None:
    """The line from stage to stage, with arrowheads."""
    low, high = ax.get_ylim()
    names = [name for name, ratio in stages.items() if ratio.point == ratio.point]
    for before, after in itertools.pairwise(names):
        ends = [(places[n], float(np.clip(stages[n].point, low, high))) for n in (before, after)]
        arrow = {
            "arrowstyle": "-|>",
            "color": "#8A8A8A",
            "linewidth": 1.6,
            "shrinkA": 6,
            "shrinkB": 7,
        }
        ax.annotate("", ends[1], ends[0], arrowprops=arrow, zorder=2)


def _point(
    ax: Axes,
    at: float,
    ratio: Interval,
    look: tuple[str, str],
    *,
    side: str = "center",
    down: bool = False,
    in_control: bool = False,
) -> None:
    """A point of the path with its number, and its interval in small type, above it or below it."""
    (low, high), point = ax.get_ylim(), ratio.point
    between = wording.span(ratio)
    if parts.dot(ax, at, ratio, look, upright=True, size=8.5):
        far = ratio.low if down else ratio.high
        end = min(max(far, low), high) if math.isfinite(far) else point
    else:
        down, end = point > low or point != point, low if point < low else high
    above = [(20 if between else 8), 8]
    first, second = (-8, -22) if down else above
    style = {"textcoords": "offset points", "zorder": 5, "color": readable(look[0]), "ha": side}
    style |= {"va": "top" if down else "bottom", "bbox": None if in_control else parts.GROUND}
    shift = -12 if side == "left" else 0
    text = "1" if point == 1 and not between else wording.number(point)
    text = parts.arrow(point, low, high) + text
    large = {"fontsize": LARGE, "fontweight": "bold"}
    ax.annotate(text, (at, end), (shift, first), **large, **style)
    if between:
        ax.annotate(between, (at, end), (shift, second), fontsize=SMALL, **style)


def _beside(ax: Axes, control: Ratios, places: Mapping[str, float], left: float) -> None:
    """The control: its ground, its heading, its points, and the quotient of the two."""
    if not control:
        return
    right = ax.get_xlim()[1]
    ax.axvspan(left - 0.2, right, color="#F1F1F1", linewidth=0, zorder=0)
    text = "control: trained on the same text"
    if {"ce", "whole, same text"} <= set(control):
        quotient = control["ce"].point / control["whole, same text"].point
        text += f"\nstudent ÷ whole model = {wording.number(quotient)}"
    place = {"xycoords": ("data", "axes fraction"), "xytext": (0, 4), "textcoords": "offset points"}
    style = {"fontsize": SMALL, "color": SOFT, "ha": "right", "va": "bottom"}
    ax.annotate(text, (right, 1.0), **place, **style)
    for name, ratio in control.items():
        _point(ax, places[name], ratio, parts.look(name), down=ratio.point < 1, in_control=True)
