"""Rules that choose layers, on handmade examples."""

from __future__ import annotations

import itertools
import math

import pytest

from depthprune_core.records import Profile, Score
from depthprune_core.selection import RULES, Evidence, choose

SENSITIVITY = (9.0, 0.3, 0.1, 0.4, 0.1, 5.0)


def additive(dropped: tuple[int, ...]) -> float:
    return sum(SENSITIVITY[layer] for layer in dropped)


def stand_ins(dropped: tuple[int, ...]) -> float:
    """Layers 2 and 4 can replace each other, so only one of them can be dropped."""
    return additive(dropped) + (3.0 if {2, 4} <= set(dropped) else 0.0)


def trap(dropped: tuple[int, ...]) -> float:
    """The best single layer is in no good pair: greedy begins with 0 and never finds {1, 2}."""
    singles = {0: 0.1, 1: 0.2, 2: 0.3, 3: 0.9}
    pairs = {(0, 1): 5.0, (0, 2): 6.0, (0, 3): 4.0, (1, 2): 0.5, (1, 3): 7.0, (2, 3): 8.0}
    return singles[dropped[0]] if len(dropped) == 1 else pairs[dropped]


def costing(cost=additive, n_layers: int = 6) -> Evidence:
    return Evidence(n_layers, cost=lambda sets: [cost(dropped) for dropped in sets])


def profiled(**criteria) -> Evidence:
    """Six layers, one document of one token; `spans`: angular distances by length."""
    spans = criteria.pop("spans", {"1": (0.0,) * 6})
    by_document = {name: tuple((value,) for value in values) for name, values in criteria.items()}
    return Evidence(6, Profile(6, Score(("a",), (1.0,), (1,), (1,)), by_document, {}, spans))


def test_a_rule_has_a_name_and_its_plan_stores_it():
    spans = {str(n): (0.5,) * (7 - n) for n in range(1, 6)}
    profile = profiled(drop_nll_nats=SENSITIVITY, block_influence=SENSITIVITY, spans=spans).profile
    for name in RULES:
        plan = choose(name, Evidence(6, profile, costing().cost), 2)
        assert (plan.rule, plan.n_layers, len(plan.dropped)) == (name, 6, 2)


# ---------------------------------------------------------------- rules that read a profile


def test_least_sensitive_takes_the_lowest_and_ties_go_to_the_lower_layer():
    evidence = profiled(drop_nll_nats=SENSITIVITY)
    assert choose("least_sensitive", evidence, 1).dropped == (2,)
    plan = choose("least_sensitive", evidence, 3)
    assert plan.dropped == (1, 2, 4) and plan.evidence == {"values": {"2": 0.1, "4": 0.1, "1": 0.3}}


def test_most_sensitive_takes_the_highest():
    assert choose("most_sensitive", profiled(drop_nll_nats=SENSITIVITY), 2).dropped == (0, 5)
    assert choose("most_sensitive", profiled(drop_nll_nats=(1.0,) * 6), 1).dropped == (0,)


def test_block_influence_reads_a_criterion_of_its_name():
    evidence = profiled(drop_nll_nats=SENSITIVITY, block_influence=(0.5, 0.4, 0.3, 0.1, 0.2, 0.6))
    assert choose("block_influence", evidence, 2).dropped == (3, 4)


def test_angular_takes_the_span_across_which_the_state_turns_least():
    spans = {"1": (0.1, 0.2, 0.2, 0.3, 0.3, 0.0), "3": (0.4, 0.2, 0.3, 0.2)}
    plan = choose("angular", profiled(spans=spans), 3)
    assert plan.dropped == (1, 2, 3) and plan.evidence == {"angular_distance": 0.2}
    assert choose("angular", profiled(spans=spans), 1).dropped == (5,)


# ---------------------------------------------------------------- rules that search


def test_greedy_measures_again_after_each_removal():
    plan = choose("greedy", costing(stand_ins), 2)
    assert plan.dropped == (1, 2) and [s["layer"] for s in plan.evidence["steps"]] == [2, 1]
    assert [s["rise_nll_nats"] for s in plan.evidence["steps"]] == pytest.approx([0.1, 0.4])


def test_exhaustive_finds_what_greedy_misses():
    assert choose("greedy", costing(trap, 4), 2).dropped == (0, 3)
    best = choose("exhaustive", costing(trap, 4), 2)
    assert best.dropped == (1, 2) and best.evidence == {"rise_nll_nats": 0.5, "candidates": 6}


def test_contiguous_takes_the_best_span():
    plan = choose("contiguous", costing(), 3)
    assert plan.dropped == (2, 3, 4) and plan.evidence["candidates"] == 4
    assert choose("contiguous", costing(), 2).dropped == (1, 2)


@pytest.mark.parametrize("rule", ["greedy", "exhaustive", "contiguous"])
def test_layers_with_infinite_cost_are_kept_and_nan_is_refused(rule):
    infinite = costing(lambda dropped: math.inf if 2 in dropped else additive(dropped))
    assert 2 not in choose(rule, infinite, 2).dropped
    nowhere = costing(lambda dropped: math.nan if 2 in dropped else additive(dropped))
    with pytest.raises(ValueError, match="a layer's cost is nan, which has no place in an order"):
        choose(rule, nowhere, 2)


# ---------------------------------------------------------------- rules that need no model


def test_last_k_takes_the_tail():
    assert choose("last_k", Evidence(6), 2).dropped == (4, 5)


@pytest.mark.parametrize("n_layers", [2, 5, 12, 22, 30, 32])
def test_evenly_spaced_layers_are_evenly_spaced_and_spare_the_first(n_layers):
    for k in range(1, n_layers):
        dropped = choose("evenly_spaced", Evidence(n_layers), k).dropped
        gaps = {b - a for a, b in itertools.pairwise(dropped)}
        assert len(set(dropped)) == k and 0 not in dropped
        assert not gaps or max(gaps) - min(gaps) <= 1
    assert choose("evenly_spaced", Evidence(22), 3).dropped == (5, 11, 16)


def test_random_is_drawn_by_the_seed():
    draws = [choose("random", Evidence(12, seed=seed), 2) for seed in range(10)]
    assert len({plan.dropped for plan in draws}) > 5
    assert draws[3] == choose("random", Evidence(12, seed=3), 2)
    assert draws[3].evidence == {"seed": 3}


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize("k", [0, 6, -1])
def test_an_impossible_number_of_layers_is_refused(k):
    sentence = rf"k={k} layers to drop: a model of 6 layers can lose 1\.\.5"
    with pytest.raises(ValueError, match=sentence):
        choose("greedy", costing(), k)


def test_missing_evidence_is_named():
    with pytest.raises(ValueError, match="rule='best' is not known: name one of least_sensitive, "):
        choose("best", costing(), 1)
    with pytest.raises(ValueError, match="this rule needs the cost of sets of layers"):
        choose("greedy", Evidence(6), 1)
    with pytest.raises(ValueError, match="this rule needs a profile of the model"):
        choose("angular", Evidence(6), 1)
    with pytest.raises(ValueError, match="a model of one layer can lose none"):
        choose("last_k", Evidence(1), 1)
