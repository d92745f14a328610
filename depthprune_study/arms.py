"""A recovered student as notebooks hold it: known by its record, its weights at hand only when something needs them.

So a notebook whose pieces of work are all done runs from their records alone: no weights on disk, no training, no GPU.
"""

from __future__ import annotations

import hashlib
import json
import os
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from depthprune_core import pruning
from depthprune_core.records import Plan

HELD_BYTES = 4 * 2**30  # of students in memory, beside the one that was asked for last
_held: OrderedDict[str, PreTrainedModel] = OrderedDict()  # by content, the one asked for last at the end


class Arm:
    """A student by the hash of its weights; `model` is read from disk, or made again, when it is asked for.

    Those asked for last stay in memory, as far as they fit into HELD_BYTES: of a large model, a notebook has more students than a
    machine can hold. `model`: one that is at hand and can be made again. `diverged`: why its recovery, or that of the student it
    began from, was stopped; empty where none was.
    """

    def __init__(
        self, content: str, make: Callable[[], PreTrainedModel], *, model: PreTrainedModel | None = None, diverged: str = ""
    ) -> None:
        self.content, self._make, self.diverged = content, make, diverged
        if model is not None:
            _hold(content, model)

    @property
    def model(self) -> PreTrainedModel:
        model = _held.get(self.content)
        if model is None:
            _make_room()
            model = self._make()
        return _hold(self.content, model)

    def fresh(self) -> PreTrainedModel:
        """Another copy of the model, which nothing else holds."""
        return self._make()

    def without(self, plan: Plan) -> Arm:
        """The same student with more layers dropped (in its own numbering)."""
        content = hashlib.sha256(f"{self.content} without {plan.dropped}".encode()).hexdigest()[:16]
        return Arm(content, lambda: pruning.drop_layers(self.model, plan), diverged=self.diverged)


def _hold(content: str, model: PreTrainedModel) -> PreTrainedModel:
    _held[content] = model
    _held.move_to_end(content)
    while len(_held) > 1 and sum(map(_bytes, _held.values())) > HELD_BYTES:
        _held.popitem(last=False)
    return model


def _make_room() -> None:
    """For one more as large as the largest."""
    while _held and sum(map(_bytes, _held.values())) + max(map(_bytes, _held.values())) > HELD_BYTES:
        _held.popitem(last=False)


def release() -> None:
    """Let all students in memory go that nothing else holds: before one is trained, which takes several times its size."""
    _held.clear()


def _bytes(model: PreTrainedModel) -> int:
    return sum(p.numel() * p.element_size() for p in model.parameters())


def model_of(student: PreTrainedModel | Arm) -> PreTrainedModel:
    return student.model if isinstance(student, Arm) else student


_hashes: weakref.WeakKeyDictionary[PreTrainedModel, tuple[list[int], str]] = weakref.WeakKeyDictionary()


def weights_hash(model: PreTrainedModel) -> str:
    """Hash of config and weights, computed again only when torch says that a tensor was written to."""
    versions = [tensor._version for tensor in model.state_dict().values()]
    if model not in _hashes or _hashes[model][0] != versions:
        config = {
            key: value for key, value in model.config.to_dict().items() if key != "_name_or_path"
        }  # where it was read is no content
        digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
        for name, tensor in sorted(model.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        _hashes[model] = (versions, digest.hexdigest()[:16])
    return _hashes[model][1]


def forget_hash(model: PreTrainedModel) -> None:
    """For a model that was trained: fused optimisers write without telling torch's version counters."""
    _hashes.pop(model, None)


def save_weights(model: PreTrainedModel, path: Path, *, only: Sequence[torch.Tensor] | None = None) -> None:
    """As safetensors, under a temporary name first; all of a model's weights, or these alone."""
    wanted = None if only is None else {id(tensor) for tensor in only}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    named = {name: p for name, p in model.named_parameters() if wanted is None or id(p) in wanted}
    save_file({name: p.detach().contiguous() for name, p in named.items()}, temporary)
    os.replace(temporary, path)


def load_weights(student: PreTrainedModel, path: Path, content: str) -> bool:
    """Put the file's weights into the student; False where the file is missing, damaged or another student's."""
    try:
        student.load_state_dict(load_file(path), strict=False)
    except (OSError, SafetensorError, RuntimeError):
        return False
    return weights_hash(student) == content
