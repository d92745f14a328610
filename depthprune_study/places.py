"""Where things lie: the repository, its folders, its address."""

from __future__ import annotations

import os
from pathlib import Path

# Badges and set-up cells are made from this one line (`python -m depthprune_study.places`); a test holds them to it.
REPOSITORY = "depthprune/depthprune"
BRANCH = "main"

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "notebooks"
PARAMS = ROOT / "params"


def runs(study: str) -> Path:
    """Where a run of the study works (git-ignored). DEPTHPRUNE_RUNS moves it, to a mounted drive for example."""
    return _moved("DEPTHPRUNE_RUNS", "runs") / study


def reports(study: str) -> Path:
    """Where a finished study is put to be read. DEPTHPRUNE_REPORTS moves it."""
    return _moved("DEPTHPRUNE_REPORTS", "reports") / study


def cache() -> Path:
    """Fetched and cleaned files, checked by hash whenever they are used. DEPTHPRUNE_CACHE moves it."""
    return _moved("DEPTHPRUNE_CACHE", ".cache")


def assets() -> Path | None:
    """A folder of already fetched files that is looked in first, when DEPTHPRUNE_ASSETS names one."""
    return _moved("DEPTHPRUNE_ASSETS", "") if os.environ.get("DEPTHPRUNE_ASSETS") else None


def _moved(variable: str, default: str) -> Path:
    """A relative path counts from the repository: a notebook works in another folder than the command that runs it."""
    return ROOT / (os.environ.get(variable) or default)


def badge(notebook: str) -> str:
    """Markdown of the Colab badge of a notebook."""
    link = f"https://colab.research.google.com/github/{REPOSITORY}/blob/{BRANCH}/notebooks/{notebook}.ipynb"
    return f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({link})"


def setup_cell() -> str:
    """Source of the set-up cell: nothing outside Colab; there it takes the code from the repository, never a new torch."""
    return f"""import importlib.util
import os
import sys

# Only in Colab, and there once: kernels that a run starts find what the first one has installed.
if "google.colab" in sys.modules and importlib.util.find_spec("depthprune_core") is None:
    !test -d depthprune || git clone --quiet --depth 1 --branch {BRANCH} https://github.com/{REPOSITORY}.git depthprune
    assert os.path.isdir("depthprune"), "the repository could not be cloned: run this cell again"
    !pip install --quiet "mwparserfromhell<0.8" gguf
    !pip install --quiet --no-deps -e depthprune
    sys.path.insert(0, "depthprune")"""


def write_addresses() -> None:
    """Put the badge into each notebook's first cell and the set-up code into its cell tagged `setup`."""
    import nbformat

    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        title, *rest = notebook.cells[0].source.split("\n")
        body = [line for line in rest if not line.startswith("[![Open in Colab]")]
        notebook.cells[0].source = "\n".join([title, "", badge(path.stem), *body]).replace("\n\n\n", "\n\n")
        for cell in notebook.cells:
            if "setup" in cell.metadata.get("tags", []):
                cell.source = setup_cell()
        nbformat.write(notebook, path)


if __name__ == "__main__":
    write_addresses()
