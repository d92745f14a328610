"""Records -> matplotlib figures. Nothing is shown, printed or saved, and pyplot's own state stays untouched."""

from __future__ import annotations

import io
import itertools
import math
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import seaborn
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import LogNorm, Normalize, SymLogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import LogLocator, NullFormatter
from PIL import Image

from depthprune_core.intervals import Interval, decode_gain, layer_intervals, median_ratio
from depthprune_core.records import Curve, PairCosts, Profile, Timing

Intervals = Mapping[str, Interval]

WIDTH = 7.5  # inches
DPI = 100
FONT = 9  # points; nothing is smaller
INK, ACCENT = "#444444", "#D55E00"  # for what is no method: layers, criteria; dropped layers

# One colour a method through the whole study: Okabe and Ito's palette, then Tol's "muted" one, both colour-blind safe.
METHOD_COLOURS = {
    "teacher": "#000000", "least_sensitive": "#0072B2", "greedy": "#009E73", "exhaustive": "#E69F00", "contiguous": "#56B4E9",
    "evenly_spaced": "#CC79A7", "last_k": "#882255", "random": "#888888", "most_sensitive": "#D55E00", "one_shot": "#44AA99",
    "staged": "#999933", "recovery_aware": "#AA4499", "width": "#332288", "quantised": "#661100", "distilled": "#117733",
    "pairwise": "#7B4FA3", "racing": "#A6761D", "unrecovered": "#6E6E6E", "recovered": "#004D80", "teacher + same text": "#CC6677",
}  # fmt: skip
_FALLBACK_COLOURS = ("#8C564B", "#B07AA1", "#5F7A8A", "#A07D2C", "#3B6E5E")
_MARKERS = "osD^vPXphd<>"  # a method is told by its marker too, for print in grey
_LINES = ("-", "--", "-.", ":")

_CRITERIA = {  # what the axis measures, and its unit
    "drop_nll_nats": ("rise in NLL", "nats/token"),
    "drop_kl_nats": ("KL(teacher || ablated)", "nats/token"),
    "block_influence": ("block influence", "1 - cosine"),
    "angular_distance": ("angular distance", "units of π"),
    "taylor": ("first-order Taylor", "arbitrary unit"),
    "magnitude": ("weight magnitude", "arbitrary unit"),
}
_RATIO = "PPL ratio to the teacher (1 = teacher)"
_RISE = "rise in NLL (nats/token)"
_TEACHER = {"color": METHOD_COLOURS["teacher"], "linestyle": "--", "linewidth": 1, "label": "teacher"}
_BAND = {"color": "#DDDDDD", "linewidth": 0, "zorder": 0}


def colour(name: str) -> str:
    """A method's colour: "random draw 3" has that of "random"; an unknown name has the same one in every run."""
    method = _method(name)
    return METHOD_COLOURS[method] if method else _FALLBACK_COLOURS[zlib.crc32(name.encode()) % len(_FALLBACK_COLOURS)]


def marker(name: str) -> str:
    """A method's marker, as stable as its colour."""
    method = _method(name)
    return _MARKERS[(list(METHOD_COLOURS).index(method) if method else zlib.crc32(name.encode())) % len(_MARKERS)]


def profile_bars(profile: Profile, *, dropped: Sequence[int] = ()) -> Figure:
    """The rise in NLL when each layer alone is dropped, with 95 % intervals over documents; `dropped` layers are marked."""
    figure, ax = _axes(3.6, "Drop-one rise in NLL, layer by layer")
    rises = layer_intervals(profile, "drop_nll_nats")
    for layer, rise in enumerate(rises):
        if layer in dropped:
            _dot(ax, layer, rise, color=ACCENT, marker="X", label="dropped")
            _note(ax, f"L{layer}", (layer, rise.point), offset=(7, 5), color=ACCENT)
        else:
            _dot(ax, layer, rise, color=INK, marker="o", label="kept")
    _finish_rises(ax, rises, profile.n_layers)
    handles = [_handle("layer, 95 % interval over documents", marker="o")]
    handles += [_handle("dropped by the plan", color=ACCENT, marker="X")] if dropped else []
    _legend(figure, [*handles, _zero(ax)])
    return figure


