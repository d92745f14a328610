"""What the records say, in sentences that are true whatever came out. Notebooks and report call these."""

from depthprune_study.report.of_healing import (
    control,
    divergences,
    elsewhere,
    path,
    probes,
    seeds,
    staged,
    transfer,
)
from depthprune_study.report.of_layers import (
    choice,
    criteria,
    pairs,
    profile,
    rules,
    sizes,
    speed,
    stability,
    winner,
)
from depthprune_study.report.of_limits import (
    adapters,
    budget,
    depth,
    recipe,
    rivals,
    rounding,
    width,
)
from depthprune_study.report.wording import Finding, cheap_tail

__all__ = [
    "Finding",
    "adapters",
    "budget",
    "cheap_tail",
    "choice",
    "control",
    "criteria",
    "depth",
    "divergences",
    "elsewhere",
    "pairs",
    "path",
    "probes",
    "profile",
    "recipe",
    "rivals",
    "rounding",
    "rules",
    "seeds",
    "sizes",
    "speed",
    "stability",
    "staged",
    "transfer",
    "width",
    "winner",
]
