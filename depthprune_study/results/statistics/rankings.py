"""Statistics of rankings, of layers for example."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats

from depthprune_core.records import Profile
from depthprune_study.results.statistics.documents import mean_per_token
from depthprune_study.results.statistics.interval import Interval, bootstrap

COSTLY = 2.0  # times the median layer's rise: above it a layer counts as costly


def layer_intervals(profile: Profile) -> list[Interval]:
    """The rise in NLL without each layer, nats per token."""
    rises = profile.by_document["drop_nll_nats"]
    return [mean_per_token(row, profile.teacher.n_tokens) for row in rises]


def costly_layers(profile: Profile) -> list[int]:
    """Layers whose whole interval lies above COSTLY times the median layer's rise."""
    limit = COSTLY * max(0.0, float(np.median(profile.drop_one)))  # random weights go below 0
    return [layer for layer, rise in enumerate(layer_intervals(profile)) if rise.low > limit]


def rank_draws(profile: Profile, *, draws: int = 1_000) -> np.ndarray:
    """Ranks by the drop-one cost in resampled documents, 0 = least sensitive: (draws, n_layers)."""
    rises = np.asarray(profile.by_document["drop_nll_nats"])  # (n_layers, n_documents)
    weights = np.asarray(profile.teacher.n_tokens, dtype=np.float64)
    rows = np.random.default_rng(0).integers(0, len(weights), size=(draws, len(weights)))
    means = rises[:, rows].sum(axis=2) / weights[rows].sum(axis=1)  # (n_layers, draws)
    return np.argsort(np.argsort(means, axis=0, kind="stable"), axis=0).T


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> Interval:
    """Spearman's rho of paired values with a bootstrap interval over the pairs.

    0 if one side does not vary; no interval (-1 to 1) for fewer than four pairs.
    """
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    n, rho = len(x), float(_rho(x, y))
    if n < 4:
        return Interval(rho, -1.0, 1.0, n, f"{n} pairs are too few for an interval")
    low, high, note = bootstrap((x, y), _rho)
    return Interval(rho, low, high, n, note)


def _rho(x: np.ndarray, y: np.ndarray, axis: int = -1) -> np.ndarray:
    """Spearman's rho along an axis, ties at their mean rank; 0 if one side does not vary."""
    x, y = stats.rankdata(x, axis=axis), stats.rankdata(y, axis=axis)
    x = x - x.mean(axis=axis, keepdims=True)
    y = y - y.mean(axis=axis, keepdims=True)
    scale = np.sqrt((x**2).sum(axis=axis) * (y**2).sum(axis=axis))
    return np.where(scale > 0, (x * y).sum(axis=axis) / np.where(scale > 0, scale, 1), 0.0)
