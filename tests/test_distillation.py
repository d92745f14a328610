"""Recovery: gradients against plain autograd, what is frozen, what is refused, and resuming bit for bit."""

from __future__ import annotations

import copy
import itertools
import math
import os
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import ARCHITECTURES, FAMILIES, count_layer_passes, final_norm_of, layers_of, plan_of, state_of, tiny, tiny_windows
from torch.nn import functional
from transformers import PreTrainedModel

from depthprune_core import checkpoints, losses
from depthprune_core.decoders import mlp_width, recording
from depthprune_core.distillation import TRAINED_PARTS, DivergedError, _Run, recover
from depthprune_core.evaluation import divergence, score
from depthprune_core.pruning import drop_layers, narrow_mlps, share_equal
from depthprune_core.records import Plan
from depthprune_core.refitting import refit
from depthprune_core.teachers import TeacherStates, TeacherTop
from depthprune_core.text import Windows

TERMS = ({"kl": 1.0}, {"ce": 1.0}, {"hidden": 1.0}, {"kl": 0.5, "ce": 0.3, "hidden": 2.0})
RECIPE = {"loss": {"kl": 1.0}, "lr": 3e-3, "seed": 0, "batch_size": 2}
OF_ANOTHER_RUN = r"belongs to another run \(recipe, text, plan, start or teacher differ\)"
TRAINING = tiny_windows(seed=1, lengths=(60, 29, 31))  # 11 windows, two of them padded: 6 steps


def pruned(name: str, *dropped: int, **changes) -> tuple[PreTrainedModel, PreTrainedModel, Plan]:
    """A teacher, its student and the plan between them."""
    teacher = tiny(name, **changes)
    plan = plan_of(teacher, *dropped)
    return teacher, drop_layers(teacher, plan), plan


