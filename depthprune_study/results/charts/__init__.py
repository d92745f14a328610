"""Records and intervals -> matplotlib figures; the title is the finding that the caller gives.

Every figure's label (`figure.get_label()`) is its alt text: what is drawn, and every value.
"""

from depthprune_study.results.charts.compare import probes, ratios, seeds
from depthprune_study.results.charts.frontier import budget, depth, rivals
from depthprune_study.results.charts.healing import curves, path
from depthprune_study.results.charts.heatmaps import criteria, pairs
from depthprune_study.results.charts.layers import profile, stability
from depthprune_study.results.charts.scatter import bytes_against_ppl, choice
from depthprune_study.results.charts.trials import speed, sweep
from depthprune_study.results.style import png, sources_in, svg

__all__ = [
    "budget",
    "bytes_against_ppl",
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
    "sources_in",
    "speed",
    "stability",
    "svg",
    "sweep",
]
