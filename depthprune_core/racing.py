"""Racing: the best k-subset of layers, found by spending windows of text only where candidates are still tied."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable

import numpy as np
import torch
from scipy import stats
from transformers import PreTrainedModel

from depthprune_core import subsets
from depthprune_core.models import decoder
from depthprune_core.progress import Progress, silent
from depthprune_core.records import Plan, Race
from depthprune_core.text import Windows

Layers = tuple[int, ...]
# (sets, first window, stop) -> (n_sets, stop - first): NLL of each window, in nats per token of a mean window
Measure = Callable[[list[Layers], int, int], np.ndarray]

FIRST_WINDOWS = 8  # what every candidate is seen on; fewer could rule out next to nothing
GROWTH = 1.5
PART_WINDOWS = 32  # what a part that has not lost yet is seen on: each one that loses takes many sets with it
PRIOR_VARIANCE = 10.0  # of the mean gap, in a window's variances; any value is valid, this one serves from 8 windows on


def best_set(
    model: PreTrainedModel,
    windows: Windows,
    k: int,
    *,
    error_probability: float = 0.01,
    tolerance_nats: float = 0.002,
    seed: int = 0,
    batch_size: int = 4,
    progress: Progress = silent,
) -> tuple[Plan, Race]:
    """The best set of k layers on these windows without measuring every set on all of them, and its certificate.

    Windows are looked at in an order drawn by `seed`; `race` says what is promised and on which assumptions.
    """
    if len(windows) == 0:
        raise ValueError("there is no window to race on")
    order = torch.randperm(len(windows), generator=torch.Generator().manual_seed(seed))
    shuffled, mean_tokens = windows.take(order), windows.n_tokens / len(windows)

    def measure(sets: list[Layers], first: int, stop: int) -> np.ndarray:
        chosen = shuffled.take(slice(first, stop))
        return subsets.nll_by_window(model, chosen, sets, batch_size=batch_size, progress=progress).numpy() / mean_tokens

    certificate = race(
        len(decoder(model).layers),
        k,
        measure,
        n_windows=len(windows),
        error_probability=error_probability,
        tolerance_nats=tolerance_nats,
    )
    evidence = {"rise_nll_nats": certificate.rise_nll_nats, "candidates": math.comb(certificate.n_layers, k)}
    return Plan(certificate.n_layers, certificate.winner, "racing", evidence), certificate


def race(
    n_layers: int,
    k: int,
    measure: Measure,
    *,
    n_windows: int,
    error_probability: float = 0.01,
    tolerance_nats: float = 0.002,
) -> Race:
    """Successive elimination among all sets of k dropped layers, on `n_windows` windows in random order.

    Promise: with at least 1 - error_probability, the winner's mean NLL over all the windows is within `tolerance_nats`
    per token of the best set's. Where the windows run out, those still in the race have been measured on all of them.

    A set leaves when the lower bound of its gap to the current leader is above 0. The bound is anytime-valid (`bounds`)
    and paired (same windows), and holds for all comparisons that could remove the best set at once: (2^k - 1) x (number
    of sets - 1). Assumptions: gaps of single windows are about normal, or lean towards large ones (a long tail of small
    gaps would make the bound too bold); and dropping one more layer never lowers the mean NLL, so a set goes with any
    part of it that has lost. How often the second failed where it could be seen is recorded, and the lean of the gaps.
    """
    if not 1 <= k < n_layers:
        raise ValueError(f"k={k} layers to drop: a model of {n_layers} layers can lose 1..{n_layers - 1}")
    if not (0 < error_probability < 1 and tolerance_nats >= 0 and n_windows >= 1):
        raise ValueError(
            f"error_probability={error_probability}, tolerance_nats={tolerance_nats}, n_windows={n_windows}: wanted are a "
            "probability between 0 and 1, a tolerance of at least 0 and at least one window"
        )
    n_sets = math.comb(n_layers, k)
    alpha = error_probability / ((2**k - 1) * max(1, n_sets - 1))
    standings = _Standings(measure, n_windows, alpha)
    standings.seen = min(FIRST_WINDOWS, n_windows)
    candidates = _not_ruled_out_by_parts(standings, n_layers, k)
    rounds = []
    while True:
        standings.extend(candidates)
        leader = standings.best(candidates)
        lows, _ = standings.bounds(candidates, leader)
        rounds.append({"windows": standings.seen, "sets": len(candidates)})
        exhausted = standings.seen == n_windows
        highest = tolerance_nats if exhausted else 0.0
        alive = {d: low for d, low in zip(candidates, lows, strict=True) if d == leader or low <= highest}
        candidates = list(alive)
        if exhausted or all(low >= -tolerance_nats for dropped, low in alive.items() if dropped != leader):
            break
        standings.seen = min(n_windows, math.ceil(GROWTH * standings.seen))
    lows, highs = standings.bounds(candidates, leader)
    gaps = standings.gaps(candidates, leader).mean(1)
    finalists = {
        ",".join(map(str, dropped)): (float(gap), float(low), float(high))
        for dropped, gap, low, high in zip(candidates, gaps, lows, highs, strict=True)
        if dropped != leader
    } | {",".join(map(str, leader)): (0.0, 0.0, 0.0)}
    standings.seen = len(standings.values[leader])  # parts may have taken it further than the race did
    standings.extend([()])
    checks, failures, largest = standings.part_checks()
    return Race(
        n_layers=n_layers,
        winner=leader,
        error_probability=error_probability,
        tolerance_nats=tolerance_nats,
        n_windows=n_windows,
        n_sets=n_sets,
        ruled_out_by_parts=n_sets - rounds[0]["sets"],
        rounds=tuple(rounds),
        finalists=finalists,
        rise_nll_nats=float(standings.gaps([leader], ()).mean()),
        set_windows=standings.spent,
        part_checks=checks,
        part_failures=failures,
        largest_part_failure_nats=largest,
        gap_skewness=standings.skewness(leader, len(leader)),
    )


def bounds(gaps: np.ndarray, alpha: float) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper bound of the mean of each row, valid at every n at once with probability 1 - alpha.  (m, n) -> 2 x (m,)

    The t-test's Bayes factor with a normal prior on the standardised mean and the right Haar prior on the variance is a
    test martingale whatever the variance (Gonen et al. 2005; Wang and Ramdas 2025, arXiv:2310.03722); Ville's inequality
    bounds it by 1 / alpha for ever. Exact for normal rows of any variance; infinite while n is too small.
    """
    n = gaps.shape[1]
    mean = gaps.mean(axis=1)
    if n < 2:
        return np.full_like(mean, -np.inf), np.full_like(mean, np.inf)
    spread = gaps.std(axis=1, ddof=1)
    inflation = 1 + n * PRIOR_VARIANCE
    threshold = math.exp((2 / n) * (0.5 * math.log(inflation) - math.log(alpha)))
    if threshold >= inflation:
        return np.full_like(mean, -np.inf), np.full_like(mean, np.inf)
    t = math.sqrt((n - 1) * (threshold - 1) / (1 - threshold / inflation))
    radius = t * spread / math.sqrt(n)
    return mean - radius, mean + radius


