"""Checks before the first notebook runs: models, texts, packages."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from depthprune_core.sources import SOURCES
from depthprune_study import parameters, paths, provenance
from depthprune_study.errors import StudyError

MODELS, TEXTS = ("model", "models"), ("text", "texts", "elsewhere")  # names of parameters
Parameters = Mapping[str, Mapping[str, Any]]  # notebook -> name -> value


def absolute(values: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters with absolute local paths, because a notebook runs in another folder."""
    found = dict(values)
    for name in _naming(values, *MODELS, *TEXTS):
        given = values[name]
        found[name] = [_absolute(v) for v in given] if isinstance(given, list) else _absolute(given)
    return found


def contents(values: Mapping[str, Any]) -> dict[str, str]:
    """Path -> hash of each local model and text, and of the shipped data."""
    local = [_parted(v)[0] for v in _named(values, *MODELS, *TEXTS) if os.path.isabs(v)]
    found = {str(path): _hash_of(path) for path in local if path}
    return found | {path.name: _hash_of(path) for path in shipped() if path.exists()}


def shipped() -> tuple[Path, ...]:
    """The texts and models that come with the package."""
    return paths.CODE / "depthprune_core" / "data", paths.models()


def fetch(steps: Parameters, say: Callable[[str], None]) -> None:
    """Fetch and check every model and text before any notebook runs.

    Raises StudyError.
    """
    _check_packages()
    for values in steps.values():
        parameters.check_extras(values)
    models = {name for values in steps.values() for name in _named(values, *MODELS)}
    texts = {name for values in steps.values() for name in _named(values, *TEXTS)}
    if models | texts:
        from depthprune_study.runner import kernels  # late: slow to load

        say(f"fetching or checking in the cache: {', '.join(sorted(texts | models))}")
        kernels.apart(_fetch, sorted(models), sorted(texts), dict(steps), paths.cache())


def _fetch(model_names: list[str], texts: list[str], steps: Parameters, cached: Path) -> None:
    from transformers.utils import logging  # late: torch

    from depthprune_core import models, splits

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        for name in texts:
            splits.split_named(name, cache=cached)
        for name in model_names:
            models.fetch_only(name, cache=cached)
        for notebook, values in steps.items():
            if values.get("model"):
                _check_depth(notebook, values, models.depth(values["model"]))
    except (ValueError, RuntimeError) as error:
        raise StudyError(str(error)) from None


def _check_depth(notebook: str, values: Mapping[str, Any], n_layers: int) -> None:
    """Raises StudyError if a notebook would drop every layer."""
    for name in ("drop_count", "drop_counts"):
        asked = values.get(name, [])
        largest = max(asked, default=0) if isinstance(asked, list) else asked
        most = n_layers - (2 if notebook == "04_transfer" else 1)  # 04 also drops one more
        if largest > most:
            raise StudyError(
                f"{notebook}: {name} must be at most {most}, not {asked}: "
                f"{values['model']} has {n_layers} layers"
            )


def _naming(values: Mapping[str, Any], *kinds: str) -> Iterable[str]:
    """Names of the parameters that name a model or text: `model`, `other_model`, ..."""
    return [n for n in values if n in kinds or any(n.endswith(f"_{kind}") for kind in kinds)]


def _named(values: Mapping[str, Any], *kinds: str) -> list[str]:
    given = [values[name] for name in _naming(values, *kinds)]
    flat = [v for value in given for v in (value if isinstance(value, list) else [value])]
    return [value for value in flat if value]


def _absolute(name: str) -> str:
    path, column = (None, "") if name in SOURCES else _parted(name)
    return name if path is None else f"{path.resolve()}{column}"


def _parted(name: str) -> tuple[Path | None, str]:
    """The local file or folder that a name means, and `:column` behind it; None for other names."""
    where, colon, column = name.rpartition(":")
    for path, rest in ((name, ""), (where, colon + column)):
        if path and os.path.exists(path):
            return Path(path), rest
    return None, ""


def _check_packages() -> None:
    """Raises StudyError for a library outside the declared range: in Colab pip does not check."""
    declared: list[str] = []
    with suppress(importlib.metadata.PackageNotFoundError):  # code that runs uninstalled
        declared = importlib.metadata.requires("depthprune") or []
    for needed in map(Requirement, declared):
        found = provenance.version(needed.name)
        fits = found == "absent" or needed.specifier.contains(found, prereleases=True)
        if needed.marker is None and not fits:
            wanted = f"{needed.name}{needed.specifier}"
            raise StudyError(
                f"{wanted} is needed, not {needed.name} {found}: pip install '{wanted}'"
            )


def _hash_of(path: Path) -> str:
    """Hash of a file, or of a folder's files without documentation."""
    files = [path] if path.is_file() else sorted(f for f in path.rglob("*") if f.is_file())
    stats = [(f, f.stat()) for f in files if f.suffix not in {".md", ".ipynb", ".pyc"}]
    hashes = [f"{f.name} {_hash(f, s.st_size, s.st_mtime_ns)}" for f, s in stats]
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()


@cache
def _hash(path: Path, size: int, mtime_ns: int) -> str:
    """Cached until the file changes: every notebook needs the hash of the same weights."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
