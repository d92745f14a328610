"""Which articles are about one subject: these must never stand in different splits."""

from __future__ import annotations

import re
from collections.abc import Sequence

from depthprune_core.text import Document

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


def subjects(documents: Sequence[Document]) -> dict[str, str]:
    """Title -> the name of its subject, which is the shortest title in its group.

    Two articles share a subject by one of four rules. All content words of one title stand in the
    other: `Angola`, `Economy of Angola`; numbers do not count: `Apollo 8`, `Apollo 11`. Or one's
    first sentence names the other's title, and its text does so again and again. Or the two texts
    have a run of 13 words in common. Or SUBJECTS says so. Articles that share a subject with the
    same third one share it with each other.
    """
    group = {document.name: {document.name} for document in documents}
    runs = {document.name: _runs(document.text) for document in documents}
    for index, first in enumerate(documents):
        for second in documents[:index]:
            copied = not runs[first.name].isdisjoint(runs[second.name])
            if copied or related_by_title(first, second):
                merged = group[first.name] | group[second.name]
                group.update(dict.fromkeys(merged, merged))
    return {
        title: min(members, key=lambda name: (len(name), name)) for title, members in group.items()
    }


def related_by_title(first: Document, second: Document) -> bool:
    """Whether the titles, or what is said of them, tell that two articles are about one subject."""
    if any({first.name, second.name} <= set(table) for table in SUBJECTS):
        return True
    if _within(_words(first.name), _words(second.name)):
        return True
    return _tells_of(first, second.name) or _tells_of(second, first.name)


def _words(title: str) -> frozenset[str]:
    """Content words of a title, stemmed: no numbers, no stop words, nothing in parentheses."""
    words = re.findall(r"[a-z]+", re.sub(r"\(.*?\)", "", title).lower())
    return frozenset(_stem(word) for word in words if word not in _STOP_WORDS)


def _stem(word: str) -> str:
    """Angola, Angolan; animal, animalia; but not Albert, Alberta."""
    return re.sub(r"(?<=.{5})(ia|n|s)$", "", word)[:STEM_CHARS]


def _within(first: frozenset[str], second: frozenset[str]) -> bool:
    shorter, longer = sorted((first, second), key=len)
    return bool(shorter) and shorter <= longer


def _tells_of(document: Document, title: str) -> bool:
    """Whether the first sentence names the title, and the whole text does so often."""
    if len(title) < 4 or "(" in title:  # a title with parentheses is not what its word mostly means
        return False
    pattern = re.compile(rf"\b{re.escape(title)}s?\b", re.IGNORECASE)
    sentence = re.split(r"(?<=[a-z)])\.\s", document.text, maxsplit=1)[0]
    often = MENTIONS * max(1.0, len(document.text) / 10_000)
    return bool(pattern.search(sentence)) and len(pattern.findall(document.text)) >= often


def _runs(text: str) -> set[int]:
    """Hashes of every run of RUN_WORDS words."""
    words = re.findall(r"\w+", text.lower())
    shifted = [words[shift:] for shift in range(RUN_WORDS)]
    return {hash(run) for run in zip(*shifted, strict=False)}
