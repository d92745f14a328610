"""What a run computes on, and in which precision. The command line uses it without notebooks."""

from __future__ import annotations

import torch

from depthprune_core.products import has_bfloat16
from depthprune_study.errors import StudyError


def device_of(wanted: str) -> str:
    """`cpu` or `cuda`; `auto` takes a GPU that is there. Raises StudyError for one that is not."""
    there = torch.cuda.is_available()
    if wanted == "cuda" and not there:
        raise StudyError("device='cuda' is not possible: no GPU is there, take auto or cpu")
    return "cuda" if wanted != "cpu" and there else "cpu"


def fast_precision(device: str) -> str:
    """float32 on a CPU, bfloat16 on a GPU that truly has it, else float16."""
    if device != "cuda":
        return "float32"
    return "bfloat16" if has_bfloat16(device) else "float16"


def whole_windows(batch_tokens: int, seq_len: int) -> int:
    """The tokens of a step, rounded down to whole windows; one window at least."""
    return max(1, batch_tokens // seq_len) * seq_len
