"""A model folder as a GGUF file that llama.cpp loads: the Llama and the GPT-2 family."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from depthprune_core import folders, models
from depthprune_study import gguf_tokenizer, places
from depthprune_study.settings import StudyError

TYPES = {"f32": (np.float32, gguf.LlamaFileType.ALL_F32), "f16": (np.float16, gguf.LlamaFileType.MOSTLY_F16)}
TOLERANCE = {"f32": 1e-4, "f16": 0.05}  # of logits, relative to the largest: what rounding explains


def convert(folder: Path, target: Path, *, kind: str = "f16") -> PreTrainedModel:
    """Write `target` from a folder that `save_pretrained` wrote, under a temporary name first; open it and compare logits.

    Matrices are kept as `kind` (f32 or f16), vectors as f32. Returns the model as opened from the file (by transformers).

    Raises ValueError or StudyError for a folder that is not whole, another architecture, a tokenizer that no such file can describe, a
    number too large for f16, or where what was opened is not what was written.
    """
    if kind not in TYPES:
        raise StudyError(f"type {kind!r} is not known: name one of {', '.join(TYPES)}")
    folder, target = Path(folder), Path(target)
    if target.exists():
        raise StudyError(f"{target} is there already: name another file, nothing is overwritten")
    folders.check(folder)
    model, tokenizer = models.load(str(folder.resolve()), cache=places.cache())
    folders.check_fit(model, tokenizer, str(folder))
    family = FAMILIES.get(model.config.model_type)
    if family is None:
        raise StudyError(f"{folder} holds a {model.config.model_type}: GGUF files are written for {', '.join(FAMILIES)}")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".gguf-") as building:
        written = Path(building) / target.name
        writer = gguf.GGUFWriter(written, arch=model.config.model_type)
        try:
            writer.add_name(folder.name)
            writer.add_file_type(TYPES[kind][1])
            family(writer, model.config)
            gguf_tokenizer.add(writer, folder, tokenizer)
            for name, data in _tensors(model):
                writer.add_tensor(name, _as(kind, name, data))
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        finally:
            writer.close()
        opened = _opened(written, model, kind)
        os.replace(written, target)
    return opened


def _like_llama(writer: gguf.GGUFWriter, config: Any) -> None:
    if getattr(config, "attention_bias", False) or getattr(config, "mlp_bias", False):
        raise StudyError("a Llama with biases has no place for them in a GGUF file")
    if config.hidden_act != "silu":
        raise StudyError(f"hidden_act={config.hidden_act!r}: llama.cpp computes a Llama with silu alone")
    rope = config.rope_parameters
    if rope.get("rope_type", "default") != "default":
        raise StudyError(f"rope_type={rope['rope_type']!r}: GGUF files are written for plain rotary positions alone")
    _add_shape(writer, config, width=config.intermediate_size)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(rope["rope_theta"])
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_rope_dimension_count(head_dim)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)


def _like_gpt2(writer: gguf.GGUFWriter, config: Any) -> None:
    if config.activation_function not in ("gelu_new", "gelu_pytorch_tanh"):
        raise StudyError(f"activation_function={config.activation_function!r}: llama.cpp computes GPT-2 with gelu_new alone")
    if not config.scale_attn_weights or config.scale_attn_by_inverse_layer_idx:
        raise StudyError(
            "a GPT-2 whose attention is scaled in another way than the usual one is computed otherwise by llama.cpp"
        )
    _add_shape(writer, config, width=config.n_inner or 4 * config.hidden_size)
    writer.add_layer_norm_eps(config.layer_norm_epsilon)


FAMILIES: dict[str, Callable[[gguf.GGUFWriter, Any], None]] = {"llama": _like_llama, "gpt2": _like_gpt2}


def _add_shape(writer: gguf.GGUFWriter, config: Any, *, width: int) -> None:
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(width)
    writer.add_head_count(config.num_attention_heads)


def _tensors(model: PreTrainedModel) -> Iterator[tuple[str, np.ndarray]]:
    """GGUF's name and layout of every parameter; a tied head is left out, as llama.cpp takes the embedding for it."""
    config = model.config
    architecture = next(known for known, name in gguf.MODEL_ARCH_NAMES.items() if name == config.model_type)
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    transposed = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, Conv1D)}
    for name, p in model.named_parameters():
        known = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if known is None:
            raise StudyError(f"parameter {name} has no name in a GGUF file of this architecture")
        data = p.detach().float().numpy()
        if name in transposed:
            data = data.T
        if config.model_type == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            n_heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            data = _turned_pairwise(data, n_heads)
        yield known, np.ascontiguousarray(data)


def _turned_pairwise(data: np.ndarray, n_heads: int) -> np.ndarray:
    """Rows of a query or key map in llama.cpp's order: it turns neighbours, transformers turns halves.  (heads * dim, d)"""
    halves = data.reshape(n_heads, 2, data.shape[0] // n_heads // 2, *data.shape[1:])
    return halves.swapaxes(1, 2).reshape(data.shape)


def _as(kind: str, name: str, data: np.ndarray) -> np.ndarray:
    if data.ndim < 2:
        return data.astype(np.float32)
    largest = float(np.abs(data).max())
    if kind == "f16" and largest > float(np.finfo(np.float16).max):
        raise StudyError(f"tensor {name} reaches {largest:g}, which f16 cannot hold: write f32")
    return data.astype(TYPES[kind][0])


def _opened(path: Path, model: PreTrainedModel, kind: str) -> PreTrainedModel:
    config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
    if config.model_type == "gpt2":  # of which transformers reads neither out of the file
        config.n_positions, config.n_inner = model.config.n_positions, model.config.n_inner
    options = {"config": config, "dtype": torch.float32}
    opened = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, **options).eval()
    ids = torch.arange(min(64, model.config.vocab_size, model.config.max_position_embeddings))[None]
    with torch.no_grad():
        ours, theirs = opened(ids).logits, model(ids).logits
    apart = float((ours - theirs).abs().max() / theirs.abs().max())
    if not apart <= TOLERANCE[kind]:
        raise StudyError(f"the written file does not compute what the folder does: logits are {apart:.1e} of the largest apart")
    return opened
