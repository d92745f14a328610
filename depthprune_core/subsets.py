"""The exact cost of sets of dropped layers, measured together on a prefix tree."""

from __future__ import annotations

import itertools
from collections import defaultdict
from contextlib import nullcontext

import torch
from transformers import PreTrainedModel

from depthprune_core import losses
from depthprune_core.anatomy import anatomy
from depthprune_core.progress import Progress, silent
from depthprune_core.running import hidden_states, passing, recording, replaced
from depthprune_core.selection import Layers
from depthprune_core.text import Windows


@torch.no_grad()
def nll_by_window(
    model: PreTrainedModel,
    windows: Windows,
    sets: list[Layers],
    *,
    batch_size: int = 4,
    progress: Progress = silent,
) -> torch.Tensor:
    """NLL of each window (nats, summed over its tokens) with each set of layers dropped.

    The empty set is the whole model. The sets form a prefix tree: a node's children drop one more,
    later layer. It is walked depth first. A node runs only the layers after its last dropped one;
    if its own set is not needed, it stops where its last child branches off. Only the hidden states
    of one path are in memory. Exact; the model is unchanged.  -> (n_sets, n_windows) float64
    """
    parts = anatomy(model)
    children = _tree(sets, len(parts.layers))
    row = {dropped: index for index, dropped in enumerate(sets)}
    sums = torch.zeros(len(sets), len(windows), dtype=torch.float64)
    batches = list(windows.batches(batch_size))
    done = itertools.count(1)

    def visit(node: Layers, batch: Windows, begin: int, inputs: dict[int, torch.Tensor]) -> None:
        ids, mask = batch.inputs.to(model.device), batch.mask.to(model.device)
        branches = children[node]
        unneeded = range(max(branches), len(parts.layers)) if node not in row else ()
        resume = {"resume_after": node[-1], "hidden": inputs[node[-1]]} if node else {}
        first = node[-1] + 1 if node else 0
        watch = recording(parts.layers, start=first) if branches else nullcontext({})
        with replaced(parts.layers, {layer: passing(parts) for layer in unneeded}), watch as deeper:
            hidden = hidden_states(parts, ids, **resume)
        if node in row:
            targets = batch.targets.to(model.device)[mask]
            values = losses.nll(parts, hidden[mask], targets).double().cpu()
            window = begin + batch.mask.nonzero()[:, 0]
            sums[row[node]].index_add_(0, window, values)
            progress(next(done), len(sets) * len(batches), "sets of layers")
        for layer in branches:
            visit((*node, layer), batch, begin, deeper)

    for number, batch in enumerate(batches):
        visit((), batch, number * batch_size, {})
    return sums


def rises(
    model: PreTrainedModel, windows: Windows, sets: list[Layers], *, progress: Progress = silent
) -> list[float]:
    """Rise in mean NLL (nats per token) of each set, measured on one tree with the whole model."""
    by_window = nll_by_window(model, windows, [(), *sets], progress=progress)
    whole, *dropped = by_window.sum(1).tolist()
    return [(total - whole) / windows.n_tokens for total in dropped]


def up_to(n_layers: int, k: int) -> list[Layers]:
    """Every set of 1..k of n layers."""
    return [s for n in range(1, k + 1) for s in itertools.combinations(range(n_layers), n)]


def _tree(sets: list[Layers], n_layers: int) -> defaultdict[Layers, list[int]]:
    """Node -> the layers that its children drop, ascending."""
    possible = all(
        list(dropped) == sorted(set(dropped)) and set(dropped) <= set(range(n_layers))
        for dropped in sets
    )
    if not possible or not sets or len(set(sets)) != len(sets):
        raise ValueError(
            f"sets of layers are each wanted once, with layers of 0..{n_layers - 1} in ascending "
            f"order, not {sets}"
        )
    children: defaultdict[Layers, list[int]] = defaultdict(list)
    for dropped in sorted(sets):
        for length, layer in enumerate(dropped):
            if layer not in children[dropped[:length]]:
                children[dropped[:length]].append(layer)
    return children
