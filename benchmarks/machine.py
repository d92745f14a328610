"""What the figures were measured on, and where they are kept."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch

from depthprune_core import speed
from depthprune_core.records import write_atomically
from depthprune_study import provenance

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
