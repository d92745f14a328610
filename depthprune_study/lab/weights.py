"""The weights of a student on disk, as safetensors, found again by their content."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from depthprune_study.lab import cache


def save(model: PreTrainedModel, path: Path, *, unlike: PreTrainedModel | None = None) -> None:
    """All of its parameters; those alone that differ from `unlike`, a model of the same shape.

    Under a temporary name first.
    """
    named = {name: p.detach() for name, p in model.named_parameters()}
    if unlike is not None:
        before = dict(unlike.named_parameters())
        named = {name: p for name, p in named.items() if not torch.equal(p, before[name])}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        save_file({name: p.contiguous() for name, p in named.items()}, temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load(model: PreTrainedModel, path: Path, content: str) -> bool:
    """Put the file's weights into the model; False for a missing, damaged or other file."""
    try:
        model.load_state_dict(load_file(path), strict=False)
    except (OSError, SafetensorError, RuntimeError):
        return False
    return cache.weights_hash(model) == content
