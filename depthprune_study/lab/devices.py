"""The device of a run, its precision, and the model's context length."""

from __future__ import annotations

import sys

import torch
from transformers import PreTrainedModel

from depthprune_core.decoder import context_length, text_config
from depthprune_study.errors import StudyError


def device_of(wanted: str) -> str:
    """`cpu` or `cuda`; `auto` takes a GPU if there is one. Raises StudyError if it is missing."""
    there = torch.cuda.is_available()
    if wanted == "cuda" and not there:
        raise StudyError("device='cuda' is not possible without a GPU: use auto or cpu")
    return "cuda" if wanted != "cpu" and there else "cpu"


def fast_precision(device: str) -> str:
    """float32 on a CPU, bfloat16 on a GPU with hardware support, else float16."""
    if device != "cuda":
        return "float32"
    native = torch.cuda.is_bf16_supported(including_emulation=False)
    return "bfloat16" if native else "float16"


def whole_windows(batch_tokens: int, seq_len: int) -> int:
    """The tokens of a step, rounded down to whole windows, but at least one window."""
    return max(1, batch_tokens // seq_len) * seq_len


def context_of(model: PreTrainedModel) -> int:
    """The model's context length in tokens. Raises ValueError if no token can be predicted."""
    context = context_length(text_config(model.config)) or sys.maxsize
    if context < 2:
        raise ValueError(f"{type(model).__name__} reads only {context} token at once: 2 are needed")
    return context
