"""Intervals: paired bootstrap over documents, t over seeds, Holm over arms. Numpy and scipy only."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from depthprune_core.records import Answers, Profile, Score, Timing

RESAMPLES = 4_000


@dataclass(frozen=True)
class Interval:
    """A point with its 95 % interval, the number of units it rests on, and how many they are worth.

    `effective_n` is (sum w)^2 / sum w^2 over the documents' token counts: a few long documents are worth less.
    """

    point: float
    low: float
    high: float
    n: int
    effective_n: float
    note: str = ""  # what a reader must know beside the numbers

    def __str__(self) -> str:
        return f"{self.point:.3f} [{self.low:.3f}, {self.high:.3f}]" + (f" ({self.note})" if self.note else "")


def ppl_ratio(student: Score, teacher: Score) -> Interval:
    """PPL(student) / PPL(teacher) = exp(sum of NLL differences / tokens), resampling whole documents."""
    rise = nll_rise(student, teacher)
    point, low, high = (_exp(value) for value in (rise.point, rise.low, rise.high))
    return replace(rise, point=point, low=low, high=high)


def nll_rise(student: Score, teacher: Score) -> Interval:
    """Mean NLL(student) - mean NLL(teacher), nats per token. Raises ValueError unless both scored the same tokens."""
    _same_tokens(student, teacher)
    difference = np.subtract(student.nll_nats, teacher.nll_nats)
    return replace(mean_per_token(difference, student.n_tokens), note=_note(student, teacher))


def mean_score(scores: Sequence[Score]) -> Score:
    """The mean NLL of each document over several models (seeds). Raises ValueError unless all scored the same tokens."""
    for other in scores:
        _same_tokens(scores[0], other)
    mean = tuple(np.mean([score.nll_nats for score in scores], axis=0).tolist())
    return replace(scores[0], nll_nats=mean, diverged=next((score.diverged for score in scores if score.diverged), ""))


def gain_difference(before: Score, after: Score, control_before: Score, control_after: Score) -> Interval:
    """How much more NLL fell from `before` to `after` than from `control_before` to `control_after` (C14)."""
    for other in (after, control_before, control_after):
        _same_tokens(before, other)
    gain = np.subtract(before.nll_nats, after.nll_nats) - np.subtract(control_before.nll_nats, control_after.nll_nats)
    return replace(mean_per_token(gain, before.n_tokens), note=_note(before, after, control_before, control_after))


def mean_per_token(sums: Sequence[float], n_tokens: Sequence[int]) -> Interval:
    """sum(sums) / sum(tokens) with a percentile bootstrap over documents (scipy.stats.bootstrap, fixed seed)."""
    sums, weights = np.asarray(sums, dtype=np.float64), np.asarray(n_tokens, dtype=np.float64)
    point = float(sums.sum() / weights.sum())
    effective = float(weights.sum() ** 2 / (weights**2).sum())
    if math.isnan(point):
        return Interval(point, point, point, len(sums), effective)
    if len(sums) < 2:
        return Interval(point, -math.inf, math.inf, len(sums), effective)
    result = stats.bootstrap(
        (sums, weights),
        lambda s, w, axis: s.sum(axis=axis) / w.sum(axis=axis),
        paired=True,
        vectorized=True,
        n_resamples=RESAMPLES,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    low, high = result.confidence_interval
    return Interval(point, float(low), float(high), len(sums), effective)


def bootstrap_p(sums: Sequence[float], n_tokens: Sequence[int]) -> float:
    """Two-sided bootstrap p-value of sum(sums) / sum(tokens) against 0, never below 2 / (resamples + 1): no more is known of a tail in which
    no resample fell (Davison and Hinkley 1997, section 4.2).
    """
    sums, weights = np.asarray(sums, dtype=np.float64), np.asarray(n_tokens, dtype=np.float64)
    rng = np.random.default_rng(0)
    rows = rng.integers(0, len(sums), size=(RESAMPLES, len(sums)))
    means = sums[rows].sum(axis=1) / weights[rows].sum(axis=1)
    in_tail = min((means <= 0).sum(), (means >= 0).sum())
    return float(min(1.0, 2 * (in_tail + 1) / (RESAMPLES + 1)))


def mcnemar(first: Answers, second: Answers) -> float:
    """Two-sided exact p-value that both models are right equally often, from the items on which they differ (McNemar 1947).

    Raises ValueError unless both answered the same task.
    """
    if first.task != second.task or len(first.right) != len(second.right):
        raise ValueError("the two sets of answers are not of the same task and items, so they cannot be compared")
    alone = sum(a and not b for a, b in zip(first.right, second.right, strict=True))
    differ = sum(a != b for a, b in zip(first.right, second.right, strict=True))
    return float(stats.binomtest(alone, differ).pvalue) if differ else 1.0


def proportion(answers: Answers) -> Interval:
    """Accuracy with Wilson's 95 % interval over the items."""
    n = len(answers.right)
    interval = stats.binomtest(sum(answers.right), n).proportion_ci(method="wilson")
    return Interval(answers.accuracy, float(interval.low), float(interval.high), n, float(n))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's step-down adjusted p-values (Holm 1979): the family-wise error stays at the stated level."""
    adjusted: dict[str, float] = {}
    running = 0.0
    for rank, name in enumerate(sorted(p_values, key=lambda key: p_values[key])):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[name]))
        adjusted[name] = running
    return adjusted


