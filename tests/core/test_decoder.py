"""Any decoder's parts, and what is refused."""

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
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
)

from depthprune_core.configs import slice_config
from depthprune_core.decoder import (
    anatomy,
    attention_outputs,
    mlp_outputs,
    mlp_width,
    narrow_config,
)

IDS = tiny_windows().inputs


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_decoder_finds_the_layers_and_computes_the_models_own_logits(name):
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
    assert {name: anatomy(tiny(name)).returns_tuple for name in ("gpt2", "llama", "bloom")} == {
        "gpt2": False,
        "llama": False,
        "bloom": True,
    }


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("name", FAMILIES)
def test_decoder_knows_whether_the_head_is_tied_to_the_embedding(name, tie):
    assert anatomy(tiny(name, tie_word_embeddings=tie)).tied is tie


@pytest.mark.parametrize("name", FAMILIES)
def test_looking_for_the_parts_changes_neither_the_model_nor_the_random_state(name):
    model = tiny(name).train()
    unchanged, random_state = state_of(model), torch.get_rng_state()
    anatomy(model)
    assert unchanged()
    assert torch.equal(torch.get_rng_state(), random_state)


# ---------------------------------------------------------------- what is refused


def tiny_t5() -> nn.Module:
    return AutoModelForSeq2SeqLM.from_config(
        AutoConfig.for_model(
            "t5", d_model=16, d_kv=4, d_ff=16, num_layers=2, num_heads=4, vocab_size=32
        )
    )


def tiny_bert(kind: type) -> nn.Module:
    shape = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "vocab_size": 32,
    }
    return kind.from_config(AutoConfig.for_model("bert", **shape))


def tiny_mamba() -> nn.Module:
    shape = {
        "hidden_size": 16,
        "state_size": 4,
        "num_hidden_layers": 2,
        "vocab_size": 32,
        "conv_kernel": 2,
    }
    return AutoModelForCausalLM.from_config(AutoConfig.for_model("mamba", **shape))


_HYBRID = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 32,
    "pad_token_id": None,
}
_WITH_A_STATE = {
    "mamba": {
        "hidden_size": 16,
        "state_size": 4,
        "num_hidden_layers": 2,
        "vocab_size": 32,
        "conv_kernel": 2,
    },
    "rwkv": {
        "hidden_size": 16,
        "attention_hidden_size": 16,
        "num_hidden_layers": 2,
        "vocab_size": 32,
        "rescale_every": 1,
    },
    "falcon_h1": {
        **_HYBRID,
        "mamba_d_ssm": 32,
        "mamba_n_heads": 4,
        "mamba_d_head": 8,
        "mamba_d_state": 8,
        "mamba_n_groups": 1,
    },
    "jamba": {**_HYBRID, "attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 2},
    "bamba": {
        **_HYBRID,
        "attn_layer_indices": [1],
        "mamba_n_heads": 8,
        "mamba_d_head": 8,
        "mamba_d_state": 8,
    },
    "minimax": _HYBRID,
}


@pytest.mark.parametrize("name", _WITH_A_STATE)
def test_a_model_that_carries_a_state_is_refused_and_left_as_it_was(name):
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(name, **_WITH_A_STATE[name])
    ).eval()
    unchanged = state_of(model)
    with pytest.raises(
        ValueError,
        match=r"carries a state from token .* only transformer decoders can be pruned here$",
    ):
        anatomy(model)
    assert unchanged()


@pytest.mark.parametrize(
    "make",
    [
        tiny_t5,
        lambda: tiny_bert(AutoModelForCausalLM),
        lambda: tiny_bert(AutoModelForMaskedLM),
        tiny_mamba,
        lambda: tiny("gemma3_text", use_bidirectional_attention=True),
    ],
    ids=["encoder-decoder", "encoder-with-lm-head", "encoder", "state-space", "bidirectional"],
)
def test_what_is_no_decoder_is_refused_in_one_sentence(make):
    with pytest.raises(ValueError) as refusal:
        anatomy(make().eval())
    assert "\n" not in str(refusal.value) and 20 < len(str(refusal.value)) < 200


def test_a_backbone_without_a_head_is_refused():
    with pytest.raises(ValueError, match="no language-model head"):
        anatomy(tiny("llama").model)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_head_that_is_no_linear_map_is_refused(name):
    model = tiny(name)
    model.lm_head = nn.Sequential(model.lm_head, nn.Tanh())
    with pytest.raises(
        ValueError,
        match=r"^\w+ has a head that is no linear map \(Sequential\), so it cannot be measured",
    ):
        anatomy(model)


def test_a_model_with_broken_weights_is_refused(model):
    final_norm_of(model).weight.data[3] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        anatomy(model)


def test_scaling_attention_by_the_layers_number_is_refused():
    model = tiny("gpt2", scale_attn_by_inverse_layer_idx=True)
    with pytest.raises(ValueError, match="scale_attn_by_inverse_layer_idx"):
        slice_config(model.config, (0, 2, 3))


# ---------------------------------------------------------------- config


@pytest.mark.parametrize("name", ["qwen2", "qwen3", "gemma2", "gemma3_text"])
def test_layer_types_are_those_of_the_kept_layers(name):
    config = tiny(name).config
    before = list(config.layer_types)
    assert set(before) == {"full_attention", "sliding_attention"}
    new = slice_config(config, (1, 3, 4))
    assert new.num_hidden_layers == 3
    assert new.layer_types == [before[1], before[3], before[4]]
    assert config.layer_types == before and config.num_hidden_layers == len(before)


def test_a_list_of_token_ids_is_not_mistaken_for_one_entry_a_layer():
    config = tiny("llama", num_hidden_layers=4, eos_token_id=[5, 6, 7, 8]).config
    assert slice_config(config, (0, 2)).eos_token_id == [5, 6, 7, 8]


# ---------------------------------------------------------------- where a layer's parts end


@pytest.mark.parametrize("name", FAMILIES)
def test_the_last_maps_of_attention_and_mlp_are_found(name):
    model = tiny(name)
    ends = {"gpt2": ("attn.c_proj", "mlp.c_proj"), "llama": ("self_attn.o_proj", "mlp.down_proj")}
    attention, mlp = ends[name]
    assert attention_outputs(model) == [x.get_submodule(attention) for x in layers_of(model)]
    assert mlp_outputs(model) == [layer.get_submodule(mlp) for layer in layers_of(model)]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_narrower_config_has_that_width_and_no_other_is_taken(name):
    model = tiny(name)
    width = mlp_width(model)
    assert mlp_width(type(model)._from_config(narrow_config(model, width - 1))) == width - 1
    with pytest.raises(ValueError, match=f"this model's MLPs of {width} allow 1..{width - 1}"):
        narrow_config(model, width)
