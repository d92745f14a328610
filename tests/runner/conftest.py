"""A toy study, run once; each test gets a copy."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import toy
from toy import enter

from depthprune_study.runner import chain


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
