"""Paths of notebooks, parameters, runs, reports and cache, in a checkout or installed."""

from __future__ import annotations

import os
from pathlib import Path

REPOSITORY = "depthprune/depthprune"
BRANCH = "main"

PACKAGE = Path(__file__).resolve().parent
CODE = PACKAGE.parent  # the folder that holds both packages


def checkout() -> Path | None:
    """The root of the repository that holds this code; None if the package is installed."""
    return CODE if (CODE / "pyproject.toml").is_file() and (CODE / "notebooks").is_dir() else None


def home() -> Path:
    """Where runs and reports go: DEPTHPRUNE_HOME, else the checkout, else the current folder."""
    given = os.environ.get("DEPTHPRUNE_HOME")
    return Path(given).expanduser().resolve() if given else checkout() or Path.cwd()


def shipped(name: str) -> Path:
    """A folder of the repository; in an installed package, the same folder below `data`."""
    root = checkout()
    return root / name if root else PACKAGE / "data" / name


def notebooks() -> Path:
    """The folder of the notebooks."""
    return shipped("notebooks")


def params() -> Path:
    """The folder of the studies' parameters, of claims.yaml and recipe.yaml."""
    return shipped("params")


def models() -> Path:
    """The folder of the models that come with the package."""
    root = checkout()
    return root / "models" if root else CODE / "depthprune_core" / "data" / "models"


def runs(study: str) -> Path:
    """The working folder of a study (git-ignored). DEPTHPRUNE_RUNS moves it, e.g. to a drive."""
    return _moved("DEPTHPRUNE_RUNS", "runs") / study


def reports(study: str) -> Path:
    """Where a finished study is published. DEPTHPRUNE_REPORTS moves it."""
    return _moved("DEPTHPRUNE_REPORTS", "reports") / study


def cache() -> Path:
    """The folder of fetched files, checked by hash at use. DEPTHPRUNE_CACHE moves it."""
    if os.environ.get("DEPTHPRUNE_CACHE") or checkout() is not None:
        return _moved("DEPTHPRUNE_CACHE", ".cache")
    import platformdirs  # late: only an installed package needs it

    return platformdirs.user_cache_path("depthprune")


def _moved(variable: str, default: str) -> Path:
    """A relative path starts at home, because a notebook runs in another folder."""
    return home() / Path(os.environ.get(variable) or default).expanduser()
