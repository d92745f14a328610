"""Any text of one's own as passages: some to recover on, some to choose layers by, some to measure on."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from depthprune_core import text
from depthprune_study import places
from depthprune_study.settings import StudyError

PASSAGE_CHARS = text.MIN_DOCUMENT_CHARS
PART_CHARS = PASSAGE_CHARS // 4  # of a line
MIN_PASSAGES = 40
MEASURED, CHOSEN_BY = 60, 16  # passages, at most
HELD_OUT = {0: "test", 1: "test", 10: "calibration", 11: "calibration"}  # of each twenty


def split(name: str) -> dict[str, list[text.Document]]:
    """The splits of a named text; of any other, passages in turn: of twenty, two to measure on and two to choose by. Those between
    them that stand together are one document to recover on, so that hardly a token of theirs is lost to the ends of windows.

    Raises StudyError for a text that is too short, ValueError for one that cannot be read.
    """
    if name in ("wikipedia-excerpt", "wikitext-2"):
        return text.split_named(name, cache=places.cache(), assets=places.assets())
    documents = text.load(name, cache=places.cache(), assets=places.assets())
    passages = list(_passages(documents))
    if len(passages) < MIN_PASSAGES:
        raise StudyError(
            f"text {name} is too short: it gives {len(passages)} passages of {PASSAGE_CHARS:,} characters, at least {MIN_PASSAGES} are wanted"
        )
    held_out = [HELD_OUT.get(index % 20, "recovery") for index in range(len(passages))]
    parts = {
        part: [passage for passage, goes in zip(passages, held_out, strict=True) if goes == part]
        for part in ("test", "calibration")
    }
    runs = itertools.groupby(zip(passages, held_out, strict=True), key=lambda item: (item[0].name.rsplit("#", 1)[0], item[1]))
    together = [[passage for passage, _ in run] for (_, part), run in runs if part == "recovery"]
    joined = [text.Document(run[0].name, "".join(passage.text for passage in run)) for run in together]
    return {"recovery": joined, "test": parts["test"][:MEASURED], "calibration": parts["calibration"][:CHOSEN_BY]}


def _passages(documents: list[text.Document]) -> Iterator[text.Document]:
    """Long documents cut; of those shorter than a passage, as many whole ones as make one. Parts of one name stand together."""
    short: list[text.Document] = []
    first, n_bundles = "", 0
    for document in documents:
        if len(document.text) >= PASSAGE_CHARS:
            yield from _cut(document)
            continue
        short.append(document)
        if sum(len(item.text) for item in short) >= PASSAGE_CHARS:
            first = first or short[0].name
            yield text.Document(f"{first}#{n_bundles}", "".join(f"{item.text}\n\n" for item in short))
            short, n_bundles = [], n_bundles + 1


def _cut(document: text.Document) -> list[text.Document]:
    """Whole lines (or parts of long ones), as many as make a passage; what is left over at the end goes with none."""
    passages, lines, length = [], [], 0
    for line in _lines(document.text):
        lines.append(line)
        length += len(line)
        if length >= PASSAGE_CHARS:
            passages.append(text.Document(f"{document.name}#{len(passages)}", "".join(lines)))
            lines, length = [], 0
    return passages


def _lines(content: str) -> Iterator[str]:
    """Lines with their ends; one that is longer than PART_CHARS in parts, cut behind a word."""
    for line in content.splitlines(keepends=True):
        begin = 0
        while len(line) - begin > PART_CHARS:
            end = line.rfind(" ", begin, begin + PART_CHARS) + 1 or begin + PART_CHARS
            yield line[begin:end]
            begin = end
        yield line[begin:]
