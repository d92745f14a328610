"""Students: cut, refitted, healed. Each is identified by the content of its weights.

Weights are loaded only when needed. So a notebook whose results all exist runs from records alone:
nothing is trained, and no weights need to be on disk.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel

from depthprune_core import pruning, refitting, storage
from depthprune_core.records import Curve, Facts, Plan, Recipe
from depthprune_core.storage import Stamp
from depthprune_core.text import Windows
from depthprune_study import provenance
from depthprune_study.errors import StudyError
from depthprune_study.lab import cache, healing, samples, scoring, weights

if TYPE_CHECKING:
    from depthprune_study.lab.workspace import Workspace

# The other modules of the lab that `made` students import: they keep weights, but make none.
NOT_OF_THE_WEIGHTS = ("depthprune_study.lab.students", "depthprune_study.lab.workspace")
__all__ = ["Student", "cut", "made", "recover", "refitted", "same_text", "staged"]


@dataclass(eq=False)
class Student:
    """A model made from the teacher, identified by its content.

    If its healing diverged, it has the weights from before healing.
    """

    name: str
    plan: Plan
    content: str
    fresh: Callable[[], PreTrainedModel]  # makes an unshared copy
    view: Callable[[], PreTrainedModel] | None = None  # makes a copy that shares memory
    curve: Curve | None = None  # of its healing
    diverged: str = ""  # why its healing, or that of its start, was stopped

    @property
    def model(self) -> PreTrainedModel:
        """The model for measuring, not for training: it may share weights with others."""
        return self.view() if self.view else weights.get(self.content, self.fresh)

    def without(self, more: Plan) -> Student:
        """The same student with more layers dropped; `more` counts this student's layers."""
        content = cache.short_hash([self.content, "without", list(more.dropped)])
        plan = self.plan.then(more)
        make = lambda: pruning.drop_layers(self.model, more)  # noqa: E731
        return Student(f"{self.name}, cut", plan, content, make, diverged=self.diverged)


def cut(lab: Workspace, plan: Plan) -> Student:
    """The whole model without the plan's layers, untrained; an empty plan: the whole model."""
    teacher, content = lab.teacher.model, cache.content(lab.teacher)
    if not plan.dropped:
        return Student("whole", plan, content, lambda: copy.deepcopy(teacher), view=lambda: teacher)
    return Student(
        "cut",
        plan,
        cache.short_hash([content, "without", list(plan.dropped)]),
        lambda: pruning.drop_layers(teacher, plan),
        view=lambda: pruning.drop_layers(teacher, plan, share=True),
    )


def made(
    lab: Workspace,
    name: str,
    plan: Plan,
    make: Callable[[], PreTrainedModel],
    *,
    module: str,
    on: Sequence[Any],
) -> Student:
    """Another kind of student, identified by teacher, plan, `on` and the code of `module`."""
    code = provenance.code_hash(module, without=NOT_OF_THE_WEIGHTS)
    parts = [code, cache.content(lab.teacher), list(plan.dropped)]
    parts += [cache.content(item) for item in on]
    return Student(name, plan, cache.short_hash([name, *parts]), make)


def refitted(
    lab: Workspace,
    plan: Plan,
    recipe: Recipe,
    *,
    start: Student | None = None,
    windows: Windows | None = None,
) -> Student:
    """The cut (or `start`), untrained, with maps around each cut fitted to the teacher's states.

    Uses `recipe.refit_tokens` tokens: `lab.for_refit`, or the last of `windows`, whose first ones
    are for healing. The student is unchanged if that is 0, or if the maps cannot be fitted.
    """
    begun = start or cut(lab, plan)
    teacher = lab.teacher.model
    if not recipe.refit_tokens or not refitting.fitted_layers(plan) or not lab.can_refit:
        return begun
    n_tokens = recipe.refit_tokens
    text = lab.for_refit(recipe) if windows is None else samples.last(windows, n_tokens)
    on, rooms = [teacher, list(plan.dropped), text, begun], ("refitting", "pruning")
    stamp = cache.stamped(lab, "refitted", on, rooms=rooms, shared=True)

    def solve(path: Path) -> PreTrainedModel:
        weights.release()
        student = begun.fresh()
        weights.release()  # the models it was made from
        with lab.progress.of("refit"):
            refitting.refit(student, teacher, plan, text, progress=lab.progress)
        before = begun.model if start is None else None  # a cut shares memory with the teacher
        weights.save(student, path.with_suffix(".safetensors"), unlike=before)
        found = Facts({"name": "refitted", "weights": cache.weights_hash(student)})
        storage.write(path, found, stamp)
        return student

    return _kept(lab, "refitted", plan, stamp, begun, solve)


