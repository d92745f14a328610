"""A point with its 95 % interval, and the bootstrap behind most intervals."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import stats

RESAMPLES = 4_000
BCA_BELOW = 50  # units; with more, the correction is negligible
NO_BCA = "percentile interval, since BCa is not defined here"


@dataclass(frozen=True)
class Interval:
    """A point with its 95 % interval, and the number of units it was drawn from."""

    point: float
    low: float
    high: float
    n: int
    note: str = ""  # a remark for the reader

    def __str__(self) -> str:
        note = f" ({self.note})" if self.note else ""
        return f"{self.point:.3f} [{self.low:.3f}, {self.high:.3f}]{note}"


def bootstrap(samples: tuple[np.ndarray, ...], statistic: Callable) -> tuple[float, float, str]:
    """95 % bounds of a paired bootstrap with a fixed seed, and a note if BCa is not defined."""
    method = "BCa" if len(samples[0]) < BCA_BELOW else "percentile"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # DegenerateDataWarning: the note says the same
        with np.errstate(all="ignore"):
            result = stats.bootstrap(
                samples,
                statistic,
                paired=True,
                vectorized=True,
                n_resamples=RESAMPLES,
                method=method,
                rng=np.random.default_rng(0),
            )
    low, high = result.confidence_interval
    if math.isfinite(low) and math.isfinite(high):
        return float(low), float(high), ""
    low, high = np.percentile(result.bootstrap_distribution, [2.5, 97.5])
    return float(low), float(high), NO_BCA