def weights_of(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def same_weights(a: PreTrainedModel, b: PreTrainedModel) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


# ---------------------------------------------------------------- an independent reference


def logits_and_states(model: PreTrainedModel, ids: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Full logits; the input of each layer and the last layer's output before the norm."""
    before_norm = []
    hook = final_norm_of(model).register_forward_pre_hook(lambda module, args: before_norm.append(args[0]))
    out = model(input_ids=ids, use_cache=False, output_hidden_states=True)
    hook.remove()
    return out.logits, [*out.hidden_states[:-1], before_norm[0]]


def plain_terms(student, teacher, windows: Windows, plan: Plan, temperature: float) -> dict[str, torch.Tensor]:
    """Every term as a mean over unmasked tokens, with nothing chunked, shared or accumulated."""
    mask = windows.mask
    logits, states = logits_and_states(student, windows.inputs)
    with torch.no_grad():
        teacher_logits, teacher_states = logits_and_states(teacher, windows.inputs)
    log_p, log_q = (teacher_logits / temperature).log_softmax(-1), (logits / temperature).log_softmax(-1)
    kl = temperature**2 * functional.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1)[mask].mean()
    errors = []
    for state, old in zip(states, (*plan.kept, plan.n_layers), strict=True):
        if old > min(plan.dropped):  # what the cut has changed
            target = teacher_states[old][mask]
            errors.append(((state[mask] - target).pow(2).mean(-1) / target.pow(2).mean(-1)).mean())
    return {"kl": kl, "ce": functional.cross_entropy(logits[mask], windows.targets[mask]), "hidden": sum(errors) / len(errors)}


def plain_gradients(student, teacher, windows, plan, loss, temperature) -> dict[str, torch.Tensor]:
    terms = plain_terms(student, teacher, windows, plan, temperature)
    sum(weight * terms[term] for term, weight in loss.items()).backward()
    gradients = {name: p.grad.clone() for name, p in student.named_parameters() if p.grad is not None}
    student.zero_grad()
    return gradients


def recovery_gradients(student, teacher, windows, plan, loss, temperature=1.0, *, trained="all", micro=99) -> tuple[dict, dict]:
    run = _Run(student, teacher, plan, trained)
    run.freeze(windows.inputs[:1])
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    values = run.accumulate(windows, loss, temperature, micro, "float32", scaler)
    gradients = {name: p.grad.clone() for name, p in student.named_parameters() if p.grad is not None}
    student.zero_grad()
    return values, gradients


def assert_same_gradients(actual: dict, expected: dict) -> None:
    size = max(gradient.abs().max().item() for gradient in expected.values())
    for name, gradient in expected.items():
        if name in actual or gradient.abs().max() > 1e-5 * size:
            torch.testing.assert_close(actual[name], gradient, rtol=1e-3, atol=1e-5 * size)


# ---------------------------------------------------------------- gradients


@pytest.mark.parametrize("loss", TERMS, ids=str)
@pytest.mark.parametrize("tie", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("name", FAMILIES)
def test_values_and_gradients_are_those_of_plain_autograd(name, tie, loss, windows, monkeypatch):
    monkeypatch.setattr(losses, "TILE_TOKENS", 7)
    monkeypatch.setattr(losses, "BACKWARD_TOKENS", 7)
    monkeypatch.setattr(losses, "TILE_WORDS", {"cpu": 50})
    teacher, student, plan = pruned(name, 1, 3, tie_word_embeddings=tie)
    expected = plain_gradients(student, teacher, windows, plan, loss, 2.0)
    terms = plain_terms(student, teacher, windows, plan, 2.0)
    values, gradients = recovery_gradients(student, teacher, windows, plan, loss, 2.0)
    assert values == pytest.approx({term: terms[term].item() for term in loss}, rel=1e-4)
    assert_same_gradients(gradients, expected)
    assert all(p.grad is None for p in teacher.parameters())


@pytest.mark.parametrize("loss", TERMS, ids=str)
@pytest.mark.parametrize("tie", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("name", FAMILIES)
def test_behind_the_first_cut_the_gradients_are_those_of_plain_autograd(name, tie, loss, windows):
    teacher, student, plan = pruned(name, 2, 3, tie_word_embeddings=tie)
    expected = plain_gradients(student, teacher, windows, plan, loss, 2.0)
    _, gradients = recovery_gradients(student, teacher, windows, plan, loss, 2.0, trained="after_first_cut")
    before = {name for name in expected if "embed" in name or "wte" in name or "wpe" in name or ".0." in name or ".1." in name}
    assert before and not before & set(gradients)
    assert {name for name in expected if ".2." in name or name.endswith((".ln_f.weight", "model.norm.weight"))} <= set(
        gradients
    )
    assert ("lm_head.weight" in gradients) == (not tie and loss != {"hidden": 1.0})
    assert_same_gradients(gradients, {name: gradient for name, gradient in expected.items() if name in gradients})


@pytest.mark.parametrize("name", FAMILIES)
def test_a_student_whose_prefix_is_not_the_teachers_is_trained_on_its_own_states(name, windows):
    """Recovered once with every layer trained, then again behind the cut."""
    teacher, student, plan = pruned(name, 2, 3)
    with torch.no_grad():
        for p in layers_of(student)[0].parameters():
            p.add_(0.05)
    loss = {"kl": 1.0, "hidden": 1.0}
    expected = plain_gradients(student, teacher, windows, plan, loss, 1.0)
    _, gradients = recovery_gradients(student, teacher, windows, plan, loss, trained="after_first_cut")
    assert_same_gradients(gradients, {name: gradient for name, gradient in expected.items() if name in gradients})


@pytest.mark.parametrize("trained", ["all", "after_first_cut"])
@pytest.mark.parametrize("loss", TERMS, ids=str)
@pytest.mark.parametrize("name", FAMILIES)
def test_accumulated_gradients_equal_the_full_batchs(name, loss, trained, windows):
    """Micro-batches hold unequal numbers of tokens: a mean of their means would be another loss."""
    teacher, student, plan = pruned(name, 2)
    whole, expected = recovery_gradients(student, teacher, windows, plan, loss, trained=trained)
    for micro in (1, 2):
        values, gradients = recovery_gradients(student, teacher, windows, plan, loss, trained=trained, micro=micro)
        assert values == pytest.approx(whole, rel=1e-5)
        assert gradients.keys() == expected.keys()
        assert_same_gradients(gradients, expected)


@pytest.mark.parametrize("trained", ["all", "after_first_cut"])
@pytest.mark.parametrize("loss", TERMS, ids=str)
@pytest.mark.parametrize("name", FAMILIES)
def test_padded_tokens_change_neither_values_nor_gradients(name, loss, trained, windows):
    teacher, student, plan = pruned(name, 2)
    expected_values, expected = recovery_gradients(student, teacher, windows, plan, loss, trained=trained)
    for tensor in (windows.inputs, windows.targets):
        tensor[~windows.mask] = 77
    values, gradients = recovery_gradients(student, teacher, windows, plan, loss, trained=trained)
    assert values == pytest.approx(expected_values, rel=1e-6)
    assert_same_gradients(gradients, expected)


@pytest.mark.parametrize("name", FAMILIES)
def test_training_on_the_text_alone_equals_a_loop_written_out(name):
    model = tiny(name)
    student, curve = recover(model, None, TRAINING, **{**RECIPE, "loss": {"ce": 1.0}}, weight_decay=0.1, warmup=0.3)
    assert student is model
    reference = tiny(name)
    matrices = [p for layer in layers_of(reference) for p in layer.parameters() if p.ndim == 2]
    others = [p for p in reference.parameters() if not any(p is matrix for matrix in matrices)]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=3e-3, betas=(0.9, 0.95))
    expected = []
    # Warm-up of 2 steps, then a cosine.
    for step, rate in enumerate([0.5, 1, 1, (2 + math.sqrt(2)) / 4, 0.5, (2 - math.sqrt(2)) / 4]):
        batch = TRAINING.take(slice(2 * step, 2 * step + 2))
        loss = functional.cross_entropy(
            reference(input_ids=batch.inputs, use_cache=False).logits[batch.mask], batch.targets[batch.mask]
        )
        expected.append(loss.item())
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(reference.parameters(), 1.0)
        for group in optimiser.param_groups:
            group["lr"] = 3e-3 * rate
        optimiser.step()
    assert curve.losses["ce"] == pytest.approx(expected, rel=1e-4)
    assert curve.tokens == (24, 48, 72, 96, 120, 132)
    assert score(student, TRAINING).mean_nll_nats == pytest.approx(score(reference, TRAINING).mean_nll_nats, rel=1e-4)


@pytest.mark.parametrize("trained", ["all", "after_first_cut"])
@pytest.mark.parametrize("loss", TERMS, ids=str)
@pytest.mark.parametrize("name", FAMILIES)
def test_checkpointed_activations_change_neither_weights_nor_curve(name, loss, trained):
    teacher, student, plan = pruned(name, 2, **({"attention_dropout": 0.1} if name == "llama" else {}))
    settings = {**RECIPE, "loss": loss, "plan": plan, "trained": trained, "micro_batch_size": 1, "dropout": True}
    expected, expected_curve = recover(copy.deepcopy(student), teacher, TRAINING, **settings)
    unchanged = state_of(teacher)
    _, curve = recover(student, teacher, TRAINING, checkpoint_activations=True, **settings)
    assert curve.recipe == expected_curve.recipe
    for term in loss:
        assert curve.losses[term] == pytest.approx(expected_curve.losses[term], rel=1e-5)
    for p, q in zip(student.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-7)
    assert unchanged() and not any("forward" in vars(layer) for layer in layers_of(student))


@pytest.mark.parametrize(("trained", "behind"), [("all", [0, 1, 2, 3]), ("after_first_cut", [2, 3])])
def test_checkpointed_activations_are_computed_again_where_layers_are_trained(trained, behind):
    teacher, student, plan = pruned("llama", 2)
    passes = count_layer_passes(student)
    settings = {**RECIPE, "plan": plan, "trained": trained, "checkpoint_activations": True}
    recover(student, teacher, TRAINING.take(slice(2)), **settings)
    assert passes[-2 * len(behind) :] == [*behind, *reversed(behind)]


# ---------------------------------------------------------------- what is kept of the teacher


@pytest.mark.parametrize("limit_bytes", [2**20, 0], ids=["kept", "no room"])
@pytest.mark.parametrize("trained", ["all", "after_first_cut"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_kept_teacher_states_change_neither_student_nor_curve(name, trained, limit_bytes):
    teacher, student, plan = pruned(name, 2)
    settings = {**RECIPE, "loss": {"kl": 0.7, "ce": 0.3}, "temperature": 2.0, "plan": plan, "trained": trained}
    expected, expected_curve = recover(copy.deepcopy(student), teacher, TRAINING, **settings)
    cache = TeacherStates(teacher, limit_bytes=limit_bytes)
    for _ in range(2):
        recovered, curve = recover(copy.deepcopy(student), teacher, TRAINING, teacher_cache=cache, **settings)
        assert curve.recipe == expected_curve.recipe
        assert curve.losses["kl"] == pytest.approx(expected_curve.losses["kl"], rel=1e-4, abs=1e-6)
        with torch.no_grad():
            logits, expected_logits = (model(input_ids=TRAINING.inputs).logits for model in (recovered, expected))
        torch.testing.assert_close(logits, expected_logits, rtol=1e-3, atol=1e-4)
        # where a gradient is zero (a key's bias), Adam makes full steps of what rounding leaves of it
        pairs = zip(recovered.parameters(), expected.parameters(), strict=True)
        close = torch.cat([torch.isclose(p, q, rtol=1e-3, atol=2e-5).flatten() for p, q in pairs])
        assert close.double().mean() > 0.99


@pytest.mark.parametrize("n_kept", [0, 5, 11])
def test_a_second_recovery_runs_the_teachers_layers_only_on_windows_that_were_not_kept(n_kept):
    teacher, student, plan = pruned("llama", 2)
    window_bytes = TRAINING.seq_len * teacher.config.hidden_size * 4
    cache = TeacherStates(teacher, limit_bytes=n_kept * window_bytes)
    recover(copy.deepcopy(student), teacher, TRAINING, plan=plan, teacher_cache=cache, **RECIPE)
    passes = count_layer_passes(teacher)
    recover(copy.deepcopy(student), teacher, TRAINING, plan=plan, teacher_cache=cache, **RECIPE)
    assert len(passes) == (len(TRAINING) - n_kept) * len(layers_of(teacher))


def test_what_is_kept_of_a_window_does_not_depend_on_its_batch():
    teacher = tiny("gpt2")
    alone, together = TeacherStates(teacher), TeacherStates(teacher)
    one = torch.cat([alone.of(row[None])[1] for row in TRAINING.inputs])
    assert torch.equal(one, together.of(TRAINING.inputs)[1]) and torch.equal(one, together.of(TRAINING.inputs)[1])


@pytest.mark.parametrize("name", FAMILIES)
def test_kl_to_the_top_tokens_grows_with_k_towards_the_whole(name):
    teacher, student, plan = pruned(name, 2)
    first_kl = {}
    vocabulary = teacher.config.vocab_size
    for k in (1, 4, vocabulary // 2, vocabulary - 1):
        cache = TeacherTop(teacher, k)
        _, curve = recover(copy.deepcopy(student), teacher, TRAINING, plan=plan, teacher_cache=cache, **RECIPE)
        first_kl[k] = curve.losses["kl"][0]
        assert curve.recipe["teacher_top"] == k
    _, whole = recover(student, teacher, TRAINING, plan=plan, **RECIPE)
    assert list(first_kl.values()) == sorted(first_kl.values())
    assert first_kl[vocabulary - 1] == pytest.approx(whole.losses["kl"][0], rel=1e-4)


@pytest.mark.parametrize(
    ("make", "changed", "sentence"),
    [
        (TeacherStates, {"loss": {"kl": 1.0, "hidden": 1.0}}, "the hidden term needs"),
        (lambda teacher: TeacherTop(teacher, 4), {"temperature": 2.0}, "temperature=1 alone; got temperature=2.0"),
        (lambda teacher: TeacherStates(tiny("llama")), {}, "another model than this teacher"),
        (lambda teacher: TeacherTop(teacher, 0), {}, "k=0 tokens to keep"),
        (lambda teacher: TeacherTop(teacher, teacher.config.vocab_size), {}, "tokens to keep: a vocabulary of"),
    ],
)
def test_a_teacher_cache_that_cannot_serve_is_refused(make, changed, sentence):
    teacher, student, plan = pruned("llama", 2)
    with pytest.raises(ValueError, match=sentence):
        recover(student, teacher, TRAINING, plan=plan, teacher_cache=make(teacher), **{**RECIPE, **changed})


# ---------------------------------------------------------------- what moves and what does not


@pytest.mark.parametrize("loss", TERMS, ids=str)
@pytest.mark.parametrize("tie", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("name", FAMILIES)
def test_frozen_parameters_do_not_move(name, tie, loss):
    teacher, student, plan = pruned(name, 2, 3, tie_word_embeddings=tie)
    before = weights_of(student)
    recover(student, teacher, TRAINING, plan=plan, trained="after_first_cut", **{**RECIPE, "loss": loss}, weight_decay=0.1)
    moved = {name for name, p in student.named_parameters() if not torch.equal(p, before[name])}
    in_trained_layers = {name for name in before if ".2." in name}
    frozen = {name for name in before if ".0." in name or ".1." in name or "embed" in name or "wte" in name or "wpe" in name}
    assert in_trained_layers <= moved
    assert frozen and not frozen & moved
    assert ("lm_head.weight" in moved) == (not tie and loss != {"hidden": 1.0})


@pytest.mark.parametrize("loss", [{"kl": 1.0}, {"ce": 1.0}], ids=str)
@pytest.mark.parametrize("dropped", [0, 2])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_first_trained_layer_sees_the_same_input_as_ever(name, dropped, loss):
    """Also where more than embeddings lies before the layers, and without a teacher that shares its prefix."""
    teacher, student, plan = pruned(name, dropped)
    recover(
        student, teacher if "kl" in loss else None, TRAINING, plan=plan, trained="after_first_cut", **{**RECIPE, "loss": loss}
    )
    with torch.no_grad(), recording(layers_of(student)) as ours:
        student(input_ids=TRAINING.inputs, use_cache=False)
    with torch.no_grad(), recording(layers_of(teacher)) as theirs:
        teacher(input_ids=TRAINING.inputs, use_cache=False)
    assert torch.equal(ours[dropped], theirs[dropped])
    assert not torch.allclose(ours[dropped + 1], theirs[dropped + 2])


@pytest.mark.parametrize("loss", TERMS, ids=str)
@pytest.mark.parametrize("name", FAMILIES)
def test_with_only_the_tail_cut_there_is_still_a_norm_to_train(name, loss):
    teacher, student, plan = pruned(name, 3, 4)
    _, curve = recover(student, teacher, TRAINING, plan=plan, trained="after_first_cut", **{**RECIPE, "loss": loss})
    assert all(math.isfinite(value) for values in curve.losses.values() for value in values)


@pytest.mark.parametrize("trained", ["all", "after_first_cut"])
@pytest.mark.parametrize("name", FAMILIES)
def test_the_teacher_the_flags_and_the_random_states_are_untouched(name, trained):
    teacher, student, plan = pruned(name, 2, attention_dropout=0.1) if name == "llama" else pruned(name, 2)
    student.get_output_embeddings().requires_grad_(False)
    flags, unchanged = [p.requires_grad for p in student.parameters()], state_of(teacher)
    states = torch.get_rng_state(), random.getstate(), str(np.random.get_state())
    student, _ = recover(student, teacher, TRAINING, plan=plan, trained=trained, dropout=True, **RECIPE, validation=TRAINING)
    assert unchanged()
    assert torch.equal(torch.get_rng_state(), states[0]) and (random.getstate(), str(np.random.get_state())) == states[1:]
    assert [p.requires_grad for p in student.parameters()] == flags
    assert not student.training and all(p.grad is None for p in student.parameters())


@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_left_from_elsewhere_do_not_enter(name):
    teacher, student, plan = pruned(name, 2)
    expected, _ = recover(copy.deepcopy(student), teacher, TRAINING, plan=plan, **RECIPE)
    for p in student.parameters():
        p.grad = torch.ones_like(p)
    recover(student, teacher, TRAINING, plan=plan, **RECIPE)
    assert same_weights(student, expected)


# ---------------------------------------------------------------- does it work


@pytest.mark.parametrize("optimiser", ["adamw", "muon", "adamw_8bit"])
@pytest.mark.parametrize("trained", ["all", "after_first_cut"])
@pytest.mark.parametrize("name", FAMILIES)
def test_recovering_lowers_the_kl(name, trained, optimiser):
    teacher, student, plan = pruned(name, 3)
    training = tiny_windows(seed=2, lengths=(720,))
    before = divergence(student, teacher, TRAINING)
    student, curve = recover(student, teacher, training, plan=plan, trained=trained, optimiser=optimiser, **RECIPE)
    assert divergence(student, teacher, TRAINING).mean_kl_nats < 0.9 * before.mean_kl_nats
    assert np.mean(curve.losses["kl"][-5:]) < 0.9 * np.mean(curve.losses["kl"][:5])


@pytest.mark.parametrize(("trained", "dropped"), [("lora", 2), ("after_first_cut", 4)])
@pytest.mark.parametrize("name", FAMILIES)
def test_muon_goes_where_all_or_none_of_what_is_trained_are_matrices(name, trained, dropped):
    teacher, student, plan = pruned(name, dropped, **({"tie_word_embeddings": True} if name == "llama" else {}))
    before = weights_of(student)
    recover(student, teacher, TRAINING, plan=plan, trained=trained, optimiser="muon", **RECIPE)
    assert any(not torch.equal(p, before[n]) for n, p in student.named_parameters())


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", FAMILIES)
def test_half_precision_goes_the_same_way(name, precision):
    teacher, student, plan = pruned(name, 2)
    loss = {"kl": 1.0, "hidden": 1.0}
    _, expected = recover(copy.deepcopy(student), teacher, TRAINING, plan=plan, **{**RECIPE, "loss": loss})
    _, curve = recover(student, teacher, TRAINING, plan=plan, precision=precision, **{**RECIPE, "loss": loss})
    assert {p.dtype for p in student.parameters()} == {torch.float32}
    for term in loss:
        assert curve.losses[term][0] == pytest.approx(expected.losses[term][0], rel=0.05)


@pytest.mark.parametrize("loss", TERMS, ids=str)
@pytest.mark.parametrize("name", FAMILIES)
def test_a_narrower_student_of_as_many_layers_takes_every_loss(name, loss):
    teacher = tiny(name)
    width = mlp_width(teacher) - 8
    student = narrow_mlps(teacher, [range(width)] * len(layers_of(teacher)))
    first = TRAINING.take(slice(0, 2))
    with torch.no_grad():
        (_, ours), (_, theirs) = (logits_and_states(model, first.inputs) for model in (student, teacher))
        errors = [(x - y).square().mean(-1) / y.square().mean(-1) for x, y in zip(ours, theirs, strict=True)]
        hidden = torch.stack(
            [error[first.mask].mean() for error in errors[1:]]
        ).mean()  # all layers are cut: from the first output on
    before = weights_of(student)
    _, curve = recover(student, teacher, TRAINING, plan=plan_of(teacher), **{**RECIPE, "loss": loss})
    assert set(curve.losses) == set(loss) and any(not torch.equal(p, before[n]) for n, p in student.named_parameters())
    if "hidden" in loss:
        assert curve.losses["hidden"][0] == pytest.approx(float(hidden), rel=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_narrower_student_as_deep_as_its_teacher_can_be_recovered(name):
    """The width control."""
    narrow = {"gpt2": {"n_inner": 64}, "llama": {"intermediate_size": 40}}[name]
    teacher, student = tiny(name), tiny(name, **narrow)
    before = divergence(student, teacher, TRAINING).mean_kl_nats
    recover(student, teacher, tiny_windows(seed=2, lengths=(480,)), **RECIPE)
    assert divergence(student, teacher, TRAINING).mean_kl_nats < before


def test_terms_of_weight_zero_are_neither_computed_nor_logged():
    teacher, student, plan = pruned("llama", 2)
    _, curve = recover(student, teacher, TRAINING, plan=plan, **{**RECIPE, "loss": {"kl": 1.0, "ce": 0.0, "hidden": 0.0}})
    assert set(curve.losses) == {"kl"} == set(curve.recipe["loss"])


@pytest.mark.parametrize("name", FAMILIES)
def test_validation_is_the_students_score_at_the_start_in_between_and_at_the_end(name):
    teacher, student, plan = pruned(name, 2)
    before = score(student, TRAINING).mean_nll_nats
    student, curve = recover(student, teacher, TRAINING, plan=plan, validation=TRAINING, validate_every_tokens=60, **RECIPE)
    assert curve.validation_tokens == (0, 72, 120, 132)
    assert curve.validation_nll_nats[0] == before
    assert curve.validation_nll_nats[-1] == score(student, TRAINING).mean_nll_nats
    assert len(set(curve.validation_nll_nats)) == 4


# ---------------------------------------------------------------- the same again


@pytest.mark.parametrize(
    "options",
    [{}, {"dropout": True}, {"optimiser": "muon"}, {"optimiser": "adamw_8bit"}, {"trained": "after_first_cut"}],
    ids=str,
)
@pytest.mark.parametrize("name", FAMILIES)
def test_the_same_seed_gives_the_same_bits(name, options):
    teacher, student, plan = pruned(name, 2, **({"attention_dropout": 0.1} if name == "llama" else {}))
    results = []
    for _ in range(2):
        results.append(recover(copy.deepcopy(student), teacher, TRAINING, plan=plan, **{**RECIPE, **options}))
        torch.randn(3)  # whatever else draws in between
    (one, curve), (two, same_curve) = results
    assert same_weights(one, two) and curve == same_curve
    assert not same_weights(one, student)


@pytest.mark.parametrize("name", FAMILIES)
def test_dropout_is_drawn_by_the_seed_and_only_when_asked_for(name):
    teacher, student, plan = pruned(name, 2, **({"attention_dropout": 0.1} if name == "llama" else {}))

    def losses_with(**options) -> tuple[float, ...]:
        return recover(copy.deepcopy(student), teacher, TRAINING, plan=plan, **{**RECIPE, **options})[1].losses["kl"]

    assert losses_with(seed=1) == losses_with(seed=2)
    assert len({losses_with(), losses_with(dropout=True), losses_with(dropout=True, seed=1)}) == 3


def stop_at(tokens: int) -> Callable[[int, int, str], None]:
    def progress(done: int, of: int, what: str) -> None:
        if done >= tokens:
            raise KeyboardInterrupt

    return progress


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"dropout": True},
        {"optimiser": "muon"},
        {"optimiser": "adamw_8bit"},
        {"trained": "after_first_cut"},
        {"loss": {"kl": 1.0, "hidden": 1.0}, "trained": "after_first_cut", "dropout": True},
        {"precision": "float16"},
        {"teacher_cache": TeacherStates},
        {"trained": "lora", "lora_rank": 2, "loss": {"kl": 1.0, "hidden": 1.0}},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", FAMILIES)
def test_interrupted_recovery_equals_uninterrupted(name, options, tmp_path):
    teacher, student, plan = pruned(name, 2, **({"attention_dropout": 0.1} if name == "llama" else {}))
    options = {key: value(teacher) if key == "teacher_cache" else value for key, value in options.items()}
    settings = {**RECIPE, "plan": plan, "validation": TRAINING, "validate_every_tokens": 30, **options}
    expected, expected_curve = recover(copy.deepcopy(student), teacher, TRAINING, **settings)
    settings |= {"checkpoint": tmp_path / "checkpoint", "checkpoint_every_seconds": 0}
    for tokens in (48, 96):
        with pytest.raises(KeyboardInterrupt):
            recover(copy.deepcopy(student), teacher, TRAINING, progress=stop_at(tokens), **settings)
    seen = []
    resumed, curve = recover(student, teacher, TRAINING, progress=lambda done, *_: seen.append(done), **settings)
    assert seen == [96, 120, 132]  # from before the step at whose end it was cut
    assert curve == expected_curve
    assert same_weights(resumed, expected)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_very_student_that_was_interrupted_is_refused_and_one_cut_anew_goes_on(name, tmp_path):
    teacher, student, plan = pruned(name, 2)
    settings = {**RECIPE, "plan": plan, "trained": "after_first_cut"}
    expected, _ = recover(copy.deepcopy(student), teacher, TRAINING, **settings)
    settings |= {"checkpoint": tmp_path / "checkpoint", "checkpoint_every_seconds": 0}
    with pytest.raises(KeyboardInterrupt):
        recover(student, teacher, TRAINING, progress=stop_at(72), **settings)
    assert all(p.requires_grad and p.grad is None for p in student.parameters()) and not student.training
    with pytest.raises(ValueError, match="cut the student anew if this run was interrupted"):
        recover(student, teacher, TRAINING, **settings)
    seen = []
    _, student, _ = pruned(name, 2)
    recovered, _ = recover(student, teacher, TRAINING, progress=lambda done, *_: seen.append(done), **settings)
    assert same_weights(recovered, expected) and seen == [72, 96, 120, 132]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_finished_recovery_is_read_and_not_run_again(name, tmp_path):
    teacher, student, plan = pruned(name, 2)
    settings = {**RECIPE, "plan": plan, "checkpoint": tmp_path / "checkpoint", "checkpoint_every_seconds": 0}
    expected, expected_curve = recover(copy.deepcopy(student), teacher, TRAINING, **settings)
    read, curve = recover(student, teacher, TRAINING, progress=lambda *_: pytest.fail("trained again"), **settings)
    assert same_weights(read, expected) and curve == expected_curve
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint"]


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    teacher, student, plan = pruned("llama", 2)
    recover(student, teacher, TRAINING, plan=plan, checkpoint=tmp_path / "checkpoint", checkpoint_every_seconds=0, **RECIPE)
    return tmp_path / "checkpoint"


@pytest.mark.parametrize(
    "other",
    [
        {"lr": 1e-3},
        {"seed": 1},
        {"temperature": 2.0},
        {"loss": {"kl": 1.0, "ce": 1.0}},
        {"dropout": True},
        {"windows": TRAINING.take(slice(8))},
    ],
    ids=str,
)
def test_another_runs_checkpoint_is_refused(checkpoint, other):
    teacher, student, plan = pruned("llama", 2)
    settings = {**RECIPE, "windows": TRAINING, **other}
    unchanged = state_of(student)
    with pytest.raises(ValueError, match="belongs to another run"):
        recover(student, teacher, plan=plan, checkpoint=checkpoint, **settings)
    assert unchanged()


@pytest.mark.parametrize("differing", ["start", "teacher"])
@pytest.mark.parametrize("trained", TRAINED_PARTS)
@pytest.mark.parametrize("name", FAMILIES)
def test_the_checkpoint_of_another_start_or_teacher_is_refused(name, trained, differing, tmp_path):
    settings = {**RECIPE, "trained": trained, "checkpoint": tmp_path / "checkpoint", "checkpoint_every_seconds": 0}
    for attempt in range(3):  # a run that is cut, the same again, another one
        teacher, student, plan = pruned(name, 2)
        if attempt == 2 and differing == "start":
            refit(student, teacher, plan, TRAINING)
        if attempt == 2 and differing == "teacher":
            teacher = tiny(name, seed=1)
        if trained == "lora":
            share_equal(student, teacher, plan)
        unchanged, seen = state_of(student), []

        def stop(done: int, of: int, what: str, seen: list[int] = seen) -> None:
            seen.append(done)
            if len(seen) == 2:
                raise KeyboardInterrupt

        stopped = pytest.raises(KeyboardInterrupt) if attempt < 2 else pytest.raises(ValueError, match=OF_ANOTHER_RUN)
        with stopped:
            recover(student, teacher, TRAINING, plan=plan, progress=stop, **settings)
        assert seen == [[24, 48], [48, 72], []][attempt]
    assert unchanged()


@pytest.mark.parametrize(
    "damage",
    [lambda b: b[:-1], lambda b: b[: len(b) // 2] + bytes([b[len(b) // 2] ^ 1]) + b[len(b) // 2 + 1 :], lambda b: b""],
    ids=["cut", "flipped", "empty"],
)
def test_a_damaged_checkpoint_is_refused(checkpoint, damage):
    teacher, student, plan = pruned("llama", 2)
    checkpoint.write_bytes(damage(checkpoint.read_bytes()))
    with pytest.raises(ValueError, match="is damaged"):
        recover(student, teacher, TRAINING, plan=plan, checkpoint=checkpoint, **RECIPE)


def test_a_checkpoint_damaged_anywhere_in_its_directory_is_refused_by_name_or_read_as_it_was(checkpoint):
    teacher, student, plan = pruned("llama", 2)
    expected, _ = recover(student, teacher, TRAINING, plan=plan, checkpoint=checkpoint, **RECIPE)
    content = checkpoint.read_bytes()
    directory, rng = content.index(b"PK\x01\x02"), random.Random(0)
    ends = range(len(content) - 98, len(content))  # the records that tell where the directory lies
    refused = 0
    for at in [*rng.sample(ends, 20), *rng.sample(range(directory, len(content)), 20)]:
        checkpoint.write_bytes(content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :])
        _, student, _ = pruned("llama", 2)
        try:
            read, _ = recover(student, teacher, TRAINING, plan=plan, checkpoint=checkpoint, **RECIPE)
        except ValueError as error:
            assert str(error) == f"checkpoint {checkpoint} is damaged: remove it to begin this recovery again"
            refused += 1
        else:
            assert same_weights(read, expected)
    assert refused > 10


def test_a_checkpoint_is_written_under_a_name_of_the_process_s_own_and_leaves_no_part(checkpoint, monkeypatch):
    student, before, seen = tiny("llama"), checkpoint.read_bytes(), []

    def full(state: object, path: Path) -> None:
        path.write_bytes(b"half")
        seen.append(path.name)
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", full)
    for process in (1, 2):
        monkeypatch.setattr(os, "getpid", lambda process=process: process)
        with pytest.raises(OSError, match="No space left"):
            checkpoints.save(checkpoint, "key", student, [], torch.amp.GradScaler("cpu"), {})
    assert seen == [".checkpoint.1.tmp", ".checkpoint.2.tmp"]
    assert checkpoint.read_bytes() == before and list(checkpoint.parent.iterdir()) == [checkpoint]


def test_a_checkpoint_that_memory_does_not_suffice_for_is_not_called_damaged(checkpoint, monkeypatch):
    teacher, student, plan = pruned("llama", 2)

    def full(*args: object, **options: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(torch, "load", full)
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        recover(student, teacher, TRAINING, plan=plan, checkpoint=checkpoint, **RECIPE)


# ---------------------------------------------------------------- what is refused or stopped


@pytest.mark.parametrize("name", FAMILIES)
def test_a_loss_that_is_not_a_number_stops_the_run(name):
    teacher, student, plan = pruned(name, 2)

    def break_it(done: int, of: int, what: str) -> None:
        final_norm_of(student).weight.data[0] = math.nan

    with pytest.raises(DivergedError, match="the kl loss is nan at step 1") as stop:
        recover(student, teacher, TRAINING, plan=plan, progress=break_it, **RECIPE)
    assert all(p.grad is None for p in student.parameters())
    assert len(stop.value.curve.losses["kl"]) == len(stop.value.curve.tokens) == 1  # the run up to there


@pytest.mark.parametrize("name", FAMILIES)
def test_a_gradient_that_is_not_a_number_stops_the_run_before_the_weights_move(name):
    teacher, student, plan = pruned(name, 2)
    before = weights_of(student)
    final_norm_of(student).weight.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(DivergedError, match="the gradient is not finite at step 0"):
        recover(student, teacher, TRAINING, plan=plan, **RECIPE)
    assert all(torch.equal(p, before[name]) for name, p in student.named_parameters())


def test_a_run_in_half_precision_that_never_made_a_step_is_no_recovery():
    teacher, student, plan = pruned("llama", 2)
    final_norm_of(student).weight.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(DivergedError, match=r"no step of \d+ had a gradient that float16 can hold"):
        recover(student, teacher, TRAINING, plan=plan, precision="float16", **RECIPE)


@pytest.mark.parametrize("factor", [math.inf, math.nan])
def test_in_half_precision_no_optimiser_steps_where_one_of_them_could_not(factor):
    """Muon has the matrices, AdamW the rest: of a third step whose gradient breaks in one matrix, all is passed over."""
    teacher, student, plan = pruned("llama", 2)
    after = []

    def break_it(gradient: torch.Tensor) -> torch.Tensor:
        return gradient * factor if len(after) == 2 else gradient

    layers_of(student)[0].mlp.up_proj.weight.register_hook(break_it)
    settings = {**RECIPE, "precision": "float16", "optimiser": "muon"}
    recover(student, teacher, TRAINING, plan=plan, progress=lambda *_: after.append(weights_of(student)), **settings)
    moved = [any(not torch.equal(one[name], two[name]) for name in one) for one, two in itertools.pairwise(after)]
    assert moved == [True, False, True, True, True]


def test_weights_that_the_last_step_broke_are_no_result():
    teacher, student, plan = pruned("llama", 2)

    def break_it(done: int, of: int, what: str) -> None:
        if done == of:
            final_norm_of(student).weight.data[0] = math.inf

    with pytest.raises(DivergedError, match="a weight is not finite after the last step"):
        recover(student, teacher, TRAINING, plan=plan, progress=break_it, **RECIPE)


@pytest.mark.parametrize("loss", [{"kl": 1.0}, {"kl": 1.0, "ce": 0.0}, {"hidden": 1.0, "kl": 1.0}], ids=str)
@pytest.mark.parametrize("name", FAMILIES)
def test_a_student_of_its_teachers_own_shape_without_ce_is_refused(name, loss):
    teacher, student = tiny(name), tiny(name)
    with pytest.raises(ValueError, match="its gradient is zero"):
        recover(student, teacher, TRAINING, plan=plan_of(teacher), **{**RECIPE, "loss": loss})


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"loss": {"klx": 1.0}}, "unknown terms"),
        ({"loss": {}}, "at least one must be above 0"),
        ({"loss": {"kl": 0.0}}, "at least one must be above 0"),
        ({"loss": {"kl": 1.0, "ce": -0.1}}, "none below"),
        ({"trained": "prefix"}, "trained='prefix' is not known"),
        ({"trained": "lora", "lora_rank": 0}, "lora_rank=0 is not possible"),
        ({"optimiser": "sgd"}, "optimiser='sgd' is not known"),
        ({"precision": "float8"}, "precision='float8' is not known"),
        ({"teacher": None}, "need a teacher"),
        ({"teacher": None, "loss": {"ce": 1.0, "hidden": 1.0}}, "need a teacher"),
        ({"plan": None, "trained": "after_first_cut"}, "need the plan"),
        ({"plan": None, "loss": {"hidden": 1.0}}, "need the plan"),
        ({"plan": Plan(5, (), "none"), "trained": "after_first_cut"}, "drops nothing"),
        ({"plan": Plan(5, (1, 2), "by hand"), "loss": {"hidden": 1.0}}, "does not lead from teacher to student"),
    ],
    ids=str,
)
def test_settings_that_cannot_be_are_refused(changed, sentence):
    teacher, student, plan = pruned("llama", 2)
    unchanged = state_of(student)
    settings = {**RECIPE, "teacher": teacher, "plan": plan, **changed}
    with pytest.raises(ValueError, match=sentence):
        recover(student, windows=TRAINING, **settings)
    assert unchanged()
