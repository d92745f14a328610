"""The race keeps its promise on made-up pools, its bounds theirs under simulation, and on a model it finds what a full
search finds."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from tiny import FAMILIES, plain_logits, state_of, tiny, tiny_windows

from depthprune_core import racing, records, subsets
from depthprune_core.racing import bounds, looks, race
from depthprune_core.records import Stamp
from depthprune_core.text import Windows

N_LAYERS, N_WINDOWS = 10, 100


# ---------------------------------------------------------------- bounds


def ever_above_and_ever_below(rows: np.ndarray, alpha: float) -> tuple[float, float]:
    """Shares of rows whose lower bound is above their mean, and whose upper bound is below it, at any look; alpha is for all looks."""
    above = below = np.zeros(len(rows), dtype=bool)
    n_windows = rows.shape[1]
    seen = looks(n_windows)
    for n in seen[:-1]:
        low, high = bounds(rows[:, :n], n_windows, alpha / (len(seen) - 1))
        above, below = above | (low > rows.mean(1)), below | (high < rows.mean(1))
    return float(above.mean()), float(below.mean())


@pytest.mark.parametrize("n", [2, 8, 30, 59])
def test_each_bound_of_normal_rows_is_wrong_exactly_as_often_as_it_says(n):
    rows = np.random.default_rng(0).normal(loc=1.0, scale=3.0, size=(20_000, 60))
    low, high = bounds(rows[:, :n], 60, 0.05)
    assert (low > rows.mean(1)).mean() == pytest.approx(0.05, abs=0.006)  # four standard errors
    assert (high < rows.mean(1)).mean() == pytest.approx(0.05, abs=0.006)


def test_at_all_looks_together_the_bounds_are_rarely_wrong():
    above, below = ever_above_and_ever_below(np.random.default_rng(0).normal(scale=3.0, size=(4_000, 200)), 0.1)
    assert min(above, below) > 0.02 and max(above, below) <= 0.1


def test_heavy_tails_do_not_break_the_bounds():
    above, below = ever_above_and_ever_below(np.random.default_rng(1).standard_t(5, size=(4_000, 200)), 0.05)
    assert min(above, below) > 0 and max(above, below) <= 0.05


def test_a_long_tail_on_one_side_breaks_the_bound_of_the_other_side_alone():
    """Skewness 2: the bounds are for gaps that are about normal, and say so."""
    above, below = ever_above_and_ever_below(np.random.default_rng(2).exponential(size=(4_000, 200)), 0.05)
    assert above <= 0.05 < below


def test_for_a_long_text_the_bounds_are_those_of_the_t_test():
    row = np.random.default_rng(3).normal(size=12)
    low, high = bounds(row[None], 10**12, 0.005)
    assert (low[0], high[0]) == pytest.approx(tuple(stats.ttest_1samp(row, 0.0).confidence_interval(0.99)))


def test_one_window_tells_nothing_and_all_windows_everything():
    rows = np.random.default_rng(4).normal(size=(3, 9))
    assert [bound.tolist() for bound in bounds(rows[:, :1], 9, 0.05)] == [[-np.inf] * 3, [np.inf] * 3]
    for bound in bounds(rows, 9, 0.05):
        assert bound == pytest.approx(rows.mean(1))


def test_bounds_move_and_stretch_with_the_rows_and_widen_with_certainty():
    rows = np.random.default_rng(6).normal(size=(3, 30))
    low, high = bounds(rows, 90, 0.05)
    moved_low, moved_high = bounds(7 - 2 * rows, 90, 0.05)
    assert moved_low == pytest.approx(7 - 2 * high) and moved_high == pytest.approx(7 - 2 * low)
    surer_low, surer_high = bounds(rows, 90, 0.01)
    assert (surer_low < low).all() and (surer_high > high).all()


@pytest.mark.parametrize("n_windows", [1, 7, 8, 9, 128])
def test_looks_begin_with_a_few_windows_and_end_with_all(n_windows):
    seen = looks(n_windows)
    assert seen[0] == min(racing.FIRST_WINDOWS, n_windows) and seen[-1] == n_windows
    assert seen == sorted(set(seen))


# ---------------------------------------------------------------- made-up pools


def pool(seed: int, k: int, *, noise: float = 0.3, n_windows: int = N_WINDOWS) -> dict[tuple[int, ...], np.ndarray]:
    """NLL of each window for each set of up to k layers: a cost of each layer and of each pair, an effect that the window
    has on all sets, on all sets with one layer (`noise`), and on this set alone. Dropping more always costs more."""
    generator = np.random.default_rng(seed)
    single, pair = generator.uniform(0.05, 0.5, N_LAYERS), generator.normal(0, 0.01, (N_LAYERS, N_LAYERS))
    shared, by_layer = generator.normal(3, 1, n_windows), noise * generator.normal(size=(N_LAYERS, n_windows))
    values = {}
    for dropped in (subset for size in range(k + 1) for subset in itertools.combinations(range(N_LAYERS), size)):
        cost = single[list(dropped)].sum() + sum(pair[two] for two in itertools.combinations(dropped, 2))
        own = 0.1 * noise * generator.normal(size=n_windows) if dropped else 0.0
        values[dropped] = shared + cost + by_layer[list(dropped)].sum(0) + own
    return values


class Watched:
    """Hands out a pool's values and counts how often each is asked for."""

    def __init__(self, values: dict[tuple[int, ...], np.ndarray]) -> None:
        self.values = values
        self.times = {dropped: np.zeros(len(row), dtype=int) for dropped, row in values.items()}

    def __call__(self, sets: list[tuple[int, ...]], first: int, stop: int) -> np.ndarray:
        for dropped in sets:
            self.times[dropped][first:stop] += 1
        return np.stack([self.values[dropped][first:stop] for dropped in sets])


