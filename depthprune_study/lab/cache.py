"""A piece of work is done once: its record carries a stamp, and is read back while that holds.

A stamp names code, parameters and inputs, each by content. What the lab's own functions measure is
known by inputs and code alone: another notebook, or one with other parameters, reads the same.
"""

from __future__ import annotations

import hashlib
import json
import weakref
from collections.abc import Callable, Sequence
from dataclasses import is_dataclass, replace
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

CORE = "depthprune_core."
MODULES = tuple(  # what a notebook's own piece of work may run, with all that these import
    CORE + room
    for room in (
        "distillation",
        "evaluation",
        "pruning",
        "refitting",
        "selection",
        "sensitivity",
        "speed",
        "splits",
        "subsets",
    )
)


def once(
    lab: Workspace,
    path: Path,
    make: Callable[[], Any],
    *,
    on: Sequence[Any],
    modules: Sequence[str] = MODULES,
    by_content: bool = True,
    name: str = "",
) -> Any:
    """The record(s) at `path` where their stamp still holds, else what `make` returns, saved there.

    on: what the piece depends on (models, students, windows, records, values), hashed by content.
    by_content: it depends on nothing else. Else also on the notebook's code and parameters.
    """
    stamp = stamped(lab, name or path.stem, on, modules=modules)
    record = kept(path, stamp, by_content=by_content)
    if record is None:
        with lab.progress.of(name or path.stem):
            record = make()
        storage.write(path, record, stamp)
    return record


def measured(
    lab: Workspace, path: Path, stamp: storage.Stamp, make: Callable[[], Any], *, name: str
) -> Any:
    """The same of a piece that the whole study shares, by its stamp."""
    record = kept(path, stamp)
    if record is None:
        with lab.progress.of(name):
            record = make()
        storage.write(path, record, stamp)
    return record


def stamped(
    lab: Workspace,
    step: str,
    on: Sequence[Any] = (),
    *,
    modules: Sequence[str] = MODULES,
    shared: bool = False,
    seed: int = 0,
    dtype: str = "float32",
) -> storage.Stamp:
    """The stamp of a piece of work of this notebook; `shared`: of any notebook of the study."""
    stamp = provenance.stamp(
        study=lab.study,
        notebook="any" if shared else lab.notebook,
        notebook_hash="" if shared else lab.notebook_hash,
        step=step,
        modules=(),
        parameters={} if shared else lab.parameters,
        inputs={f"{i} {_kind(item)}": content(item) for i, item in enumerate(on)},
        device=lab.device,
        dtype=dtype,
        seed=seed,
    )
    codes = [lab.code.get(module) or provenance.code_hash(module) for module in modules]
    return replace(stamp, code_hash=short_hash(codes))


def kept(path: Path, stamp: storage.Stamp, *, by_content: bool = False) -> Any:
    """The record(s) of a file that is whole and carries this stamp, else None.

    by_content: whatever notebook and parameters the file names; it then names these.
    """
    try:
        record, found = storage.read(path), storage.read_stamp(path)
    except (FileNotFoundError, ValueError):
        return None
    if by_content and found.key != stamp.key:
        renamed = replace(found, notebook_hash=stamp.notebook_hash, parameters=stamp.parameters)
        if renamed.key == stamp.key:
            storage.write(path, record, stamp)
            found = stamp
    return record if found.key == stamp.key else None


def content(item: Any) -> str:
    """A hash of what an input holds: weights, token ids, values."""
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
    """A hash of a value that JSON can hold."""
    text = json.dumps(value, sort_keys=True, default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


_hashes: weakref.WeakKeyDictionary[PreTrainedModel, tuple[list[int], str]] = (
    weakref.WeakKeyDictionary()
)


def weights_hash(model: PreTrainedModel) -> str:
    """Hash of config and weights, made anew only where torch says that a tensor was written to."""
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
    """For a model that was trained: fused optimisers do not tell torch's version counters."""
    _hashes.pop(model, None)


def tokenizer_hash(tokenizer: Any) -> str:
    """Of what decides how it cuts a text, without what its last call left behind (padding)."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return short_hash([repr(tokenizer), tokenizer.get_vocab()])
    state = json.loads(backend.to_str())
    return short_hash({k: v for k, v in state.items() if k not in ("padding", "truncation")})


def _kind(item: Any) -> str:
    """What an input is, for the reader of a stamp."""
    if isinstance(item, PreTrainedModel | Teacher) or hasattr(item, "content"):
        return "model"
    return type(item).__name__.lower() if is_dataclass(item) else "value"


def _plain(item: Any) -> Any:
    return {"kind": type(item).__name__, **vars(item)} if hasattr(item, "__dict__") else item
