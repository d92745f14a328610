"""Model + windows -> Profile: what each layer is worth."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from depthprune_core import losses
from depthprune_core.decoders import Decoder, decoder, hidden_states, mlp_outputs, mlp_width, recording
from depthprune_core.progress import Progress, silent
from depthprune_core.records import Profile, Score
from depthprune_core.text import Windows


@torch.no_grad()
def profile(
    model: PreTrainedModel, windows: Windows, *, batch_size: int = 2, gradients: bool = True, progress: Progress = silent
) -> Profile:
    """What each layer is worth, by every criterion, on these windows. Larger is more sensitive in each.

    drop_nll_nats: rise in NLL when the layer alone is skipped (the reference). drop_kl_nats: KL(teacher || ablated).
    block_influence: 1 - cosine of the layer's input and output (Men et al. 2024, arXiv:2403.03853). angular_distance:
    arccos(cosine) / pi across spans (Gromov et al. 2024, arXiv:2403.17887; here over all tokens, not the last alone).
    taylor: sum of |weight x gradient|, and magnitude: sum of |weight| (Kim et al. 2024, arXiv:2402.02834).

    Only the layers behind a skipped one run again, from the stored hidden state, and each chunk's teacher distribution
    serves all layers: L (L + 1) / 2 layer passes instead of L (L - 1), the same numbers. The model is untouched.
    `gradients=False` leaves taylor out (it needs memory for one gradient of the model).
    """
    parts = decoder(model)
    n_layers = len(parts.layers)
    sums = {
        name: torch.zeros(n_layers, len(windows.names), dtype=torch.float64)
        for name in ("drop_nll_nats", "drop_kl_nats", "block_influence")
    }
    spans = {length: torch.zeros(n_layers - length + 1, dtype=torch.float64) for length in range(1, n_layers)}
    teacher_nll = torch.zeros(len(windows.names), dtype=torch.float64)
    batches = list(windows.batches(batch_size))
    for step, batch in enumerate(batches):
        ids, mask = batch.inputs.to(model.device), batch.mask.to(model.device)
        targets, owner = batch.targets.to(model.device)[mask], batch.document[:, None].expand_as(batch.mask)[batch.mask]
        with recording(parts.layers) as inputs:
            teacher_hidden = hidden_states(model, ids)[mask]  # (n, d)
        _add_distances(inputs, mask, owner, sums["block_influence"], spans)
        ablated = []
        for layer in range(n_layers):
            ablated.append(hidden_states(model, ids, resume_after=layer, hidden=inputs[layer])[mask])
            progress(step * n_layers + layer + 1, len(batches) * n_layers, "layers profiled")
        own = losses.nll(parts, teacher_hidden, targets).double().cpu()
        teacher_nll.index_add_(0, owner, own)
        nll, kl = losses.nll_and_kl(ablated, parts, teacher_hidden, parts, targets)  # (n_layers, n) each
        sums["drop_nll_nats"].index_add_(1, owner, nll.double().cpu() - own)
        sums["drop_kl_nats"].index_add_(1, owner, kl.double().cpu())
    n_tokens = _tokens_by_document(windows)
    return Profile(
        n_layers=n_layers,
        teacher=Score(windows.names, tuple(teacher_nll.tolist()), n_tokens, windows.n_bytes),
        by_document={name: _rows(table) for name, table in sums.items()},
        by_layer=_weight_criteria(model, parts, windows, batch_size, gradients=gradients),
        angular_distance={str(length): tuple((total / sum(n_tokens)).tolist()) for length, total in spans.items()},
    )


@torch.no_grad()
def neuron_importance(model: PreTrainedModel, windows: Windows, *, batch_size: int = 4) -> torch.Tensor:
    """What each MLP neuron adds to the hidden states, as a norm over these windows.  -> (n_layers, width) float64

    ||activation|| x ||its column of the output map||: the error that leaving it out alone makes in its layer's output (as Sun et
    al. 2023, arXiv:2306.11695, weigh single weights). Raises ValueError for a model whose MLPs cannot be told.
    """
    maps = mlp_outputs(model)
    squares = torch.zeros(len(maps), mlp_width(model), dtype=torch.float64)
    mask = None

    def keep(layer: int) -> Callable:
        def hook(module: nn.Module, args: tuple) -> None:
            squares[layer] += args[0].flatten(0, -2)[mask].double().square().sum(0).cpu()  # (n, width)

        return hook

    hooks = [module.register_forward_pre_hook(keep(layer)) for layer, module in enumerate(maps)]
    try:
        for batch in windows.batches(batch_size):
            mask = batch.mask.to(model.device).flatten()
            hidden_states(model, batch.inputs.to(model.device))
    finally:
        for hook in hooks:
            hook.remove()
    weights = [module.weight if isinstance(module, Conv1D) else module.weight.t() for module in maps]  # (width, d)
    return squares.sqrt() * torch.stack([weight.double().norm(dim=1).cpu() for weight in weights])


def _add_distances(
    inputs: dict[int, torch.Tensor],
    mask: torch.Tensor,
    owner: torch.Tensor,
    influence: torch.Tensor,
    spans: dict[int, torch.Tensor],
) -> None:
    n_layers = len(inputs) - 1
    states = torch.stack([inputs[layer][mask] for layer in range(n_layers + 1)]).float()  # (n_layers + 1, n, d)
    states = states / states.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    for length, total in spans.items():
        cosine = (states[:-length] * states[length:]).sum(-1).clamp(-1, 1)  # (n_layers + 1 - length, n)
        total += (cosine.arccos() / math.pi).double().sum(-1).cpu()
        if length == 1:
            influence.index_add_(1, owner, (1 - cosine).double().cpu())


def _weight_criteria(
    model: PreTrainedModel, parts: Decoder, windows: Windows, batch_size: int, *, gradients: bool
) -> dict[str, tuple[float, ...]]:
    layers = [list(layer.parameters()) for layer in parts.layers]
    result = {"magnitude": tuple(math.fsum(float(p.abs().double().sum()) for p in layer) for layer in layers)}
    if not gradients:
        return result
    trainable = {p: p.requires_grad for p in model.parameters()}
    wanted = {p for layer in layers for p in layer}
    for p in trainable:
        p.requires_grad_(p in wanted)
    with torch.enable_grad():
        for batch in windows.batches(batch_size):
            mask = batch.mask.to(model.device)
            hidden = hidden_states(model, batch.inputs.to(model.device))
            targets = batch.targets.to(model.device)
            _, gradient = losses.backward_in_chunks(
                parts, hidden.flatten(0, 1), targets.flatten(), mask.flatten(), scale=1 / windows.n_tokens, ce=1.0
            )
            hidden.backward(gradient.view_as(hidden))
    result["taylor"] = tuple(
        math.fsum(float((p * p.grad).abs().double().sum()) for p in layer if p.grad is not None) for layer in layers
    )
    for p, flag in trainable.items():
        p.requires_grad_(flag)
        p.grad = None
    return result


def _tokens_by_document(windows: Windows) -> tuple[int, ...]:
    counts = torch.zeros(len(windows.names), dtype=torch.long)
    return tuple(counts.index_add_(0, windows.document, windows.mask.sum(1)).tolist())


def _rows(table: torch.Tensor) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(row) for row in table.tolist())