def means(values: dict[tuple[int, ...], np.ndarray], k: int) -> dict[tuple[int, ...], float]:
    return {dropped: float(row.mean()) for dropped, row in values.items() if len(dropped) == k}


def best(values: dict[tuple[int, ...], np.ndarray], k: int) -> tuple[int, ...]:
    costs = means(values, k)
    return min(costs, key=costs.get)


@pytest.mark.parametrize("noise", [0.05, 0.3])
@pytest.mark.parametrize("k", [1, 2, 3])
def test_the_winner_is_within_the_tolerance_of_the_best_as_often_as_promised(k, noise):
    failures = early = 0
    for seed in range(200):
        values = pool(seed, k, noise=noise)
        record = race(N_LAYERS, k, Watched(values), n_windows=N_WINDOWS, error_probability=0.05)
        costs = means(values, k)
        failures += costs[record.winner] > min(costs.values()) + 0.002
        early += record.rounds[-1]["windows"] < N_WINDOWS
    assert failures <= 0.05 * 200
    assert early > 0 or noise > 0.1  # where nothing is decided early, no mistake could be seen


def test_the_error_probability_is_shared_out_among_all_comparisons_that_could_lose_the_best(monkeypatch):
    alphas = []
    monkeypatch.setattr(racing, "bounds", lambda gaps, n, alpha: (alphas.append(alpha), bounds(gaps, n, alpha))[1])
    race(N_LAYERS, 3, Watched(pool(0, 3)), n_windows=N_WINDOWS, error_probability=0.05)
    n_looks = len(looks(N_WINDOWS)) - 1  # the last one leaves no doubt
    assert alphas == pytest.approx([0.05 / (n_looks * 7 * 119)] * len(alphas))  # any part of the best of 120 sets, any other


def test_what_a_window_does_to_single_layers_is_taken_out_of_the_cost_of_sets(monkeypatch):
    values, spent = pool(0, 3, noise=1.0), {}
    for share in (0.0, 0.8):
        monkeypatch.setattr(racing, "CONTROL", share)
        record = race(N_LAYERS, 3, Watched(values), n_windows=N_WINDOWS)
        assert record.winner == best(values, 3)
        spent[share] = record.set_windows
    assert spent[0.8] < 0.5 * spent[0.0]


