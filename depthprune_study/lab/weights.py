"""Students' weights: cached in memory, on disk as safetensors, identified by content."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from depthprune_core.storage import replacing
from depthprune_study.lab import cache

LIMIT_BYTES = 4 * 2**30  # memory for students, besides the last one used
_held: OrderedDict[str, PreTrainedModel] = OrderedDict()  # by content; last used at the end


def get(content: str, make: Callable[[], PreTrainedModel]) -> PreTrainedModel:
    """The student with this content; `make` loads or makes it if it is not in memory."""
    if content not in _held:
        largest = max(map(_bytes, _held.values()), default=0)
        _shrink(LIMIT_BYTES - largest)  # room for another one of this size
        hold(content, make())
    _held.move_to_end(content)
    return _held[content]


def hold(content: str, model: PreTrainedModel) -> None:
    """Keep a student that is already in memory."""
    _held[content] = model
    _shrink(LIMIT_BYTES, n_kept=1)


def release() -> None:
    """Release all students, because training needs several times a model's size."""
    _held.clear()


def save(model: PreTrainedModel, path: Path, *, unlike: PreTrainedModel | None = None) -> None:
    """Save all parameters, or only those that differ from `unlike`, a model of the same shape."""
    named = {name: p.detach() for name, p in model.named_parameters()}
    if unlike is not None:
        before = dict(unlike.named_parameters())
        named = {name: p for name, p in named.items() if not torch.equal(p, before[name])}
    save_tensors(path, named)


def save_tensors(path: Path, named: dict[str, torch.Tensor]) -> None:
    """Write under a temporary name first, so that an interruption leaves the old file."""
    with replacing(path) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in named.items()}, temporary)


def load(model: PreTrainedModel, path: Path, content: str = "") -> bool:
    """Load the file's weights into the model; False for a missing, damaged or different file.

    content: the expected hash of the model.
    """
    try:
        model.load_state_dict(load_file(path), strict=False)
    except (OSError, SafetensorError, RuntimeError):
        return False
    return not content or cache.weights_hash(model) == content


def _shrink(limit: int, *, n_kept: int = 0) -> None:
    while len(_held) > n_kept and sum(map(_bytes, _held.values())) > limit:
        _held.popitem(last=False)


def _bytes(model: PreTrainedModel) -> int:
    return sum(p.numel() * p.element_size() for p in model.parameters())
