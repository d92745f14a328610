"""Named rules that choose which layers to drop. Pure Python.

A rule takes measurements of a model (`Evidence`) and returns a plan. Infinite costs are ranked
last; the lower layer wins a tie.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from random import Random

from depthprune_core.records import Plan, Profile

Layers = tuple[int, ...]  # dropped together, ascending


@dataclass(frozen=True)
class Evidence:
    """The measurements of a model that rules can use."""

    n_layers: int
    profile: Profile | None = None
    # sets of layers -> the rise in NLL (nats per token) of each, for the rules that search
    cost: Callable[[list[Layers]], Sequence[float]] | None = None
    seed: int = 0  # of the rules that draw


RULES: dict[str, Callable[[Evidence, int], Plan]] = {}


def rule(function: Callable[[Evidence, int], Plan]) -> Callable[[Evidence, int], Plan]:
    """Registers a rule under the function's name."""
    RULES[function.__name__] = function
    return function


def choose(name: str, known: Evidence, k: int) -> Plan:
    """The plan of a named rule. Raises ValueError if the rule cannot choose k layers."""
    if name not in RULES:
        raise ValueError(f"rule={name!r} is not known: name one of {', '.join(RULES)}")
    if known.n_layers == 1:
        raise ValueError(f"k={k} layers to drop: a model of one layer can lose none")
    if not 1 <= k < known.n_layers:
        n = known.n_layers
        raise ValueError(f"k={k} layers to drop: a model of {n} layers can lose 1..{n - 1}")
    return RULES[name](known, k)


# ---------------------------------------------------------------- rules that read a profile


@rule
def least_sensitive(known: Evidence, k: int) -> Plan:
    """The k layers with the smallest single costs, all at once."""
    return _lowest("least_sensitive", _profile(known).drop_one, k)


@rule
def most_sensitive(known: Evidence, k: int) -> Plan:
    """The k layers with the largest single costs: a control that should lose."""
    return _lowest("most_sensitive", _profile(known).drop_one, k, sign=-1)


@rule
def block_influence(known: Evidence, k: int) -> Plan:
    """The k layers that rotate the hidden state least (ShortGPT: Men et al. 2024, 2403.03853)."""
    return _lowest("block_influence", _profile(known).criteria["block_influence"], k)


@rule
def angular(known: Evidence, k: int) -> Plan:
    """The span of k layers that rotates the hidden state least (Gromov et al. 2024, 2403.17887).

    Uses angular distance over all tokens; the paper uses only the last token."""
    distances = _ordered(_profile(known).angular_distance[str(k)])
    first = distances.index(min(distances))
    span = tuple(range(first, first + k))
    return Plan(known.n_layers, span, "angular", {"angular_distance": distances[first]})


# ---------------------------------------------------------------- rules that search


@rule
def greedy(known: Evidence, k: int) -> Plan:
    """Drop the cheapest layer, measure again, repeat (SLEB: Song et al. 2024, 2402.09025)."""
    dropped: Layers = ()
    steps = []
    for _ in range(k):
        left = [layer for layer in range(known.n_layers) if layer not in dropped]
        costs = _costs(known, [tuple(sorted((*dropped, layer))) for layer in left])
        layer = left[costs.index(min(costs))]
        dropped = tuple(sorted((*dropped, layer)))
        steps.append({"layer": layer, "rise_nll_nats": min(costs)})
    return Plan(known.n_layers, dropped, "greedy", {"steps": steps})


@rule
def exhaustive(known: Evidence, k: int) -> Plan:
    """The best of all sets of k layers."""
    return _cheapest("exhaustive", known, itertools.combinations(range(known.n_layers), k))


@rule
def contiguous(known: Evidence, k: int) -> Plan:
    """The best span of k neighbouring layers, by its exact cost."""
    spans = (tuple(range(first, first + k)) for first in range(known.n_layers - k + 1))
    return _cheapest("contiguous", known, spans)


# ---------------------------------------------------------------- rules that need no model


@rule
def evenly_spaced(known: Evidence, k: int) -> Plan:
    """k layers at equal distances, away from both ends."""
    n = known.n_layers
    return Plan(n, tuple((i + 1) * n // (k + 1) for i in range(k)), "evenly_spaced")


@rule
def last_k(known: Evidence, k: int) -> Plan:
    """The k layers nearest the head, as a shortened config drops: a control that should lose."""
    return Plan(known.n_layers, tuple(range(known.n_layers - k, known.n_layers)), "last_k")


@rule
def random(known: Evidence, k: int) -> Plan:
    """k layers drawn by the evidence's seed: a control that should lose."""
    drawn = Random(known.seed).sample(range(known.n_layers), k)
    return Plan(known.n_layers, tuple(drawn), "random", {"seed": known.seed})


# ---------------------------------------------------------------- what they share


def _profile(known: Evidence) -> Profile:
    if known.profile is None:
        raise ValueError("this rule needs a profile of the model")
    return known.profile


def _costs(known: Evidence, sets: list[Layers]) -> list[float]:
    if known.cost is None:
        raise ValueError("this rule needs the cost of sets of layers")
    return _ordered(known.cost(sets))


def _ordered(values: Sequence[float]) -> list[float]:
    """The values, which may be infinite. Raises ValueError for NaN."""
    if any(map(math.isnan, values)):
        raise ValueError("a layer's cost is nan, which has no place in an order")
    return list(values)


def _lowest(name: str, values: Sequence[float], k: int, *, sign: int = 1) -> Plan:
    """The k layers with the lowest values (sign -1: the highest)."""
    values = _ordered(values)
    order = sorted(range(len(values)), key=lambda layer: (sign * values[layer], layer))
    evidence = {"values": {str(layer): values[layer] for layer in order[:k]}}
    return Plan(len(values), tuple(order[:k]), name, evidence)


def _cheapest(name: str, known: Evidence, sets: Iterable[Layers]) -> Plan:
    """The set with the lowest cost; `sets` in ascending order."""
    candidates = list(sets)
    costs = _costs(known, candidates)
    best = candidates[costs.index(min(costs))]
    evidence = {"rise_nll_nats": min(costs), "candidates": len(costs)}
    return Plan(known.n_layers, best, name, evidence)
