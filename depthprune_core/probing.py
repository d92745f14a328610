"""Runs a few tokens to find out how a model's layers and logits are computed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from depthprune_core.decoder import Decoder, context_length
from depthprune_core.progress import reason
from depthprune_core.running import hidden_states

_LENGTH = 16  # tokens of a probe, and twice any window that is not longer than the next
_SMALL_WINDOW = 64
_Seen = list[tuple[int, torch.Tensor | None, Any]]  # of a layer's run: its number, input, output


def probe_ids(model: PreTrainedModel) -> torch.Tensor:
    """Two rows of tokens that differ only in the last token, without special tokens.

    They are long enough to reveal a small sliding window or chunk.  (2, n)
    """
    config = model.config.get_text_config(decoder=True)
    special, windows = {0}, [0]
    for key, value in {**model.config.to_dict(), **config.to_dict()}.items():
        numbers = [v for v in (value if isinstance(value, list) else [value]) if type(v) is int]
        if "token_id" in key or "token_index" in key:
            special.update(numbers)
        if ("window" in key or "chunk" in key) and not key.startswith("max"):
            windows += [v for v in numbers if v <= _SMALL_WINDOW]
    embedding = model.get_input_embeddings().weight
    words = [word for word in range(min(len(embedding), 1_000)) if word not in special]
    length = max(_LENGTH, 2 * max(windows))
    length = min(length, context_length(config) or length)
    row = [words[(7 * i * i + 3 * i) % len(words)] for i in range(length)]
    other = [*row[:-1], next(word for word in words if word != row[-1])]
    return torch.tensor([row, other], device=embedding.device)


def tolerance(model: PreTrainedModel, logits: torch.Tensor) -> float:
    """The allowed distance between logits computed in two ways."""
    eps = torch.finfo(model.dtype).eps
    return max(1e-5, 4 * eps) * float(logits.abs().max())


@torch.no_grad()
def probe(model: PreTrainedModel, parts: Decoder) -> Decoder:
    """The parts with the fields that need a forward pass: scale and returns_tuple.

    Raises ValueError if the layers cannot be skipped one by one, if the logits are not
    scale * head(hidden) or its softcap, or if a token sees later tokens.
    """
    name = type(model).__name__
    ids = probe_ids(model)
    try:
        seen, logits = _listen(model, parts, ids)
        hidden = hidden_states(parts, ids)
    except (RuntimeError, TypeError, ValueError, AttributeError, KeyError, IndexError) as error:
        raise ValueError(f"{name} cannot be run on tokens alone ({reason(error)})") from error
    if [index for index, _, _ in seen] != list(range(len(parts.layers))):
        raise ValueError(
            f"{name} does not run its layers once each, in order: no single one can be dropped"
        )
    _, before, first = seen[0]
    if before is None or before.ndim != 3 or _hidden(first).shape != before.shape:
        raise ValueError(
            f"{name} hands other things from layer to layer than one stream of hidden states, so "
            "its layers cannot be passed over"
        )
    if not torch.isfinite(logits).all():
        raise ValueError(f"{name} computes logits that are not finite, so it cannot be measured")
    scale = _scale(model, parts, hidden, logits)
    loose = 100 * tolerance(model, logits)
    if not torch.allclose(logits[0, :-1], logits[1, :-1], rtol=0, atol=loose):
        raise ValueError(
            f"{name} lets a token see later ones: only decoders (causal language models) can be "
            "pruned here"
        )
    parts = replace(parts, scale=scale, returns_tuple=isinstance(first, tuple | list))
    _check_resuming(model, parts, ids, seen[len(parts.layers) // 2][2], hidden)
    return parts


def _hidden(output: Any) -> torch.Tensor:
    return output[0] if isinstance(output, tuple | list) else output


def _listen(
    model: PreTrainedModel, parts: Decoder, ids: torch.Tensor
) -> tuple[_Seen, torch.Tensor]:
    """Each layer's input and output, in running order, and the model's logits."""
    seen: _Seen = []

    def note(number: int) -> Any:
        def hook(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
            before = args[0] if args else kwargs.get("hidden_states")
            seen.append((number, before if isinstance(before, torch.Tensor) else None, output))

        return hook

    hooks = [
        layer.register_forward_hook(note(i), with_kwargs=True)
        for i, layer in enumerate(parts.layers)
    ]
    try:
        return seen, model(input_ids=ids, use_cache=False).logits.float()
    finally:
        for hook in hooks:
            hook.remove()


def _scale(
    model: PreTrainedModel, parts: Decoder, hidden: torch.Tensor, logits: torch.Tensor
) -> float:
    """The factor between head(hidden) and the model's logits before any softcap; usually 1.

    A factor in the config is preferred, because a fitted one is rounded.
    """
    unknown = ValueError(
        f"{type(model).__name__} computes its logits in a way that is not known here, so it cannot "
        "be measured"
    )
    if hidden.shape[-1] != parts.head.in_features:
        raise unknown
    ours, cap = parts.logits(hidden), parts.softcap

    def uncapped(values: torch.Tensor) -> torch.Tensor:
        return torch.atanh((values.double() / cap).clamp(-0.999, 0.999)) * cap if cap else values

    near = max(1e-3, 2 * torch.finfo(model.dtype).eps)
    atol = near * float(logits.abs().max())
    if torch.allclose(ours, logits, rtol=near, atol=atol):
        return 1.0
    wide = uncapped(ours).double()
    fitted = float((uncapped(logits) * wide).sum() / wide.square().sum())
    facts = model.config.get_text_config(decoder=True).to_dict()
    constants = [v for k, v in facts.items() if "logit" in k and isinstance(v, int | float) and v]
    stated = [known for value in constants for known in (float(value), 1 / value)]
    scale = next((known for known in stated if abs(known / fitted - 1) < near), fitted)
    scaled = torch.tanh(wide * scale / cap) * cap if cap else wide * scale
    if not torch.allclose(scaled.float(), logits, rtol=near, atol=atol):
        raise unknown
    return scale


def _check_resuming(
    model: PreTrainedModel, parts: Decoder, ids: torch.Tensor, output: Any, hidden: torch.Tensor
) -> None:
    """Checks that the last half of the layers can resume from `output`, that of the layer before.

    This fails if layers pass on more than hidden states, such as keys and values or residuals.
    """
    before = len(parts.layers) // 2
    try:
        resumed = hidden_states(parts, ids, resume_after=before, hidden=_hidden(output))
    except (RuntimeError, TypeError, ValueError, AttributeError, KeyError, IndexError):
        resumed = torch.full_like(hidden, float("inf"))
    near = 1e-3 * float(hidden.abs().max())
    if not torch.allclose(resumed, hidden, rtol=0, atol=near):
        raise ValueError(
            f"{type(model).__name__} hands more from layer to layer than hidden states (such as "
            "keys and values that layers share), so its layers cannot be passed over"
        )
