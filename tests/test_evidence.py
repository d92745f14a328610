"""Records that do not belong together are said to, within a notebook and across notebooks."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from depthprune_core import records
from depthprune_core.records import Facts
from depthprune_study import places, story
from depthprune_study.evidence import Evidence


@pytest.fixture
def evidence(tmp_path: Path) -> Evidence:
    return Evidence("ci", Path(shutil.copytree(places.ROOT / "reports" / "ci" / "records", tmp_path / "records")))


def restamp(evidence: Evidence, notebook: str, change: Callable[[records.Stamp], dict[str, Any]], *, of: str = "**/*") -> None:
    for path in (evidence.folder / notebook).glob(f"{of}.json"):
        stamp = records.read_stamp(path)
        records.write(path, records.read(path), records.Stamp(**{**vars(stamp), **change(stamp)}))


def with_tokens(stamp: records.Stamp) -> dict[str, Any]:
    return {"parameters": {**stamp.parameters, "tokens": 60_000}}


def other_weights(stamp: records.Stamp) -> dict[str, Any]:
    return {"inputs": {item: "0" * 16 if item.split()[0] == "0" else content for item, content in stamp.inputs.items()}}


@pytest.mark.parametrize("study", ["quick", "ci", "smollm2", "rehearsal"])
def test_the_committed_reports_are_not_mixed(study: str) -> None:
    assert Evidence(study, places.ROOT / "reports" / study / "records").mixed_notebooks() == []


def test_a_notebook_of_two_sets_of_parameters_is_named(evidence: Evidence) -> None:
    restamp(evidence, "03_recovery", with_tokens, of="test_scores")
    assert evidence.mixed_notebooks() == ["03_recovery"]


def test_a_recovery_that_was_run_again_is_seen_by_what_rested_on_it(evidence: Evidence) -> None:
    restamp(evidence, "03_recovery", with_tokens)
    restamp(evidence, "03_recovery", other_weights, of="test/recovered")
    assert evidence.mixed_notebooks() == [
        "03b_controls beside 03_recovery (recovered)",
        "05_seed_stability beside 03_recovery (seed 0)",
    ]
    assert "03b_controls beside 03_recovery (recovered)" in story.answer_html(evidence)


def test_what_was_run_again_after_it_is_no_longer_named(evidence: Evidence) -> None:
    restamp(evidence, "03_recovery", other_weights, of="test/recovered")
    restamp(evidence, "05_seed_stability", other_weights, of="test/seed 0")
    assert evidence.mixed_notebooks() == ["03b_controls beside 03_recovery (recovered)"]


def test_controls_of_another_seed_are_another_run_on_purpose(evidence: Evidence) -> None:
    restamp(evidence, "03b_controls", lambda stamp: {"parameters": {**stamp.parameters, "seed": 1}})
    restamp(evidence, "03b_controls", other_weights, of="test/recovered")
    assert evidence.mixed_notebooks() == []


def test_another_cut_than_the_earlier_notebook_has_now_is_named(evidence: Evidence) -> None:
    restamp(evidence, "02_prune_gpt2", other_weights, of="test/last_k-2")
    assert evidence.mixed_notebooks() == ["03_recovery beside 02_prune_gpt2 (unrecovered)"]


def test_another_recipe_than_was_taken_over_is_named(evidence: Evidence) -> None:
    path = evidence.folder / "03_recovery" / "recipe.json"
    values = records.read(path).values
    changed = {**values, "recipe": {**values["recipe"], "temperature": 2.0}}
    records.write(path, Facts(changed), records.read_stamp(path))
    assert evidence.mixed_notebooks() == ["04_transfer_tinyllama beside 03_recovery (temperature)"]


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("code", lambda stamp: {"code_hash": "0" * 16}),
        ("versions", lambda stamp: {"versions": {**stamp.versions, "torch": "1.0"}}),
        ("text", lambda stamp: {"parameters": {**stamp.parameters, "text": "news-excerpt"}}),
        ("seq_len", lambda stamp: {"parameters": {**stamp.parameters, "seq_len": 128}}),
    ],
)
def test_a_notebook_of_other_code_libraries_text_or_windows_is_named(
    evidence: Evidence, what: str, change: Callable[[records.Stamp], dict[str, Any]]
) -> None:
    restamp(evidence, "03c_choice", change)
    assert evidence.mixed_notebooks() == [f"03c_choice beside 01_sensitivity ({what})"]