def criteria_panels(profile: Profile) -> Figure:
    """Every criterion over the layers, each on its own scale; larger = worse to drop in every one."""
    criteria = profile.criteria
    n_rows = math.ceil(len(criteria) / 2)
    figure = Figure(figsize=(WIDTH, 0.9 + 1.7 * n_rows), dpi=DPI, layout="constrained")
    figure.suptitle("Layer sensitivity by criterion (larger = worse to drop)", fontsize=11)
    panels = figure.subplots(n_rows, 2, squeeze=False).ravel()
    for ax, (name, values) in zip(panels, criteria.items(), strict=False):
        words, unit = _CRITERIA.get(name, (_words(name), "value"))
        _plain(ax).plot(range(profile.n_layers), values, color=INK, marker="o", markersize=4, linewidth=1)
        if _stretch(ax, "y", values) != "log" and name != "magnitude":  # no weight is 0, so 0 is no baseline there
            ax.axhline(0, **_TEACHER)
        ax.set_title(words, loc="left", fontsize=FONT)
        _layer_axis(ax, profile.n_layers, WIDTH / 2 - 1)
        ax.set_ylabel(unit)
    for ax in panels[len(criteria) :]:
        ax.remove()
    teacher = {**_TEACHER, "label": "0 = dropping the layer changes nothing (below a log axis)"}
    _legend(figure, [Line2D([], [], **teacher)])
    return figure


def criteria_agreement(correlations: dict[str, dict[str, float]]) -> Figure:
    """Rank correlation over the layers of every criterion with every other."""
    names = list(correlations)
    figure, ax = _axes(1.6 + 0.45 * len(names), "Agreement of the criteria: rank correlation over layers")
    values = np.array([[correlations[a][b] for b in names] for a in names])
    labels = [_CRITERIA[name][0] if name in _CRITERIA else _words(name) for name in names]
    style = {"vmin": -1, "vmax": 1, "cmap": "RdBu_r", "annot": True, "fmt": ".2f", "annot_kws": {"size": FONT}, "linewidths": 1}
    bar = {"label": "Spearman correlation (-1 to 1)"}
    seaborn.heatmap(values, ax=ax, xticklabels=labels, yticklabels=labels, cbar_kws=bar, **style)
    ax.tick_params(axis="x", rotation=25)
    ax.set(xlabel="criterion", ylabel="criterion")
    return figure


def rank_stability(stability: dict[int, float], *, n_tokens_per_document: float) -> Figure:
    """How soon the drop-one ranking settles as calibration documents are added."""
    figure, ax = _axes(3.2, "Stability of the layer ranking against calibration size")
    ax.plot(list(stability), list(stability.values()), color=INK, marker="o", linewidth=1)
    same = ax.axhline(1, **{**_TEACHER, "label": "the same ranking"})
    ax.set_ylim(min([0.0, *stability.values()]), 1.05)
    ax.set_xticks(_thinned(sorted(stability), WIDTH - 1))
    ax.set_xlabel(f"calibration documents (about {n_tokens_per_document:,.0f} tokens each)")
    ax.set_ylabel("Spearman correlation with\nthe ranking from all of them")
    _legend(figure, [_handle("mean of random subsets", marker="o"), same])
    return figure


def pair_heatmap(pairs: PairCosts, *, chosen: Sequence[int] = ()) -> Figure:
    """Left, what each pair costs when dropped; right, by how much that exceeds the two single costs (colours end at the
    95th percentile). `chosen` is outlined."""
    figure = Figure(figsize=(WIDTH, 4.9), dpi=DPI, layout="constrained")
    figure.get_layout_engine().set(rect=(0, 0, 1, 0.95))  # square axes push their titles out of the figure
    cells = [tuple(map(int, key.split(","))) for key in pairs.pair]
    costs = {cell: pairs.cost(frozenset(cell)) for cell in cells}
    interactions = {cell: pairs.interaction(*cell) for cell in cells}
    clip = float(np.quantile(np.abs(list(interactions.values())), 0.95)) or 1.0
    left, right = figure.subplots(1, 2)
    _triangle(left, costs, pairs.n_layers, "viridis", f"{_RISE}\nteacher = 0")
    note = f"pair minus both singles (nats/token)\nclipped at ±{clip:.2g}; dot: below 0"
    _triangle(right, interactions, pairs.n_layers, "RdBu_r", note, clip=clip)
    below = [cell for cell, value in interactions.items() if value < 0]
    right.scatter([i for i, _ in below], [j for _, j in below], s=3, color="black")  # in grey, blue and red look alike
    left.set_title("Cost of dropping a pair", loc="left", fontsize=11)
    right.set_title("Interaction of the two layers", loc="left", fontsize=11)
    for ax, (i, j) in itertools.product((left, right), itertools.combinations(sorted(chosen), 2)):
        for edge, width in (("white", 4), ("black", 2)):  # seen on light and dark cells
            ax.add_patch(Rectangle((i - 0.5, j - 0.5), 1, 1, fill=False, edgecolor=edge, linewidth=width, zorder=3))
    if chosen:
        names = " + ".join(f"L{layer}" for layer in sorted(chosen))
        _legend(figure, [Patch(facecolor="none", edgecolor="black", linewidth=2, label=f"chosen: {names}")])
    return figure


