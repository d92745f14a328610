"""Runs some of a decoder's layers, or replacements for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from depthprune_core.decoder import Decoder
from depthprune_core.products import fast_products


@contextmanager
def replaced(layers: nn.ModuleList, forwards: Mapping[int, Callable]) -> Iterator[None]:
    """Within the block, layer i computes `forwards[i]`; the modules are unchanged."""
    outer = {index: vars(layers[index]).get("forward") for index in forwards}  # a block in a block
    for index, forward in forwards.items():
        layers[index].forward = forward
    try:
        yield
    finally:
        for index, forward in outer.items():
            if forward is None:
                del layers[index].forward
            else:
                layers[index].forward = forward


def passing(parts: Decoder, value: torch.Tensor | None = None) -> Callable:
    """A layer's forward that skips the layer: returns its input, or always `value`."""

    def forward(hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        result = hidden_states if value is None else value
        return (result,) if parts.returns_tuple else result

    return forward


@contextmanager
def checkpointed(layers: nn.ModuleList) -> Iterator[None]:
    """Within the block, a layer keeps only its input and is recomputed in the backward pass."""

    def inside(layer: nn.Module, forward: Callable, *args: Any, **kwargs: Any) -> Any:
        with fast_products(layer):  # the backward pass comes after the block of the forward pass
            return forward(*args, **kwargs)

    forwards = {
        i: partial(checkpoint, partial(inside, layer, layer.forward), use_reentrant=False)
        for i, layer in enumerate(layers)
    }
    with replaced(layers, forwards):
        yield


@contextmanager
def recording(layers: nn.ModuleList, *, start: int = 0) -> Iterator[dict[int, torch.Tensor]]:
    """Collects the input of each layer from `start` on.

    The key `len(layers)` holds the last layer's output (before the final norm).
    """
    inputs: dict[int, torch.Tensor] = {}

    def keep(index: int) -> Callable:
        def hook(module: nn.Module, args: tuple, kwargs: dict) -> None:
            inputs[index] = args[0] if args else kwargs["hidden_states"]

        return hook

    def keep_last(module: nn.Module, args: tuple, output: Any) -> None:
        inputs[len(layers)] = output[0] if isinstance(output, tuple | list) else output

    hooks = [
        layers[i].register_forward_pre_hook(keep(i), with_kwargs=True)
        for i in range(start, len(layers))
    ]
    hooks.append(layers[-1].register_forward_hook(keep_last))
    try:
        yield inputs
    finally:
        for hook in hooks:
            hook.remove()


def hidden_states(
    parts: Decoder,
    ids: torch.Tensor,
    *,
    resume_after: int = -1,
    hidden: torch.Tensor | None = None,
) -> torch.Tensor:
    """Final hidden states (after the norm) of token ids.  (batch, seq) -> (batch, seq, d)

    With `resume_after=i`, layers 0..i are not computed: `hidden` (batch, seq, d) is used as the
    output of layer i.
    """
    skipped = {index: passing(parts) for index in range(resume_after)}
    if resume_after >= 0:
        skipped[resume_after] = passing(parts, hidden)
    with replaced(parts.layers, skipped), fast_products(parts.base):
        return parts.base(input_ids=ids, use_cache=False).last_hidden_state
