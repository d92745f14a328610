"""Heals one student: runs the training and writes its files."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedModel

from depthprune_core import distillation, evaluation, pruning, storage
from depthprune_core.records import Curve, Facts, Plan, Recipe
from depthprune_core.storage import Stamp
from depthprune_core.text import Windows
from depthprune_study import provenance
from depthprune_study.lab import cache, weights

if TYPE_CHECKING:
    from depthprune_study.lab.students import Student
    from depthprune_study.lab.workspace import Workspace

VALIDATIONS = 4  # during training
ROOMY_BYTES = 64 * 2**30  # a GPU of this size needs no memory saving
LARGE = 500_000_000  # parameters; from here on, a step takes one window at a time


@dataclass
class Healing:
    """One healing of `start` on `windows`. `keep_weights`: save them beside record and curve."""

    lab: Workspace
    name: str
    plan: Plan
    recipe: Recipe
    start: Student
    windows: Windows
    validation: Windows | None
    keep_weights: bool

    def stamp(self) -> Stamp:
        """The stamp of the result; it does not depend on the name or the notebook."""
        lab, recipe = self.lab, self.recipe
        teacher = lab.teacher if recipe.kl else "no teacher"
        tools = f"peft {provenance.version('peft')}" if recipe.trained == "lora" else ""
        on = [teacher, self.start, self.windows, recipe, tools]
        options = {"seed": recipe.seed, "dtype": recipe.precision}
        rooms = ("distillation", "pruning")
        return cache.stamped(lab, "healed", on, rooms=rooms, shared=True, **options)

    def heal(self, path: Path) -> PreTrainedModel:
        """Run or resume it. The record at `path` stores the hash of the weights."""
        checkpoint = path.with_suffix(".ckpt")
        weights.release()
        student = self.start.fresh()
        if self.recipe.trained == "lora":  # adapters do not change the weights: share them
            pruning.share_equal(student, self.lab.teacher.model, self.plan)
        weights.release()  # the model it started from
        with self.lab.progress.of(self.name):
            try:
                student, curve = self._distil(student, checkpoint)
            except distillation.DivergedError as stop:
                student = None  # free its memory for the copy of its start
                curve = replace(stop.curve, diverged=stop.curve.diverged or str(stop))
        if curve.diverged:
            student, content = self.start.fresh(), self.start.content
        else:
            cache.forget_hash(student)
            content = cache.weights_hash(student)
            if self.keep_weights:
                weights.save(student, path.with_suffix(".safetensors"))
        stamp = self.stamp()
        storage.write(curve_of(path), curve, stamp)
        storage.write(path, Facts({"name": self.name, "weights": content}), stamp)
        if not curve.diverged:  # after divergence the checkpoint stays, for inspection
            checkpoint.unlink(missing_ok=True)
        return student

    def _distil(self, student: PreTrainedModel, checkpoint: Path) -> tuple[PreTrainedModel, Curve]:
        lab, kl, tight = self.lab, self.recipe.kl, is_tight(student)
        watched = self.validation is not None
        student, curve = distillation.recover(
            student,
            lab.teacher.model if kl else None,
            self.windows,
            self.recipe,
            validation=self.validation,
            validate_every_tokens=every(self.recipe) if watched else None,
            checkpoint=checkpoint,
            micro_batch_size=1 if tight else None,
            checkpoint_activations=tight,
            states=lab.states if kl else None,
            progress=lab.progress,
        )
        if not watched and not curve.diverged:
            nll = evaluation.score(student, self.windows.take(slice(0, 1))).mean_nll_nats
            if not math.isfinite(nll):
                problem = f"the loss is {nll} after the last step: lower lr={self.recipe.lr:g}"
                raise distillation.DivergedError(problem, curve)
        return student, curve


def as_run(recipe: Recipe, windows: Windows) -> Recipe:
    """The recipe with the number of tokens of these windows."""
    if windows.seq_len != recipe.seq_len:
        raise ValueError(
            f"the recipe needs windows of {recipe.seq_len} tokens, not of {windows.seq_len}"
        )
    tokens = len(windows) * windows.seq_len
    return recipe.but(tokens=tokens, batch_tokens=min(recipe.batch_tokens, tokens))


def every(recipe: Recipe) -> int:
    """Tokens from one validation to the next."""
    return max(1, recipe.tokens // VALIDATIONS)


def is_tight(model: PreTrainedModel) -> bool:
    """Whether healing must save memory: a large model, and no GPU that is large enough."""
    if sum(p.numel() for p in model.parameters()) < LARGE:
        return False
    on_gpu = model.device.type == "cuda"
    return not on_gpu or torch.cuda.get_device_properties(model.device).total_memory < ROOMY_BYTES


def curve_of(path: Path) -> Path:
    """The path of the curve for the record at `path`."""
    return path.with_suffix(".curve.json")
