"""Costs of sets of layers, measured together on a tree, equal one brute-force forward for each set."""

from __future__ import annotations

import itertools

import pytest
import torch
from tiny import ARCHITECTURES, count_layer_passes, layers_of, plain_nll, skipping, state_of, tiny, tiny_windows

from depthprune_core import selection, sensitivity, subsets
from depthprune_core.decoders import decoder

NATS = 1e-4  # per token
# In no order, with prefixes that are wanted, (0,), and prefixes that are only passed through: (0, 3), (1,), (1, 2, 3).
MIX = [(2,), (0, 3, 4), (), (1, 2), (4,), (0,), (1, 2, 3, 4)]


def brute_force_by_window(model, windows, dropped) -> torch.Tensor:
    """NLL, summed over the tokens of each window.  (n_windows,) float64"""
    with skipping(model, tuple(dropped)):
        values = plain_nll(model, windows)
    return torch.stack([row.sum() for row in values.split(windows.mask.sum(1).tolist())])


def brute_force_rise(model, windows, dropped) -> float:
    """Nats per token."""
    ablated, whole = brute_force_by_window(model, windows, dropped), brute_force_by_window(model, windows, ())
    return float((ablated - whole).sum() / windows.mask.sum())


# ---------------------------------------------------------------- window by window


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_any_mix_of_sets_equals_brute_force_window_by_window(name, windows):
    model = tiny(name)
    measured = subsets.nll_by_window(model, windows, MIX)
    assert measured.shape == (7, 5) and measured.dtype == torch.float64
    for dropped, row in zip(MIX, measured, strict=True):
        gap = row - brute_force_by_window(model, windows, dropped)
        assert (gap / windows.mask.sum(1)).abs().max() < NATS, dropped


@pytest.mark.parametrize("batch_size", [1, 2, 3, 99])
def test_rows_are_in_the_order_asked_whatever_the_batch_size(model, windows, batch_size):
    expected = torch.stack([brute_force_by_window(model, windows, dropped) for dropped in MIX])
    for order in (list(range(7)), [6, 2, 0, 5, 1, 4, 3]):
        measured = subsets.nll_by_window(model, windows, [MIX[i] for i in order], batch_size=batch_size)
        torch.testing.assert_close(measured, expected[order], rtol=1e-5, atol=0)


