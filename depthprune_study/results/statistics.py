"""Intervals and tests: paired over documents, over items, over seeds. Numpy and scipy only."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from depthprune_core.records import Answers, Profile, Score, Timing

RESAMPLES = 4_000
BCA_BELOW = 50  # units; with more, the correction no longer matters
DIVERGED = "diverged; its start is shown"
NO_BCA = "percentile interval, since BCa is not defined here"


@dataclass(frozen=True)
class Interval:
    """A point with its 95 % interval, the number of units it rests on, and how many they are worth.

    `effective_n` is (sum w)^2 / sum w^2 over the documents' token counts: a few long documents are
    worth less.
    """

    point: float
    low: float
    high: float
    n: int
    effective_n: float
    note: str = ""  # what a reader must know beside the numbers

    def __str__(self) -> str:
        note = f" ({self.note})" if self.note else ""
        return f"{self.point:.3f} [{self.low:.3f}, {self.high:.3f}]{note}"


# ---------------------------------------------------------------- over documents


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


def mean_per_token(sums: Sequence[float], n_tokens: Sequence[int]) -> Interval:
    """sum(sums) / sum(tokens), with a paired bootstrap over documents.

    BCa (Efron 1987) below 50 documents, else percentile.
    """
    sums, weights = np.asarray(sums, dtype=np.float64), np.asarray(n_tokens, dtype=np.float64)
    point = float(sums.sum() / weights.sum())
    n, effective = len(sums), float(weights.sum() ** 2 / (weights**2).sum())
    if not math.isfinite(point):
        return Interval(point, point, point, n, effective)
    if n < 2:
        return Interval(point, -math.inf, math.inf, n, effective, "one document")
    if not np.any(sums * weights[0] != weights * sums[0]):  # a model beside itself
        return Interval(point, point, point, n, effective)
    low, high, note = _bootstrap(
        (sums, weights), lambda s, w, axis: s.sum(axis=axis) / w.sum(axis=axis)
    )
    return Interval(point, low, high, n, effective, note)


def difference_p(first: Score, second: Score) -> float:
    """Two-sided p-value that two models predict these documents equally well.

    Paired permutation test: in each document the two models change places (exact where 2^n allows).
    Raises ValueError unless both scored the same tokens.
    """
    _same_tokens(first, second)
    difference = np.subtract(first.nll_nats, second.nll_nats)
    if not np.isfinite(difference).all():
        return math.nan
    test = stats.permutation_test(
        (difference,),
        lambda d, axis: d.sum(axis=axis),
        permutation_type="samples",  # of one sample: its signs
        vectorized=True,
        n_resamples=9_999,
        rng=np.random.default_rng(0),
    )
    return float(test.pvalue)


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> Interval:
    """Spearman's rho of paired values with a bootstrap interval over the pairs.

    0 where one side does not vary; no interval (-1 to 1) for fewer than four pairs.
    """
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    n, rho = len(x), float(_rho(x, y))
    if n < 4:
        return Interval(rho, -1.0, 1.0, n, float(n), f"{n} pairs are too few for an interval")
    low, high, note = _bootstrap((x, y), _rho)
    return Interval(rho, low, high, n, float(n), note)


# ---------------------------------------------------------------- over items, seeds and rounds


def proportion(answers: Answers) -> Interval:
    """Accuracy with Wilson's 95 % interval over the items."""
    n = len(answers.right)
    interval = stats.binomtest(sum(answers.right), n).proportion_ci(method="wilson")
    return Interval(answers.accuracy, float(interval.low), float(interval.high), n, float(n))


def accuracy_difference(first: Answers, second: Answers) -> Interval:
    """Accuracy(first) - accuracy(second), paired by item.

    The interval is Bonett and Price's (2012, equation 3): Wald's with one item added to each of the
    two ways to differ. Raises ValueError unless both answered the same task.
    """
    alone, other, n = _discordant(first, second)
    p, q = (alone + 1) / (n + 2), (other + 1) / (n + 2)
    half = stats.norm.ppf(0.975) * math.sqrt((p + q - (p - q) ** 2) / (n + 2))
    point = (alone - other) / n
    low, high = max(-1.0, p - q - half), min(1.0, p - q + half)
    return Interval(point, float(low), float(high), n, float(n))


def mcnemar(first: Answers, second: Answers) -> float:
    """Two-sided exact p-value that both are right equally often (McNemar 1947).

    Only items on which they differ count. Raises ValueError unless both answered the same task.
    """
    alone, other, _ = _discordant(first, second)
    return float(stats.binomtest(alone, alone + other).pvalue) if alone + other else 1.0


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's step-down adjusted p-values (1979): they keep the family-wise error at its level."""
    adjusted: dict[str, float] = {}
    running = 0.0
    for rank, name in enumerate(sorted(p_values, key=lambda key: p_values[key])):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[name]))
        adjusted[name] = running
    return adjusted


def over_seeds(values: Sequence[float]) -> Interval:
    """Mean over seeds with a 95 % t-interval. Raises ValueError for fewer than two seeds."""
    if len(values) < 2:
        raise ValueError(f"an interval over seeds needs at least 2 seeds, not {len(values)}")
    n, mean = len(values), float(np.mean(values))
    if not math.isfinite(mean):  # one that overflows is enough
        return Interval(mean, mean, mean, n, float(n))
    half = float(stats.t.ppf(0.975, n - 1) * np.std(values, ddof=1) / math.sqrt(n))
    return Interval(mean, mean - half, mean + half, n, float(n))


