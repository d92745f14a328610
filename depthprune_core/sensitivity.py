"""Model + windows -> Profile; and the exact cost of any set of dropped layers."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from transformers import PreTrainedModel

from depthprune_core import losses
from depthprune_core.models import Decoder, decoder, hidden_states, passing, recording, replaced
from depthprune_core.progress import Progress, silent
from depthprune_core.records import PairCosts, Profile, Score
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
        nll, kl, _ = losses.nll_and_kl(ablated, parts, teacher_hidden, parts, targets)  # (n_layers, n) each
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
def subset_costs(
    model: PreTrainedModel, windows: Windows, k: int, *, batch_size: int = 2, progress: Progress = silent
) -> dict[tuple[int, ...], float]:
    """Rise in mean NLL (nats per token) for every set of 1..k dropped layers, exactly.

    The sets form a tree (a node's children drop one more, later layer), walked depth first: each node runs only the
    layers behind its last dropped one, and the hidden states of one path are in memory at a time.
    """
    parts = decoder(model)
    n_layers = len(parts.layers)
    total: dict[tuple[int, ...], float] = defaultdict(float)
    batches = list(windows.batches(batch_size))
    n_sets = sum(math.comb(n_layers, size) for size in range(1, k + 1))
    done = itertools.count(1)

    def nll_sum(hidden: torch.Tensor, batch: Windows) -> float:
        mask = batch.mask.to(model.device)
        return float(losses.nll(parts, hidden[mask], batch.targets.to(model.device)[mask]).double().sum())

    def visit(batch: Windows, dropped: tuple[int, ...], inputs: dict[int, torch.Tensor]) -> None:
        for layer in range(dropped[-1] + 1 if dropped else 0, n_layers):
            node = (*dropped, layer)
            with recording(parts.layers, start=layer + 1) as deeper:
                hidden = hidden_states(model, batch.inputs.to(model.device), resume_after=layer, hidden=inputs[layer])
            total[node] += nll_sum(hidden, batch)
            progress(next(done), n_sets * len(batches), "sets of layers")
            if len(node) < k:
                visit(batch, node, deeper)

    for batch in batches:
        with recording(parts.layers) as inputs:
            total[()] += nll_sum(hidden_states(model, batch.inputs.to(model.device)), batch)
        visit(batch, (), inputs)
    return {node: (value - total[()]) / windows.n_tokens for node, value in total.items() if node}


def pair_costs(model: PreTrainedModel, windows: Windows, **options: Any) -> PairCosts:
    """All single and pair costs, as a record. Options as in `subset_costs`."""
    costs = subset_costs(model, windows, 2, **options)
    n_layers = len(decoder(model).layers)
    pairs = {f"{node[0]},{node[1]}": cost for node, cost in costs.items() if len(node) == 2}
    return PairCosts(n_layers, tuple(costs[(layer,)] for layer in range(n_layers)), pairs)


def cost_function(
    model: PreTrainedModel, windows: Windows, *, batch_size: int = 2, progress: Progress = silent
) -> Callable[[frozenset[int]], float]:
    """The cost of any set of dropped layers (rise in mean NLL, nats per token), measured when asked for, each set once.

    Each call skips the set in one forward that starts behind the first dropped layer's stored input.
    """
    parts = decoder(model)
    stored: list[dict[int, torch.Tensor]] = []
    base = 0.0
    batches = list(windows.batches(batch_size))
    with torch.no_grad():
        for batch in batches:
            mask = batch.mask.to(model.device)
            with recording(parts.layers) as inputs:
                hidden = hidden_states(model, batch.inputs.to(model.device))[mask]
            stored.append(inputs)
            base += float(losses.nll(parts, hidden, batch.targets.to(model.device)[mask]).double().sum())
    known: dict[frozenset[int], float] = {frozenset(): 0.0}

    @torch.no_grad()
    def cost(dropped: frozenset[int]) -> float:
        if dropped not in known:
            total = 0.0
            for batch, inputs in zip(batches, stored, strict=True):
                mask = batch.mask.to(model.device)
                hidden = _hidden_without(model, parts, batch.inputs.to(model.device), dropped, inputs)[mask]
                total += float(losses.nll(parts, hidden, batch.targets.to(model.device)[mask]).double().sum())
            known[dropped] = (total - base) / windows.n_tokens
            progress(len(known) - 1, 0, "sets of layers")
        return known[dropped]

    return cost


def _hidden_without(
    model: PreTrainedModel, parts: Decoder, ids: torch.Tensor, dropped: frozenset[int], inputs: dict[int, torch.Tensor]
) -> torch.Tensor:
    first = min(dropped)
    with replaced(parts.layers, {layer: passing(parts) for layer in dropped if layer != first}):
        return hidden_states(model, ids, resume_after=first, hidden=inputs[first])


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
