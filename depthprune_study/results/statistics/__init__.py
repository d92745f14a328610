"""Intervals and tables, paired over documents or items. Numpy and scipy only."""

from depthprune_study.results.statistics.documents import (
    DIVERGED,
    gain_difference,
    kl_ratio,
    mean_per_token,
    mean_score,
    nll_rise,
    ppl_ratio,
    ranked,
)
from depthprune_study.results.statistics.interval import NO_BCA, RESAMPLES, Interval
from depthprune_study.results.statistics.items import (
    CHANCE,
    TOO_FEW,
    accuracy_difference,
    decode_gain,
    is_suspect,
    median_ratio,
    proportion,
)
from depthprune_study.results.statistics.rankings import (
    COSTLY,
    costly_layers,
    layer_intervals,
    rank_correlation,
    rank_draws,
)
from depthprune_study.results.statistics.tables import (
    CONTROL,
    accuracies,
    average,
    by_budget,
    by_depth,
    by_factor,
    by_seed,
    by_share,
    cheap_pairs,
    kept_levels,
    ratios,
    rises,
    share_removed,
)
