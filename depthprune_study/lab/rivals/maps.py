"""Four training-free repairs of a cut, implemented from their papers: rivals of our refit.

All four use statistics of the whole model on the same windows. A *cut* here is a run of dropped
layers a..b-1; X is the whole model's hidden state before layer a, Y its hidden state before layer
b, both (tokens, d), over the tokens that the windows score. The cut student passes X to layer b,
which was trained on Y. A plan with several runs gets one operator per run.

Students are measured in memory and never saved: as written here, three of the four add a module at
the cut. (Prune&Comp's scalar could be merged into weights, as the paper does.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from depthprune_core.anatomy import anatomy
from depthprune_core.mlps import mlp_outputs
from depthprune_core.pruning import drop_layers
from depthprune_core.records import Plan
from depthprune_core.refitting import is_possible
from depthprune_core.running import hidden_states, recording
from depthprune_core.text import Windows
from depthprune_study.errors import StudyError
from depthprune_study.lab.rivals.hadamard import hadamard
from depthprune_study.lab.students import Student, made

if TYPE_CHECKING:
    from depthprune_study.lab.workspace import Workspace

BATCH = 4  # windows per pass
_TINY = 1e-6  # added to the normal equations' diagonal, as in the code of Ghosted Layers


def cuts(plan: Plan) -> list[tuple[int, int]]:
    """The plan's runs of neighbouring layers in order: first layer, and next kept layer.

    The next kept layer is n_layers if the last layer is dropped.
    """
    firsts = [layer for layer in plan.dropped if layer - 1 not in plan.dropped]
    afters = [layer + 1 for layer in plan.dropped if layer + 1 not in plan.dropped]
    return list(zip(firsts, afters, strict=True))


def training_free(lab: Workspace, method: str, plan: Plan, windows: Windows) -> Student:
    """The plan's student, repaired by one of METHODS on these windows."""
    if method not in METHODS:
        raise StudyError(f"method={method!r} is not known: name one of {', '.join(METHODS)}")
    name, teacher = f"{method}, {len(plan.dropped)} fewer", lab.teacher
    make = lambda: METHODS[method](teacher.model, plan, windows)  # noqa: E731
    return made(lab, name, plan, make, module=__name__, on=[windows])


# ---------------------------------------------------------------- the four methods


@torch.no_grad()
def prune_and_comp(teacher: PreTrainedModel, plan: Plan, windows: Windows) -> PreTrainedModel:
    """Prune&Comp (Chen et al. 2025, arXiv:2507.18212): one scalar closes the magnitude gap.

    alpha = the mean over channels and windows of mean|Y| / mean|X|, means over tokens, as in the
    authors' code (magcomp.py). The paper folds alpha into the weights that make X: the embedding,
    and o_proj and down_proj of every layer before the cut. Norms stand before each map, so this is
    the same as X -> alpha X at the cut (up to the norms' epsilon), which is done here: a head that
    is tied to the embedding would be scaled along. A test compares both on an untied model.

    Deviation: the paper's search (prune one layer, compensate, choose the next) is left out,
    because all rivals repair the same cut. So with several runs each alpha is measured on the whole
    model, not on a student that is compensated already.
    """
    patched = drop_layers(teacher, plan)
    for first, after in cuts(plan):
        ratios = [
            float((y.abs().mean(0) / x.abs().mean(0)).mean())
            for x, y in _states(teacher, first, after, windows, by_window=True)
        ]
        alpha = math.fsum(ratios) / len(ratios)
        _patch(patched, plan, after, lambda hidden, alpha=alpha: hidden * alpha)
    return patched


@torch.no_grad()
def linear_patch(teacher: PreTrainedModel, plan: Plan, windows: Windows) -> PreTrainedModel:
    """LinearPatch (Chen et al. 2025, arXiv:2505.24680): X -> X P at the cut, with P = H D H'.

    H is an orthonormal Hadamard matrix, which spreads the outliers of single channels. D is
    diagonal: for each rotated channel the mean over windows of mean|Y H| / mean|X H| (means over
    tokens). So P is one symmetric matrix. Its distilled form (LinearPatch-D) trains P and is no
    training-free rival.

    Raises StudyError for a hidden size that has no Hadamard matrix here.
    """
    patched = drop_layers(teacher, plan)
    d = teacher.get_input_embeddings().weight.shape[1]
    rotation = hadamard(d).to(teacher.device, torch.float64)
    for first, after in cuts(plan):
        scales = [
            (y @ rotation).abs().mean(0) / (x @ rotation).abs().mean(0)
            for x, y in _states(teacher, first, after, windows, by_window=True)
        ]
        scale = torch.stack(scales).mean(0)  # (d,)
        _patch(patched, plan, after, _multiply((rotation * scale) @ rotation.T))
    return patched


