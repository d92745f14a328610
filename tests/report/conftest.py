"""Few resamples: what these tests ask of an interval is on which side it lies."""

import pytest

from depthprune_study.results import statistics


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "RESAMPLES", 300)
