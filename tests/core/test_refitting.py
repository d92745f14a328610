"""The closed-form start equals a plain least-squares solution, helps, and changes nothing else."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from tiny import ARCHITECTURES, FAMILIES, layers_of, plan_of, state_of, tiny, tiny_windows
from torch import nn
from transformers import PreTrainedModel

from depthprune_core import refitting
from depthprune_core.evaluation import divergence
from depthprune_core.pruning import drop_layers
from depthprune_core.records import Plan
from depthprune_core.refitting import fitted_layers, is_possible, refit
from depthprune_core.text import Windows

MANY = tiny_windows(seed=3, lengths=(60, 47, 33, 29))
IMPOSSIBLE = {"gemma2", "gemma3_text", "bloom"}  # a norm follows the MLP; no width in the config


def down(model: PreTrainedModel, layer: int) -> nn.Module:
    """The MLP's last map, by its name in this family."""
    mlp = layers_of(model)[layer].mlp
    return mlp.c_proj if model.config.model_type == "gpt2" else mlp.down_proj


def matrix(model: PreTrainedModel, layer: int) -> torch.Tensor:
    """Neurons to hidden states.  (width, d)"""
    weight = down(model, layer).weight.detach().double()
    return weight if model.config.model_type == "gpt2" else weight.T


@torch.no_grad()
def seen(model: PreTrainedModel, layer: int, windows: Windows) -> tuple[torch.Tensor, torch.Tensor]:
    """A layer's neurons and output at the unmasked tokens, by hooks of torch's own."""
    found = {}
    hooks = [
        down(model, layer).register_forward_pre_hook(
            lambda module, args: found.update(neurons=args[0])
        ),
        layers_of(model)[layer].register_forward_hook(
            lambda module, args, output: found.update(
                output=output[0] if isinstance(output, tuple) else output
            )
        ),
    ]
    model(input_ids=windows.inputs)
    for hook in hooks:
        hook.remove()
    return tuple(found[name][windows.mask].double() for name in ("neurons", "output"))


@torch.no_grad()
def fit_plainly(student: PreTrainedModel, layer: int, wanted: torch.Tensor, ridge: float) -> None:
    """One dense least-squares problem, ridge as extra rows; the solution is added to the map."""
    neurons, output = seen(student, layer, MANY)
    weight = wanted.square().mean(-1, keepdim=True).rsqrt()
    a, b = neurons * weight, (wanted - output) * weight
    penalty = (ridge * a.square().sum(0).mean()).sqrt() * torch.eye(a.shape[1], dtype=a.dtype)
    rows, zeros = torch.cat([a, penalty]), torch.zeros(a.shape[1], b.shape[1], dtype=b.dtype)
    change = torch.linalg.lstsq(rows, torch.cat([b, zeros])).solution.float()
    down(student, layer).weight += change if student.config.model_type == "gpt2" else change.T


def error(student, layer: int, teacher, stands_for: int) -> float:
    """Relative squared distance between the student's hidden state and the teacher's."""
    mine, wanted = seen(student, layer, MANY)[1], seen(teacher, stands_for, MANY)[1]
    return float(((mine - wanted).square().mean(-1) / wanted.square().mean(-1)).mean())


