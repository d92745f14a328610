"""Reads the records of a running or published study for findings and verdicts. No torch."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from depthprune_core import storage
from depthprune_study import paths
from depthprune_study.errors import StudyError
from depthprune_study.report.wording import Finding

OWN = ("gpt2", "tinyllama-1.1b")  # the source's models
SHAPES = {"gpt2-shape": "gpt2", "tinyllama-1.1b-shape": "tinyllama-1.1b"}  # random weights
STAND_INS = ("gpt2-mini", "llama-tiny", *SHAPES)
SOURCE, REAL, STAND_IN = 0, 1, 2  # how far a model can decide the source's claims


def kind(model: str, *, speed: bool = False) -> int:
    """SOURCE, REAL (weights of another model) or STAND_IN. Speed depends only on the shape."""
    if model in OWN or (speed and model in SHAPES):
        return SOURCE
    return STAND_IN if model in STAND_INS or model.endswith("-shape") else REAL


class Told(NamedTuple):
    """A finding as its notebook told it."""

    notebook: str
    name: str  # of its figure, if it has one
    finding: Finding
    lead: bool  # one of the notebook's main findings


@dataclass(frozen=True)
class Evidence:
    """A study's folder (runs/<study> or reports/<study>): records/, figures/, costs.json."""

    study: str
    folder: Path
    kept: dict[Any, Any] = field(default_factory=dict, compare=False)  # cache

    def has(self, notebook: str, name: str) -> bool:
        return self.path(notebook, name).is_file()

    def path(self, notebook: str, name: str) -> Path:
        return self.folder / "records" / notebook / f"{name}.json"

    def record(self, notebook: str, name: str) -> Any:
        """A record. Raises StudyError if it is missing or damaged."""
        path = self.path(notebook, name)
        if path not in self.kept:
            if not path.is_file():
                raise StudyError(f"{path} is missing: run notebook {notebook} of {self.study}")
            self.kept[path] = _whole(storage.read, path)
        return self.kept[path]

    def get(self, notebook: str, name: str) -> Any:
        """A record; an empty dict if this study has none."""
        return self.record(notebook, name) if self.has(notebook, name) else {}

    def stamp(self, notebook: str) -> storage.Stamp | None:
        """The stamp of a notebook's first record; None if it has none."""
        found = sorted((self.folder / "records" / notebook).glob("*.json"))
        return _whole(storage.read_stamp, found[0]) if found else None

    def parameters(self, notebook: str) -> dict[str, Any]:
        """A notebook's parameters; empty if it left no record."""
        stamp = self.stamp(notebook)
        return stamp.parameters if stamp else {}

    def model(self, notebook: str) -> str:
        return str(self.parameters(notebook).get("model", ""))

    @property
    def notebooks(self) -> list[str]:
        """The notebooks that left records, in order."""
        return sorted(path.name for path in (self.folder / "records").glob("*") if path.is_dir())

    @property
    def told(self) -> list[Told]:
        """The findings of all numbered notebooks, in their order."""
        found = []
        for notebook in (name for name in self.notebooks if name[0].isdigit()):
            record = self.get(notebook, "findings")
            for of in record.values["told"] if record else ():
                finding = Finding(of["title"], of["text"], of["against"])
                found.append(Told(notebook, of["name"], finding, of["lead"]))
        return found

    @property
    def lead(self) -> str:
        """The notebook that told the headline cut: 03 or 04, whichever model can decide more."""
        told = {(of.notebook, of.name) for of in self.told}
        ran = [n for n in ("04_transfer", "03_recovery") if (n, "path") in told]
        return min(ran, key=lambda notebook: kind(self.model(notebook)), default="")

    @property
    def costs(self) -> dict[str, dict[str, Any]]:
        """Notebook -> seconds, peak_bytes; empty if there are none."""
        try:
            return json.loads((self.folder / "costs.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}

    def figure(self, notebook: str, name: str) -> Path | None:
        """A figure of a notebook; None if it is missing."""
        path = self.folder / "figures" / f"{notebook}-{name}.png"
        return path if path.is_file() else None


def remembered(make: Callable[[Evidence], Any]) -> Callable[[Evidence], Any]:
    """Caches the result with the evidence."""

    @functools.wraps(make)
    def made(evidence: Evidence) -> Any:
        if make not in evidence.kept:
            evidence.kept[make] = make(evidence)
        return evidence.kept[make]

    return made


def read_evidence(study: str) -> Evidence:
    """The evidence of a study that is being run."""
    return Evidence(study, paths.runs(study))


def _whole(read: Callable[[Path], Any], path: Path) -> Any:
    """The result of `read`; StudyError for a damaged file."""
    try:
        return read(path)
    except ValueError as error:
        raise StudyError(str(error)) from None
