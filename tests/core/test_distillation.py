"""Recovery: gradients against plain autograd, side effects, invalid settings, and resuming."""

from __future__ import annotations

import copy
import itertools
import math
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny import (
    FAMILIES,
    final_norm_of,
    layers_of,
    plan_of,
    state_of,
    tiny,
    tiny_windows,
    weights_of,
)
from torch.nn import functional
from transformers import PreTrainedModel

from depthprune_core import losses
from depthprune_core.distillation import DivergedError, recover
from depthprune_core.evaluation import divergence, score
from depthprune_core.pruning import drop_layers, share_equal
from depthprune_core.records import Recipe
from depthprune_core.steps import Run
from depthprune_core.teachers import TeacherStates
from depthprune_core.text import Windows

TRAINING = tiny_windows(seed=1, lengths=(60, 29, 31))  # 11 windows, two of them padded: 6 steps
RECIPE = Recipe(tokens=132, lr=3e-3, batch_tokens=24, seq_len=12)
TERMS = ({"kl": 1.0}, {"kl": 0.0, "ce": 1.0}, {"kl": 0.5, "ce": 0.3})


def pruned(name: str, *dropped: int, **changes) -> tuple[PreTrainedModel, PreTrainedModel]:
    """A teacher and its student."""
    teacher = tiny(name, **changes)
    return teacher, drop_layers(teacher, plan_of(teacher, *dropped))


def same_weights(a: PreTrainedModel, b: PreTrainedModel) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


# ---------------------------------------------------------------- gradients


def plain_gradients(student, teacher, windows: Windows, recipe: Recipe) -> tuple[dict, dict]:
    """Each term as a mean over unmasked tokens, nothing chunked or accumulated; its gradients."""
    mask, t = windows.mask, recipe.temperature
    logits = student(input_ids=windows.inputs, use_cache=False).logits[mask]
    with torch.no_grad():
        theirs = teacher(input_ids=windows.inputs, use_cache=False).logits[mask]
    pair = (logits / t).log_softmax(-1), (theirs / t).log_softmax(-1)
    kl = t**2 * functional.kl_div(*pair, log_target=True, reduction="none").sum(-1).mean()
    terms = {"kl": kl, "ce": functional.cross_entropy(logits, windows.targets[mask])}
    (recipe.kl * terms["kl"] + recipe.ce * terms["ce"]).backward()
    norm = torch.nn.utils.clip_grad_norm_(student.parameters(), math.inf)
    shrunk = {name: p.grad / max(1.0, float(norm)) for name, p in student.named_parameters()}
    student.zero_grad()
    return {term: value.item() for term, value in terms.items()}, shrunk


def recovery_gradients(student, teacher, windows, recipe, *, micro: int = 99) -> tuple[dict, dict]:
    recipe = recipe.but(batch_tokens=12 * len(windows), tokens=999)
    run = Run(student, teacher, windows, recipe, micro_batch_size=micro)
    run.accumulate()
    gradients = {name: p.grad.clone() for name, p in student.named_parameters()}
    student.zero_grad()
    return run.terms, gradients


def assert_close(actual: dict, expected: dict) -> None:
    size = max(gradient.abs().max().item() for gradient in expected.values())
    assert actual.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(actual[name], gradient, rtol=1e-3, atol=1e-5 * size)


@pytest.mark.parametrize("weights", TERMS, ids=str)
@pytest.mark.parametrize(("name", "tie"), [("gpt2", True), ("llama", False)])
def test_values_and_gradients_are_those_of_plain_autograd(name, tie, weights, windows, monkeypatch):
    monkeypatch.setattr(losses, "BACKWARD_TOKENS", 7)
    monkeypatch.setattr(losses, "TILE_WORDS", {"cpu": 50})
    teacher, student = pruned(name, 1, 3, tie_word_embeddings=tie)
    recipe = RECIPE.but(temperature=2.0, **weights)
    terms, expected = plain_gradients(student, teacher, windows, recipe)
    for tensor in (windows.inputs, windows.targets):  # padding does not count
        tensor[~windows.mask] = 77
    for micro in (2, 99):  # unequal numbers of tokens: a mean of means would be another loss
        values, gradients = recovery_gradients(student, teacher, windows, recipe, micro=micro)
        assert values == pytest.approx({term: terms[term] for term in values}, rel=1e-4)
        assert_close(gradients, expected)
    assert set(values) == {term for term in ("kl", "ce") if getattr(recipe, term)}
    assert all(p.grad is None for p in teacher.parameters())


