"""Checkpoints: a recovery's state on disk, from which it can resume."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedModel

from depthprune_core.storage import replacing

if TYPE_CHECKING:
    from depthprune_core.steps import Run

SAMPLED = 16_384  # numbers of a tensor, at most: another start or teacher differs nearly everywhere


def content(*models: PreTrainedModel | None) -> bytes:
    """A hash of shapes and of a sample of the numbers of all parameters.

    The same for equal weights, on any device.
    """
    digest = hashlib.sha256()
    for model in models:
        digest.update(b"no model" if model is None else b"model")
        for name, p in model.named_parameters() if model is not None else ():
            flat = p.detach().flatten()
            sample = flat[:: len(flat) // SAMPLED + 1].contiguous().cpu()
            digest.update(f"{name} {tuple(p.shape)} {p.dtype} ".encode())
            digest.update(sample.view(torch.uint8).numpy().data)
    return digest.digest()


def save(path: Path, key: str, run: Run) -> None:
    """Keep a run under its key: a zip file with checksums inside."""
    state = {
        "key": key,
        "student": {n: p.detach() for n, p in run.student.named_parameters() if p.requires_grad},
        "optimiser": run.optimiser.state_dict(),
        "scaler": run.scaler.state_dict(),
        "log": run.log,
    }
    with replacing(path) as temporary:
        torch.save(state, temporary)


def resume(path: Path, key: str, run: Run) -> None:
    """Restore a run from the file. Raises ValueError for a damaged file or another run's file."""
    damaged = f"checkpoint {path} is damaged: remove it to begin this recovery again"
    if not _is_whole(path):
        raise ValueError(damaged)
    try:
        state = torch.load(path, map_location=run.student.device, weights_only=True)
    except RuntimeError as error:
        if "PytorchStreamReader" not in str(error):  # too little memory, say: no fault of the file
            raise
        raise ValueError(damaged) from None
    if state["key"] != key:
        raise ValueError(
            f"checkpoint {path} belongs to another run (recipe, text, start or teacher differ): "
            "remove it to begin again, or cut the student anew if this run was interrupted"
        )
    with torch.no_grad():
        for name, p in run.student.named_parameters():
            if name in state["student"]:
                p.copy_(state["student"][name])
    run.optimiser.load_state_dict(state["optimiser"])
    if run.scaler.is_enabled():
        run.scaler.load_state_dict(state["scaler"])
    run.log = state["log"]


def _is_whole(path: Path) -> bool:
    with open(path, "rb") as file:  # a file that cannot be opened is not damaged
        try:
            with zipfile.ZipFile(file) as archive:
                return archive.testzip() is None
        except MemoryError:
            raise
        except Exception:  # one bit can make it "encrypted", of unknown compression, not UTF-8 ...
            return False
