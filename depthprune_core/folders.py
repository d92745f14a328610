"""Whether a model folder is whole: said in one sentence, before a library trips over it or a broken number is used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from depthprune_core.fetching import check_hashes

HUB_FILES = [
    "*.safetensors",
    "*.json",
    "*.txt",
    "*.model",
    "*.jinja",
]  # no code, and weights in no other format
WEIGHTS, INDEX, CONFIG = "*.safetensors", "model.safetensors.index.json", "config.json"
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


def check(folder: Path) -> None:
    """Raises ValueError unless the folder has a config that transformers knows, whole safetensors files of finite numbers in the
    shapes that the config asks for, and a tokenizer, and all that the hub's client keeps there is what was fetched. Remote code is
    never run, pickled weights are never opened.
    """
    folder = Path(folder)
    check_hashes(folder, files=HUB_FILES)
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


def check_fit(model: PreTrainedModel, tokenizer: Any, name: str) -> None:
    """Raises ValueError where the tokenizer can give a token that the model has no embedding for."""
    n_tokens, n_rows = len(tokenizer), model.get_input_embeddings().weight.shape[0]
    if n_tokens > n_rows:
        raise ValueError(
            f"model {name}: its tokenizer has {n_tokens:,} tokens, but the model embeds {n_rows:,}: they do not fit"
        )


def _shapes(folder: Path) -> dict[str, torch.Size]:
    """Name -> shape of every tensor that a model of this config has."""
    if not (folder / CONFIG).is_file():
        raise ValueError(f"model folder {folder} holds no {CONFIG}")
    try:
        config = AutoConfig.for_model(**json.loads((folder / CONFIG).read_text(encoding="utf-8")))
    except Exception as error:  # the library says many things of a bad config, over many lines
        reason = " ".join(str(error).split())[:160]
        raise ValueError(
            f"model folder {folder}: its {CONFIG} is not one that transformers knows ({reason})"
        ) from None
    if type(config) not in AutoModelForCausalLM._model_mapping:
        raise ValueError(
            f"model folder {folder} holds a {config.model_type}: only causal language models can be read"
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
                        f"weights {file}: tensor {name} has shape {tuple(tensor.shape)}, its config wants {tuple(wanted[name])}"
                    )
                if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                    raise ValueError(
                        f"weights {file}: tensor {name} holds numbers that are not finite"
                    )
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"weights {file} are damaged ({' '.join(str(error).split())[:80]})"
        ) from None
