"""Scores by content: a student is scored once on the same windows, under whatever name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from depthprune_core import evaluation
from depthprune_core.records import Score
from depthprune_core.text import Windows
from depthprune_study.lab import cache

if TYPE_CHECKING:
    from depthprune_study.lab.workspace import Workspace

MODULES = ("depthprune_core.evaluation",)


def score(lab: Workspace, name: str, student: Any, windows: Windows) -> Score:
    """The score of a student or the teacher; of a student that diverged it says so."""

    def measure() -> Score:
        return evaluation.score(student.model, windows, progress=lab.progress)

    stamp = cache.stamped(lab, "scored", [student, windows], modules=MODULES, shared=True)
    found = cache.measured(lab, measured_path(lab, stamp.key), stamp, measure, name=f"score {name}")
    return replace(found, diverged=getattr(student, "diverged", ""))


def measured_path(lab: Workspace, key: str) -> Path:
    """Where a measurement lies that the notebooks of a study share."""
    return lab.folder / "measured" / f"{key}.json"


def validation_windows(lab: Workspace) -> Windows:
    """What choices are scored on: `score_tokens` of each validation document."""
    return lab.windows("validation", tokens=tokens(lab))


def tokens(lab: Workspace) -> int:
    """Tokens scored of each document; 0 is all."""
    return lab.parameters.get("score_tokens", 0)
