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
from depthprune_core.decoders import decoder
from depthprune_core.progress import Progress, silent
from depthprune_core.records import Plan, Race
from depthprune_core.text import Windows

Layers = tuple[int, ...]
# (sets, first window, stop) -> (n_sets, stop - first): NLL of each window, in nats per token of a mean window
Measure = Callable[[list[Layers], int, int], np.ndarray]

FIRST_WINDOWS = 8  # what every candidate is seen on; fewer could rule out next to nothing
GROWTH = 1.3  # of the windows seen, from one look to the next
PART_WINDOWS = 32  # what a part that has not lost yet is seen on at most: each one that loses takes many sets with it
CONTROL = 0.8  # share of what its single layers explain that is taken out of a set's cost; any value is valid


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

    A set leaves when the lower bound of its gap to the current leader is above 0. The bound (`bounds`) is paired (same windows)
    and holds at all looks and for all comparisons that could remove the best set at once: looks x (2^k - 1) x (number of sets - 1).
    From two layers on, each layer is first dropped alone on all the windows. What a window does to the sum of a set's single costs
    it does to the set's own cost too, so that sum is a control variate: its deviation from its known mean, times `CONTROL`,
    is taken out of every cost. Means over all the windows stay as they are, single windows scatter less. Raises ValueError for a
    loss that is not finite.

    Assumptions: so adjusted, gaps of single windows are about normal, or lean towards large ones (a long tail of small
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
    all_looks = looks(n_windows)
    alpha = error_probability / (max(1, len(all_looks) - 1) * (2**k - 1) * max(1, n_sets - 1))
    standings = _Standings(measure, all_looks, alpha)
    if k > 1:
        standings.measure_layers(n_layers)
    candidates = _not_ruled_out_by_parts(standings, n_layers, k)
    rounds = []
    for seen in all_looks:
        standings.seen = seen
        standings.extend(candidates)
        leader = standings.best(candidates)
        lows, _ = standings.bounds(candidates, leader)
        rounds.append({"windows": seen, "sets": len(candidates)})
        exhausted = seen == n_windows
        highest = tolerance_nats if exhausted else 0.0
        alive = {d: low for d, low in zip(candidates, lows, strict=True) if d == leader or low <= highest}
        candidates = list(alive)
        if exhausted or all(low >= -tolerance_nats for dropped, low in alive.items() if dropped != leader):
            break
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


def looks(n_windows: int) -> list[int]:
    """How many windows have been seen each time that sets may leave; at last, all."""
    seen = [min(FIRST_WINDOWS, n_windows)]
    while seen[-1] < n_windows:
        seen.append(min(n_windows, math.ceil(GROWTH * seen[-1])))
    return seen


def bounds(gaps: np.ndarray, n_windows: int, alpha: float) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper bound, each wrong with probability alpha, of the mean over all `n_windows` of each row, of which the
    first n are given.  (m, n) -> 2 x (m,)

    Student's t for a sample without replacement: exact for normal rows of any variance, since the mean of the first n and that
    of the rest are independent of each other and of the variance; no doubt is left where n = n_windows.
    """
    n = gaps.shape[1]
    mean = gaps.mean(axis=1)
    if n == n_windows:
        return mean, mean
    if n < 2:
        return np.full_like(mean, -np.inf), np.full_like(mean, np.inf)
    radius = stats.t.isf(alpha, n - 1) * gaps.std(axis=1, ddof=1) * math.sqrt(1 / n - 1 / n_windows)
    return mean - radius, mean + radius


class _Standings:
    """What has been measured so far: each set on the first so many windows, less what its control explains."""

    def __init__(self, measure: Measure, looks: list[int], alpha: float) -> None:
        self.measure, self.looks, self.n_windows, self.alpha = measure, looks, looks[-1], alpha
        self.values: dict[Layers, np.ndarray] = {}
        self.controls: dict[int, np.ndarray] = {}  # layer -> (n_windows,), of mean 0
        self.seen, self.spent = looks[0], 0

    def measure_layers(self, n_layers: int) -> None:
        """Drop each layer alone on all windows; from here on, costs are less what these explain."""
        whole, *alone = self._measured([(), *((layer,) for layer in range(n_layers))], 0, self.n_windows)
        self.spent += (n_layers + 1) * self.n_windows
        rises = [row - whole for row in alone]
        self.controls = {layer: CONTROL * (rise - rise.mean()) for layer, rise in enumerate(rises)}
        self.values = {(): whole} | {(layer,): row - self.controls[layer] for layer, row in enumerate(alone)}

    def _measured(self, sets: list[Layers], first: int, stop: int) -> np.ndarray:
        rows = self.measure(sets, first, stop)
        for dropped, row in zip(sets, rows, strict=True):
            if not np.isfinite(row).all():
                named = f"layer{'s' * (len(dropped) > 1)} {', '.join(map(str, dropped))}" if dropped else "no layer"
                raise ValueError(f"a loss with {named} dropped is not finite, so it cannot race")
        return rows

    def extend(self, sets: Iterable[Layers]) -> None:
        """Measure these sets on those of the seen windows that they have not been on."""
        by_start: dict[int, list[Layers]] = {}
        for dropped in dict.fromkeys(sets):
            by_start.setdefault(len(self.values.get(dropped, ())), []).append(dropped)
        for start, group in by_start.items():
            if start < self.seen:
                for dropped, row in zip(group, self._measured(group, start, self.seen), strict=True):
                    explained = sum(self.controls[layer][start : self.seen] for layer in dropped if self.controls)
                    self.values[dropped] = np.concatenate([self.values.get(dropped, np.empty(0)), row - explained])
                self.spent += len(group) * (self.seen - start)

    def best(self, sets: Iterable[Layers]) -> Layers:
        return min(sets, key=lambda dropped: (self.values[dropped][: self.seen].mean(), dropped))

    def gaps(self, sets: list[Layers], leader: Layers) -> np.ndarray:
        """(n_sets, windows seen)"""
        return np.stack([self.values[dropped][: self.seen] for dropped in sets]) - self.values[leader][: self.seen]

    def bounds(self, sets: list[Layers], leader: Layers) -> tuple[np.ndarray, np.ndarray]:
        return bounds(self.gaps(sets, leader), self.n_windows, self.alpha)

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
    for seen in [seen for seen in standings.looks if seen <= PART_WINDOWS]:
        standings.seen = seen
        standings.extend(parts + leaders)
        lows, _ = standings.bounds(parts, standings.best(leaders)) if parts else ((), ())
        parts = [dropped for dropped, low in zip(parts, lows, strict=True) if low <= 0]
    standings.seen = standings.looks[0]
    return parts


def _grown(standings: _Standings, level: list[Layers], n_layers: int, k: int) -> list[Layers]:
    """The cheapest set of this level, filled up with the layers that are cheapest alone: a better leader than the last."""
    if not level:
        return []
    best = standings.best(level)
    others = sorted(
        (layer for layer in range(n_layers) if layer not in best), key=lambda layer: standings.values[(layer,)].mean()
    )
    return [tuple(sorted((*best, *others[: k - len(best)])))]