def test_padded_tokens_change_nothing(model, windows):
    expected = subsets.nll_by_window(model, windows, MIX)
    for tensor in (windows.inputs, windows.targets):
        tensor[~windows.mask] = 77
    torch.testing.assert_close(subsets.nll_by_window(model, windows, MIX), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dropped", [(2, 1), (1, 1), (0, 2, 2), (3, 0, 4), (7,), (-1, 2)], ids=str)
def test_a_set_that_is_no_ascending_choice_of_layers_is_refused_before_anything_runs(model, windows, dropped, monkeypatch):
    monkeypatch.setattr(subsets, "hidden_states", lambda *args, **options: pytest.fail("measured all the same"))
    with pytest.raises(ValueError) as refusal:
        subsets.nll_by_window(model, windows, [(0,), dropped])
    assert str(refusal.value) == f"the set {list(dropped)} is to name layers of 0..4, each once, in ascending order"


@pytest.mark.parametrize(("sets", "told"), [([], "0 sets of layers, 0"), ([(1,), (1,)], "2 sets of layers, 1")], ids=str)
def test_no_set_and_a_set_named_twice_are_refused(model, windows, sets, told):
    with pytest.raises(ValueError, match=told):
        subsets.nll_by_window(model, windows, sets)


@pytest.mark.parametrize(
    ("sets", "passes"),
    [
        ([()], [0, 1, 2, 3, 4]),
        ([(0,)], [1, 2, 3, 4]),
        ([(4,)], [0, 1, 2, 3]),
        ([(1, 2)], [0, 3, 4]),  # the root up to layer 1, (1,) nothing, (1, 2) the rest
        ([(1, 2), (1,)], [0, 2, 3, 4, 3, 4]),
        ([(0, 1, 2, 3)], [4]),
        ([(0, 4)], [1, 2, 3]),
        ([(1, 4), (3,), (1, 2)], [0, 1, 2, 2, 3, 3, 4, 4]),  # the root up to 3, (1,) up to 4, (1, 2), (1, 4), (3,)
        ([(1, 4), (3,), (1, 2), ()], [0, 1, 2, 3, 4, 2, 3, 3, 4, 4]),
    ],
    ids=str,
)
def test_a_set_on_the_way_runs_no_layer_behind_its_last_branch(model, windows, sets, passes):
    decoder(model)
    counted = count_layer_passes(model)
    subsets.nll_by_window(model, windows, sets, batch_size=5)
    assert counted == passes


def test_singles_and_pairs_run_only_what_follows_their_last_layer(model, windows):
    decoder(model)
    passes = count_layer_passes(model)
    subsets.subset_costs(model, windows, 2, batch_size=5)
    assert len(passes) == 5 + sum(4 - i for i in range(5)) + sum(4 - j for i in range(5) for j in range(i + 1, 5))


# ---------------------------------------------------------------- costs


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_costs_of_sets_equal_brute_force(name, k):
    model, windows = tiny(name), tiny_windows(lengths=(14, 5))
    costs = subsets.subset_costs(model, windows, k)
    n_layers = len(layers_of(model))
    sets = [subset for size in range(1, k + 1) for subset in itertools.combinations(range(n_layers), size)]
    assert sorted(costs) == sorted(sets)
    for subset in sets:
        assert costs[subset] == pytest.approx(brute_force_rise(model, windows, subset), abs=NATS), subset


def test_pair_costs_hold_every_single_layer_and_every_pair(model, windows):
    costs = subsets.pair_costs(model, windows, batch_size=3)
    assert costs.n_layers == 5 and len(costs.single) == 5 and len(costs.pair) == 10
    for i, j in itertools.combinations(range(5), 2):
        assert costs.pair[f"{i},{j}"] == pytest.approx(brute_force_rise(model, windows, (i, j)), abs=NATS)
    assert costs.single == pytest.approx(sensitivity.profile(model, windows, gradients=False).drop_one, abs=1e-5)
    assert costs.interaction(3, 1) == pytest.approx(costs.pair["1,3"] - costs.single[1] - costs.single[3])


# ---------------------------------------------------------------- the cost function


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_cost_function_gives_the_same_costs(name, windows):
    model = tiny(name)
    cost = subsets.CostFunction(model, windows)
    assert cost(frozenset()) == 0
    for subset, expected in subsets.subset_costs(model, windows, 2).items():
        assert cost(frozenset(subset)) == pytest.approx(expected, abs=1e-5), subset
    assert cost(frozenset({0, 2, 3, 4})) == pytest.approx(brute_force_rise(model, windows, (0, 2, 3, 4)), abs=NATS)


def test_the_cost_function_measures_each_set_once(model, windows, monkeypatch):
    cost = subsets.CostFunction(model, windows)
    first = cost(frozenset({1, 3}))
    monkeypatch.setattr(subsets, "hidden_states", lambda *args, **options: pytest.fail("measured again"))
    assert cost(frozenset({3, 1})) == first


def test_what_is_told_ahead_is_measured_together_and_not_again(model, windows, monkeypatch):
    measured, sets = [], [frozenset({3, 1}), frozenset(), frozenset({1}), frozenset({1, 3})]
    one_by_one = subsets.CostFunction(model, windows)
    expected = [one_by_one(dropped) for dropped in sets]
    measure = subsets.nll_by_window

    def watched(model, windows, sets, **options):
        measured.append(list(sets))
        return measure(model, windows, sets, **options)

    monkeypatch.setattr(subsets, "nll_by_window", watched)
    cost = subsets.CostFunction(model, windows)
    cost.ahead(sets)
    assert measured == [[(), (1,), (1, 3)]]
    assert [cost(dropped) for dropped in sets] == pytest.approx(expected, abs=1e-6)
    cost.ahead(sets)
    assert len(measured) == 1
    cost.ahead([*sets, frozenset({2})])
    assert measured[1:] == [[(2,)]]


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize(
    "rule", [selection.greedy, selection.exhaustive, selection.contiguous, selection.pairwise], ids=lambda rule: rule.__name__
)
def test_a_rule_chooses_as_it_does_from_brute_force(model, windows, rule, k):
    fast = rule(5, k, subsets.CostFunction(model, windows))
    slow = rule(5, k, lambda dropped: brute_force_rise(model, windows, dropped))
    assert (fast.dropped, fast.rule) == (slow.dropped, rule.__name__)


# ---------------------------------------------------------------- what stays as it was


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_model_and_the_random_state_are_untouched(name, windows):
    model = tiny(name)
    layers_of(model)[1].requires_grad_(False)
    unchanged, random_state = state_of(model), torch.get_rng_state()
    subsets.nll_by_window(model, windows, MIX)
    subsets.CostFunction(model, windows)(frozenset({1, 2}))
    assert unchanged()
    assert torch.equal(torch.get_rng_state(), random_state)


def stop_midway(done: int, of: int, what: str) -> None:
    if done > of // 2:
        raise KeyboardInterrupt


def test_stopping_midway_leaves_the_model_as_it_was(model, windows):
    unchanged = state_of(model)
    for sets in (MIX, [(0, 1), (1, 2), (2, 3)]):
        with pytest.raises(KeyboardInterrupt):
            subsets.nll_by_window(model, windows, sets, progress=stop_midway)
        assert unchanged()


def test_progress_counts_to_the_end(model, windows):
    seen = []
    subsets.nll_by_window(model, windows, MIX, batch_size=2, progress=lambda done, of, what: seen.append((done, of)))
    assert seen == [(done, 21) for done in range(1, 22)]  # 7 sets, 3 batches


def test_every_set_up_to_a_size_is_named_once():
    sets = subsets.up_to(5, 3)
    assert len(sets) == len(set(sets)) == 5 + 10 + 10
    assert all(1 <= len(dropped) <= 3 for dropped in sets)


def test_what_a_cost_function_knows_is_what_it_was_asked(model, windows):
    costs = subsets.CostFunction(model, windows)
    assert costs.known == {}
    single, pair = costs(frozenset({3})), costs(frozenset({3, 1}))
    assert costs.known == {(3,): single, (1, 3): pair}
