"""Tiny random decoders, tokenizers and windows for the tests."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE, WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from depthprune_core.records import Plan
from depthprune_core.text import Windows

VOCABULARY = 128
BYTES = 257  # of byte_tokenizer
# Weights are drawn ten times wider than usual: at 0.02 no test would notice a missing layer.
_COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "bos_token_id": 0,
    "eos_token_id": None,
    "pad_token_id": None,
}
_GROUPED = {"num_key_value_heads": 2, "head_dim": 8}
_SLIDING = {"sliding_window": 6, **_GROUPED}
_SHAPES: dict[str, dict[str, Any]] = {
    "gpt2": {},
    "llama": {"num_key_value_heads": 2},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32, "init_std": 0.2},
    "gpt_neox": {"rotary_pct": 0.5},
    "mistral": _SLIDING,
    "qwen2": {
        "use_sliding_window": True,
        "sliding_window": 6,
        "max_window_layers": 2,
        "num_key_value_heads": 2,
    },
    "qwen3": {"use_sliding_window": True, "max_window_layers": 3, **_SLIDING},
    "gemma2": {
        "final_logit_softcapping": 5.0,
        "attn_logit_softcapping": 10.0,
        "query_pre_attn_scalar": 8,
        **_SLIDING,
    },
    "gemma3_text": {
        "layer_types": ["sliding_attention", "full_attention"] * 3,
        "num_hidden_layers": 6,
        **_SLIDING,
    },
    "phi": {"partial_rotary_factor": 0.5},
    "bloom": {},
}
ARCHITECTURES = tuple(_SHAPES)
FAMILIES = ("gpt2", "llama")


def tiny(name: str, *, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A random model of that architecture, float32, in eval mode; `changes` go into its config."""
    common = dict(_COMMON)
    if name in ("gpt2", "bloom", "opt"):
        del common["intermediate_size"]  # their configs call it otherwise
    config = AutoConfig.for_model(name, **{**common, **_SHAPES.get(name, {}), **changes})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        for p in model.parameters():
            if p.ndim == 1:  # biases of 0 and norms of 1 would hide a parameter that was not copied
                p.data.add_(0.1 * torch.randn_like(p))
    return model.eval()


def tiny_windows(
    *, seed: int = 0, seq_len: int = 12, lengths: tuple[int, ...] = (29, 12, 5)
) -> Windows:
    """Documents of random tokens, cut into windows that begin with BOS (0); the last is padded."""
    generator = torch.Generator().manual_seed(seed)
    documents = [torch.randint(1, VOCABULARY, (n,), generator=generator) for n in lengths]
    pieces = [(i, piece) for i, doc in enumerate(documents) for piece in doc.split(seq_len)]
    targets = torch.zeros(len(pieces), seq_len, dtype=torch.long)
    mask = torch.zeros(len(pieces), seq_len, dtype=torch.bool)
    for row, (_, piece) in enumerate(pieces):
        targets[row, : len(piece)], mask[row, : len(piece)] = piece, True
    inputs = torch.cat([torch.zeros(len(pieces), 1, dtype=torch.long), targets[:, :-1]], dim=1)
    document = torch.tensor([i for i, _ in pieces])
    names = tuple(f"document {i}" for i in range(len(lengths)))
    return Windows(inputs, targets, mask, document, names, tuple(4 * n for n in lengths))


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Token i is the word `w<i>`; token 0 is BOS, EOS and the unknown token."""
    words = Tokenizer(
        WordLevel({"<s>": 0, **{f"w{i}": i for i in range(1, VOCABULARY)}}, unk_token="<s>")
    )
    words.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", eos_token="<s>")


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte (ids 1..256), with offsets; token 0, `<s>`, is BOS and EOS. For models of
    `vocab_size=BYTES`."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<s>": 0, **{letter: i for i, letter in enumerate(alphabet, 1)}}
    letters = Tokenizer(BPE(vocabulary, merges=[]))
    letters.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    letters.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=letters, bos_token="<s>", eos_token="<s>")


def saved(model: PreTrainedModel, folder: Path, **config: Any) -> Path:
    """A model's folder with the byte tokenizer, and these fields of its config.json changed."""
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **config}))
    return folder


