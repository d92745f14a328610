"""What a few tokens tell of a model: how its layers talk, how its logits come about.

`parts` is a `decoder.Decoder` (whose file imports this one).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

_LENGTH = 16  # tokens of a probe, and twice any window that is not longer than the next
_SMALL_WINDOW = 64


def probe_ids(model: PreTrainedModel) -> torch.Tensor:
    """Two rows of tokens that differ in their last one alone; none has a meaning of its own.

    They are as long as it takes to show a small sliding window or chunk at work.  (2, n)
    """
    config = model.config.get_text_config(decoder=True)
    special, windows = {0}, [0]
    for facts in {id(c): c.to_dict() for c in (model.config, config)}.values():
        for key, value in facts.items():
            values = value if isinstance(value, list) else [value]
            whole = [v for v in values if isinstance(v, int) and not isinstance(v, bool)]
            if "token_id" in key or "token_index" in key:
                special.update(whole)
            if ("window" in key or "chunk" in key) and not key.startswith("max"):
                windows += [v for v in whole if v <= _SMALL_WINDOW]
    n_words = model.get_input_embeddings().weight.shape[0]
    words = [word for word in range(min(n_words, 1_000)) if word not in special] or [0]
    length = max(_LENGTH, 2 * max(windows))
    context = getattr(config, "max_position_embeddings", None) or 0
    length = min(length, context) if context > 0 else length
    row = [words[(7 * i * i + 3 * i) % len(words)] for i in range(length)]
    other = [*row[:-1], next((word for word in words if word != row[-1]), row[-1])]
    return torch.tensor([row, other], device=model.get_input_embeddings().weight.device)


def tolerance(model: PreTrainedModel, logits: torch.Tensor) -> float:
    """How far two ways to the same logits may be apart."""
    eps = torch.finfo(model.dtype).eps
    return max(1e-5, 4 * eps) * float(logits.abs().max())


@torch.no_grad()
def probe(model: PreTrainedModel, parts: Any) -> dict[str, Any]:
    """The fields of `Decoder` that only running tells: scale and returns_tuple.

    Raises ValueError where the layers cannot be passed over one by one, where the logits are not
    scale * head(hidden) with a softcap, or where a token sees later ones.
    """
    name = type(model).__name__
    ids = probe_ids(model)
    try:
        seen, logits = _listen(model, parts, ids)
        hidden = parts.base(input_ids=ids, use_cache=False).last_hidden_state
    except (RuntimeError, TypeError, AttributeError, KeyError, IndexError) as error:
        raise ValueError(
            f"{name} cannot be run on tokens alone ({' '.join(str(error).split())[:120]})"
        ) from error
    if [index for index, _, _ in seen] != list(range(len(parts.layers))):
        raise ValueError(
            f"{name} does not run its layers once each, in order: no single one can be dropped"
        )
    before, first = seen[0][1], seen[0][2]
    returns_tuple = isinstance(first, tuple | list)
    if before is None or before.ndim != 3 or _hidden(first).shape != before.shape:
        raise ValueError(
            f"{name} hands other things from layer to layer than one stream of hidden states, so "
            "its layers cannot be passed over"
        )
    if not torch.isfinite(logits).all():
        raise ValueError(f"{name} computes logits that are not finite, so it cannot be measured")
    scale = _scale(model, parts, hidden, logits)
    loose = 100 * tolerance(model, logits)
    if len(ids[0]) > 1 and not torch.allclose(logits[0, :-1], logits[1, :-1], rtol=0, atol=loose):
        raise ValueError(
            f"{name} lets a token see later ones: only decoders (causal language models) can be "
            "pruned here"
        )
    _check_resuming(model, parts, ids, seen, hidden)
    return {"scale": scale, "returns_tuple": returns_tuple}


@torch.no_grad()
def calls(base: nn.Module, modules: Sequence[nn.Module]) -> list[nn.Module]:
    """These modules in the order in which they compute."""
    order: list[nn.Module] = []
    hooks = [m.register_forward_hook(lambda m, args, output: order.append(m)) for m in modules]
    try:
        base(input_ids=probe_ids(base), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return order


def _hidden(output: Any) -> torch.Tensor:
    return output[0] if isinstance(output, tuple | list) else output


def _listen(
    model: PreTrainedModel, parts: Any, ids: torch.Tensor
) -> tuple[list[tuple[int, torch.Tensor | None, Any]], torch.Tensor]:
    """The model's own logits; of each layer's run its number, its input and its output."""
    seen: list[tuple[int, torch.Tensor | None, Any]] = []

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
        logits = model(input_ids=ids, use_cache=False).logits.float()
    finally:
        for hook in hooks:
            hook.remove()
    return seen, logits


def _scale(model: PreTrainedModel, parts: Any, hidden: torch.Tensor, logits: torch.Tensor) -> float:
    """The constant by which the head's output is multiplied, such that logits come out right."""
    raw = parts.logits(hidden)
    # A softcap rounds in the model's dtype, here in float32.
    near = max(1e-3, 2 * torch.finfo(model.dtype).eps)
    atol = near * float(logits.abs().max())
    if torch.allclose(raw, logits, rtol=near, atol=atol):
        return 1.0
    wanted, cap = logits.double(), parts.softcap
    if cap:
        wanted = torch.atanh((wanted / cap).clamp(-1 + 1e-6, 1 - 1e-6)) * cap
        raw = torch.atanh((raw / cap).double().clamp(-1 + 1e-6, 1 - 1e-6)) * cap
    raw = raw.double()
    scale = float((wanted * raw).sum() / (raw * raw).sum())
    facts = model.config.get_text_config(decoder=True).to_dict()
    stated = [
        known
        for key, value in facts.items()
        if "logit" in key and isinstance(value, int | float) and value
        for known in (float(value), 1 / value)
    ]
    scale = next((known for known in stated if abs(known / scale - 1) < near), scale)
    again = raw * scale
    if cap:
        again = torch.tanh(again / cap) * cap
    if not torch.allclose(again.float(), logits, rtol=near, atol=atol):
        raise ValueError(
            f"{type(model).__name__} computes its logits in a way that is not known here, so it "
            "cannot be measured"
        )
    return scale


def _check_resuming(
    model: PreTrainedModel,
    parts: Any,
    ids: torch.Tensor,
    seen: list[tuple[int, torch.Tensor | None, Any]],
    hidden: torch.Tensor,
) -> None:
    """With some layers passed over, and the next one's output put in, the rest goes on as it did.

    Not so where layers hand on more than hidden states: keys and values, residuals of their own.
    """
    last = len(parts.layers) // 2  # the first half is skipped

    def instead(number: int) -> Any:
        def forward(hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            stands = _hidden(seen[last][2]) if number == last else hidden_states
            return (stands,) if isinstance(seen[0][2], tuple | list) else stands

        return forward

    skipped = list(parts.layers)[: last + 1]
    try:
        for number, layer in enumerate(skipped):
            layer.forward = instead(number)
        resumed = parts.base(input_ids=ids, use_cache=False).last_hidden_state
    except (RuntimeError, TypeError, ValueError, AttributeError, KeyError, IndexError):
        resumed = None
    finally:
        for layer in skipped:
            del layer.forward
    near = 1e-3 * float(hidden.abs().max())
    if resumed is None or not torch.allclose(resumed, hidden, rtol=0, atol=near):
        raise ValueError(
            f"{type(model).__name__} hands more from layer to layer than hidden states (such as "
            "keys and values that layers share), so its layers cannot be passed over"
        )