def test_clear_gaps_take_fewer_windows_than_an_exhaustive_search():
    watched = Watched(pool(0, 3, noise=0.05))
    record = race(N_LAYERS, 3, watched, n_windows=N_WINDOWS)
    assert record.winner == best(watched.values, 3)
    assert record.n_sets == 120 and record.ruled_out_by_parts > 60
    assert record.set_windows == sum(times.sum() for times in watched.times.values()) < 0.2 * 120 * N_WINDOWS


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("noise", [0.05, 0.3, 1.0])
def test_no_window_is_measured_twice_and_none_is_left_out(k, noise):
    watched = Watched(pool(1, k, noise=noise))
    record = race(N_LAYERS, k, watched, n_windows=N_WINDOWS)
    for times in watched.times.values():
        assert times.tolist() == sorted(times, reverse=True) and times[0] <= 1  # the first so many, once
    seen = watched.times[record.winner].sum()  # as a leader among its parts, it may have gone further than the race did
    assert record.rounds[0]["windows"] == racing.FIRST_WINDOWS
    assert record.rounds[-1]["windows"] <= seen
    single = [(), *((layer,) for layer in range(N_LAYERS))]  # measured on all windows where they are parts
    assert all(watched.times[dropped].sum() == N_WINDOWS for dropped in single if k > 1)
    measured = sum(times.any() for dropped, times in watched.times.items() if len(dropped) == k)
    assert record.rounds[0]["sets"] == measured == record.n_sets - record.ruled_out_by_parts
    rise = watched.values[record.winner] - watched.values[()]
    if k > 1:
        of_parts = sum(watched.values[(layer,)] - watched.values[()] for layer in record.winner)
        rise = rise - racing.CONTROL * (of_parts - of_parts.mean())
    assert record.rise_nll_nats == pytest.approx(np.mean(rise[:seen]))


def test_ties_are_measured_on_all_windows_and_the_best_there_wins():
    generator = np.random.default_rng(7)
    values = {dropped: 1 + 0.1 * generator.normal(size=N_WINDOWS) for dropped in pool(0, 2)}
    record = race(N_LAYERS, 2, Watched(values), n_windows=N_WINDOWS, tolerance_nats=0.0)
    assert record.rounds[-1]["windows"] == N_WINDOWS and record.ruled_out_by_parts == 0
    assert record.winner == best(values, 2) and list(record.finalists) == [",".join(map(str, record.winner))]


@pytest.fixture
def undecided(monkeypatch: pytest.MonkeyPatch) -> None:
    """No bound is finite while a window is left."""
    monkeypatch.setattr(racing, "bounds", lambda gaps, n, alpha: bounds(gaps if gaps.shape[1] == n else gaps[:, :1], n, alpha))


@pytest.mark.usefixtures("undecided")
def test_finalists_of_an_exhausted_pool_are_all_within_the_tolerance_with_their_exact_gaps():
    values = pool(0, 2, noise=1.0)
    record = race(N_LAYERS, 2, Watched(values), n_windows=N_WINDOWS, tolerance_nats=0.1)
    assert record.rounds[-1] == {"windows": N_WINDOWS, "sets": 45}
    gaps = {dropped: cost - min(means(values, 2).values()) for dropped, cost in means(values, 2).items()}
    within = {",".join(map(str, dropped)): gap for dropped, gap in gaps.items() if gap <= 0.1}
    assert record.finalists == {name: pytest.approx((gap, gap, gap)) for name, gap in within.items()} and len(within) > 1


def test_finalists_of_a_race_that_stopped_early_differ_by_no_more_than_the_tolerance_with_their_bounds():
    record = race(N_LAYERS, 2, Watched(pool(3, 2, noise=0.05)), n_windows=N_WINDOWS, tolerance_nats=0.2)
    assert record.rounds[-1]["windows"] < N_WINDOWS and len(record.finalists) > 1
    for name, (gap, low, high) in record.finalists.items():
        assert low < gap < high or name == ",".join(map(str, record.winner))
        assert -0.2 <= low <= 0