def over_seeds(values: Sequence[float]) -> Interval:
    """Mean over seeds with a 95 % t-interval. Raises ValueError for fewer than two seeds."""
    if len(values) < 2:
        raise ValueError(f"an interval over seeds needs at least 2 seeds, got {len(values)}")
    mean = float(np.mean(values))
    if not math.isfinite(mean):  # one that overflows is enough
        return Interval(mean, mean, mean, len(values), float(len(values)))
    error = float(np.std(values, ddof=1) / math.sqrt(len(values)))
    half = float(stats.t.ppf(0.975, len(values) - 1)) * error
    return Interval(mean, mean - half, mean + half, len(values), float(len(values)))


def median_ratio(numerator: Sequence[float], denominator: Sequence[float]) -> Interval:
    """Median of paired ratios with a percentile bootstrap over the pairs: for interleaved timings."""
    ratios = np.divide(numerator, denominator)
    rng = np.random.default_rng(0)
    medians = np.median(ratios[rng.integers(0, len(ratios), size=(RESAMPLES, len(ratios)))], axis=1)
    low, high = np.percentile(medians, [2.5, 97.5])
    return Interval(float(np.median(ratios)), float(low), float(high), len(ratios), float(len(ratios)))


def decode_gain(timing: Timing) -> Interval:
    """How many times faster the student decodes than its teacher, round by round."""
    return median_ratio(timing.teacher_decode_ms_per_token, timing.student_decode_ms_per_token)


def layer_intervals(profile: Profile, criterion: str) -> list[Interval]:
    """One interval a layer, for a criterion that is kept by document."""
    return [mean_per_token(row, profile.teacher.n_tokens) for row in profile.by_document[criterion]]


def rank_draws(profile: Profile, *, draws: int = 1_000, seed: int = 0) -> np.ndarray:
    """Ranks (0 = least sensitive) of the drop-one criterion in resampled sets of documents: (draws, n_layers)."""
    rises = np.asarray(profile.by_document["drop_nll_nats"])  # (n_layers, n_documents)
    weights = np.asarray(profile.teacher.n_tokens, dtype=np.float64)
    rows = np.random.default_rng(seed).integers(0, len(weights), size=(draws, len(weights)))
    means = rises[:, rows].sum(axis=2) / weights[rows].sum(axis=1)  # (n_layers, draws)
    return np.argsort(np.argsort(means, axis=0, kind="stable"), axis=0).T


def rank_stability(profile: Profile, *, seed: int = 0) -> dict[int, float]:
    """Mean Spearman correlation of the ranking from n random documents with the ranking from all of them."""
    rises = np.asarray(profile.by_document["drop_nll_nats"])
    weights = np.asarray(profile.teacher.n_tokens, dtype=np.float64)
    whole = rises.sum(axis=1) / weights.sum()
    rng = np.random.default_rng(seed)
    stability = {}
    for n in range(1, len(weights) + 1):
        subsets = [rng.choice(len(weights), size=n, replace=False) for _ in range(50)]
        parts = [rises[:, rows].sum(axis=1) / weights[rows].sum() for rows in subsets]
        stability[n] = float(np.mean([_spearman(part, whole) for part in parts]))
    return stability


def spearman(criteria: Mapping[str, Sequence[float]]) -> dict[str, dict[str, float]]:
    """Rank correlation over the layers of every criterion with every other; 0 where one does not vary."""
    return {a: {b: _spearman(x, y) for b, y in criteria.items()} for a, x in criteria.items()}


def _spearman(x: Sequence[float], y: Sequence[float]) -> float:
    return float(stats.spearmanr(x, y).statistic) if np.ptp(x) and np.ptp(y) else 0.0


def _note(*scores: Score) -> str:
    """What must be said of a number that rests on a run which was stopped."""
    return "diverged; its start is shown" if any(score.diverged for score in scores) else ""


def _exp(value: float) -> float:
    return math.inf if value >= 700 else math.exp(value)  # NaN stays NaN


def _same_tokens(a: Score, b: Score) -> None:
    if a.documents != b.documents or a.n_tokens != b.n_tokens:
        raise ValueError("the two scores are not of the same documents and tokens, so they cannot be compared")
