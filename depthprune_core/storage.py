"""Records as JSON files with checksums and a stamp of their origin. No torch."""

from __future__ import annotations

import hashlib
import json
import os
import typing
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

from depthprune_core.records import Record

_KINDS = {kind.__name__: kind for kind in typing.get_args(Record)}


@dataclass(frozen=True)
class Stamp:
    """The origin of a record. Equal stamps (except commit) mean that the result can be reused."""

    study: str
    step: str  # notebook/piece of work
    code_hash: str  # the modules used, docstrings and comments apart
    notebook_hash: str
    parameters: dict[str, Any]
    inputs: dict[str, str]  # name -> hash of what went in
    versions: dict[str, str]
    device: str
    dtype: str
    seed: int
    commit: str

    @property
    def key(self) -> str:
        """A hash of everything that can change the result."""
        content = {name: value for name, value in asdict(self).items() if name != "commit"}
        return _sha256(_dump(content))[:16]


def write(path: Path, record: Record | Mapping[str, Record], stamp: Stamp) -> Path:
    """Save a record, or a dict of records of one kind, with a stamp; under a temporary name first.

    Raises ValueError for NaN or infinity, which JSON cannot represent.
    """
    path, many = Path(path), isinstance(record, Mapping)
    kinds = {type(member).__name__ for member in (record.values() if many else [record])}
    if len(kinds) != 1 or not kinds <= set(_KINDS):
        raise ValueError(f"{path.name}: one kind of record a file, not {sorted(kinds) or 'none'}")
    data = {name: asdict(member) for name, member in record.items()} if many else asdict(record)
    try:
        text, stamped = _dump(data), _dump(asdict(stamp))
    except ValueError as error:
        raise ValueError(f"{path.name}: a value is NaN or infinite, so it is not saved") from error
    content = {
        "kind": kinds.pop(),
        "many": many,
        "data": json.loads(text),
        "data_sha256": _sha256(text),
        "stamp": json.loads(stamped),
        "stamp_sha256": _sha256(stamped),
    }
    return write_atomically(
        path, json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    )


def read(path: Path) -> Any:
    """The record, or {name: record}, that `write` saved. Raises ValueError for a damaged file."""

    def build(content: dict[str, Any]) -> Any:
        kind, data = _KINDS[content["kind"]], content["data"]
        if content["many"]:
            return {name: _build(kind, member) for name, member in data.items()}
        return _build(kind, data)

    return _opened(path, build)


def read_stamp(path: Path) -> Stamp:
    """Only the stamp. Raises ValueError like `read`."""
    return _opened(path, lambda content: Stamp(**content["stamp"]))


def data_hash(path: Path) -> str:
    """Hash of a record's content without its stamp: equal results have equal hashes."""
    return _opened(path, lambda content: content["data_sha256"])


def write_atomically(path: Path, content: str | bytes) -> Path:
    """Write the whole file, or leave the old one."""
    with replacing(Path(path)) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    return Path(path)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name in the same folder; its file replaces `path` at the end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _dump(data: Any) -> str:
    return json.dumps(
        data, sort_keys=True, allow_nan=False, ensure_ascii=False, separators=(",", ":")
    )


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _opened(path: Path, build: Callable[[dict[str, Any]], Any]) -> Any:
    """The result of `build` for an intact file's content."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        hashes = [_sha256(_dump(content[part])) for part in ("data", "stamp")]
        if hashes == [content["data_sha256"], content["stamp_sha256"]]:
            return build(content)
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    raise ValueError(f"{path} is damaged or is no record: remove it and run the study again")


def _build(kind: Any, value: Any) -> Any:
    """JSON back into the declared type: lists into tuples, mappings into records."""
    origin = typing.get_origin(kind)
    if is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        given = [f for f in fields(kind) if f.name in value or f.default is MISSING]
        return kind(**{f.name: _build(hints[f.name], value[f.name]) for f in given})
    if origin is tuple:
        return tuple(_build(typing.get_args(kind)[0], item) for item in value)
    if origin is dict:
        return {key: _build(typing.get_args(kind)[1], item) for key, item in value.items()}
    return value
