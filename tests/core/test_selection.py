"""Rules that choose layers, on examples by hand."""

from __future__ import annotations

import functools
import itertools
import math
import random

import pytest

from depthprune_core.records import Plan, Profile, Score, SetCosts
from depthprune_core.selection import CONTROLS, RULES, Evidence, choose, spread

SENSITIVITY = (9.0, 0.3, 0.1, 0.4, 0.1, 5.0)
SEARCHES = ("greedy", "exhaustive", "contiguous", "pairwise")


def additive(dropped: frozenset[int]) -> float:
    return sum(SENSITIVITY[layer] for layer in dropped)


def stand_ins(dropped: frozenset[int]) -> float:
    """Layers 2 and 4 can each stand in for the other, but not both go."""
    return additive(dropped) + (3.0 if {2, 4} <= dropped else 0.0)


def trap(dropped: frozenset[int]) -> float:
    """The best single layer belongs to no good pair: greedy begins with 0 and never sees {1, 2}."""
    singles = {0: 0.1, 1: 0.2, 2: 0.3, 3: 0.9}
    pairs = {(0, 1): 5.0, (0, 2): 6.0, (0, 3): 4.0, (1, 2): 0.5, (1, 3): 7.0, (2, 3): 8.0}
    return singles[min(dropped)] if len(dropped) == 1 else pairs[tuple(sorted(dropped))]


def known(cost=additive, n_layers: int = 6, **more) -> Evidence:
    return Evidence(n_layers, cost=cost, **more)


def profiled(**criteria) -> Evidence:
    """Six layers, one document of one token; `spans`: angular distances by length."""
    spans = criteria.pop("spans", {"1": (0.0,) * 6})
    by_document = {name: tuple((value,) for value in values) for name, values in criteria.items()}
    return Evidence(6, Profile(6, Score(("a",), (1.0,), (1,), (1,)), by_document, {}, spans))


def test_a_rule_is_known_by_its_name_and_names_its_plan():
    spans = {str(n): (0.5,) * (7 - n) for n in range(1, 6)}
    profile = profiled(drop_nll_nats=SENSITIVITY, block_influence=SENSITIVITY, spans=spans).profile
    for name in RULES:
        plan = choose(name, Evidence(6, profile, additive), 2)
        assert (plan.rule, plan.n_layers, len(plan.dropped)) == (name, 6, 2)
    assert set(CONTROLS) <= set(RULES)


# ---------------------------------------------------------------- rules that read a profile


def test_least_sensitive_takes_the_lowest_and_ties_go_to_the_lower_layer():
    evidence = profiled(drop_nll_nats=SENSITIVITY)
    assert choose("least_sensitive", evidence, 1).dropped == (2,)
    plan = choose("least_sensitive", evidence, 3)
    assert plan.dropped == (1, 2, 4) and plan.evidence == {"values": {"2": 0.1, "4": 0.1, "1": 0.3}}
    assert choose("least_sensitive", known(), 3).dropped == (1, 2, 4)  # measured, without a profile


def test_most_sensitive_takes_the_highest():
    assert choose("most_sensitive", profiled(drop_nll_nats=SENSITIVITY), 2).dropped == (0, 5)
    assert choose("most_sensitive", profiled(drop_nll_nats=(1.0,) * 6), 1).dropped == (0,)


def test_block_influence_reads_its_own_criterion():
    evidence = profiled(drop_nll_nats=SENSITIVITY, block_influence=(0.5, 0.4, 0.3, 0.1, 0.2, 0.6))
    assert choose("block_influence", evidence, 2).dropped == (3, 4)


def test_angular_takes_the_span_across_which_the_state_turns_least():
    spans = {"1": (0.1, 0.2, 0.2, 0.3, 0.3, 0.0), "3": (0.4, 0.2, 0.3, 0.2)}
    plan = choose("angular", profiled(spans=spans), 3)
    assert plan.dropped == (1, 2, 3) and plan.evidence == {"angular_distance": 0.2}
    assert choose("angular", profiled(spans=spans), 1).dropped == (5,)


# ---------------------------------------------------------------- rules that search


def test_greedy_looks_again_after_each_removal():
    plan = choose("greedy", known(stand_ins), 2)
    assert plan.dropped == (1, 2) and [s["layer"] for s in plan.evidence["steps"]] == [2, 1]
    assert [s["rise_nll_nats"] for s in plan.evidence["steps"]] == pytest.approx([0.1, 0.4])
    assert choose("least_sensitive", known(stand_ins), 2).dropped == (2, 4)  # falls for singles


def test_exhaustive_and_pairwise_find_what_greedy_misses():
    assert choose("greedy", known(trap, 4), 2).dropped == (0, 3)
    best = choose("exhaustive", known(trap, 4), 2)
    assert best.dropped == (1, 2) and best.evidence == {"rise_nll_nats": 0.5, "candidates": 6}
    assert choose("pairwise", known(trap, 4), 2).dropped == (1, 2)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_searches_agree_where_costs_add_up(k):
    plans = [choose(rule, known(), k).dropped for rule in ("greedy", "exhaustive", "pairwise")]
    assert len(set(plans)) == 1


def test_contiguous_takes_the_best_span():
    assert choose("contiguous", known(), 3).dropped == (2, 3, 4)
    assert choose("contiguous", known(), 2).dropped == (1, 2)
    assert choose("contiguous", known(), 3).evidence["candidates"] == 4


