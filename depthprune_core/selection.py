"""Rules that choose which layers to drop, each by its name. Pure Python.

A rule reads what is known of a model (`Evidence`) and returns a plan. One that searches asks for
the cost of sets of layers. Infinite costs go last; ties go to the lower layer.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from depthprune_core.records import Plan, Profile

# Dropped layers -> rise in NLL, nats per token. A cost that has a method `ahead` is told which sets
# will be asked for.
Cost = Callable[[frozenset[int]], float]


@dataclass(frozen=True)
class Evidence:
    """What is known of a model when its layers are chosen."""

    n_layers: int
    profile: Profile | None = None
    cost: Cost | None = None
    seed: int = 0  # of the rules that draw


RULES: dict[str, Callable[[Evidence, int], Plan]] = {}
CONTROLS = ("most_sensitive", "random", "last_k")  # should lose to the others


def rule(function: Callable[[Evidence, int], Plan]) -> Callable[[Evidence, int], Plan]:
    """Makes a rule known by the function's name."""
    RULES[function.__name__] = function
    return function


def choose(name: str, known: Evidence, k: int) -> Plan:
    """The plan of a named rule. Raises ValueError for what the rule cannot do, in a sentence."""
    if name not in RULES:
        raise ValueError(f"rule={name!r} is not known: name one of {', '.join(RULES)}")
    if not 1 <= k < known.n_layers:
        if known.n_layers == 1:
            raise ValueError(f"k={k} layers to drop: a model of one layer can lose none")
        n = known.n_layers
        raise ValueError(f"k={k} layers to drop: a model of {n} layers can lose 1..{n - 1}")
    try:
        return RULES[name](known, k)
    except KeyError as error:  # a cost that was not measured
        raise ValueError(f"rule {name} needs the cost of dropping layers {error}") from None


