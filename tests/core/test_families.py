# ruff: noqa: C408 - a line of keywords reads best here
"""Decoder families of transformers, one line each: each cut is right as saved, or refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import plain_logits, skipping
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from depthprune_core import pruning
from depthprune_core.anatomy import anatomy
from depthprune_core.records import Plan

N = 6
IDS = torch.randint(3, 64, (2, 24), generator=torch.Generator().manual_seed(0))
SHAPE = dict(vocab_size=64, hidden_size=32, num_hidden_layers=N, num_attention_heads=4)
SHAPE |= dict(num_key_value_heads=2, intermediate_size=48, max_position_embeddings=64)
SHAPE |= dict(bos_token_id=0, eos_token_id=1, pad_token_id=2)
OLD = dict(vocab_size=64, n_embd=32, n_layer=N, n_head=4, n_positions=64)
MPT = dict(vocab_size=64, d_model=32, n_layers=N, n_heads=4, max_seq_len=64, expansion_ratio=2)
XGLM = dict(vocab_size=64, d_model=32, num_layers=N, attention_heads=4, ffn_dim=48)
NEO = dict(vocab_size=64, hidden_size=32, num_layers=N, num_heads=4, window_size=6)
HEAD = dict(head_dim=8)
TYPES = ["sliding_attention", "full_attention"] * 3
SLIDING = dict(sliding_window=6, layer_types=TYPES)
EXPERTS = dict(num_experts=4, num_experts_per_tok=2)
LOCAL = dict(num_local_experts=4, num_experts_per_tok=2)
ROUTED = dict(n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=24)
ROUTED |= dict(n_shared_experts=1, n_group=2, topk_group=1)
LATENT = dict(q_lora_rank=16, kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=4)
LATENT |= dict(v_head_dim=8, num_key_value_heads=4)
DEEP = ROUTED | LATENT
QWEN_MOE = EXPERTS | dict(moe_intermediate_size=24)
GEMMA4 = HEAD | SLIDING | dict(hidden_size_per_layer_input=0, num_kv_shared_layers=0)
ERNIE = dict(moe_num_experts=4, moe_k=2, moe_intermediate_size=24, moe_num_shared_experts=1)
LLAMA4 = LOCAL | HEAD | dict(intermediate_size_mlp=48, attention_chunk_size=8)
LLAMA4 |= dict(num_experts_per_tok=1, no_rope_layers=[1, 1, 1, 0, 1, 1])
BART = dict(vocab_size=64, d_model=32, encoder_layers=N, decoder_layers=N)
BART |= dict(decoder_attention_heads=4, decoder_ffn_dim=48, max_position_embeddings=64)
INDEXED = DEEP | dict(index_n_heads=2, index_head_dim=8, index_topk=4)

WORKS: list[tuple[str, dict[str, Any]]] = [
    ("afmoe", SHAPE | QWEN_MOE | HEAD | dict(num_dense_layers=2, sliding_window=6)),
    ("apertus", SHAPE),
    ("arcee", SHAPE),
    ("aria_text", SHAPE),
    ("biogpt", SHAPE),
    ("bitnet", SHAPE),
    ("bloom", dict(vocab_size=64, hidden_size=32, n_layer=N, n_head=4)),
    ("codegen", OLD | dict(rotary_dim=4)),
    ("cohere", SHAPE | dict(logit_scale=0.25)),
    ("cohere2", SHAPE | SLIDING | dict(logit_scale=0.25)),
    ("deepseek_v2", SHAPE | DEEP | dict(first_k_dense_replace=1, n_group=1)),
    ("deepseek_v3", SHAPE | DEEP | dict(first_k_dense_replace=2)),
    ("deepseek_v32", SHAPE | INDEXED),
    ("doge", SHAPE),
    ("dots1", SHAPE | ROUTED | HEAD | dict(first_k_dense_replace=2)),
    ("ernie4_5", SHAPE),
    ("ernie4_5_moe", SHAPE | ERNIE | dict(moe_layer_start_index=2)),
    ("exaone4", SHAPE | dict(sliding_window=6, sliding_window_pattern=2)),
    ("falcon", SHAPE | dict(new_decoder_architecture=True, num_kv_heads=2)),
    ("flex_olmo", SHAPE | EXPERTS),
    ("gemma", SHAPE | HEAD),
    ("gemma2", SHAPE | HEAD | SLIDING | dict(final_logit_softcapping=5.0)),
    ("gemma3_text", SHAPE | HEAD | SLIDING),
    ("gemma4_text", SHAPE | GEMMA4 | dict(global_head_dim=8)),
    ("gemma4_text", SHAPE | GEMMA4 | dict(global_head_dim=16)),  # as published
    ("glm", SHAPE | HEAD),
    ("glm4", SHAPE | HEAD),
    ("glm4_moe", SHAPE | ROUTED | HEAD | dict(first_k_dense_replace=2)),
    ("glm4_moe_lite", SHAPE | DEEP),
    ("gpt2", OLD | dict(n_inner=48)),
    ("gpt_bigcode", OLD),
    ("gpt_neo", NEO | dict(attention_types=[[["global", "local"], 3]])),
    ("gpt_neox", SHAPE),
    ("gpt_oss", SHAPE | LOCAL | HEAD | SLIDING),
    ("gptj", OLD | dict(rotary_dim=4)),
    ("granite", SHAPE | dict(logits_scaling=8.0, residual_multiplier=0.5)),
    ("granitemoe", SHAPE | LOCAL | dict(logits_scaling=4.0)),
    ("granitemoeshared", SHAPE | LOCAL | dict(shared_intermediate_size=24)),
    ("hunyuan_v1_dense", SHAPE | HEAD),
    ("hunyuan_v1_moe", SHAPE | HEAD | dict(num_experts=4, moe_topk=2)),
    ("jetmoe", SHAPE | LOCAL | dict(kv_channels=8)),
    ("llama", SHAPE),
    ("llama4_text", SHAPE | LLAMA4 | dict(moe_layers=[1, 3, 5])),
    ("minicpm3", SHAPE | LATENT),
    ("minimax_m2", SHAPE | LOCAL | HEAD | dict(rotary_dim=4)),
    ("ministral", SHAPE | HEAD | dict(sliding_window=6)),
    ("mistral", SHAPE | HEAD | dict(sliding_window=6)),
    ("mixtral", SHAPE | LOCAL),
    ("mpt", MPT),
    ("nanochat", SHAPE),
    ("nemotron", SHAPE),
    ("olmo", SHAPE | dict(clip_qkv=8.0)),
    ("olmo2", SHAPE),
    ("olmo3", SHAPE | SLIDING),
    ("olmoe", SHAPE | EXPERTS),
    ("openai-gpt", OLD),
    ("opt", SHAPE | dict(ffn_dim=48, word_embed_proj_dim=32)),
    ("persimmon", SHAPE),
    ("phi", SHAPE),
    ("phi3", SHAPE),
    ("phimoe", SHAPE | LOCAL),
    ("qwen2", SHAPE | dict(use_sliding_window=True, sliding_window=6, max_window_layers=2)),
    ("qwen2_moe", SHAPE | QWEN_MOE | dict(mlp_only_layers=[0])),
    ("qwen3", SHAPE | HEAD),
    ("qwen3_moe", SHAPE | QWEN_MOE | HEAD | dict(mlp_only_layers=[0, 3])),
    ("seed_oss", SHAPE | HEAD),
    ("smollm3", SHAPE | dict(no_rope_layers=[1, 1, 0] * 2)),
    ("solar_open", SHAPE | HEAD | ROUTED),
    ("stablelm", SHAPE),
    ("starcoder2", SHAPE),
    ("vaultgemma", SHAPE | HEAD | SLIDING),
    ("xglm", XGLM),
]
# Llama in all that matters to a cut, or in test_pruning too: left to the slow tier.
PLAIN = {"apertus", "arcee", "bitnet", "ernie4_5", "gemma", "glm", "glm4", "gpt_neox"}
PLAIN |= {"hunyuan_v1_dense", "llama", "mistral", "nanochat", "nemotron", "olmo", "olmo2"}
PLAIN |= {"persimmon", "phi", "phi3", "qwen3", "seed_oss", "stablelm", "starcoder2"}
STREAMS = HEAD | SLIDING | dict(laurel_rank=8, hidden_size_per_layer_input=8)
STREAMS |= dict(
    num_kv_shared_layers=0, intermediate_size=[48] * N, activation_sparsity_pattern=[0.0] * N
)
PER_LAYER = GEMMA4 | dict(hidden_size_per_layer_input=8, vocab_size_per_layer_input=64)
SHARED = GEMMA4 | dict(num_kv_shared_layers=2, global_head_dim=8)
MAMBA = dict(mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8, mamba_d_state=8, mamba_n_groups=1)
INVERSE = dict(scale_attn_by_inverse_layer_idx=True)
NUMBER, STATE = "depends on its number", "carries a state"
REFUSED: list[tuple[str, dict[str, Any], tuple[int, ...], str]] = [
    ("diffllama", SHAPE, (1,), NUMBER),
    ("gpt2", OLD | INVERSE, (1,), "scales attention by the layer.s number"),
    ("gpt_neox_japanese", SHAPE | dict(intermediate_multiple_size=2), (5,), "use_bias of layer 4"),
    ("gemma3n_text", SHAPE | STREAMS, (1,), "hidden_size_per_layer_input"),
    ("gemma4_text", SHAPE | GEMMA4, (5,), "changes layer_types when it is opened"),
    ("gemma4_text", SHAPE | PER_LAYER, (2,), "hidden_size_per_layer_input"),
    ("gemma4_text", SHAPE | SHARED, (2,), "num_kv_shared_layers"),
    ("glm_moe_dsa", SHAPE | INDEXED, (1,), "hands more from layer to layer"),
    ("ernie4_5_moe", SHAPE | ERNIE | dict(moe_layer_interval=2), (1,), "mlp.class of layer"),
    ("falcon_h1", SHAPE | MAMBA, (1,), STATE),
    ("mamba", SHAPE | dict(state_size=4, conv_kernel=2), (1,), STATE),
    ("rwkv", SHAPE | dict(attention_hidden_size=32), (1,), STATE),
    ("jamba", SHAPE | dict(attn_layer_period=2, attn_layer_offset=1, num_experts=2), (1,), STATE),
    ("minimax", SHAPE, (1,), STATE),
    ("bert", SHAPE, (1,), "computes its logits in a way|lets a token see later ones"),
    ("recurrent_gemma", SHAPE, (1,), "no stack of 6 attention layers"),
    ("bart", BART, (1,), "would keep 6 layers instead of 5"),
    ("electra", SHAPE | dict(embedding_size=16, is_decoder=True), (1,), "computes its logits in a"),
    ("xmod", SHAPE | dict(is_decoder=True), (1,), "cannot be run on tokens alone"),
]


def random_model(name: str, shape: dict[str, Any]) -> PreTrainedModel:
    """Weights large enough that a missing or different layer changes the logits."""
    config = AutoConfig.for_model(name, **shape)
    with torch.random.fork_rng(devices=[]):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            drawn = torch.randn(p.shape, generator=generator)
            p.copy_(0.2 * drawn) if p.ndim > 1 else p.add_(0.1 * drawn)
    return model


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        pytest.param(name, shape, id=name, marks=[pytest.mark.slow] if name in PLAIN else [])
        for name, shape in WORKS
    ],
)
def test_a_cut_is_the_original_without_those_layers_as_it_is_saved_too(name, shape, tmp_path):
    model = random_model(name, shape)
    whole = plain_logits(model, IDS)
    with skipping(model, (1, 2), layers=anatomy(model).layers):
        expected = plain_logits(model, IDS)
    student = pruning.drop_layers(model, Plan(N, (1, 2), "by hand"))
    apart = (plain_logits(student, IDS) - expected).abs().max() / expected.abs().max()
    assert apart < 1e-5 < 1e-3 < (whole - expected).abs().max()
    pruning.check_saved(student, tmp_path)


@pytest.mark.parametrize(
    ("name", "shape", "dropped", "words"), REFUSED, ids=[name for name, *_ in REFUSED]
)
def test_a_cut_that_would_be_another_model_is_refused_in_a_sentence(name, shape, dropped, words):
    model = random_model(name, shape)
    with pytest.raises(ValueError, match=words) as refusal:
        pruning.drop_layers(model, Plan(N, dropped, "by hand"))
    assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 400
