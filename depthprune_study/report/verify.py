"""Does a published report say what its records say?"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from depthprune_core import storage
from depthprune_study.errors import StudyError
from depthprune_study.report import publish
from depthprune_study.results.style import sources_in


def differences(folder: Path) -> list[str]:
    """What in a report does not fit together, a sentence each; none where all is well.

    Records against their checksums, figures against the records they were drawn from, all files
    against the list made when it was published, and the pages against pages made anew.
    """
    if not (folder / "records").is_dir():
        return [f"{folder} is no report: it has no records/"]
    found = [*_records(folder), *_figures(folder), *_files(folder)]
    return found or list(_pages(folder))


def _records(folder: Path) -> Iterator[str]:
    for path in sorted((folder / "records").rglob("*.json")):
        try:
            storage.read(path)
            stamp = storage.read_stamp(path)
        except ValueError:
            yield f"{_name(path, folder)} is damaged: its content is not what its checksum says"
            continue
        if stamp.step.partition("/")[0] != path.relative_to(folder / "records").parts[0]:
            yield f"{_name(path, folder)} lies in another notebook's place: it is of {stamp.step}"


def _figures(folder: Path) -> Iterator[str]:
    """Each figure names the records that it was drawn from, and their content is still the same."""
    for path in sorted((folder / "figures").glob("*.png")):
        try:
            sources = sources_in(path.read_bytes())
        except (OSError, SyntaxError, ValueError):
            yield f"{_name(path, folder)} is damaged"
            continue
        if not sources:
            yield f"{_name(path, folder)} does not say which records it was drawn from"
        for source, was in sources.items():
            try:
                now = storage.data_hash(folder / source)
            except (OSError, ValueError):
                now = ""
            if now != was:
                yield f"{_name(path, folder)} was drawn from another {source} than lies here"


def _files(folder: Path) -> Iterator[str]:
    listed, there = publish.read_made_from(folder).get("files"), publish.hashes(folder)
    if not listed:
        yield f"{publish.MADE_FROM} is missing or damaged"
        return
    for name in sorted({*listed, *there}):
        if name not in there:
            yield f"{name} is missing"
        elif name not in listed:
            yield f"{name} is no part of the report as it was published"
        elif listed[name] != there[name]:
            yield f"{name} is changed since the report was published"


def _pages(folder: Path) -> Iterator[str]:
    try:
        made = publish.made(folder.name, folder, publish.read_made_from(folder)["unfinished"])
    except StudyError as error:
        yield str(error)
        return
    for name, text in made.items():
        if (folder / name).read_text(encoding="utf-8") != text:
            yield f"{name} is not what the records and params/claims.yaml say"


def _name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()
