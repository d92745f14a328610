"""Where any decoder keeps its parts, found by structure."""

from __future__ import annotations

import copy
import weakref
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from depthprune_core import probing
from depthprune_core.products import linear


@dataclass(frozen=True)
class Decoder:
    """Where a causal language model keeps its parts."""

    layers: nn.ModuleList
    layers_name: str  # its path inside the model: "transformer.h"
    base: nn.Module  # token ids -> hidden states after the final norm
    head: nn.Linear  # hidden states -> logits, before scale and softcap
    softcap: float  # 0 = none
    scale: float  # multiplies what the head computes, before any softcap; 1 = none
    returns_tuple: bool  # whether a layer returns (hidden, ...) or the bare tensor

    def logits(self, hidden: torch.Tensor, words: slice = slice(None)) -> torch.Tensor:
        """Hidden states after the final norm -> float32 logits of a slice of the vocabulary.

        (..., d) -> (..., words)
        """
        bias = self.head.bias[words] if self.head.bias is not None else None
        logits = linear(hidden, self.head.weight[words], bias).float()
        if self.scale != 1:
            logits = logits * self.scale
        return torch.tanh(logits / self.softcap) * self.softcap if self.softcap else logits

    @property
    def tied(self) -> bool:
        embeddings = (m for m in self.base.modules() if isinstance(m, nn.Embedding))
        return any(module.weight is self.head.weight for module in embeddings)


# Tensors by which a state decays: of Mamba and gated delta nets, of RWKV, of lightning attention.
_DECAYS = ("A_log", "time_decay", "slope_rate")

# What all layers hold together, as configs call it.
_SHARED = {
    "hidden_size_per_layer_input": "embeddings for each of its layers in one tensor",
    "num_kv_shared_layers": "layers that use the keys and values of earlier ones",
}

_known: weakref.WeakKeyDictionary[nn.Module, Decoder] = weakref.WeakKeyDictionary()


def anatomy(model: PreTrainedModel) -> Decoder:
    """The parts of a decoder, found by structure and checked on a few tokens.

    Raises ValueError for what is no stack of layers that can be passed over one by one:
    encoder-decoders, state-space models, encoders, layers that share more than hidden states.
    """
    if model not in _known:
        parts = structure(model)
        was_training = model.training
        model.eval()  # dropout would draw random numbers
        try:
            _known[model] = replace(parts, **probing.probe(model, parts))
        finally:
            model.train(was_training)
    return _known[model]


def remember(student: PreTrainedModel, like: Decoder) -> None:
    """Spares a student the probe: it is built as `like`, the anatomy of its original."""
    facts = {name: getattr(like, name) for name in ("softcap", "scale", "returns_tuple")}
    _known[student] = replace(structure(student), **facts)


def structure(model: PreTrainedModel) -> Decoder:
    """The parts as names and types tell them: of a model on torch's meta device too, which cannot
    be run. Raises as `anatomy`.
    """
    name = type(model).__name__
    config = text_config(model.config)
    if getattr(model.config, "is_encoder_decoder", False):
        raise ValueError(f"{name} is an encoder-decoder: only decoders can be pruned here")
    if state := _state(model):
        raise ValueError(
            f"{name} carries a state from token to token ({state}: a state-space or "
            "linear-attention model): only transformer decoders can be pruned here"
        )
    for field, what in _SHARED.items():
        if getattr(config, field, None):
            raise ValueError(f"{name} has {what} ({field}), so no layer of it can be dropped")
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    n_layers = getattr(config, "num_hidden_layers", None)
    if head is None or n_layers is None:
        raise ValueError(
            f"{name} has no language-model head or no layer count: only causal language models "
            "can be pruned here"
        )
    if not isinstance(head, nn.Linear):
        raise ValueError(
            f"{name} has a head that is no linear map ({type(head).__name__}), so it cannot be "
            "measured here"
        )
    path = _stack(model, n_layers)
    base = getattr(model, model.base_model_prefix, None)
    if base is None:  # Llama 4 names another class's
        base = model.get_submodule(path.split(".")[0])
    softcap = float(_softcap(config) or 0.0)
    stack = model.get_submodule(path)
    return Decoder(stack, path, base, head, softcap, scale=1.0, returns_tuple=False)


