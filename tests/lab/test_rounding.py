"""Weights in llama.cpp's formats: nearest values, and bytes as gguf counts them."""

from __future__ import annotations

import pytest
import torch
from gguf import GGMLQuantizationType, quants
from tiny import FAMILIES, layers_of, state_of, tiny, tiny_windows
from torch import nn
from transformers.pytorch_utils import Conv1D

from depthprune_study.errors import StudyError
from depthprune_study.lab.rivals.rounding import quantised, size_in

WINDOWS = tiny_windows()
STEPS = {"Q8_0": 127, "Q4_0": 8}  # of a block's largest weight


def wide(name: str):
    return tiny(name, **({} if name == "gpt2" else {"intermediate_size": 64}))


def maps_of(model) -> list[torch.Tensor]:
    """Weights of the layers' linear maps.  (outputs, inputs)"""
    found = [m for layer in layers_of(model) for m in layer.modules()]
    maps = [m for m in found if isinstance(m, nn.Linear | Conv1D)]
    return [(m.weight.t() if isinstance(m, Conv1D) else m.weight).detach() for m in maps]


@pytest.mark.parametrize("kind", STEPS)
@pytest.mark.parametrize("name", FAMILIES)
def test_every_weight_of_a_block_is_at_most_one_step_away_and_the_rest_is_untouched(name, kind):
    model = wide(name)
    unchanged = state_of(model)
    result = quantised(model, kind)
    for before, after in zip(maps_of(model), maps_of(result), strict=True):
        blocks, near = before.reshape(-1, 32), after.reshape(-1, 32)
        assert not torch.equal(blocks, near)
        step = blocks.abs().amax(1) / STEPS[kind]
        assert ((blocks - near).abs().amax(1) <= 1.01 * step).all()
    same = [
        name for name, p in result.named_parameters() if torch.equal(p, model.get_parameter(name))
    ]
    assert any("wte" in name or "embed_tokens" in name for name in same)
    assert unchanged()


@pytest.mark.parametrize("kind", STEPS)
@pytest.mark.parametrize("name", FAMILIES)
def test_the_bytes_are_those_of_a_gguf_file_of_these_tensors(name, kind):
    model = wide(name)
    packed = 0
    for weight in maps_of(model):
        blocks = quants.quantize(weight.contiguous().numpy(), GGMLQuantizationType[kind])
        packed += blocks.nbytes
    rest = model.num_parameters() - sum(weight.numel() for weight in maps_of(model))
    assert size_in(model, kind) == packed + 2 * rest


def test_other_formats_and_maps_without_whole_blocks_are_refused():
    with pytest.raises(StudyError, match="kind='Q2_K' is not known: name one of Q8_0, Q4_0"):
        quantised(tiny("gpt2"), "Q2_K")
    with pytest.raises(
        StudyError, match="blocks of 32 weights, but a map of this model has 48 inputs"
    ):
        quantised(tiny("llama"), "Q4_0")
