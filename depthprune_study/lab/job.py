"""Checks the parameters of notebooks/your_model.ipynb, and so of `depthprune prune`."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from depthprune_core import folders, models
from depthprune_core.anatomy import anatomy
from depthprune_core.models import SOURCES, Teacher
from depthprune_core.records import Plan, Recipe
from depthprune_study.errors import StudyError
from depthprune_study.lab import export
from depthprune_study.lab.workspace import Workspace

UNITS = {"K": 10**3, "M": 10**6, "B": 10**9, "G": 10**9}


@dataclass(frozen=True)
class Base:
    """The origin of a model, without local paths. Empty: not known, or none."""

    title: str
    hub: str = ""  # its hub id
    revision: str = ""  # its commit on the hub
    card: str = ""  # its model card: a file, or a hub id


@dataclass(frozen=True)
class Job:
    """Everything that is fixed before the work begins."""

    lab: Workspace
    base: Base
    out: Path  # the folder to write
    replace: bool  # overwrite the output of an earlier run
    n_dropped: int
    layers: tuple[int, ...]  # exact layers, instead of a rule
    recipe: Recipe | None  # None: no training


def prepare(lab: Workspace, *, say: Callable[[str], None] = print) -> Job:
    """Check everything, find the text and the model, load the model.

    lab: of the notebook your_model; its parameters are the options.

    Raises StudyError or ValueError for invalid options.
    """
    given = lab.parameters
    out = Path(given["out"]) if given["out"] else lab.folder / "your_model"
    replace = not given["out"]
    goal = None if given["layers"] else _goal(given["drop"])
    export.check_free(out, replace=replace)
    export.check_push(given["push_to"])
    base, lab.place = _find(given["model"])
    lab.split("test")  # the text is there and long enough
    if lab.teacher.note:
        say(f"{given['model']}: {lab.teacher.note}")
    recipe = None
    if tokens := given["recover_tokens"]:
        recipe = lab.recipe(tokens=tokens, seq_len=given["seq_len"])
    named = Plan(lab.n_layers, tuple(given["layers"]), "named").dropped
    return Job(
        lab=lab,
        base=base,
        out=out,
        replace=replace,
        n_dropped=_n_dropped(lab.teacher, *goal) if goal else len(named),
        layers=named,
        recipe=recipe,
    )


def _find(model: str) -> tuple[Base, str]:
    """A model's origin, and the name for `models.load`; a hub id is fetched.

    Raises StudyError if the model is not found, ValueError for a folder with an incomplete model.
    """
    if known := SOURCES.get(model):
        hub = known.where if known.kind == "hub" else ""
        card = models.BUNDLED / known.where / "README.md" if known.kind == "bundled" else hub
        return Base(model, hub, known.revision, str(card)), model
    if Path(model).is_dir():
        folders.check(Path(model))
        return Base(Path(model).resolve().name, card=str(Path(model) / "README.md")), model
    if Path(model).exists():
        raise StudyError(f"model={model!r} is a file: name the folder that contains it")
    if model.count("/") != 1:
        names = ", ".join(SOURCES)
        raise StudyError(f"model={model!r} is not known: name {names}, a local folder or a hub id")
    try:
        folder = models.fetch_hub(model)  # with its card, which names the licence
    except RuntimeError as error:
        raise StudyError(f"model={model!r} is not a local folder, and {error}") from None
    return Base(model, model, folder.name, str(folder / "README.md")), str(folder)


def _goal(drop: str) -> tuple[float, str]:
    """`2` -> 2 layers, `8%` -> a share of the parameters, `120M` -> the remaining parameters."""
    match = re.fullmatch(r"(\d+)|(\d+(?:\.\d+)?)(%|[KMBG])", drop.strip().upper())
    if match is None:
        raise StudyError(
            f"drop={drop!r} is not valid: give a number of layers (2), a share of the parameters "
            "(8%), or a target size (120M)"
        )
    return float(match[1] or match[2]), match[3] or ""


def _n_dropped(teacher: Teacher, number: float, unit: str) -> int:
    """The number of layers nearest to the goal. Raises StudyError if the goal is out of reach."""
    layers, n = anatomy(teacher.model).layers, teacher.model.num_parameters()
    each, most = sum(p.numel() for p in layers.parameters()) / len(layers), len(layers) - 1
    wanted = number
    if unit:
        wanted = (n * number / 100 if unit == "%" else n - number * UNITS[unit]) / each
    if not 0 < wanted <= most + (0.5 if unit else 0):
        raise StudyError(
            f"drop={number:g}{unit} is out of reach: {teacher.name} has {n:,} parameters in "
            f"{most + 1} layers; at most {most} can be dropped ({n - most * each:,.0f} remain)"
        )
    return max(1, min(most, round(wanted)))
