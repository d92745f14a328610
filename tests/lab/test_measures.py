"""Measurements on the whole model are kept, resumed and made on demand; plans made from them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest

from depthprune_core import selection, sensitivity, storage, subsets
from depthprune_core.records import Profile, Score, SetCosts
from depthprune_core.text import Windows
from depthprune_study.errors import StudyError
from depthprune_study.lab import cache, measures
from depthprune_study.lab.workspace import Workspace
from depthprune_study.results import statistics

Open = Callable[..., Workspace]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """(sets, windows) of every measuring of sets."""
    made, nll = [], subsets.nll_by_window

    def watched(model, windows, sets, **options):
        made.append((len(sets), len(windows)))
        return nll(model, windows, sets, **options)

    monkeypatch.setattr(subsets, "nll_by_window", watched)
    return made


def windows_of(lab: Workspace) -> Windows:
    return lab.windows("calibration", tokens=40)


@pytest.mark.parametrize("model", ["llama-tiny", "gpt2-mini"])
def test_a_profile_is_measured_once(
    open_lab: Open, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = open_lab(model=model)
    profile = measures.profile(lab, windows_of(lab), gradients=False)
    assert profile.n_layers == lab.n_layers
    assert "taylor" not in profile.criteria
    monkeypatch.setattr(sensitivity, "profile", None)
    lab = open_lab(model=model)
    assert measures.profile(lab, windows_of(lab), gradients=False) == profile


def test_set_costs_are_those_of_the_core_and_resume_after_a_stop(
    open_lab: Open, calls: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measures, "AT_ONCE", 2)
    lab = open_lab()
    windows = windows_of(lab)
    n_parts = -(-len(windows) // 2)
    costs = measures.set_costs(lab, windows, up_to=2, name="pairs")
    assert len(calls) == n_parts > 1
    expected = subsets.rises(lab.teacher.model, windows, subsets.up_to(6, 2))
    assert list(costs.rise_nll_nats.values()) == pytest.approx(expected, abs=1e-6)
    del calls[:]
    (lab.folder / "measured").joinpath(sorted(p.name for p in measured(lab))[0]).unlink()
    assert measures.set_costs(open_lab(), windows, up_to=2, name="pairs") == costs
    assert len(calls) == 1


def measured(lab: Workspace) -> list:
    return list((lab.folder / "measured").glob("*.json"))


def test_plans_of_every_rule_and_count(lab: Workspace, calls: list[tuple[int, int]]) -> None:
    windows = windows_of(lab)
    profile = measures.profile(lab, windows)
    costs = measures.set_costs(lab, windows, up_to=2, name="costs")
    plans = measures.plans(lab, profile, costs, [1, 3], windows=windows, draws=2)
    assert plans == lab.read(lab.notebook, "plans")
    rules = {name.rpartition("-")[0] for name in plans}
    drawn = {"random_0", "random_1"}
    assert rules == {*selection.RULES} - {"random"} | drawn
    assert "exhaustive-1" in plans
    assert "exhaustive-3" not in plans  # not all sets of three were measured
    assert all(len(plan.dropped) == int(name[-1]) for name, plan in plans.items())
    known = selection.Evidence(6, profile, partial(subsets.rises, lab.teacher.model, windows))
    assert plans["greedy-3"].dropped == selection.choose("greedy", known, 3).dropped


def test_a_count_that_cannot_be_dropped_is_refused(lab: Workspace) -> None:
    windows = windows_of(lab)
    profile = measures.profile(lab, windows, gradients=False)
    with pytest.raises(StudyError, match=r"drop_counts: k=6.* can lose 1..5"):
        measures.plans(lab, profile, None, [6], windows=windows, rules=["least_sensitive"])


def test_cuts_are_the_cheaper_of_two_searches_and_reuse_the_costs_of_notebook_02(
    lab: Workspace, calls: list[tuple[int, int]]
) -> None:
    costs = measures.set_costs(lab, windows_of(lab), up_to=2, name="costs")
    stamp = cache.stamped(lab, "costs")
    stamp = replace(stamp, parameters={"calibration_tokens": 40})
    storage.write(lab.record_path("costs", "02_prune"), costs, stamp)
    del calls[:]
    plans = measures.cuts(lab, [1, 2, 3], after="02_prune")
    n, pair = lab.n_layers, plans[2].dropped
    third = {tuple(sorted({*pair, layer})) for layer in range(n)} - {pair}
    spans = {(first, first + 1, first + 2) for first in range(n - 2)}
    assert sum(n_sets for n_sets, _ in calls) == 2 + len(third | spans)  # twice the whole model
    rises = measures.set_costs(lab, windows_of(lab), up_to=3, name="all").by_layers
    assert rises[plans[3].dropped] == min(rises[layers] for layers in third | spans)


def test_published_sizes_are_the_sources(lab: Workspace) -> None:
    sizes = measures.published(lab).values
    assert sizes["gpt2, 12 layers"]["n_parameters"] == 124_439_808
    assert sizes["gpt2, 10 layers"]["n_parameters"] == 110_264_064
    assert sizes["gpt2, 9 layers"]["n_parameters"] == 103_176_192
    assert sizes["tinyllama-1.1b, 22 layers"]["n_parameters"] == 1_100_048_384
    assert sizes["tinyllama-1.1b, 20 layers"]["n_parameters"] == 1_011_959_808
    assert sizes["tinyllama-1.1b, 19 layers"]["n_parameters"] == 967_915_520


def score_of(nll: float, diverged: str = "") -> Score:
    return Score(("a",), (nll,), (1,), (4,), diverged)


def profile_of(*drop_one: float) -> Profile:
    rows = tuple((value,) for value in drop_one)
    return Profile(len(drop_one), score_of(1.0), {"drop_nll_nats": rows}, {}, {"1": drop_one})


def test_pairs_of_the_cheapest_layers_come_first_then_a_spread_of_the_others() -> None:
    profile = profile_of(5, 0, 2, 1, 9)
    rises = {f"{i},{j}": float(10 * i + j) for i in range(5) for j in range(i + 1, 5)}
    pairs = measures.pairs_to_try(profile, SetCosts(5, rises), cheap=3, spread=3)
    n_cheap = statistics.cheap_pairs(len(pairs), 3)
    assert pairs[:n_cheap] == [(1, 2), (1, 3), (2, 3)]
    assert len(pairs) == len(set(pairs)) == 6
    others = sorted(p for p in map(key, rises) if not set(p) <= {1, 2, 3})
    assert pairs[-1] == others[-1]


def key(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(",")))


def test_the_best_are_neither_the_whole_model_nor_diverged() -> None:
    scores = {"whole": score_of(1), "a": score_of(3), "b": score_of(2), "c": score_of(1.5, "nan")}
    assert list(measures.best(scores, 2)) == ["b", "a"]
