"""Marks of finished notebooks: the hashes of their files, and their cost."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from depthprune_core import storage
from depthprune_study import parameters, paths


@dataclass(frozen=True)
class Step:
    """One notebook of a study: its parameters, and whether it is done."""

    study: str
    notebook: str
    parameters: dict[str, Any]
    key: str  # hash of everything that can change its output
    done: bool


def executed(study: str, notebook: str) -> Path:
    """The path of the executed notebook."""
    return paths.runs(study) / "notebooks" / f"{notebook}.ipynb"


def is_done(study: str, notebook: str, key: str) -> bool:
    """Whether the notebook was run with this key and its files are unchanged."""
    return read_json(_mark(study, notebook)) == {"key": key, "files": _files(study, notebook)}


def leave(step: Step) -> None:
    """Write the mark of a finished step."""
    mark = {"key": step.key, "files": _files(step.study, step.notebook)}
    storage.write_atomically(_mark(step.study, step.notebook), json.dumps(mark, indent=1))


def _mark(study: str, notebook: str) -> Path:
    return paths.runs(study) / "done" / f"{notebook}.json"


def _files(study: str, notebook: str) -> dict[str, str]:
    """Hashes of the files that a notebook wrote, and of the records that it read."""
    root = paths.runs(study)
    files = [executed(study, notebook), *(root / "figures").glob(f"{notebook}-*")]
    for name in (notebook, *parameters.reads(notebook)):
        files += (root / "records" / name).rglob("*.json")
    return {p.relative_to(root).as_posix(): hash_of(p) for p in sorted(files) if p.is_file()}


def costs(folder: Path) -> dict[str, dict[str, Any]]:
    """Notebook -> {"seconds", "peak_bytes", "disk_bytes", "key", perhaps "resumed"}.

    From a report's or a run's folder.
    """
    return read_json(folder / "costs.json")


def expected(study: str) -> dict[str, dict[str, Any]]:
    """The costs in the study's own report, else in the shipped one."""
    return costs(paths.reports(study)) or costs(paths.shipped("reports") / study)


def minutes(cost: Mapping[str, Any]) -> str:
    """A measured time as text: `about 4 min`; `more than` if only part of the run was timed."""
    seconds = cost["seconds"]
    time_ = f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
    time_ = time_ if seconds < 5_400 else f"{seconds / 3_600:.1f} h"
    return f"{'more than' if cost.get('resumed') else 'about'} {time_}"


def remember_cost(step: Step, seconds: float, peak_bytes: int, *, goes_on: bool) -> None:
    """Store the highest cost of the notebook with its current key.

    A resumed run takes less time, so the time of the last complete run stays. `resumed` means that
    no complete run was timed.
    """
    folder = paths.runs(step.study)
    known = costs(folder)
    before = known.get(step.notebook, {})
    before = before if goes_on or before.get("key") == step.key else {}
    cost = {
        "seconds": max(before.get("seconds", 0), round(seconds, 1)),
        "peak_bytes": max(before.get("peak_bytes", 0), peak_bytes),
        "disk_bytes": sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
        "key": step.key,
    }
    if goes_on and (not before or before.get("resumed")):
        cost["resumed"] = True
    content = json.dumps({**known, step.notebook: cost}, indent=1)
    storage.write_atomically(folder / "costs.json", content)


def read_json(path: Path) -> dict[str, Any]:
    """A small JSON file; empty if it is missing or damaged."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def hash_of(path: Path) -> str:
    """Hash of a file's content; empty if the file is missing."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
