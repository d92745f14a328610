"""The table as a figure, and what a search costs against depth and subset size."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.measure import Row
from benchmarks.rows import greedy_passes, passes
from depthprune_core import figures
from depthprune_core.records import Timing

HEAD = 8.0  # layers that the head weighs in the cost panels: SmolLM2's
INK, OURS = "#888888", "#0072B2"


def save(path: Path, rows: list[Row], timings: Mapping[str, Timing]) -> None:
    """`<path>` for ratios and costs, `<path>-decode` for the speed of the published shapes."""
    path.write_bytes(figures.png(_ratios_and_costs(rows)))
    path.with_name(f"{path.stem}-decode.png").write_bytes(figures.png(figures.speed(timings)))


def _ratios_and_costs(rows: list[Row]) -> Figure:
    figure = Figure(figsize=(9, 3.2 + 0.32 * len(rows)), dpi=100, layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=(0.6 + 0.32 * len(rows), 2.6))
    ax = top.subplots()
    for y, row in enumerate(reversed(rows)):
        ratio = row.ratio
        ax.plot([ratio.low, ratio.high] if ratio.n > 1 else [ratio.point] * 2, [y, y], color=OURS, linewidth=2)
        ax.plot(ratio.point, y, "o", color=OURS)
        if row.counts_allow:
            ax.plot(row.counts_allow, y, "|", color="black", markersize=14, markeredgewidth=2)
        if row.target:
            ax.plot(row.target, y, "d", color="black", markerfacecolor="none", markersize=8)
    ax.axvline(1, color="black", linestyle="--", linewidth=1)
    ax.set_yticks(range(len(rows)), [f"{row.work}, {row.model}" for row in reversed(rows)], fontsize=8)
    ax.set_xlabel("plain time / our time (| operation counts allow, ◇ target)")
    by_depth, by_size = bottom.subplots(1, 2)
    depths = range(4, 49)
    for k, style in ((1, "-"), (2, "--"), (3, ":")):
        by_depth.plot(depths, [passes(n, k, HEAD, tree=False) for n in depths], style, color=INK)
        by_depth.plot(depths, [passes(n, k, HEAD, tree=True) for n in depths], style, color=OURS, label=f"up to {k} dropped")
    by_depth.set(xlabel="layers of the model", ylabel="layer passes", yscale="log", title="against depth")
    by_depth.legend(fontsize=8)
    sizes = range(1, 7)
    by_size.plot(sizes, [passes(30, k, HEAD, tree=False) for k in sizes], "o-", color=INK, label="every set, full forwards")
    by_size.plot(sizes, [passes(30, k, HEAD, tree=True) for k in sizes], "o-", color=OURS, label="every set, prefix tree")
    by_size.plot(sizes, [greedy_passes(30, k, HEAD) for k in sizes], "s--", color=INK, label="greedy, full forwards")
    by_size.set(xlabel="layers dropped of 30", yscale="log", title="against subset size")
    by_size.set_xticks(list(sizes), [f"{k}\n({math.comb(30, k):,})" for k in sizes], fontsize=8)
    by_size.legend(fontsize=8)
    return figure
