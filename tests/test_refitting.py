"""The closed-form start equals a plain least-squares solution, helps, and touches nothing else; on both families."""

from __future__ import annotations

import dataclasses
import re

import pytest
import torch
from tiny import ARCHITECTURES, layers_of, plan_of, state_of, tiny, tiny_windows
from torch import nn
from transformers import PreTrainedModel

from depthprune_core import pruning
from depthprune_core.evaluation import divergence
from depthprune_core.records import Plan
from depthprune_core.refitting import fitted_layers, is_possible, refit
from depthprune_core.text import Windows

MANY = tiny_windows(seed=3, lengths=(60, 47, 33, 29))


def down(model: PreTrainedModel, layer: int) -> nn.Module:
    """The MLP's last map, by the family's own name."""
    mlp = layers_of(model)[layer].mlp
    return mlp.c_proj if model.config.model_type == "gpt2" else mlp.down_proj


def as_matrix(model: PreTrainedModel, layer: int) -> torch.Tensor:
    """Neurons to hidden states.  (width, d)"""
    weight = down(model, layer).weight.detach().double()
    return weight if model.config.model_type == "gpt2" else weight.T


@torch.no_grad()
def seen(model: PreTrainedModel, layer: int, windows: Windows) -> tuple[torch.Tensor, torch.Tensor]:
    """A layer's neurons and output at the unmasked tokens, by hooks of torch's own.  (n, width), (n, d)"""
    found = {}
    hooks = [
        down(model, layer).register_forward_pre_hook(lambda module, args: found.update(neurons=args[0])),
        layers_of(model)[layer].register_forward_hook(
            lambda module, args, output: found.update(output=output[0] if isinstance(output, tuple) else output)
        ),
    ]
    model(input_ids=windows.inputs)
    for hook in hooks:
        hook.remove()
    return tuple(found[name][windows.mask].double() for name in ("neurons", "output"))


def plain_fit(student: PreTrainedModel, layer: int, wanted: torch.Tensor, windows: Windows, ridge: float) -> torch.Tensor:
    """The changed map by one dense least-squares problem, ridge as extra rows.  (width, d)"""
    neurons, output = seen(student, layer, windows)
    weight = wanted.square().mean(-1, keepdim=True).rsqrt()
    a, b = neurons * weight, (wanted - output) * weight
    penalty = (ridge * a.square().sum(0).mean()).sqrt() * torch.eye(a.shape[1], dtype=a.dtype)
    rows, zeros = torch.cat([a, penalty]), torch.zeros(a.shape[1], b.shape[1], dtype=b.dtype)
    return as_matrix(student, layer) + torch.linalg.lstsq(rows, torch.cat([b, zeros])).solution


def error(student: PreTrainedModel, layer: int, teacher: PreTrainedModel, stands_for: int, windows: Windows) -> float:
    """Relative squared distance between the student's hidden state and the teacher's."""
    mine, wanted = seen(student, layer, windows)[1], seen(teacher, stands_for, windows)[1]
    return float(((mine - wanted).square().mean(-1) / wanted.square().mean(-1)).mean())


@pytest.mark.parametrize("dropped", [(1,), (2, 3), (3, 4)], ids=str)
def test_the_map_before_a_cut_is_the_plain_least_squares_solution(model, dropped):
    plan = plan_of(model, *dropped)
    student = pruning.drop_layers(model, plan)
    before = min(dropped) - 1
    wanted = seen(model, max(dropped), MANY)[1]
    expected = plain_fit(student, before, wanted, MANY, ridge=0.05)
    refit(student, model, plan, MANY, ridge=0.05, batch_size=2)
    assert (expected - as_matrix(model, before)).abs().max() > 0.01  # the fit matters
    torch.testing.assert_close(as_matrix(student, before), expected, rtol=1e-3, atol=1e-4)


