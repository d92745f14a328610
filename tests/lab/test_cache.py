"""Work is done once, and again only where code, parameters or inputs have changed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from little_notebook import PARAMETERS, write_notebook
from tiny import FAMILIES, tiny, tiny_windows

from depthprune_core import storage
from depthprune_core.models import Teacher
from depthprune_core.records import Facts, Plan, Score
from depthprune_study.lab import cache
from depthprune_study.lab.workspace import Workspace


def counted(value: int) -> tuple[Callable[[], Facts], list[int]]:
    calls: list[int] = []

    def make() -> Facts:
        calls.append(value)
        return Facts({"value": value})

    return make, calls


def test_work_is_done_once_and_read_back(open_lab: Callable[..., Workspace]) -> None:
    make, calls = counted(3)
    first = open_lab().once("facts", make, on=[1])
    assert open_lab().once("facts", make, on=[1]) == first == Facts({"value": 3})
    assert calls == [3]


def test_other_inputs_are_computed_anew(lab: Workspace) -> None:
    make, calls = counted(3)
    inputs: list[Any] = [1, "1", Plan(4, (1,), "a"), Plan(4, (2,), "a"), tiny_windows(), {"a": 1}]
    for item in inputs:
        lab.once("facts", make, on=[item])
        lab.once("facts", make, on=[item])
    assert len(calls) == len(inputs)


def test_other_parameters_make_a_notebooks_own_work_anew_but_not_the_labs(
    open_lab: Callable[..., Workspace],
) -> None:
    make, calls = counted(1)
    path = open_lab().record_path("facts")
    for lab in (open_lab(), open_lab(score_tokens=61)):
        cache.once(lab, path, make, on=["the same"])
    assert len(calls) == 1
    assert storage.read_stamp(path).parameters["score_tokens"] == 61  # as the runner looks for it
    for lab in (open_lab(), open_lab(score_tokens=61)):
        lab.once("its own", make, on=["the same"])
    assert len(calls) == 1 + 2


def test_a_changed_notebook_makes_its_own_work_anew(
    open_lab: Callable[..., Workspace], home: Path
) -> None:
    make, calls = counted(1)
    open_lab().once("facts", make)
    write_notebook(home, PARAMETERS, "1 + 1")
    open_lab().once("facts", make)
    assert len(calls) == 2


def test_a_damaged_record_is_made_again(lab: Workspace) -> None:
    make, calls = counted(7)
    lab.once("facts", make)
    path = lab.record_path("facts")
    path.write_text(path.read_text().replace("7", "8", 1))
    assert lab.once("facts", make) == Facts({"value": 7})
    assert len(calls) == 2


def test_changed_code_makes_work_anew(open_lab: Callable[..., Workspace]) -> None:
    make, calls = counted(1)
    lab = open_lab()
    cache.once(lab, lab.record_path("facts"), make, on=[])
    lab.code = dict.fromkeys(lab.code, "edited")
    cache.once(lab, lab.record_path("facts"), make, on=[])
    assert len(calls) == 2


def test_edits_while_cells_run_do_not_change_a_stamp(
    lab: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = cache.stamped(lab, "step", [1])
    monkeypatch.setattr(cache.provenance, "_meaning", lambda *_: "edited")
    assert cache.stamped(lab, "step", [1]).key == before.key


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_is_known_by_weights_and_config(family: str) -> None:
    model, other = tiny(family), tiny(family, seed=1)
    teacher = Teacher("tiny", model, None, 0, "")
    assert cache.content(model) == cache.content(tiny(family)) == cache.content(teacher)
    assert cache.content(model) != cache.content(other)
    before = cache.content(model)
    with torch.no_grad():
        next(model.parameters())[0, 0] += 1
    assert cache.content(model) != before


def test_a_records_hash_depends_on_its_kind_and_values() -> None:
    one = Score(("a",), (1.0,), (2,), (3,))
    other = Score(("a",), (1.5,), (2,), (3,))
    assert cache.content(one) != cache.content(other)
    assert cache.content({"x": one}) == cache.content({"x": Score(("a",), (1.0,), (2,), (3,))})
    json.dumps(cache.content([one, {"x": other}]))  # whatever it holds, it is text
