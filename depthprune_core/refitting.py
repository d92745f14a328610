"""A better start for recovery: linear maps of a smaller student fitted to its teacher in closed form, without training."""

from __future__ import annotations

import torch
from torch import nn
from transformers import Conv1D, PreTrainedModel

from depthprune_core.decoder import anatomy, mlp_outputs
from depthprune_core.progress import Progress, silent
from depthprune_core.records import Plan
from depthprune_core.running import hidden_states, passing, recording, replaced
from depthprune_core.text import Windows


@torch.no_grad()
def refit(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    plan: Plan,
    windows: Windows,
    *,
    ridge: float = 0.1,
    batch_size: int = 4,
    progress: Progress = silent,
) -> PreTrainedModel:
    """Fit, in place, the last map of the MLP before each cut, so that the layer after the cut sees what it saw in the teacher.

    Per layer, from the front: with n the MLP's neurons of a token (width,), x the layer's output and h the teacher's hidden state
    at the next kept layer (d,), V minimises the sum of |n V - (h - x)|^2 / mean(h^2) over the unmasked tokens, plus
    `ridge` * |V|^2 * the mean of the normal matrix' diagonal, and is added to the map. Size and speed stay as they are. ReplaceMe
    (Shopkhoev et al. 2025, arXiv:2505.02819) fits a map of the MLP's output, of rank d: here every neuron counts by itself.

    A cut with no layer before it is left as it is. With a plan that drops nothing (a student that is narrower in every layer) all
    layers are fitted.

    Raises ValueError where the student does not have the plan's layers, or where its MLPs are not such (`is_possible`).
    """
    ours, theirs = anatomy(student).layers, anatomy(teacher).layers
    if (len(ours), len(theirs)) != (len(plan.kept), plan.n_layers):
        raise ValueError(f"the plan keeps {len(plan.kept)} of {plan.n_layers} layers: it does not lead from teacher to student")
    if not ridge > 0:
        raise ValueError(f"ridge={ridge} is not possible: it must be above 0, or neurons that never fire have no solution")
    if not is_possible(student):
        raise ValueError(
            f"{type(student).__name__} cannot be refitted: its MLPs do not end in one linear map whose output is simply added"
        )
    targets = fitted_layers(plan)
    if not targets:
        return student
    maps, batches = mlp_outputs(student), list(windows.batches(batch_size))
    at, goal = min(targets), 0
    mine = [_advance(student, batch.inputs, None, 0, at) for batch in batches]
    wanted: list[torch.Tensor | None] = [None] * len(batches)
    for done, (layer, next_goal) in enumerate(sorted(targets.items())):
        mine = [_advance(student, batch.inputs, hidden, at, layer) for batch, hidden in zip(batches, mine, strict=True)]
        wanted = [
            _advance(teacher, batch.inputs, hidden, goal, next_goal) for batch, hidden in zip(batches, wanted, strict=True)
        ]
        normal, moment = None, None
        for batch, hidden, target in zip(batches, mine, wanted, strict=True):
            neurons, output = _inside(student, maps[layer], batch.inputs, hidden, layer)
            mask = batch.mask.to(output.device)
            h = target[mask].double()
            weight = h.square().mean(-1, keepdim=True).clamp_min(1e-12).rsqrt()
            a, rest = neurons[mask].double() * weight, (h - output[mask].double()) * weight
            normal = a.T @ a if normal is None else normal + a.T @ a
            moment = a.T @ rest if moment is None else moment + a.T @ rest
        change = _ridge_solution(normal, moment, ridge).to(maps[layer].weight.dtype)  # (width, d)
        maps[layer].weight += change if isinstance(maps[layer], Conv1D) else change.T
        mine = [_advance(student, batch.inputs, hidden, layer, layer + 1) for batch, hidden in zip(batches, mine, strict=True)]
        at, goal = layer + 1, next_goal
        progress(done + 1, len(targets), "layers")
    return student


@torch.no_grad()
def is_possible(model: PreTrainedModel) -> bool:
    """Whether an MLP ends in one linear map whose output is added to the hidden states as it is (not so where a norm follows it)."""
    try:
        linear = mlp_outputs(model)[0]
    except ValueError:
        return False
    probe = torch.tensor([[1, 2, 3, 2]])
    own = linear.weight.clone()
    neurons, before = _inside(model, linear, probe, None, 0)
    try:
        linear.weight.mul_(2)
        _, after = _inside(model, linear, probe, None, 0)
    finally:
        linear.weight.copy_(own)
    added = neurons.double() @ (own if isinstance(linear, Conv1D) else own.T).double()
    tolerance = max(1e-3, 8 * torch.finfo(model.dtype).eps)
    return torch.allclose((after - before).double(), added, rtol=tolerance, atol=tolerance * float(added.abs().max()))


def fitted_layers(plan: Plan) -> dict[int, int]:
    """Layer of the student -> the teacher's layer whose input its output stands for (n_layers: the teacher's last output)."""
    after = (*plan.kept[1:], plan.n_layers)
    return {new: after[new] for new, old in enumerate(plan.kept) if after[new] > old + 1 or not plan.dropped}


def _ridge_solution(normal: torch.Tensor, moment: torch.Tensor, ridge: float) -> torch.Tensor:
    normal.diagonal().add_(ridge * normal.diagonal().mean())
    return torch.cholesky_solve(moment, torch.linalg.cholesky(normal))


def _advance(model: PreTrainedModel, ids: torch.Tensor, hidden: torch.Tensor | None, start: int, stop: int) -> torch.Tensor:
    """The input of layer `stop`, from that of layer `start` (None: from the tokens).  (batch, seq, d)"""
    if start == stop and hidden is not None:
        return hidden
    parts = anatomy(model)
    resumed = {} if hidden is None else {"resume_after": start - 1, "hidden": hidden}
    rest = {index: passing(parts) for index in range(stop, len(parts.layers))}
    with replaced(parts.layers, rest), recording(parts.layers) as inputs:
        hidden_states(model, ids.to(model.device), **(resumed if start else {}))
    return inputs[stop]


def _inside(
    model: PreTrainedModel, linear: nn.Module, ids: torch.Tensor, hidden: torch.Tensor | None, layer: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """A layer's neurons (batch, seq, width) and its output (batch, seq, d)."""
    seen: list[torch.Tensor] = []
    hook = linear.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    try:
        output = _advance(model, ids, hidden, layer, layer + 1)
    finally:
        hook.remove()
    return seen[0].reshape(*output.shape[:2], -1), output  # some layers flatten batch and sequence
