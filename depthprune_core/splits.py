"""A named text -> its splits: recovery for healing, the others for choices and scores."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from depthprune_core import corpora
from depthprune_core.text import Document

SPLITS = ("recovery", "calibration", "validation", "test")
SPLITS_FILE = Path(__file__).with_name("data") / "splits.json"
PASSAGE_CHARS = corpora.MIN_DOCUMENT_CHARS
PART_CHARS = PASSAGE_CHARS // 4  # of a line
MIN_PASSAGES = 40
AT_MOST = {"test": 60, "calibration": 16, "validation": 16}  # passages
_TURNS = {0: "test", 1: "test", 5: "validation", 10: "calibration", 11: "calibration"}  # of twenty


def split_named(name: str, *, cache: Path) -> dict[str, list[Document]]:
    """The splits of a named text, which share no document.

    Those of `wikipedia-excerpt` ship with the package and share no subject either
    (tools/split_wikipedia.py). WikiText-2 has its own; its train articles give recovery and
    calibration. `news-excerpt` is out of domain and has a test split alone. A text of one's own is
    cut into passages, and so is a named one that NOT_IN_PASSAGES lacks.

    Raises ValueError for a text that is too short, and as `corpora.load`.
    """
    if name in NOT_IN_PASSAGES:
        return NOT_IN_PASSAGES[name](Path(cache))
    return of_passages(corpora.load(name, cache=cache), name)


def _wikipedia(cache: Path) -> dict[str, list[Document]]:
    articles = {article.name: article for article in corpora.wikipedia()}
    entries = json.loads(SPLITS_FILE.read_text(encoding="utf-8"))
    return {split: [articles[entry["title"]] for entry in entries[split]] for split in SPLITS}


def _wikitext(cache: Path) -> dict[str, list[Document]]:
    parts = corpora.wikitext()
    train = [d for d in parts["train"] if len(d.text) >= corpora.MIN_DOCUMENT_CHARS]
    held_out = {"validation": parts["validation"], "test": parts["test"]}
    return {"recovery": train[8:], "calibration": train[:8], **held_out}


def _news(cache: Path) -> dict[str, list[Document]]:
    return {split: [] for split in SPLITS} | {"test": corpora.news(cache)}


NOT_IN_PASSAGES: dict[str, Callable[[Path], dict[str, list[Document]]]] = {  # texts with a name
    "wikipedia-excerpt": _wikipedia,
    "news-excerpt": _news,
    "wikitext-2": _wikitext,
}


# ---------------------------------------------------------------- a text of one's own


def of_passages(documents: Sequence[Document], name: str) -> dict[str, list[Document]]:
    """A text of one's own: of each twenty documents five are held out, cut into passages.

    Documents shorter than a passage are joined first. Where there are fewer than 40, passages take
    turns instead: then neighbours in one document can stand in different splits. Passages to heal
    on that stand together become one document.

    Raises ValueError for a text with fewer than 40 passages of 2,000 characters.
    """
    cut = [_cut(document) for document in _joined(documents)]
    n_passages = sum(map(len, cut))
    if n_passages < MIN_PASSAGES:
        raise ValueError(
            f"text {name} is too short: passages of {PASSAGE_CHARS:,} characters or "
            f"more in it: {n_passages}; at least {MIN_PASSAGES} are needed"
        )
    if len(cut) < MIN_PASSAGES:
        cut = [[passage] for passages in cut for passage in passages]
    dealt: dict[str, list[list[Document]]] = {split: [] for split in SPLITS}
    for index, passages in enumerate(cut):
        dealt[_TURNS.get(index % 20, "recovery")].append(passages)
    parts = {"recovery": _together(dealt["recovery"])}
    for split, limit in AT_MOST.items():
        rounds = itertools.zip_longest(*dealt[split])  # one passage of each, then a second of each
        parts[split] = [p for one in rounds for p in one if p is not None][:limit]
    return parts


def _joined(documents: Sequence[Document]) -> Iterator[Document]:
    """Documents of a passage or more; of shorter ones, as many as make one."""
    short: list[Document] = []
    for document in documents:
        if len(document.text) >= PASSAGE_CHARS:
            yield document
            continue
        short.append(document)
        if sum(len(item.text) for item in short) >= PASSAGE_CHARS:
            name = f"{short[0].name} to {short[-1].name}"
            yield Document(name, "".join(f"{item.text}\n\n" for item in short))
            short = []


def _cut(document: Document) -> list[Document]:
    """Whole lines (or parts of long ones), as many as make a passage; the last takes the rest."""
    passages, lines, length = [], [], 0
    for line in _lines(document.text):
        lines.append(line)
        length += len(line)
        if length >= PASSAGE_CHARS:
            passages.append(Document(f"{document.name}#{len(passages)}", "".join(lines)))
            lines, length = [], 0
    if passages:
        last = passages[-1]
        passages[-1] = Document(last.name, last.text + "".join(lines))
    return passages


def _lines(content: str) -> Iterator[str]:
    """Lines with their ends; one longer than PART_CHARS in parts, cut behind a word."""
    for line in content.splitlines(keepends=True):
        begin = 0
        while len(line) - begin > PART_CHARS:
            end = line.rfind(" ", begin, begin + PART_CHARS) + 1 or begin + PART_CHARS
            yield line[begin:end]
            begin = end
        yield line[begin:]


def _together(dealt: Sequence[Sequence[Document]]) -> list[Document]:
    """Passages of one document that follow each other as one document: no window ends between."""
    joined: list[Document] = []
    last = ("", -2)
    for passage in itertools.chain.from_iterable(dealt):
        name, _, number = passage.name.rpartition("#")
        if last == (name, int(number) - 1):
            joined[-1] = Document(joined[-1].name, joined[-1].text + passage.text)
        else:
            joined.append(passage)
        last = (name, int(number))
    return joined