def layers_of(model: PreTrainedModel) -> nn.ModuleList:
    """The layers by the architecture's path: a reference for the core's search."""
    paths = {
        "gpt2": "transformer.h",
        "bloom": "transformer.h",
        "opt": "model.decoder.layers",
        "gpt_neox": "gpt_neox.layers",
    }
    return model.get_submodule(paths.get(model.config.model_type, "model.layers"))


def final_norm_of(model: PreTrainedModel) -> nn.Module:
    return model.get_submodule(
        {"gpt2": "transformer.ln_f", "llama": "model.norm"}[model.config.model_type]
    )


@contextmanager
def skipping(
    model: PreTrainedModel, dropped: tuple[int, ...], *, layers: nn.ModuleList | None = None
) -> Iterator[PreTrainedModel]:
    """The original, whose dropped layers return their input, with plain torch hooks.

    `layers`: of an architecture that `layers_of` does not know.
    """

    def skip(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> Any:
        unchanged = args[0] if args else kwargs["hidden_states"]
        return (unchanged, *output[1:]) if isinstance(output, tuple | list) else unchanged

    layers = layers_of(model) if layers is None else layers
    hooks = [layers[layer].register_forward_hook(skip, with_kwargs=True) for layer in dropped]
    try:
        yield model
    finally:
        for hook in hooks:
            hook.remove()


def count_layer_passes(model: PreTrainedModel) -> list[int]:
    """Collects the number of every layer that computes."""
    passes: list[int] = []
    for number, layer in enumerate(layers_of(model)):
        layer.mlp.register_forward_pre_hook(
            lambda module, args, number=number: passes.append(number)
        )
    return passes


@torch.no_grad()
def plain_logits(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    return model(input_ids=ids, use_cache=False).logits


def plain_nll(model: PreTrainedModel, windows: Windows) -> torch.Tensor:
    """NLL of every scored token by a full forward and a plain log-softmax.  (n,) float64"""
    log_q = plain_logits(model, windows.inputs).double().log_softmax(-1)
    return -log_q.gather(-1, windows.targets[..., None])[..., 0][windows.mask]


def owners(windows: Windows) -> torch.Tensor:
    """The document of every scored token.  (n,)"""
    return windows.document[:, None].expand_as(windows.mask)[windows.mask]


def by_document(values: torch.Tensor, windows: Windows) -> list[float]:
    """Sums of one value per token.  (n,) -> one entry per document"""
    return [
        float(values[owners(windows) == document].sum()) for document in range(len(windows.names))
    ]


def plan_of(model: PreTrainedModel, *dropped: int) -> Plan:
    return Plan(len(layers_of(model)), dropped, "by hand")


def weights_of(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """A copy of every parameter."""
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def state_of(model: PreTrainedModel) -> Callable[[], bool]:
    """Stores weights, config, layer numbers and flags; the result checks that none changed."""

    def look() -> tuple[dict[str, torch.Tensor], tuple[Any, ...]]:
        weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        configs = model.config.to_dict(), model.generation_config.to_dict()
        numbers = [getattr(m, "layer_idx", None) for m in model.modules()]
        flags = [(p.requires_grad, p.grad is None) for p in model.parameters()]
        hooks = [
            (len(m._forward_hooks), len(m._forward_pre_hooks), "forward" in vars(m))
            for m in model.modules()
        ]
        return weights, (*configs, numbers, flags, hooks, model.training)

    weights, rest = look()

    def unchanged() -> bool:
        now, rest_now = look()
        same = now.keys() == weights.keys() and rest_now == rest
        return same and all(torch.equal(now[name], weights[name]) for name in weights)

    return unchanged