@pytest.mark.parametrize("n_windows", [1, 2, 5, racing.FIRST_WINDOWS - 1])
@pytest.mark.parametrize("k", [1, 2, 3])
def test_fewer_windows_than_a_race_begins_with_are_searched_exactly(k, n_windows):
    for seed in range(20):
        values = pool(seed, k, noise=0.01, n_windows=n_windows)
        record = race(N_LAYERS, k, Watched(values), n_windows=n_windows)
        assert record.winner == best(values, k) and [step["windows"] for step in record.rounds] == [n_windows]


def test_one_layer_is_the_best_layer_and_has_no_parts():
    values = pool(4, 1, noise=0.05)
    record = race(N_LAYERS, 1, Watched(values), n_windows=N_WINDOWS)
    assert record.winner == best(values, 1) and record.n_sets == 10
    assert (record.ruled_out_by_parts, record.part_checks, record.part_failures) == (0, 0, 0)


def test_a_set_that_costs_less_than_its_parts_is_seen():
    values = pool(5, 2, noise=0.01)
    for layer in range(N_LAYERS):
        values[(layer,)] = values[()] + (0.30 if layer < 2 else 0.9)
    values[(0, 1)] = values[()] + 0.25
    record = race(N_LAYERS, 2, Watched(values), n_windows=N_WINDOWS)
    assert record.winner == (0, 1) and record.part_failures == record.part_checks == 2
    assert record.largest_part_failure_nats == pytest.approx(0.05)


@pytest.mark.parametrize(("k", "dropped"), [(1, ()), (1, (3,)), (2, ()), (2, (3,)), (2, "the best")], ids=str)
def test_a_loss_that_is_no_number_is_refused_by_the_layers_that_are_dropped(k, dropped):
    values = pool(5, k, noise=0.01)
    dropped = best(values, k) if dropped == "the best" else dropped
    values[dropped] = values[dropped] * np.nan
    named = f"layers? {', '.join(map(str, dropped))}" if dropped else "no layer"
    with pytest.raises(ValueError, match=f"^a loss with {named} dropped is not finite, so it cannot race$"):
        race(N_LAYERS, k, Watched(values), n_windows=N_WINDOWS)


@pytest.mark.parametrize(
    ("bad", "named"),
    [
        ({"k": 0}, r"k=0 layers to drop: a model of 10 layers can lose 1\.\.9"),
        ({"k": 10}, "k=10 layers to drop"),
        ({"error_probability": 0.0}, "error_probability=0.0,.*a probability between 0 and 1"),
        ({"error_probability": 1.0}, "error_probability=1.0"),
        ({"error_probability": float("nan")}, "error_probability=nan"),
        ({"tolerance_nats": -0.1}, "tolerance_nats=-0.1,.*a tolerance of at least 0"),
        ({"n_windows": 0}, "n_windows=0.*at least one window"),
    ],
    ids=str,
)
def test_a_race_that_cannot_be_is_refused_in_a_sentence(bad, named):
    settings = {"k": 2, "n_windows": N_WINDOWS, **bad}
    with pytest.raises(ValueError, match=named) as refusal:
        race(N_LAYERS, measure=lambda *_: pytest.fail("measured all the same"), **settings)
    assert "\n" not in str(refusal.value)


def test_the_record_of_a_race_is_read_back_as_it_was(tmp_path):
    record = race(N_LAYERS, 2, Watched(pool(6, 2)), n_windows=N_WINDOWS, tolerance_nats=0.05)
    stamp = Stamp("ci", "race", "", "", {}, {}, {}, "cpu", "float32", 0, "no-git")
    assert records.read(records.write(tmp_path / "race.json", record, stamp)) == record


# ---------------------------------------------------------------- on a model


