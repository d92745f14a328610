"""Finds the parts of any decoder by structure."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from depthprune_core.products import linear


@dataclass(frozen=True)
class Decoder:
    """The parts of a causal language model."""

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


# Decay tensors of recurrent states: in Mamba and gated delta nets, RWKV, lightning attention.
_DECAYS = ("A_log", "time_decay", "slope_rate")

# What all layers hold together, as configs call it.
_SHARED = {
    "hidden_size_per_layer_input": "embeddings for each of its layers in one tensor",
    "num_kv_shared_layers": "layers that use the keys and values of earlier ones",
}
_CONTEXTS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_target_positions")
_SOFTCAPS = ("final_logit_softcapping", "logits_soft_cap")


def structure(model: PreTrainedModel) -> Decoder:
    """The parts, found by names and types alone, so a model on torch's meta device works too.

    Raises the same errors as `anatomy`.
    """
    name = type(model).__name__
    config = text_config(model.config)
    if getattr(model.config, "is_encoder_decoder", False):
        raise ValueError(f"{name} is an encoder-decoder: only decoders can be pruned here")
    tensors = [*model.named_parameters(), *model.named_buffers()]
    states = [tensor for tensor, _ in tensors if tensor.rsplit(".", 1)[-1] in _DECAYS]
    if states:
        raise ValueError(
            f"{name} carries a state from token to token ({states[0]}: a state-space or "
            "linear-attention model): only transformer decoders can be pruned here"
        )
    for field, what in _SHARED.items():
        if getattr(config, field, None):
            raise ValueError(f"{name} has {what} ({field}), so no layer of it can be dropped")
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    n_layers = getattr(config, "num_hidden_layers", None)
    if not isinstance(head, nn.Linear) or n_layers is None:
        raise ValueError(
            f"{name} has no language-model head (a linear map) or no layer count: only causal "
            "language models can be pruned here"
        )
    path = _stack(model, n_layers)
    base = getattr(model, model.base_model_prefix, None)
    if base is None:  # Llama 4 names another class's
        base = model.get_submodule(path.split(".")[0])
    softcap = next((cap for key in _SOFTCAPS if (cap := getattr(config, key, None))), 0.0)
    stack = model.get_submodule(path)
    return Decoder(stack, path, base, head, float(softcap), scale=1.0, returns_tuple=False)


def text_config(config: Any) -> Any:
    """The part of a config that describes the language model; usually the whole config."""
    return config.get_text_config(decoder=True)


def context_length(config: Any) -> int:
    """Tokens that a model can read at once; 0 if the config sets no limit."""
    found = [value for name in _CONTEXTS if type(value := getattr(config, name, None)) is int]
    return next((value for value in found if value > 0), 0)


def _stack(model: PreTrainedModel, n_layers: int) -> str:
    """Path of the decoder's layers: next to the token embedding, not in an image tower."""
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
        pairs = zip(path.split("."), home.split("."), strict=False)
        shared = len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))
        return -shared, path.count(".")  # then the outermost

    return min(stacks, key=distance)


def _attends(layer: nn.Module) -> bool:
    names = [type(module).__name__.lower() for module in layer.modules()]
    return any("attention" in name or "attn" in name for name in names)
