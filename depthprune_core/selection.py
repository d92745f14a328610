"""Rules that choose which layers to drop. Pure Python: a rule that searches is handed the cost of a set of layers."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Sequence

from depthprune_core.records import Plan

Cost = Callable[[frozenset[int]], float]  # dropped layers -> rise in NLL, nats per token


def least_sensitive(sensitivity: Sequence[float], k: int) -> Plan:
    """The k layers with the lowest sensitivity, all at once (one shot). Ties go to the lower layer."""
    return _by_rank(sensitivity, k, rule="least_sensitive", most=False)


def most_sensitive(sensitivity: Sequence[float], k: int) -> Plan:
    """The k layers with the highest sensitivity: a control that should lose."""
    return _by_rank(sensitivity, k, rule="most_sensitive", most=True)


def greedy(n_layers: int, k: int, cost: Cost) -> Plan:
    """Drop the cheapest layer, look again, drop the next (as SLEB does, Song et al. 2024, arXiv:2402.09025)."""
    _check(n_layers, k)
    dropped: frozenset[int] = frozenset()
    steps = []
    for _ in range(k):
        costs = {layer: cost(dropped | {layer}) for layer in range(n_layers) if layer not in dropped}
        layer = min(costs, key=lambda candidate: (costs[candidate], candidate))
        dropped |= {layer}
        steps.append({"layer": layer, "rise_nll_nats": costs[layer]})
    return Plan(n_layers, tuple(dropped), "greedy", {"steps": steps})


def exhaustive(n_layers: int, k: int, cost: Cost) -> Plan:
    """The best of all subsets of k layers."""
    _check(n_layers, k)
    return _cheapest(n_layers, itertools.combinations(range(n_layers), k), cost, rule="exhaustive")


def contiguous(n_layers: int, k: int, cost: Cost) -> Plan:
    """The best span of k neighbouring layers (Gromov et al. 2024, arXiv:2403.17887, who rank spans by angular distance)."""
    _check(n_layers, k)
    spans = (tuple(range(first, first + k)) for first in range(n_layers - k + 1))
    return _cheapest(n_layers, spans, cost, rule="contiguous")


def evenly_spaced(n_layers: int, k: int) -> Plan:
    """k layers at equal distances, away from both ends: a rule that needs no model."""
    _check(n_layers, k)
    return Plan(n_layers, tuple((i + 1) * n_layers // (k + 1) for i in range(k)), "evenly_spaced")


def last_k(n_layers: int, k: int) -> Plan:
    """The k layers nearest the head: what a shortened config does by itself."""
    _check(n_layers, k)
    return Plan(n_layers, tuple(range(n_layers - k, n_layers)), "last_k")


def random_draws(n_layers: int, k: int, *, draws: int, seed: int) -> list[Plan]:
    """Different random subsets of k layers (fewer than `draws` where there are not so many)."""
    _check(n_layers, k)
    generator = random.Random(seed)
    chosen: dict[tuple[int, ...], None] = {}  # a set that keeps its order
    while len(chosen) < min(draws, math.comb(n_layers, k)):
        chosen[tuple(sorted(generator.sample(range(n_layers), k)))] = None
    return [Plan(n_layers, subset, "random", {"draw": i, "seed": seed}) for i, subset in enumerate(chosen)]


def _by_rank(sensitivity: Sequence[float], k: int, *, rule: str, most: bool) -> Plan:
    n_layers = len(sensitivity)
    _check(n_layers, k)
    order = sorted(range(n_layers), key=lambda layer: (-sensitivity[layer] if most else sensitivity[layer], layer))
    return Plan(n_layers, tuple(order[:k]), rule, {"sensitivity": {str(layer): sensitivity[layer] for layer in order[:k]}})


def _cheapest(n_layers: int, subsets: itertools.combinations | Sequence, cost: Cost, *, rule: str) -> Plan:
    costs = {subset: cost(frozenset(subset)) for subset in subsets}
    best = min(costs, key=lambda subset: (costs[subset], subset))
    return Plan(n_layers, best, rule, {"rise_nll_nats": costs[best], "candidates": len(costs)})


def _check(n_layers: int, k: int) -> None:
    if not 1 <= k < n_layers:
        raise ValueError(f"k={k} layers to drop: a model of {n_layers} layers can lose 1..{n_layers - 1}")
