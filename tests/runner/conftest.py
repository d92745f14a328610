"""A toy study, run once; each test gets a copy."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import toy

from depthprune_study import paths
from depthprune_study.runner import chain


def enter(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in this folder as if it were a checkout; its kernels import the code from here."""
    monkeypatch.setenv("DEPTHPRUNE_HOME", str(folder))
    monkeypatch.setenv("PYTHONPATH", str(toy.ROOT))
    for name in ("DEPTHPRUNE_RUNS", "DEPTHPRUNE_REPORTS", "DEPTHPRUNE_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(paths, "shipped", lambda name: folder / name)
    monkeypatch.setattr("depthprune_study.runner.prepare.shipped", tuple)
    return folder


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The toy study, run to its end."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        folder = enter(toy.build(tmp_path_factory.mktemp("toy")), monkeypatch)
        chain.run("toy", say=lambda line: None, terminal=io.StringIO())
    yield folder


@pytest.fixture
def done(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the finished toy study."""
    shutil.copytree(finished, tmp_path / "toy", copy_function=shutil.copy2)
    return enter(tmp_path / "toy", monkeypatch)


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The toy study, never run."""
    return enter(toy.build(tmp_path / "toy"), monkeypatch)


os.environ.setdefault("OMP_NUM_THREADS", "1")