@pytest.mark.parametrize("name", FAMILIES)
def test_training_on_the_text_alone_equals_a_loop_written_out(name):
    model, reference, expected = tiny(name), tiny(name), []
    student, curve = recover(model, None, TRAINING, RECIPE.but(kl=0.0, ce=1.0, warmup=0.3))
    assert student is model
    optimiser = torch.optim.AdamW(
        reference.parameters(), lr=3e-3, betas=(0.9, 0.95), weight_decay=0.0
    )
    # warm-up of 2 steps, then a cosine
    rates = [0.5, 1, 1, (2 + math.sqrt(2)) / 4, 0.5, (2 - math.sqrt(2)) / 4]
    for step, rate in enumerate(rates):
        batch = TRAINING.take(slice(2 * step, 2 * step + 2))
        logits = reference(input_ids=batch.inputs, use_cache=False).logits[batch.mask]
        loss = functional.cross_entropy(logits, batch.targets[batch.mask])
        expected.append(loss.item())
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(reference.parameters(), 1.0)
        optimiser.param_groups[0]["lr"] = 3e-3 * rate
        optimiser.step()
    assert curve.losses == {"ce": pytest.approx(expected, rel=1e-4)}
    assert curve.tokens == (24, 48, 72, 96, 120, 132)
    means = [score(m, TRAINING).mean_nll_nats for m in (student, reference)]
    assert means[0] == pytest.approx(means[1], rel=1e-4)


# ---------------------------------------------------------------- does it work


@pytest.mark.parametrize(
    ("name", "precision"), [("gpt2", "float32"), ("llama", "bfloat16"), ("llama", "float16")]
)
def test_recovering_lowers_the_kl(name, precision):
    teacher, student = pruned(name, 3)
    training = tiny_windows(seed=2, lengths=(720,))
    before = divergence(student, teacher, TRAINING).mean_kl_nats
    recipe = RECIPE.but(tokens=720, precision=precision)
    student, curve = recover(student, teacher, training, recipe)
    assert divergence(student, teacher, TRAINING).mean_kl_nats < 0.9 * before
    kl = curve.losses["kl"]
    assert sum(kl[-5:]) < 0.9 * sum(kl[:5]) and curve.recipe == recipe and curve.diverged == ""
    assert {p.dtype for p in student.parameters()} == {torch.float32}


def test_validation_is_the_students_score_at_the_start_in_between_and_at_the_end():
    teacher, student = pruned("llama", 2)
    before = score(student, TRAINING).mean_nll_nats
    options = {"validation": TRAINING, "validate_every_tokens": 60}
    student, curve = recover(student, teacher, TRAINING, RECIPE, **options)
    assert curve.validation_tokens == (0, 72, 120, 132)
    assert curve.validation_nll_nats[0] == before
    assert curve.validation_nll_nats[-1] == score(student, TRAINING).mean_nll_nats
    assert len(set(curve.validation_nll_nats)) == 4


def test_teacher_flags_random_states_and_old_gradients_do_not_matter():
    teacher, student = pruned("gpt2", 2)
    expected, expected_curve = recover(copy.deepcopy(student), teacher, TRAINING, RECIPE)
    for p in student.parameters():
        p.grad = torch.ones_like(p)
    flags, unchanged = [p.requires_grad for p in student.parameters()], state_of(teacher)
    states = torch.get_rng_state(), random.getstate()
    _, curve = recover(student, teacher, TRAINING, RECIPE)
    assert same_weights(student, expected) and curve == expected_curve and unchanged()
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[1]
    assert [p.requires_grad for p in student.parameters()] == flags
    assert not student.training and all(p.grad is None for p in student.parameters())


# ---------------------------------------------------------------- interrupted


def stop_at(tokens: int) -> Callable[[int, int, str], None]:
    def progress(done: int, of: int, what: str) -> None:
        if done >= tokens:
            raise KeyboardInterrupt

    return progress


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("gpt2", {}),
        ("llama", {}),
        ("llama", {"precision": "float16"}),
        ("gpt2", {"trained": "lora", "lora_rank": 2}),
        ("llama", {"kl": 0.0, "ce": 1.0}),
    ],
    ids=str,
)
def test_interrupted_recovery_equals_uninterrupted(name, changes, tmp_path):
    teacher, student = pruned(name, 2)
    recipe = RECIPE.but(**changes)
    options = {"validation": TRAINING, "validate_every_tokens": 30}
    options["states"] = TeacherStates(teacher, folder=tmp_path / "states")
    expected, expected_curve = recover(copy.deepcopy(student), teacher, TRAINING, recipe, **options)
    options |= {"checkpoint": tmp_path / "run" / "checkpoint", "checkpoint_every_seconds": 0}
    for tokens in (48, 96):
        with pytest.raises(KeyboardInterrupt):
            part, progress = copy.deepcopy(student), stop_at(tokens)
            recover(part, teacher, TRAINING, recipe, progress=progress, **options)
        assert all(p.requires_grad and p.grad is None for p in part.parameters())
    if recipe.trained == "all":
        with pytest.raises(ValueError, match="cut the student anew if this run was interrupted"):
            recover(part, teacher, TRAINING, recipe, **options)
    seen = []
    progress = lambda done, *_: seen.append(done)  # noqa: E731
    resumed, curve = recover(student, teacher, TRAINING, recipe, progress=progress, **options)
    assert seen == [96, 120, 132]  # from before the step at whose end it was cut
    assert curve == expected_curve and same_weights(resumed, expected)


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    """That of a finished run."""
    teacher, student = pruned("llama", 2)
    options = {"checkpoint": tmp_path / "checkpoint", "checkpoint_every_seconds": 0}
    recover(student, teacher, TRAINING, RECIPE, **options)
    return tmp_path / "checkpoint"


