"""Whether the libraries that are here will do, where they were not installed by this package's own ranges (Colab)."""

from __future__ import annotations

import importlib.metadata
import tomllib

from packaging.requirements import Requirement

from depthprune_study import places
from depthprune_study.settings import StudyError

USED = (
    "accelerate",
    "datasets",
    "gguf",
    "numpy",
    "peft",
    "pydantic",
    "safetensors",
    "scipy",
    "tokenizers",
    "torch",
    "transformers",
)


def check() -> None:
    """Raises StudyError for one that a notebook computes with and that is there in a version outside pyproject.toml's range."""
    project = tomllib.loads((places.ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for needed in map(Requirement, project["dependencies"]):
        try:
            found = importlib.metadata.version(needed.name)
        except importlib.metadata.PackageNotFoundError:
            continue
        if needed.name in USED and not needed.specifier.contains(found, prereleases=True):
            raise StudyError(
                f"{needed.name} {found} is here, but {needed.specifier} is needed: `pip install '{needed}'`, then start the kernel again"
            )
