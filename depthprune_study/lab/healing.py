"""One student's healing: what it is known by, how it runs, what it leaves on disk."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedModel

from depthprune_core import distillation, evaluation, pruning, storage
from depthprune_core.records import Curve, Facts, Plan, Recipe
from depthprune_core.storage import Stamp
from depthprune_core.text import Windows
from depthprune_study import provenance
from depthprune_study.lab import cache, held, weights

if TYPE_CHECKING:
    from depthprune_study.lab.students import Student
    from depthprune_study.lab.workspace import Workspace

HEAL = ("depthprune_core.distillation", "depthprune_core.pruning")
VALIDATIONS = 4  # on the way
ROOMY_BYTES = 64 * 2**30  # a GPU from here on needs to spare nothing
LARGE = 500_000_000  # parameters; from here on a step takes one window at a time


class Run:
    """One healing. `heal(path)` runs it, or goes on with it; keeps record, curve and weights."""

    def __init__(
        self,
        lab: Workspace,
        name: str,
        plan: Plan,
        recipe: Recipe,
        start: Student,
        windows: Windows,
        validation: Windows | None,
        keep: bool,
    ) -> None:
        recipe = as_run(recipe, windows)
        self.lab, self.name, self.plan, self.recipe = lab, name, plan, recipe
        self.start, self.windows, self.validation, self.keep = start, windows, validation, keep
        teacher = lab.teacher if recipe.kl else "no teacher"
        tools = f"peft {provenance.version('peft')}" if recipe.trained == "lora" else ""
        on = [teacher, start, windows, recipe, tools]
        options = {"seed": recipe.seed, "dtype": recipe.precision}
        self.stamp = cache.stamped(lab, "healed", on, modules=HEAL, shared=True, **options)
        self.path = path_of(lab, self.stamp)

    def lacks_validation(self) -> bool:
        """Whether it is kept, healed with nothing scored on the way."""
        found = cache.kept(self.path, self.stamp)
        return found is not None and not storage.read(curve_of(self.path)).validation_tokens

    def heal(self, path: Path) -> PreTrainedModel:
        lab, checkpoint = self.lab, path.with_suffix(".ckpt")
        held.release()
        student = self._begin()
        held.release()  # what it began from
        with lab.progress.of(self.name):
            try:
                student, curve = self._distil(student, checkpoint)
            except distillation.DivergedError as stop:
                student, curve = None, stop.curve
                curve = Curve(**{**vars(curve), "diverged": curve.diverged or str(stop)})
        if curve.diverged:
            student, content = self.start.fresh(), self.start.content
        else:
            cache.forget_hash(student)
            content = cache.weights_hash(student)
            if self.keep:
                weights.save(student, path.with_suffix(".safetensors"))
        storage.write(curve_of(path), curve, self.stamp)
        storage.write(path, Facts({"name": self.name, "weights": content}), self.stamp)
        if not curve.diverged:  # of one that diverged, its last sound state stays to be looked at
            checkpoint.unlink(missing_ok=True)
        return student

    def _begin(self) -> PreTrainedModel:
        student = self.start.fresh()
        if (
            self.recipe.trained == "lora"
        ):  # adapters leave the weights as they are: one copy will do
            pruning.share_equal(student, self.lab.teacher.model, self.plan)
        return student

    def _distil(self, student: PreTrainedModel, checkpoint: Path) -> tuple[PreTrainedModel, Curve]:
        lab, recipe = self.lab, self.recipe
        sparing = is_tight(student)
        at_once = lab.parameters.get("windows_at_once") or (1 if sparing else None)
        student, curve = distillation.recover(
            student,
            lab.teacher.model if recipe.kl else None,
            self.windows,
            recipe,
            validation=self.validation,
            validate_every_tokens=self._every(),
            checkpoint=checkpoint,
            micro_batch_size=at_once,
            checkpoint_activations=sparing,
            states=lab.states if recipe.kl else None,
            progress=lab.progress,
        )
        if self.validation is None and not curve.diverged:
            nll = evaluation.score(student, self.windows.take(slice(0, 1))).mean_nll_nats
            if not math.isfinite(nll):
                problem = f"the loss is {nll} after the last step: lower lr={recipe.lr:g}"
                raise distillation.DivergedError(problem, curve)
        return student, curve

    def _every(self) -> int | None:
        return max(1, self.recipe.tokens // VALIDATIONS) if self.validation is not None else None


def first(windows: Windows, n_tokens: int) -> Windows:
    """The first `n_tokens` of training windows, at most; one window at least."""
    return windows.take(slice(0, max(1, n_tokens // windows.seq_len)))


def as_run(recipe: Recipe, windows: Windows) -> Recipe:
    """The recipe as it is run on these windows, which say how many tokens there are."""
    tokens = len(windows) * windows.seq_len
    batch = min(recipe.batch_tokens, tokens) if windows.seq_len == recipe.seq_len else 0
    if not batch:
        raise ValueError(
            f"the recipe is for windows of {recipe.seq_len} tokens, not of {windows.seq_len}"
        )
    return recipe.but(tokens=tokens, batch_tokens=batch)


def is_tight(model: PreTrainedModel) -> bool:
    """Whether healing must spare memory: a large model, and no GPU with room for it."""
    if sum(p.numel() for p in model.parameters()) < LARGE:
        return False
    on_gpu = model.device.type == "cuda"
    return not on_gpu or torch.cuda.get_device_properties(model.device).total_memory < ROOMY_BYTES


def path_of(lab: Workspace, stamp: Stamp) -> Path:
    """The record of a student; its weights, curve and checkpoint lie beside it."""
    return lab.folder / "students" / f"{stamp.key}.json"


def curve_of(path: Path) -> Path:
    return path.with_suffix(".curve.json")
