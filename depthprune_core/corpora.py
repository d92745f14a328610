"""A text's name -> its documents: shipped, in a wheel, on the data hub, or in local files."""

from __future__ import annotations

import gzip
import hashlib
import itertools
import json
import re
import zlib
from collections.abc import Callable, Iterable
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
_WIKITEXT, _WIKITEXT_CONFIG = "Salesforce/wikitext", "wikitext-2-raw-v1"
_WIKITEXT_REVISION = "b08601e04326c79dfdd32d625aee71d232d685c3"


def load(name: str, *, cache: Path) -> list[Document]:
    """The documents of a named text, in a fixed order.

    `wikipedia-excerpt` ships with the package, `news-excerpt` comes from a PyPI wheel,
    `wikitext-2` from the data hub (pinned). Any other name is a file, a folder of files, or a hub
    data set (ORG/NAME or ORG/NAME/CONFIG), whose first rows are streamed. A suffix `:column` names
    the field with the text; without it, the field is `text`, or the only field with strings.

    Raises ValueError for a name that is not a text or a data set that cannot be streamed,
    RuntimeError if news-excerpt or wikitext-2 cannot be fetched.
    """
    if name in NAMED:
        return NAMED[name](Path(cache))
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
            f"text {name!r} is not known: name {', '.join(NAMED)}, a file or folder with "
            f"{reading.WANTED}, or a data set of the hub as ORG/NAME:column"
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


def news(cache: Path) -> list[Document]:
    """Short stories of the Australian Broadcasting Corporation, one a line, from a PyPI wheel."""
    lines = fetch(_NEWS, cache=cache).read_text(encoding="utf-8").splitlines()
    return [Document(f"news-{i:03d}", line.strip()) for i, line in enumerate(lines) if line.strip()]


# ---------------------------------------------------------------- WikiText-2


def wikitext() -> dict[str, list[Document]]:
    """WikiText-2 raw, as articles: {"train": [...], "validation": [...], "test": [...]}.

    Fetched from the hub at a pinned revision; file hashes are checked. An article begins at a line
    ` = Title = `; section lines (` = = Name = = `) do not begin one.

    Raises RuntimeError if the hub cannot be reached, ValueError for damaged files.
    """
    folder = _wikitext_folder()
    parts = {}
    for split in ("train", "validation", "test"):
        files = sorted(folder.glob(f"{split}-*.parquet"))
        if not files:
            raise RuntimeError(
                f"wikitext-2 has no {split} file in {folder}: run again with a network"
            )
        lines = (row["text"] for file in files for row in reading.rows(file))
        parts[split] = _articles(split, lines)
    return parts


def _wikitext_folder() -> Path:
    files = [f"{_WIKITEXT_CONFIG}/*.parquet"]
    try:
        found = snapshot(_WIKITEXT, _WIKITEXT_REVISION, files=files, repo_type="dataset")
        check_hashes(found / _WIKITEXT_CONFIG, files=["*.parquet"])
    except OSError:  # ConnectionError too
        raise RuntimeError(
            f"could not fetch wikitext-2 ({_WIKITEXT}) from the data hub: check the network "
            "(and HF_HUB_OFFLINE)"
        ) from None
    except ValueError as error:
        folder = found.parents[1]
        raise ValueError(f"{error}: remove {folder} and run again with a network") from None
    return found / _WIKITEXT_CONFIG


def _articles(split: str, lines: Iterable[str]) -> list[Document]:
    articles: list[tuple[str, list[str]]] = []
    for line in lines:
        if heading := re.fullmatch(r" = ([^=].*?) = \n?", line):
            articles.append((heading[1], []))
        if articles:
            articles[-1][1].append(line)
    return [Document(f"{split}/{title}", "".join(parts).strip()) for title, parts in articles]


# ---------------------------------------------------------------- names

NAMED: dict[str, Callable[[Path], list[Document]]] = {  # given the folder for fetched files
    "wikipedia-excerpt": lambda cache: wikipedia(),
    "news-excerpt": news,
    "wikitext-2": lambda cache: list(itertools.chain(*wikitext().values())),
}
