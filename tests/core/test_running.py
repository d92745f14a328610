"""Running some of a model's layers, or others in their place."""

from __future__ import annotations

import pytest
import torch
from tiny import (
    ARCHITECTURES,
    FAMILIES,
    count_layer_passes,
    final_norm_of,
    layers_of,
    plain_logits,
    skipping,
    state_of,
    tiny,
    tiny_windows,
)

from depthprune_core.decoder import anatomy
from depthprune_core.running import checkpointed, hidden_states, passing, recording, replaced

IDS = tiny_windows().inputs


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_hidden_states_are_those_before_the_head(name):
    model = tiny(name)
    with torch.no_grad():
        expected = model(input_ids=IDS, use_cache=False, output_hidden_states=True).hidden_states[
            -1
        ]  # the last one is after the norm
        torch.testing.assert_close(hidden_states(model, IDS), expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_resuming_behind_any_layer_with_its_own_output_changes_nothing(name):
    model = tiny(name)
    with torch.no_grad():
        with recording(layers_of(model)) as inputs:
            whole = hidden_states(model, IDS)
        for layer in range(len(layers_of(model))):
            resumed = hidden_states(model, IDS, resume_after=layer, hidden=inputs[layer + 1])
            torch.testing.assert_close(
                resumed, whole, rtol=0, atol=0, msg=f"resumed after layer {layer}"
            )


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_passing_layers_are_skipped_layers(name):
    model = tiny(name)
    parts = anatomy(model)
    with skipping(model, (0, 3)):
        expected = plain_logits(model, IDS)
    with replaced(parts.layers, {0: passing(parts), 3: passing(parts)}):
        torch.testing.assert_close(plain_logits(model, IDS), expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", FAMILIES)
def test_recorded_inputs_are_the_models_own_hidden_states_and_the_last_output_is_before_the_norm(
    name,
):
    model = tiny(name)
    n_layers = len(layers_of(model))
    with torch.no_grad(), recording(layers_of(model)) as inputs:
        states = model(input_ids=IDS, use_cache=False, output_hidden_states=True).hidden_states
    assert sorted(inputs) == list(range(n_layers + 1))
    for layer in range(n_layers):
        torch.testing.assert_close(inputs[layer], states[layer], rtol=0, atol=0)
    with torch.no_grad():
        torch.testing.assert_close(
            final_norm_of(model)(inputs[n_layers]), states[n_layers], rtol=0, atol=0
        )
    assert not torch.allclose(inputs[n_layers], states[n_layers], atol=1e-2)


@pytest.mark.parametrize("name", FAMILIES)
def test_an_error_inside_leaves_no_hook_and_no_replaced_forward(name):
    model = tiny(name)
    parts = anatomy(model)
    unchanged = state_of(model)
    with (
        pytest.raises(KeyboardInterrupt),
        recording(parts.layers),
        replaced(parts.layers, {1: passing(parts)}),
    ):
        raise KeyboardInterrupt
    assert unchanged()


def test_a_block_inside_another_gives_the_layers_back_to_the_outer_one(model):
    parts, unchanged = anatomy(model), state_of(model)
    with skipping(model, (1, 2)):
        both = plain_logits(model, IDS)
    with skipping(model, (1,)):
        outer = plain_logits(model, IDS)
    plain = plain_logits(model, IDS)

    def returning_nothing(*args, **options):
        raise ValueError("the inner forward ran")

    with replaced(parts.layers, {1: passing(parts)}):
        with replaced(parts.layers, {2: passing(parts)}):
            torch.testing.assert_close(plain_logits(model, IDS), both, rtol=0, atol=0)
        for _ in range(2):
            with (
                pytest.raises(ValueError, match="the inner forward ran"),
                replaced(parts.layers, {1: returning_nothing}),
            ):
                plain_logits(model, IDS)
            torch.testing.assert_close(plain_logits(model, IDS), outer, rtol=0, atol=0)
    torch.testing.assert_close(plain_logits(model, IDS), plain, rtol=0, atol=0)
    assert unchanged()


# ---------------------------------------------------------------- checkpointed layers


def loss_and_gradients(model) -> tuple[float, dict[str, torch.Tensor]]:
    loss = model(input_ids=IDS, labels=IDS, use_cache=False).loss
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return loss.item(), gradients


@pytest.mark.parametrize("training", [False, True], ids=["eval", "dropout"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_checkpointed_layers_change_neither_loss_nor_gradients(name, training):
    model = tiny(name, **({"attention_dropout": 0.1} if name == "llama" else {})).train(training)
    anatomy(model)
    unchanged = state_of(model)
    torch.manual_seed(0)
    loss, gradients = loss_and_gradients(model)
    torch.manual_seed(0)
    with checkpointed(layers_of(model)):
        same_loss, same_gradients = loss_and_gradients(model)
    assert same_loss == loss and same_gradients.keys() == gradients.keys()
    for key, gradient in gradients.items():
        torch.testing.assert_close(same_gradients[key], gradient, rtol=0, atol=0, msg=key)
    assert unchanged()


def test_the_backward_pass_may_come_after_the_block(model):
    _, expected = loss_and_gradients(model)
    with checkpointed(layers_of(model)):
        loss = model(input_ids=IDS, labels=IDS, use_cache=False).loss
    loss.backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, expected[name], rtol=0, atol=0)


def test_checkpointed_layers_compute_their_inside_again_and_passed_ones_do_not(model):
    parts, passes = anatomy(model), count_layer_passes(model)
    with checkpointed(parts.layers), replaced(parts.layers, {0: passing(parts), 2: passing(parts)}):
        hidden_states(model, IDS).sum().backward()
    assert passes == [1, 3, 4, 4, 3, 1]


def test_checkpointed_layers_keep_their_input_alone_for_the_backward_pass(model):
    def bytes_kept() -> int:
        kept: dict[int, int] = {}

        def note(tensor: torch.Tensor) -> torch.Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            hidden = hidden_states(model, IDS)
        assert hidden.requires_grad
        own = {p.untyped_storage().data_ptr() for p in model.parameters()}
        return sum(n_bytes for pointer, n_bytes in kept.items() if pointer not in own)

    plainly = bytes_kept()
    with checkpointed(layers_of(model)):
        assert bytes_kept() < plainly / 5
