"""Rules that choose layers, on examples by hand."""

from __future__ import annotations

import functools
import itertools
import math
import random

import pytest

from depthprune_core import selection

SENSITIVITY = (9.0, 0.3, 0.1, 0.4, 0.1, 5.0)


def additive(dropped: frozenset[int]) -> float:
    return sum(SENSITIVITY[layer] for layer in dropped)


def stand_ins(dropped: frozenset[int]) -> float:
    """Layers 2 and 4 can each stand in for the other, but not both go; 1 and 3 are worth a bit more, alone or together."""
    return additive(dropped) + (3.0 if {2, 4} <= dropped else 0.0)


def trap(dropped: frozenset[int]) -> float:
    """The best single layer belongs to no good pair: {1, 2} is best, and greedy, which begins with 0, never sees it."""
    singles, pairs = (
        {0: 0.1, 1: 0.2, 2: 0.3, 3: 0.9},
        {(0, 1): 5.0, (0, 2): 6.0, (0, 3): 4.0, (1, 2): 0.5, (1, 3): 7.0, (2, 3): 8.0},
    )
    return singles[next(iter(dropped))] if len(dropped) == 1 else pairs[tuple(sorted(dropped))]


def test_least_sensitive_takes_the_lowest_and_ties_go_to_the_lower_layer():
    assert selection.least_sensitive(SENSITIVITY, 1).dropped == (2,)
    assert selection.least_sensitive(SENSITIVITY, 3).dropped == (1, 2, 4)
    assert selection.least_sensitive(SENSITIVITY, 3).evidence == {"sensitivity": {"2": 0.1, "4": 0.1, "1": 0.3}}


def test_most_sensitive_takes_the_highest():
    assert selection.most_sensitive(SENSITIVITY, 2).dropped == (0, 5)
    assert selection.most_sensitive((1.0, 1.0, 1.0), 1).dropped == (0,)


def test_greedy_looks_again_after_each_removal():
    plan = selection.greedy(6, 2, stand_ins)
    assert plan.dropped == (1, 2)
    assert [step["layer"] for step in plan.evidence["steps"]] == [2, 1]
    assert [step["rise_nll_nats"] for step in plan.evidence["steps"]] == pytest.approx([0.1, 0.4])
    one_shot = selection.least_sensitive([stand_ins(frozenset({layer})) for layer in range(6)], 2)
    assert one_shot.dropped == (2, 4)  # one shot falls for the single rises


def test_exhaustive_finds_what_greedy_misses():
    assert selection.greedy(4, 2, trap).dropped == (0, 3)
    best = selection.exhaustive(4, 2, trap)
    assert best.dropped == (1, 2) and best.evidence == {"rise_nll_nats": 0.5, "candidates": 6}


@pytest.mark.parametrize("k", [1, 2, 3])
def test_greedy_and_exhaustive_agree_where_costs_add_up(k):
    assert selection.greedy(6, k, additive).dropped == selection.exhaustive(6, k, additive).dropped


def test_contiguous_takes_the_best_span():
    assert selection.contiguous(6, 3, additive).dropped == (2, 3, 4)
    assert selection.contiguous(6, 2, additive).dropped == (1, 2)
    assert selection.contiguous(6, 3, additive).evidence["candidates"] == 4


@pytest.mark.parametrize("bad", [math.nan, -math.inf])
@pytest.mark.parametrize("rule", [selection.least_sensitive, selection.most_sensitive])
def test_a_sensitivity_that_cannot_be_ranked_is_refused_by_name(rule, bad):
    with pytest.raises(ValueError, match=rf"^the cost of dropping layer 1 is {bad}, which has no place in an order$"):
        rule([0.1, bad, 0.05, 0.3], 2)


@pytest.mark.parametrize("bad", [math.nan, -math.inf])
@pytest.mark.parametrize("rule", ["greedy", "exhaustive", "contiguous", "pairwise"])
def test_a_cost_that_cannot_be_ranked_is_refused_by_name(rule, bad):
    bad_one = {2} if rule in ("greedy", "pairwise") else {1, 2}
    with pytest.raises(
        ValueError, match=rf"^the cost of dropping (layer 2|layers 1, 2) is {bad}, which has no place in an order$"
    ):
        getattr(selection, rule)(6, 2, lambda dropped: bad if dropped in (bad_one, {1, 2}) else additive(dropped))


