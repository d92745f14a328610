"""Intervals on hand-computed examples, against scipy, and by their coverage."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from depthprune_core.records import Answers, Divergence, Profile, Recipe, Score, Size
from depthprune_study.results import statistics


def distance_of(*kl: float) -> Divergence:
    n = len(kl)
    return Divergence(tuple(f"d{i}" for i in range(n)), tuple(map(float, kl)), (5,) * n, (10,) * n)


def score_of(*nll_nats: float, n_tokens: tuple[int, ...] | None = None) -> Score:
    n_tokens = n_tokens or (100,) * len(nll_nats)
    names = tuple(f"d{i}" for i in range(len(nll_nats)))
    return Score(names, nll_nats, n_tokens, tuple(4 * n for n in n_tokens))


def answers_of(right: str, task: str = "task") -> Answers:
    return Answers(task, tuple(letter == "1" for letter in right))


def profile_of(rises: list[list[float]], n_tokens: tuple[int, ...]) -> Profile:
    rows = tuple(map(tuple, rises))
    teacher = score_of(*(300.0,) * len(n_tokens), n_tokens=n_tokens)
    return Profile(len(rows), teacher, {"drop_nll_nats": rows}, {}, {"1": (0.0,) * len(rows)})


# ---------------------------------------------------------------- over documents


def test_ppl_ratio_of_a_hand_computed_example():
    """Two documents, 0.1 and 0.3 nats a token worse: a quarter of the resamples hold one twice."""
    ratio = statistics.ppl_ratio(score_of(310, 430), score_of(300, 400))
    expected = (math.exp(0.2), math.exp(0.1), math.exp(0.3))
    assert (ratio.point, ratio.low, ratio.high) == pytest.approx(expected)
    assert (ratio.n, ratio.note) == (2, "")


def test_documents_count_by_their_tokens():
    tokens = (100, 300)
    rise = statistics.nll_rise(
        score_of(310, 260, n_tokens=tokens), score_of(300, 200, n_tokens=tokens)
    )
    assert rise.point == pytest.approx(70 / 400)


def test_a_ratio_of_a_run_that_diverged_says_so():
    student = replace(score_of(310, 430), diverged="the kl loss is nan at step 3")
    ratio = statistics.ppl_ratio(student, score_of(300, 400))
    assert str(ratio) == "1.221 [1.105, 1.350] (diverged; its start is shown)"


@pytest.mark.filterwarnings("error")
def test_infinite_losses_give_no_warning():
    huge = statistics.ppl_ratio(score_of(100_000, 120_000), score_of(300, 400))
    assert (huge.point, huge.high) == (math.inf, math.inf)
    for value in (math.nan, math.inf):
        ratio = statistics.ppl_ratio(score_of(310, value), score_of(300, 400))
        assert str(ratio) == f"{value:.3f} [{value:.3f}, {value:.3f}]"


@pytest.mark.parametrize(("n", "method"), [(6, "BCa"), (49, "BCa"), (50, "percentile")])
def test_an_interval_is_scipys_with_bca_below_fifty_documents(n, method):
    rng = np.random.default_rng(n)
    sums, tokens = rng.gamma(1.0, 20.0, size=n), rng.integers(50, 400, size=n)
    expected = stats.bootstrap(
        (sums, tokens.astype(float)),
        lambda s, w, axis: s.sum(axis=axis) / w.sum(axis=axis),
        paired=True,
        vectorized=True,
        n_resamples=statistics.RESAMPLES,
        method=method,
        rng=np.random.default_rng(0),
    ).confidence_interval
    interval = statistics.mean_per_token(sums, tokens)
    assert (interval.low, interval.high) == (expected.low, expected.high)
    assert interval == statistics.mean_per_token(sums, tokens) and interval.note == ""


@pytest.mark.filterwarnings("error")
def test_a_value_that_all_documents_share_has_an_interval_of_width_zero():
    rise = statistics.nll_rise(score_of(310, 410, 510), score_of(300, 400, 500))
    assert (rise.point, rise.low, rise.high, rise.note) == (0.1, 0.1, 0.1, "")
    assert str(statistics.ppl_ratio(score_of(3, 4), score_of(3, 4))) == "1.000 [1.000, 1.000]"


@pytest.mark.filterwarnings("error")
def test_without_bca_the_percentile_interval_is_given_and_noted():
    """Ten pairs in the same order: no resample differs, so the jackknife has no spread."""
    rho = statistics.rank_correlation(range(10), range(10))
    assert (rho.point, rho.low, rho.high) == pytest.approx((1, 1, 1))
    assert rho.note == statistics.NO_BCA


def test_one_document_gives_no_interval():
    rise = statistics.nll_rise(score_of(310), score_of(300))
    assert (rise.low, rise.high, rise.n, rise.note) == (-math.inf, math.inf, 1, "one document")


def test_intervals_have_their_nominal_coverage():
    """Twenty-four skewed documents of unequal length, two hundred times; the true mean is 0.2."""
    rng = np.random.default_rng(5)
    covered = 0
    for _ in range(200):
        tokens = rng.integers(400, 4_000, size=24)
        sums = tokens * (0.05 + rng.gamma(2.0, 0.075, size=24))
        interval = statistics.mean_per_token(sums, tokens)
        covered += interval.low <= 0.2 <= interval.high
    assert 0.88 <= covered / 200 <= 0.98


def test_scores_of_other_tokens_are_not_compared():
    first = score_of(310, 430)
    others = score_of(300, 400, n_tokens=(100, 99)), replace(first, documents=("a", "b"))
    for other in others:
        for compare in (statistics.nll_rise, statistics.ppl_ratio):
            with pytest.raises(ValueError, match="of different documents or tokens"):
                compare(first, other)
        with pytest.raises(ValueError, match="of different documents or tokens"):
            statistics.gain_difference(first, first, other, other)
        with pytest.raises(ValueError, match="of different documents or tokens"):
            statistics.mean_score([first, other])


def test_the_mean_score_of_several_seeds_is_taken_document_by_document():
    mean = statistics.mean_score([score_of(310, 430), score_of(300, 410)])
    assert mean == score_of(305, 420)


def test_gain_difference_is_what_the_student_won_beyond_the_control():
    stages = score_of(340, 440), score_of(310, 410), score_of(300, 400), score_of(290, 390)
    gain = statistics.gain_difference(*stages)
    assert (gain.point, gain.low, gain.high) == pytest.approx((0.2, 0.2, 0.2))


# ---------------------------------------------------------------- over items and rounds


def test_proportion_has_wilsons_interval():
    """7 of 10: (p + z^2/2n +- z sqrt(p q / n + z^2/4n^2)) / (1 + z^2/n)."""
    z, n, p = stats.norm.ppf(0.975), 10, 0.7
    centre, scale = p + z**2 / (2 * n), 1 + z**2 / n
    half = z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    interval = statistics.proportion(answers_of("1111111000"))
    expected = (0.7, (centre - half) / scale, (centre + half) / scale)
    assert (interval.point, interval.low, interval.high) == pytest.approx(expected)


def test_accuracy_difference_of_a_hand_computed_example():
    """12 against 9 of 16 right, 4 and 1 alone: (5 - 2) / 18 +- z sqrt((7 / 18 - 1 / 36) / 18)."""
    first, second = answers_of("1" * 12 + "0" * 4), answers_of("1" * 8 + "0" * 4 + "1" + "0" * 3)
    half = stats.norm.ppf(0.975) * math.sqrt((7 / 18 - 1 / 36) / 18)
    interval = statistics.accuracy_difference(first, second)
    expected = (3 / 16, 1 / 6 - half, 1 / 6 + half)
    assert (interval.point, interval.low, interval.high) == pytest.approx(expected)
    assert interval.n == 16


def test_answers_to_other_items_are_not_compared():
    for other in (answers_of("101"), answers_of("10", task="other")):
        with pytest.raises(ValueError, match="of different tasks or items"):
            statistics.accuracy_difference(answers_of("10"), other)


def test_median_ratio_of_a_hand_computed_example():
    ratio = statistics.median_ratio([10, 24, 18, 10, 20, 9, 11], [10, 10, 10, 5, 8, 9, 4])
    assert ratio.point == pytest.approx(2.0)  # of 1.0, 2.4, 1.8, 2.0, 2.5, 1.0, 2.75
    assert 1.0 <= ratio.low < 2.0 < ratio.high <= 2.75 and not ratio.note


def test_fewer_than_six_rounds_have_only_a_range():
    ratio = statistics.median_ratio([10, 24, 18, 10, 20], [10, 10, 10, 5, 8])
    assert (ratio.point, ratio.low, ratio.high) == pytest.approx((2.0, 1.0, 2.5))
    assert ratio.note == statistics.TOO_FEW


# ---------------------------------------------------------------- over layers


def test_every_layer_has_an_interval():
    profile = profile_of([[10, 30], [5, 5]], (100, 100))
    first, second = statistics.layer_intervals(profile)
    assert (first.point, first.low, first.high) == pytest.approx((0.2, 0.1, 0.3))
    assert (second.point, second.low, second.high) == pytest.approx((0.05, 0.05, 0.05))


def test_a_layer_that_lowers_the_loss_is_never_costly():
    rises = [[-9.0, -9.0], [-8.0, -8.0], [-1.0, -1.0], [2.0, 2.0]]
    assert statistics.costly_layers(profile_of(rises, (100, 100))) == [3]
    assert statistics.costly_layers(profile_of([[1, 1], [1, 1], [3, 3]], (100, 100))) == [2]


def test_ranks_are_drawn_over_documents_and_0_is_the_least_sensitive():
    """Layers 1 and 2 change places with the documents drawn."""
    profile = profile_of([[9, 9], [1, 3], [3, 1]], (100, 100))
    ranks = statistics.rank_draws(profile, draws=400)
    assert ranks.shape == (400, 3) and all(sorted(row) == [0, 1, 2] for row in ranks.tolist())
    assert set(ranks[:, 0]) == {2}
    assert 0.15 < (ranks[:, 2] == 0).mean() < 0.35  # both draws are the second document


def test_rank_correlation_is_scipys_rho_ties_included():
    rng = np.random.default_rng(1)
    x = rng.integers(0, 9, size=40)
    y = x + rng.normal(0, 3, size=40)
    rho = statistics.rank_correlation(x, y)
    assert rho.point == pytest.approx(stats.spearmanr(x, y).statistic)
    assert rho.low < rho.point < rho.high and rho.n == 40


def test_rank_correlation_of_too_few_or_of_constant_values():
    short = statistics.rank_correlation([1, 2, 3], [1, 2, 3])
    assert (short.point, short.low, short.high) == pytest.approx((1, -1, 1))
    assert short.note == "3 pairs are too few for an interval"
    constant = statistics.rank_correlation([1, 2, 3, 4, 5], [2, 2, 2, 2, 2])
    assert (constant.point, constant.low, constant.high) == (0, 0, 0)


# ---------------------------------------------------------------- tables for the charts


def test_ratios_are_against_the_whole_model_and_can_be_picked_by_a_suffix():
    scores = {
        "whole": score_of(300, 400),
        "greedy-2": score_of(310, 430),
        "last_k-3": score_of(9, 9),
    }
    assert list(statistics.ratios(scores)) == ["greedy-2", "last_k-3"]
    picked = statistics.ratios(scores, suffix="-2")
    assert picked == {"greedy": statistics.ppl_ratio(scores["greedy-2"], scores["whole"])}
    assert statistics.rises(scores)["greedy-2"] == pytest.approx(0.2)
    assert list(statistics.rises(scores)) == ["greedy-2", "last_k-3"]


def test_accuracies_are_grouped_by_family():
    answers = {"whole: copying": answers_of("1100"), "cut, late: copying": answers_of("1000")}
    table = statistics.accuracies(answers)
    assert {name: i.point for name, i in table["copying"].items()} == {
        "whole": 0.5,
        "cut, late": 0.25,
    }


def about(point: float) -> statistics.Interval:
    return statistics.Interval(point, point - 0.1, point + 0.1, 24)


def test_names_give_depth_seed_and_budget():
    one, two = about(1.1), about(1.2)
    assert statistics.by_depth({"cut, 2 fewer": one, "prune_and_comp, 3 fewer": two, "x": one}) == {
        "cut": {2: one},
        "prune_and_comp": {3: two},
    }
    assert statistics.by_seed({"3,7, seed 0": one, "3,7, seed 1": two, "cut": one}) == {
        "3,7": {"seed 0": one, "seed 1": two}
    }
    budget = {"articles, 250000 tokens": one, "articles, 4096 tokens": two, "whole": one}
    budget["own words, 0 tokens"] = two
    assert statistics.by_budget(budget) == {
        "articles": {4_096: two, 250_000: one},
        "own words": {0: two},
    }


def test_depth_is_the_share_of_parameters_and_seeds_are_averaged():
    """Two seeds are one point: the exponential of their mean loss, not the mean of two ratios."""
    sizes = {"0 fewer": Size(12, 100, 200), "3 fewer": Size(9, 80, 160)}
    scores = {
        "whole": score_of(300, 400),
        "3 fewer, cut": score_of(360, 480),
        "3 fewer, healed": score_of(310, 410),
        "3 fewer, healed, seed 0": score_of(310, 410),  # the same run again
        "3 fewer, healed, seed 1": score_of(330, 450),
    }
    lines = statistics.by_share(scores, sizes)
    (share,) = lines["cut"]
    assert share == pytest.approx(0.2) and list(lines) == ["cut", "healed"]
    assert lines["cut"][share] == statistics.ppl_ratio(scores["3 fewer, cut"], scores["whole"])
    mean = statistics.ppl_ratio(score_of(320, 430), scores["whole"])
    assert lines["healed"][share] == mean


def test_the_matched_cost_compares_two_models_trained_on_the_same_text():
    sizes = {"0 fewer": Size(12, 100, 200), "3 fewer": Size(9, 80, 160)}
    scores = {
        "whole": score_of(300, 400),
        "whole, same text": score_of(290, 390),
        "3 fewer, ce": score_of(300, 400),
    }
    (matched,) = statistics.by_share(scores, sizes)["matched"].values()
    assert matched == statistics.ppl_ratio(scores["3 fewer, ce"], scores["whole, same text"])


def test_the_best_comes_first_diverged_runs_last_and_the_whole_model_is_left_out():
    scores = {"whole": score_of(1, 1), "a": score_of(9, 9), "b": score_of(5, 5)}
    scores |= {"c": replace(score_of(2, 2), diverged="at step 1"), "d": score_of(5, 5)}
    assert statistics.ranked(scores) == ["b", "d", "a", "c"]


def test_factors_are_compared_with_the_level_that_was_kept():
    distances = {
        "lr: 0.0001": distance_of(30, 50),
        "lr: 0.0004": distance_of(24, 40),
        "refit_tokens: 0": distance_of(40, 60),
        "refit_tokens: 4096": distance_of(30, 50),
    }
    kept = Recipe(tokens=4_096, lr=1e-4, refit_tokens=4_096)
    chosen = {"lr": "0.0001", "refit_tokens": "4096"}
    assert statistics.kept_levels(distances, kept) == chosen
    table = statistics.by_factor(distances, kept)
    assert all(table[factor][level].point == 1 for factor, level in chosen.items())
    assert table["lr"]["0.0004"].point == pytest.approx(64 / 80)
    assert table["refit_tokens"]["0"].point == pytest.approx(100 / 80)


def test_a_kl_ratio_resamples_documents_in_pairs():
    student, other = distance_of(30, 50, 80), distance_of(20, 20, 30)
    ratio = statistics.kl_ratio(student, other)
    draws = np.random.default_rng(1).integers(0, 3, (20_000, 3))
    sums = [np.asarray(found.kl_nats)[draws].sum(1) for found in (student, other)]
    inside = np.mean((ratio.low <= sums[0] / sums[1]) & (sums[0] / sums[1] <= ratio.high))
    assert ratio.point == pytest.approx(160 / 70) and inside > 0.85
    assert statistics.kl_ratio(other, other).low == statistics.kl_ratio(other, other).high == 1
    assert statistics.kl_ratio(distance_of(3), distance_of(2)).note == "one document"
    with pytest.raises(ValueError, match="different documents or tokens"):
        statistics.kl_ratio(student, distance_of(20, 20))
