"""Intervals over a task's items and over timing rounds."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

from depthprune_core.records import Answers, Timing
from depthprune_study.results.statistics.interval import RESAMPLES, Interval

ROUNDS = 6  # of six, the range holds the median in 97 % of samples; of five, in 94 %
TOO_FEW = "too few rounds: their range"
# The accuracy of random answers in each family of probes.
CHANCE = {
    "agreement": 0.5,
    "copying": 0.25,
    "recall": 0.25,
    "arithmetic": 0.25,
    "articles": 0.25,
    "news": 0.25,
}


def proportion(answers: Answers) -> Interval:
    """Accuracy with Wilson's 95 % interval over the items."""
    n = len(answers.right)
    interval = stats.binomtest(sum(answers.right), n).proportion_ci(method="wilson")
    return Interval(answers.accuracy, float(interval.low), float(interval.high), n)


def accuracy_difference(first: Answers, second: Answers) -> Interval:
    """Accuracy(first) - accuracy(second), paired by item.

    The interval is Bonett and Price's (2012, equation 3): Wald's with one item added to each of the
    two ways to differ. Raises ValueError unless both answered the same task.
    """
    n = len(first.right)
    if first.task != second.task or n != len(second.right):
        raise ValueError(
            "the two sets of answers are of different tasks or items, so they cannot be compared"
        )
    pairs = list(zip(first.right, second.right, strict=True))
    alone, other = sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs)
    p, q = (alone + 1) / (n + 2), (other + 1) / (n + 2)
    half = stats.norm.ppf(0.975) * math.sqrt((p + q - (p - q) ** 2) / (n + 2))
    point = (alone - other) / n
    low, high = max(-1.0, p - q - half), min(1.0, p - q + half)
    return Interval(point, float(low), float(high), n)


def median_ratio(numerator: Sequence[float], denominator: Sequence[float]) -> Interval:
    """Median of paired ratios with a percentile bootstrap over pairs: for interleaved timings.

    Fewer than ROUNDS pairs have no 95 % interval: theirs is the range, with the note TOO_FEW.
    """
    ratios = np.divide(numerator, denominator)
    n = len(ratios)
    if n < ROUNDS:
        low, high = float(ratios.min()), float(ratios.max())
        return Interval(float(np.median(ratios)), low, high, n, TOO_FEW)
    rows = np.random.default_rng(0).integers(0, n, size=(RESAMPLES, n))
    low, high = np.percentile(np.median(ratios[rows], axis=1), [2.5, 97.5])
    return Interval(float(np.median(ratios)), float(low), float(high), n)


def decode_gain(timing: Timing) -> Interval:
    """How many times faster the student decodes than its teacher, round by round."""
    return median_ratio(timing.teacher_decode_ms_per_token, timing.student_decode_ms_per_token)


def is_suspect(gain: Interval, timing: Timing) -> bool:
    """Whether the whole interval lies above what the layer count could give at best."""
    return gain.low > timing.by_layer_count