def median_ratio(numerator: Sequence[float], denominator: Sequence[float]) -> Interval:
    """Median of paired ratios with a percentile bootstrap over pairs: for interleaved timings."""
    ratios = np.divide(numerator, denominator)
    n = len(ratios)
    rows = np.random.default_rng(0).integers(0, n, size=(RESAMPLES, n))
    low, high = np.percentile(np.median(ratios[rows], axis=1), [2.5, 97.5])
    return Interval(float(np.median(ratios)), float(low), float(high), n, float(n))


def decode_gain(timing: Timing) -> Interval:
    """How many times faster the student decodes than its teacher, round by round."""
    return median_ratio(timing.teacher_decode_ms_per_token, timing.student_decode_ms_per_token)


# ---------------------------------------------------------------- over layers


def layer_intervals(profile: Profile, criterion: str) -> list[Interval]:
    """One interval a layer, for a criterion that is kept by document."""
    return [mean_per_token(row, profile.teacher.n_tokens) for row in profile.by_document[criterion]]


def rank_draws(profile: Profile, *, draws: int = 1_000, seed: int = 0) -> np.ndarray:
    """Ranks by the drop-one cost in resampled documents, 0 = least sensitive: (draws, n_layers)."""
    rises = np.asarray(profile.by_document["drop_nll_nats"])  # (n_layers, n_documents)
    weights = np.asarray(profile.teacher.n_tokens, dtype=np.float64)
    rows = np.random.default_rng(seed).integers(0, len(weights), size=(draws, len(weights)))
    means = rises[:, rows].sum(axis=2) / weights[rows].sum(axis=1)  # (n_layers, draws)
    return np.argsort(np.argsort(means, axis=0, kind="stable"), axis=0).T


def rank_stability(profile: Profile, *, seed: int = 0) -> dict[int, float]:
    """n -> mean Spearman correlation of the ranking from n random documents with that from all."""
    rises = np.asarray(profile.by_document["drop_nll_nats"])
    weights = np.asarray(profile.teacher.n_tokens, dtype=np.float64)
    whole = rises.sum(axis=1) / weights.sum()
    rng = np.random.default_rng(seed)
    stability = {}
    for n in range(1, len(weights) + 1):
        subsets = [rng.choice(len(weights), size=n, replace=False) for _ in range(50)]
        parts = [rises[:, rows].sum(axis=1) / weights[rows].sum() for rows in subsets]
        stability[n] = float(np.mean([_rho(part, whole) for part in parts]))
    return stability


def spearman(criteria: Mapping[str, Sequence[float]]) -> dict[str, dict[str, float]]:
    """Rank correlation over the layers of every criterion with every other; 0 for a constant."""
    arrays = {name: np.asarray(values, dtype=np.float64) for name, values in criteria.items()}
    return {a: {b: float(_rho(x, y)) for b, y in arrays.items()} for a, x in arrays.items()}


# ---------------------------------------------------------------- helpers


def _bootstrap(samples: tuple[np.ndarray, ...], statistic: Callable) -> tuple[float, float, str]:
    """95 % bounds of a paired bootstrap with a fixed seed, and a note where BCa is not defined."""
    method = "BCa" if len(samples[0]) < BCA_BELOW else "percentile"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # DegenerateDataWarning: what it says is said in the note
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


def _rho(x: np.ndarray, y: np.ndarray, axis: int = -1) -> np.ndarray:
    """Spearman's rho along an axis, ties at their mean rank; 0 where one side does not vary."""
    x, y = stats.rankdata(x, axis=axis), stats.rankdata(y, axis=axis)
    x = x - x.mean(axis=axis, keepdims=True)
    y = y - y.mean(axis=axis, keepdims=True)
    scale = np.sqrt((x**2).sum(axis=axis) * (y**2).sum(axis=axis))
    return np.where(scale > 0, (x * y).sum(axis=axis) / np.where(scale > 0, scale, 1), 0.0)


def _discordant(first: Answers, second: Answers) -> tuple[int, int, int]:
    """Items that the first alone has right, that the second alone has right, and all items."""
    n = len(first.right)
    if first.task != second.task or n != len(second.right):
        raise ValueError(
            "the two sets of answers are not of the same task and items, so they cannot be compared"
        )
    pairs = list(zip(first.right, second.right, strict=True))
    return sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs), n


def _noted(interval: Interval, *scores: Score) -> Interval:
    """With a word on a run that was stopped, where the numbers rest on one."""
    notes = [DIVERGED] if any(score.diverged for score in scores) else []
    return replace(interval, note="; ".join([*notes, *([interval.note] if interval.note else [])]))


def _exp(value: float) -> float:
    return math.inf if value >= 700 else math.exp(value)  # NaN stays NaN


def _same_tokens(a: Score, b: Score) -> None:
    if a.documents != b.documents or a.n_tokens != b.n_tokens:
        raise ValueError(
            "the two scores are not of the same documents and tokens, so they cannot be compared"
        )