def arms(ratios: Intervals, *, after: Intervals | None = None, title: str = "Perplexity of each arm") -> Figure:
    """One row an arm, best on top. With `after`, hollow = before recovery and filled = after it."""
    order = sorted(ratios, key=lambda name: ratios[name].point)
    return _ratio_rows({name: ratios[name] for name in order}, after=after or {}, title=title)


def controls(ratios: Intervals, *, title: str = "Recovery against its controls") -> Figure:
    """One row an arm, in the order given."""
    return _ratio_rows(ratios, after={}, title=title)


def sweep(ratios: Intervals, *, n_tokens: int) -> Figure:
    """A group a factor ("factor: level"), one row a level; the best level of each group, which was kept, is filled."""
    groups: dict[str, dict[str, Interval]] = {}
    for name, ratio in ratios.items():
        factor, level = name.split(": ", 1)
        groups.setdefault(factor, {})[level] = ratio
    labels = [f"{factor}: {_words(level)}" for factor, levels in groups.items() for level in levels]
    figure, ax = _row_axes(
        labels, f"One factor at a time: validation perplexity\nafter {n_tokens:,} tokens, unless a row says otherwise"
    )
    row = 0
    for index, levels in enumerate(groups.values()):
        best = min(levels, key=lambda level: levels[level].point)
        if index:
            ax.axhline(row - 0.5, color=INK, linewidth=0.8)
        for level, ratio in levels.items():
            _dot(ax, row, ratio, filled=level == best, horizontal=True, color=INK, marker="o", label=level)
            row += 1
    scale = _stretch(ax, "x", [1.0, *_ends(ratios.values())], limit=3)
    ax.set_xlabel(_RATIO + (", log scale" if scale == "log" else ""))
    ax.set_ylabel("factor and level")
    handles = [_handle("kept, 95 % interval over documents", marker="o"), _handle("not kept", marker="o", filled=False)]
    _legend(figure, [*handles, ax.axvline(1, **_TEACHER)])
    return figure


def speed(timings: Mapping[str, Timing]) -> Figure:
    """Median teacher/student time with its interval, prefill and decode apart; the expectations are for decode."""
    settings = {f"{t.device}, {t.dtype}, batch {t.batch_size}, context {t.context} tokens" for t in timings.values()}
    rows = {}
    for name, timing in timings.items():
        rows[f"{_words(name)}, prefill"] = name, median_ratio(timing.teacher_prefill_ms, timing.student_prefill_ms)
        rows[f"{_words(name)}, decode"] = name, decode_gain(timing)
    figure, ax = _row_axes(list(rows), "Speed against the teacher\n" + "; ".join(sorted(settings)))
    for row, (name, ratio) in enumerate(rows.values()):
        _dot(ax, row, ratio, horizontal=True, filled=row % 2 == 1, **_style(name))
    by_layers = {"color": "black", "marker": "|", "markersize": 16, "markeredgewidth": 2, "linestyle": "none"}
    by_bytes = {"color": "black", "marker": "d", "markersize": 10, "markerfacecolor": "none", "linestyle": "none"}
    for row, timing in enumerate(timings.values()):
        ax.plot(timing.by_layer_count, 2 * row + 1, **by_layers, zorder=1)
        ax.plot(timing.by_weight_bytes, 2 * row + 1, **by_bytes, zorder=1)
    handles = [
        _handle("prefill, median and 95 % interval", marker="o", filled=False),
        _handle("decode, median and 95 % interval", marker="o"),
        Line2D([], [], **by_layers, label="decode expected by layer count"),
        Line2D([], [], **by_bytes, label="decode expected by weight bytes"),
    ]
    _legend(figure, [*handles, ax.axvline(1, **_TEACHER)], ncols=2)
    ax.set_xlabel("speed-up: teacher time / student time (1 = teacher)")
    return figure


