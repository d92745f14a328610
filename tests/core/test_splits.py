"""Splits share no document and no subject; other texts are cut into passages."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from pathlib import Path

import pytest

from depthprune_core import corpora, splits
from depthprune_core.models import BUNDLED
from depthprune_core.splits import SPLITS
from depthprune_core.text import Document

sys.path.append(str(Path(__file__).parents[2] / "tools"))
from split_wikipedia import make_splits

COMMITTED = json.loads(splits.SPLITS_FILE.read_text(encoding="utf-8"))
CACHE = Path("no-such-cache")


@pytest.fixture(scope="module")
def articles() -> list[Document]:
    return corpora.load("wikipedia-excerpt", cache=CACHE)


# ---------------------------------------------------------------- wikipedia-excerpt


def test_the_committed_splits_are_what_the_rule_gives_and_share_no_document(articles):
    assert make_splits(articles, trained_on=COMMITTED["trained_on"]) == COMMITTED
    titles = [entry["title"] for split in SPLITS for entry in COMMITTED[split]]
    assert sorted(titles) == sorted(article.name for article in articles)
    parts = splits.split_named("wikipedia-excerpt", cache=CACHE)
    sizes = {split: len(part) for split, part in parts.items()}
    assert sizes == {"recovery": 57, "calibration": 6, "validation": 9, "test": 24}


def test_no_two_splits_share_a_subject():
    homes: dict[str, set[str]] = {}
    split_of: dict[str, str] = {}
    for split in SPLITS:
        for entry in COMMITTED[split]:
            homes.setdefault(entry["subject"], set()).add(split)
            split_of[entry["title"]] = split
    assert all(len(splits_of_it) == 1 for splits_of_it in homes.values())
    # judged by a reader, whatever subjects the rule names
    for one, other in (("Angola", "Economy of Angola"), ("Apollo 8", "Apollo 11")):
        assert split_of[one] == split_of[other]


def test_no_held_out_article_was_trained_on_by_gpt2_mini():
    """Its README lists the articles; none of them, and none of their subjects, is held out."""
    readme = (BUNDLED / "gpt2-mini" / "README.md").read_text(encoding="utf-8")
    assert ", ".join(COMMITTED["trained_on"]) in readme and len(COMMITTED["trained_on"]) == 46
    assert set(COMMITTED["trained_on"]) <= {entry["title"] for entry in COMMITTED["recovery"]}


def test_no_two_splits_have_a_sentence_in_common(articles):
    """No run of 13 words: what is copied within Wikipedia is on one side (Brown et al. 2020)."""
    split_of = {entry["title"]: split for split in SPLITS for entry in COMMITTED[split]}
    seen: dict[tuple[str, ...], str] = {}
    for article in articles:
        words = re.findall(r"\w+", article.text.lower())
        for run in zip(*(words[shift:] for shift in range(13)), strict=False):
            assert seen.setdefault(run, split_of[article.name]) == split_of[article.name], run


# ---------------------------------------------------------------- other named texts


def test_the_out_of_domain_text_has_only_a_test_split(monkeypatch):
    stories = [Document("news-000", "One story.")]
    monkeypatch.setattr(corpora, "news", lambda cache: stories)
    parts = splits.split_named("news-excerpt", cache=CACHE)
    assert parts == {"recovery": [], "calibration": [], "validation": [], "test": stories}


def test_wikitext_keeps_its_own_splits(monkeypatch):
    names = ("train", "validation", "test")
    long = {part: [Document(f"{part}/{i}", "x" * 2_000) for i in range(10)] for part in names}
    long["train"].append(Document("train/short", "x" * 1_999))
    monkeypatch.setattr(corpora, "wikitext", lambda: long)
    parts = splits.split_named("wikitext-2", cache=CACHE)
    assert {name: [d.name for d in part] for name, part in parts.items()} == {
        "recovery": ["train/8", "train/9"],
        "calibration": [f"train/{i}" for i in range(8)],
        "validation": [f"validation/{i}" for i in range(10)],
        "test": [f"test/{i}" for i in range(10)],
    }


# ---------------------------------------------------------------- a text of one's own


def lines_of(n_chars: int, mark: str) -> str:
    return "".join(f"{mark} line {i} of a text of one's own.\n" for i in range(n_chars // 35))


def words_in(part: list[Document]) -> Counter:
    return Counter(line for document in part for line in document.text.splitlines() if line)


def test_one_long_file_is_cut_into_passages_that_share_no_line(tmp_path):
    (tmp_path / "book.txt").write_text(lines_of(300_000, "a"))
    parts = splits.split_named(str(tmp_path / "book.txt"), cache=CACHE)
    assert set(parts) == set(SPLITS) and all(parts.values())
    seen = sum((words_in(part) for part in parts.values()), Counter())
    assert max(seen.values()) == 1  # no line stands in two splits, or twice in one
    assert sum(seen.values()) > 0.95 * (300_000 // 35)
    for split in ("calibration", "validation", "test"):
        assert all(2_000 <= len(passage.text) < 4_600 for passage in parts[split])
    longest = max(parts["recovery"], key=lambda document: len(document.text))
    assert len(longest.text) > 7 * 2_000  # neighbours to heal on are one document
    kept = sum(len(document.text) for document in parts["recovery"])
    assert 0.7 < kept / 300_000 < 0.8


def test_each_of_many_documents_is_in_only_one_split():
    documents = [Document(f"file {i}", lines_of(9_000, f"{i}")) for i in range(60)]
    parts = splits.of_passages(documents, "mine")
    homes: dict[str, set[str]] = {}
    for split, part in parts.items():
        for passage in part:
            homes.setdefault(passage.name.split("#")[0], set()).add(split)
    assert len(homes) == 60 and all(len(home) == 1 for home in homes.values())
    assert len({passage.name.split("#")[0] for passage in parts["test"][:6]}) == 6
    sizes = {split: len(part) for split, part in parts.items()}
    assert sizes == {"recovery": 45, "calibration": 16, "validation": 12, "test": 24}


def test_short_documents_are_joined_and_a_line_without_end_is_cut():
    short = [Document(f"row {i}", f"Row {i}. " * 60) for i in range(400)]
    parts = splits.of_passages(short, "mine")
    assert parts["test"][0].name.startswith("row 0 to row ")
    assert len(parts["test"][0].text) >= 2_000
    endless = Document("endless", " ".join(f"word{i}" for i in range(20_000)))
    parts = splits.of_passages([endless], "mine")
    assert all(len(passage.text) < 2_600 for passage in parts["test"])


def test_no_text_of_documents_that_are_longer_than_a_passage_is_lost():
    rows = [Document(f"row {i}", f"Sentence {i} of it. " * 110) for i in range(90)]
    parts = splits.of_passages(rows, "mine")
    kept = sum(len(passage.text) for passages in parts.values() for passage in passages)
    assert kept >= sum(len(row.text) for row in rows)


def test_at_most_so_many_passages_are_held_out():
    parts = splits.of_passages([Document("book", lines_of(3_000_000, "a"))], "mine")
    assert {split: len(parts[split]) for split in splits.AT_MOST} == splits.AT_MOST


@pytest.mark.parametrize("n_chars", [0, 70_000])
def test_a_text_that_is_too_short_is_refused_in_a_sentence(n_chars):
    message = r"text mine is too short: passages of 2,000 characters or more in it: \d+; at least"
    with pytest.raises(ValueError, match=message):
        splits.of_passages([Document("book", lines_of(n_chars, "a"))], "mine")
