"""Students in memory: those asked for last stay, as far as they fit.

Of a large model, a notebook has more students than a machine can hold.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from transformers import PreTrainedModel

LIMIT_BYTES = 4 * 2**30  # beside the one that was asked for last
_held: OrderedDict[str, PreTrainedModel] = OrderedDict()  # by content; asked for last at the end


def get(content: str, make: Callable[[], PreTrainedModel]) -> PreTrainedModel:
    """The student of this content; made (read from disk, mostly) where it is not in memory."""
    model = _held.get(content)
    if model is None:
        largest = max(map(_bytes, _held.values()), default=0)  # room for one more as large
        while _held and sum(map(_bytes, _held.values())) + largest > LIMIT_BYTES:
            _held.popitem(last=False)
        model = make()
    return put(content, model)


def put(content: str, model: PreTrainedModel) -> PreTrainedModel:
    """Hold a student that is in memory already."""
    _held[content] = model
    _held.move_to_end(content)
    while len(_held) > 1 and sum(map(_bytes, _held.values())) > LIMIT_BYTES:
        _held.popitem(last=False)
    return model


def release() -> None:
    """Let all go: before one is trained, which takes several times its size."""
    _held.clear()


def _bytes(model: PreTrainedModel) -> int:
    return sum(p.numel() * p.element_size() for p in model.parameters())
