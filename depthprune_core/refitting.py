"""A better start for recovery: linear maps of a student fitted in closed form, without training."""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from depthprune_core.anatomy import anatomy
from depthprune_core.mlps import mlp_outputs
from depthprune_core.probing import probe_ids
from depthprune_core.products import linear
from depthprune_core.progress import Progress, silent
from depthprune_core.records import Plan
from depthprune_core.running import hidden_states, passing, recording, replaced
from depthprune_core.text import Windows

RIDGES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
HELD_OUT = 5  # every fifth batch chooses among them; of fewer, the last one
BATCH_SIZE = 4  # windows


@torch.no_grad()
def refit(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    plan: Plan,
    windows: Windows,
    *,
    progress: Progress = silent,
) -> PreTrainedModel:
    """Fit, in place, the last MLP map before each cut and in the layer after it.

    Maps are fitted from front to back. Each makes its layer's output match the teacher's, given the
    earlier fits. With n the MLP's neurons of a token (width,), x the layer's output and h the
    matching teacher state (d,), the change V minimises the sum of |n V - (h - x)|^2 / mean(h^2)
    over the unmasked tokens, plus ridge x |V|^2 x the mean of the normal matrix' diagonal. Every
    fifth batch (of fewer than five, the last) is held out to choose the ridge of each map; the map
    is then fitted on all batches.
    Size and speed do not change: the student is a plain checkpoint. ReplaceMe (Shopkhoev et al.
    2025, 2505.02819) fits a map of the MLP's output, of rank d; here every neuron is used.

    If the plan drops no layer (a student that is narrower in every layer), all maps are fitted.

    Raises ValueError if the student does not have the plan's layers, or if its MLPs do not end in
    one linear map whose output is added (`is_possible`).
    """
    _check(student, teacher, plan)
    batches = list(windows.batches(BATCH_SIZE))
    mine: list[torch.Tensor | None] = [None] * len(batches)  # the student's input of layer `at`
    wanted: list[torch.Tensor | None] = [None] * len(batches)  # the teacher's of layer `goal_at`
    at = goal_at = 0
    turn = min(HELD_OUT, len(batches)) if len(batches) > 1 else HELD_OUT
    maps, goals = mlp_outputs(student), fitted_layers(plan)
    for done, (layer, goal) in enumerate(goals.items()):
        last, fitted, held_out = maps[layer], _Problem(), _Problem()
        for i, batch in enumerate(batches):
            mine[i] = _advance(student, batch.inputs, mine[i], at, layer)
            wanted[i] = _advance(teacher, batch.inputs, wanted[i], goal_at, goal)
            neurons, output = _inside(student, last, batch.inputs, mine[i], layer)
            mask = batch.mask.to(output.device)
            h = wanted[i][mask].float()
            weight = h.square().mean(-1, keepdim=True).clamp_min(1e-12).rsqrt()
            problem = held_out if i % turn == turn - 1 else fitted
            problem.add(neurons[mask].float() * weight, (h - output[mask].float()) * weight)
        ridge = _best_ridge(fitted, held_out)
        change = (fitted + held_out).solve(ridge).to(last.weight.dtype)  # (width, d)
        last.weight += change if isinstance(last, Conv1D) else change.T
        at, goal_at = layer, goal
        progress(done + 1, len(goals), "layers refitted")
    return student


def fitted_layers(plan: Plan) -> dict[int, int]:
    """Layer of the student -> the teacher layer whose input its output must match.

    Contains the layer before each cut and the one after it; fitting more did not help.
    n_layers means the teacher's last output.
    """
    after = (*plan.kept[1:], plan.n_layers)
    gaps = [new for new, old in enumerate(plan.kept) if after[new] > old + 1 or not plan.dropped]
    if plan.kept[0] > 0:
        gaps.insert(0, -1)
    around = {layer for gap in gaps for layer in (gap, gap + 1)}
    return {layer: after[layer] for layer in sorted(around) if 0 <= layer < len(plan.kept)}


