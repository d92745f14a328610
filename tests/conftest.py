"""What every test starts from: no network, few threads, warnings of our packages as errors."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers: a test that reaches for the hub fails

import pytest
import torch
from tiny import tiny, tiny_windows
from transformers import PreTrainedModel
from transformers.utils import logging

from depthprune_core.text import Windows

if "OMP_NUM_THREADS" not in os.environ:
    torch.set_num_threads(min(2, os.cpu_count() or 1))  # on tiny models more threads only wait
logging.disable_progress_bar()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("filterwarnings", "error:::depthprune_core")
    config.addinivalue_line("filterwarnings", "error:::depthprune_study")


@pytest.fixture
def writable() -> Iterator[Callable[[Path], Callable[[bool], object]]]:
    """Of a folder, what makes it read-only or writable again.

    For root, whom no mode stops, a disk is mounted over it, empty at first; skipped where that is
    not allowed.
    """
    folders: list[Path] = []

    def of(folder: Path) -> Callable[[bool], object]:
        folders.append(folder)
        if os.geteuid() != 0:
            return lambda to: folder.chmod(0o700 if to else 0o500)
        mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", folder]
        if subprocess.run(mount, capture_output=True).returncode:
            pytest.skip("needs the right to mount a folder")
        return lambda to: subprocess.run(
            ["mount", "-o", f"remount,{'rw' if to else 'ro'}", folder], check=True
        )

    yield of
    for folder in folders:
        if os.geteuid() == 0:
            subprocess.run(["umount", "-l", folder], check=False, capture_output=True)
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
