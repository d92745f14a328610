"""Records compute the right values and refuse impossible ones."""

from __future__ import annotations

import math

import pytest

from depthprune_core.records import Plan, Profile, Recipe, Score, SetCosts

SCORE = Score(("a", "b"), (1.5, 0.3), (3, 1), (12, 5))


def test_a_plan_sorts_dropped_layers_and_lists_kept_ones():
    plan = Plan(5, (3, 1), "by hand")
    assert (plan.dropped, plan.kept) == ((1, 3), (0, 2, 4))


@pytest.mark.parametrize(
    ("dropped", "sentence"),
    [
        ((12,), r"the plan drops layer 12, but the model has layers 0\.\.11"),
        ((-1,), r"the plan drops layer -1, but the model has layers 0\.\.11"),
        ((3, 3), r"the plan drops a layer twice: \[3, 3\]"),
        (tuple(range(12)), "the plan drops all 12 layers: at least one must stay"),
    ],
)
def test_an_impossible_plan_is_refused_in_a_sentence(dropped, sentence):
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        Plan(12, dropped, "by hand")


def test_a_second_cut_counts_the_layers_that_the_first_keeps():
    both = Plan(6, (1, 2), "pair").then(Plan(4, (1, 3), "greedy"))  # of what is left: 0, 3, 4, 5
    assert (both.dropped, both.rule) == ((1, 2, 3, 5), "staged_greedy")
    assert both.evidence == {"first": [1, 2], "second": [3, 5]}
    with pytest.raises(ValueError, match="the second plan is for 6 layers, but the first leaves 4"):
        Plan(6, (1, 2), "pair").then(Plan(6, (1,), "greedy"))


def test_a_step_has_whole_windows():
    recipe = Recipe(tokens=4096, lr=1e-4, batch_tokens=2048, seq_len=256)
    assert recipe.batch_size == 8 and recipe.but(seq_len=512).batch_size == 4
    assert recipe.but(lr=1.0).lr == 1.0 and recipe.lr == 1e-4


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"lr": 0.0}, r"lr=0\.0 is not possible: it must be above 0"),
        ({"kl": 0.0}, "one of kl and ce must be above 0"),
        ({"ce": -0.1}, "loss weights must not be below 0"),
        ({"warmup": 1.0}, "it is a share of the steps"),
        ({"seq_len": 300}, "batch_tokens=2048 is not possible: a step takes whole windows"),
        ({"tokens": 100}, "tokens=100 is not possible: one step takes 2,048"),
        ({"trained": "prefix"}, "trained='prefix' is not possible: name one of all, lora"),
        ({"precision": "float8"}, "precision='float8' is not possible"),
    ],
    ids=str,
)
def test_an_impossible_recipe_is_refused(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        Recipe(**{"tokens": 4096, "lr": 1e-4, **changes})


def test_ppl_and_bits_per_byte_match_a_hand_computed_example():
    bits = 6 * math.log(2), 2 * math.log(2)  # 8 bits, 4 tokens, 16 bytes
    score = Score(("a", "b"), bits, (3, 1), (12, 4))
    assert score.mean_nll_nats == pytest.approx(2 * math.log(2))
    assert (score.ppl, score.bits_per_byte) == (pytest.approx(4), pytest.approx(0.5))


def test_an_overflowing_perplexity_is_infinite_and_nan_stays_nan():
    assert Score(("a",), (1e6,), (1,), (1,)).ppl == math.inf
    assert math.isnan(Score(("a", "b"), (1.0, math.nan), (1, 1), (1, 1)).ppl)


def test_a_profile_gives_means_per_token():
    by_document = {"drop_nll_nats": ((1.0, 2.0), (0.0, -0.5))}
    profile = Profile(2, SCORE, by_document, {"taylor": (0.1, 0.2)}, {"1": (0.3, 0.4)})
    assert profile.drop_one == (0.75, -0.125)
    assert profile.criteria["angular_distance"] == (0.3, 0.4)
    assert profile.criteria["taylor"] == (0.1, 0.2)


def test_an_interaction_is_the_pair_cost_minus_both_single_costs():
    rises = {"0": 0.1, "1": 0.2, "2": 0.3, "0,1": 0.5, "0,2": 0.1, "1,2": 0.7}
    costs = SetCosts(3, rises)
    assert costs.interactions()[0, 1] == pytest.approx(0.2)
    assert costs.interactions()[0, 2] == pytest.approx(-0.3)
    assert costs.of_size(2) == {(0, 1): 0.5, (0, 2): 0.1, (1, 2): 0.7}
    assert costs.by_layers[0, 2] == 0.1
