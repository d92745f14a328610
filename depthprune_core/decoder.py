"""Where any decoder keeps its parts, found by structure; running some of them; its config for fewer layers or narrower MLPs."""

from __future__ import annotations

import copy
import weakref
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from depthprune_core.products import linear

# ---------------------------------------------------------------- anatomy


@dataclass(frozen=True)
class Decoder:
    """Where a causal language model keeps its parts."""

    layers: nn.ModuleList
    layers_name: str  # its path inside the model: "transformer.h"
    base: nn.Module  # token ids -> hidden states after the final norm
    head: nn.Linear  # hidden states -> logits, before any softcap
    softcap: float  # 0 = none
    scale: float  # a constant that multiplies the head's output, before any softcap; 1 = none
    returns_tuple: bool  # whether a layer returns (hidden, ...) or the bare tensor

    def logits(self, hidden: torch.Tensor, words: slice = slice(None)) -> torch.Tensor:
        """Hidden states after the final norm -> logits in float32, of a slice of the vocabulary.  (..., d) -> (..., words)"""
        bias = self.head.bias[words] if self.head.bias is not None else None
        logits = linear(hidden, self.head.weight[words], bias).float() * self.scale
        return torch.tanh(logits / self.softcap) * self.softcap if self.softcap else logits

    @property
    def tied(self) -> bool:
        return any(
            module.weight is self.head.weight
            for module in self.base.modules()
            if isinstance(module, nn.Embedding)
        )


_DECAYS = (
    "A_log",
    "time_decay",
    "slope_rate",
)  # of Mamba and gated delta nets, of RWKV, of lightning attention

_known: weakref.WeakKeyDictionary[nn.Module, Decoder] = weakref.WeakKeyDictionary()


def anatomy(model: PreTrainedModel) -> Decoder:
    """The parts of a decoder, found by structure and checked on a few tokens against the model's own logits.

    Raises ValueError for what is not a decoder of like layers: encoder-decoders, state-space models, encoders.
    """
    if model in _known:
        return _known[model]
    parts = structure(model)
    was_training = model.training
    model.eval()  # dropout would draw random numbers
    try:
        found = replace(parts, returns_tuple=_probe(parts.layers, parts.base))
        _check_logits(model, found)
    finally:
        model.train(was_training)
    _known[model] = found
    return found


def structure(model: PreTrainedModel) -> Decoder:
    """The parts as names and types tell them: of a model on torch's meta device too, which cannot be run. Raises as `anatomy`."""
    name = type(model).__name__
    config = text_config(model.config)
    if getattr(model.config, "is_encoder_decoder", False):
        raise ValueError(
            f"{name} is an encoder-decoder: only decoders (causal language models) can be pruned here"
        )
    if state := _state(model):
        raise ValueError(
            f"{name} carries a state from token to token ({state}: a state-space or linear-attention model): only transformer "
            "decoders can be pruned here"
        )
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    n_layers = getattr(config, "num_hidden_layers", None)
    if head is None or n_layers is None:
        raise ValueError(
            f"{name} has no language-model head or no layer count: only causal language models can be pruned here"
        )
    if not isinstance(head, nn.Linear):
        raise ValueError(
            f"{name} has a head that is no linear map ({type(head).__name__}), so it cannot be measured here"
        )
    stacks = {
        path: m
        for path, m in model.named_modules()
        if isinstance(m, nn.ModuleList) and len(m) == n_layers
    }
    stacks = {path: m for path, m in stacks.items() if all(_attends(layer) for layer in m)}
    if not stacks:
        raise ValueError(
            f"{name} has no stack of {n_layers} attention layers: only transformer decoders can be pruned here"
        )
    path = min(stacks, key=lambda candidate: candidate.count("."))  # the outermost stack
    base = getattr(model, model.base_model_prefix)
    softcap = getattr(config, "final_logit_softcapping", None) or 0.0
    return Decoder(stacks[path], path, base, head, float(softcap), scale=1.0, returns_tuple=False)


def text_config(config: Any) -> Any:
    """The part of a config that describes the language model (all of it, but for multimodal wrappers)."""
    return config.get_text_config(decoder=True)


def _state(model: nn.Module) -> str:
    """The tensor by which a recurrent layer's state decays, as the checkpoints of all such families name it; empty without one."""
    tensors = (
        name for found in (model.named_parameters(), model.named_buffers()) for name, _ in found
    )
    return next((name for name in tensors if name.rsplit(".", 1)[-1] in _DECAYS), "")


def _attends(layer: nn.Module) -> bool:
    return any(
        "attention" in type(module).__name__.lower() or "attn" in type(module).__name__.lower()
        for module in layer.modules()
    )


