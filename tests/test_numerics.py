"""The environment in which kernels compute."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from depthprune_study import numerics

ROOT = Path(__file__).resolve().parents[1]
CAPABILITY = "import torch; print(torch.backends.cpu.get_cpu_capability())"


@pytest.mark.skipif(not numerics.has_avx2(), reason="this CPU has no AVX2")
@pytest.mark.parametrize(("given", "used"), [("", "AVX2"), ("default", "DEFAULT")])
def test_kernels_use_avx2_unless_the_user_says_otherwise(given: str, used: str) -> None:
    environment = {k: v for k, v in os.environ.items() if k not in numerics.AVX2}
    environment |= {"ATEN_CPU_CAPABILITY": given} if given else {}
    settle = "from depthprune_study import numerics; numerics.settle(); "
    done = subprocess.run(
        [sys.executable, "-c", settle + CAPABILITY],
        env=environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == [used], done.stderr


def test_an_older_cpu_keeps_its_own_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numerics, "has_avx2", lambda: False)
    for name in numerics.AVX2:
        monkeypatch.delenv(name, raising=False)
    numerics.settle()
    assert not set(numerics.AVX2) & set(os.environ)
