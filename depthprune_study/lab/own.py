"""Prunes your own model: choose layers, drop them, heal, score, write a folder.

notebooks/your_model.ipynb calls these steps; `depthprune prune` runs that notebook.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from depthprune_core import evaluation, pruning
from depthprune_core.models import Teacher
from depthprune_core.records import Plan, Profile, Score
from depthprune_core.text import Windows
from depthprune_study.lab import export, measures, scoring, students, weights
from depthprune_study.lab.card import SAVED, WHOLE, mergekit, model_card
from depthprune_study.lab.job import Job
from depthprune_study.lab.job import prepare as prepare
from depthprune_study.lab.students import Student
from depthprune_study.results import statistics
from depthprune_study.results.statistics import Interval

CHOICE_TOKENS = 512  # limit per passage for choosing layers and for watching the training


@dataclass(frozen=True)
class Pruned:
    """The result: the plan, its scores on held-out passages, and its folder."""

    plan: Plan
    scores: dict[str, Score]
    ratios: dict[str, Interval]  # PPL ratios to the whole model
    out: Path
    address: str = ""  # on the hub, if it was pushed

    def __str__(self) -> str:
        gone = ", ".join(map(str, self.plan.dropped))
        where = f"{self.out.name} and {self.address}" if self.address else self.out.name
        return f"{where}: dropped layers {gone}, perplexity ratio {self.ratios[SAVED]}"


def profile(job: Job) -> Profile:
    """What each layer is worth, on the calibration passages."""
    return measures.profile(job.lab, windows(job, "calibration"), gradients=False)


def choose(job: Job, known: Profile | None = None) -> Plan:
    """The given layers, or the layers that the rule chooses on the calibration passages."""
    lab = job.lab
    if job.layers:
        return Plan(lab.n_layers, job.layers, "named")
    chosen = measures.plans(
        lab,
        known or profile(job),
        None,
        [job.n_dropped],
        windows=windows(job, "calibration"),
        rules=[lab.parameters["rule"]],
    )
    return next(iter(chosen.values()))


def cut(job: Job, plan: Plan) -> Student:
    """The whole model without the plan's layers.

    Raises ValueError before any training if its logits differ from those of the whole model with
    these layers skipped, or if they change after saving and opening.
    """
    student = students.cut(job.lab, plan)
    job.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=job.out.parent, prefix=f".{job.out.name}.") as folder:
        pruning.check_saved(student.model, Path(folder))
    return student


def heal(job: Job, plan: Plan, *, watched: bool = False) -> Student:
    """The cut, refitted and trained on the whole model's predictions.

    watched: score the validation passages during training, for the curve.

    Raises FloatingPointError if the training diverges.
    """
    seen = windows(job, "validation") if watched else None
    student = students.recover(job.lab, "healed", plan, job.recipe, validation=seen)
    if student.diverged:
        raise FloatingPointError(student.diverged)
    return student


def windows(job: Job, part: str) -> Windows:
    """Scoring windows for choices: the first tokens of each passage."""
    return job.lab.windows(part, tokens=min(job.lab.parameters["score_tokens"], CHOICE_TOKENS))


def score(job: Job, named: Mapping[str, Teacher | Student]) -> dict[str, Score]:
    """Scores on held-out passages. Raises FloatingPointError if a loss is not finite."""
    return _finite(scoring.scores(job.lab, named, _held_out(job)))


def save(job: Job, student: Student, scores: Mapping[str, Score]) -> Pruned:
    """Write the folder, scored in the precision of its file. `scores`: of WHOLE and CUT."""
    lab, plan = job.lab, student.plan
    weights.release()
    model = student.fresh()
    dtypes = export.file_dtypes(lab.teacher.model, model, plan)
    export.cast(export.cast(model, dtypes), dict.fromkeys(dtypes, torch.float32))
    scored = evaluation.score(model, _held_out(job), progress=lab.progress)
    scores = {**scores, **_finite({SAVED: scored})}
    files = {
        "README.md": model_card(job, plan, scores, model.num_parameters()),
        "mergekit.yaml": mergekit(job.base, plan, next(iter(dtypes.values()), torch.float32)),
    }
    tokenizer = lab.teacher.tokenizer
    export.folder(job.out, model, tokenizer, dtypes=dtypes, files=files, replace=job.replace)
    return Pruned(plan, scores, statistics.ratios(scores, whole=WHOLE), job.out)


def pushed(job: Job, made: Pruned) -> Pruned:
    """Push the folder to the hub if `push_to` is set."""
    push_to = job.lab.parameters["push_to"]
    return replace(made, address=export.push(made.out, push_to)) if push_to else made


def _held_out(job: Job) -> Windows:
    tokens = job.lab.parameters["score_tokens"]
    return job.lab.scoring(job.lab.split("test"), tokens=tokens)


def _finite(scores: dict[str, Score]) -> dict[str, Score]:
    for name, scored in scores.items():
        if not math.isfinite(nll := scored.mean_nll_nats):
            raise FloatingPointError(f"the loss of the model ({name}) on held-out text is {nll}")
    return scores
