"""Checks that a published report agrees with its records."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from depthprune_core import storage
from depthprune_study.errors import StudyError
from depthprune_study.report import publish
from depthprune_study.results.style import sources_in


def differences(folder: Path) -> list[str]:
    """One sentence for each inconsistency of a report; empty if it is consistent.

    Compares figures with their source records, all files with the list from publication, and the
    pages with newly made pages.
    """
    if not (folder / "records").is_dir():
        return [f"{folder} is not a report: it has no records/"]
    found = [*_figures(folder), *_files(folder)]
    return found or list(_pages(folder))


def _figures(folder: Path) -> Iterator[str]:
    """Checks that each figure names its source records and that they have not changed."""
    for path in sorted((folder / "figures").glob("*.png")):
        try:
            sources = sources_in(path.read_bytes())
        except (OSError, SyntaxError, ValueError):
            yield f"{_name(path, folder)} is damaged"
            continue
        if not sources:
            yield f"{_name(path, folder)} does not name its source records"
        for source, was in sources.items():
            try:
                now = storage.data_hash(folder / source)
            except (OSError, ValueError):
                now = ""
            if now != was:
                yield f"{_name(path, folder)} was drawn from a different version of {source}"


def _files(folder: Path) -> Iterator[str]:
    listed, there = publish.read_made_from(folder).get("files"), publish.hashes(folder)
    if not listed:
        yield f"{publish.MADE_FROM} is missing or damaged"
        return
    for name in sorted({*listed, *there}):
        if name not in there:
            yield f"{name} is missing"
        elif name not in listed:
            yield f"{name} is not part of the published report"
        elif listed[name] != there[name]:
            yield f"{name} was changed after the report was published"


def _pages(folder: Path) -> Iterator[str]:
    try:
        made = publish.made(folder.name, folder, publish.read_made_from(folder)["unfinished"])
    except StudyError as error:
        yield str(error)
        return
    for name, text in made.items():
        if (folder / name).read_text(encoding="utf-8") != text:
            yield f"{name} does not match the records and params/claims.yaml"


def _name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()
