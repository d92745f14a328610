"""Students: identified by content, healed once, resumed bit for bit, marked if diverged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from depthprune_core import distillation, pruning, refitting
from depthprune_core.mlps import mlp_outputs
from depthprune_core.records import Plan, Recipe
from depthprune_study.errors import StudyError
from depthprune_study.lab import cache, healing, scoring, students, weights, words
from depthprune_study.lab.workspace import Workspace

PLAN = Plan(6, (2, 3), "by hand")
Open = Callable[..., Workspace]


def recipe_of(lab: Workspace, **changes: object) -> Recipe:
    return lab.recipe(**{"seq_len": 48, "batch_tokens": 96, "refit_tokens": 0, **changes})


def equal(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From its call on, training fails the test."""

    def refuse(*args: object, **options: object) -> None:
        raise AssertionError("it was trained again")

    return lambda: monkeypatch.setattr(distillation, "recover", refuse)


@pytest.fixture
def solved(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """A quick refit with a visible effect; the list holds the plans of its calls."""
    calls: list[tuple[int, ...]] = []

    @torch.no_grad()
    def refit(student, teacher, plan, windows, *, progress):
        calls.append(plan.dropped)
        mlp_outputs(student)[1].weight.mul_(1.1)
        return student

    monkeypatch.setattr(refitting, "refit", refit)
    monkeypatch.setattr(refitting, "is_possible", lambda model: True, raising=False)
    return calls


def test_a_cut_student_is_the_whole_model_without_its_layers(lab: Workspace) -> None:
    student = students.cut(lab, PLAN)
    expected = pruning.drop_layers(lab.teacher.model, PLAN)
    assert equal(student.model, expected)
    theirs = {p.data_ptr() for p in lab.teacher.model.parameters()}
    assert {p.data_ptr() for p in student.model.parameters()} <= theirs  # shares memory
    assert not {p.data_ptr() for p in student.fresh().parameters()} & theirs
    assert student.curve is None
    assert not student.diverged


def test_healing_is_done_once_under_any_name(
    open_lab: Open, no_training: Callable[[], None]
) -> None:
    lab = open_lab()
    healed = students.recover(lab, "healed", PLAN, recipe_of(lab))
    state = healed.fresh().state_dict()
    no_training()
    weights.release()
    lab = open_lab(score_tokens=50)  # another notebook, or other parameters
    by_rule = Plan(6, (2, 3), "greedy")
    again = students.recover(lab, "another name", by_rule, recipe_of(lab))
    assert again.plan.rule == "greedy"
    assert again.content == healed.content
    assert again.curve == healed.curve
    assert all(torch.equal(tensor, state[n]) for n, tensor in again.model.state_dict().items())
    assert cache.weights_hash(again.model) == healed.content


@pytest.mark.parametrize("damage", [lambda f: f.unlink(), lambda f: f.write_text("{")])
def test_a_damaged_curve_is_made_again(open_lab: Open, damage: Callable[[Path], None]) -> None:
    healed = students.recover(open_lab(), "healed", PLAN, recipe_of(open_lab()))
    (curve,) = open_lab().folder.rglob("*.curve.json")
    damage(curve)
    again = students.recover(open_lab(), "healed", PLAN, recipe_of(open_lab()))
    assert again.curve == healed.curve and again.content == healed.content


def test_another_recipe_is_another_student(lab: Workspace) -> None:
    recipe = recipe_of(lab, tokens=576)
    one = students.recover(lab, "one", PLAN, recipe)
    other = students.recover(lab, "other", PLAN, recipe.but(temperature=recipe.temperature + 1))
    assert one.content != other.content


def test_interrupted_healing_equals_uninterrupted(
    open_lab: Open, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DEPTHPRUNE_RUNS", str(tmp_path / "whole"))
    lab = open_lab()
    recipe = recipe_of(lab, tokens=384)
    whole = students.recover(lab, "healed", PLAN, recipe)

    monkeypatch.setenv("DEPTHPRUNE_RUNS", str(tmp_path / "cut"))
    lab = open_lab()
    recover = distillation.recover

    def stopped(*args: object, **options: object) -> object:
        def progress(done: int, of: int, what: str) -> None:
            if done >= of // 2:
                raise KeyboardInterrupt

        return recover(*args, **{**options, "progress": progress, "checkpoint_every_seconds": 0})

    monkeypatch.setattr(distillation, "recover", stopped)
    with pytest.raises(KeyboardInterrupt):
        students.recover(lab, "healed", PLAN, recipe)
    assert list((lab.folder / "students").glob("*.ckpt"))
    monkeypatch.setattr(distillation, "recover", recover)
    resumed = students.recover(open_lab(), "healed", PLAN, recipe)
    assert resumed.content == whole.content
    assert resumed.curve == whole.curve
    assert not list((lab.folder / "students").glob("*.ckpt"))


def test_lost_weights_are_made_again(lab: Workspace) -> None:
    student = students.recover(lab, "healed", PLAN, recipe_of(lab))
    for file in (lab.folder / "students").glob("*.safetensors"):
        file.write_bytes(b"damaged")
    weights.release()
    assert cache.weights_hash(student.model) == student.content


def test_a_trial_keeps_its_score_and_no_weights(
    lab: Workspace, no_training: Callable[[], None]
) -> None:
    trials = {
        f"seed {s}": students.recover(
            lab, f"seed {s}", PLAN, recipe_of(lab, seed=s), keep_weights=False
        )
        for s in (0, 1)
    }
    assert not list((lab.folder / "students").glob("*.safetensors"))
    no_training()
    weights.release()
    scores = scoring.validation(lab, trials)
    assert scores["seed 0"] != scores["seed 1"]


def test_a_diverged_run_is_marked_and_replaced_by_its_start(open_lab: Open) -> None:
    lab = open_lab()
    recipe = recipe_of(lab, lr=1e30)
    student = students.recover(lab, "wild", PLAN, recipe)
    assert student.diverged == student.curve.diverged != ""
    assert equal(student.model, students.cut(lab, PLAN).model)
    again = students.recover(open_lab(), "wild", PLAN, recipe)
    assert again.diverged == student.diverged
    after = students.recover(lab, "after", PLAN, recipe_of(lab), start=student)
    assert after.diverged == student.diverged  # what it rests on
    scores = scoring.validation(lab, {"wild": student, "cut": students.cut(lab, PLAN)})
    assert scores["wild"].nll_nats == scores["cut"].nll_nats
    assert scores["wild"].diverged
    assert not scores["cut"].diverged


def test_the_same_text_trains_the_whole_model_and_leaves_the_teacher(lab: Workspace) -> None:
    before = cache.weights_hash(lab.teacher.model)
    recipe = recipe_of(lab)
    student = students.same_text(lab, "same text", recipe)
    assert len(student.model.model.layers) == lab.n_layers
    assert set(student.curve.losses) == {"ce"}
    assert student.curve.token_hash == lab.training(recipe).token_hash
    cache.forget_hash(lab.teacher.model)
    assert cache.weights_hash(lab.teacher.model) == before != student.content


def test_refit_is_kept_as_the_maps_that_changed(
    open_lab: Open, solved: list[tuple[int, ...]]
) -> None:
    lab = open_lab()
    recipe = recipe_of(lab, refit_tokens=480)
    student = students.refitted(lab, PLAN, recipe)
    (file,) = (lab.folder / "students").glob("*.safetensors")
    assert file.stat().st_size < 100_000  # one map, not the whole student
    weights.release()
    again = students.refitted(open_lab(), PLAN, recipe)
    assert again.content == student.content
    assert cache.weights_hash(again.model) == student.content
    assert solved == [(2, 3)]


def test_healing_begins_with_the_refit_of_its_recipe(
    lab: Workspace, solved: list[tuple[int, ...]]
) -> None:
    recipe = recipe_of(lab, refit_tokens=480)
    by_recipe = students.recover(lab, "healed", PLAN, recipe)
    assert solved == [(2, 3)]
    begun = students.refitted(lab, PLAN, recipe)
    assert students.recover(lab, "x", PLAN, recipe, start=begun).content == by_recipe.content


def test_a_staged_student_reads_each_window_once(
    lab: Workspace, solved: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, recover = [], distillation.recover

    def watched(student, teacher, windows, recipe, **options):
        seen.append((len(student.model.layers), windows))
        return recover(student, teacher, windows, recipe, **options)

    monkeypatch.setattr(distillation, "recover", watched)
    recipe = recipe_of(lab, refit_tokens=480)
    three = Plan(6, (1, 2, 3), "by hand")
    student = students.staged(lab, "staged", PLAN, three, recipe)
    assert student.plan == three
    assert [layers for layers, _ in seen] == [4, 3]
    both = torch.cat([windows.inputs for _, windows in seen])
    assert torch.equal(both, lab.training(recipe).inputs)
    assert solved == [(2, 3), (1, 2, 3)]


def test_the_first_stage_must_drop_some_of_the_layers(lab: Workspace) -> None:
    with pytest.raises(StudyError, match=r"drops layers \[2, 3\].*must be some of \[1, 2\]"):
        students.staged(lab, "staged", PLAN, Plan(6, (1, 2), "x"), recipe_of(lab))


def test_given_text_is_read_up_to_the_recipes_tokens(lab: Workspace) -> None:
    windows = lab.training(recipe_of(lab, tokens=960))
    student = students.recover(lab, "x", PLAN, recipe_of(lab, tokens=480), windows=windows)
    assert student.curve.token_hash == windows.take(slice(0, 10)).token_hash
    assert student.curve.recipe.tokens == 480


def test_a_refit_on_given_text_reads_its_end(lab: Workspace) -> None:
    windows = lab.training(recipe_of(lab, tokens=960))
    recipe = recipe_of(lab, refit_tokens=480)
    last = students.refitted(lab, PLAN, recipe, windows=windows)
    same = students.refitted(lab, PLAN, recipe, windows=windows.take(slice(10, None)))
    assert last.content == same.content


def test_adapters_leave_the_teacher_as_it_is(lab: Workspace) -> None:
    before = cache.weights_hash(lab.teacher.model)
    student = students.recover(lab, "adapters", PLAN, recipe_of(lab, trained="lora", lr=1e-2))
    cache.forget_hash(lab.teacher.model)
    assert cache.weights_hash(lab.teacher.model) == before
    assert student.content != students.cut(lab, PLAN).content


def test_validation_on_the_way_changes_no_weight(lab: Workspace) -> None:
    plain = students.recover(lab, "plain", PLAN, recipe_of(lab))
    windows = lab.windows("validation", tokens=30)
    watched = students.recover(lab, "watched", PLAN, recipe_of(lab), validation=windows)
    assert watched.content == plain.content
    assert not plain.curve.validation_tokens
    assert len(watched.curve.validation_tokens) == healing.VALIDATIONS + 1


def test_students_in_memory_stay_below_their_limit(
    lab: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []

    def get(name: str) -> None:
        weights.get(name, lambda: made.append(name) or pruning.drop_layers(teacher, PLAN))

    teacher = lab.teacher.model
    size = sum(4 * p.numel() for p in pruning.drop_layers(teacher, PLAN).parameters())
    monkeypatch.setattr(weights, "LIMIT_BYTES", 2 * size)
    for name in "abbacab":
        get(name)
    assert made == ["a", "b", "c", "b"]


def test_own_words_are_sampled_once_and_shorter_ones_are_their_beginning(
    open_lab: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(words, "AT_ONCE", 4)
    lab = open_lab()
    long = words.own_words(lab, recipe=recipe_of(lab, tokens=288))
    assert (len(long), long.seq_len, long.n_tokens) == (6, 48, 288)
    monkeypatch.setattr(words.evaluation, "write_text", None)  # it is on disk
    short = words.own_words(open_lab(), recipe=recipe_of(lab, tokens=96))
    assert torch.equal(short.inputs, long.inputs[:2])
    assert bool((long.inputs[:, 0] == lab.teacher.start).all())
