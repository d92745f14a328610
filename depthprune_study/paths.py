"""Where things are: notebooks, parameters, runs, reports, cache; in a checkout and installed."""

from __future__ import annotations

import os
from pathlib import Path

REPOSITORY = "depthprune/depthprune"
BRANCH = "main"

PACKAGE = Path(__file__).resolve().parent
CODE = PACKAGE.parent  # the folder that holds both packages


def checkout() -> Path | None:
    """The root of the repository that this code lies in; None where the package is installed."""
    return CODE if (CODE / "pyproject.toml").is_file() and (CODE / "notebooks").is_dir() else None


def home() -> Path:
    """Where runs and reports go: DEPTHPRUNE_HOME, else the checkout, else the current folder."""
    given = os.environ.get("DEPTHPRUNE_HOME")
    return Path(given).expanduser().resolve() if given else checkout() or Path.cwd()


def shipped(name: str) -> Path:
    """A folder of the repository, which lies in the package's `data` where that is installed."""
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
    """Where a study works (git-ignored). DEPTHPRUNE_RUNS moves it, to a drive for example."""
    return _moved("DEPTHPRUNE_RUNS", "runs") / study


def reports(study: str) -> Path:
    """Where a finished study is published. DEPTHPRUNE_REPORTS moves it."""
    return _moved("DEPTHPRUNE_REPORTS", "reports") / study


def cache() -> Path:
    """Fetched files, checked by hash when they are used. DEPTHPRUNE_CACHE moves it."""
    if os.environ.get("DEPTHPRUNE_CACHE") or checkout() is not None:
        return _moved("DEPTHPRUNE_CACHE", ".cache")
    import platformdirs  # late: only an installed package asks

    return platformdirs.user_cache_path("depthprune")


def _moved(variable: str, default: str) -> Path:
    """A relative path counts from home: a notebook works in another folder than its command."""
    return home() / Path(os.environ.get(variable) or default).expanduser()
