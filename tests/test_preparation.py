"""What is asked before the first notebook runs."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from depthprune_study import preparation, run, settings
from depthprune_study.settings import StudyError


@pytest.mark.parametrize(
    ("processor", "capability", "precision", "told"),
    [
        ("x86_64", "AVX2", "bfloat16", True),
        ("x86_64", "AVX512", "bfloat16", False),
        ("x86_64", "AVX2", "float32", False),
        ("aarch64", "DEFAULT", "bfloat16", False),
    ],
)
def test_a_precision_that_this_cpu_is_slow_at_is_told_before_any_work(
    monkeypatch: pytest.MonkeyPatch, processor: str, capability: str, precision: str, told: bool
) -> None:
    monkeypatch.setattr(preparation.platform, "machine", lambda: processor)
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: capability)
    step = run.Step("03_recovery", {"precision": precision, "device": "cpu"}, "key", False, 0.0)
    warning = (
        f"03_recovery: precision={precision} can take many times as long as float32 on this CPU, which has no AVX-512: "
        "a GPU is wanted, or precision=auto"
    )
    assert preparation.slow_precisions([step]) == ([warning] if told else [])


def test_a_host_without_a_gpu_fetches_for_cells_that_run_on_one_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    step = run.Step("sweeps/cell", {"precision": "bfloat16", "device": "cuda"}, "key", False, 0.0)
    preparation.fetch([step], lambda line: pytest.fail(line))
    with pytest.raises(StudyError, match="no GPU is there"):
        preparation.slow_precisions([step])


@pytest.mark.parametrize(("gib", "short"), [(15, ["04_transfer_tinyllama"]), (80, [])])
def test_a_gpu_with_too_little_memory_for_a_recovery_is_told_of_first(
    monkeypatch: pytest.MonkeyPatch, gib: int, short: list[str]
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda device: SimpleNamespace(total_memory=gib * 2**30))
    steps = [run.Step(name, own.model_dump(), "", False, 0) for name, own in settings.read_study("full").items()]
    told = preparation.short_memory(steps)
    assert [sentence.split(":")[0] for sentence in told] == short
    assert all("37.0 GiB at most, by arithmetic, and this GPU has 15.0" in sentence for sentence in told)
    on_a_cpu = [replace(step, parameters=step.parameters | {"device": "cpu"}) for step in steps if "device" in step.parameters]
    assert preparation.short_memory(on_a_cpu) == []


def test_an_optimiser_whose_package_is_missing_stops_the_study_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    step = run.Step("04_transfer_tinyllama", {"optimiser": "adamw_8bit", "device": "cpu"}, "key", False, 0.0)
    with pytest.raises(StudyError, match="04_transfer_tinyllama: optimiser='adamw_8bit' needs the package bitsandbytes"):
        preparation.shortcomings([step])
    assert preparation.shortcomings([replace(step, parameters={"optimiser": "recipe", "device": "cpu"})]) == []