def curves(
    curves: Mapping[str, Curve], *, teacher_nll_nats: float, title: str = "Validation perplexity during recovery"
) -> Figure:
    """Validation PPL ratio exp(NLL - teacher's NLL) against the tokens seen; means per token."""
    figure, ax = _axes(4.0, title)
    ends = {}
    drawn = {name: curve for name, curve in curves.items() if curve.validation_tokens}  # one that diverged may have no point
    for index, (name, curve) in enumerate(drawn.items()):
        thousands = np.asarray(curve.validation_tokens) / 1_000
        ratios = np.exp(np.asarray(curve.validation_nll_nats) - teacher_nll_nats)
        line = {"linestyle": _LINES[index % len(_LINES)], "linewidth": 1.5, "markersize": 5}
        ax.plot(thousands, ratios, **_style(name), **line)
        ends[name] = float(thousands[-1]), float(ratios[-1])
    ax.axhline(1, **_TEACHER)
    _stretch(ax, "y", [ratio for line in ax.lines for ratio in line.get_ydata()], limit=3)
    right = ax.get_xlim()[1]
    _label_points(ax, {name: (right, y) for name, (_, y) in ends.items()} | {"teacher": (right, 1.0)})
    for name, curve in drawn.items():
        if curve.recipe.get("diverged"):
            _note(ax, "diverged", ends[name], offset=(6, 8), color=colour(name))
    ax.set(xlabel="recovery tokens seen (thousands)", ylabel=_RATIO)
    return figure


def hours(by_machine: Mapping[str, Mapping[str, float]]) -> Figure:
    """Machine -> part -> hours: one bar a machine, its parts in a row."""
    figure, ax = _row_axes(list(by_machine), "Hours by machine")
    parts = list(next(iter(by_machine.values())))
    greys = [str(0.25 + 0.6 * i / max(1, len(parts) - 1)) for i in range(len(parts))]
    for row, by_part in enumerate(by_machine.values()):
        left = 0.0
        for part, grey in zip(parts, greys, strict=True):
            ax.barh(row, by_part[part], left=left, color=grey, edgecolor="white", linewidth=0.5, height=0.6)
            left += by_part[part]
        _note(ax, f"{left:.1f} h", (left, row), offset=(6, 0), color=INK)
    ax.set(xlabel="hours", ylabel="")
    ax.set_xlim(0, 1.15 * max(sum(by_part.values()) for by_part in by_machine.values()))
    _legend(figure, [Patch(color=grey, label=part) for part, grey in zip(parts, greys, strict=True)])
    return figure


def profiles_before_after(before: Profile, after: Profile, *, kept: Sequence[int]) -> Figure:
    """Drop-one rises of the teacher and of the recovered student, on the teacher's numbering.

    Layer i of `after` is the original layer kept[i]. Raises ValueError where the numbers of layers do not fit.
    """
    if len(kept) != after.n_layers or not set(kept) <= set(range(before.n_layers)):
        raise ValueError(f"kept {list(kept)} does not map {after.n_layers} layers into layers 0..{before.n_layers - 1}")
    figure, ax = _axes(3.8, "Drop-one rise in NLL, before pruning and after recovery")
    old, new = (layer_intervals(profile, "drop_nll_nats") for profile in (before, after))
    for layer, rise in enumerate(old):
        _dot(ax, layer - 0.15, rise, color=INK, marker="o", filled=False, label="before")
    for layer, rise in zip(kept, new, strict=True):
        _dot(ax, layer + 0.15, rise, color=colour("recovered"), marker="s", label="after")
    dropped = [layer for layer in range(before.n_layers) if layer not in kept]
    for layer in dropped:
        ax.axvspan(layer - 0.45, layer + 0.45, **_BAND, label=f"dropped L{layer}")
    _finish_rises(ax, [*old, *new], before.n_layers)
    handles = [
        _handle("teacher, before pruning", marker="o", filled=False),
        _handle("student, after recovery", color=colour("recovered"), marker="s"),
        Patch(**_BAND, label="dropped: " + (", ".join(f"L{layer}" for layer in dropped) or "none")),
    ]
    _legend(figure, [*handles, _zero(ax)], ncols=2)
    ax.set_xlabel("layer dropped alone (from 0, original numbering)")
    return figure


