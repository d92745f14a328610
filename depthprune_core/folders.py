"""Checks that a model folder is complete, and opens it without running code from the folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from depthprune_core.decoder import text_config
from depthprune_core.fetching import check_hashes
from depthprune_core.progress import reason

WEIGHTS, CONFIG, ADAPTER = "*.safetensors", "config.json", "adapter_config.json"
HUB_FILES = [WEIGHTS, "*.json", "*.txt", "*.model", "*.jinja"]  # no code, no other weights
KEY_PROBLEMS = ("missing_keys", "unexpected_keys", "mismatched_keys")  # of transformers' report
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def check(folder: Path) -> tuple[PreTrainedModel, Any]:
    """The model without its weights (on the meta device) and the tokenizer of a complete folder.

    Raises ValueError like `opened` and `tokenizer_of`, for weights that are not finite, and for a
    file that differs from the hub's file.
    """
    check_hashes(folder, files=HUB_FILES)
    outline = opened(folder, device_map="meta")
    tokenizer = tokenizer_of(folder, model=outline)
    for file in sorted(folder.glob(WEIGHTS)):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - no mapping
                kind = tensors.get_slice(name).get_dtype()
                if kind not in _DTYPES and (kind.startswith("F") or name.endswith(".weight")):
                    raise ValueError(
                        f"weights {file}: tensor {name} is quantised ({kind}): name the model that "
                        "it was made from"
                    )
                tensor = tensors.get_tensor(name)
                if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                    raise ValueError(
                        f"weights {file}: tensor {name} holds numbers that are not finite"
                    )
    return outline, tokenizer


def opened(folder: Path, **options: Any) -> PreTrainedModel:
    """The folder's causal language model in float32.

    Weights are read only from safetensors files; remote code is never run. Raises ValueError for
    an adapter, a quantised model, another kind of model, and weights that do not fit the config.
    """
    if (folder / ADAPTER).is_file():
        whose = "beside the model" if (folder / CONFIG).is_file() else "and no model"
        raise ValueError(
            f"model folder {folder} holds an adapter ({ADAPTER}) {whose}: merge it into its base "
            "model first (peft: merge_and_unload), and name the folder of what that gives"
        )
    config = config_of(folder)
    quantised = getattr(config, "quantization_config", None)
    quantised = quantised or getattr(text_config(config), "quantization_config", None)
    if quantised:
        method = quantised.get("quant_method", "") if isinstance(quantised, dict) else ""
        raise ValueError(
            f"model folder {folder} is quantised ({method or 'quantization_config'}): layers are "
            "dropped from whole-precision weights, so name the model that it was made from"
        )
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are named below
            **options,
        )
    except Exception as error:  # a damaged file gives whatever its reader stumbles over
        raise ValueError(f"model folder {folder} cannot be opened ({reason(error)})") from None
    for problem in KEY_PROBLEMS:
        # Early GPT-2 files contain masks (h.N.attn.bias) that current releases ignore.
        masks = (".attn.bias", ".attn.masked_bias")
        if names := [key for key in info[problem] if not str(key).endswith(masks)]:
            raise ValueError(
                f"weights of {folder}: {problem.replace('_', ' ')} "
                f"{sorted(map(str, names))[:3]}, so this is another model"
            )
    return model


def config_of(folder: Path) -> Any:
    """The folder's config, which names its model type. Raises ValueError if it is missing."""
    try:
        facts = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        if not isinstance(facts, dict) or not isinstance(facts.get("model_type"), str):
            raise ValueError("it names no model_type")
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # the library says many things of a bad config
        raise ValueError(
            f"model folder {folder} has no {CONFIG} that transformers knows ({reason(error)})"
        ) from None


def tokenizer_of(folder: Path, *, model: PreTrainedModel | None = None, **options: Any) -> Any:
    """A folder's tokenizer.

    Raises ValueError if it is damaged, cannot return the offsets of its tokens in the text, or
    gives a token that the model does not embed.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, **options)
    except Exception as error:
        raise ValueError(
            f"the tokenizer of {folder} cannot be read ({type(error).__name__}: {reason(error)})"
        ) from None
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(
            f"the tokenizer of {folder} ({type(tokenizer).__name__}) has no fast version "
            "(tokenizer.json), so nobody knows where in the text its tokens lie"
        )
    if model is not None and len(tokenizer) > (n_rows := len(model.get_input_embeddings().weight)):
        raise ValueError(
            f"model folder {folder}: its tokenizer has {len(tokenizer):,} tokens, but the model "
            f"embeds {n_rows:,}: they do not fit"
        )
    return tokenizer


def dtypes(folder: Path) -> dict[str, torch.dtype]:
    """Name -> dtype of every tensor in the folder's files."""
    found: dict[str, torch.dtype] = {}
    for file in sorted(folder.glob(WEIGHTS)):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - no mapping
                found[name] = _DTYPES.get(tensors.get_slice(name).get_dtype(), torch.float32)
    return found
