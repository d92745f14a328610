"""Measurements: each student once by content, the test split guarded."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from depthprune_core import evaluation
from depthprune_core.records import Plan
from depthprune_study.errors import StudyError
from depthprune_study.lab import scoring, search, students
from depthprune_study.lab.workspace import Workspace

Open = Callable[..., Workspace]


def plan_of(lab: Workspace, *dropped: int) -> Plan:
    return Plan(lab.n_layers, dropped, "by hand")


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by the layers of every model that is scored."""
    scored, score = [], evaluation.score

    def watched(model, windows, **options):
        scored.append(model.config.num_hidden_layers)
        return score(model, windows, **options)

    monkeypatch.setattr(evaluation, "score", watched)
    return scored


def test_validation_scores_are_the_cores_own(lab: Workspace) -> None:
    student = students.cut(lab, plan_of(lab, 1))
    found = scoring.validation(lab, {"whole": lab.teacher, "cut": student})
    windows = lab.windows("validation", tokens=60)
    assert found["whole"] == evaluation.score(lab.teacher.model, windows)
    assert found["cut"] == evaluation.score(student.model, windows)
    assert lab.read(lab.notebook, "validation") == found
    assert set(found["whole"].n_tokens) == {60}


def test_equal_students_are_scored_once_under_any_name(open_lab: Open, counted: list[int]) -> None:
    lab = open_lab()
    one, same = students.cut(lab, plan_of(lab, 1)), students.cut(lab, plan_of(lab, 1))
    first = scoring.validation(lab, {"a": one, "b": same})
    assert counted == [5]
    lab = open_lab(seed=0)
    again = scoring.validation(lab, {"c": students.cut(lab, plan_of(lab, 1))}, name="before")
    assert counted == [5]
    assert again["c"] == first["a"]


@torch.no_grad()
def test_the_papers_figure_is_that_of_a_plain_loop_over_one_text(lab: Workspace) -> None:
    found = scoring.conventional(lab)["whole"]
    teacher, length = lab.teacher, min(lab.parameters["seq_len"], lab.context)
    words = "".join(document.text for document in lab.split("test"))
    ids = [teacher.start, *teacher.tokenizer(words, add_special_tokens=False).input_ids]
    losses = []
    for begin in range(0, len(ids) - length, length):
        row = torch.tensor([ids[begin : begin + length + 1]])
        logits = teacher.model(input_ids=row[:, :-1]).logits[0]
        losses.append(float(nn.functional.cross_entropy(logits, row[0, 1:], reduction="sum")))
    assert found.n_tokens == (length * len(losses),)
    assert found.mean_nll_nats == pytest.approx(sum(losses) / found.n_tokens[0], abs=1e-4)


def test_the_test_split_is_refused_elsewhere(lab: Workspace) -> None:
    for ask in (lab.documents, lab.windows):
        with pytest.raises(StudyError, match=r"only scoring.test and scoring.elsewhere may read"):
            ask("test")


def test_test_articles_are_read_once_under_a_name(lab: Workspace) -> None:
    whole, cut = {"whole": lab.teacher}, {"cut": students.cut(lab, plan_of(lab, 1))}
    found = scoring.test(lab, whole)
    assert scoring.test(lab, whole) == found  # a cell that is run again
    with pytest.raises(StudyError, match="score all students in one call"):
        scoring.test(lab, cut)
    scoring.test(lab, whole | cut, name="rivals")
    assert set(lab.read(lab.notebook, "rivals")) == {"whole", "cut"}


def test_no_choice_is_made_after_test_articles_were_read(lab: Workspace) -> None:
    scoring.test(lab, {"whole": lab.teacher})
    recipe = lab.recipe(seq_len=48, batch_tokens=96, refit_tokens=0)
    with pytest.raises(StudyError, match="make choices before"):
        search.best_rate(lab, "text", plan_of(lab, 1), recipe, [1e-4, 1e-3], tokens=192)


def test_elsewhere_is_another_text(lab: Workspace) -> None:
    found = scoring.elsewhere(lab, "news-excerpt", {"whole": lab.teacher})
    assert lab.read(lab.notebook, "elsewhere") == found
    names = {document.name for document in lab.split("test", "news-excerpt")}
    assert set(found["whole"].documents) == names


def test_the_divergence_of_the_teacher_from_itself_is_zero(lab: Workspace) -> None:
    same = students.cut(lab, plan_of(lab))
    cut = students.cut(lab, plan_of(lab, 1, 2))
    found = scoring.divergences(lab, {"same": same, "cut": cut})
    assert found["same"].mean_kl_nats == pytest.approx(0, abs=1e-5)
    assert found["same"].agreement == 1
    assert found["cut"].mean_kl_nats > 0.01


def test_continuations_name_prompts_and_samples(open_lab: Open) -> None:
    lab = open_lab(model="gpt2-mini")
    everyone = {"whole": lab.teacher, "cut": students.cut(lab, plan_of(lab, 1, 2))}
    facts = scoring.continuations(lab, everyone, n_prompts=2, new_tokens=3)
    assert [len(prompt.split()) for prompt in facts.values["prompts"]] == [16, 16]
    assert {name: len(texts) for name, texts in facts.values["samples"].items()} == {
        "whole": 2,
        "cut": 2,
    }
    assert facts == lab.read(lab.notebook, "continuations")


def test_a_prompt_and_its_continuation_fit_into_the_context(
    lab: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Workspace, "context", 12)
    facts = scoring.continuations(lab, {"whole": lab.teacher}, n_prompts=2, new_tokens=5)
    lengths = [len(lab.teacher.tokenizer(p).input_ids) for p in facts.values["prompts"]]
    assert all(1 <= n <= 12 - 5 - 1 for n in lengths)


def test_times_are_taken_once_on_a_machine(open_lab: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "CONTEXT", 16)
    monkeypatch.setattr(scoring, "NEW_TOKENS", 2)

    def timed(lab: Workspace) -> dict:
        cut = students.cut(lab, plan_of(lab, 1))
        everyone = {"0 fewer": lab.teacher, "1 fewer": cut}
        return scoring.timing(lab, everyone, rounds=3)

    first = timed(open_lab())
    assert len(first["1 fewer"].student_decode_ms_per_token) == 3
    assert timed(open_lab()) == first
    monkeypatch.setattr(Workspace, "machine", "another machine")
    assert timed(open_lab()) != first


def test_unknown_shapes_are_refused(lab: Workspace) -> None:
    with pytest.raises(StudyError, match=r"'gpt5' is not one of gpt2-shape, tinyllama-1.1b-shape"):
        scoring.shape_timing(lab, ["gpt5"], rounds=3)


def test_sizes_count_layers_and_parameters(lab: Workspace) -> None:
    cut = students.cut(lab, plan_of(lab, 1, 2))
    sizes = scoring.sizes(lab, {"0 fewer": lab.teacher, "2 fewer": cut})
    assert [size.n_layers for size in sizes.values()] == [6, 4]
    layer = sum(p.numel() for p in lab.teacher.model.model.layers[0].parameters())
    assert sizes["0 fewer"].n_parameters - sizes["2 fewer"].n_parameters == 2 * layer


def test_of_another_text_the_first_documents_are_scored(lab: Workspace, monkeypatch) -> None:
    monkeypatch.setattr(scoring, "MOST_ELSEWHERE", 2)
    names = [document.name for document in lab.split("test", "news-excerpt")]
    far = scoring.elsewhere(lab, "news-excerpt", {"whole": lab.teacher})
    assert list(far["whole"].documents) == names[:2] != names
