"""Weights rounded to few bits."""

from __future__ import annotations

import pytest
import torch
from tiny import FAMILIES, layers_of, state_of, tiny, tiny_windows
from torch import nn
from transformers.pytorch_utils import Conv1D

from depthprune_core.evaluation import score
from depthprune_core.rounding import GROUP, rounded

WINDOWS = tiny_windows()


def maps_of(model) -> list[torch.Tensor]:
    """Weights of the layers' linear maps, (outputs, inputs)."""
    found = [m for layer in layers_of(model) for m in layer.modules() if isinstance(m, nn.Linear | Conv1D)]
    return [m.weight.t() if isinstance(m, Conv1D) else m.weight for m in found]


def wide(name: str):
    return tiny(name, **({} if name == "gpt2" else {"intermediate_size": 64}))


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_group_has_few_values_each_at_most_half_a_step_away(name, bits):
    model = wide(name)
    unchanged = state_of(model)
    result, _ = rounded(model, bits)
    for before, after in zip(maps_of(model), maps_of(result), strict=True):
        groups, near = before.reshape(-1, GROUP), after.reshape(-1, GROUP)
        assert all(len(row.unique()) <= 2**bits for row in near)
        step = (groups.amax(1) - groups.amin(1)) / (2**bits - 1)
        assert (
            (groups - near).abs().amax(1) <= 0.5 * step + 2e-3 * groups.abs().amax(1)
        ).all()  # scale and offset have 16 bits
    assert unchanged()


@pytest.mark.parametrize("name", FAMILIES)
def test_fewer_bits_cost_more(name):
    model = wide(name)
    own = score(model, WINDOWS).mean_nll_nats
    off = [abs(score(rounded(model, bits)[0], WINDOWS).mean_nll_nats - own) for bits in (8, 2)]
    assert off[0] < off[1]


@pytest.mark.parametrize("name", FAMILIES)
def test_the_bytes_are_codes_with_scale_and_offset_and_16_bits_for_the_rest(name):
    model = wide(name)
    rounded_weights = sum(weight.numel() for weight in maps_of(model))
    rest = model.num_parameters() - rounded_weights
    assert rounded(model, 4)[1] == rounded_weights * 4 // 8 + rounded_weights // GROUP * 4 + 2 * rest


def test_a_hand_computed_group():
    model = wide("llama")
    weight = maps_of(model)[0]
    with torch.no_grad():
        weight[0] = torch.tensor([0.0, 1.0, 2.0, 3.0] * 8)
        weight[1] = torch.tensor([0.0, 0.4, 0.6, 3.0] * 8)
    result = maps_of(rounded(model, 2)[0])[0]
    assert result[0].tolist() == [0.0, 1.0, 2.0, 3.0] * 8
    assert result[1].tolist() == [0.0, 0.0, 1.0, 3.0] * 8


@pytest.mark.parametrize("bits", [1, 9])
def test_other_bits_are_refused(bits):
    with pytest.raises(ValueError, match=f"bits={bits} is not possible here: 2 to 8 are"):
        rounded(tiny("llama"), bits)


def test_a_map_that_does_not_divide_into_groups_is_refused():
    with pytest.raises(ValueError, match="48 inputs does not divide into groups of 32"):
        rounded(tiny("llama"), 4)
