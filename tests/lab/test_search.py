"""Choices among recipes, made only on validation articles."""

from __future__ import annotations

from pathlib import Path

import pytest

from depthprune_core import distillation
from depthprune_core.records import Divergence, Plan, Recipe, Score
from depthprune_study import parameters
from depthprune_study.errors import StudyError
from depthprune_study.lab import scoring, search, students, weights
from depthprune_study.lab.workspace import Workspace

PLAN = Plan(6, (2, 3), "by hand")
BASE = Recipe(tokens=192, lr=1e-4, batch_tokens=96, seq_len=48)


RATES = (1e-4, 1e-3)
ON_TEXT = BASE.but(kl=0.0, ce=1.0)


def trial_of(kl: float, diverged: str = "", nll: float = 0.0) -> search.Trial:
    distance = Divergence(("a",), (kl,), (1,), (1,))
    return Score(("a",), (nll,), (1,), (4,), diverged), distance


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Recipe]]:
    """Quick trials: the further from lr = 3e-4 and temperature 2, the worse."""
    tried: list[tuple[str, Recipe]] = []

    def trial(lab, name, plan, recipe, *, start=None):
        tried.append((name, recipe))
        kl = abs(recipe.lr - 3e-4) + abs(recipe.temperature - 2) + recipe.ce
        return trial_of(kl, nll=-kl)

    monkeypatch.setattr(search, "trial", trial)
    return tried


def test_the_best_rate_is_that_of_the_lowest_validation_loss(lab: Workspace) -> None:
    rates = [1e-5, 1e-3, 1e30]
    recipe, trials = search.best_rate(lab, "text", PLAN, ON_TEXT, rates, tokens=192)
    assert set(trials) == {"text, lr 1e-05", "text, lr 0.001", "text, lr 1e+30"}
    assert trials["text, lr 1e+30"][0].diverged
    sound = {lr: trials[f"text, lr {lr:g}"][0].mean_nll_nats for lr in (1e-5, 1e-3)}
    assert recipe.lr == min(sound, key=sound.get)
    assert recipe.but(lr=1e-4) == ON_TEXT
    student = students.recover(lab, "x", PLAN, recipe, keep_weights=False)
    assert (scoring.validation(lab, {"x": student})["x"], None) in trials.values()


def test_a_student_of_the_whole_model_is_chosen_by_its_distance(
    lab: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials = {"a, lr 0.1": trial_of(2, nll=1), "a, lr 0.2": trial_of(1, nll=2)}
    monkeypatch.setattr(search, "trial", lambda lab, name, *_, **options: trials[name])
    recipe, tried = search.best_rate(lab, "a", PLAN, BASE, [0.1, 0.2], tokens=192)
    assert (recipe.lr, tried) == (0.2, trials)
    tried["b"] = trial_of(1, "nan")
    scores, distances = search.saved(lab, tried)
    assert list(scores) == [*trials, "b"] and list(distances) == list(trials)
    assert lab.read(lab.notebook, "distances") == distances
    assert search.saved(lab, {"c": (tried["b"][0], None)})[1] == {}
    assert search.best_rate(lab, "a", PLAN, BASE, [0.3], tokens=192) == (BASE.but(lr=0.3), {})
    assert search.saved(lab, {}) == ({}, {})


def test_a_trial_is_healed_once_and_its_distance_is_that_of_a_kept_student(
    lab: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    healed, recover = [], distillation.recover

    def counted(*args, **options):
        healed.append(args)
        return recover(*args, **options)

    monkeypatch.setattr(distillation, "recover", counted)
    monkeypatch.setattr(weights, "LIMIT_BYTES", 0)  # only the last student stays in memory
    _, trials = search.one_factor_at_a_time(
        lab, PLAN, BASE, {"lr": [1e-4, 1e-3], "temperature": [1.0, 2.0]}, tokens=192
    )
    assert len(healed) == 3  # the level kept is also the first of the next factor
    for name, (_, distance) in trials.items():
        if name.startswith("lr: "):
            recipe = BASE.but(lr=float(name[4:]))
            student = students.recover(lab, "kept", PLAN, recipe)
            assert scoring.divergences(lab, {"x": student})["x"] == distance


def test_a_factor_without_kl_is_refused_before_any_trial(
    lab: Workspace, pretended: list[tuple[str, Recipe]]
) -> None:
    with pytest.raises(StudyError, match="factors: 'kl: 0' trains without KL"):
        factors = {"lr": [1e-4], "kl": [1.0, 0.0]}
        search.one_factor_at_a_time(lab, PLAN, BASE.but(ce=1.0), factors, tokens=192)
    assert pretended == []


def test_a_student_that_is_not_a_cut_is_searched_from_its_start(lab: Workspace) -> None:
    start = students.cut(lab, PLAN)
    by_start = search.best_rate(lab, "a", None, BASE, RATES, tokens=192, start=start)[1]
    by_plan = search.best_rate(lab, "b", PLAN, BASE, RATES, tokens=192)[1]
    assert list(by_start.values()) == list(by_plan.values())
    with pytest.raises(StudyError, match="without a plan, start="):
        search.best_rate(lab, "c", None, BASE, RATES, tokens=192)


def test_each_factors_best_level_is_kept_while_the_next_is_tried(
    lab: Workspace, pretended: list[tuple[str, Recipe]]
) -> None:
    factors = {
        "lr": [1e-4, 3e-4],
        "temperature": [1.0, 2.0],
        "ce": [0.0, 0.5],
        "seq_len": [48, 40],
    }
    kept, trials = search.one_factor_at_a_time(lab, PLAN, BASE, factors, tokens=192)
    assert list(trials) == [
        "lr: 0.0001",
        "lr: 0.0003",
        "temperature: 1",
        "temperature: 2",
        "ce: 0",
        "ce: 0.5",
        "seq_len: 48",
        "seq_len: 40",
    ]
    assert all(recipe.lr == 3e-4 for name, recipe in pretended[2:])
    assert pretended[-1][1].batch_tokens == 80  # whole windows
    assert kept == BASE.but(lr=3e-4, temperature=2.0)  # the earlier level wins a tie
    first = list(pretended)
    again = search.one_factor_at_a_time(lab, PLAN, kept, factors, tokens=192)
    assert again == (kept, trials) and pretended[len(first) :] == first  # its own result as base


def test_the_earlier_of_two_that_tie_wins_and_none_that_diverged() -> None:
    trials = {"a": trial_of(2), "b": trial_of(1), "c": trial_of(1), "d": trial_of(0, "nan")}
    assert search.best(trials) == "b"
    with pytest.raises(StudyError, match=r"every trial diverged \(d, e\)"):
        search.best({"d": trial_of(0, "nan"), "e": trial_of(0, "inf")})


def test_a_written_recipe_is_read_back_by_every_notebook(tmp_path: Path) -> None:
    recipe = Recipe(tokens=4096, lr=1e-4, warmup=0.02, temperature=2.0, refit_tokens=102_400)
    path = tmp_path / "recipe.yaml"
    search.write_recipe(recipe, path, because="chosen on\nvalidation articles")
    assert path.read_text().startswith("# chosen on\n# validation articles\n")
    values = parameters.recipe_values(path)
    assert values.pop("precision") == "auto"
    assert "tokens" not in values
    assert "seed" not in values
    assert recipe.but(**values) == recipe
    search.write_recipe(recipe.but(refit_tokens=recipe.tokens), path, because="as in the trials")
    assert parameters.recipe_values(path)["refit_tokens"] == search.REFIT_TOKENS
