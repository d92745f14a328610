"""A notebook of its own for each test, with a workspace on small models and few documents."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from depthprune_study import paths
from depthprune_study.lab.workspace import Workspace, open_workspace

NOTEBOOK = "03_recovery"
PARAMETERS = """study: str = "quick"  # folder under runs/
model: str = "llama-tiny"  # named model
text: str = "wikipedia-excerpt"  # named text
max_documents: int = 3  # documents used of each split
seq_len: int = 48  # tokens a window
score_tokens: int = 60  # tokens scored a document
tokens: int = 768  # training tokens
device: str = "cpu"  # auto, cpu or cuda
seed: int = 0  # windows and their order"""

Open = Callable[..., Workspace]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one notebook; runs go below it too."""
    write_notebook(tmp_path, PARAMETERS)
    monkeypatch.setattr(paths, "notebooks", lambda: tmp_path)
    monkeypatch.setenv("DEPTHPRUNE_RUNS", str(tmp_path / "runs"))
    return tmp_path


@pytest.fixture
def open_lab(home: Path) -> Open:
    """Opens the notebook's workspace, as its first cell does; changes go into its parameters."""

    def opened(**changes: Any) -> Workspace:
        return open_workspace(NOTEBOOK, changes)

    return opened


@pytest.fixture
def lab(open_lab: Open) -> Workspace:
    return open_lab()


def write_notebook(folder: Path, parameters: str, *code: str) -> None:
    cells = [cell(parameters, "parameters"), *(cell(source) for source in code)]
    content = {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    (folder / f"{NOTEBOOK}.ipynb").write_text(json.dumps(content))


def cell(source: str, *tags: str) -> dict[str, Any]:
    made = {"cell_type": "code", "source": source, "metadata": {"tags": list(tags)}}
    return {**made, "execution_count": None, "outputs": []}