def own_text(model, n_windows: int = 60) -> Windows:
    """Text drawn from the model itself, the last window padded: whatever layer goes, it is predicted worse."""
    windows, generator = tiny_windows(lengths=(12 * n_windows - 5,)), torch.Generator().manual_seed(0)
    inputs, targets = windows.inputs.clone(), windows.targets.clone()
    for at in range(12):
        targets[:, at] = torch.multinomial(plain_logits(model, inputs)[:, at].softmax(-1), 1, generator=generator)[:, 0]
        inputs[:, at + 1 : at + 2] = targets[:, at : at + 1] if at < 11 else 0
    return replace(windows, inputs=inputs, targets=targets)


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_race_finds_what_measuring_everything_finds(name, k):
    model = tiny(name)
    windows = own_text(model)
    costs = {dropped: cost for dropped, cost in subsets.subset_costs(model, windows, k).items() if len(dropped) == k}
    plan, record = racing.best_set(model, windows, k, tolerance_nats=0.05)
    cheapest = min(costs, key=costs.get)
    assert plan.dropped == record.winner and costs[record.winner] <= costs[cheapest] + 0.05
    assert (plan.rule, plan.n_layers, plan.evidence["candidates"]) == ("racing", 5, record.n_sets) == ("racing", 5, 10)
    assert plan.evidence["rise_nll_nats"] == record.rise_nll_nats
    exact, record = racing.best_set(model, windows, k, tolerance_nats=0.0)
    assert exact.dropped == cheapest and record.n_windows == 60


@pytest.mark.usefixtures("undecided")
@pytest.mark.parametrize("batch_size", [3, 99])
@pytest.mark.parametrize("name", FAMILIES)
def test_finalists_of_an_exhausted_race_have_the_gaps_of_the_full_costs(name, batch_size):
    model, windows = tiny(name), tiny_windows(lengths=(475,))
    costs = subsets.subset_costs(model, windows, 2)
    _, record = racing.best_set(model, windows, 2, tolerance_nats=0.05, batch_size=batch_size)
    assert record.rounds[-1]["windows"] == len(windows) == 40 and len(record.finalists) > 1
    for pair, values in record.finalists.items():
        gap = costs[tuple(map(int, pair.split(",")))] - costs[record.winner]
        assert values == pytest.approx((gap, gap, gap), abs=1e-5)
    assert record.rise_nll_nats == pytest.approx(costs[record.winner], abs=1e-5)


def test_one_seed_is_one_race_and_another_seed_sees_other_windows(model):
    windows = own_text(model)
    settings = {"tolerance_nats": 0.5}
    one = racing.best_set(model, windows, 2, seed=1, **settings)
    assert one == racing.best_set(model, windows, 2, seed=1, **settings)
    other = racing.best_set(model, windows, 2, seed=2, **settings)
    assert one[1].rounds[-1]["windows"] < 60 and other[1].rise_nll_nats != one[1].rise_nll_nats


def test_a_race_leaves_the_model_and_the_random_state_as_they_were(model, windows):
    unchanged, random_state = state_of(model), torch.get_rng_state()
    racing.best_set(model, windows, 2)
    assert unchanged() and torch.equal(torch.get_rng_state(), random_state)


def test_the_record_of_a_race_settled_by_its_parts_alone_can_be_saved(tmp_path: Path) -> None:
    """Five layers stand out: no other set is left when whole sets begin to race."""
    draw = np.random.default_rng(0)
    cost, own = np.where(np.arange(12) < 5, 0.1, 3.0), draw.normal(0, 0.05, (12, 100))

    def measure(sets, first, stop):
        return np.stack([3 + sum((cost[i] + own[i, first:stop] for i in s), np.zeros(stop - first)) for s in sets])

    record = race(12, 5, measure, n_windows=100, error_probability=1e-3)
    assert record.winner == (0, 1, 2, 3, 4) and record.finalists == {"0,1,2,3,4": (0.0, 0.0, 0.0)}
    stamp = Stamp("s", "n/r", "c", "b", {}, {}, {}, "cpu", "float32", 0, "no-git")
    assert records.read(records.write(tmp_path / "race.json", record, stamp)) == record


def test_a_race_without_windows_is_refused() -> None:
    with pytest.raises(ValueError, match="no window to race on"):
        racing.best_set(tiny("gpt2"), tiny_windows().take(slice(0, 0)), 1)