class _Standings:
    """What has been measured so far: each set on the first so many windows."""

    def __init__(self, measure: Measure, n_windows: int, alpha: float) -> None:
        self.measure, self.n_windows, self.alpha = measure, n_windows, alpha
        self.values: dict[Layers, np.ndarray] = {}
        self.seen, self.spent = 0, 0

    def extend(self, sets: Iterable[Layers]) -> None:
        """Measure these sets on those of the seen windows that they have not been on."""
        by_start: dict[int, list[Layers]] = {}
        for dropped in dict.fromkeys(sets):
            by_start.setdefault(len(self.values.get(dropped, ())), []).append(dropped)
        for start, group in by_start.items():
            if start < self.seen:
                for dropped, row in zip(group, self.measure(group, start, self.seen), strict=True):
                    self.values[dropped] = np.concatenate([self.values.get(dropped, np.empty(0)), row])
                self.spent += len(group) * (self.seen - start)

    def best(self, sets: Iterable[Layers]) -> Layers:
        return min(sets, key=lambda dropped: (self.values[dropped][: self.seen].mean(), dropped))

    def gaps(self, sets: list[Layers], leader: Layers) -> np.ndarray:
        """(n_sets, windows seen)"""
        return np.stack([self.values[dropped][: self.seen] for dropped in sets]) - self.values[leader][: self.seen]

    def bounds(self, sets: list[Layers], leader: Layers) -> tuple[np.ndarray, np.ndarray]:
        gaps = self.gaps(sets, leader)
        if self.seen == self.n_windows:  # nothing left to be unsure about
            return gaps.mean(axis=1), gaps.mean(axis=1)
        return bounds(gaps, self.alpha)

    def skewness(self, leader: Layers, size: int) -> tuple[float, ...]:
        """5, 50 and 95 % points of the skewness of the gaps of sets of this size to the leader; 0 = symmetric."""
        rows = [
            (row, self.values[leader]) for dropped, row in self.values.items() if len(dropped) == size and dropped != leader
        ]
        gaps = [row[: len(lead)] - lead[: len(row)] for row, lead in rows]
        varied = [stats.skew(gap, bias=False) for gap in gaps if len(gap) > 2 and np.ptp(gap) > 1e-12]
        return tuple(float(point) for point in np.percentile(varied or [0.0], [5, 50, 95]))

    def part_checks(self) -> tuple[int, int, float]:
        """How often a measured set could be compared with a part of it one layer smaller, how often the part cost more,
        and by how much at most (nats per token, on the windows that both have seen)."""
        excess = []
        for dropped in (dropped for dropped in self.values if len(dropped) > 1):
            for part in itertools.combinations(dropped, len(dropped) - 1):
                if part in self.values:
                    n = min(len(self.values[dropped]), len(self.values[part]))
                    excess.append(float(self.values[part][:n].mean() - self.values[dropped][:n].mean()))
        failures = [value for value in excess if value > 0]
        return len(excess), len(failures), max(failures, default=0.0)


