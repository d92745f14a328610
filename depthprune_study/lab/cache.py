"""Keeps measured results and reuses them while their stamp is valid.

A stamp contains hashes of code, parameters and inputs. Results of the lab depend only on inputs and
code, so all notebooks of a study share them.
"""

from __future__ import annotations

import hashlib
import json
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel

from depthprune_core import storage
from depthprune_core.models import Teacher
from depthprune_core.text import Windows
from depthprune_study import provenance

if TYPE_CHECKING:
    from depthprune_study.lab.workspace import Workspace

ROOMS = (  # core modules that results may depend on, together with their imports
    *("distillation", "evaluation", "pruning", "refitting", "selection"),
    *("sensitivity", "speed", "splits", "subsets"),
)


def measured(
    lab: Workspace,
    step: str,
    make: Callable[[], Any],
    *,
    on: Sequence[Any],
    room: str,
    name: str = "",
) -> Any:
    """The record(s) of a result: read back, or made and kept for the whole study.

    on: the inputs (models, students, windows, records, values), hashed by content.
    room: the core module that does the work. name: the label of the progress bar.
    """
    stamp = stamped(lab, step, on, rooms=(room,), shared=True)
    path = lab.folder / "measured" / f"{stamp.key}.json"
    record = kept(path, stamp)
    if record is None:
        with lab.progress.of(name or step):
            record = make()
        storage.write(path, record, stamp)
    return record


def stamped(
    lab: Workspace,
    step: str,
    on: Sequence[Any] = (),
    *,
    rooms: Sequence[str] = ROOMS,
    shared: bool = False,
    seed: int = 0,
    dtype: str = "float32",
) -> storage.Stamp:
    """The stamp of a result of this notebook; `shared`: of all notebooks of the study."""
    return storage.Stamp(
        study=lab.study,
        step=f"{'any' if shared else lab.notebook}/{step}",
        code_hash=short_hash([lab.code[room] for room in rooms]),
        notebook_hash="" if shared else lab.notebook_hash,
        parameters={} if shared else lab.parameters,
        inputs={str(i): content(item) for i, item in enumerate(on)},
        versions=provenance.versions(),
        device=lab.device,
        dtype=dtype,
        seed=seed,
        commit=provenance.commit(),
    )


def kept(path: Path, stamp: storage.Stamp) -> Any:
    """The record(s) of an intact file with this stamp, else None."""
    try:
        record, found = storage.read(path), storage.read_stamp(path)
    except (FileNotFoundError, ValueError):
        return None
    return record if found.key == stamp.key else None


def content(item: Any) -> str:
    """A hash of an input's content: weights, token ids, values."""
    if isinstance(item, Teacher):
        item = item.model
    if isinstance(item, PreTrainedModel):
        return weights_hash(item)
    if isinstance(item, Windows):
        return item.token_hash
    if isinstance(given := getattr(item, "content", None), str):  # a student
        return given
    return short_hash(_plain(item))


def short_hash(value: Any) -> str:
    """A hash of a JSON value."""
    text = json.dumps(value, sort_keys=True, default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


_hashes: weakref.WeakKeyDictionary[PreTrainedModel, tuple[list[int], str]] = (
    weakref.WeakKeyDictionary()
)


def weights_hash(model: PreTrainedModel) -> str:
    """Hash of config and weights; computed again only if torch reports a write to a tensor."""
    tensors = dict(sorted(model.state_dict().items()))
    versions = [tensor._version for tensor in tensors.values()]
    if model not in _hashes or _hashes[model][0] != versions:
        config = {k: v for k, v in model.config.to_dict().items() if k != "_name_or_path"}
        digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
        for name, tensor in tensors.items():
            digest.update(name.encode())
            flat = tensor.detach().cpu().contiguous().flatten()
            digest.update(flat.view(torch.uint8).numpy().data)
        _hashes[model] = (versions, digest.hexdigest()[:16])
    return _hashes[model][1]


def forget_hash(model: PreTrainedModel) -> None:
    """Call this after training: fused optimisers do not update torch's version counters."""
    _hashes.pop(model, None)


def _plain(item: Any) -> Any:
    return {"kind": type(item).__name__, **vars(item)} if hasattr(item, "__dict__") else item
