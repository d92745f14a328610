from __future__ import annotations

import dataclasses
import re
import shutil
from pathlib import Path

import handmade
import pytest
from test_report import Elements, assert_every_image_has_a_text, assert_self_contained

from depthprune_core import records
from depthprune_study import index, places

REPORTS = places.ROOT / "reports"


def published(reports: Path, study: str, *, pages: tuple[str, ...], **names: str) -> None:
    records = reports / study / "records"
    records.mkdir(parents=True)
    if "report" in pages:
        handmade.evidence(records, **names)
    for page in pages:
        (reports / study / f"{page}.html").write_text("a page")


def without_figures(page: str) -> str:
    """Another version of the plotting library draws other pixels."""
    return re.sub(r"base64,[^']*'", "'", page)


def test_a_finished_study_is_there_with_its_answer_and_its_pages(tmp_path: Path) -> None:
    published(tmp_path, "quick", pages=("report", "01_sensitivity", "03_recovery", "estimate"))
    page = index.write(tmp_path).read_text(encoding="utf-8")
    assert_self_contained(page)
    assert_every_image_has_a_text(page)
    links = [link["href"] for link in Elements(page).of("a")]
    assert links == [
        "#quick",
        "quick/report.html",
        "quick/01_sensitivity.html",
        "quick/03_recovery.html",
        "quick/estimate.html",
    ]
    assert page.count("<p class='answer'>") >= 2


def test_a_study_of_other_code_than_the_first_one_says_so(tmp_path: Path) -> None:
    for study in ("quick", "smollm2"):
        published(tmp_path, study, pages=("report",))
    assert "Made by other code" not in index.index(tmp_path)
    path = tmp_path / "smollm2" / "records" / "03_recovery" / "test_scores.json"
    stamp = dataclasses.replace(records.read_stamp(path), code_hash="0ther")
    records.write(path, records.read(path), stamp)
    page = index.index(tmp_path)
    assert page.count("Made by other code") == 1 and "depthprune status smollm2" in page


def test_an_unfinished_study_says_so_and_shows_no_figure(tmp_path: Path) -> None:
    published(tmp_path, "smollm2", pages=("01_sensitivity",))
    page = index.index(tmp_path)
    assert "Not finished: 1 of 8 notebooks so far." in page
    assert "<img" not in page


def test_a_study_that_only_shows_that_the_chain_runs_comes_last(tmp_path: Path) -> None:
    for study in ("ci", "mine", "quick", "smollm2"):
        published(tmp_path, study, pages=())
    assert [section["id"] for section in Elements(index.index(tmp_path)).of("section")] == ["quick", "smollm2", "ci", "mine"]


def test_a_half_built_report_is_not_listed(tmp_path: Path) -> None:
    published(tmp_path, ".quick.new", pages=("report",))
    assert "No study has been published yet." in index.index(tmp_path)


@pytest.mark.parametrize("record", ["02_prune_gpt2/test_scores", "03_recovery/recipe"])
@pytest.mark.parametrize("is_gone", [False, True])
def test_a_damaged_study_keeps_no_other_from_being_shown(tmp_path: Path, record: str, is_gone: bool) -> None:
    for study in ("quick", "smollm2"):
        published(tmp_path, study, pages=("report",))
    path = tmp_path / "smollm2" / "records" / f"{record}.json"
    path.unlink() if is_gone else path.write_text("{")
    page = index.index(tmp_path)
    assert page.count("The records of this study cannot be read") == 1
    assert page.count("<p class='answer'>") >= 2


def test_names_in_the_index_are_escaped(tmp_path: Path) -> None:
    published(tmp_path, "quick", pages=("report",), first="<script>alert('x')</script>")
    page = index.index(tmp_path)
    assert "<script" not in page
    assert_self_contained(page)


def test_the_committed_index_is_that_of_the_committed_reports(tmp_path: Path) -> None:
    committed = (REPORTS / "index.html").read_text(encoding="utf-8")
    assert without_figures(index.index(REPORTS)) == without_figures(committed)
    for link in Elements(committed).of("a"):
        target = link["href"] or ""
        assert target.startswith("#") or (REPORTS / target).exists(), target


def test_the_index_of_no_report_at_all_can_be_written(tmp_path: Path) -> None:
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
    assert "No study" in index.write(tmp_path).read_text(encoding="utf-8")
