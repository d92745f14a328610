"""Probes: items with one right answer, scored as plain transformers scores them, in pairs."""

from __future__ import annotations

import json
from collections import Counter

import pytest
import torch
from tiny import BYTES, FAMILIES, byte_tokenizer, tiny

from depthprune_core.records import Plan
from depthprune_core.text import Document
from depthprune_study.errors import StudyError
from depthprune_study.lab import harness, probes, students
from depthprune_study.lab.items import Item, make_items
from depthprune_study.lab.workspace import Workspace
from depthprune_study.results.statistics import CHANCE

PASSAGE = (
    "The small garden lies behind the old house where Laura lives with her brother and many cats. "
    "Every summer people walk through that garden and talk about flowers while Laura waters them. "
    "Nobody ever walks home before night because nobody wants to leave the garden. "
)
DOCUMENTS = [Document("one", 4 * PASSAGE), Document("two", 3 * PASSAGE)]
TEXTS = {"articles": DOCUMENTS, "news": DOCUMENTS}


def test_two_thousand_items_in_six_families_with_one_right_answer_each():
    made = make_items(2_000, TEXTS)
    counts = Counter(item.family for item in made)
    assert len(made) >= 2_000 and set(counts) == set(CHANCE)
    assert all(counts[family] >= 333 for family in ("agreement", "copying", "recall", "arithmetic"))
    for item in made:
        assert len(set(item.candidates)) == len(item.candidates) == round(1 / CHANCE[item.family])
        assert all(candidate.startswith(" ") for candidate in item.candidates)


def test_items_depend_only_on_the_seed():
    assert make_items(300, TEXTS, seed=1) == make_items(300, TEXTS, seed=1)
    assert make_items(300, TEXTS, seed=1) != make_items(300, TEXTS, seed=2)


def answer(item: Item) -> str:
    return item.candidates[item.right].strip()


def test_the_right_answer_is_right():
    for item in make_items(40, {}, seed=3):
        if item.family == "arithmetic":
            question = item.context.rsplit(". ", 1)[1].removesuffix(" =")
            assert eval(question) == int(answer(item)), item
        elif item.family == "copying":
            first, _, again = item.context.split(". ")
            assert f"{again} {answer(item)}" == first[: len(again) + len(answer(item)) + 1], item
        elif item.family == "recall":
            *facts, question = item.context.split(". ")
            assert f"{question} {answer(item)}" in facts, item
        else:
            words = item.context.lower().rsplit("the ", 2)[1].split()  # of the subject
            assert (answer(item) in ("are", "were", "have")) == words[0].endswith("s"), item


def test_a_cloze_asks_for_a_word_that_the_passage_has_used():
    asked = [item for item in make_items(100, TEXTS) if item.family == "articles"]
    assert asked and all(answer(item) in item.context for item in asked)
    assert {answer(item) for item in asked} == {"cats", "garden", "them"}


def test_other_families_replace_items_that_a_short_text_lacks():
    made = make_items(600, {"articles": DOCUMENTS[:1], "news": [Document("short", "Too short.")]})
    assert len(made) >= 600 and "news" not in {item.family for item in made}


def test_too_few_items_are_refused():
    with pytest.raises(StudyError, match="n_items must be at least 6, one per family, not 3"):
        make_items(3, TEXTS)


# ---------------------------------------------------------------- scoring


def plain(model, tokenizer, item: Item, start: int) -> list[float]:
    """Each candidate's total log-likelihood, by a separate pass over the whole text."""
    found = []
    n = len(tokenizer(item.context, add_special_tokens=False).input_ids)
    for candidate in item.candidates:
        ids = [start, *tokenizer(item.context + candidate, add_special_tokens=False).input_ids]
        with torch.no_grad():
            log_q = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        found.append(sum(float(log_q[i, ids[i + 1]]) for i in range(n, len(ids) - 1)))
    return found


@pytest.mark.parametrize("name", FAMILIES)
def test_scores_are_those_of_a_plain_pass_over_each_candidate(name, monkeypatch):
    monkeypatch.setattr(probes, "BATCH_TOKENS", 300)  # several batches with different rows
    model = tiny(name, vocab_size=BYTES, max_position_embeddings=256)
    tokenizer = byte_tokenizer()
    asked = [*make_items(24, {}, seed=5), Item("x", "a b", (" c", " cd", " ce"), 1)]
    asked = [item for item in asked if len(item.context) < 240]
    ours = probes.log_likelihoods(model, tokenizer, asked, start=0)
    for item, row in zip(asked, ours, strict=True):
        wanted = plain(model, tokenizer, item, 0)
        gaps = [
            value - row[0] for value in row
        ]  # the common part of all candidates may be left out
        assert gaps == pytest.approx([value - wanted[0] for value in wanted], abs=2e-4)
    marks = probes.right(model, tokenizer, asked, start=0)
    best = [max(range(len(row)), key=row.__getitem__) for row in ours]
    assert marks == [item.right == index for item, index in zip(asked, best, strict=True)]


def test_all_students_get_the_same_items_and_answer_once(lab: Workspace, monkeypatch) -> None:
    asked, right = [], probes.right
    monkeypatch.setattr(probes, "right", lambda *a, **k: asked.append(a[2]) or right(*a, **k))
    both = {"whole": lab.teacher, "cut": students.cut(lab, Plan(lab.n_layers, (1,), "by hand"))}
    found = probes.answers(lab, both, n_items=60)
    assert len(asked) == 2 and asked[0] == asked[1]
    assert lab.read(lab.notebook, "probes") == found
    for family in CHANCE:
        whole, cut = found[f"whole: {family}"], found[f"cut: {family}"]
        assert len(whole.right) == len(cut.right) and whole.task == cut.task == family
    assert probes.answers(lab, both, n_items=60) == found
    assert len(asked) == 2, "the answers are kept"
    probes.answers(lab, both, n_items=66)
    assert len(asked) == 4, "other items are asked anew"


# ---------------------------------------------------------------- lm-eval


@pytest.mark.slow
def test_unknown_tasks_are_named():
    pytest.importorskip("lm_eval")
    with pytest.raises(StudyError, match="names that match no lm-eval task: pika, wino"):
        harness.run(None, None, ["piqa", "pika", "wino"])


@pytest.mark.slow
def test_lm_eval_answers_in_order_and_keeps_its_own_files(tmp_path, monkeypatch):
    pytest.importorskip("lm_eval")
    rows = [
        {"context": f"{i} plus 1 is", "answer": str(i + 1), "choices": ["a", "b"]} for i in range(6)
    ]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {
        "task": "tiny_choice",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}, "cache_dir": str(tmp_path / "cache")},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{context}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": 1,
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    (tmp_path / "tiny_choice.yaml").write_text(json.dumps(task))
    model, tokenizer = tiny("llama", vocab_size=BYTES), byte_tokenizer()
    folder = tmp_path / "kept"
    given = harness.run(model, tokenizer, ["tiny_choice"], folder=folder, include_path=tmp_path)
    asked = [Item("t", row["context"], (" a", " b"), 1) for row in rows]
    start = tokenizer.bos_token_id
    assert given["tiny_choice"].right == tuple(probes.right(model, tokenizer, asked, start=start))
    kept = sorted(path.name.split("_")[0] for path in folder.rglob("*.json*"))
    assert kept == ["results", "samples"]
