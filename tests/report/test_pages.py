"""The report's pages: valid links, escaped text of records, equal Markdown and HTML."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import handmade as h
import pytest

from depthprune_study import paths
from depthprune_study.report import markdown, matrix, pages, readme
from depthprune_study.report.evidence import Evidence
from depthprune_study.report.html_page import html_page

EVIL = "<script>x</script>[a](javascript:b)|$c$`d`*e*"


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole study's folder, which no test changes."""
    return h.draw(h.write(tmp_path_factory.mktemp("overnight"), h.study()))


@pytest.fixture
def evidence(drawn: Path) -> Evidence:
    return Evidence("overnight", drawn)


class Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.found.append((tag, dict(attrs)))


def test_every_link_of_the_page_leads_to_a_file_or_a_heading(evidence: Evidence) -> None:
    page = pages.page(evidence)
    anchors = {markdown.anchor(line[3:]) for line in page.splitlines() if line.startswith("## ")}
    links = re.findall(r"(?<!\\)\]\(([^)]+)\)", page)
    assert len(links) > 20
    for link in links:
        assert link[1:] in anchors if link[0] == "#" else (evidence.folder / link).is_file(), link


def test_pieces_link_from_the_notebooks_folder(evidence: Evidence) -> None:
    """10_report shows them, and its executed copy lies in notebooks/."""
    for piece in (pages.answer, matrix.claims, pages.findings, pages.costs):
        for link in re.findall(r"(?<!\\)\]\(([^)]+)\)", piece(evidence)):
            assert (evidence.folder / "notebooks" / link).resolve().is_file()


@pytest.mark.parametrize(
    ("refit_tokens", "said"),
    [
        (0, ", and is healed on 20,480 tokens."),
        (4_096, ", is refitted on 4,096 tokens and healed on 20,480 others."),
    ],
)
def test_the_answer_names_the_text_that_was_read(
    tmp_path: Path, refit_tokens: int, said: str
) -> None:
    study = h.study()
    for name, curve in study["03_recovery"]["curves"].items():
        recipe = curve.recipe.but(refit_tokens=refit_tokens)
        read = replace(curve, recipe=recipe, tokens=(*curve.tokens[:-1], 20_480))
        study["03_recovery"]["curves"][name] = read
    assert said in pages.answer(Evidence("overnight", h.write(tmp_path / "overnight", study)))


def test_missing_notebooks_are_named(tmp_path: Path) -> None:
    empty = Evidence("quick", tmp_path)
    assert pages.answer(empty) == pages.failures(empty) == pages.costs(empty) == pages.NOT_RUN
    assert "Not run in this study: 01, 02" in pages.findings(empty)
    assert matrix.claims(empty).count("not tested here**") == 14
    page = html_page(pages.page(empty), tmp_path / "figures", title="x")
    assert page.endswith("</html>\n")


def test_some_of_the_notebooks_also_give_a_page(tmp_path: Path) -> None:
    for names in (["01_sensitivity"], ["02_prune", "03_recovery"], ["05_seed_stability"]):
        folder = tmp_path / names[0]
        h.write(folder, {name: h.study()[name] for name in names})
        assert "Not run in this study: " in pages.page(Evidence("quick", folder))


def test_text_of_records_is_not_markup(tmp_path: Path) -> None:
    made = h.study()
    made["02_prune"]["timing"] = {EVIL: h.timing(1.1)}
    made["07_choice"]["before"] |= h.scores(**{EVIL: 1.0})
    made["07_choice"]["after"] |= h.scores(**{EVIL: 2.0})
    h.write(tmp_path, made, model=EVIL)
    page = pages.page(Evidence(EVIL, tmp_path))
    assert "<script" not in page and "](javascript" not in page.replace("\\](", "")
    html = html_page(page, tmp_path / "figures", title=EVIL)
    tags = Tags(html).found
    assert not [attrs for tag, attrs in tags if tag == "script"]
    assert not [attrs for _, attrs in tags if str(attrs.get("href", "")).startswith("javascript")]
    assert "&lt;script&gt;" in html


def test_the_html_page_is_one_offline_file(evidence: Evidence) -> None:
    page = pages.page(evidence)
    html = html_page(page, evidence.folder / "figures", title="x")
    tags = Tags(html).found
    assert not {"script", "link", "iframe"} & {tag for tag, _ in tags}
    images = [attrs for tag, attrs in tags if tag == "img"]
    assert len(images) == page.count("![") > 5
    assert all(image["src"].startswith("data:image/svg+xml;base64,") for image in images)
    assert all(image["alt"] for image in images)
    ids = {attrs["id"] for _, attrs in tags if "id" in attrs}
    inside = [attrs["href"][1:] for tag, attrs in tags if tag == "a" and attrs["href"][0] == "#"]
    assert inside and set(inside) <= ids
    assert html.count("class='chip") == 14, "a chip a claim"


