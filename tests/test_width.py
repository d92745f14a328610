"""Narrower MLPs: the control that takes the same parameters from every layer."""

from __future__ import annotations

import pytest
import torch
from tiny import ARCHITECTURES, layers_of, state_of, tiny, tiny_windows
from transformers import AutoModelForCausalLM

from depthprune_core.decoders import mlp_outputs, mlp_width
from depthprune_core.pruning import drop_layers, narrow_mlps, width_of_size
from depthprune_core.records import Plan
from depthprune_core.sensitivity import neuron_importance

WINDOWS = tiny_windows()
WITH_WIDTH = [name for name in ARCHITECTURES if name != "bloom"]


def every(model, neurons) -> list[list[int]]:
    return [list(neurons)] * len(layers_of(model))


def silenced(model, kept: list[list[int]]):
    """The whole model's logits with the other neurons' activations set to 0."""
    hooks = []
    for module, neurons in zip(mlp_outputs(model), kept, strict=True):
        mask = torch.zeros(mlp_width(model))
        mask[neurons] = 1
        hooks.append(module.register_forward_pre_hook(lambda _, args, mask=mask: (args[0] * mask,)))
    try:
        return model(WINDOWS.inputs).logits
    finally:
        for hook in hooks:
            hook.remove()


@pytest.mark.parametrize("name", WITH_WIDTH)
def test_a_narrowed_model_computes_as_if_the_other_neurons_were_silent(name):
    model = tiny(name)
    unchanged = state_of(model)
    generator = torch.Generator().manual_seed(0)
    kept = [torch.randperm(mlp_width(model), generator=generator)[:20].tolist() for _ in layers_of(model)]
    with torch.no_grad():
        narrow = narrow_mlps(model, kept)
        torch.testing.assert_close(narrow(WINDOWS.inputs).logits, silenced(model, kept), rtol=1e-4, atol=1e-4)
    assert mlp_width(narrow) == 20 and unchanged()


@pytest.mark.parametrize("name", WITH_WIDTH)
def test_a_narrowed_model_is_saved_and_opened_by_plain_transformers(name, tmp_path):
    model = tiny(name)
    narrow = narrow_mlps(model, every(model, range(20)))
    narrow.save_pretrained(tmp_path)
    again, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["mismatched_keys"]
    with torch.no_grad():
        assert torch.equal(again(WINDOWS.inputs).logits, narrow(WINDOWS.inputs).logits)


@pytest.mark.parametrize("name", WITH_WIDTH)
def test_the_width_student_has_the_parameters_of_the_shallower_one(name):
    model = tiny(name)
    shallow = drop_layers(model, Plan(len(layers_of(model)), (2,), "by hand")).num_parameters()
    width = width_of_size(model, shallow)
    narrow = narrow_mlps(model, every(model, range(width))).num_parameters()
    others = [narrow_mlps(model, every(model, range(other))).num_parameters() for other in (width - 1, width + 1)]
    assert abs(narrow - shallow) <= min(abs(other - shallow) for other in others)


@pytest.mark.parametrize("name", WITH_WIDTH)
def test_importance_is_the_error_that_leaving_a_neuron_out_makes(name):
    model = tiny(name)
    importance = neuron_importance(model, WINDOWS)
    assert importance.shape == (len(layers_of(model)), mlp_width(model))
    module, seen = mlp_outputs(model)[1], []
    hook = module.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        model(WINDOWS.inputs)
        hook.remove()
        activation = seen[0].flatten(0, -2)[WINDOWS.mask.flatten()].clone()  # (n, width)
        without = activation.clone()
        without[:, 5] = 0
        error = (module(activation) - module(without)).norm()
    assert float(importance[1, 5]) == pytest.approx(float(error), rel=1e-3)


def test_what_cannot_be_narrowed_is_refused():
    with pytest.raises(ValueError, match="the config of BloomForCausalLM does not state the width"):
        mlp_width(tiny("bloom"))
    model = tiny("llama", intermediate_size=32)  # as wide as the hidden states: its maps cannot be told apart
    with pytest.raises(ValueError, match="has not exactly one map of 32 inputs"):
        mlp_outputs(model)


@pytest.mark.parametrize(
    ("kept", "sentence"),
    [
        ([range(20)] * 4, "names neurons of 4 layers: 5 are wanted"),
        ([range(20)] * 4 + [range(19)], "equally many different ones"),
        ([[0, 0, 1]] * 5, "equally many different ones"),
        ([range(48)] * 5, "width=48 neurons to keep: this model's MLPs of 48 allow 1..47"),
    ],
    ids=str,
)
def test_neurons_that_do_not_fit_are_refused(kept, sentence):
    with pytest.raises(ValueError, match=sentence):
        narrow_mlps(tiny("llama"), kept)


def test_a_size_out_of_reach_is_refused():
    model = tiny("llama")
    with pytest.raises(ValueError, match="cannot be reached by narrowing the MLPs"):
        width_of_size(model, 1_000)
    with pytest.raises(ValueError, match="cannot be reached by narrowing the MLPs"):
        width_of_size(model, model.num_parameters())
