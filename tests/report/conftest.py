"""A quick bootstrap: these tests only check on which side an interval lies."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from depthprune_study.results.statistics import documents


def quick(samples: tuple[np.ndarray, ...], statistic: Callable) -> tuple[float, float, str]:
    n = len(samples[0])
    rows = np.random.default_rng(0).integers(0, n, size=(200, n))
    low, high = np.percentile(statistic(*(s[rows] for s in samples), axis=-1), [2.5, 97.5])
    return float(low), float(high), ""


@pytest.fixture(autouse=True)
def quick_bootstrap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "bootstrap", quick)
