"""A named text -> its splits: recovery to train on, the others to choose and to measure by."""

from __future__ import annotations

import json
from pathlib import Path

from depthprune_core import corpora
from depthprune_core.text import Document

SPLITS = ("recovery", "calibration", "validation", "test")
SPLITS_FILE = Path(__file__).with_name("data") / "splits.json"


def split_named(name: str, *, cache: Path) -> dict[str, list[Document]]:
    """The splits of a named text, each a list of documents."""
    documents = corpora.load(name, cache=cache)
    if name == "news-excerpt":
        return {"recovery": [], "calibration": [], "validation": [], "test": documents}
    by_name = {document.name: document for document in documents}
    committed = json.loads(SPLITS_FILE.read_text(encoding="utf-8"))
    return {split: [by_name[e["title"]] for e in committed[split]] for split in SPLITS}
