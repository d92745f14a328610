"""Narrower MLPs: a control that removes the same number of parameters from all layers."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from depthprune_core.anatomy import anatomy
from depthprune_core.mlps import mlp_outputs, mlp_width, narrow_config
from depthprune_core.records import Plan
from depthprune_core.running import hidden_states
from depthprune_core.text import Windows
from depthprune_study.lab.students import Student, made

if TYPE_CHECKING:
    from depthprune_study.lab.workspace import Workspace

CALIBRATION_TOKENS = 512  # of each document


def narrowed(lab: Workspace, n_parameters: int) -> Student:
    """The whole model with narrower MLPs, as close to `n_parameters` as possible.

    Every layer keeps the same number of neurons: the most important ones on the calibration text.
    """
    model = lab.teacher.model
    text = lab.windows("calibration", tokens=CALIBRATION_TOKENS)
    width = width_of_size(model, n_parameters)

    def make() -> PreTrainedModel:
        best = neuron_importance(model, text).topk(width, dim=1).indices
        return narrow_mlps(model, best.tolist())

    plan = Plan(len(anatomy(model).layers), (), "narrowed")
    return made(lab, "narrower", plan, make, module=__name__, on=[width, text])


@torch.no_grad()
def neuron_importance(
    model: PreTrainedModel, windows: Windows, *, batch_size: int = 4
) -> torch.Tensor:
    """Each neuron's contribution to its MLP's output: ||activation|| ||column||.  (n_layers, width)

    The norm is over the scored tokens, so this is the error from removing the neuron (Wanda's
    score, Sun et al. 2023, arXiv:2306.11695, for a whole neuron).
    """
    modules, width = mlp_outputs(model), mlp_width(model)
    squares = torch.zeros(len(modules), width, dtype=torch.float64)
    parts, mask = anatomy(model), torch.zeros(0)

    def add(layer: int):
        def hook(module: nn.Module, args: tuple) -> None:
            neurons = args[0].reshape(-1, width)[mask]  # (n, width)
            squares[layer] += neurons.double().square().sum(0).cpu()

        return hook

    hooks = [m.register_forward_pre_hook(add(layer)) for layer, m in enumerate(modules)]
    try:
        for batch in windows.batches(batch_size):
            mask = batch.mask.flatten().to(model.device)
            hidden_states(parts, batch.inputs.to(model.device))
    finally:
        for hook in hooks:
            hook.remove()
    columns = [m.weight if isinstance(m, Conv1D) else m.weight.t() for m in modules]  # (width, d)
    return squares.sqrt() * torch.stack([column.double().norm(dim=1).cpu() for column in columns])


@torch.no_grad()
def narrow_mlps(model: PreTrainedModel, kept: Sequence[Sequence[int]]) -> PreTrainedModel:
    """A new model whose MLPs keep only these neurons; the original is unchanged.

    Weights are cut along their neuron dimension; fused gate and up maps are cut in each part.
    """
    parts = anatomy(model)
    width, narrow = mlp_width(model), len(kept[0])
    options = {"dtype": model.dtype, "attn_implementation": model.config._attn_implementation}
    with torch.random.fork_rng(devices=[]):  # a fresh model draws weights, all replaced below
        result = type(model)._from_config(narrow_config(model, narrow), **options)
    result = result.to(model.device)
    source = dict(_tensors(model))
    for name, tensor in _tensors(result):
        whole = source[name]
        for dim, (new, old) in enumerate(zip(tensor.shape, whole.shape, strict=True)):
            if new != old:
                layer = int(re.match(rf"{re.escape(parts.layers_name)}\.(\d+)\.", name)[1])
                neurons = torch.tensor(sorted(kept[layer]), device=whole.device)
                parts_of_it = [neurons + part * width for part in range(old // width)]
                whole = whole.index_select(dim, torch.cat(parts_of_it))
        tensor.copy_(whole)
    result.generation_config = copy.deepcopy(model.generation_config)
    return result.eval()


def width_of_size(model: PreTrainedModel, n_parameters: int) -> int:
    """The MLP width at which the narrowed model is closest to `n_parameters`.

    Raises ValueError if narrowing MLPs cannot reach this size.
    """
    least, most = 1, mlp_width(model) - 1
    n = {width: _parameters_of(model, width) for width in (least, most)}
    per_neuron = (n[most] - n[least]) / (most - least)
    width = round(least + (n_parameters - n[least]) / per_neuron)
    if not least <= width <= most:
        raise ValueError(
            f"n_parameters={n_parameters:,} is out of reach: narrower MLPs allow {n[least]:,} to "
            f"{n[most]:,}"
        )
    return width


def _tensors(model: PreTrainedModel) -> list[tuple[str, torch.Tensor]]:
    named = (model.named_parameters, model.named_buffers)
    return [item for found in named for item in found(remove_duplicate=False)]


def _parameters_of(model: PreTrainedModel, width: int) -> int:
    with torch.device("meta"):
        narrow = type(model)._from_config(narrow_config(model, width))
    narrow.tie_weights()
    return narrow.num_parameters()
