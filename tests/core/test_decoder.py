"""Finding the parts of any decoder, and refusing other models."""

from __future__ import annotations

import pytest
import torch
from tiny import (
    ARCHITECTURES,
    FAMILIES,
    final_norm_of,
    layers_of,
    plain_logits,
    state_of,
    tiny,
    tiny_windows,
)
from torch import nn
from transformers import AutoConfig, AutoModelForMaskedLM, AutoModelForSeq2SeqLM

from depthprune_core.anatomy import anatomy
from depthprune_core.configs import slice_config
from depthprune_core.mlps import mlp_outputs, mlp_width, narrow_config

IDS = tiny_windows().inputs


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_decoder_finds_the_layers_and_computes_the_models_logits(name):
    model = tiny(name)
    parts = anatomy(model)
    assert parts.layers is layers_of(model)
    assert model.get_submodule(parts.layers_name) is parts.layers
    with torch.no_grad():
        ours = parts.logits(parts.base(input_ids=IDS, use_cache=False).last_hidden_state)
    torch.testing.assert_close(ours, plain_logits(model, IDS), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["gemma2", "llama", "gpt2"])
def test_decoder_accepts_a_model_in_bfloat16(name):
    assert len(anatomy(tiny(name).to(torch.bfloat16)).layers) == 5


def test_the_probe_sees_whether_a_layer_returns_a_tuple_or_a_bare_tensor():
    returns = {name: anatomy(tiny(name)).returns_tuple for name in ("gpt2", "llama", "bloom")}
    assert returns == {"gpt2": False, "llama": False, "bloom": True}


@pytest.mark.parametrize("name", FAMILIES)
def test_looking_for_the_parts_changes_neither_the_model_nor_the_random_state(name):
    model = tiny(name).train()
    unchanged, random_state = state_of(model), torch.get_rng_state()
    anatomy(model)
    assert unchanged()
    assert torch.equal(torch.get_rng_state(), random_state)


# ---------------------------------------------------------------- what is refused


def with_another_head() -> nn.Module:
    model = tiny("llama")
    model.lm_head = nn.Sequential(model.lm_head, nn.Tanh())
    return model


def with_broken_weights() -> nn.Module:
    model = tiny("gpt2")
    final_norm_of(model).weight.data[3] = float("nan")
    return model


T5 = {"d_model": 16, "d_kv": 4, "d_ff": 16, "num_layers": 2, "num_heads": 4, "vocab_size": 32}
BERT = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "vocab_size": 32}
BERT |= {"num_attention_heads": 2}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: AutoModelForSeq2SeqLM.from_config(AutoConfig.for_model("t5", **T5)),
            "is an encoder-decoder",
        ),
        (
            lambda: AutoModelForMaskedLM.from_config(AutoConfig.for_model("bert", **BERT)),
            "no language-model head|computes its logits in a way|sees? later ones",
        ),
        (lambda: tiny("gemma3_text", use_bidirectional_attention=True), "sees? later ones"),
        (lambda: tiny("llama").model, "no language-model head"),
        (with_another_head, "no language-model head .a linear map."),
        (with_broken_weights, "not finite"),
    ],
    ids=["encoder-decoder", "encoder", "bidirectional", "no head", "another head", "broken"],
)
def test_a_model_that_is_not_a_decoder_is_refused_in_one_sentence(make, words):
    model = make().eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=words) as refusal:
        anatomy(model)
    assert "\n" not in str(refusal.value) and 20 < len(str(refusal.value)) < 200
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor.nan_to_num(), before[name].nan_to_num())


# ---------------------------------------------------------------- config


def test_the_config_follows_the_kept_layers():
    config = tiny("gemma3_text", eos_token_id=[5, 6, 7, 8, 9, 10]).config
    before = list(config.layer_types)
    new = slice_config(config, (1, 3, 4))
    assert new.num_hidden_layers == 3
    assert new.layer_types == [before[1], before[3], before[4]]
    assert new.eos_token_id == [5, 6, 7, 8, 9, 10]  # one token a layer, by chance
    assert config.layer_types == before and config.num_hidden_layers == len(before)


# ---------------------------------------------------------------- the MLPs


@pytest.mark.parametrize(("name", "last"), [("gpt2", "c_proj"), ("llama", "down_proj")])
def test_the_last_map_of_each_mlp_is_found_and_a_narrower_config_narrows_it(name, last):
    model = tiny(name)
    assert mlp_outputs(model) == [layer.mlp.get_submodule(last) for layer in layers_of(model)]
    narrow = type(model)._from_config(narrow_config(model, mlp_width(model) - 1))
    assert mlp_width(narrow) == mlp_width(model) - 1
