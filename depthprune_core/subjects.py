"""Which articles are about one subject: these must never stand in different splits."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence

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
