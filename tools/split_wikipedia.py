"""Makes depthprune_core/data/splits.json: which articles of wikipedia-excerpt are for what.

    python tools/split_wikipedia.py

Articles about one subject never stand in different splits. A test holds that the committed file is
what this rule gives.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from depthprune_core import corpora
from depthprune_core.splits import SPLITS, SPLITS_FILE
from depthprune_core.text import Document

WANTED = {"test": 24, "validation": 9, "calibration": 6}  # articles; the others are for recovery
# What the rule misses, found by reading the titles and first sentences of wikipedia-excerpt.
SUBJECTS = (
    ("Appellate court", "Appellate procedure in the United States"),
    ("American Revolutionary War", "Articles of Confederation"),  # the founding of one state
    ("ASCII", "American National Standards Institute"),  # a standard and its publisher
    ("Afroasiatic languages", "Austroasiatic languages"),  # two lists of language families
)
STEM_CHARS = 7  # agricul|ture, agricul|tural; astrono|mer, astrono|my, but astrona|ut
MENTIONS = 3  # per 10,000 characters
RUN_WORDS = 13  # in common, as GPT-3's authors define contamination (Brown et al. 2020, appendix C)
_STOP_WORDS = frozenset(
    {"a", "an", "and", "for", "in", "list", "of", "on", "or", "the", "to", "with"}
)


def make_splits(documents: Sequence[Document], *, trained_on: Collection[str]) -> dict[str, Any]:
    """The content of splits.json: whole subjects are dealt, never single articles.

    A subject with an article that gpt2-mini was trained on (`trained_on`, titles) goes to recovery.
    The others come in the order of their hash, each to the split that lacks most and has room.
    """
    groups = defaultdict(list)
    subject = subjects(documents)
    for document in sorted(documents, key=lambda document: document.name):
        groups[subject[document.name]].append(document)
    dealt: dict[str, list[Document]] = {split: [] for split in SPLITS}
    for name in sorted(groups, key=lambda name: hashlib.sha256(name.encode()).hexdigest()):
        group = groups[name]
        fits = [s for s in WANTED if len(dealt[s]) + len(group) <= WANTED[s]] or list(WANTED)
        neediest = min(fits, key=lambda split: len(dealt[split]) / WANTED[split])
        is_trained_on = any(document.name in trained_on for document in group)
        dealt["recovery" if is_trained_on else neediest] += group
    entries = {
        split: [
            {
                "title": d.name,
                "subject": subject[d.name],
                "sha256": hashlib.sha256(d.text.encode()).hexdigest(),
            }
            for d in sorted(dealt[split], key=lambda document: document.name)
        ]
        for split in SPLITS
    }
    return {"trained_on": sorted(trained_on), **entries}


def subjects(documents: Sequence[Document]) -> dict[str, str]:
    """Title -> the name of its subject, which is the shortest title in its group.

    Two articles share a subject by one of four rules. All content words of one title stand in the
    other: `Angola`, `Economy of Angola`; numbers do not count: `Apollo 8`, `Apollo 11`. Or one's
    first sentence names the other's title, and its text does so again and again. Or the two texts
    have a run of 13 words in common. Or SUBJECTS says so. Articles that share a subject with the
    same third one share it with each other.
    """
    group = {document.name: {document.name} for document in documents}
    for first, second in itertools.chain(_by_title(documents), _by_text(documents)):
        merged = group[first] | group[second]
        group.update(dict.fromkeys(merged, merged))
    return {
        title: min(members, key=lambda name: (len(name), name)) for title, members in group.items()
    }


def _by_title(documents: Sequence[Document]) -> Iterator[tuple[str, str]]:
    """Pairs that share a subject by their titles, or by what one text says of the other's title."""
    words = {document.name: _words(document.name) for document in documents}
    for first, second in itertools.permutations(documents, 2):
        is_within = bool(words[first.name]) and words[first.name] <= words[second.name]
        in_table = any({first.name, second.name} <= set(titles) for titles in SUBJECTS)
        if is_within or in_table or _tells_of(first, second.name):
            yield first.name, second.name


def _by_text(documents: Sequence[Document]) -> Iterator[tuple[str, str]]:
    """Pairs of documents with a run of RUN_WORDS words in common."""
    seen: dict[tuple[str, ...], str] = {}
    for document in documents:
        words = re.findall(r"\w+", document.text.lower())
        shifted = (words[shift:] for shift in range(RUN_WORDS))
        for run in zip(*shifted, strict=False):
            if seen.setdefault(run, document.name) != document.name:
                yield seen[run], document.name


def _words(title: str) -> frozenset[str]:
    """Content words of a title, stemmed: no numbers, no stop words, nothing in parentheses."""
    words = re.findall(r"[a-z]+", re.sub(r"\(.*?\)", "", title).lower())
    return frozenset(_stem(word) for word in words if word not in _STOP_WORDS)


def _stem(word: str) -> str:
    """Angola, Angolan; animal, animalia; but not Albert, Alberta."""
    return re.sub(r"(?<=.{5})(ia|n|s)$", "", word)[:STEM_CHARS]


def _tells_of(document: Document, title: str) -> bool:
    """Whether the first sentence names the title, and the whole text does so often."""
    if len(title) < 4 or "(" in title:  # a title with parentheses is not what its word mostly means
        return False
    sentence = re.split(r"(?<=[a-z)])\.\s", document.text, maxsplit=1)[0]
    if title.lower() not in sentence.lower():
        return False
    pattern = re.compile(rf"\b{re.escape(title)}s?\b", re.IGNORECASE)
    often = MENTIONS * max(1.0, len(document.text) / 10_000)
    return bool(pattern.search(sentence)) and len(pattern.findall(document.text)) >= often


def main() -> None:
    """Deal the articles again; gpt2-mini's training articles stay as the file names them."""
    articles = corpora.load("wikipedia-excerpt", cache=Path())
    trained_on = json.loads(SPLITS_FILE.read_text(encoding="utf-8"))["trained_on"]
    content = make_splits(articles, trained_on=trained_on)
    SPLITS_FILE.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    main()