@torch.no_grad()
def is_possible(model: PreTrainedModel) -> bool:
    """Whether an MLP ends in one linear map whose output is added as it is (no norm follows)."""
    try:
        last = mlp_outputs(model)[0]
    except ValueError:
        return False
    probe, weight = probe_ids(model)[:1], last.weight.clone()
    neurons, before = _inside(model, last, probe, None, 0)
    try:
        last.weight.mul_(2)
        _, after = _inside(model, last, probe, None, 0)
    finally:
        last.weight.copy_(weight)
    added = neurons.double() @ (weight if isinstance(last, Conv1D) else weight.T).double()
    tolerance = max(1e-3, 8 * torch.finfo(model.dtype).eps)
    atol = tolerance * float(added.abs().max())
    return torch.allclose((after - before).double(), added, rtol=tolerance, atol=atol)


class _Problem:
    """Sums of a least-squares problem: features (n, k) and targets (n, d)."""

    def __init__(self) -> None:
        self.normal: torch.Tensor | float = 0.0  # (k, k)
        self.moment: torch.Tensor | float = 0.0  # (k, d)

    def add(self, features: torch.Tensor, wanted: torch.Tensor) -> None:
        rows = features.T.contiguous()
        self.normal = self.normal + linear(rows, rows).double()
        self.moment = self.moment + linear(rows, wanted.T.contiguous()).double()

    def __add__(self, other: _Problem) -> _Problem:
        both = _Problem()
        both.normal, both.moment = self.normal + other.normal, self.moment + other.moment
        return both

    def solve(self, ridge: float) -> torch.Tensor:
        normal = self.normal.clone()
        normal.diagonal().add_(ridge * normal.diagonal().mean())
        return torch.cholesky_solve(self.moment, torch.linalg.cholesky(normal))

    def gain(self, solution: torch.Tensor) -> float:
        """The sum of squares that a solution explains here."""
        return float(((2 * self.moment - self.normal @ solution) * solution).sum())


def _best_ridge(fitted: _Problem, held_out: _Problem) -> float:
    """The ridge whose fit explains most of the held-out text."""
    if isinstance(held_out.normal, float):  # one batch: none is held out
        return RIDGES[len(RIDGES) // 2]
    return max(RIDGES, key=lambda ridge: held_out.gain(fitted.solve(ridge)))


def _advance(
    model: PreTrainedModel, ids: torch.Tensor, hidden: torch.Tensor | None, start: int, stop: int
) -> torch.Tensor:
    """The input of layer `stop`, from that of layer `start` (None: from the tokens).  (b, s, d)"""
    if start == stop and hidden is not None:
        return hidden
    parts = anatomy(model)
    resumed = {"resume_after": start - 1, "hidden": hidden} if start and hidden is not None else {}
    rest = {index: passing(parts) for index in range(stop, len(parts.layers))}
    with replaced(parts.layers, rest), recording(parts.layers) as inputs:
        hidden_states(parts, ids.to(model.device), **resumed)
    return inputs[stop]


def _inside(
    model: PreTrainedModel,
    last: nn.Module,
    ids: torch.Tensor,
    hidden: torch.Tensor | None,
    layer: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """A layer's neurons (batch, seq, width) and its output (batch, seq, d)."""
    seen: list[torch.Tensor] = []
    hook = last.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    try:
        output = _advance(model, ids, hidden, layer, layer + 1)
    finally:
        hook.remove()
    return seen[0].reshape(*output.shape[:2], -1), output  # some layers flatten batch and sequence


def _check(student: PreTrainedModel, teacher: PreTrainedModel, plan: Plan) -> None:
    depths = [len(anatomy(model).layers) for model in (student, teacher)]
    if depths != [len(plan.kept), plan.n_layers]:
        raise ValueError(
            f"the plan keeps {len(plan.kept)} of {plan.n_layers} layers: "
            "it does not lead from teacher to student"
        )
    if not is_possible(student):
        raise ValueError(
            f"{type(student).__name__} cannot be refitted: its MLPs do not end in one linear map "
            "whose output is simply added"
        )
