"""Files, folders and data sets of the hub -> documents."""

from __future__ import annotations

import gzip
import itertools
import json
import math
import re
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from depthprune_core.text import Document

STREAMED_CHARS = 12_000_000  # of a data set on the hub: its first rows, about three million tokens
WANTED = "UTF-8 text (.txt, .md), .jsonl, .json, .csv, .parquet, or one of these as .gz"
_READERS = {
    **dict.fromkeys(("", ".txt", ".text", ".md", ".markdown", ".rst"), "plain"),
    ".jsonl": "json",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
}


def is_hub_name(where: str) -> bool:
    """Whether this can be ORG/NAME or ORG/NAME/CONFIG, and not a file that is missing."""
    suffix = _suffix(Path(where))
    is_file = suffix != "" and suffix in _READERS
    return not is_file and bool(re.fullmatch(r"[\w.-]+(/[\w.-]+){1,2}", where))


def parted(name: str) -> tuple[str, str]:
    """`where:column` -> (where, column); no column for a path that exists with the colon."""
    where, _, column = name.rpartition(":")
    if not where or Path(name).exists() or re.search(r"[/\\]", column):
        return name, ""
    return where, column


def _suffix(path: Path) -> str:
    """The suffix that tells what is inside, `.gz` passed over."""
    return (path.with_suffix("") if path.suffix == ".gz" else path).suffix.lower()


def from_folder(folder: Path, column: str) -> list[Document]:
    """Every readable file below a folder, by name; a README is no text of the corpus."""
    files = [f for f in sorted(folder.rglob("*")) if f.is_file() and _suffix(f) in _READERS]
    hidden = [f for f in files if any(p.startswith(".") for p in f.relative_to(folder).parts)]
    files = [f for f in files if f not in hidden and f.suffix and f.stem.upper() != "README"]
    if not files:
        raise ValueError(f"folder {folder} holds no text: it needs files with {WANTED}")
    return [document for file in files for document in from_file(file, column, folder)]


def from_file(path: Path, column: str, folder: Path | None = None) -> list[Document]:
    name = path.relative_to(folder).as_posix() if folder else path.name
    reader = _READERS.get(_suffix(path))
    if reader is None:
        raise ValueError(f"{path} is no text that can be read here: give {WANTED}")
    if reader != "plain":
        return _documents(rows(path), name, str(path), column)
    if column:
        raise ValueError(f"{path} is plain text and has no column {column!r}: name the file alone")
    content = _plain(path)
    return [Document(name, content)] if content.strip() else []


def _plain(path: Path) -> str:
    """The content of a plain text file. Raises ValueError for what is something else."""
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if path.suffix == ".gz" else content
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} cannot be read ({type(error).__name__}: {error})") from None
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        marks = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
        encoding = marks.get(content[:2], "LATIN1")
        raise ValueError(
            f"{path} is not UTF-8 text (byte {error.start}): if it is text at all, save it as "
            f"UTF-8, e.g. by `iconv -f {encoding} -t UTF-8 {path.name} > utf8.txt`"
        ) from None
    if "\0" in text:
        raise ValueError(f"{path} is binary, not text: give {WANTED}")
    first = next((line for line in text.splitlines() if line.strip()), "").strip()
    if first.startswith("{") and first.endswith("}") and _is_json(first):
        raise ValueError(f"{path} holds JSON lines, not prose: rename it to {path.stem}.jsonl")
    return text


def _is_json(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def rows(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a .jsonl, .json, .csv, .tsv or .parquet file. Raises ValueError where that fails."""
    options = {"sep": "\t"} if _suffix(path) == ".tsv" else {}
    source = {"path": _READERS[_suffix(path)], "data_files": str(path), **options}
    try:
        yield from _stream(source)
    except Exception as error:  # of datasets, pyarrow, pandas, fsspec, by format
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ValueError(f"{path} cannot be read as {_suffix(path)[1:]} ({reason})") from None


def from_hub(where: str, column: str) -> list[Document]:
    """The first rows of a data set's train split, about STREAMED_CHARS of text."""
    org_name, _, config = where.partition("/")[2].partition("/")
    source = {"path": f"{where.split('/')[0]}/{org_name}", **({"name": config} if config else {})}
    try:
        rows = _stream(source)
        first = list(itertools.islice(rows, 1))
    except Exception as error:  # of the hub's clients, by release
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise RuntimeError(
            f"{where} is no file or folder here, and could not be streamed as a data set of the "
            f"hub ({reason})"
        ) from None
    return _documents(itertools.chain(first, rows), where, where, column, STREAMED_CHARS)


def _stream(source: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Rows of a data set's train split; nothing is kept on disk, and datasets logs nothing."""
    import datasets  # late: it takes a second, and most texts do without

    level = datasets.logging.get_verbosity()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        yield from datasets.load_dataset(**source, split="train", streaming=True)
    finally:
        datasets.logging.set_verbosity(level)


def _documents(
    rows: Iterable[dict[str, Any]], name: str, where: str, column: str, limit: float = math.inf
) -> list[Document]:
    """One document a row that is not empty, until `limit` characters are reached."""
    documents, n_chars = [], 0
    for number, row in enumerate(rows):
        column = column if number else _column(row, column, where)
        value = row.get(column)
        if value is not None and not isinstance(value, str):
            raise ValueError(
                f"{where}: column {column!r} holds {type(value).__name__}, not text, in row "
                f"{number}: name another of {', '.join(row)}"
            )
        if value and value.strip():
            documents.append(Document(f"{name} row {number}", value))
            n_chars += len(value)
        if n_chars >= limit:
            break
    return documents


def _column(row: dict[str, Any], wanted: str, where: str) -> str:
    """The column that holds the text: the one named, else `text`, else the only strings."""
    if wanted and wanted not in row:
        raise ValueError(f"{where} has no column {wanted!r}: it has {', '.join(row)}")
    texts = [name for name, value in row.items() if isinstance(value, str)]
    if wanted or "text" in row or len(texts) == 1:
        return wanted or ("text" if "text" in row else texts[0])
    raise ValueError(
        f"{where} has several columns ({', '.join(row)}): name the one with the text behind a "
        "colon, FILE:COLUMN"
    )
