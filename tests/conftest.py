"""Set-up of every test: no network, few threads, warnings of our packages as errors."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers: a test that reaches for the hub fails

import pytest
import torch
from tiny import tiny, tiny_windows
from transformers import PreTrainedModel
from transformers.utils import logging

from depthprune_core.text import Windows

if "OMP_NUM_THREADS" not in os.environ:
    torch.set_num_threads(min(2, os.cpu_count() or 1))  # more threads do not help tiny models
logging.disable_progress_bar()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("filterwarnings", "error:::depthprune_core")
    config.addinivalue_line("filterwarnings", "error:::depthprune_study")


@pytest.fixture
def windows() -> Windows:
    """Three documents of 29, 12 and 5 tokens in five windows of 12: two of them padded."""
    return tiny_windows()


@pytest.fixture(params=["gpt2", "llama"])
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    """One tiny model of each family."""
    return tiny(request.param)
