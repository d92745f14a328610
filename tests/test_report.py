from __future__ import annotations

import errno
import fcntl
import html
import html.parser
import io
import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import handmade
import matplotlib.pyplot as plt
import nbformat
import pytest
from typer.testing import CliRunner

from depthprune_core import figures, intervals, pruning, records
from depthprune_core.records import Divergence
from depthprune_study import bench, claims, cli, failures, places, report, run, sections, settings, story, tables
from depthprune_study.evidence import Evidence

NASTY = "<script>alert('x')</script>"
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


class Elements(html.parser.HTMLParser):
    """Every start tag of a page with its attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


def assert_self_contained(page: str) -> None:
    elements = Elements(page)
    assert elements.of("script") == []
    assert elements.of("link") == []
    assert elements.of("iframe") == []
    for tag, attributes in elements.found:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in {"src", "srcset", "href", "data", "poster", "action"} and value:
                allowed = tag == "a" or value.startswith("data:image/png;base64,")
                assert allowed, (tag, name, value[:80])
                assert not value.lower().startswith("javascript:")
    styles = "".join(re.findall(r"<style.*?</style>", page, flags=re.DOTALL))
    assert "@import" not in styles
    assert not re.search(r"url\((?!['\"]?data:)", styles)


def assert_every_image_has_a_text(page: str) -> None:
    images = Elements(page).of("img")
    assert images
    for image in images:
        assert image.get("alt"), str(image)[:200]
        assert image["src"].startswith("data:image/png;base64,")


# ---------------------------------------------------------------- one notebook as a page


@pytest.fixture
def executed(tmp_path: Path) -> Path:
    """A small executed notebook with a figure, a stream, HTML and a script."""
    v4 = nbformat.v4
    figure = {"image/png": PNG, "text/plain": "<image>"}
    outputs = [
        v4.new_output("stream", name="stdout", text=f"plain {NASTY}\n"),
        v4.new_output("display_data", figure, metadata={"image/png": {"alt": 'costs "most" & least'}}),
        v4.new_output(
            "display_data",
            {"text/html": f"<p>kept</p>{NASTY}<img src='data:image/png;base64,{PNG}' alt='inline'>", "text/plain": ""},
        ),
        v4.new_output("execute_result", {"text/plain": "{'layers': 12}"}, execution_count=1),
    ]
    notebook = v4.new_notebook(
        cells=[
            v4.new_markdown_cell(f"# 01 · What <is> it?\n\n{places.badge('01_sensitivity')}\n\n**Question.** Which $x$?"),
            v4.new_code_cell("import sys", metadata={"tags": ["setup"]}),
            v4.new_code_cell('study: str = "quick"', metadata={"tags": ["parameters"]}),
            v4.new_code_cell("secret_code = 1", outputs=outputs, execution_count=1),
            v4.new_code_cell("facts", metadata={"tags": ["facts"]}, outputs=outputs[-1:], execution_count=2),
        ]
    )
    nbformat.write(notebook, tmp_path / "01_sensitivity.ipynb")
    return tmp_path / "01_sensitivity.ipynb"


@pytest.mark.parametrize("with_code", [True, False])
def test_a_page_needs_nothing_but_itself(executed: Path, with_code: bool) -> None:
    page = report.page(executed, "quick", with_code=with_code)
    assert page.startswith("<!DOCTYPE html>")
    assert_self_contained(page)


def test_every_image_of_a_page_has_its_text(executed: Path) -> None:
    page = report.page(executed, "quick", with_code=True)
    assert_every_image_has_a_text(page)
    assert [image["alt"] for image in Elements(page).of("img")] == ['costs "most" & least', "inline"]


def test_what_a_cell_printed_is_escaped(executed: Path) -> None:
    assert "plain &lt;script&gt;alert(" in report.page(executed, "quick", with_code=True)


def test_a_page_of_results_shows_no_code_and_no_plumbing(executed: Path) -> None:
    page = report.page(executed, "quick", with_code=False)
    assert "secret_code" not in page
    assert page.count("{'layers': 12}") == 1  # of the cell that is no plumbing
    assert "import sys" not in page
    assert "colab" not in page


def test_a_page_has_title_language_and_a_way_around(executed: Path) -> None:
    page = report.page(executed, "quick", with_code=True)
    assert "<title>depthprune quick: 01 · What &lt;is&gt; it?</title>" in page
    assert "<html lang='en'>" in page
    targets = [link["href"] for link in Elements(page).of("a")][: len(run.READS)]
    assert targets == ["../index.html", "report.html", *(f"{name}.html" for name in list(run.READS)[:-2])]


# ---------------------------------------------------------------- the story


@pytest.fixture(scope="module")
def nasty(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    """A study whose models have names that would be code in a page."""
    return handmade.evidence(tmp_path_factory.mktemp("records"), first=NASTY, second=NASTY + "2")


PIECES = {
    "answer": lambda e: story.answer_html(e) + story.answer_figure_html(e),
    "claims": lambda e: story.tally_html(claims.judge(e)) + story.claims_html(claims.judge(e)),
    "frontier": lambda e: "".join(sections.frontier_figures(e)),
    "layers": lambda e: "".join(sections.layer_figures(e)),
    "recovery": lambda e: "".join(sections.recovery_figures(e)),
    "controls": lambda e: "".join(sections.control_figures(e)),
    "choice": lambda e: "".join(sections.choice_figures(e)),
    "speed": lambda e: "".join(sections.speed_figures(e)),
    "seeds": lambda e: "".join(sections.seed_figures(e)),
    "details": lambda e: "".join(sections.detail_figures(e)),
    "continuations": lambda e: story.continuations_html(e),
    "failures": lambda e: story.failures_html(e, claims.judge(e)),
    "provenance": lambda e: story.provenance_html(e),
}


@pytest.mark.parametrize("piece", PIECES)
def test_a_model_that_is_named_like_code_is_escaped(nasty: Evidence, piece: str) -> None:
    page = PIECES[piece](nasty)
    assert "<script" not in page
    assert_self_contained(page)


@pytest.mark.parametrize(
    "piece", ["answer", "frontier", "layers", "recovery", "controls", "choice", "speed", "seeds", "details"]
)
def test_every_figure_of_the_story_is_inline_and_has_its_text(nasty: Evidence, piece: str) -> None:
    assert_every_image_has_a_text(PIECES[piece](nasty))


def test_records_that_do_not_belong_together_are_told_on_the_reports_face(tmp_path: Path) -> None:
    evidence = handmade.evidence(tmp_path)
    assert "warning" not in story.answer_html(evidence)
    path = tmp_path / "03_recovery" / "test_scores.json"
    stamp = records.read_stamp(path)
    records.write(path, records.read(path), records.Stamp(**{**vars(stamp), "code_hash": "of an older run"}))
    assert story.answer_html(evidence).startswith(
        "<p class='warning'>These figures mix records of different code, notebooks or parameters: 03_recovery.</p>"
    )


def test_a_mixed_loss_that_was_only_tried_is_not_among_the_arms(tmp_path: Path) -> None:
    scores = handmade.contents()["03_recovery"]["test_scores"]
    kept = {name: score for name, score in scores.items() if "mixed" not in name}
    evidence = handmade.evidence(tmp_path, changes={("03_recovery", "test_scores"): kept})
    pages = "".join(sections.recovery_figures(evidence))
    assert "unrecovered" in pages and "mixed 1." not in pages


@pytest.mark.parametrize("piece", PIECES)
def test_every_piece_is_well_formed(nasty: Evidence, piece: str) -> None:
    page = PIECES[piece](nasty)
    for tag in ("table", "tr", "td", "figure", "ul", "li", "p", "span", "b"):
        assert len(re.findall(rf"<{tag}[\s>]", page)) == page.count(f"</{tag}>"), tag


def test_what_a_model_says_is_escaped(tmp_path: Path) -> None:
    said = handmade.Facts({"prompts": [NASTY], "samples": {"teacher": [NASTY], "unrecovered": ["a"], "recovered": ["& more"]}})
    page = story.continuations_html(handmade.evidence(tmp_path, changes={("04_transfer_tinyllama", "continuations"): said}))
    assert page.count("&lt;script&gt;") == 2
    assert "<script" not in page


def test_no_two_families_stand_in_one_row_of_the_claims(tmp_path: Path) -> None:
    verdicts = claims.judge(handmade.evidence(tmp_path))
    page = story.claims_html(verdicts)
    assert page.count("not testable here") == len(claims._MEASURES) - 1
    assert "<th scope='col'>what the stand-ins show</th>" in page


def test_failures_are_told_with_their_figures(tmp_path: Path) -> None:
    slow = handmade.evidence(tmp_path, changes={("02_prune_gpt2", "timing-2"): handmade.timing(1.0)})
    page = story.failures_html(slow, claims.judge(slow))
    assert (
        "<li>C3 is not reproduced on gpt2-mini: decode 1.000 [1.000, 1.000]x (n = 5 rounds). The source: and it decodes faster: about 1.2x.</li>"
        in page
    )


def test_what_failed_begins_with_a_paragraph_of_the_worst(tmp_path: Path) -> None:
    changes = {
        ("04_transfer_tinyllama", "test_scores"): handmade.contents()["04_transfer_tinyllama"]["test_scores"]
        | {"recovered": handmade.score(3.06)},
        ("03b_controls", "test_scores"): TEST_B | {"ce": handmade.score(2.9)},
        ("02_prune_gpt2", "timing-2"): handmade.timing(1.0),
    }
    evidence = handmade.evidence(tmp_path, changes=changes)
    said = failures.paragraph(evidence, claims.judge(evidence))
    assert said.startswith("The study's own target, a PPL ratio of at most 1.04, is not reached: 1.062 [")
    assert "of gpt2-mini ends below the recipe, in times its perplexity: ce at 0.861 [" in said
    assert "Rounding keeps more in fewer bytes: quantised, 4 bits." in said
    assert "Not reproduced: C3 on gpt2-mini" in said
    assert story.failures_html(evidence, claims.judge(evidence)).startswith(f"<p>{html.escape(said)}</p><ul><li>")
    honest = handmade.evidence(tmp_path / "honest", second="tinyllama-1.1b")
    assert "target" not in failures.paragraph(honest, claims.judge(honest))


def told_of(tmp_path: Path, **changes: Any) -> list[str]:
    evidence = handmade.evidence(tmp_path, **changes)
    return failures.lines(evidence, claims.judge(evidence))


THIRD_B = handmade.contents()["03b_controls"]
TEST_B, AWAY, BYTES = THIRD_B["test_scores"], THIRD_B["elsewhere_scores"], THIRD_B["bytes"].values


def test_a_target_that_is_missed_is_told_and_one_that_is_reached_or_not_tried_is_not(tmp_path: Path) -> None:
    second = handmade.contents()["04_transfer_tinyllama"]["test_scores"]

    def missed(name: str, recovered: float, **models: str) -> list[str]:
        changes = {("04_transfer_tinyllama", "test_scores"): second | {"recovered": handmade.score(recovered)}}
        return [line for line in told_of(tmp_path / name, changes=changes, **models) if "target" in line and "missed" in line]

    (line,) = missed("missed", 3.05)
    assert "at most 1.04 on the test articles, smollm2-135m less 2 layers, within 250,000 tokens" in line
    assert "It stands at 1.051 [1.0" in line and "after 2,048 tokens (n = 8 articles)" in line
    assert missed("reached", 3.03) == missed("another", 3.05, second="tinyllama-1.1b") == []
    straddling = {
        ("04_transfer_tinyllama", "test_scores"): second | {"recovered": handmade.score(math.log(1.04) + 3, spread=0.5)}
    }
    (line,) = [line for line in told_of(tmp_path / "straddling", changes=straddling) if "own target" in line]
    assert "is not shown to be reached: the interval straddles it: at most 1.04" in line


def test_plainer_training_that_ends_lower_is_told_with_both_kinds_of_text(tmp_path: Path) -> None:
    changes = {
        ("03b_controls", "test_scores"): TEST_B | {"ce": handmade.score(2.9), "ce, lora": handmade.score(3.6)},
        ("03b_controls", "timed_test_scores"): {"ce (timed)": handmade.score(3.6)},
        ("03b_controls", "elsewhere_scores"): AWAY | {"ce": handmade.score(3.3), "recovered": handmade.score(3.4)},
    }
    (line,) = [line for line in told_of(tmp_path, changes=changes) if "plainer training" in line]
    assert "(ce) ends lower than the recipe, at 0.8" in line and "on news-excerpt at 0.905 [0.905, 0.905] (n = 8)" in line
    assert "the whole model trained" not in line
    control = {"teacher + same text (ce)": handmade.score(3.1)}
    changes["03b_controls", "elsewhere_scores"] |= control
    (line,) = [line for line in told_of(tmp_path / "more", changes=changes) if "plainer training" in line]
    assert "where it stands at 0.497" in line and "and the whole model trained on the same text at 0.407" in line


def divergence(kl: float, agreed: int) -> Divergence:
    names = handmade.score(3.0).documents
    n = len(names)
    return Divergence(names, (kl * handmade.N_TOKENS,) * n, (agreed,) * n, (handmade.N_TOKENS,) * n)


@pytest.mark.parametrize("notebook", ["03_recovery", "03b_controls"])  # the records of older runs have them in the former alone
def test_a_rival_that_wins_by_leaving_its_teacher_is_told_to_do_so(tmp_path: Path, notebook: str) -> None:
    apart = {"recovered": divergence(0.1, 90), "ce": divergence(0.4, 70)}
    changes = {
        ("03b_controls", "test_scores"): TEST_B | {"ce": handmade.score(2.9)},
        (notebook, "divergences"): apart,
        ("03b_controls", "elsewhere_scores"): AWAY | {"recovered": handmade.score(3.4)},
        ("03b_controls", "timed_elsewhere_scores"): {"ce (timed)": handmade.score(3.3)},
        ("03b_controls", "timed_test_scores"): {"ce (timed)": handmade.score(2.8)},
    }
    by_tokens, by_time = [line for line in told_of(tmp_path, changes=changes) if "plainer training" in line]
    told = "KL 0.400 against 0.100 nats per token, the same first choice 70.0% against 90.0% of the time"
    assert told in by_tokens and "KL" not in by_time  # which was not measured
    assert "(ce (timed)) ends lower" in by_time and "on news-excerpt at 0.905 [0.905, 0.905]" in by_time
    shown = tables.divergence_table(handmade.evidence(tmp_path / "table", changes=changes))
    assert re.findall("<td>(.*?)</td>", shown) == [
        *("recovered", "0.100 [0.100, 0.100]", "90.0%", "8"),
        *("ce", "0.400 [0.400, 0.400]", "70.0%", "8"),
    ]
    assert tables.divergence_table(handmade.evidence(tmp_path / "none")) == ""


def test_rates_that_were_kept_at_an_edge_of_their_grid_are_told(tmp_path: Path) -> None:
    assert [line for line in told_of(tmp_path / "inside") if "at an edge" in line] == []
    curves = handmade.contents()["03b_controls"]["curves"]
    lora = replace(curves["ce, lora"], recipe={"lr": 2e-4})
    (line,) = [
        line
        for line in told_of(tmp_path / "edge", changes={("03b_controls", "curves"): curves | {"ce, lora": lora}})
        if "at an edge" in line
    ]
    assert line.endswith("a better one may lie beyond: gpt2-mini, ce, lora: 0.0002 of 5e-05, 0.0001, 0.0002.")


def test_rounding_that_beats_the_cut_at_fewer_bytes_is_told(tmp_path: Path) -> None:
    def told(name: str, n_bytes: int) -> list[str]:
        sizes = handmade.Facts(BYTES | {"recovered": 950, "teacher": 1000, "quantised, 8 bits": n_bytes})
        scores = TEST_B | {"quantised, 8 bits": handmade.score(3.0), "recovered": handmade.score(3.1)}
        changes = {("03b_controls", "bytes"): sizes, ("03b_controls", "test_scores"): scores}
        return [line for line in told_of(tmp_path / name, changes=changes) if "loses to rounding: quantised, 8 bits" in line]

    (line,) = told("smaller", 650)
    assert "quantised, 8 bits takes 0.65 of the bytes at a PPL ratio of 1.000" in line
    assert "the recovered student 0.95 at 1.105" in line
    assert told("larger", 990) == []


def test_stages_that_end_higher_are_told(tmp_path: Path) -> None:
    worse = TEST_B | {"staged": handmade.score(3.4), "one_shot": handmade.score(3.3)}
    lines = told_of(tmp_path, changes={("03b_controls", "test_scores"): worse})
    (line,) = [line for line in lines if "in two stages" in line and line.startswith("gpt2-mini")]
    assert "1.105 [1.105, 1.105] of its perplexity (n = 8 articles)" in line


def test_every_arm_stands_beside_both_teachers_and_the_unrecovered_student(tmp_path: Path) -> None:
    evidence = handmade.evidence(tmp_path)
    shown = tables.both_teachers_table(evidence)
    scores = evidence.test("04_transfer_tinyllama")
    others = (scores["teacher"], scores["teacher + same text (ce)"], scores["unrecovered"])
    ratios = [str(intervals.ppl_ratio(scores["recovered"], other)) for other in others]
    assert f"<tr>{tables.table_row(['smollm2-135m', 'recovered', *ratios])}</tr>" in shown
    for arm in evidence.test("03_recovery") | evidence.test("03b_controls"):
        assert (f"<td>gpt2-mini</td><td>{arm}</td>" in shown) == (arm != "teacher")


def test_arms_that_were_scored_on_other_tokens_are_set_beside_none(tmp_path: Path) -> None:
    longer = {name: replace(s, n_tokens=tuple(2 * n for n in s.n_tokens)) for name, s in TEST_B.items()}
    changes = {("03b_controls", "test_scores"): longer, ("03b_controls", "timed_test_scores"): None}
    shown = tables.both_teachers_table(handmade.evidence(tmp_path, changes=changes))
    assert re.search(r"<td>width</td><td>[\d.]+ \[[^<]*</td><td>scored on other tokens</td><td>[\d.]+ \[", shown)


def test_every_arm_stands_beside_its_own_cut_before_recovery(tmp_path: Path) -> None:
    """One layer more, or narrower, is another student: beside the main cut before recovery, it would seem to have won back less or more."""
    shown = tables.both_teachers_table(handmade.evidence(tmp_path))
    rows = [re.findall("<td>(.*?)</td>", row) for row in shown.split("<tr>")[2:]]
    own = {arm: before for model, arm, *_, before in rows if model == "gpt2-mini"}
    assert own["recovered"].startswith(f"{math.exp(3.05 - 3.2):.3f}")
    assert own["one_shot"].startswith(f"{math.exp(3.08 - 3.3):.3f}") and own["width"].startswith(f"{math.exp(3.1 - 3.25):.3f}")
    assert own["ce (timed)"].startswith(f"{math.exp(3.07 - 3.2):.3f}")
    assert own["quantised, 4 bits"] == own["teacher + same text (ce)"] == own["unrecovered"] == ""


def test_every_trial_of_the_recipe_stands_beside_the_level_that_was_kept(tmp_path: Path) -> None:
    evidence = handmade.evidence(tmp_path)
    tried = evidence.record("03_recovery", "sweep")
    shown = tables.sweep_table(evidence)
    factors = {name.split(": ")[0] for name in tried}
    assert shown.count("<tr>") == 1 + len(tried) and shown.count("<td>kept</td>") == len(factors)


DIVERGED = {
    ("03_recovery", "sweep"): "rate: 0.2",
    ("03_recovery", "trials_with_text"): "control-ce: adamw, 0.1",
    ("03_recovery", "test_scores"): "mixed",
    ("03b_controls", "validation/pilot-width-lr0.1"): "pilot-width-lr0.1",
    ("03b_controls", "timed_test_scores"): "ce (timed)",
    ("03c_choice", "set_scores"): "6,7 (seed 1)",
    ("04_transfer_tinyllama", "validation/pilot-student-lr0.1"): "pilot-student-lr0.1",
    ("05_seed_stability", "test_scores"): "seed 2",
}


@pytest.mark.parametrize("where", DIVERGED, ids=str)
def test_every_run_that_diverged_is_told(tmp_path: Path, where: tuple[str, str]) -> None:
    (notebook, name), arm = where, DIVERGED[where]
    stopped = replace(handmade.score(3.1), diverged="the kl loss is nan at step 3")
    honest = handmade.contents()[notebook].get(name, {"another": handmade.score(3.1)})
    evidence = handmade.evidence(tmp_path, changes={where: stopped if "pilot" in arm else {**honest, arm: stopped}})
    page = story.failures_html(evidence, claims.judge(evidence))
    told = f"<li>{arm} (notebook {notebook}) diverged: the kl loss is nan at step 3. What such a run began from stands in its place.</li>"
    assert told in page and page.count("stands in its place") == 1


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize(
    ("notebook", "arm", "piece"),
    [
        ("03_recovery", "unrecovered", "answer"),
        ("03_recovery", "mixed", "recovery"),
        ("03b_controls", "width", "controls"),
        ("04_transfer_tinyllama", "unrecovered", "answer"),
        ("05_seed_stability", "seed 0", "seeds"),
        ("05_seed_stability", "seed 1", "seeds"),
    ],
)
def test_a_perplexity_that_overflows_is_told_as_such(tmp_path: Path, notebook: str, arm: str, piece: str) -> None:
    honest = handmade.contents()[notebook]["test_scores"]
    evidence = handmade.evidence(tmp_path, changes={(notebook, "test_scores"): {**honest, arm: handmade.score(800.0)}})
    pages = {name: make(evidence) for name, make in PIECES.items()}
    assert "inf [inf, inf]" in pages[piece]
    assert not any(re.search(r"\bnan\b", re.sub("base64,[^'\"]*", "", page)) for page in pages.values())


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("wild", ["seed 0", "seed 1"])
def test_notebook_05_shows_a_seed_whose_perplexity_overflows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], wild: str
) -> None:
    desk = MagicMock()
    desk.read.return_value.values = {"rule": "greedy", "drop_count": 2, "tokens": 64, "recipe": {"seq_len": 8}}
    desk.model.return_value = (MagicMock(), MagicMock())
    desk.recover.return_value = (MagicMock(), handmade.curve(3.2, 3.1))
    scored = {"teacher": handmade.score(3.0), wild: handmade.score(800.0)}
    for method in (desk.validation_scores, desk.test_scores):
        method.side_effect = lambda arms, _: {name: scored.get(name, handmade.score(3.05)) for name in arms}
    stamp = handmade.stamp("05_seed_stability", "test_scores", {})
    desk.save = lambda name, record: records.write(tmp_path / f"{name}.json", record, stamp)
    desk.show = lambda name, figure: figures.png(figure)
    monkeypatch.setattr(bench, "open_bench", lambda notebook, cell: desk)
    monkeypatch.setattr(pruning, "drop_layers", MagicMock())
    handmade.executed("05_seed_stability", seeds=[0, 1, 2])
    assert "mean over 3 seeds inf [inf, inf], from 1.0513 to inf" in capsys.readouterr().out
    assert records.read(tmp_path / "seeds.json").values == {"seeds": [0, 1, 2]}


def test_where_records_are_from_is_told_as_text(tmp_path: Path) -> None:
    evidence = handmade.evidence(tmp_path)
    nasty = {"versions": {"<b>torch": "<i>2"}, "commit": "<u>c", "code_hash": "<s>h", "device": "<script>d"}
    for path in tmp_path.rglob("*.json"):
        records.write(path, records.read(path), replace(records.read_stamp(path), **nasty))
    page = story.provenance_html(evidence)
    assert not re.search("<[^/]?(b|i|u|s|script)>", page)
    assert "&lt;b&gt;torch &lt;i&gt;2" in page and "&lt;u&gt;c" in page and "&lt;s&gt;h" in page


def test_a_figure_carries_its_caption_and_escapes_both() -> None:
    figure = plt.figure()
    page = story.figure_html(figure, 'a "text" <b>', "a caption <b>")
    plt.close(figure)
    assert "alt='a &quot;text&quot; &lt;b&gt;'" in page
    assert "<figcaption>a caption &lt;b&gt;</figcaption>" in page


# ---------------------------------------------------------------- publishing


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The ci study as if it had run: records by hand, notebooks as they are in the repository."""
    monkeypatch.setenv("DEPTHPRUNE_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("DEPTHPRUNE_REPORTS", str(tmp_path / "reports"))
    shutil.copytree(places.PARAMS, tmp_path / "params")
    monkeypatch.setattr(places, "PARAMS", tmp_path / "params")
    handmade.evidence(places.runs("ci") / "records")
    run.executed("ci", "06_report").parent.mkdir(parents=True)
    for notebook in run.READS:
        shutil.copy(places.NOTEBOOKS / f"{notebook}.ipynb", run.executed("ci", notebook))
    (places.runs("ci") / "figures").mkdir()
    (places.runs("ci") / "done").mkdir()
    for step in run.plan("ci"):
        run._mark("ci", step.notebook).write_text(json.dumps({"key": step.key, "files": run._files("ci", step.notebook)}))
    return "ci"


def test_records_of_another_version_of_a_notebook_are_told_on_the_reports_face(
    study: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    n = len(list((places.runs(study) / "records").rglob("*.json")))  # made by hand: none is of the notebook beside it
    first = r"records/01_sensitivity/\S+\.json was made by another version of notebook 01_sensitivity than the one beside it"
    warning = rf"<p class='warning'>Not all records are of the notebooks beside them: {n} are not, such as this one: {first}"
    assert re.search(warning, report.publish(study).read_text(encoding="utf-8"))
    assert "class='warning'" not in (places.reports(study) / "03_recovery.html").read_text(encoding="utf-8")
    monkeypatch.setattr(report, "of_other_notebooks", lambda folder, root: iter(()))
    assert "Not all records" not in report.publish(study).read_text(encoding="utf-8")


def test_a_report_holds_pages_notebooks_records_and_the_answer(study: str) -> None:
    page = report.publish(study)
    folder = places.reports(study)
    assert page == folder / "report.html"
    pages = {f"{name}.html" for name in list(run.READS)[:-1]} | {"report.html"}
    assert {path.name for path in folder.glob("*.html")} == pages
    assert {path.stem for path in (folder / "notebooks").iterdir()} == set(run.READS)
    assert (folder / "figures" / "answer.png").read_bytes()[:4] == b"\x89PNG"
    assert sorted(path.name for path in (folder / "records").iterdir()) == list(handmade.NOTEBOOKS)


def test_every_link_between_the_pages_leads_somewhere(study: str) -> None:
    report.publish(study)
    folder = places.reports(study)
    for path in folder.glob("*.html"):
        for link in Elements(path.read_text(encoding="utf-8")).of("a"):
            target = link.get("href") or ""
            assert target.startswith(("http", "#")) or (folder / target).exists(), (path.name, target)


def test_a_new_report_replaces_the_old_one_whole(study: str) -> None:
    report.publish(study)
    (places.reports(study) / "stale.txt").write_text("of the old report")
    report.publish(study)
    assert not (places.reports(study) / "stale.txt").exists()
    assert sorted(path.name for path in places.reports(study).parent.iterdir()) == ["ci", "index.html"]


def test_the_old_report_stays_where_building_a_new_one_fails(study: str, monkeypatch: pytest.MonkeyPatch) -> None:
    report.publish(study)
    before = {path: path.read_bytes() for path in places.reports(study).rglob("*") if path.is_file()}

    def fail(*args: Any, **options: Any) -> str:
        raise RuntimeError("the page cannot be made")

    monkeypatch.setattr(report, "page", fail)
    with pytest.raises(RuntimeError, match="the page cannot be made"):
        report.publish(study)
    assert {path: path.read_bytes() for path in places.reports(study).rglob("*") if path.is_file()} == before


def test_the_old_report_stays_where_it_cannot_be_replaced(study: str, monkeypatch: pytest.MonkeyPatch) -> None:
    report.publish(study)
    before = {path: path.read_bytes() for path in places.reports(study).rglob("*") if path.is_file()}
    plain = report.os.replace

    def fail_at_the_last(source: Path, target: Path) -> None:
        if Path(source).name.endswith(".new"):
            raise OSError("disk full")
        plain(source, target)

    monkeypatch.setattr(report.os, "replace", fail_at_the_last)
    with pytest.raises(OSError, match="disk full"):
        report.publish(study)
    assert {path: path.read_bytes() for path in places.reports(study).rglob("*") if path.is_file()} == before


HOLD = """
import sys, time
from depthprune_study import places, run
with run.alone(places.runs("ci")):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("words", [("report", "ci"), ("report", "ci", "--unfinished"), ("run", "ci")])
def test_a_study_that_another_process_works_on_is_not_published(study: str, words: tuple[str, ...]) -> None:
    report.publish(study)
    shutil.rmtree(places.reports(study) / "figures")  # of what is current, `run` would publish nothing anew
    (places.reports(study) / "made-from.json").write_text("{}")
    if "--unfinished" in words:
        run._mark(study, "06_report").unlink()
    before = sorted(places.reports(study).parent.rglob("*"))
    with subprocess.Popen([sys.executable, "-c", HOLD], stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout.readline() == "held\n"
            refused = CliRunner().invoke(cli.app, list(words))
        finally:
            other.kill()
    assert refused.exit_code == 1
    assert refused.stderr == "study ci is being run or published by another process: wait for it, or stop it\n"
    assert sorted(places.reports(study).parent.rglob("*")) == before
    done = CliRunner().invoke(cli.app, list(words))  # the lock went with the process
    assert done.exit_code == 0, done.output
    assert (places.reports(study) / "figures").exists() == ("--unfinished" not in words)


@pytest.mark.parametrize("unfinished", [False, True])
def test_the_study_is_locked_while_it_is_published(study: str, monkeypatch: pytest.MonkeyPatch, unfinished: bool) -> None:
    refused: list[bool] = []

    def page(*args: Any, **options: Any) -> str:
        with open(places.runs(study) / ".lock", "w", encoding="utf-8") as lock, pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        refused.append(True)
        return "a page"

    monkeypatch.setattr(report, "page", page)
    report.publish(study, unfinished=unfinished)
    assert len(refused) == len(run.READS) - unfinished
    with run.alone(places.runs(study)):  # and not longer
        pass


def test_a_file_that_is_just_being_written_is_not_published(study: str) -> None:
    (places.runs(study) / "records" / "01_sensitivity" / ".profile.json.123.tmp").write_text("{")
    report.publish(study)
    assert [path.name for path in places.reports(study).rglob(".*")] == []


def test_a_report_of_an_unfinished_run_holds_what_there_is(study: str) -> None:
    for waiting in ("05_seed_stability", "06_report"):
        run._mark(study, waiting).unlink()
    folder = report.publish(study, unfinished=True)
    done = [notebook for notebook in run.READS if notebook not in {"05_seed_stability", "06_report"}]
    assert sorted(path.stem for path in folder.glob("*.html")) == done
    assert [name for name, current in report.is_current(study).items() if current] == done
    for path in folder.glob("*.html"):
        links = [link.get("href") or "" for link in Elements(path.read_text(encoding="utf-8")).of("a")]
        assert all(link.startswith(("http", "#")) or (folder / link).exists() for link in links)


def test_a_report_is_enough_to_go_on_from_elsewhere(study: str) -> None:
    arm = places.runs(study) / "arms" / "recovered" / "key.json"
    arm.parent.mkdir(parents=True)
    arm.write_text("a curve")
    arm.with_suffix(".safetensors").write_text("weights")
    report.publish(study)
    records_before = {p.relative_to(places.runs(study)): p.read_text() for p in places.runs(study).rglob("records/**/*.json")}
    shutil.rmtree(places.runs(study))
    kept = places.runs(study) / "arms" / "other.json"
    kept.parent.mkdir(parents=True)
    kept.write_text("of this run")
    assert run.restore(study, places.reports(study)) == len(records_before) + 2  # the arm, the costs
    restored = {p.relative_to(places.runs(study)): p.read_text() for p in places.runs(study).rglob("records/**/*.json")}
    assert restored == records_before
    assert arm.read_text() == "a curve" and kept.read_text() == "of this run"
    assert not arm.with_suffix(".safetensors").exists()
    arm.write_text("a newer one")
    assert run.restore(study, places.reports(study)) == 0
    assert arm.read_text() == "a newer one"


def test_a_report_is_current_until_a_parameter_changes(study: str) -> None:
    report.publish(study)
    assert set(report.is_current(study).values()) == {True}
    path = places.PARAMS / "ci" / "02_prune_gpt2.yaml"
    path.write_text(path.read_text(encoding="utf-8").replace("random_draws: 2", "random_draws: 3"), encoding="utf-8")
    current = report.is_current(study)
    assert current["01_sensitivity"]
    assert not any(current[name] for name in ("02_prune_gpt2", "03_recovery", "06_report"))


def test_a_report_of_a_run_that_was_overtaken_by_an_edit_is_not_current(study: str) -> None:
    path = places.PARAMS / "ci" / "05_seed_stability.yaml"
    path.write_text(path.read_text(encoding="utf-8").replace("seeds: [0, 1, 2]", "seeds: [0, 1, 3]"), encoding="utf-8")
    report.publish(study)
    assert [name for name, current in report.is_current(study).items() if not current] == ["05_seed_stability", "06_report"]


def test_a_report_that_was_never_made_is_not_current(study: str) -> None:
    assert set(report.is_current(study).values()) == {False}


@pytest.mark.parametrize("content", ["", "[]", "null", "not json"])
def test_a_report_whose_origin_is_damaged_is_not_current(study: str, content: str) -> None:
    places.reports(study).mkdir(parents=True)
    (places.reports(study) / "made-from.json").write_text(content)
    assert set(report.is_current(study).values()) == {False}


@pytest.fixture
def made_writable(study: str, writable: Callable[[Path], Callable[[bool], object]]) -> Callable[[bool], object]:
    """Makes reports/ read-only, or writable again."""
    folder = places.reports(study).parent
    folder.mkdir()
    return writable(folder)


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


def assert_told_in_a_sentence_and_nothing_lost(study: str, told: str, mend: Callable[[], object]) -> None:
    """A run whose report cannot be written says so, what it has done stays, and the same command publishes it once it can."""
    before = contents(places.runs(study))
    refused = CliRunner().invoke(cli.app, ["run", study])
    assert (refused.exit_code, refused.stderr) == (1, f"{told}\n"), refused.output
    assert contents(places.runs(study)) == before
    assert all(step.done for step in run.plan(study))
    mend()
    done = CliRunner().invoke(cli.app, ["run", study])
    assert done.exit_code == 0, done.output
    assert done.stdout.endswith(f"report: {places.reports(study) / 'report.html'}\n")
    assert set(report.is_current(study).values()) == {True}
    assert contents(places.runs(study)) == before


def test_a_folder_of_reports_that_is_read_only_costs_no_result(study: str, made_writable: Callable[[bool], object]) -> None:
    report.publish(study)
    (places.reports(study) / "made-from.json").write_text("{}")  # of an older run
    before = contents(places.reports(study).parent)
    made_writable(False)
    why = os.strerror(errno.EROFS if os.geteuid() == 0 else errno.EACCES)
    building = places.reports(study).with_name(".ci.new")

    def mend() -> None:
        assert contents(places.reports(study).parent) == before
        made_writable(True)

    assert_told_in_a_sentence_and_nothing_lost(study, f"{why}: {building}", mend)


def test_a_folder_of_reports_with_spaces_and_other_letters_is_as_good_as_any(
    study: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = report.publish(study).read_bytes()
    monkeypatch.setenv("DEPTHPRUNE_REPORTS", str(tmp_path / "Berichte für 東京 %s {x} #1"))
    page = report.publish(study)
    assert page.parent.parent.name == "Berichte für 東京 %s {x} #1"
    assert page.read_bytes() == plain
    assert set(report.is_current(study).values()) == {True}


def test_a_file_where_the_reports_should_be_costs_no_result(study: str) -> None:
    reports = places.reports(study).parent
    reports.write_text("")
    assert_told_in_a_sentence_and_nothing_lost(
        study, f"{os.strerror(errno.ENOTDIR)}: {reports / '.ci.new' / 'notebooks'}", reports.unlink
    )


# ---------------------------------------------------------------- the committed reports

COMMITTED = [path.parent for path in sorted(places.reports("any").parent.glob("*/report.html"))]


@pytest.mark.parametrize("folder", COMMITTED, ids=lambda folder: folder.name)
def test_a_committed_report_opens_offline(folder: Path) -> None:
    for path in folder.glob("*.html"):
        page = path.read_text(encoding="utf-8")
        assert_self_contained(page)
        assert_every_image_has_a_text(page)


@pytest.mark.parametrize("folder", COMMITTED, ids=lambda folder: folder.name)
def test_a_committed_notebook_has_few_outputs_a_cell(folder: Path) -> None:
    for path in (folder / "notebooks").glob("*.ipynb"):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        counts = [len(cell["outputs"]) for cell in cells if cell["cell_type"] == "code"]
        assert max(counts) <= 5, path.name


@pytest.mark.parametrize("folder", COMMITTED, ids=lambda folder: folder.name)
def test_a_committed_report_names_no_path_of_the_machine(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.suffix in {".html", ".ipynb", ".json"}:
            content = path.read_text(encoding="utf-8")
            assert str(places.ROOT) not in content, path
            assert str(Path.home()) + "/" not in content, path
            assert "PosixPath(" not in content, f"{path}: a cell ends in a path, which its output then shows"


@pytest.mark.parametrize("folder", COMMITTED, ids=lambda folder: folder.name)
def test_a_committed_study_is_one_that_can_be_run(folder: Path) -> None:
    assert folder.name in settings.studies()


@pytest.mark.parametrize("folder", COMMITTED, ids=lambda folder: folder.name)
def test_the_committed_controls_saw_the_same_token_ids_and_have_the_same_size(folder: Path) -> None:
    recovery = records.read(folder / "records" / "03_recovery" / "curves.json")
    assert {"recovered", "ce", "teacher + same text (ce)"} <= set(recovery)
    assert len({curve.token_hash for curve in recovery.values()}) == 1
    controls = records.read(folder / "records" / "03b_controls" / "curves.json")
    same = ("recovered", "width", "one_shot", "ce", "ce, lora")
    assert {controls[arm].token_hash for arm in same} == {recovery["recovered"].token_hash}
    assert controls["staged"].tokens[-1] * 2 == pytest.approx(controls["one_shot"].tokens[-1], rel=0.05)
    width = records.read(folder / "records" / "03b_controls" / "width.json").values
    assert width["n_parameters"] == pytest.approx(width["n_parameters_shallow"], rel=0.005)


def test_a_page_is_the_same_each_time(executed: Path) -> None:
    pages = {report.page(executed, "quick", with_code=True) for _ in range(2)}
    assert len(pages) == 1
    assert io.StringIO(pages.pop()).readline() == "<!DOCTYPE html>\n"


def test_the_page_tells_what_the_ratios_are_ratios_to(tmp_path: Path) -> None:
    shown = tables.scored_table(handmade.evidence(tmp_path))
    whole = handmade.score(3.0)
    for model in ("gpt2-mini", "smollm2-135m"):
        cells = [
            model,
            str(len(whole.documents)),
            f"{len(whole.documents):.1f}",
            "256",
            "128",
            f"{math.exp(3):.2f}",
            f"{whole.bits_per_byte:.3f}",
        ]
        assert f"<tr>{tables.table_row(cells)}</tr>" in shown


def test_a_rule_that_drops_the_same_layers_is_there_with_them(tmp_path: Path) -> None:
    evidence = handmade.evidence(tmp_path)
    scores = {"least_sensitive": handmade.score(3.1), "pairwise": handmade.score(3.1), "last_k": handmade.score(3.4)}
    shown = tables.rules_table(
        scores, {"least_sensitive": "2 + 3", "pairwise": "2 + 3", "last_k": "10 + 11"}, "before recovery"
    )
    assert "<td>least_sensitive, pairwise</td><td>2 + 3</td><td>-</td><td></td>" in shown
    assert re.search(r"<td>last_k</td><td>10 \+ 11</td><td>0\.300 \[.*?\]</td><td>at most 0\.0005</td>", shown)
    assert sections._cuts(evidence) == {"least_sensitive": "2 + 3"}
