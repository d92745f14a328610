"""Rules that choose which layers to drop. Pure Python: a rule that searches is handed the cost of a set of layers.

What costs infinitely much goes last. Each rule raises ValueError for a cost that no order can hold (NaN).
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from depthprune_core.records import Plan

# Dropped layers -> rise in NLL, nats per token. A cost that has a method `ahead` is told which sets will be asked for.
Cost = Callable[[frozenset[int]], float]


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
        candidates = [layer for layer in range(n_layers) if layer not in dropped]
        _ahead(cost, (dropped | {layer} for layer in candidates))
        costs = {layer: _ranked(cost(dropped | {layer}), dropped | {layer}) for layer in candidates}
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


def pairwise(n_layers: int, k: int, cost: Cost) -> Plan:
    """The k layers with the least sum of single costs and pair interactions: pairs are cheap to measure, larger sets are not.

    The sum is exact for two layers and leaves out what three or more do together. Its minimum is exact too (branch and
    bound): a branch is left when even the cheapest way to fill it up, each pair's interaction shared by its two layers,
    is no better than the best found. Raises ValueError for an infinite cost, of which no interaction can be told.
    """
    _check(n_layers, k)
    pairs = list(itertools.combinations(range(n_layers), 2)) if k > 1 else []
    _ahead(cost, [*(frozenset({layer}) for layer in range(n_layers)), *map(frozenset, pairs)])
    single = [_finite(cost(frozenset({layer})), {layer}) for layer in range(n_layers)]
    interaction = [[0.0] * n_layers for _ in range(n_layers)]
    for i, j in pairs:
        interaction[i][j] = interaction[j][i] = _finite(cost(frozenset({i, j})), {i, j}) - single[i] - single[j]
    best: tuple[float, tuple[int, ...]] = (math.inf, ())

    def visit(chosen: tuple[int, ...], total: float, adds: dict[int, float]) -> None:
        """`adds`: layers that may still be chosen -> single cost plus interactions with those chosen."""
        nonlocal best
        missing = k - len(chosen)
        if not missing:
            best = min(best, (total, chosen))
            return
        shares = {}
        for layer in adds:
            partners = sorted(interaction[layer][other] for other in adds if other != layer)
            shares[layer] = adds[layer] + 0.5 * sum(partners[: missing - 1])
        if len(adds) < missing or total + sum(sorted(shares.values())[:missing]) > best[0] + 1e-12:
            return
        left = dict(adds)
        for layer in sorted(adds, key=lambda candidate: (shares[candidate], candidate)):
            del left[layer]
            further = {other: value + interaction[layer][other] for other, value in left.items()}
            visit(tuple(sorted((*chosen, layer))), total + adds[layer], further)

    visit((), 0.0, dict(enumerate(single)))
    return Plan(n_layers, best[1], "pairwise", {"sum_of_terms_nll_nats": best[0]})


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


def spread(ranked: Sequence[Any], n: int) -> list[Any]:
    """n items of a ranking: the first half of them from its top, the others at equal distances over the rest, to the last."""
    if not 2 <= n <= len(ranked):
        raise ValueError(f"n={n} items to pick: a ranking of {len(ranked)} allows 2..{len(ranked)}")
    top = n // 2
    rest = ranked[top:]
    others = n - top
    return [*ranked[:top], *(rest[((i + 1) * len(rest)) // others - 1] for i in range(others))]


def _by_rank(sensitivity: Sequence[float], k: int, *, rule: str, most: bool) -> Plan:
    n_layers = len(sensitivity)
    _check(n_layers, k)
    for layer, value in enumerate(sensitivity):
        _ranked(value, {layer})
    order = sorted(range(n_layers), key=lambda layer: (-sensitivity[layer] if most else sensitivity[layer], layer))
    return Plan(n_layers, tuple(order[:k]), rule, {"sensitivity": {str(layer): sensitivity[layer] for layer in order[:k]}})


def _cheapest(n_layers: int, subsets: Iterable[tuple[int, ...]], cost: Cost, *, rule: str) -> Plan:
    subsets = list(subsets)
    _ahead(cost, map(frozenset, subsets))
    costs = {subset: _ranked(cost(frozenset(subset)), subset) for subset in subsets}
    best = min(costs, key=lambda subset: (costs[subset], subset))
    return Plan(n_layers, best, rule, {"rise_nll_nats": costs[best], "candidates": len(costs)})


def _ahead(cost: Cost, sets: Iterable[frozenset[int]]) -> None:
    if hasattr(cost, "ahead"):
        cost.ahead(list(sets))


def _ranked(cost: float, dropped: Iterable[int]) -> float:
    """The cost, which may be infinite. Raises ValueError where it has no place in an order."""
    if not cost > -math.inf:
        raise ValueError(f"the cost of dropping {_named(dropped)} is {cost}, which has no place in an order")
    return cost


def _finite(cost: float, dropped: Iterable[int]) -> float:
    if math.isinf(_ranked(cost, dropped)):
        raise ValueError(f"the cost of dropping {_named(dropped)} is {cost}, of which no difference can be taken")
    return cost


def _named(layers: Iterable[int]) -> str:
    numbers = sorted(layers)
    return f"layer{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"


def _check(n_layers: int, k: int) -> None:
    if not 1 <= k < n_layers:
        raise ValueError(f"k={k} layers to drop: a model of {n_layers} layers can lose 1..{n_layers - 1}")