def seeds(
    points: Mapping[str, Sequence[float]], intervals: Intervals, *, noise: Interval | None = None, ylabel: str = _RATIO
) -> Figure:
    """Every seed's ratio a point, beside the mean with its t-interval; `noise` is the test set's own bootstrap around one seed.

    What is infinite is said in words.
    """
    figure, ax = _axes(3.6, "Spread over seeds")
    for at, (name, values) in enumerate(points.items()):
        spread = 0.09 * (np.arange(len(values)) - (len(values) - 1) / 2)  # by index: the same picture each time
        ax.plot(at + spread - 0.15, values, linestyle="none", markersize=6, **_style(name))
        if name in intervals:
            n_infinite = sum(map(math.isinf, values))
            label = f"{n_infinite} of {len(values)} seeds" if n_infinite else "mean"
            _dot(ax, at + 0.2, intervals[name], color="black", marker="_", label=label)
    mean = _handle("mean over seeds, 95 % t-interval", color="black", marker="_")
    handles = [_handle("one seed", marker="o", line=False), mean, ax.axhline(1, **_TEACHER)]
    if noise is not None and math.isfinite(noise.point):
        handles.append(ax.axhspan(noise.low, noise.high, **_BAND, label="bootstrap over documents"))
    ax.set_xticks(range(len(points)), [_words(name) for name in points])
    ax.set_xlim(-0.6, len(points) - 0.4)
    ax.set(xlabel="arm", ylabel=ylabel)
    _legend(figure, handles, ncols=2)
    return figure


def frontier(points: Mapping[str, tuple[float, Interval]], *, xlabel: str) -> Figure:
    """What is kept (or gained) on x against PPL ratio on y; the teacher is at (1, 1)."""
    figure, ax = _axes(4.2, "Perplexity against size or speed")
    for name, (x, ratio) in points.items():
        _dot(ax, x, ratio, **_style(name))
    ax.axhline(1, **_TEACHER)
    ax.plot(1, 1, color=METHOD_COLOURS["teacher"], marker="*", markersize=12, linestyle="none")
    _stretch(ax, "y", [1.0, *_ends(ratio for _, ratio in points.values())], limit=3)
    ax.margins(x=0.12)
    finite = {name: (x, ratio.point) for name, (x, ratio) in points.items() if math.isfinite(ratio.point)}
    _label_points(ax, finite | {"teacher": (1.0, 1.0)}, lift=0.04)  # clear of the teacher's line
    ax.set(xlabel=xlabel, ylabel=_RATIO)
    return figure


def before_after_scatter(costs: Mapping[str, tuple[float, float]], *, old: str, new: str) -> Figure:
    """Each set of layers: its rise in NLL before recovery (calibration) on x, after it (validation) on y, both in nats per token."""
    figure, ax = _axes(4.2, "Sets of layers before and after recovery")
    for name, (before, after) in costs.items():
        chosen = name in (old, new)
        style = {"color": ACCENT if chosen else INK, "marker": "X" if name == new else "s" if name == old else "o"}
        ax.plot(before, after, linestyle="none", markersize=8 if chosen else 6, **style)
    scale = _stretch(ax, "x", [before for before, _ in costs.values()], limit=30)
    _stretch(ax, "y", [after for _, after in costs.values()], limit=30)
    _label_points(ax, {name.replace(",", " + "): point for name, point in costs.items()})
    ax.set_xlabel(f"before: {_RISE}{', log scale' if scale == 'log' else ''}")
    ax.set_ylabel(f"after: {_RISE}")
    handles = [_handle("set of layers", marker="o", line=False), _handle("best before", marker="s", color=ACCENT, line=False)]
    _legend(figure, [*handles, _handle("best after", marker="X", color=ACCENT, line=False)])
    return figure


