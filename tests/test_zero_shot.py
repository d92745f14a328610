"""Zero-shot tasks: their items, and lm-eval's answers against plain transformers."""

from __future__ import annotations

import builtins
import json
import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from depthprune_core import intervals, models, zero_shot
from depthprune_core.records import Answers
from depthprune_core.text import Document

pytest.importorskip("lm_eval")

WORDS = ("river", "harbour", "engine", "music", "winter", "castle", "bridge", "letter", "garden", "forest", "market", "island")


def document(name: str, *, sentences: int = 60, seed: int = 0) -> Document:
    generator = random.Random(seed)
    text = " ".join(" ".join(generator.choices(WORDS, k=9)).capitalize() + "." for _ in range(sentences))
    return Document(name, text)


DOCUMENTS = [document("a", seed=1), document("b", seed=2)]


def items_of(folder: Path, task: str) -> list[dict]:
    return [json.loads(line) for line in (folder / f"{task}.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    assert zero_shot.write_tasks(folder, DOCUMENTS, n_items=10, seed=0) == [zero_shot.CLOZE, zero_shot.CHOICE]
    return folder


def test_a_cloze_item_asks_for_the_last_word_of_a_sentence_that_the_passage_has_used(tasks: Path) -> None:
    texts = {d.name: d.text for d in DOCUMENTS}
    items = items_of(tasks, zero_shot.CLOZE)
    assert len(items) == 10
    for item in items:
        assert f"{item['context']} {item['answer']}." in texts[item["document"]]
        assert item["answer"] in re.sub(r"\W", " ", item["context"]).lower().split()
        assert 30 <= len(item["context"].split()) <= 80


def test_a_choice_item_has_the_true_next_words_among_pieces_of_the_same_document(tasks: Path) -> None:
    texts = {d.name: d.text for d in DOCUMENTS}
    items = items_of(tasks, zero_shot.CHOICE)
    assert len(items) == 10
    for item in items:
        assert f"{item['context']} {item['choices'][item['label']]}" in texts[item["document"]]
        assert len(item["choices"]) == 4 and {len(choice.split()) for choice in item["choices"]} == {12}
        assert all(choice in texts[item["document"]] for choice in item["choices"])
    assert len({item["label"] for item in items}) > 1


def test_the_seed_draws_the_items(tmp_path: Path) -> None:
    drawn = []
    for name, seed in (("x", 0), ("y", 0), ("z", 1)):
        zero_shot.write_tasks(tmp_path / name, DOCUMENTS, n_items=5, seed=seed)
        drawn.append([items_of(tmp_path / name, task) for task in (zero_shot.CLOZE, zero_shot.CHOICE)])
    assert drawn[0] == drawn[1] != drawn[2]


def test_documents_without_a_passage_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="1 documents have no passage for an item of depthprune_cloze"):
        zero_shot.write_tasks(tmp_path, [Document("short", "Too short.")], n_items=5, seed=0)


@torch.no_grad()
def log_p(model, tokenizer, context: str, target: str) -> tuple[float, bool]:
    """Log-probability of the target's tokens behind the context, and whether each is the most likely one."""
    whole, before = (tokenizer(text, add_special_tokens=False).input_ids for text in (context + target, context))
    logits = model(torch.tensor([whole])).logits.log_softmax(-1)[0, len(before) - 1 : -1]
    ids = torch.tensor(whole[len(before) :])
    return float(logits.gather(1, ids[:, None]).sum()), bool((logits.argmax(-1) == ids).all())


def test_answers_are_those_of_plain_transformers(tasks: Path, tmp_path: Path) -> None:
    model, tokenizer = models.load("gpt2-mini", cache=tmp_path)
    states = torch.random.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    found = zero_shot.answers(model, tokenizer, [zero_shot.CLOZE, zero_shot.CHOICE], folder=tasks)
    assert torch.equal(torch.random.get_rng_state(), states[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states[1:]
    cloze = [log_p(model, tokenizer, item["context"], f" {item['answer']}")[1] for item in items_of(tasks, zero_shot.CLOZE)]
    assert found[zero_shot.CLOZE] == Answers(zero_shot.CLOZE, tuple(cloze))
    picked = [
        int(np.argmax([log_p(model, tokenizer, item["context"], f" {choice}")[0] for choice in item["choices"]]))
        == item["label"]
        for item in items_of(tasks, zero_shot.CHOICE)
    ]
    assert found[zero_shot.CHOICE] == Answers(zero_shot.CHOICE, tuple(picked))


def test_without_lm_eval_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tasks: Path) -> None:
    plain = builtins.__import__

    def missing(name, *args, **options):
        if name.startswith("lm_eval"):
            raise ImportError(name)
        return plain(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ValueError, match=r"pip install 'depthprune\[eval\]'"):
        zero_shot.answers(None, None, [zero_shot.CLOZE], folder=tasks)


def answers(*right: int) -> Answers:
    return Answers("t", tuple(map(bool, right)))


def test_mcnemar_of_a_hand_computed_example() -> None:
    """They differ on five items, and the first is right on all of these: 2 x 0.5^5."""
    assert intervals.mcnemar(answers(1, 1, 1, 1, 1, 1, 0), answers(0, 0, 0, 0, 0, 1, 0)) == pytest.approx(2 / 32)
    assert intervals.mcnemar(answers(1, 0), answers(1, 0)) == 1.0
    with pytest.raises(ValueError, match="not of the same task"):
        intervals.mcnemar(answers(1), answers(1, 0))


def test_a_proportion_has_wilsons_interval() -> None:
    interval = intervals.proportion(answers(*[1] * 8, *[0] * 2))
    assert interval.point == 0.8
    z2 = 1.959963984540054**2  # centre and half width by Wilson's formula, n = 10
    centre, half = (0.8 + z2 / 20) / (1 + z2 / 10), (z2 * (0.8 * 0.2 / 10 + z2 / 400)) ** 0.5 / (1 + z2 / 10)
    assert (interval.low, interval.high) == pytest.approx((centre - half, centre + half))
