"""Files, folders and hub data sets -> documents."""

from __future__ import annotations

import glob
import gzip
import json
import math
import re
import zlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from depthprune_core.progress import reason
from depthprune_core.text import Document

STREAMED_CHARS = 12_000_000  # of a data set on the hub: its first rows, about three million tokens
WANTED = "UTF-8 text (.txt, .md), .jsonl, .json, .csv, .parquet, or one of these as .gz"
_PLAIN = ("", ".txt", ".md")
_ROWS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}


def kind_of(path: Path) -> str:
    """The suffix that gives the file type, in lower case; `.gz` is ignored."""
    packed = path.suffix.lower() == ".gz"
    return (path.with_suffix("") if packed else path).suffix.lower()


def is_hub_name(where: str) -> bool:
    """Whether this can be ORG/NAME or ORG/NAME/CONFIG, and not a file that is missing."""
    is_file = Path(where).suffix in (".gz", ".txt", ".md", *_ROWS)
    return not is_file and bool(re.fullmatch(r"[\w.-]+(/[\w.-]+){1,2}", where))


def parted(name: str) -> tuple[str, str]:
    """`where:column` -> (where, column); no column for a path that exists with the colon."""
    where, _, column = name.rpartition(":")
    if not where or Path(name).exists() or re.search(r"[/\\]", column):
        return name, ""
    return where, column


def from_folder(folder: Path, column: str) -> list[Document]:
    """Every readable file below a folder, by name, except README files."""
    kinds = (".txt", ".md", *_ROWS)
    readable = [file for file in sorted(folder.rglob("*")) if kind_of(file) in kinds]
    hidden = [f for f in readable if any(p.startswith(".") for p in f.relative_to(folder).parts)]
    files = [f for f in readable if f not in hidden and f.is_file() and f.stem.upper() != "README"]
    if not files:
        raise ValueError(f"folder {folder} holds no text: it needs files with {WANTED}")
    return [document for file in files for document in from_file(file, column, folder)]


def from_file(path: Path, column: str, folder: Path | None = None) -> list[Document]:
    """A plain text as one document; a file of rows as one document per row."""
    name = path.relative_to(folder).as_posix() if folder else path.name
    if kind_of(path) in _ROWS:
        return _documents(rows(path), name, str(path), column)
    if kind_of(path) not in _PLAIN:
        raise ValueError(f"{path} is no text that can be read here: give {WANTED}")
    if column:
        raise ValueError(f"{path} is plain text and has no column {column!r}: name the file alone")
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if path.suffix.lower() == ".gz" else content
        text = content.decode("utf-8-sig")
    except (gzip.BadGzipFile, EOFError, zlib.error):
        raise ValueError(f"{path} is no whole gzip file: copy it again") from None
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 text (byte {error.start}): if it is text at all, save it as UTF-8"
        ) from None
    if "\0" in text:
        raise ValueError(f"{path} is binary, not text: give {WANTED}")
    if kind := _json_kind(text):
        raise ValueError(f"{path} holds JSON, not prose: rename it to {path.stem}.{kind}")
    return [Document(name, text)] if text.strip() else []


def _json_kind(text: str) -> str:
    """`json` or `jsonl` if that is what a text is; else empty."""
    begin = text.lstrip()
    first = begin.partition("\n")[0].rstrip()
    if first.startswith("{") and first.endswith("}"):
        return "jsonl"
    if begin.startswith(("{", "[")):
        with suppress(ValueError, RecursionError):
            json.loads(text)
            return "json"
    return ""


def rows(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a .jsonl, .json, .csv or .parquet file. Raises ValueError if that fails."""
    if "::" in str(path):
        raise ValueError(f"{path} cannot be read: rename it without '::'")
    if not path.stat().st_size:
        return iter(())
    source = {"path": _ROWS[kind_of(path)], "data_files": glob.escape(str(path))}
    return _stream(source, f"{path} cannot be read as {kind_of(path)[1:]}")


def from_hub(where: str, column: str) -> list[Document]:
    """The first rows of a data set's train split, about STREAMED_CHARS of text."""
    org, name, *config = where.split("/")
    source = {"path": f"{org}/{name}", **({"name": config[0]} if config else {})}
    failure = (
        f"{where} is no file or folder here, and could not be streamed as a data set of the hub"
    )
    return _documents(_stream(source, failure), where, where, column, STREAMED_CHARS)


def _stream(source: dict[str, Any], failure: str) -> Iterator[dict[str, Any]]:
    """Rows of a data set's train split; nothing is kept on disk, and datasets logs nothing."""
    import datasets  # late: it takes a second, and most texts do without

    level = datasets.logging.get_verbosity()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        yield from datasets.load_dataset(**source, split="train", streaming=True)
    except StopIteration:  # datasets found no row
        return
    except Exception as error:  # of datasets, pyarrow, pandas, fsspec, the hub's client
        raise ValueError(f"{failure} ({type(error).__name__}: {reason(error)})") from None
    finally:
        datasets.logging.set_verbosity(level)


def _documents(
    rows: Iterable[dict[str, Any]], name: str, where: str, column: str, limit: float = math.inf
) -> list[Document]:
    """One document per non-empty row, until `limit` characters are reached."""
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
    """The column with the text: the given one, else `text`, else the only column of strings."""
    if wanted and wanted not in row:
        raise ValueError(f"{where} has no column {wanted!r}: it has {', '.join(row)}")
    if len(row) == 1 and (";" in (only := next(iter(row))) or "\t" in only or len(only) > 80):
        raise ValueError(
            f"{where} has one column, {only[:40]!r}: the first row must name the columns, with "
            "commas between them"
        )
    texts = [name for name, value in row.items() if isinstance(value, str)]
    if wanted or "text" in row or len(texts) == 1:
        return wanted or ("text" if "text" in row else texts[0])
    raise ValueError(
        f"{where} has several columns ({', '.join(row)}): name the one with the text behind a "
        "colon, FILE:COLUMN"
    )
