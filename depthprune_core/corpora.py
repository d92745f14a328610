"""A text's name -> its documents."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from depthprune_core.fetching import WheelFile, check_hashes, fetch, snapshot
from depthprune_core.text import Document

MIN_DOCUMENT_CHARS = 2_000  # of a Wikipedia article, and of a passage
WIKIPEDIA = Path(__file__).with_name("data") / "wikipedia-excerpt.json.gz"
WIKIPEDIA_SHA256 = "a5cf88f7b80d671ef21766ed9bf11315f4a29e524d6d726260b66a8f636eee55"  # unpacked

_NEWS = WheelFile(
    "gensim==4.4.0",
    "gensim/test/test_data/lee_background.cor",
    "5d78d6dafd953bbf65797bef09a9ffb9ec430583381be705f8fd460000f370fb",
)
_WIKITEXT = {
    "path": "Salesforce/wikitext",
    "name": "wikitext-2-raw-v1",
    "revision": "b08601e04326c79dfdd32d625aee71d232d685c3",
}


def load(name: str, *, cache: Path) -> list[Document]:
    """The documents of a named text, in a fixed order."""
    if name == "wikipedia-excerpt":
        return wikipedia()
    if name == "news-excerpt":
        lines = fetch(_NEWS, cache=Path(cache)).read_text(encoding="utf-8").splitlines()
        stories = [line.strip() for line in lines if line.strip()]
        return [Document(f"news-{i:03d}", story) for i, story in enumerate(stories)]
    raise ValueError(f"text {name!r} is not known")


def wikipedia(path: Path = WIKIPEDIA) -> list[Document]:
    """The shipped Wikipedia articles of 2,000 characters or more. Raises ValueError for a damaged file."""
    try:
        content = gzip.decompress(path.read_bytes())
        actual = hashlib.sha256(content).hexdigest()
    except (OSError, EOFError, ValueError) as error:
        actual = f"none: {type(error).__name__}"
    if actual != WIKIPEDIA_SHA256:
        raise ValueError(f"{path} is damaged (sha256 {actual[:12]}): install depthprune again")
    documents = [Document(title, text) for title, text in json.loads(content)]
    return [document for document in documents if len(document.text) >= MIN_DOCUMENT_CHARS]
