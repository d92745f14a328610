"""Work is done once, and again only where code, parameters or inputs have changed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from little_notebook import write_notebook
from tiny import FAMILIES, tiny, tiny_windows

from depthprune_core.models import Teacher
from depthprune_core.records import Facts, Plan
from depthprune_study.lab import cache
from depthprune_study.lab.workspace import Workspace


@pytest.fixture
def measure() -> Callable[..., Facts]:
    """A measurement; `calls` counts how often it was made."""

    def measure(lab: Workspace, *on: Any) -> Facts:
        def make() -> Facts:
            measure.calls += 1
            return Facts({"value": 7})

        return cache.measured(lab, "facts", make, on=on, room="evaluation")

    measure.calls = 0
    return measure


def test_every_notebook_reads_what_was_measured_on_the_same_inputs(
    open_lab: Callable[..., Workspace], home: Path, measure: Callable[..., Facts]
) -> None:
    assert measure(open_lab(), 1) == measure(open_lab(score_tokens=61), 1) == Facts({"value": 7})
    write_notebook(home, "1 + 1")
    measure(open_lab(), 1)
    assert measure.calls == 1


def test_other_inputs_are_measured_anew(lab: Workspace, measure: Callable[..., Facts]) -> None:
    inputs: list[Any] = [1, "1", Plan(4, (1,), "a"), Plan(4, (2,), "a"), tiny_windows(), {"a": 1}]
    for item in inputs:
        measure(lab, item)
        measure(lab, item)
    assert measure.calls == len(inputs)


def test_a_damaged_record_is_measured_again(lab: Workspace, measure: Callable[..., Facts]) -> None:
    measure(lab)
    (path,) = (lab.folder / "measured").iterdir()
    path.write_text(path.read_text().replace("7", "8", 1))
    assert measure(lab) == Facts({"value": 7})
    assert measure.calls == 2


def test_changed_code_is_measured_anew(lab: Workspace, measure: Callable[..., Facts]) -> None:
    measure(lab)
    lab.code = dict.fromkeys(lab.code, "edited")
    measure(lab)
    assert measure.calls == 2


def test_edits_while_cells_run_do_not_change_a_stamp(
    lab: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = cache.stamped(lab, "step", [1])
    monkeypatch.setattr(cache.provenance, "_meaning", lambda *_: "edited")
    assert cache.stamped(lab, "step", [1]).key == before.key


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_is_identified_by_weights_and_config(family: str) -> None:
    model, other = tiny(family), tiny(family, seed=1)
    teacher = Teacher("tiny", model, None, 0, "")
    assert cache.content(model) == cache.content(tiny(family)) == cache.content(teacher)
    assert cache.content(model) != cache.content(other)
    before = cache.content(model)
    with torch.no_grad():
        next(model.parameters())[0, 0] += 1
    assert cache.content(model) != before