def test_a_second_cut_is_fitted_on_what_the_first_fit_left(model):
    plan = plan_of(model, 1, 3)  # keeps 0, 2, 4
    student = pruning.drop_layers(model, plan)
    refit(student, model, plan_of(model, 1, 3), MANY, ridge=0.05)
    first_alone = pruning.drop_layers(model, plan)
    with torch.no_grad():
        down(first_alone, 0).weight.copy_(down(student, 0).weight)
    expected = plain_fit(first_alone, 1, seen(model, 3, MANY)[1], MANY, ridge=0.05)
    torch.testing.assert_close(as_matrix(student, 1), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dropped", [(2,), (1, 3), (2, 3)], ids=str)
def test_a_fitted_student_is_nearer_to_its_teacher(model, dropped):
    plan = plan_of(model, *dropped)
    student, plain = (pruning.drop_layers(model, plan) for _ in range(2))
    refit(student, model, plan, MANY)
    first, stands_for = next(iter(fitted_layers(plan).items()))
    assert error(student, first, model, stands_for - 1, MANY) < 0.9 * error(plain, first, model, stands_for - 1, MANY)
    assert divergence(student, model, MANY).mean_kl_nats < divergence(plain, model, MANY).mean_kl_nats


def test_only_the_map_before_the_cut_changes_and_nothing_is_left_behind(model):
    plan = plan_of(model, 2)
    student, plain = (pruning.drop_layers(model, plan) for _ in range(2))
    teacher_as_was = state_of(model)
    assert refit(student, model, plan, MANY) is student
    changed = {name for name, tensor in student.state_dict().items() if not torch.equal(tensor, plain.state_dict()[name])}
    assert teacher_as_was() and len(changed) == 1 and re.search(r"\.1\.mlp\.(c_proj|down_proj)\.weight$", *changed)
    assert not any(m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m) for m in student.modules())


def test_a_narrower_student_has_every_layer_fitted(model):
    width = down(model, 0).weight.shape[0 if model.config.model_type == "gpt2" else 1] // 2
    narrow, plain = (pruning.narrow_mlps(model, [list(range(width))] * 5) for _ in range(2))
    nothing = plan_of(model)
    assert fitted_layers(nothing) == {layer: layer + 1 for layer in range(5)}
    refit(narrow, model, nothing, MANY)
    for layer in (0, 4):
        assert error(narrow, layer, model, layer, MANY) < error(plain, layer, model, layer, MANY)


def test_a_cut_without_a_layer_before_it_is_left_as_it_is(model):
    plan = plan_of(model, 0)
    student = pruning.drop_layers(model, plan)
    as_was = state_of(student)
    refit(student, model, plan, MANY)
    assert fitted_layers(plan) == {} and as_was()


def test_padding_takes_no_part(model, windows):
    noise = torch.where(windows.mask, windows.inputs, torch.full_like(windows.inputs, 7))
    assert not torch.equal(noise, windows.inputs)
    students = []
    for some in (windows, dataclasses.replace(windows, inputs=noise)):
        students.append(refit(pruning.drop_layers(model, plan_of(model, 2)), model, plan_of(model, 2), some))
    torch.testing.assert_close(as_matrix(students[0], 1), as_matrix(students[1], 1))


def test_an_mlp_whose_output_is_not_simply_added_is_refused():
    model = tiny("gemma2")  # normalises what the MLP gives
    student = pruning.drop_layers(model, plan_of(model, 2))
    as_was = state_of(student)
    with pytest.raises(ValueError, match="simply added"):
        refit(student, model, plan_of(model, 2), MANY)
    assert as_was()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_which_architectures_can_be_refitted(name):
    model = tiny(name)
    as_was = state_of(model)
    assert is_possible(model) == (name not in {"gemma2", "gemma3_text", "bloom"})  # a norm follows; a width that is not stated
    assert as_was()


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if is_possible(tiny(name))])
def test_every_architecture_that_can_be_refitted_comes_nearer_to_its_teacher(name):
    model = tiny(name)
    student = pruning.drop_layers(model, plan_of(model, 2))
    before = divergence(student, model, MANY).mean_kl_nats
    refit(student, model, plan_of(model, 2), MANY)
    assert divergence(student, model, MANY).mean_kl_nats < before


def test_a_plan_of_another_student_and_a_ridge_of_zero_are_refused(model):
    student = pruning.drop_layers(model, plan_of(model, 2))
    with pytest.raises(ValueError, match="keeps 3 of 5 layers"):
        refit(student, model, Plan(5, (1, 2), "by hand"), MANY)
    with pytest.raises(ValueError, match="ridge=0"):
        refit(student, model, plan_of(model, 2), MANY, ridge=0.0)
