"""Every claim, figure and record of a report leads back to where it comes from."""

from __future__ import annotations

from pathlib import Path

import pytest

from depthprune_core import records
from depthprune_study import claims, places, why
from depthprune_study.settings import StudyError

CI = places.ROOT / "reports" / "ci"


def record_lines(lines: list[str]) -> set[str]:
    return {line.split()[1] for line in lines if line.startswith("record ")}


@pytest.mark.parametrize("claim", claims.names())
def test_a_claim_leads_to_its_verdict_and_records(claim: str) -> None:
    lines = why.explain(CI, claim)
    assert lines[0].startswith(f"{claim}: ")
    assert record_lines(lines)


def test_a_claim_leads_to_the_records_that_it_is_judged_by() -> None:
    found = record_lines(why.explain(CI, "C11"))
    assert "03b_controls/test_scores" in found
    assert not any(name.startswith(("05_", "03c_")) for name in found)


@pytest.mark.parametrize("section", why.SECTIONS)
def test_a_section_of_the_page_leads_to_records(section: str) -> None:
    assert record_lines(why.explain(CI, section))


@pytest.mark.parametrize("figure", sorted(path.name for path in (CI / "figures").glob("*.png")))
def test_a_figure_leads_to_its_notebook_and_records(figure: str) -> None:
    lines = why.explain(CI, figure)
    notebook = figure.split("-")[0]
    assert figure == "answer.png" or lines[0] == f"{figure}: drawn in notebooks/{notebook}.ipynb, whose records are"
    assert record_lines(lines)
    assert why.explain(CI, figure.removesuffix(".png")) == lines


def test_a_record_leads_to_parameters_code_versions_device_seed_inputs_and_pieces() -> None:
    stamp = records.read_stamp(CI / "records" / "02_prune_gpt2" / "test_scores.json")
    text = "\n".join(why.explain(CI, "02_prune_gpt2/test_scores"))
    for part in (
        stamp.commit,
        stamp.code_hash,
        stamp.notebook_hash,
        f"torch {stamp.versions['torch']}",
        "params/ci/02_prune_gpt2.yaml",
    ):
        assert part in text
    assert f"on {stamp.device} in float32, seed {stamp.seed}" in text
    teacher = records.read_stamp(CI / "records" / "02_prune_gpt2" / "test" / "teacher.json")
    model, windows = teacher.inputs["0 model"], teacher.inputs["1 windows"]
    assert f"from test/teacher: inputs 0 model {model}, 1 windows {windows}" in text


def test_a_thing_that_is_not_there_is_refused_with_what_is() -> None:
    with pytest.raises(
        StudyError, match=r"^'C99' is nothing of .*ci: name a claim \(C1, .*a section \(answer, .*a figure \(01_sensitivity-"
    ):
        why.explain(CI, "C99")


def test_a_folder_that_is_no_report_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"is no report: it has no records/$"):
        why.explain(tmp_path, "C1")
