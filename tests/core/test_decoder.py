"""Finding the parts of any decoder, and refusing other models."""

from __future__ import annotations

import pytest
import torch
from tiny import FAMILIES, final_norm_of, state_of, tiny
from torch import nn
from transformers import AutoConfig, AutoModelForMaskedLM, AutoModelForSeq2SeqLM

from depthprune_core.anatomy import anatomy


@pytest.mark.parametrize("name", ["gemma2", "llama", "gpt2"])
def test_decoder_accepts_a_model_in_bfloat16(name):
    assert len(anatomy(tiny(name).to(torch.bfloat16)).layers) == 5


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
