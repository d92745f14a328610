"""Records and intervals -> matplotlib figures; the caller passes the finding as the title.

Every figure's label (`figure.get_label()`) is its alt text: a description and every value.
"""

from depthprune_study.results.charts.answer import choice, path
from depthprune_study.results.charts.layers import criteria, pairs, profile
from depthprune_study.results.charts.lines import budget, curves, depth, rivals
from depthprune_study.results.charts.rows import (
    bytes_against_ppl,
    probes,
    ratios,
    seeds,
    speed,
    sweep,
)
from depthprune_study.results.style import png, sources_in, svg
