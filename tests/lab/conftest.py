"""A separate notebook for each test, with a workspace on small models and few documents."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from little_notebook import NOTEBOOK, write_notebook

from depthprune_study import paths
from depthprune_study.lab.workspace import Workspace, open_workspace

Open = Callable[..., Workspace]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one notebook; runs go below it too."""
    path = write_notebook(tmp_path)
    monkeypatch.setattr(paths, "notebooks", lambda: path.parent)
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
