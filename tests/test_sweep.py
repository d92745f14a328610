from __future__ import annotations

from dataclasses import replace

import handmade
import pytest
from tiny import FAMILIES, tiny, tiny_windows

from depthprune_core import racing, selection, sensitivity, subsets
from depthprune_study import rules, sweep
from depthprune_study.settings import StudyError

FACTORS = {
    "rate": {"0.1": {"lr": 0.1}, "0.2": {"lr": 0.2}},
    "batch": {"2": {"batch": 2}, "4": {"batch": 4}},
    "part": {"all": {"part": "all"}, "some": {"part": "some"}},
}
COST = {"lr": {0.1: 0.3, 0.2: 0.1}, "batch": {2: 0.2, 4: 0.5}, "part": {"all": 0.3, "some": 0.1}}


def run_on(seen: list):
    def run(name, recipe):
        seen.append((name, dict(recipe)))
        return handmade.score(3.0 + sum(COST[key][value] for key, value in recipe.items() if key in COST))

    return run


def test_each_factors_best_level_is_kept_while_the_next_is_tried() -> None:
    seen: list = []
    best, scores = sweep.one_factor_at_a_time({"batch": 2, "part": "all", "T": 1}, FACTORS, run_on(seen))
    assert best == {"batch": 2, "part": "some", "T": 1, "lr": 0.2}
    assert [recipe for _, recipe in seen] == [
        {"batch": 2, "part": "all", "T": 1, "lr": 0.1},
        {"batch": 2, "part": "all", "T": 1, "lr": 0.2},
        {"batch": 4, "part": "all", "T": 1, "lr": 0.2},
        {"batch": 2, "part": "some", "T": 1, "lr": 0.2},
    ]  # a recipe that comes again is not run again
    assert [name for name, _ in seen] == ["rate-0.1", "rate-0.2", "batch-4", "part-some"]
    assert list(scores) == [f"{factor}: {level}" for factor, levels in FACTORS.items() for level in levels]
    assert scores["rate: 0.2"] == scores["batch: 2"] == scores["part: all"]


def test_the_earlier_level_wins_a_tie() -> None:
    assert sweep.lowest({"a": handmade.score(3.0), "b": handmade.score(3.0)}) == "a"
    assert sweep.lowest({"a": handmade.score(3.1), "b": handmade.score(3.0)}) == "b"


@pytest.mark.parametrize("name", FAMILIES)
def test_a_rule_by_its_name_is_the_rule_itself(name: str) -> None:
    model, windows = tiny(name), tiny_windows()
    costs = subsets.CostFunction(model, windows)
    profile = sensitivity.profile(model, windows)
    chosen = {rule: rules.choose(rule, 2, model, windows).dropped for rule in rules.NAMES}
    assert chosen["least_sensitive"] == selection.least_sensitive(profile.drop_one, 2).dropped
    assert chosen["most_sensitive"] == rules.choose("most_sensitive", 2, model, windows, profile=profile).dropped
    for rule in rules.BY_COST:
        assert chosen[rule] == getattr(selection, rule)(5, 2, costs).dropped
    assert chosen["last_k"] == (3, 4)
    assert chosen["racing"] == racing.best_set(model, windows, 2)[0].dropped


def test_a_trial_that_diverged_never_wins() -> None:
    diverged = replace(handmade.score(2.0), diverged="the kl loss is nan at step 3")
    assert sweep.lowest({0.1: handmade.score(3.1), 10.0: diverged}) == 0.1
    with pytest.raises(StudyError, match=r"every trial diverged \(1.0, 10.0\): give lower learning rates"):
        sweep.lowest({1.0: diverged, 10.0: diverged})
