"""Whether a model folder is whole, said in one sentence before a library trips over it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from depthprune_core.decoder import text_config
from depthprune_core.fetching import check_hashes

HUB_FILES = [
    "*.safetensors",
    "*.json",
    "*.txt",
    "*.model",
    "*.jinja",
]  # no code, and weights in no other format
WEIGHTS, INDEX, CONFIG = "*.safetensors", "model.safetensors.index.json", "config.json"
ADAPTER = "adapter_config.json"
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


def check(folder: Path) -> None:
    """Raises ValueError unless the folder holds a whole causal language model.

    It has a config that transformers knows, whole safetensors files of finite numbers in the shapes
    that the config asks for, and a tokenizer, and all that the hub's client keeps there is what was
    fetched. Remote code is never run, pickled weights are never opened.
    """
    folder = Path(folder)
    check_hashes(folder, files=HUB_FILES)
    check_kind(folder)
    files = sorted(folder.glob(WEIGHTS))
    if not files:
        raise ValueError(
            f"model folder {folder} holds no .safetensors file: other weight formats are not read"
        )
    wanted = _shapes(folder)
    _check_index(folder, files)
    for file in files:
        _check_weights(file, wanted)
    if not any((folder / name).is_file() for name in _TOKENIZERS):
        raise ValueError(
            f"model folder {folder} holds no tokenizer: one of {', '.join(_TOKENIZERS)} is wanted"
        )


def check_kind(folder: Path) -> None:
    """Raises ValueError for a folder that is no whole model in plain numbers: an adapter, a
    quantised model, a config that transformers does not know. Reads no weights.
    """
    if (folder / ADAPTER).is_file():
        if not (folder / CONFIG).is_file():
            raise ValueError(
                f"model folder {folder} holds an adapter ({ADAPTER}) and no model: merge it into "
                "its base model first (peft: merge_and_unload), then save that"
            )
        raise ValueError(
            f"model folder {folder} holds an adapter ({ADAPTER}) beside the model, which would be "
            "loaded on top of it: merge it (peft: merge_and_unload), or take it out of the folder"
        )
    config = _config(folder)
    quantisation = getattr(config, "quantization_config", None)
    quantisation = quantisation or getattr(text_config(config), "quantization_config", None)
    if quantisation:
        method = quantisation.get("quant_method", "") if isinstance(quantisation, dict) else ""
        raise ValueError(
            f"model folder {folder} is quantised ({method or 'quantization_config'}): layers are "
            "dropped from whole-precision weights, so name the model that it was made from"
        )


def dtypes(folder: Path) -> dict[str, torch.dtype]:
    """Name -> dtype of every tensor in the folder's files."""
    found: dict[str, torch.dtype] = {}
    for file in sorted(Path(folder).glob(WEIGHTS)):
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - no mapping
                found[name] = _DTYPES.get(opened.get_slice(name).get_dtype(), torch.float32)
    return found


def check_fit(model: PreTrainedModel, tokenizer: Any, name: str) -> None:
    """Raises ValueError where the tokenizer gives a token that the model does not embed."""
    n_tokens, n_rows = len(tokenizer), model.get_input_embeddings().weight.shape[0]
    if n_tokens > n_rows:
        raise ValueError(
            f"model {name}: its tokenizer has {n_tokens:,} tokens, but the model embeds "
            f"{n_rows:,}: they do not fit"
        )


def _shapes(folder: Path) -> dict[str, torch.Size]:
    """Name -> shape of every tensor that a model of this config has."""
    config = _config(folder)
    if type(config) not in AutoModelForCausalLM._model_mapping:
        raise ValueError(
            f"model folder {folder} holds a {config.model_type}: only causal language models can "
            "be read"
        )
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except Exception as error:
        reason = " ".join(str(error).split())[:160]
        raise ValueError(
            f"model folder {folder}: no model can be built from its {CONFIG} ({reason})"
        ) from None
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


def _config(folder: Path) -> Any:
    if not (folder / CONFIG).is_file():
        raise ValueError(f"model folder {folder} holds no {CONFIG}")
    try:
        return AutoConfig.for_model(**json.loads((folder / CONFIG).read_text(encoding="utf-8")))
    except Exception as error:  # the library says many things of a bad config, over many lines
        reason = " ".join(str(error).split())[:160]
        raise ValueError(
            f"model folder {folder}: its {CONFIG} is not one that transformers knows ({reason})"
        ) from None


def _check_index(folder: Path, files: list[Path]) -> None:
    """Of weights in several files: all are there."""
    if not (folder / INDEX).exists():
        return
    try:
        named = set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, AttributeError, TypeError):
        raise ValueError(f"model folder {folder}: {INDEX} is damaged") from None
    if missing := sorted(named - {file.name for file in files}):
        raise ValueError(f"model folder {folder}: {missing[0]} is missing, which {INDEX} names")


def _check_weights(file: Path, wanted: dict[str, torch.Size]) -> None:
    try:
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - no mapping
                tensor = opened.get_tensor(name)
                if name in wanted and tensor.shape != wanted[name]:
                    raise ValueError(
                        f"weights {file}: tensor {name} has shape {tuple(tensor.shape)}, its "
                        f"config wants {tuple(wanted[name])}"
                    )
                if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                    raise ValueError(
                        f"weights {file}: tensor {name} holds numbers that are not finite"
                    )
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"weights {file} are damaged ({' '.join(str(error).split())[:80]})"
        ) from None