def _not_ruled_out_by_parts(standings: _Standings, n_layers: int, k: int) -> list[Layers]:
    """The sets of k layers none of whose parts has lost to a leader among the sets of k: grown a layer at a time."""
    level: list[Layers] = [(layer,) for layer in range(n_layers)]
    standings.extend(level)
    if k == 1:
        return level
    cheapest = sorted(range(n_layers), key=lambda layer: standings.values[(layer,)].mean())[:k]
    leaders = [tuple(sorted(cheapest))]
    for size in range(1, k):
        kept = set(_not_lost(standings, level, leaders))
        level = [
            (*dropped, layer)
            for dropped in sorted(kept)
            for layer in range(dropped[-1] + 1, n_layers)
            if all(part in kept for part in itertools.combinations((*dropped, layer), size))
        ]
        if size + 1 < k:
            standings.extend(level)
            leaders += _grown(standings, level, n_layers, k)
    return sorted({*level, *leaders})


def _not_lost(standings: _Standings, parts: list[Layers], leaders: list[Layers]) -> list[Layers]:
    """The parts that no bound puts above the best leader, on up to `PART_WINDOWS` windows; then back to the first few."""
    first = standings.seen
    while True:
        standings.extend(parts + leaders)
        lows, _ = standings.bounds(parts, standings.best(leaders)) if parts else ((), ())
        parts = [dropped for dropped, low in zip(parts, lows, strict=True) if low <= 0]
        if not parts or standings.seen >= min(PART_WINDOWS, standings.n_windows):
            standings.seen = first
            return parts
        standings.seen = min(PART_WINDOWS, standings.n_windows, 2 * standings.seen)


def _grown(standings: _Standings, level: list[Layers], n_layers: int, k: int) -> list[Layers]:
    """The cheapest set of this level, filled up with the layers that are cheapest alone: a better leader than the last."""
    if not level:
        return []
    best = standings.best(level)
    others = sorted(
        (layer for layer in range(n_layers) if layer not in best), key=lambda layer: standings.values[(layer,)].mean()
    )
    return [tuple(sorted((*best, *others[: k - len(best)])))]