@pytest.mark.parametrize("rule", ["greedy", "exhaustive", "contiguous"])
def test_what_costs_infinitely_much_stays(rule):
    plan = getattr(selection, rule)(6, 2, lambda dropped: math.inf if 2 in dropped else additive(dropped))
    assert 2 not in plan.dropped
    assert 2 not in selection.least_sensitive([9.0, 0.3, math.inf, 0.4, 0.1, 5.0], 3).dropped


def test_pairwise_takes_differences_and_refuses_what_has_none():
    with pytest.raises(ValueError, match=r"^the cost of dropping layer 2 is inf, of which no difference can be taken$"):
        selection.pairwise(6, 2, lambda dropped: math.inf if 2 in dropped else additive(dropped))


# ---------------------------------------------------------------- pairwise


class Terms:
    """Single costs and pair interactions drawn at random; it answers for one layer or two, as a measured table would."""

    def __init__(self, draw, n_layers: int = 10) -> None:
        self.single = [draw() for _ in range(n_layers)]
        self.pair = {pair: draw() for pair in itertools.combinations(range(n_layers), 2)}

    def __call__(self, dropped: frozenset[int]) -> float:
        assert 1 <= len(dropped) <= 2
        return self.sum(tuple(sorted(dropped)))

    def sum(self, subset: tuple[int, ...]) -> float:
        terms = [self.single[layer] for layer in subset] + [self.pair[pair] for pair in itertools.combinations(subset, 2)]
        return math.fsum(terms)


def draws(generator: random.Random) -> list:
    """Interactions of either sign, all above 0, all below."""
    return [lambda: generator.gauss(0, 1), lambda: generator.uniform(0, 1), lambda: -generator.expovariate(1)]


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("k", [2, 3, 4, 5, 9])
def test_pairwise_finds_the_least_sum_of_all_subsets(k, seed):
    for draw in draws(random.Random(seed)):
        terms = Terms(draw)
        plan = selection.pairwise(10, k, terms)
        least = min(itertools.combinations(range(10), k), key=terms.sum)
        assert plan.dropped == least and plan.rule == "pairwise"
        assert plan.evidence == {"sum_of_terms_nll_nats": pytest.approx(terms.sum(least), abs=1e-9)}


@pytest.mark.parametrize("seed", range(10))
def test_pairwise_is_exact_for_two_layers_and_the_one_shot_rule_for_one(seed):
    for draw in draws(random.Random(seed)):
        terms = Terms(draw)
        assert selection.pairwise(10, 2, terms).dropped == selection.exhaustive(10, 2, terms).dropped
        assert selection.pairwise(10, 1, terms).dropped == selection.least_sensitive(terms.single, 1).dropped


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_pairwise_ties_go_to_the_lower_layers(k):
    assert selection.pairwise(6, k, lambda dropped: 0.0).dropped == tuple(range(k))
    assert selection.pairwise(6, k, additive).dropped == selection.least_sensitive(SENSITIVITY, k).dropped
    for seed in range(20):
        terms = Terms(functools.partial(random.Random(seed).choice, (-1.0, 0.0, 1.0)), n_layers=8)
        tied = sorted(itertools.combinations(range(8), k), key=terms.sum)  # stable: the lower layers first
        assert selection.pairwise(8, k, terms).dropped == tied[0]


def test_pairwise_sees_what_greedy_misses_and_no_more_than_pairs():
    assert selection.pairwise(4, 2, trap).dropped == (1, 2)
    assert selection.pairwise(6, 2, stand_ins).dropped == selection.exhaustive(6, 2, stand_ins).dropped == (1, 2)


# ---------------------------------------------------------------- a cost that is told ahead