def spread(ranked: Sequence[Any], n: int, *, top: int) -> list[Any]:
    """n items of a ranking: the first `top`, the others at equal distances to the last."""
    if not 0 <= top <= n <= len(ranked):
        raise ValueError(f"n={n} items to pick, top={top}: a ranking of {len(ranked)} has too few")
    rest, others = ranked[top:], n - top
    return [*ranked[:top], *(rest[(i + 1) * len(rest) // others - 1] for i in range(others))]


# ---------------------------------------------------------------- rules that read a profile


@rule
def least_sensitive(known: Evidence, k: int) -> Plan:
    """The k layers whose loss alone costs least, all at once."""
    return _lowest("least_sensitive", _drop_one(known), k)


@rule
def most_sensitive(known: Evidence, k: int) -> Plan:
    """The k layers whose loss alone costs most: a control that should lose."""
    return _lowest("most_sensitive", _drop_one(known), k, sign=-1)


@rule
def block_influence(known: Evidence, k: int) -> Plan:
    """The k layers that turn the hidden state least (ShortGPT: Men et al. 2024, 2403.03853)."""
    return _lowest(
        "block_influence", _profile(known, "block_influence").criteria["block_influence"], k
    )


@rule
def angular(known: Evidence, k: int) -> Plan:
    """The span of k layers across which the hidden state turns least (Gromov et al. 2024,
    2403.17887: angular distance; they look at the last token alone, this at all)."""
    distances = _profile(known, "angular").angular_distance[str(k)]
    first = min(range(len(distances)), key=lambda layer: (_ordered(distances[layer]), layer))
    span = tuple(range(first, first + k))
    return Plan(known.n_layers, span, "angular", {"angular_distance": distances[first]})


# ---------------------------------------------------------------- rules that search


@rule
def greedy(known: Evidence, k: int) -> Plan:
    """Drop the cheapest layer, look again, drop the next (SLEB: Song et al. 2024, 2402.09025)."""
    cost, dropped, steps = _cost(known, "greedy"), frozenset(), []
    for _ in range(k):
        candidates = [layer for layer in range(known.n_layers) if layer not in dropped]
        _ahead(cost, (dropped | {layer} for layer in candidates))
        costs = {layer: _ordered(cost(dropped | {layer})) for layer in candidates}
        layer = min(costs, key=lambda candidate: (costs[candidate], candidate))
        dropped |= {layer}
        steps.append({"layer": layer, "rise_nll_nats": costs[layer]})
    return Plan(known.n_layers, tuple(dropped), "greedy", {"steps": steps})


@rule
def exhaustive(known: Evidence, k: int) -> Plan:
    """The best of all sets of k layers."""
    return _cheapest("exhaustive", known, itertools.combinations(range(known.n_layers), k))


@rule
def contiguous(known: Evidence, k: int) -> Plan:
    """The best span of k neighbouring layers, by its exact cost."""
    spans = (tuple(range(first, first + k)) for first in range(known.n_layers - k + 1))
    return _cheapest("contiguous", known, spans)


@rule
def pairwise(known: Evidence, k: int) -> Plan:
    """The k layers with the least sum of single costs and pair interactions.

    Pairs are cheap to measure, larger sets are not. The sum is exact for two layers and leaves out
    what three or more do together; its minimum is exact (`_least_sum`).
    """
    cost, n = _cost(known, "pairwise"), known.n_layers
    pairs = list(itertools.combinations(range(n), 2)) if k > 1 else []
    _ahead(cost, [*(frozenset({layer}) for layer in range(n)), *map(frozenset, pairs)])
    single = [_finite(cost, {layer}) for layer in range(n)]
    interaction = [[0.0] * n for _ in range(n)]
    for i, j in pairs:
        value = _finite(cost, {i, j}) - single[i] - single[j]
        interaction[i][j] = interaction[j][i] = value
    total, chosen = _least_sum(single, interaction, k)
    return Plan(n, chosen, "pairwise", {"sum_of_terms_nll_nats": total})


# ---------------------------------------------------------------- rules that need no model


@rule
def evenly_spaced(known: Evidence, k: int) -> Plan:
    """k layers at equal distances, away from both ends."""
    n = known.n_layers
    return Plan(n, tuple((i + 1) * n // (k + 1) for i in range(k)), "evenly_spaced")


@rule
def last_k(known: Evidence, k: int) -> Plan:
    """The k layers nearest the head: what a shortened config does by itself."""
    return Plan(known.n_layers, tuple(range(known.n_layers - k, known.n_layers)), "last_k")


@rule
def random(known: Evidence, k: int) -> Plan:
    """k layers drawn by the evidence's seed: a control."""
    drawn = Random(known.seed).sample(range(known.n_layers), k)
    return Plan(known.n_layers, tuple(drawn), "random", {"seed": known.seed})


# ---------------------------------------------------------------- what they share


def _profile(known: Evidence, name: str) -> Profile:
    if known.profile is None:
        raise ValueError(f"rule {name} needs a profile of the model")
    return known.profile


def _cost(known: Evidence, name: str) -> Cost:
    if known.cost is None:
        raise ValueError(f"rule {name} needs the cost of sets of layers")
    return known.cost


def _drop_one(known: Evidence) -> Sequence[float]:
    """Each layer's cost alone, from the profile, else measured."""
    if known.profile is not None:
        return known.profile.drop_one
    cost, singles = _cost(known, "least_sensitive"), [frozenset({i}) for i in range(known.n_layers)]
    _ahead(cost, singles)
    return [cost(single) for single in singles]


def _lowest(name: str, values: Sequence[float], k: int, *, sign: int = 1) -> Plan:
    """The k layers of the lowest values (sign -1: the highest)."""
    order = sorted(range(len(values)), key=lambda layer: (sign * _ordered(values[layer]), layer))
    evidence = {"values": {str(layer): values[layer] for layer in order[:k]}}
    return Plan(len(values), tuple(order[:k]), name, evidence)


def _cheapest(name: str, known: Evidence, sets: Iterable[tuple[int, ...]]) -> Plan:
    cost, sets = _cost(known, name), list(sets)
    _ahead(cost, map(frozenset, sets))
    costs = {layers: _ordered(cost(frozenset(layers))) for layers in sets}
    best = min(costs, key=lambda layers: (costs[layers], layers))
    return Plan(
        known.n_layers, best, name, {"rise_nll_nats": costs[best], "candidates": len(costs)}
    )


def _least_sum(
    single: list[float], interaction: list[list[float]], k: int
) -> tuple[float, tuple[int, ...]]:
    """The k layers whose single costs and interactions sum to the least, by branch and bound.

    A branch is left when even the cheapest way to fill it up, each pair's interaction shared by its
    two layers, is no better than the best found.
    """
    best: tuple[float, tuple[int, ...]] = (math.inf, ())

    def visit(chosen: tuple[int, ...], total: float, adds: dict[int, float]) -> None:
        """`adds`: what each layer that may still be chosen adds, interactions included."""
        nonlocal best
        missing = k - len(chosen)
        if not missing:
            best = min(best, (total, chosen))
            return
        shares = {}
        for layer in adds:
            partners = sorted(interaction[layer][other] for other in adds if other != layer)
            shares[layer] = adds[layer] + 0.5 * sum(partners[: missing - 1])
        bound = total + sum(sorted(shares.values())[:missing])
        if len(adds) < missing or bound > best[0] + 1e-12:
            return
        left = dict(adds)
        for layer in sorted(adds, key=lambda candidate: (shares[candidate], candidate)):
            del left[layer]
            further = {other: value + interaction[layer][other] for other, value in left.items()}
            visit(tuple(sorted((*chosen, layer))), total + adds[layer], further)

    visit((), 0.0, dict(enumerate(single)))
    return best


def _ahead(cost: Cost, sets: Iterable[frozenset[int]]) -> None:
    if hasattr(cost, "ahead"):
        cost.ahead(list(sets))


def _ordered(value: float) -> float:
    """The value, which may be infinite. Raises ValueError where it has no place in an order."""
    if not value > -math.inf:  # NaN too
        raise ValueError(f"a layer's cost is {value}, which has no place in an order")
    return value


def _finite(cost: Cost, layers: set[int]) -> float:
    value = cost(frozenset(layers))
    if not math.isfinite(value):
        named = " and ".join(map(str, sorted(layers)))
        raise ValueError(
            f"dropping layer {named} costs {value}, of which no difference can be taken"
        )
    return value
