"""What every test of the core starts from: no network, few threads, warnings of our own package as errors."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported: a test that reached for the hub would fail

import hypothesis  # noqa: F401  early: its plugin would bring it in when the tests are over, which Python 3.11.7 may break (CPython 106905)
import pytest
import torch
from tiny import tiny, tiny_windows
from transformers import PreTrainedModel

from depthprune_core.text import Windows

if "OMP_NUM_THREADS" not in os.environ:
    torch.set_num_threads(min(2, os.cpu_count() or 1))  # the models are tiny: more threads only wait for each other

LONG = (
    "test_verify.py",
    "test_kill.py",
    "test_nbval.py",
    "test_colab.py",
    "test_corruption.py",
    "test_page.py",
    "test_teams.py",
    "test_report.py",
    "test_run.py",
    "test_figures.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files of long tests come first, so that two processes end at about the same time."""
    items.sort(key=lambda item: item.path.name not in LONG)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("filterwarnings", "error:::depthprune_core")


@pytest.fixture
def writable() -> Iterator[Callable[[Path], Callable[[bool], object]]]:
    """Of a folder, what makes it read-only or writable again. For root, whom no mode stops, a disk of its own is mounted over it, empty
    at first; skipped where that is not allowed.
    """
    folders: list[Path] = []

    def of(folder: Path) -> Callable[[bool], object]:
        if os.geteuid() == 0:
            if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", folder], capture_output=True).returncode:
                pytest.skip("needs the right to mount a folder")
            folders.append(folder)
            return lambda to: subprocess.run(["mount", "-o", f"remount,{'rw' if to else 'ro'}", folder], check=True)
        folders.append(folder)
        return lambda to: folder.chmod(0o700 if to else 0o500)

    yield of
    for folder in folders:
        if os.geteuid() == 0:
            subprocess.run(["umount", "-l", folder], check=True)
        else:
            folder.chmod(0o700)


@pytest.fixture
def windows() -> Windows:
    """Three documents of 29, 12 and 5 tokens in five windows of 12: two of them padded."""
    return tiny_windows()


@pytest.fixture(params=["gpt2", "llama"])
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    """One tiny model of each family."""
    return tiny(request.param)
