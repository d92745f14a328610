"""Running some of a model's layers, or replacements for them."""

from __future__ import annotations

import pytest
import torch
from tiny import (
    ARCHITECTURES,
    count_layer_passes,
    layers_of,
    plain_logits,
    skipping,
    state_of,
    tiny,
    tiny_windows,
)

from depthprune_core.anatomy import anatomy
from depthprune_core.running import checkpointed, hidden_states, passing, recording, replaced

IDS = tiny_windows().inputs


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_resuming_behind_any_layer_with_its_output_changes_nothing(name):
    model = tiny(name)
    with torch.no_grad():
        states = model(input_ids=IDS, use_cache=False, output_hidden_states=True).hidden_states
        with recording(layers_of(model)) as inputs:
            whole = hidden_states(anatomy(model), IDS)
        assert torch.equal(whole, states[-1])  # the last one is after the norm
        for layer in range(len(layers_of(model))):
            behind = {"resume_after": layer, "hidden": inputs[layer + 1]}
            resumed = hidden_states(anatomy(model), IDS, **behind)
            assert torch.equal(resumed, whole), f"resumed after layer {layer}"


def test_an_error_inside_leaves_no_hook_and_no_replaced_forward(model):
    parts, unchanged = anatomy(model), state_of(model)
    with (
        pytest.raises(KeyboardInterrupt),
        recording(parts.layers),
        replaced(parts.layers, {1: passing(parts)}),
    ):
        raise KeyboardInterrupt
    assert unchanged()


def test_a_block_inside_another_gives_the_layers_back_to_the_outer_one(model):
    parts, unchanged = anatomy(model), state_of(model)
    expected = {}
    for dropped in ((), (1,), (1, 2)):
        with skipping(model, dropped):
            expected[dropped] = plain_logits(model, IDS)
    with replaced(parts.layers, {1: passing(parts)}):
        with replaced(parts.layers, {1: passing(parts), 2: passing(parts)}):
            assert torch.equal(plain_logits(model, IDS), expected[1, 2])
        assert torch.equal(plain_logits(model, IDS), expected[(1,)])
    assert torch.equal(plain_logits(model, IDS), expected[()])
    assert unchanged()


# ---------------------------------------------------------------- checkpointed layers


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_checkpointed_layers_change_neither_loss_nor_gradients(name):
    """With dropout, where the architecture has any."""
    model = tiny(name, **({"attention_dropout": 0.1} if name == "llama" else {})).train()
    anatomy(model)
    unchanged = state_of(model)

    def gradients(layers) -> list[torch.Tensor]:
        torch.manual_seed(0)
        with checkpointed(layers):
            loss = model(input_ids=IDS, labels=IDS, use_cache=False).loss
        loss.backward()  # after the block
        found = [loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]
        model.zero_grad()
        return found

    plain, again = gradients(torch.nn.ModuleList()), gradients(layers_of(model))
    assert len(plain) == len(again) > 5
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))
    assert unchanged()


def test_checkpointed_layers_compute_their_inside_again_and_passed_ones_do_not(model):
    parts, passes = anatomy(model), count_layer_passes(model)
    with checkpointed(parts.layers), replaced(parts.layers, {0: passing(parts), 2: passing(parts)}):
        hidden_states(anatomy(model), IDS).sum().backward()
    assert passes == [1, 3, 4, 4, 3, 1]