def test_the_checkpoint_of_another_recipe_text_start_or_teacher_is_refused(checkpoint):
    teacher, student = pruned("llama", 2)
    unchanged = state_of(student)
    with torch.no_grad():
        other_start = copy.deepcopy(student)
        other_start.model.norm.weight[0] += 0.1
    other_teacher, fewer = tiny("llama", seed=1), TRAINING.take(slice(8))
    for run in (
        (student, teacher, TRAINING, RECIPE.but(temperature=2.0)),
        (student, teacher, fewer, RECIPE),
        (other_start, teacher, TRAINING, RECIPE),
        (student, other_teacher, TRAINING, RECIPE),
    ):
        with pytest.raises(ValueError, match="belongs to another run"):
            recover(*run, checkpoint=checkpoint)
    assert unchanged()


# ---------------------------------------------------------------- what is refused or stopped


def test_a_loss_that_is_not_a_number_stops_the_run():
    teacher, student = pruned("llama", 2)

    def break_it(done: int, of: int, what: str) -> None:
        final_norm_of(student).weight.data[0] = math.nan

    with pytest.raises(DivergedError, match="the kl loss is nan at step 1: lower the") as stop:
        recover(student, teacher, TRAINING, RECIPE, progress=break_it)
    assert all(p.grad is None for p in student.parameters())
    curve = stop.value.curve  # the run up to there
    assert len(curve.losses["kl"]) == len(curve.tokens) == 1
    assert curve.diverged == "the kl loss is nan at step 1"


def test_a_gradient_that_is_not_a_number_stops_the_run_before_the_weights_move():
    teacher, student = pruned("llama", 2)
    before = weights_of(student)
    final_norm_of(student).weight.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(DivergedError, match="the gradient is not finite at step 0"):
        recover(student, teacher, TRAINING, RECIPE)
    assert all(torch.equal(p, before[name]) for name, p in student.named_parameters())
    with pytest.raises(DivergedError, match="no step of 6 had a gradient that float16 can hold"):
        recover(student, teacher, TRAINING, RECIPE.but(precision="float16"))


def test_half_precision_skips_a_step_with_a_broken_gradient():
    teacher, student = pruned("llama", 2)
    after = []

    def break_it(gradient: torch.Tensor) -> torch.Tensor:
        return gradient * math.inf if len(after) == 2 else gradient

    layers_of(student)[0].mlp.up_proj.weight.register_hook(break_it)
    progress = lambda *_: after.append(weights_of(student))  # noqa: E731
    recover(student, teacher, TRAINING, RECIPE.but(precision="float16"), progress=progress)
    pairs = itertools.pairwise(after)
    moved = [any(not torch.equal(a[name], b[name]) for name in a) for a, b in pairs]
    assert moved == [True, False, True, True, True]


def test_settings_that_cannot_work_are_refused():
    teacher, student = pruned("llama", 2)
    unchanged = state_of(student)
    with pytest.raises(ValueError, match="the windows have 12 tokens, the recipe asks for seq_len"):
        recover(student, teacher, TRAINING, RECIPE.but(seq_len=24))
    with pytest.raises(ValueError, match="kl=1 needs a teacher"):
        recover(student, None, TRAINING, RECIPE)
    with pytest.raises(ValueError, match="the states were made from another model"):
        recover(student, teacher, TRAINING, RECIPE, states=TeacherStates(tiny("llama")))
    with pytest.raises(ValueError, match="vocabulary has 96 tokens and the teacher's 128"):
        recover(tiny("llama", vocab_size=96), teacher, TRAINING, RECIPE)
    shared = share_equal(pruned("llama", 2)[1], teacher, plan_of(teacher, 2))
    with pytest.raises(ValueError, match=r"only adapters \(trained='lora'\) can be trained, not"):
        recover(shared, teacher, TRAINING, RECIPE)
    assert unchanged()
