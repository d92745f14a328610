"""Records and intervals -> matplotlib figures, whose title is the finding that the caller gives."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

from depthprune_study.results.style import new_figure, png, svg


def _plain(name: str):
    def chart(*records: Any, title: str, **more: Any) -> Figure:
        figure, _ = new_figure(title, 3.0)
        figure.set_label(title)
        return figure

    chart.__name__ = name
    return chart


profile, criteria, stability, pairs = map(_plain, ("profile", "criteria", "stability", "pairs"))
path, ratios, curves, speed = map(_plain, ("path", "ratios", "curves", "speed"))
seeds, rivals, bytes_against_ppl = map(_plain, ("seeds", "rivals", "bytes_against_ppl"))
choice, depth, budget = map(_plain, ("choice", "depth", "budget"))
sweep, probes = map(_plain, ("sweep", "probes"))

__all__ = [
    "bytes_against_ppl",
    "budget",
    "choice",
    "criteria",
    "curves",
    "depth",
    "pairs",
    "path",
    "png",
    "probes",
    "profile",
    "ratios",
    "rivals",
    "seeds",
    "speed",
    "stability",
    "svg",
    "sweep",
]
