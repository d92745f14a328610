"""Intervals and tests: paired over documents, over items, over seeds. Numpy and scipy only."""

from depthprune_study.results.statistics.documents import (
    DIVERGED,
    difference_p,
    gain_difference,
    mean_per_token,
    mean_score,
    nll_rise,
    ppl_ratio,
)
from depthprune_study.results.statistics.interval import NO_BCA, RESAMPLES, Interval
from depthprune_study.results.statistics.items import (
    accuracy_difference,
    decode_gain,
    holm,
    mcnemar,
    median_ratio,
    over_seeds,
    proportion,
)
from depthprune_study.results.statistics.rankings import (
    layer_intervals,
    rank_correlation,
    rank_draws,
    rank_stability,
    spearman,
)
from depthprune_study.results.statistics.tables import (
    accuracies,
    by_budget,
    by_depth,
    by_factor,
    by_seed,
    by_share,
    kept_levels,
    ratios,
    rises,
)

__all__ = [
    "DIVERGED",
    "NO_BCA",
    "RESAMPLES",
    "Interval",
    "accuracies",
    "accuracy_difference",
    "by_budget",
    "by_depth",
    "by_factor",
    "by_seed",
    "by_share",
    "decode_gain",
    "difference_p",
    "gain_difference",
    "holm",
    "kept_levels",
    "layer_intervals",
    "mcnemar",
    "mean_per_token",
    "mean_score",
    "median_ratio",
    "nll_rise",
    "over_seeds",
    "ppl_ratio",
    "proportion",
    "rank_correlation",
    "rank_draws",
    "rank_stability",
    "ratios",
    "rises",
    "spearman",
]