@torch.no_grad()
def ghosted_layers(teacher: PreTrainedModel, plan: Plan, windows: Windows) -> PreTrainedModel:
    """Ghosted Layers (Yun et al. 2026, arXiv:2605.15491): X -> X W at the cut, W unconstrained.

    W = I + M, where M solves min |X M - (Y - X)|^2 in closed form: (X'X + 1e-6 I) M = X'(Y - X) in
    float64, as in the authors' code. The paper calibrates on 32 sequences of 2,048 tokens.
    """
    patched = drop_layers(teacher, plan)
    for first, after in cuts(plan):
        normal, moment = 0.0, 0.0
        for x, y in _states(teacher, first, after, windows):
            normal, moment = normal + x.T @ x, moment + x.T @ (y - x)
        change = _solve(normal, moment)
        _patch(patched, plan, after, _multiply(change + torch.eye(len(change)).to(change)))
    return patched


@torch.no_grad()
def replaceme(teacher: PreTrainedModel, plan: Plan, windows: Windows) -> PreTrainedModel:
    """ReplaceMe (Shopkhoev et al. 2025, arXiv:2505.02819), its least-squares form: no new module.

    With M the MLP's output of the last layer before the cut, and A the rest of its residual stream
    (so X = A + M), T solves min |M T + A - Y|^2 over (d, d) matrices and is merged into
    down_proj: W -> W T, bias -> bias T. The paper's other form minimises a cosine distance by Adam.

    A cut with no layer before it is not repaired. Raises ValueError if MLPs do not end in one
    linear map whose output is added to the hidden states.
    """
    if not is_possible(teacher):
        raise ValueError(
            f"ReplaceMe cannot repair {type(teacher).__name__}: its MLPs do not end in one linear "
            "map whose output is added to the hidden states"
        )
    patched = drop_layers(teacher, plan)
    for first, after in cuts(plan):
        if first == 0:
            continue
        normal, moment = 0.0, 0.0
        inside = mlp_outputs(teacher)[first - 1]
        for x, y, mlp in _states(teacher, first, after, windows, inside=inside):
            normal, moment = normal + mlp.T @ mlp, moment + mlp.T @ (y - (x - mlp))
        target = mlp_outputs(patched)[plan.kept.index(first - 1)]
        _merge(target, _solve(normal, moment))
    return patched


METHODS: dict[str, Callable[[PreTrainedModel, Plan, Windows], PreTrainedModel]] = {
    method.__name__: method for method in (prune_and_comp, linear_patch, replaceme, ghosted_layers)
}

# ---------------------------------------------------------------- parts


def _states(
    model: PreTrainedModel,
    first: int,
    after: int,
    windows: Windows,
    *,
    by_window: bool = False,
    inside: nn.Module | None = None,
) -> Iterator[tuple[torch.Tensor, ...]]:
    """X and Y of each batch (or window), and the output of module `inside`.  (n, d) float64"""
    parts, seen = anatomy(model), []
    for batch in windows.batches(BATCH):
        hook = inside and inside.register_forward_hook(lambda _, args, output: seen.append(output))
        try:
            with recording(parts.layers) as inputs:
                hidden_states(parts, batch.inputs.to(model.device))
        finally:
            if hook is not None:
                hook.remove()
        found = [inputs[first], inputs[after], *seen]
        seen.clear()
        shape = inputs[first].shape
        mask = batch.mask.to(model.device)
        rows = mask.split(1) if by_window else [mask]
        for number, row in enumerate(rows):
            at = slice(number, number + 1) if by_window else slice(None)
            if row.any():
                yield tuple(state.reshape(shape)[at][row].double() for state in found)


def _patch(model: PreTrainedModel, plan: Plan, after: int, change: Callable) -> None:
    """Apply `change` to the hidden states at the cut: before the next kept layer, or at the end."""
    layers = anatomy(model).layers

    def before(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        if args:
            return (change(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": change(kwargs["hidden_states"])}

    def behind(module: nn.Module, args: tuple, output: Any) -> Any:
        if isinstance(output, tuple):
            return change(output[0]), *output[1:]
        return change(output)

    if after < plan.n_layers:
        number = plan.kept.index(after)
        layers[number].register_forward_pre_hook(before, with_kwargs=True)
    else:
        layers[-1].register_forward_hook(behind)


def _multiply(matrix: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    kept = matrix.float()
    return lambda hidden: (hidden.float() @ kept.to(hidden.device)).to(hidden.dtype)


def _solve(normal: torch.Tensor, moment: torch.Tensor) -> torch.Tensor:
    normal.diagonal().add_(_TINY)
    return torch.linalg.solve(normal, moment)


def _merge(linear: nn.Linear | Conv1D, change: torch.Tensor) -> None:
    """Merge T into the map, so that its outputs o become o T."""
    weight = linear.weight.double()
    linear.weight.copy_(weight @ change if isinstance(linear, Conv1D) else change.T @ weight)
    if linear.bias is not None:
        linear.bias.copy_(linear.bias.double() @ change)