def text_config(config: Any) -> Any:
    """The part of a config that describes the language model; mostly all of it."""
    return config.get_text_config(decoder=True)


def _stack(model: PreTrainedModel, n_layers: int) -> str:
    """Path of the decoder's layers: beside the embedding of tokens, not in a tower for images."""
    stacks = [
        path
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList)
        and len(module) == n_layers
        and all(_attends(layer) for layer in module)
    ]
    if not stacks:
        raise ValueError(
            f"{type(model).__name__} has no stack of {n_layers} attention layers: only "
            "transformer decoders can be pruned here"
        )
    embedding = model.get_input_embeddings()
    home = next((path for path, module in model.named_modules() if module is embedding), "")

    def distance(path: str) -> tuple[int, int]:
        shared = 0
        for ours, theirs in zip(path.split("."), home.split("."), strict=False):
            if ours != theirs:
                break
            shared += 1
        return -shared, path.count(".")  # then the outermost

    return min(stacks, key=distance)


def _softcap(config: Any) -> float | None:
    for name in ("final_logit_softcapping", "logits_soft_cap"):
        if value := getattr(config, name, None):
            return value
    return None


def _state(model: nn.Module) -> str:
    """The tensor by which a recurrent layer's state decays; empty without one."""
    held = (model.named_parameters(), model.named_buffers())
    tensors = (name for found in held for name, _ in found)
    return next((name for name in tensors if name.rsplit(".", 1)[-1] in _DECAYS), "")


def _attends(layer: nn.Module) -> bool:
    return bool(_attentions(layer))


def _attentions(layer: nn.Module) -> list[nn.Module]:
    return [
        module
        for module in layer.modules()
        if any(word in type(module).__name__.lower() for word in ("attention", "attn"))
    ]


# ---------------------------------------------------------------- where a layer's parts end


def attention_outputs(model: PreTrainedModel) -> list[nn.Module]:
    """Of each layer, the linear map that takes the heads' values back to the hidden states.

    Found by running: the last map of the attention. Raises ValueError where a layer has none.
    """
    parts = anatomy(model)
    maps = [
        {m for attention in _attentions(layer) for m in attention.modules() if _is_map(m)}
        for layer in parts.layers
    ]
    called = probing.calls(parts.base, [m for found in maps for m in found])
    last = [[m for m in called if m in found][-1:] for found in maps]
    if any(not found for found in last):
        raise ValueError(
            f"{type(model).__name__} has a layer whose attention ends in no linear map"
        )
    return [found for (found,) in last]


_MLP_WIDTHS = ("intermediate_size", "n_inner", "ffn_dim")  # as configs call it


def mlp_outputs(model: PreTrainedModel) -> list[nn.Module]:
    """Of each layer, the linear map that takes the MLP's neurons back to the hidden states.

    Raises ValueError where the config does not state the width, or where the width does not tell
    this map from the others.
    """
    name, width = _mlp_width(model)
    maps = [
        [m for m in layer.modules() if _is_map(m) and _n_inputs(m) == width]
        for layer in anatomy(model).layers
    ]
    if any(len(found) != 1 for found in maps):
        raise ValueError(
            f"{type(model).__name__} has not exactly one map of {width} inputs ({name}) in every "
            "layer, so its MLPs cannot be narrowed"
        )
    return [found for (found,) in maps]


def mlp_width(model: PreTrainedModel) -> int:
    """Neurons of each layer's MLP. Raises ValueError where the config does not state it."""
    return _mlp_width(model)[1]


def narrow_config(model: PreTrainedModel, width: int) -> Any:
    """A copy of the model's config with MLPs of this width.

    Raises ValueError for a width that is not below the model's own.
    """
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
    for name in _MLP_WIDTHS:
        try:
            width = getattr(config, name)
        except (AttributeError, RuntimeError):  # none, or one for each layer
            continue
        width = width or 4 * config.hidden_size  # GPT-2 leaves it open
        if isinstance(width, int):
            return name, width
    raise ValueError(
        f"the config of {type(model).__name__} does not state one width for its MLPs "
        f"({', '.join(_MLP_WIDTHS)})"
    )


def _is_map(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | Conv1D)


def _n_inputs(module: nn.Linear | Conv1D) -> int:
    return module.weight.shape[0] if isinstance(module, Conv1D) else module.in_features