def grid(rows: Sequence[Mapping[str, Any]], *, title: str) -> Figure:
    """PPL ratio against the number of dropped layers: a row of a sweep's table is one pair of markers; the line joins means over seeds.

    A row that diverged has nothing after recovery: a word stands beside its hollow marker.
    """
    figure, ax = _axes(3.6, f"{title}: every cell of the sweep")
    rules = list(dict.fromkeys(row["rule"] for row in rows))
    for shift, rule in zip(np.linspace(-0.25, 0.25, len(rules)) if len(rules) > 1 else [0.0], rules, strict=True):
        own = [row for row in rows if row["rule"] == rule]
        style = _style(rule)
        for row in own:
            x, n = row["drop_count"] + shift, row["n_documents"]
            before, after = (
                Interval(row[f"{when}_point"], row[f"{when}_low"], row[f"{when}_high"], n, n) for when in ("before", "after")
            )
            _dot(ax, x, before, filled=False, **style)
            if row["diverged"]:
                _note(ax, "diverged", (x, before.point), offset=(6, 0), color=style["color"])
            else:
                _dot(ax, x, after, **style)
        finished = [row for row in own if not row["diverged"]]
        counts = sorted({row["drop_count"] for row in finished})
        means = [np.mean([row["after_point"] for row in finished if row["drop_count"] == count]) for count in counts]
        ax.plot([count + shift for count in counts], means, color=style["color"], linewidth=1)
    ax.set_xticks(sorted({row["drop_count"] for row in rows}))
    ax.set_xlabel("layers dropped")
    scale = _stretch(
        ax, "y", [1.0, *(row[f"{when}_{end}"] for row in rows for when in ("before", "after") for end in ("low", "high"))]
    )
    ax.set_ylabel(_RATIO + (", log scale" if scale == "log" else ""))
    handles = [_handle(_words(rule), marker=_style(rule)["marker"], color=_style(rule)["color"]) for rule in rules]
    _legend(figure, [*handles, _handle("before recovery", marker="o", filled=False), ax.axhline(1, **_TEACHER)])
    return figure


