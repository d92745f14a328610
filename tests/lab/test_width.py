"""Narrower MLPs: the control that takes the same parameters from every layer."""

from __future__ import annotations

import pytest
import torch
from tiny import ARCHITECTURES, layers_of, state_of, tiny, tiny_windows
from transformers import AutoModelForCausalLM

from depthprune_core.mlps import mlp_outputs, mlp_width
from depthprune_core.pruning import drop_layers
from depthprune_core.records import Plan
from depthprune_study.lab.rivals.width import narrow_mlps, neuron_importance, width_of_size

WINDOWS = tiny_windows()
WITH_WIDTH = [name for name in ARCHITECTURES if name != "bloom"]
THREE = ["gpt2", "llama", "opt"]  # n_inner, intermediate_size, ffn_dim


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
@torch.no_grad()
def test_a_narrowed_model_computes_as_if_the_other_neurons_were_silent_and_opens_so(name, tmp_path):
    model = tiny(name)
    unchanged = state_of(model)
    generator = torch.Generator().manual_seed(0)
    width = mlp_width(model)
    kept = [torch.randperm(width, generator=generator)[:20].tolist() for _ in layers_of(model)]
    narrow = narrow_mlps(model, kept)
    logits = narrow(WINDOWS.inputs).logits
    torch.testing.assert_close(logits, silenced(model, kept), rtol=1e-4, atol=1e-4)
    assert mlp_width(narrow) == 20 and unchanged()
    narrow.save_pretrained(tmp_path)
    again, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["mismatched_keys"]
    assert torch.equal(again(WINDOWS.inputs).logits, logits)


@pytest.mark.parametrize("name", THREE)
def test_the_narrowed_student_has_the_parameters_of_the_shallower_one(name):
    model = tiny(name)
    plan = Plan(len(layers_of(model)), (2,), "by hand")
    shallow = drop_layers(model, plan, share=True).num_parameters()
    width = width_of_size(model, shallow)
    sizes = [
        narrow_mlps(model, every(model, range(w))).num_parameters()
        for w in range(width - 1, width + 2)
    ]
    assert abs(sizes[1] - shallow) == min(abs(size - shallow) for size in sizes)


@pytest.mark.parametrize("name", THREE)
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


@pytest.mark.parametrize("n_parameters", [1_000, 10**9])
def test_a_size_out_of_reach_is_refused(n_parameters):
    with pytest.raises(ValueError, match="is out of reach: narrower MLPs allow"):
        width_of_size(tiny("llama"), n_parameters)