@pytest.mark.parametrize("bad", [math.nan, -math.inf])
@pytest.mark.parametrize("rule", SEARCHES)
def test_a_cost_without_a_place_in_an_order_is_refused(rule, bad):
    bad_one = {2} if rule in ("greedy", "pairwise") else {1, 2}
    cost = lambda dropped: bad if dropped in (bad_one, {1, 2}) else additive(dropped)  # noqa: E731
    with pytest.raises(ValueError, match=rf"costs? (is )?{bad}, (which|of which)"):
        choose(rule, known(cost), 2)
    with pytest.raises(ValueError, match="has no place in an order"):
        choose("most_sensitive", profiled(drop_nll_nats=(0.1, bad, 0.3, 1.0, 1.0, 1.0)), 2)


def test_what_costs_infinitely_much_stays_and_has_no_differences():
    cost = lambda dropped: math.inf if 2 in dropped else additive(dropped)  # noqa: E731
    for rule in ("greedy", "exhaustive", "contiguous", "least_sensitive"):
        assert 2 not in choose(rule, known(cost), 2).dropped
    sentence = "dropping layer 2 costs inf, of which no difference can be taken"
    with pytest.raises(ValueError, match=sentence):
        choose("pairwise", known(cost), 2)


def test_a_set_that_was_not_measured_is_named():
    costs = SetCosts(6, {str(layer): value for layer, value in enumerate(SENSITIVITY)})
    assert choose("greedy", known(costs), 1).dropped == (2,)
    with pytest.raises(ValueError, match="rule exhaustive needs the cost of dropping layers '0,1'"):
        choose("exhaustive", known(costs), 2)


class Terms:
    """Single costs and pair interactions drawn at random; it answers for one layer or two."""

    def __init__(self, draw, n_layers: int = 10) -> None:
        self.single = [draw() for _ in range(n_layers)]
        self.pair = {pair: draw() for pair in itertools.combinations(range(n_layers), 2)}

    def __call__(self, dropped: frozenset[int]) -> float:
        assert 1 <= len(dropped) <= 2
        return self.sum(tuple(sorted(dropped)))

    def sum(self, layers: tuple[int, ...]) -> float:
        pairs = [self.pair[pair] for pair in itertools.combinations(layers, 2)]
        return math.fsum([*(self.single[layer] for layer in layers), *pairs])


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("k", [1, 2, 3, 5, 9])
def test_pairwise_finds_the_least_sum_of_all_sets(k, seed):
    generator = random.Random(seed)
    draws = [
        lambda: generator.gauss(0, 1),
        lambda: generator.uniform(0, 1),
        lambda: -generator.expovariate(1),
    ]
    for draw in draws:  # interactions of either sign, all above 0, all below
        terms = Terms(draw)
        plan = choose("pairwise", known(terms, 10), k)
        least = min(itertools.combinations(range(10), k), key=terms.sum)
        assert plan.dropped == least
        assert plan.evidence["sum_of_terms_nll_nats"] == pytest.approx(terms.sum(least), abs=1e-9)


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_pairwise_ties_go_to_the_lower_layers(k):
    for seed in range(20):
        draw = functools.partial(random.Random(seed).choice, (-1.0, 0.0, 1.0))
        terms = Terms(draw, n_layers=8)
        tied = sorted(itertools.combinations(range(8), k), key=terms.sum)  # stable
        assert choose("pairwise", known(terms, 8), k).dropped == tied[0]


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
@pytest.mark.parametrize("rule", [*SEARCHES, "least_sensitive"])
def test_a_cost_is_told_of_exactly_what_it_will_be_asked_for(rule, k):
    cost = ToldAhead(stand_ins)
    assert choose(rule, known(cost), k) == choose(rule, known(stand_ins), k)
    assert cost.told == cost.asked


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
    assert isinstance(draws[0], Plan) and draws[3].evidence == {"seed": 3}


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize("k", [0, 6, -1])
@pytest.mark.parametrize("rule", RULES)
def test_a_number_of_layers_that_cannot_go_is_refused(rule, k):
    sentence = rf"k={k} layers to drop: a model of 6 layers can lose 1\.\.5"
    with pytest.raises(ValueError, match=sentence):
        choose(rule, known(), k)


def test_what_a_rule_lacks_is_named():
    with pytest.raises(ValueError, match="rule='best' is not known: name one of least_sensitive, "):
        choose("best", known(), 1)
    with pytest.raises(ValueError, match="rule greedy needs the cost of sets of layers"):
        choose("greedy", Evidence(6), 1)
    with pytest.raises(ValueError, match="rule angular needs a profile of the model"):
        choose("angular", Evidence(6), 1)
    with pytest.raises(ValueError, match="a model of one layer can lose none"):
        choose("last_k", Evidence(1), 1)


@pytest.mark.parametrize(("n", "top"), [(4, 2), (12, 8), (19, 0), (20, 8), (8, 8)])
def test_spread_takes_the_top_and_as_many_over_the_rest(n, top):
    picked = spread(range(20), n, top=top)
    assert len(picked) == len(set(picked)) == n
    assert list(picked[:top]) == list(range(top)) and (n == top or picked[-1] == 19)


@pytest.mark.parametrize(("n", "top"), [(21, 3), (3, 4), (2, -1)])
def test_spread_of_too_few_or_too_many_is_refused(n, top):
    with pytest.raises(ValueError, match=f"n={n} items to pick, top={top}"):
        spread(range(20), n, top=top)