@pytest.mark.parametrize(
    (
        "dropped",
        "steps",
    ),  # layer of the student -> layer of the teacher whose output it should match
    [
        ((1,), {0: 1, 1: 2}),
        ((2, 3), {1: 3, 2: 4}),
        ((3, 4), {2: 4}),
        ((1, 3), {0: 1, 1: 3, 2: 4}),
        ((0,), {0: 1}),
    ],
    ids=str,
)
def test_every_fit_is_the_plain_solution_given_the_fit_before_it(
    model, dropped, steps, monkeypatch
):
    monkeypatch.setattr(refitting, "RIDGES", (0.05,))
    monkeypatch.setattr(refitting, "BATCH_SIZE", 2)
    plan = plan_of(model, *dropped)
    student, plain = (drop_layers(model, plan) for _ in range(2))
    before = matrix(plain, min(steps)).clone()
    refit(student, model, plan, MANY)
    assert fitted_layers(plan) == {layer: goal + 1 for layer, goal in steps.items()}
    for layer, goal in steps.items():
        fit_plainly(plain, layer, seen(model, goal, MANY)[1], 0.05)
        torch.testing.assert_close(
            matrix(student, layer), matrix(plain, layer), rtol=1e-2, atol=1e-3
        )
    assert (matrix(student, min(steps)) - before).abs().max() > 0.01  # the fit matters


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_of_few_batches_the_last_chooses_the_ridge(model, batch_size, monkeypatch):
    monkeypatch.setattr(refitting, "BATCH_SIZE", batch_size)
    monkeypatch.setattr(refitting, "RIDGES", (0.3, 1e9, 1e9))  # the last two change nothing
    plan, windows = plan_of(model, 2), MANY.take(slice(0, 4))
    student = drop_layers(model, plan)
    before = matrix(student, 1).clone()
    refit(student, model, plan, windows)
    changed = float((matrix(student, 1) - before).abs().max())
    assert (changed > 1e-3) == (batch_size < 4)  # one batch: the middle one of the ridges


def test_only_the_maps_around_the_cut_change_and_no_hook_remains(model):
    plan, seen_of = plan_of(model, 2), []
    student, plain = (drop_layers(model, plan) for _ in range(2))
    unchanged, progress = state_of(model), lambda *now: seen_of.append(now)
    assert refit(student, model, plan, MANY, progress=progress) is student
    before = plain.state_dict()
    changed = {name for name, t in student.state_dict().items() if not torch.equal(t, before[name])}
    name = "c_proj" if model.config.model_type == "gpt2" else "down_proj"
    assert {name.split("layers.")[-1].split("h.")[-1] for name in changed} == {
        f"{layer}.mlp.{name}.weight" for layer in (1, 2)
    }
    assert unchanged() and seen_of == [(1, 2, "layers refitted"), (2, 2, "layers refitted")]
    leftovers = [(m._forward_hooks, m._forward_pre_hooks) for m in student.modules()]
    assert not any(any(pair) for pair in leftovers)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_narrower_student_has_every_layer_fitted(name):
    narrow = {"gpt2": {"n_inner": 64}, "llama": {"intermediate_size": 24}}[name]
    model, student, plain = tiny(name), tiny(name, **narrow), tiny(name, **narrow)
    none = Plan(5, (), "narrower")
    assert fitted_layers(none) == {layer: layer + 1 for layer in range(5)}
    refit(student, model, none, MANY)
    for layer in (0, 4):
        assert error(student, layer, model, layer) < error(plain, layer, model, layer)


def test_padding_does_not_count(model, windows):
    noise = torch.where(windows.mask, windows.inputs, torch.full_like(windows.inputs, 7))
    assert not torch.equal(noise, windows.inputs)
    students = []
    for text in (windows, dataclasses.replace(windows, inputs=noise)):
        student = drop_layers(model, plan_of(model, 2))
        students.append(refit(student, model, plan_of(model, 2), text))
    torch.testing.assert_close(matrix(students[0], 1), matrix(students[1], 1))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_is_fitted_and_improves_or_is_refused(name):
    model = tiny(name)
    unchanged = state_of(model)
    possible = is_possible(model)
    assert unchanged() and possible == (name not in IMPOSSIBLE)
    student, plan = drop_layers(model, plan_of(model, 2)), plan_of(model, 2)
    if possible:
        before = divergence(student, model, MANY).mean_kl_nats
        refit(student, model, plan, MANY)
        assert divergence(student, model, MANY).mean_kl_nats < before
    else:
        as_was = state_of(student)
        with pytest.raises(ValueError, match="simply added"):
            refit(student, model, plan, MANY)
        assert as_was()


def test_a_plan_of_another_student_is_refused(model):
    student = drop_layers(model, plan_of(model, 2))
    with pytest.raises(ValueError, match="keeps 3 of 5 layers"):
        refit(student, model, Plan(5, (1, 2), "by hand"), MANY)