def recover(
    lab: Workspace,
    name: str,
    plan: Plan | None,
    recipe: Recipe,
    *,
    start: Student | None = None,
    windows: Windows | None = None,
    validation: Windows | None = None,
    keep_weights: bool = True,
) -> Student:
    """The plan's student, healed on the recipe's text (or on the first tokens of `windows`).

    It starts from `start` (with the plan of `start` if `plan` is None); otherwise from the cut,
    refitted if the recipe says so. With KL it learns from `lab.teacher`; with only CE from the
    text. A plan that drops no layer trains the whole model.
    validation: scored four times during training, for the curve. keep_weights=False: a trial; only
    its validation score is kept, and its weights are made again if they are needed.

    Students are identified by recipe and content, not by name or notebook: notebooks share them.
    A stopped run resumes from its checkpoint. If a run diverged, `diverged` says so and the student
    has the weights from before healing.
    """
    if start is None:
        if plan is None:
            raise StudyError(f"{name}: without a plan, start= must name a student to begin with")
        start = refitted(lab, plan, recipe, windows=windows) if plan.dropped else cut(lab, plan)
    text = lab.training(recipe) if windows is None else samples.first(windows, recipe.tokens)
    recipe, plan = healing.as_run(recipe, text), plan or start.plan
    run = healing.Healing(lab, name, plan, recipe, start, text, validation, keep_weights)
    stamp = run.stamp()
    path = _path_of(lab, stamp)
    curve = cache.kept(healing.curve_of(path), stamp)
    if curve is None or (validation is not None and not curve.validation_tokens):
        path.unlink(missing_ok=True)  # no whole curve, or one without validation: run again
    student = _kept(lab, name, plan, stamp, start, run.heal)
    student.curve = storage.read(healing.curve_of(path))
    student.diverged = student.curve.diverged or student.diverged
    if not keep_weights:
        scoring.scores(lab, {name: student}, scoring.validation_windows(lab))
    return student


def same_text(lab: Workspace, name: str, recipe: Recipe) -> Student:
    """The whole model trained with CE on the same windows: the effect of the text alone.

    It is not refitted; `recipe.refit_tokens` only keeps those windows out.
    """
    plan = Plan(lab.n_layers, (), "whole")
    return recover(lab, name, plan, recipe.but(kl=0.0, ce=1.0))


def staged(lab: Workspace, name: str, first: Plan, whole: Plan, recipe: Recipe) -> Student:
    """Drops layers in two stages: half of the text heals `first`, the other half heals `whole`.

    Refitted before each half if the recipe says so. The text is the same as for healing at once.
    """
    if not set(first.dropped) < set(whole.dropped):
        raise StudyError(
            f"{name}: the first stage drops layers {list(first.dropped)}, "
            f"which must be some of {list(whole.dropped)}"
        )
    text = lab.training(recipe)
    half = len(text) // recipe.batch_size // 2 * recipe.batch_size
    start = refitted(lab, first, recipe)
    halves = text.take(slice(0, half)), text.take(slice(half, None))
    begun = recover(lab, f"{name}, first", first, recipe, start=start, windows=halves[0])
    rest = (first.kept.index(layer) for layer in whole.dropped if layer not in first.dropped)
    student = begun.without(Plan(len(first.kept), tuple(rest), whole.rule))
    student = refitted(lab, whole, recipe, start=student)
    return recover(lab, name, whole, recipe, start=student, windows=halves[1])


def _kept(
    lab: Workspace,
    name: str,
    plan: Plan,
    stamp: Stamp,
    begun: Student,
    work: Callable[[Path], PreTrainedModel],
) -> Student:
    """The student of a result: from its record if that is kept, otherwise made by `work`."""
    path = _path_of(lab, stamp)
    found = cache.kept(path, stamp)
    model = None
    if found is None:
        model = work(path)
        found = storage.read(path)
    content = found.values["weights"]

    def again() -> PreTrainedModel:
        student = begun.fresh()
        if weights.load(student, path.with_suffix(".safetensors"), content):
            return student
        del student
        student = work(path)
        if (new := cache.weights_hash(student)) != content:
            raise StudyError(
                f"the weights of student {name!r} were not on disk, and this machine makes "
                f"different ones ({new}, not {content}): run the notebook again"
            )
        return student

    if content == begun.content:  # unchanged: it diverged
        return Student(name, plan, content, begun.fresh, diverged=begun.diverged)
    if model is not None:
        weights.hold(content, model)
    return Student(name, plan, content, again, diverged=begun.diverged)


def _path_of(lab: Workspace, stamp: Stamp) -> Path:
    """The record of a student; its weights, curve and checkpoint are beside it."""
    return lab.folder / "students" / f"{stamp.key}.json"
