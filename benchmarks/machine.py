"""What the figures were measured on, and where they are kept."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from depthprune_core import models, speed, splits, text
from depthprune_core.storage import write_atomically
from depthprune_core.text import Windows
from depthprune_study import paths, provenance

MEASURED = ("subsets", "distillation", "speed", "refitting")
RESULTS = Path(__file__).parent / "results"


def name() -> str:
    """Processor and cores, or the GPU."""
    if torch.cuda.is_available():
        return speed.device_name(torch.device("cuda"))
    return f"{speed.device_name(torch.device('cpu'))}, {os.cpu_count()} cores"


def save(what: str, content: dict[str, Any]) -> Path:
    """One JSON file a kind of result, with the machine and the code it came from."""
    stamp = {
        "machine": name(),
        "n_threads": torch.get_num_threads(),
        "versions": provenance.versions(),
        "code_hash": provenance.code_hash(*(f"depthprune_core.{name}" for name in MEASURED)),
        "commit": provenance.commit(),
    }
    path = RESULTS / f"{what}.json"
    write_atomically(path, json.dumps({**stamp, **content}, indent=1) + "\n")
    return path


def load(name: str) -> models.Teacher:
    """A named model, on the GPU where there is one."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return models.load(name, cache=paths.cache(), device=device)


def windows(teacher: models.Teacher, split: str, *, seq_len: int, count: int) -> Windows:
    """Full windows of the articles."""
    documents = splits.split_named("wikipedia-excerpt", cache=paths.cache())[split]
    pool = text.training_windows(documents, teacher.tokenizer, start=teacher.start, seq_len=seq_len)
    return pool.take(slice(0, count))


def copy_weights(source: dict[str, torch.Tensor], model: PreTrainedModel) -> PreTrainedModel:
    """The model, with these weights again."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(source[name])
    return model