def test_both_costs_stand_side_by_side(evidence: Evidence) -> None:
    answer = pages.answer(evidence)
    assert "repair cost" in answer and "matched cost" in answer and "adaptation" in answer
    assert "Without 2 layers, decoding is 1.05" in answer, "not the whole model beside itself"
    titles = {markdown.safe(told.finding.title) for told in evidence.told}
    first, second, *_ = (line for line in answer.split("\n\n") if line.startswith("**"))
    assert {line.split(".** ")[0].lstrip("*") for line in (first, second)} <= titles


def test_a_notebook_cut_before_its_finding_has_no_answer_yet(tmp_path: Path) -> None:
    made = h.write(tmp_path / "overnight", h.study())
    for findings in made.glob("records/0[34]*/findings.json"):
        findings.unlink()
    assert pages.answer(Evidence("overnight", made)) == pages.NOT_RUN


def test_failures_are_at_most_seven_and_name_missed_targets(tmp_path: Path) -> None:
    made = h.study()
    made["08_limits"]["depth"] |= h.scores(**{"2 fewer, healed": 1.06})
    named = {f"{source}, 0 tokens": 1.1 for source in ("articles", "own words")}
    named |= {"articles, 4096 tokens": 1.03, "own words, 16384 tokens": 1.01}  # not the longest
    made["08_limits"]["budget"] = h.scores(**named, **{"articles, 16384 tokens": 1.05})
    made["09_recipe"]["trials"]["lr: 1"] = h.score(9.0, diverged="the loss is not finite")
    made["03_recovery"]["test"] |= h.scores(healed=1.4)
    lines = pages.failures(Evidence("overnight", h.write(tmp_path, made))).splitlines()
    assert 4 <= len(lines) <= 7
    assert (
        "2 layers fewer is not reached with 16,384 of the 1,000,000 tokens allowed: 1.050"
        in lines[0]
    )
    assert any("diverged: lr: 1 (notebook 09)" in line for line in lines)
    assert lines[-1].startswith("- Limits: smollm2-135m, healed on 20,480 tokens")


def test_what_a_stand_in_shows_against_the_recipe_is_no_failure(tmp_path: Path) -> None:
    made, title = h.study(), "Trained on the same text, the student is worse than the whole"
    real = pages.failures(Evidence("overnight", h.write(tmp_path / "real", made)))
    toy = pages.failures(Evidence("ci", h.write(tmp_path / "toy", made, model="gpt2-mini")))
    assert title in real and title not in toy


def test_a_stand_in_is_called_one(tmp_path: Path) -> None:
    h.write(tmp_path, h.study(), model="gpt2-mini")
    assert "gpt2-mini is a stand-in" in pages.answer(Evidence("ci", tmp_path))


def test_the_readme_filled_from_a_whole_study_is_small_and_its_links_lead_somewhere(
    evidence: Evidence, tmp_path: Path
) -> None:
    root, readme_now = tmp_path / "root", (paths.CODE / "README.md").read_text(encoding="utf-8")
    (root / "reports").mkdir(parents=True)
    unfilled = readme.filled(readme_now, root)
    assert unfilled.count(readme.NOT_EXECUTED) == 4
    (root / "reports" / "overnight").symlink_to(evidence.folder)
    text = readme.filled(unfilled, root)
    assert text == readme.filled(text, root) == readme.filled(readme_now, root)
    assert len(text.encode()) < 11_264
    for link in re.findall(r"(?<!\\)\]\((?!http)([^)]+)\)", text):
        there = (root / link).is_file() or (paths.CODE / link).exists()
        assert there or link.startswith("reports/overnight/README"), link
    assert "| C4 | TinyLlama" in text and "nbviewer.org/github/" in text
    assert "Not run in this edition" not in text


def test_a_notebooks_row_in_the_readme_has_its_main_finding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readme_now = (paths.CODE / "README.md").read_text(encoding="utf-8")
    monkeypatch.setattr(h, "ASIDE", ("transfer", "staged"))
    h.write(tmp_path / "reports" / "overnight", h.study())
    row = next(r for r in readme.filled(readme_now, tmp_path).splitlines() if r.startswith("| 04"))
    assert "Refit and healing lower" in row


def test_the_readme_takes_the_long_study_from_its_first_answer_on(tmp_path: Path) -> None:
    readme_now = (paths.CODE / "README.md").read_text(encoding="utf-8")
    h.write(tmp_path / "reports" / "quick", h.study())
    long = h.write(tmp_path / "reports" / "overnight", h.study())
    for name in ("06_controls", "07_choice"):
        shutil.rmtree(long / "records" / name)
    text = readme.filled(readme_now, tmp_path)
    assert "from `overnight`. Not run in this edition yet: notebook 06 and 07." in text
    for name in ("03_recovery", "04_transfer"):
        shutil.rmtree(long / "records" / name)
    assert "from `quick`, the short study" in readme.filled(readme_now, tmp_path)