def _probe_ids(module: nn.Module) -> torch.Tensor:
    """Two rows that differ in their last token alone."""
    return torch.tensor([[1, 2, 3, 2], [1, 2, 3, 1]], device=next(module.parameters()).device)


@torch.no_grad()
def _probe(layers: nn.ModuleList, base: nn.Module) -> bool:
    seen: list[Any] = []
    hook = layers[0].register_forward_hook(lambda module, args, output: seen.append(output))
    try:
        base(input_ids=_probe_ids(base), use_cache=False)
    finally:
        hook.remove()
    return isinstance(seen[0], tuple)


@torch.no_grad()
def _check_logits(model: PreTrainedModel, parts: Decoder) -> None:
    ids = _probe_ids(model)
    own = model(input_ids=ids, use_cache=False).logits.float()
    ours = parts.logits(parts.base(input_ids=ids, use_cache=False).last_hidden_state)
    if not torch.isfinite(own).all():
        raise ValueError(
            f"{type(model).__name__} computes logits that are not finite, so it cannot be measured"
        )
    tolerance = max(
        1e-3, 2 * torch.finfo(model.dtype).eps
    )  # a softcap rounds in the model's dtype, here in float32
    atol = tolerance * float(own.abs().max())
    if not torch.allclose(own, ours, rtol=tolerance, atol=atol):
        raise ValueError(
            f"{type(model).__name__} computes its logits in a way that is not known here, so it cannot be measured"
        )
    if not torch.allclose(own[0, :-1], own[1, :-1], rtol=tolerance, atol=atol):
        raise ValueError(
            f"{type(model).__name__} lets a token see later ones: only decoders (causal language models) can be pruned here"
        )


def slice_config(config: Any, kept: tuple[int, ...]) -> Any:
    """A copy of the config for the kept layers: the count, and every list that has one entry a layer (`layer_types`).

    Raises ValueError where an option bakes a layer's number into its computation.
    """
    new = copy.deepcopy(config)
    part = text_config(new)
    n_layers = part.num_hidden_layers
    if getattr(part, "scale_attn_by_inverse_layer_idx", False):
        raise ValueError(
            "scale_attn_by_inverse_layer_idx=True scales attention by the layer's number, so no layer can be dropped unchanged"
        )
    for key, value in list(vars(part).items()):
        if (
            isinstance(value, list | tuple)
            and len(value) == n_layers
            and not key.startswith("_")
            and "token_id" not in key
        ):
            setattr(part, key, type(value)(value[layer] for layer in kept))
    part.num_hidden_layers = len(kept)
    return new


# ---------------------------------------------------------------- the width of the MLPs

_MLP_WIDTHS = ("intermediate_size", "n_inner", "ffn_dim")  # as configs call it


def mlp_outputs(model: PreTrainedModel) -> list[nn.Module]:
    """Of each layer, the linear map that takes the MLP's neurons back to the hidden states.

    Raises ValueError where the config does not state the width, or where it does not tell this map from the others.
    """
    name, width = _mlp_width(model)
    maps = [
        [m for m in layer.modules() if isinstance(m, nn.Linear | Conv1D) and _n_inputs(m) == width]
        for layer in anatomy(model).layers
    ]
    if any(len(found) != 1 for found in maps):
        raise ValueError(
            f"{type(model).__name__} has not exactly one map of {width} inputs ({name}) in every layer, so its MLPs cannot be narrowed"
        )
    return [found for (found,) in maps]


def mlp_width(model: PreTrainedModel) -> int:
    """Neurons of each layer's MLP. Raises ValueError where the config does not state it."""
    return _mlp_width(model)[1]


def narrow_config(model: PreTrainedModel, width: int) -> Any:
    """A copy of the model's config with MLPs of this width. Raises ValueError for a width that is not below the model's own."""
    name, own = _mlp_width(model)
    if not 1 <= width < own:
        raise ValueError(
            f"width={width} neurons to keep: this model's MLPs of {own} allow 1..{own - 1}"
        )
    new = copy.deepcopy(model.config)
    setattr(text_config(new), name, width)
    return new


def _mlp_width(model: PreTrainedModel) -> tuple[str, int]:
    config = text_config(model.config)
    name = next((name for name in _MLP_WIDTHS if hasattr(config, name)), None)
    if name is None:
        raise ValueError(
            f"the config of {type(model).__name__} does not state the width of its MLPs ({', '.join(_MLP_WIDTHS)})"
        )
    return name, getattr(config, name) or 4 * config.hidden_size  # GPT-2 leaves it open


def _n_inputs(module: nn.Linear | Conv1D) -> int:
    return module.weight.shape[0] if isinstance(module, Conv1D) else module.in_features


def attention_outputs(model: PreTrainedModel) -> list[nn.Module]:
    """Of each layer, the linear map that takes the heads' values back to the hidden states."""
    raise NotImplementedError