def png(figure: Figure) -> bytes:
    """PNG bytes that depend on the figure alone: equal figures give equal bytes. The figure's layout is final from here on."""
    figure.draw_without_rendering()
    figure.draw_without_rendering()  # where an axes keeps its aspect, the layout settles in the second pass
    figure.set_layout_engine("none")  # a second layout may move things by a hair
    raw, small = io.BytesIO(), io.BytesIO()
    figure.savefig(raw, format="raw", dpi=DPI)
    size = figure.canvas.get_width_height()
    image = Image.frombytes("RGBA", size, raw.getvalue()).convert("RGB")
    # 256 colours are a third of the bytes; this method keeps the rare colours, such as one marker's
    image.quantize(256, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(small, format="png", optimize=True)
    return small.getvalue()


def _method(name: str) -> str | None:
    """The longest known method that the name starts with, as whole words."""
    plain = _words(name).lower()
    known = [key for key in METHOD_COLOURS if plain.startswith(_words(key)) and not plain[len(key) : len(key) + 1].isalpha()]
    return max(known, key=len, default=None)


def _style(name: str) -> dict[str, str]:
    return {"color": colour(name), "marker": marker(name), "label": name}


def _words(name: str) -> str:
    return re.sub(r"_|(?<!\de)-", " ", name)  # the minus of 5e-05 stays


def _axes(height: float, title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained")
    ax = figure.subplots()
    ax.set_title(title, loc="left", fontsize=11)
    return figure, _plain(ax)


def _plain(ax: Axes) -> Axes:
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=FONT)
    return ax


def _row_axes(labels: Sequence[str], title: str) -> tuple[Figure, Axes]:
    """An axes with one named row a label, the first on top."""
    figure, ax = _axes(1.7 + 0.32 * len(labels), title)
    ax.set_yticks(range(len(labels)), labels)
    ax.set_ylim(len(labels) - 0.4, -0.6)
    ax.set_ylabel("arm")
    ax.grid(axis="y", color="#EEEEEE", zorder=0)
    return figure, ax


def _ratio_rows(ratios: Intervals, *, after: Intervals, title: str) -> Figure:
    if not set(after) <= set(ratios):
        raise ValueError(f"after recovery there are arms that were not there before it: {sorted(set(after) - set(ratios))}")
    figure, ax = _row_axes([_words(name) for name in ratios], title)
    for row, (name, ratio) in enumerate(ratios.items()):
        _dot(ax, row - 0.14 * (name in after), ratio, filled=not after, horizontal=True, **_style(name))
        if name in after:
            _dot(ax, row + 0.14, after[name], horizontal=True, **_style(name))
    scale = _stretch(ax, "x", [1.0, *_ends([*ratios.values(), *after.values()])], limit=3)
    ax.set_xlabel(_RATIO + (", log scale" if scale == "log" else ""))
    one = [_handle("95 % interval over documents", marker="o")]
    two = [_handle("before recovery", marker="o", filled=False), _handle("after recovery, 95 % interval", marker="o")]
    _legend(figure, [*(two if after else one), ax.axvline(1, **_TEACHER)])
    return figure


def _dot(ax: Axes, at: float, interval: Interval, *, filled: bool = True, horizontal: bool = False, **style: str) -> None:
    """A point with its interval (style: color, marker, label); what is not finite is said in words, as no line could show it."""
    if not math.isfinite(interval.point):
        across, along = ("axes fraction", "data"), ("data", "axes fraction")
        spot = {"xy": (0.99, at), "xycoords": across} if horizontal else {"xy": (at, 0.97), "xycoords": along}
        said = "not a number" if math.isnan(interval.point) else "infinite, off the scale"
        ax.annotate(f"{_words(style['label'])}: {said}", **spot, **_text(style["color"]), ha="right")
        return
    if math.isfinite(interval.low) and math.isfinite(interval.high):
        (ax.hlines if horizontal else ax.vlines)(at, interval.low, interval.high, color=style["color"], linewidth=1.5, zorder=2)
    elif horizontal:
        _note(ax, "no interval", (interval.point, at), offset=(8, 0), color=style["color"])
    if interval.note and horizontal:
        end = interval.high if math.isfinite(interval.high) else interval.point
        _note(ax, interval.note, (end, at), offset=(8, -9), color=style["color"])
    x, y = (interval.point, at) if horizontal else (at, interval.point)
    size = 11 if style["marker"] == "_" else 6.5
    face = style["color"] if filled else "white"
    ax.plot(x, y, linestyle="none", markersize=size, markeredgewidth=1.5, markerfacecolor=face, zorder=3, **style)


def _finish_rises(ax: Axes, rises: Sequence[Interval], n_layers: int) -> None:
    _stretch(ax, "y", _ends(rises))
    _layer_axis(ax, n_layers, WIDTH - 1)
    ax.set_ylabel(_RISE)


def _text(color: str) -> dict[str, Any]:
    return {"fontsize": FONT, "color": color, "va": "center"}


def _note(ax: Axes, text: str, xy: tuple[float, float], *, offset: tuple[float, float], color: str) -> None:
    ax.annotate(text, xy, xytext=offset, textcoords="offset points", **_text(color))


def _ends(intervals: Iterable[Interval]) -> list[float]:
    """All that an axis must hold, of intervals that can be drawn."""
    return [end for i in intervals for end in ((i.point, i.low, i.high) if math.isfinite(i.high - i.low) else (i.point,))]


def _stretch(ax: Axes, axis: str, values: Sequence[float], *, limit: float = 30) -> str:
    """Sets a log axis where positive values span more than `limit` times, symlog where some are <= 0; says which it is."""
    scale, threshold = _fitting_scale(values, limit=limit)
    if scale != "linear":
        getattr(ax, f"set_{axis}scale")(scale, **({"linthresh": threshold, "linscale": 0.5} if scale == "symlog" else {}))
        _plain_numbers(getattr(ax, f"{axis}axis"), scale, values)
    return scale


def _plain_numbers(axis: Axis, scale: str, values: Sequence[float]) -> None:
    """0.1, 1, 10 in place of powers, and 2 and 5 between them where the axis is short."""
    finite = [value for value in values if math.isfinite(value)]
    if scale == "log":
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if max(finite) < 500 * min(finite) else (1,)))
    axis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_minor_formatter(NullFormatter())


def _fitting_scale(values: Sequence[float], *, limit: float) -> tuple[str, float]:
    """linear, log or symlog, and the size below which symlog is linear."""
    finite = np.array([value for value in values if math.isfinite(value)])
    sizes = np.abs(finite[finite != 0])
    if not len(sizes):
        return "linear", 0.0
    positive = bool((finite > 0).all())
    # a single value next to 0 must not stretch the axis over many empty decades
    small = float(sizes.min() if positive else np.quantile(sizes, 0.25))
    if sizes.max() <= limit * small:
        return "linear", 0.0
    return ("log" if positive else "symlog"), 10.0 ** math.floor(math.log10(small))


