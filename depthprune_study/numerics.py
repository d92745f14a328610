"""How torch computes on a CPU, set in the environment before torch is imported."""

from __future__ import annotations

import os
import platform
from pathlib import Path

SPIN = {"GOMP_SPINCOUNT": "10000"}  # idle OpenMP threads spin only briefly: they slow other work
# One instruction set (torch's own kernels, then MKL's): x86 CPUs with AVX2 then round alike, given
# the same number of threads, and a study can go on on another machine.
AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "MKL_CBWR": "AVX2"}


def settle() -> None:
    """Set what the environment does not set yet; kernels inherit it."""
    for name, value in (SPIN | (AVX2 if has_avx2() else {})).items():
        os.environ.setdefault(name, value)


def has_avx2() -> bool:
    """Whether this is known to be an x86 CPU with AVX2."""
    cpu = Path("/proc/cpuinfo")
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    return x86 and cpu.is_file() and " avx2 " in cpu.read_text(encoding="utf-8")
