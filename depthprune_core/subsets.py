"""The exact cost of sets of dropped layers, measured together on a prefix tree."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Collection, Iterable
from contextlib import nullcontext

import torch
from transformers import PreTrainedModel

from depthprune_core import losses
from depthprune_core.decoder import anatomy
from depthprune_core.progress import Progress, silent
from depthprune_core.records import SetCosts
from depthprune_core.running import hidden_states, passing, recording, replaced
from depthprune_core.text import Windows

Layers = tuple[int, ...]  # dropped together, ascending


@torch.no_grad()
def nll_by_window(
    model: PreTrainedModel,
    windows: Windows,
    sets: Iterable[Layers],
    *,
    batch_size: int = 4,
    progress: Progress = silent,
) -> torch.Tensor:
    """NLL of each window (nats, summed over its tokens) with each set of layers dropped.

    The empty set is the whole model. The sets form a tree (a node's children drop one more, later
    layer), walked depth first: a node runs only the layers behind its last dropped one, up to where
    its last child branches off unless it is wanted itself, and the hidden states of one path are in
    memory at a time. Exact, and the model is untouched.  -> (n_sets, n_windows) float64
    """
    parts = anatomy(model)
    sets = list(sets)
    children = _tree(sets, len(parts.layers))
    row = {dropped: index for index, dropped in enumerate(sets)}
    sums = torch.zeros(len(row), len(windows), dtype=torch.float64)
    batches = list(windows.batches(batch_size))
    done = itertools.count(1)

    def visit(
        node: Layers, batch: Windows, columns: slice, inputs: dict[int, torch.Tensor]
    ) -> None:
        ids, mask = batch.inputs.to(model.device), batch.mask.to(model.device)
        branches = children[node]
        unneeded = range(max(branches), len(parts.layers)) if node not in row else ()
        resume = {"resume_after": node[-1], "hidden": inputs[node[-1]]} if node else {}
        first = node[-1] + 1 if node else 0
        watch = recording(parts.layers, start=first) if branches else nullcontext({})
        with replaced(parts.layers, {layer: passing(parts) for layer in unneeded}), watch as deeper:
            hidden = hidden_states(model, ids, **resume)
        if node in row:
            targets = batch.targets.to(model.device)[mask]
            values = losses.nll(parts, hidden[mask], targets).double().cpu()
            window = torch.arange(len(batch))[:, None].expand_as(batch.mask)[batch.mask]
            sums[row[node], columns] = torch.zeros(len(batch), dtype=torch.float64).index_add_(
                0, window, values
            )
            progress(next(done), len(row) * len(batches), "sets of layers")
        for layer in branches:
            visit((*node, layer), batch, columns, deeper)

    for number, batch in enumerate(batches):
        first = number * batch_size
        visit((), batch, slice(first, first + len(batch)), {})
    return sums


def set_costs(
    model: PreTrainedModel,
    windows: Windows,
    sets: Collection[frozenset[int]],
    *,
    batch_size: int = 4,
    progress: Progress = silent,
) -> SetCosts:
    """Rise in mean NLL (nats per token) of every set, measured on one tree."""
    cost = CostFunction(model, windows, batch_size=batch_size, progress=progress)
    cost.ahead([frozenset(), *sets])
    return cost.known()


def up_to(n_layers: int, k: int) -> list[frozenset[int]]:
    """Every set of 1..k of n layers."""
    layers = range(n_layers)
    return [frozenset(s) for n in range(1, k + 1) for s in itertools.combinations(layers, n)]


class CostFunction:
    """The cost of any set of layers (rise in mean NLL, nats per token), measured when asked for.

    Each set is measured once. `ahead` measures many sets on one tree, which is cheaper than one
    after the other; the rules that search call it.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        windows: Windows,
        *,
        batch_size: int = 4,
        progress: Progress = silent,
    ) -> None:
        self._model, self._windows = model, windows
        self._options = {"batch_size": batch_size, "progress": progress}
        self._nll_nats: dict[frozenset[int], float] = {}

    def __call__(self, dropped: frozenset[int]) -> float:
        self.ahead([frozenset(), dropped])
        return (self._nll_nats[dropped] - self._nll_nats[frozenset()]) / self._windows.n_tokens

    def ahead(self, sets: Collection[frozenset[int]]) -> None:
        """Measure those of the sets that are not known yet."""
        new = sorted({tuple(sorted(dropped)) for dropped in sets if dropped not in self._nll_nats})
        if new:
            by_window = nll_by_window(self._model, self._windows, new, **self._options)
            totals = by_window.sum(1).tolist()
            self._nll_nats |= {frozenset(s): total for s, total in zip(new, totals, strict=True)}

    def known(self) -> SetCosts:
        """Every cost that was measured so far."""
        sets = sorted((tuple(sorted(s)) for s in self._nll_nats if s), key=lambda s: (len(s), s))
        rises = {",".join(map(str, layers)): self(frozenset(layers)) for layers in sets}
        return SetCosts(len(anatomy(self._model).layers), rises)


def _tree(sets: list[Layers], n_layers: int) -> defaultdict[Layers, list[int]]:
    """Node -> the layers that its children drop, ascending."""
    if not sets or len(set(sets)) != len(sets):
        raise ValueError(
            f"{len(sets)} sets of layers, {len(set(sets))} of them different: "
            "at least one is wanted, and each once"
        )
    children: defaultdict[Layers, set[int]] = defaultdict(set)
    for dropped in sets:
        if list(dropped) != sorted(set(dropped)) or not set(dropped) <= set(range(n_layers)):
            raise ValueError(
                f"the set {list(dropped)} is to name layers of 0..{n_layers - 1}, "
                "each once, in ascending order"
            )
        for length in range(len(dropped)):
            children[dropped[:length]].add(dropped[length])
    return defaultdict(list, {node: sorted(layers) for node, layers in children.items()})
