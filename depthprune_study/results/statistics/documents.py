"""Intervals over documents: perplexity ratios and differences, always paired."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from depthprune_core.records import Divergence, Score
from depthprune_study.results.statistics.interval import Interval, bootstrap

DIVERGED = "diverged; its start is shown"


def ppl_ratio(student: Score, whole: Score) -> Interval:
    """PPL(student) / PPL(whole) = exp(sum of NLL differences / tokens), resampling documents."""
    rise = nll_rise(student, whole)
    point, low, high = (_exp(value) for value in (rise.point, rise.low, rise.high))
    return replace(rise, point=point, low=low, high=high)


def nll_rise(student: Score, whole: Score) -> Interval:
    """Mean NLL(student) - mean NLL(whole), nats per token.

    Raises ValueError unless both scored the same tokens.
    """
    _same_tokens(student, whole)
    difference = np.subtract(student.nll_nats, whole.nll_nats)
    return _noted(mean_per_token(difference, student.n_tokens), student, whole)


def kl_ratio(student: Divergence, other: Divergence) -> Interval:
    """KL(teacher || student) ÷ that of another student, resampling documents.

    Raises ValueError unless both were compared at the same tokens.
    """
    _same_tokens(student, other)
    return mean_per_token(student.kl_nats, other.kl_nats)  # both sums are over the same tokens


def gain_difference(
    before: Score, after: Score, control_before: Score, control_after: Score
) -> Interval:
    """How much more NLL fell from `before` to `after` than it did for the control.

    Nats per token. Raises ValueError unless all scored the same tokens.
    """
    for other in (after, control_before, control_after):
        _same_tokens(before, other)
    gain = np.subtract(before.nll_nats, after.nll_nats)
    control = np.subtract(control_before.nll_nats, control_after.nll_nats)
    interval = mean_per_token(gain - control, before.n_tokens)
    return _noted(interval, before, after, control_before, control_after)


def mean_score(scores: Sequence[Score]) -> Score:
    """The mean NLL of each document over several models (seeds).

    Raises ValueError unless all scored the same tokens.
    """
    for other in scores:
        _same_tokens(scores[0], other)
    mean = tuple(np.mean([score.nll_nats for score in scores], axis=0).tolist())
    diverged = next((score.diverged for score in scores if score.diverged), "")
    return replace(scores[0], nll_nats=mean, diverged=diverged)


def ranked(scores: Mapping[str, Score]) -> list[str]:
    """Names by mean NLL, lowest first; diverged runs last, the whole model left out."""
    names = [name for name in scores if name != "whole"]
    return sorted(names, key=lambda n: (bool(scores[n].diverged), scores[n].mean_nll_nats))


def mean_per_token(sums: Sequence[float], n_tokens: Sequence[int]) -> Interval:
    """sum(sums) / sum(tokens), with a paired bootstrap over documents.

    BCa (Efron 1987) below 50 documents, else percentile.
    """
    sums, weights = np.asarray(sums, dtype=np.float64), np.asarray(n_tokens, dtype=np.float64)
    point = float(sums.sum() / weights.sum())
    n = len(sums)
    if not math.isfinite(point):
        return Interval(point, point, point, n)
    if n < 2:
        return Interval(point, -math.inf, math.inf, n, "one document")
    if not np.any(sums * weights[0] != weights * sums[0]):  # a model compared with itself
        return Interval(point, point, point, n)
    low, high, note = bootstrap(
        (sums, weights), lambda s, w, axis: s.sum(axis=axis) / w.sum(axis=axis)
    )
    return Interval(point, low, high, n, note)


def _noted(interval: Interval, *scores: Score) -> Interval:
    """The interval with a note if one of the scores is of a diverged run."""
    notes = [DIVERGED] if any(score.diverged for score in scores) else []
    return replace(interval, note="; ".join([*notes, *([interval.note] if interval.note else [])]))


def _exp(value: float) -> float:
    return math.inf if value >= 700 else math.exp(value)  # NaN stays NaN


def _same_tokens(a: Score | Divergence, b: Score | Divergence) -> None:
    if a.documents != b.documents or a.n_tokens != b.n_tokens:
        raise ValueError(
            "the two results are of different documents or tokens, so they cannot be compared"
        )