class ToldAhead:
    """A cost that answers only for what it has been told of."""

    def __init__(self, cost) -> None:
        self.cost, self.told, self.asked = cost, set(), set()

    def ahead(self, sets: list[frozenset[int]]) -> None:
        self.told |= set(sets)

    def __call__(self, dropped: frozenset[int]) -> float:
        assert dropped in self.told, f"{sorted(dropped)} is asked for without a word"
        self.asked.add(dropped)
        return self.cost(dropped)


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize(
    "rule", [selection.greedy, selection.exhaustive, selection.contiguous, selection.pairwise], ids=lambda rule: rule.__name__
)
def test_a_cost_is_told_of_exactly_what_it_will_be_asked_for(rule, k):
    cost = ToldAhead(stand_ins)
    assert rule(6, k, cost) == rule(6, k, stand_ins)
    assert cost.told == cost.asked


# ---------------------------------------------------------------- rules that need no cost


def test_last_k_takes_the_tail():
    assert selection.last_k(6, 2).dropped == (4, 5)


@pytest.mark.parametrize(
    ("n_layers", "k", "dropped"),
    [(12, 2, (4, 8)), (12, 3, (3, 6, 9)), (22, 2, (7, 14)), (22, 3, (5, 11, 16)), (30, 2, (10, 20))],
)
def test_evenly_spaced_layers_are_evenly_spaced(n_layers, k, dropped):
    assert selection.evenly_spaced(n_layers, k).dropped == dropped


@pytest.mark.parametrize("n_layers", [2, 5, 12, 22, 30, 32])
def test_evenly_spaced_works_for_every_number_and_spares_the_first_layer(n_layers):
    for k in range(1, n_layers):
        dropped = selection.evenly_spaced(n_layers, k).dropped
        gaps = {b - a for a, b in itertools.pairwise(dropped)}
        assert len(set(dropped)) == k and 0 not in dropped
        assert not gaps or max(gaps) - min(gaps) <= 1


def test_random_draws_differ_and_repeat_with_the_seed():
    draws = selection.random_draws(12, 2, draws=10, seed=3)
    assert len({plan.dropped for plan in draws}) == 10
    assert draws == selection.random_draws(12, 2, draws=10, seed=3)
    assert {plan.dropped for plan in draws} != {plan.dropped for plan in selection.random_draws(12, 2, draws=10, seed=4)}
    assert sorted(plan.dropped for plan in selection.random_draws(4, 2, draws=99, seed=0)) == list(
        itertools.combinations(range(4), 2)
    )


@pytest.mark.parametrize("k", [0, 6, -1])
@pytest.mark.parametrize(
    "rule",
    [
        lambda k: selection.least_sensitive(SENSITIVITY, k),
        lambda k: selection.most_sensitive(SENSITIVITY, k),
        lambda k: selection.greedy(6, k, additive),
        lambda k: selection.exhaustive(6, k, additive),
        lambda k: selection.contiguous(6, k, additive),
        lambda k: selection.pairwise(6, k, additive),
        lambda k: selection.evenly_spaced(6, k),
        lambda k: selection.last_k(6, k),
        lambda k: selection.random_draws(6, k, draws=1, seed=0),
    ],
    ids=["least", "most", "greedy", "exhaustive", "contiguous", "pairwise", "evenly", "last", "random"],
)
def test_a_number_of_layers_that_cannot_go_is_refused(rule, k):
    with pytest.raises(ValueError, match=rf"k={k} layers to drop: a model of 6 layers can lose 1\.\.5"):
        rule(k)


@pytest.mark.parametrize("n", [2, 3, 4, 12, 19, 20])
def test_spread_takes_the_top_half_and_as_many_over_the_rest(n):
    picked = selection.spread(range(20), n)
    assert len(picked) == len(set(picked)) == n
    assert list(picked[: n // 2]) == list(range(n // 2))
    assert picked[-1] == 19


@pytest.mark.parametrize("n", [1, 21])
def test_spread_of_too_few_or_too_many_is_refused(n):
    with pytest.raises(ValueError, match=rf"n={n} items to pick: a ranking of 20 allows 2\.\.20"):
        selection.spread(range(20), n)
