"""Intervals on examples by hand, and against scipy."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from depthprune_core import intervals
from depthprune_core.records import Profile, Score


def score_of(*nll_nats: float, n_tokens: tuple[int, ...] | None = None) -> Score:
    n_tokens = n_tokens or (100,) * len(nll_nats)
    return Score(tuple(f"d{i}" for i in range(len(nll_nats))), nll_nats, n_tokens, tuple(4 * n for n in n_tokens))


def profile_of(rises: list[list[float]], n_tokens: tuple[int, ...]) -> Profile:
    rows = tuple(map(tuple, rises))
    teacher = score_of(*(300.0,) * len(n_tokens), n_tokens=n_tokens)
    return Profile(len(rows), teacher, {"drop_nll_nats": rows}, {}, {"1": (0.0,) * len(rows)})


def test_ppl_ratio_of_a_hand_computed_example():
    """Two documents, 0.1 and 0.3 nats a token worse: a resample holds one of them twice in a quarter of the draws each."""
    ratio = intervals.ppl_ratio(score_of(310, 430), score_of(300, 400))
    assert (ratio.point, ratio.low, ratio.high) == pytest.approx((math.exp(0.2), math.exp(0.1), math.exp(0.3)))
    assert (ratio.n, ratio.effective_n) == (2, 2)


def test_a_ratio_of_a_run_that_diverged_says_so():
    student = replace(score_of(310, 430), diverged="the kl loss is nan at step 3")
    ratio = intervals.ppl_ratio(student, score_of(300, 400))
    assert str(ratio) == "1.221 [1.105, 1.350] (diverged; its start is shown)"
    assert not intervals.ppl_ratio(score_of(310, 430), score_of(300, 400)).note


def test_a_ratio_beyond_all_numbers_is_infinite():
    ratio = intervals.ppl_ratio(score_of(100_000, 120_000), score_of(300, 400))
    assert (ratio.point, ratio.high) == (math.inf, math.inf)


def test_a_ratio_of_a_loss_that_is_no_number_is_none():
    ratio = intervals.ppl_ratio(score_of(310, math.nan), score_of(300, 400))
    assert str(ratio) == "nan [nan, nan]"


def test_documents_count_by_their_tokens():
    rise = intervals.nll_rise(score_of(310, 260, n_tokens=(100, 300)), score_of(300, 200, n_tokens=(100, 300)))
    assert rise.point == pytest.approx(70 / 400)
    assert rise.effective_n == pytest.approx(400**2 / (100**2 + 300**2))


def test_the_ratio_is_that_of_the_two_perplexities():
    student, teacher = score_of(310, 433, 287), score_of(300, 400, 290)
    assert intervals.ppl_ratio(student, teacher).point == pytest.approx(student.ppl / teacher.ppl)


def test_what_all_documents_share_has_no_width():
    rise = intervals.nll_rise(score_of(310, 410, 510), score_of(300, 400, 500))
    assert (rise.point, rise.low, rise.high) == pytest.approx((0.1, 0.1, 0.1))


def test_one_document_gives_no_interval():
    rise = intervals.nll_rise(score_of(310), score_of(300))
    assert (rise.low, rise.high, rise.n) == (-math.inf, math.inf, 1)


def test_an_interval_from_many_documents_is_near_the_normal_one():
    rng = np.random.default_rng(1)
    sums = rng.normal(20, 10, size=200)
    interval = intervals.mean_per_token(sums, (100,) * 200)
    half = 1.96 * np.std(sums, ddof=1) / math.sqrt(200) / 100
    assert (interval.low, interval.high) == pytest.approx((interval.point - half, interval.point + half), abs=0.2 * half)
    assert interval == intervals.mean_per_token(sums, (100,) * 200)


@pytest.mark.parametrize(
    "other", [score_of(300, 400, n_tokens=(100, 99)), Score(("a", "b"), (3.0, 4.0), (100, 100), (400, 400))]
)
def test_scores_of_other_tokens_are_not_compared(other):
    with pytest.raises(ValueError, match="not of the same documents and tokens"):
        intervals.nll_rise(score_of(310, 430), other)
    with pytest.raises(ValueError, match="not of the same documents and tokens"):
        intervals.gain_difference(score_of(310, 430), score_of(310, 430), other, other)


def test_the_mean_score_of_several_seeds_is_taken_document_by_document():
    assert intervals.mean_score([score_of(310, 430), score_of(300, 410)]) == score_of(305, 420)
    with pytest.raises(ValueError, match="not of the same documents"):
        intervals.mean_score([score_of(310, 430), score_of(300)])


def test_gain_difference_is_what_the_student_won_beyond_the_control():
    before, after, control_before, control_after = (
        score_of(340, 440),
        score_of(310, 410),
        score_of(300, 400),
        score_of(290, 390),
    )
    gain = intervals.gain_difference(before, after, control_before, control_after)
    assert (gain.point, gain.low, gain.high) == pytest.approx((0.2, 0.2, 0.2))


def test_bootstrap_p_of_clear_and_of_no_difference():
    assert intervals.bootstrap_p([1, 2, 3, 1, 2, 3], [10] * 6) == 2 / (intervals.RESAMPLES + 1)
    assert intervals.bootstrap_p([-1, -2, -3, -1, -2, -3], [10] * 6) == 2 / (intervals.RESAMPLES + 1)
    assert intervals.bootstrap_p([1, -1, 2, -2], [10] * 4) > 0.8
    assert intervals.bootstrap_p([0, 0, 0], [10] * 3) == 1


def test_bootstrap_p_of_a_hand_computed_example():
    """Two documents, one better, one worse by less: a resample is not above 0 when both draws are the worse one, 1/4."""
    assert intervals.bootstrap_p([3, -1], [10, 10]) == pytest.approx(0.5, abs=0.04)


def test_holm_of_a_hand_computed_example():
    """0.01 x 4; 0.02 x 3; 0.03 x 2 = 0.06; 0.055 x 1 is lifted to 0.06."""
    assert intervals.holm({"d": 0.055, "a": 0.01, "c": 0.03, "b": 0.02}) == pytest.approx(
        {"a": 0.04, "b": 0.06, "c": 0.06, "d": 0.06}
    )
    assert intervals.holm({"a": 0.6, "b": 0.7}) == pytest.approx({"a": 1.0, "b": 1.0})
    assert intervals.holm({}) == {}


@pytest.mark.parametrize("values", [(9.72, 9.72, 9.70), (1.0, 2.0), (1.0, 1.5, 0.7, 2.2, 1.9)])
def test_interval_over_seeds_is_scipys_t_interval(values):
    interval = intervals.over_seeds(values)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high))
    assert (interval.point, interval.n) == (pytest.approx(np.mean(values)), len(values))


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_a_seed_whose_ratio_overflows_makes_the_mean_infinite():
    interval = intervals.over_seeds([1.05, math.inf, 1.06])
    assert (interval.point, interval.low, interval.high, interval.n) == (math.inf, math.inf, math.inf, 3)


def test_one_seed_has_no_interval():
    with pytest.raises(ValueError, match="at least 2 seeds, got 1"):
        intervals.over_seeds([9.72])


def test_median_ratio_of_a_hand_computed_example():
    ratio = intervals.median_ratio([10, 24, 18, 10, 20], [10, 10, 10, 5, 8])  # 1.0, 2.4, 1.8, 2.0, 2.5
    assert ratio.point == pytest.approx(2.0)
    assert 1.0 <= ratio.low < 2.0 < ratio.high <= 2.5
    assert str(intervals.median_ratio([3, 3], [2, 2])) == "1.500 [1.500, 1.500]"


def test_layer_intervals_are_one_a_layer():
    profile = profile_of([[10, 30], [5, 5]], (100, 100))
    first, second = intervals.layer_intervals(profile, "drop_nll_nats")
    assert (first.point, first.low, first.high) == pytest.approx((0.2, 0.1, 0.3))
    assert (second.point, second.low, second.high) == pytest.approx((0.05, 0.05, 0.05))


def test_ranks_are_drawn_over_documents_and_0_is_the_least_sensitive():
    profile = profile_of([[9, 9], [1, 3], [3, 1]], (100, 100))  # layers 1 and 2 change places with the documents drawn
    ranks = intervals.rank_draws(profile, draws=400)
    assert ranks.shape == (400, 3) and all(sorted(row) == [0, 1, 2] for row in ranks.tolist())
    assert set(ranks[:, 0]) == {2}
    assert 0.15 < (ranks[:, 2] == 0).mean() < 0.35  # both draws are the second document


def test_the_ranking_from_all_documents_is_its_own():
    rng = np.random.default_rng(0)
    profile = profile_of((np.arange(6)[:, None] + rng.normal(0, 3, size=(6, 5))).tolist(), (100,) * 5)
    stability = intervals.rank_stability(profile)
    assert list(stability) == [1, 2, 3, 4, 5]
    assert stability[5] == pytest.approx(1) and stability[1] < stability[3] < 1


def test_spearman_sees_order_alone_and_is_0_for_what_does_not_vary():
    table = intervals.spearman({"a": [1, 2, 3, 4], "b": [1, 10, 100, 1000], "c": [4, 3, 2, 1]})
    assert (table["a"]["b"], table["a"]["c"], table["b"]["b"]) == pytest.approx((1, -1, 1))


def test_spearman_of_a_constant_is_zero():
    assert intervals.spearman({"a": [1, 2, 3], "b": [5, 5, 5]}) == {"a": {"a": pytest.approx(1), "b": 0}, "b": {"a": 0, "b": 0}}
    assert intervals.rank_stability(profile_of([[5, 5], [5, 5], [5, 5]], (100, 100))) == {1: 0, 2: 0}
