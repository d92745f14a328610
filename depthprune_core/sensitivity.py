"""Model + windows -> Profile: the importance of each layer."""

from __future__ import annotations

import math

import torch
from transformers import PreTrainedModel

from depthprune_core import losses
from depthprune_core.anatomy import anatomy
from depthprune_core.decoder import Decoder
from depthprune_core.progress import Progress, silent
from depthprune_core.records import Profile, Score
from depthprune_core.running import hidden_states, recording
from depthprune_core.text import Windows


@torch.no_grad()
def profile(
    model: PreTrainedModel,
    windows: Windows,
    *,
    batch_size: int = 4,
    gradients: bool = True,
    progress: Progress = silent,
) -> Profile:
    """The importance of each layer by every criterion, on the windows' scored tokens.

    drop_nll_nats: rise in NLL when only this layer is skipped (the reference). drop_kl_nats:
    KL(teacher || this model). block_influence: 1 - cosine of the layer's input and output (Men et
    al. 2024, 2403.03853). angular_distance: arccos(cosine) / pi across spans (Gromov et al. 2024,
    2403.17887; here over all tokens, not only the last). taylor: sum of |weight x gradient|, and
    magnitude: sum of |weight| (Kim et al. 2024, 2402.02834). Larger = worse to drop, in each.

    Only the layers after a skipped one run again, from the stored hidden state: L (L + 1) / 2
    layer passes instead of L (L - 1), the same numbers. The model is unchanged. `gradients=False`
    skips taylor, which needs memory for one gradient of the model.
    """
    parts = anatomy(model)
    n_layers, n_documents = len(parts.layers), len(windows.names)
    sums = {
        name: torch.zeros(n_layers, n_documents, dtype=torch.float64)
        for name in ("drop_nll_nats", "drop_kl_nats", "block_influence")
    }
    spans = {n: torch.zeros(n_layers - n + 1, dtype=torch.float64) for n in range(1, n_layers)}
    teacher_nll = torch.zeros(n_documents, dtype=torch.float64)
    batches = list(windows.batches(batch_size))
    for step, batch in enumerate(batches):
        ids, mask = batch.inputs.to(model.device), batch.mask.to(model.device)
        targets = batch.targets.to(model.device)[mask]
        with recording(parts.layers) as inputs:
            teacher_hidden = hidden_states(parts, ids)[mask]  # (n, d)
        _add_distances(inputs, mask, batch.owner, sums["block_influence"], spans)
        ablated = []
        for layer in range(n_layers):
            rest = hidden_states(parts, ids, resume_after=layer, hidden=inputs[layer])
            ablated.append(rest[mask])
            progress(step * n_layers + layer + 1, len(batches) * n_layers, "layers profiled")
        whole = losses.nll(parts, teacher_hidden, targets).double().cpu()
        teacher_nll.index_add_(0, batch.owner, whole)
        nll, kl = losses.nll_and_kl(ablated, parts, teacher_hidden, parts, targets)  # (L, n) each
        sums["drop_nll_nats"].index_add_(1, batch.owner, nll.double().cpu() - whole)
        sums["drop_kl_nats"].index_add_(1, batch.owner, kl.double().cpu())
    by_layer = {"magnitude": _magnitude(parts)}
    if gradients:
        by_layer["taylor"] = _taylor(model, parts, windows, batch_size)
    nll_nats = tuple(teacher_nll.tolist())
    return Profile(
        n_layers=n_layers,
        teacher=Score(windows.names, nll_nats, windows.tokens_by_document, windows.n_bytes),
        by_document={name: tuple(map(tuple, table.tolist())) for name, table in sums.items()},
        by_layer=by_layer,
        angular_distance={
            str(length): tuple((total / windows.n_tokens).tolist())
            for length, total in spans.items()
        },
    )


def _add_distances(
    inputs: dict[int, torch.Tensor],
    mask: torch.Tensor,
    owner: torch.Tensor,
    influence: torch.Tensor,
    spans: dict[int, torch.Tensor],
) -> None:
    n_layers = len(inputs) - 1
    states = torch.stack([inputs[i][mask] for i in range(n_layers + 1)]).float()  # (L + 1, n, d)
    states = states / states.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    for length, total in spans.items():
        cosine = (states[:-length] * states[length:]).sum(-1).clamp(-1, 1)  # (L + 1 - length, n)
        total += (cosine.arccos() / math.pi).double().sum(-1).cpu()
        if length == 1:
            influence.index_add_(1, owner, (1 - cosine).double().cpu())


def _magnitude(parts: Decoder) -> tuple[float, ...]:
    return tuple(
        math.fsum(float(p.abs().double().sum()) for p in layer.parameters())
        for layer in parts.layers
    )


def _taylor(
    model: PreTrainedModel, parts: Decoder, windows: Windows, batch_size: int
) -> tuple[float, ...]:
    flags = {p: p.requires_grad for p in model.parameters()}
    layers = [list(layer.parameters()) for layer in parts.layers]
    wanted = {p for layer in layers for p in layer}
    try:
        for p in flags:
            p.requires_grad_(p in wanted)
        with torch.enable_grad():
            for batch in windows.batches(batch_size):
                hidden = hidden_states(parts, batch.inputs.to(model.device))
                targets, mask = batch.targets.to(model.device), batch.mask.to(model.device)
                flat = (hidden.flatten(0, 1), targets.flatten(), mask.flatten())
                scale = 1 / windows.n_tokens
                _, gradient = losses.backward_in_chunks(parts, *flat, scale=scale, ce=1.0)
                hidden.backward(gradient.view_as(hidden))
        return tuple(
            math.fsum(float((p * p.grad).abs().double().sum()) for p in layer if p.grad is not None)
            for layer in layers
        )
    finally:
        for p, flag in flags.items():
            p.requires_grad_(flag)
            p.grad = None
