"""What is asked before the first notebook runs: models, texts, packages, the machine."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import platform
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from depthprune_core.sources import SOURCES
from depthprune_study import paths, provenance
from depthprune_study.errors import StudyError

MODELS, TEXTS = ("model", "models"), ("text", "texts", "elsewhere")  # parameters that name some
Parameters = Mapping[str, Mapping[str, Any]]  # notebook -> name -> value


def absolute(values: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters with local folders and files as whole paths: a notebook runs elsewhere."""
    found = dict(values)
    for name in _naming(values, *MODELS, *TEXTS):
        given = values[name]
        found[name] = [_absolute(v) for v in given] if isinstance(given, list) else _absolute(given)
    return found


def contents(values: Mapping[str, Any]) -> dict[str, str]:
    """Path -> hash of each local model and text named, and of the data that is shipped."""
    local = [Path(v) for v in _named(values, *MODELS, *TEXTS) if os.path.isabs(v)]
    found = {str(path): _hash_of(path) for path in local if path.exists()}
    return found | {path.name: _hash_of(path) for path in shipped() if path.exists()}


def shipped() -> tuple[Path, ...]:
    """The texts and models that come with the package."""
    return paths.CODE / "depthprune_core" / "data", paths.models()


def fetch(steps: Parameters, say: Callable[[str], None]) -> None:
    """Get and check every model and text before any notebook runs: what is missing is told at once.

    Raises StudyError.
    """
    _check_packages(steps)
    wanted = {name for values in steps.values() for name in _named(values, *MODELS)}
    texts = {name for values in steps.values() for name in _named(values, *TEXTS)}
    if not wanted | texts:
        return
    from transformers.utils import logging  # late: torch

    from depthprune_core import models, splits

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        for name in sorted(texts):
            say(f"text {name}: fetching, or checking what is cached")
            splits.split_named(name, cache=paths.cache())
        for name in sorted(wanted):
            say(f"model {name}: fetching, or checking what is cached")
            models.fetch_only(name, cache=paths.cache())
        for notebook, values in steps.items():
            if values.get("model"):
                _check_depth(notebook, values, models.depth(values["model"]))
    except (ValueError, RuntimeError) as error:
        raise StudyError(str(error)) from None


def shortcomings(steps: Parameters) -> list[str]:
    """A sentence for each notebook that the machine does not suit. StudyError: it cannot run."""
    asked = {n: v for n, v in steps.items() if v.get("device") == "cuda" or _is_16_bit(v)}
    if not asked:
        return []
    import torch

    cuda = torch.cuda.is_available()
    for notebook, values in asked.items():
        if values.get("device") == "cuda" and not cuda:
            raise StudyError(
                f"{notebook}: device=cuda, but there is no GPU here: write device=auto"
            )
    slow = platform.machine() in ("x86_64", "AMD64")
    slow = slow and torch.backends.cpu.get_cpu_capability() != "AVX512"
    on_cpu = {n: v for n, v in asked.items() if not cuda or v.get("device") == "cpu"}
    return [
        f"{notebook}: precision={values['precision']} can take many times as long as float32 on "
        "this CPU, which has no AVX-512: take a GPU, or precision=auto"
        for notebook, values in on_cpu.items()
        if slow and _is_16_bit(values)
    ]


def download_bytes(steps: Parameters) -> int:
    """About how much the named models of these steps take on the disk, by their shapes."""
    names = {name for values in steps.values() for name in _named(values, *MODELS)}
    return sum(4 * n_parameters(SOURCES[name].shape) for name in names if name in SOURCES)


def n_parameters(shape: Mapping[str, Any] | None) -> int:
    """Parameters of a Llama-like shape, tied tensors once; GPT-2's own where it is all defaults."""
    if shape is None:
        return 0
    if shape["model_type"] == "gpt2":
        return 124_439_808
    width, heads = shape["hidden_size"], shape["num_attention_heads"]
    narrow = width * shape["num_key_value_heads"] // heads
    layer = 2 * width * (width + narrow) + 3 * width * shape["intermediate_size"] + 2 * width
    embeddings = (1 if shape.get("tie_word_embeddings") else 2) * shape["vocab_size"] * width
    return shape["num_hidden_layers"] * layer + embeddings + width


def _naming(values: Mapping[str, Any], *kinds: str) -> Iterable[str]:
    """Names of the parameters that name a model or text: `model`, `other_model`, ..."""
    return [n for n in values if n in kinds or any(n.endswith(f"_{kind}") for kind in kinds)]


def _named(values: Mapping[str, Any], *kinds: str) -> list[str]:
    given = [values[name] for name in _naming(values, *kinds)]
    flat = [v for value in given for v in (value if isinstance(value, list) else [value])]
    return [value for value in flat if value]


def _absolute(name: str) -> str:
    is_local = name and name not in SOURCES and os.path.exists(name)
    return str(Path(name).resolve()) if is_local else name


def _is_16_bit(values: Mapping[str, Any]) -> bool:
    return values.get("precision") in ("bfloat16", "float16")


def _check_packages(steps: Parameters) -> None:
    """Raises StudyError for a library outside the declared range, where pip was told not to look
    (Colab), and for tasks of lm-eval where that is not there.
    """
    declared: list[str] = []
    with suppress(importlib.metadata.PackageNotFoundError):  # code that runs uninstalled
        declared = importlib.metadata.requires("depthprune") or []
    for needed in map(Requirement, declared):
        found = provenance.version(needed.name)
        fits = found == "absent" or needed.specifier.contains(found, prereleases=True)
        if needed.marker is None and not fits:
            wanted = f"{needed.name}{needed.specifier}"
            raise StudyError(f"{needed.name} {found} is here, not {wanted}: pip install '{wanted}'")
    for notebook, values in steps.items():
        asked = any(name.endswith("tasks") and value for name, value in values.items())
        if asked and importlib.util.find_spec("lm_eval") is None:
            raise StudyError(f"{notebook} asks for tasks of lm-eval: pip install lm-eval")


def _check_depth(notebook: str, values: Mapping[str, Any], n_layers: int) -> None:
    """Raises StudyError where a notebook would leave no layer; 0 layers: not known."""
    for name, value in values.items():
        if n_layers and name.endswith(("drop_count", "drop_counts")) and not isinstance(value, str):
            asked = value if isinstance(value, list) else [value]
            if max(asked, default=0) > n_layers - 1:
                most = f"{name} must be at most {n_layers - 1}, not {value}"
                raise StudyError(f"{notebook}: {most}: {values['model']} has {n_layers} layers")


def _hash_of(path: Path) -> str:
    """Of a file, or of a folder's files, without what only people read."""
    files = [path] if path.is_file() else sorted(f for f in path.rglob("*") if f.is_file())
    stats = [(f, f.stat()) for f in files if f.suffix not in {".md", ".ipynb", ".pyc"}]
    hashes = [f"{f.name} {_hash(f, s.st_size, s.st_mtime_ns)}" for f, s in stats]
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()


@cache
def _hash(path: Path, size: int, mtime_ns: int) -> str:
    """Once for a file as it is now: every notebook asks for the same weights."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
