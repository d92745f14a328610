"""A decoder's parts, found by structure and checked on a few tokens."""

from __future__ import annotations

import weakref
from dataclasses import replace

from torch import nn
from transformers import PreTrainedModel

from depthprune_core.decoder import Decoder, structure
from depthprune_core.probing import probe

_known: weakref.WeakKeyDictionary[nn.Module, Decoder] = weakref.WeakKeyDictionary()


def anatomy(model: PreTrainedModel) -> Decoder:
    """The parts of a decoder, found by structure and checked on a few tokens.

    Raises ValueError if the model is not a stack of layers that can be skipped one by one:
    encoder-decoders, state-space models, encoders, layers that share more than hidden states.
    """
    if model not in _known:
        parts = structure(model)
        was_training = model.training
        model.eval()  # dropout would draw random numbers
        try:
            _known[model] = probe(model, parts)
        finally:
            model.train(was_training)
    return _known[model]


def remember(student: PreTrainedModel, like: Decoder) -> None:
    """Lets a student skip the probe: it has the structure of its original's anatomy, `like`."""
    facts = {name: getattr(like, name) for name in ("softcap", "scale", "returns_tuple")}
    _known[student] = replace(structure(student), **facts)
