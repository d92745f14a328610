"""Every claim, figure and record of a report leads back to where it comes from."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from depthprune_core import records
from depthprune_study import claims, places, why
from depthprune_study.evidence import read_evidence
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
    assert figure == "answer.png" or lines[0] == f"{figure}: drawn in notebooks/{notebook}.ipynb from"
    assert record_lines(lines)
    assert why.explain(CI, figure.removesuffix(".png")) == lines


def test_a_figure_leads_to_its_own_records_alone() -> None:
    assert record_lines(why.explain(CI, "02_prune_gpt2-speed")) == {"02_prune_gpt2/timing-2", "02_prune_gpt2/timing-3"}


def test_the_answer_leads_to_no_more_than_what_it_tells_of() -> None:
    found = record_lines(why.explain(CI, "answer.png"))
    assert "03_recovery/test_scores" in found
    assert not any(name.startswith(("01_", "03c_")) for name in found)  # of 05, whether it is of the same run


def test_a_figure_whose_notebook_is_gone_leads_to_all_that_it_left(tmp_path: Path) -> None:
    report = shutil.copytree(CI, tmp_path / "ci")
    (report / "notebooks" / "02_prune_gpt2.ipynb").unlink()
    lines = why.explain(report, "02_prune_gpt2-speed")
    assert lines[0] == "02_prune_gpt2-speed.png: drawn in notebooks/02_prune_gpt2.ipynb, whose records are"
    assert record_lines(lines) > {"02_prune_gpt2/timing-2", "02_prune_gpt2/plans"}


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


def arm_lines(lines: list[str]) -> dict[str, list[str]]:
    """Arm -> what is said of it."""
    starts = [i for i, line in enumerate(lines) if line.startswith("arm ")]
    names = [lines[i].removeprefix("arm ").partition(" (weights ")[0] for i in starts]
    assert len(set(names)) == len(names)
    return {name: lines[i:j] for name, i, j in zip(names, starts, [*starts, len(lines)][1:], strict=True)}


@pytest.mark.parametrize("thing", ["recovery", "03_recovery-curves", "03_recovery/curves"])
def test_a_curve_leads_to_its_arm_with_teacher_text_recipe_code_and_seed(thing: str) -> None:
    lines = why.explain(CI, thing)
    arms = arm_lines(lines)
    curve = records.read(CI / "records" / "03_recovery" / "curves.json")["recovered"]
    (path,) = [path for path in (CI / "arms" / "recovered").glob("*.json") if records.read(path)["arm"] == curve]
    if thing == "03_recovery/curves":
        assert f"  recovered: arm recovered/{path.stem}" in lines
        assert len(arms) == len([line for line in lines if ": arm " in line]) + 1  # and one that two of them began from
    stamp, said = records.read_stamp(path), "\n".join(arms[f"recovered/{path.stem}"])
    teacher = records.read_stamp(CI / "records" / "03_recovery" / "test" / "teacher.json").inputs["0 model"]
    assert f"0 model (teacher) {teacher}" in said
    assert f"2 windows (recovery text) {stamp.inputs['2 windows']}" in said
    assert f"code {stamp.code_hash}" in said and f"torch {stamp.versions['torch']}" in said
    assert f"seed {stamp.seed}" in said and f"lr={curve.recipe['lr']}" in said and curve.recipe["weights"] in said


@pytest.mark.parametrize("study", ["quick", "smollm2", "rehearsal"])
def test_the_recovery_of_every_report_leads_to_its_arms(study: str) -> None:
    folder = CI.parent / study
    arms = arm_lines(why.explain(folder, "recovery"))
    scored = records.read_stamp(folder / "records" / "03_recovery" / "test" / "recovered.json").inputs.values()
    assert any(f"(weights {weights})" in said[0] for said in arms.values() for weights in scored)


def test_every_figure_of_a_page_is_in_a_section_that_can_be_followed() -> None:
    notebook = json.loads((CI / "notebooks" / "06_report.ipynb").read_text(encoding="utf-8"))
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", [])]
    shown = ["".join(output.get("data", {}).get("text/html", "")) for output in outputs]
    assert not any("image/png" in output.get("data", {}) for output in outputs)
    evidence = read_evidence("ci", CI / "records")
    drawn = ["".join(section(evidence)) for section in why.SECTIONS.values()]
    texts, known = (
        sorted(alt for page in pages for alt in re.findall(r"<img [^>]*alt='([^']*)'", page)) for pages in (shown, drawn)
    )
    assert texts == known and len(texts) > 8


def test_a_recipe_leads_to_the_arms_of_its_trials() -> None:
    arms = arm_lines(why.explain(CI, "03_recovery/recipe"))
    assert {path.name for path in (CI / "arms").glob("pilot-trained-*")} <= {name.split("/")[0] for name in arms}


def test_a_trial_of_a_sweep_leads_to_its_own_score_and_arm() -> None:
    lines = why.explain(CI, "03_recovery/sweep")
    piece = records.read_stamp(CI / "records" / "03_recovery" / "validation" / "pilot-temperature-2.json")
    assert f"  from validation/pilot-temperature-2: inputs 0 model {piece.inputs['0 model']}" in "\n".join(lines)
    (arm,) = [said for name, said in arm_lines(lines).items() if name.startswith("pilot-temperature-2/")]
    assert arm[0].endswith(f"(weights {piece.inputs['0 model']})")


def test_every_seed_of_an_arm_is_told() -> None:
    arms = arm_lines(why.explain(CI, "seeds"))
    told = {line.rpartition(", seed ")[2] for said in arms.values() for line in said if ", seed " in line}
    assert told == {str(seed) for seed in records.read(CI / "records" / "05_seed_stability" / "seeds.json").values["seeds"]}


def test_a_student_that_was_cut_in_stages_leads_to_all_that_it_began_from() -> None:
    arms = arm_lines(why.explain(CI, "04_transfer_tinyllama/curves"))
    names = [name.split("/")[0] for name in arms]
    last = names.index("llama-tiny-stage2")
    assert names[last : last + 3] == ["llama-tiny-stage2", "refitted", "llama-tiny-stage1"]


def test_scores_on_another_text_lead_to_their_own_scores() -> None:
    text = "\n".join(why.explain(CI, "03b_controls/elsewhere_scores"))
    stamp = records.read_stamp(CI / "records" / "03b_controls" / "news-excerpt" / "width.json")
    assert f"from news-excerpt/width: inputs 0 model {stamp.inputs['0 model']}" in text
    assert "arm width/" in text


def test_what_was_measured_on_no_arm_leads_to_none() -> None:
    assert not arm_lines(why.explain(CI, "01_sensitivity/profile"))
    assert not arm_lines(why.explain(CI, "02_prune_gpt2/test_scores"))


def test_a_thing_that_is_not_there_is_refused_with_what_is() -> None:
    with pytest.raises(
        StudyError, match=r"^'C99' is nothing of .*ci: name a claim \(C1, .*a section \(answer, .*a figure \(01_sensitivity-"
    ):
        why.explain(CI, "C99")


def test_a_folder_that_is_no_report_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"is no report: it has no records/$"):
        why.explain(tmp_path, "C1")


def test_a_record_in_anothers_place_is_told_in_a_sentence(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(CI, tmp_path / "ci"))
    here = folder / "records" / "03_recovery"
    shutil.copy(here / "recipe.json", here / "curves.json")
    with pytest.raises(
        StudyError,
        match=r"records/03_recovery/curves\.json is another record than its name says: it was made as 03_recovery/recipe",
    ):
        why.explain(folder, "C2")