def _triangle(
    ax: Axes, cells: Mapping[tuple[int, int], float], n_layers: int, cmap: str, label: str, *, clip: float = 0.0
) -> None:
    """Coloured cells (i, j), i < j, in the lower triangle; a pair not measured stays empty. `clip` centres the colours at 0."""
    values = list(cells.values())
    scale, threshold = ("linear", 0.0) if clip else _fitting_scale(values, limit=30)
    ends = (-clip, clip) if clip else (min(values), max(values))
    norms = {"linear": Normalize, "log": LogNorm, "symlog": partial(SymLogNorm, threshold)}
    grid = np.full((n_layers, n_layers), np.nan)
    for (i, j), value in cells.items():
        grid[j, i] = value
    mesh = _plain(ax).imshow(grid, cmap=cmap, norm=norms[scale](vmin=ends[0], vmax=ends[1]), interpolation="nearest")
    _layer_axis(ax, n_layers, WIDTH / 2 - 1)
    ax.set_yticks(_thinned(range(n_layers), WIDTH / 2 - 1))
    ax.set(xlabel="first layer (from 0)", ylabel="second layer (from 0)")
    bar = ax.figure.colorbar(mesh, ax=ax, location="bottom", extend="both" if clip else "neither")
    if scale != "linear":
        _plain_numbers(bar.ax.xaxis, scale, values)
    bar.set_label(label, fontsize=FONT)
    bar.ax.tick_params(labelsize=FONT)


def _layer_axis(ax: Axes, n_layers: int, inches: float) -> None:
    ax.set_xticks(_thinned(range(n_layers), inches))
    ax.set_xlim(-0.7, n_layers - 0.3)
    ax.set_xlabel("layer (from 0)")


def _thinned(ticks: Sequence[int], inches: float) -> list[int]:
    """As many ticks as have room for their labels: 5 an inch."""
    return list(ticks)[:: max(1, math.ceil(len(ticks) / (5 * inches)))]


def _zero(ax: Axes) -> Line2D:
    """Draws the teacher, who rises by 0, where the axis has a 0; the legend says where not."""
    if ax.get_yscale() == "log":
        return Line2D([], [], linestyle="none", label="teacher = 0, below a log axis")
    return ax.axhline(0, **{**_TEACHER, "label": "teacher" + " (symlog axis)" * (ax.get_yscale() == "symlog")})


def _handle(label: str, *, marker: str, color: str = INK, filled: bool = True, line: bool = True) -> Line2D:
    style = {"markerfacecolor": color if filled else "white", "linestyle": "-" if line else "none"}
    return Line2D([], [], color=color, marker=marker, label=label, **style)


def _legend(figure: Figure, handles: Sequence[Line2D | Patch], *, ncols: int = 3) -> None:
    """Below the axes, where it covers no point."""
    figure.legend(handles=handles, loc="outside lower center", ncols=ncols, frameon=False, fontsize=FONT)


def _label_points(ax: Axes, points: Mapping[str, tuple[float, float]], *, lift: float = 0.0) -> None:
    """Names beside points, moved up where two would overlap, with a thin line back to the point."""
    ax.set(xlim=ax.get_xlim(), ylim=ax.get_ylim())  # fixed, as the places below are fractions of them
    to_fraction = ax.transScale + ax.transLimits
    gap = 0.065  # a line of text, as a fraction of the axes
    placed: list[tuple[float, float]] = []
    for name, xy in sorted(points.items(), key=lambda item: item[1][1]):
        x, y = np.add(to_fraction.transform(xy), (0, lift))
        for other_x, other_y in sorted(placed, key=lambda place: place[1]):
            if abs(x - other_x) < 0.3 and abs(y - other_y) < gap:
                y = other_y + gap
        placed.append((x, y))
        line = {"arrowstyle": "-", "color": "#AAAAAA", "linewidth": 0.7, "relpos": (0, 0.5), "shrinkA": 1}
        place = {"xytext": (x + 0.03, y), "textcoords": "axes fraction", "annotation_clip": False}
        ax.annotate(_words(name), xy, arrowprops=line, **place, **_text(colour(name)))
