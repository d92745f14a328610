"""Students: cut, refitted, healed. Each is known by the content of its weights.

A student's weights come to memory when something needs them. So a notebook whose pieces of work are
all done runs from records alone: nothing is trained, and no weights need to be on disk.
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
from depthprune_study.lab import cache, healing, scoring, weights
from depthprune_study.lab.words import own_words

if TYPE_CHECKING:
    from depthprune_study.lab.workspace import Workspace

__all__ = ["Student", "cut", "made", "own_words", "recover", "refitted", "same_text", "staged"]


@dataclass(eq=False)
class Student:
    """A model made from the teacher, known by its content.

    One whose healing diverged has the weights that it began with.
    """

    name: str
    plan: Plan
    content: str
    fresh: Callable[[], PreTrainedModel]  # gives a copy that nothing else holds
    view: Callable[[], PreTrainedModel] | None = None  # one that takes no memory of its own
    curve: Curve | None = None  # of its healing
    diverged: str = ""  # why its healing, or that of the student it began from, was stopped

    @property
    def model(self) -> PreTrainedModel:
        """To be measured, not trained: it may share its weights with others."""
        return self.view() if self.view else weights.get(self.content, self.fresh)

    def without(self, more: Plan) -> Student:
        """The same student with more layers dropped; `more` counts in its own layers."""
        content = cache.short_hash([self.content, "without", list(more.dropped)])
        plan = self.plan.then(more)
        make = lambda: pruning.drop_layers(self.model, more)  # noqa: E731
        return Student(f"{self.name}, cut", plan, content, make, diverged=self.diverged)


def cut(lab: Workspace, plan: Plan) -> Student:
    """The whole model without the plan's layers, untrained; with none dropped, the whole model."""
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
    """A student of another kind, known by teacher, plan, `on` and the code of `module`."""
    parts = [provenance.code_hash(module), cache.content(lab.teacher), list(plan.dropped)]
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
    """The cut (or `start`), untrained, its maps around each cut solved for the teacher's states.

    On `recipe.refit_tokens` of text: the recipe's own, or the first of `windows`. A model
    whose maps cannot be fitted stays as it is.
    """
    begun = start or cut(lab, plan)
    teacher = lab.teacher.model
    if not refitting.fitted_layers(plan) or not lab.can_refit:
        return begun
    text = lab.training(recipe, tokens=recipe.refit_tokens) if windows is None else windows
    text = _first(text, recipe.refit_tokens)
    on, rooms = [teacher, list(plan.dropped), text, begun], ("refitting", "pruning")
    stamp = cache.stamped(lab, "refitted", on, rooms=rooms, shared=True)

    def solve(path: Path) -> PreTrainedModel:
        weights.release()
        student = begun.fresh()
        weights.release()  # what it was made from
        with lab.progress.of("refit"):
            refitting.refit(student, teacher, plan, text, progress=lab.progress)
        before = begun.model if start is None else None  # a cut takes no memory of its own
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
    """The plan's student, healed on the recipe's own text (or on the first tokens of `windows`).

    It begins as `start` (whose plan it has where `plan` is None); else as cut, and refitted where
    the recipe says so. With KL it learns from `lab.teacher`; with CE alone from the text. A plan
    that drops nothing trains the whole model.
    validation: scored four times on the way, for the curve. keep_weights=False: a trial; its
    validation score is kept, its weights are made again where something else is measured.

    Students are known by recipe and content, not by name or notebook: what one notebook has healed,
    another reads. A run that was stopped goes on from its checkpoint. A student whose run diverged
    says so (`diverged`) and has the weights that it began with.
    """
    if start is None:
        if plan is None:
            raise StudyError(f"{name}: without a plan, start= must name a student to begin with")
        refit = recipe.refit_tokens and plan.dropped
        start = refitted(lab, plan, recipe, windows=windows) if refit else cut(lab, plan)
    text = lab.training(recipe) if windows is None else _first(windows, recipe.tokens)
    recipe, plan = healing.as_run(recipe, text), plan or start.plan
    run = healing.Healing(lab, name, plan, recipe, start, text, validation, keep_weights)
    stamp = run.stamp()
    path = _path_of(lab, stamp)
    known = cache.kept(path, stamp) is not None and storage.read(healing.curve_of(path))
    if known and validation is not None and not known.validation_tokens:
        path.unlink()  # nothing was scored on the way: once more, with validation
    student = _kept(lab, name, plan, stamp, start, run.heal)
    student.curve = storage.read(healing.curve_of(path))
    student.diverged = student.curve.diverged or student.diverged
    if not keep_weights:
        scoring.scores(lab, {name: student}, scoring.validation_windows(lab))
    return student


def same_text(lab: Workspace, name: str, recipe: Recipe) -> Student:
    """The whole model trained by CE on the same windows: what the text alone brings."""
    plan = Plan(lab.n_layers, (), "whole")
    return recover(lab, name, plan, recipe.but(kl=0.0, ce=1.0, refit_tokens=0))


def staged(lab: Workspace, name: str, first: Plan, whole: Plan, recipe: Recipe) -> Student:
    """Half of the text heals `first`; the rest of `whole`'s layers go; the other half heals that.

    Refitted before each half where the recipe says so. The text is that of one healed at once.
    """
    if not set(first.dropped) < set(whole.dropped):
        raise StudyError(
            f"{name}: the first stage drops layers {list(first.dropped)}, "
            f"which must be some of {list(whole.dropped)}"
        )
    text = lab.training(recipe)
    half = len(text) // recipe.batch_size // 2 * recipe.batch_size
    fits = recipe.refit_tokens
    start = refitted(lab, first, recipe) if fits else cut(lab, first)
    halves = text.take(slice(0, half)), text.take(slice(half, None))
    begun = recover(lab, f"{name}, first", first, recipe, start=start, windows=halves[0])
    rest = (first.kept.index(layer) for layer in whole.dropped if layer not in first.dropped)
    student = begun.without(Plan(len(first.kept), tuple(rest), whole.rule))
    student = refitted(lab, whole, recipe, start=student) if fits else student
    return recover(lab, name, whole, recipe, start=student, windows=halves[1])


def _kept(
    lab: Workspace,
    name: str,
    plan: Plan,
    stamp: Stamp,
    begun: Student,
    work: Callable[[Path], PreTrainedModel],
) -> Student:
    """The student of a piece of work: by its record where that is kept, else worked out."""
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
                f"the weights of student {name!r} were not on disk, and this machine makes other "
                f"ones ({new}, not {content}): run the notebook again to measure the new ones"
            )
        return student

    if content == begun.content:  # stopped before it changed: it diverged
        return Student(name, plan, content, begun.fresh, diverged=begun.diverged)
    if model is not None:
        weights.hold(content, model)
    return Student(name, plan, content, again, diverged=begun.diverged)


def _path_of(lab: Workspace, stamp: Stamp) -> Path:
    """The record of a student; its weights, curve and checkpoint lie beside it."""
    return lab.folder / "students" / f"{stamp.key}.json"


def _first(windows: Windows, n_tokens: int) -> Windows:
    """The first `n_tokens` of training windows, at most; one window at least."""
    return windows.take(slice(0, max(1, n_tokens // windows.seq_len)))
