"""Measurements of students: scores, divergences, continuations, times, sizes.

Each takes {name: student}; the value of "whole" is `lab.teacher`. Each keeps its result as one
record of the notebook; what was measured on a student is known by content, under whatever name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel

from depthprune_core import evaluation, models, pruning, speed
from depthprune_core.models import Teacher
from depthprune_core.records import Divergence, Facts, Score, Size, Timing
from depthprune_core.text import Windows
from depthprune_study import paths
from depthprune_study.errors import StudyError
from depthprune_study.lab import cache, held, scored
from depthprune_study.lab.students import Student

if TYPE_CHECKING:
    from depthprune_study.lab.workspace import Workspace

Models = Mapping[str, Teacher | Student]
SPEED, SIZE = ("depthprune_core.speed",), ("depthprune_core.pruning",)
PUBLISHED = {"gpt2-shape": (12, 10, 9), "tinyllama-1.1b-shape": (22, 20, 19)}  # the source's layers
PROMPT_WORDS = 16  # of a validation document, to be continued
_SHORT = {"context": 128, "new_tokens": 32}  # tokens read at once, then written one by one


def validation(lab: Workspace, students: Models, *, name: str = "validation") -> dict[str, Score]:
    """Each one's score on the validation articles: what choices are made by."""
    return lab.save(name, scores(lab, students, scored.validation_windows(lab)))


def test(lab: Workspace, students: Models, *, name: str = "test") -> dict[str, Score]:
    """Each one's score on the test articles, read once under this name: after every choice."""
    return _on_test(lab, students, name, text=None)


def elsewhere(
    lab: Workspace, text: str, students: Models, *, name: str = "elsewhere"
) -> dict[str, Score]:
    """Each one's score on another text, which nothing was trained on or chosen by."""
    return _on_test(lab, students, name, text=text)


def scores(lab: Workspace, students: Models, windows: Windows) -> dict[str, Score]:
    """Each one's score on these windows."""
    return {name: scored.score(lab, name, s, windows) for name, s in students.items()}


def divergences(
    lab: Workspace, students: Models, *, name: str = "divergences"
) -> dict[str, Divergence]:
    """KL(teacher || student) and top-1 agreement on the validation articles."""
    windows, teacher = scored.validation_windows(lab), lab.teacher.model

    def divergence(model: PreTrainedModel) -> Divergence:
        return evaluation.divergence(model, teacher, windows, progress=lab.progress)

    on = [lab.teacher, windows]
    return lab.save(
        name, _each(lab, "divergence", students, divergence, on=on, modules=scored.MODULES)
    )


def continuations(lab: Workspace, students: Models, *, n_prompts: int, new_tokens: int) -> Facts:
    """How each continues the beginnings of validation articles, greedily: `prompts`, `samples`."""
    documents = lab.documents("validation")[:n_prompts]
    prompts = [" ".join(d.text.split()[:PROMPT_WORDS]) for d in documents]
    tokenizer = lab.teacher.tokenizer

    def continued(model: PreTrainedModel) -> Facts:
        samples = evaluation.continuations(
            model, tokenizer, prompts, new_tokens=new_tokens, start=lab.teacher.start
        )
        return Facts({"samples": samples})

    on = [cache.tokenizer_hash(tokenizer), lab.teacher.start, prompts, new_tokens]
    found = _each(lab, "continued", students, continued, on=on, modules=scored.MODULES)
    samples = {name: facts.values["samples"] for name, facts in found.items()}
    return lab.save("continuations", Facts({"prompts": prompts, "samples": samples}))


def timing(
    lab: Workspace,
    students: Models,
    *,
    rounds: int,
    context: int = 128,
    new_tokens: int = 32,
    name: str = "timing",
) -> dict[str, Timing]:
    """Times of each beside the teacher, in turn. Measured anew on another machine."""
    path = lab.record_path(name)

    def measure() -> dict[str, Timing]:
        return speed.compare_all(
            lab.teacher.model,
            {label: student.model for label, student in students.items()},
            context=min(context, lab.context - new_tokens),
            new_tokens=new_tokens,
            repetitions=rounds,
            progress=lab.progress,
        )

    on = [lab.teacher, list(students), *students.values(), rounds, context, new_tokens, lab.machine]
    return lab.sources.note(cache.once(lab, path, measure, on=on, modules=SPEED), path)


def shape_timing(lab: Workspace, shapes: Sequence[str], *, rounds: int) -> dict[str, Timing]:
    """Times at the source's depths, with random weights: "gpt2-shape, 10 layers" and so on."""
    if unknown := [shape for shape in shapes if shape not in PUBLISHED]:
        raise StudyError(f"shapes: {unknown[0]!r} is not one of {', '.join(PUBLISHED)}")
    path = lab.record_path("shape_timing")

    def measure() -> dict[str, Timing]:
        found = {}
        for shape in shapes:
            held.release()
            model = models.load(shape, cache=paths.cache(), device=lab.device).model
            timed = speed.compare_depths(
                model, PUBLISHED[shape][1:], repetitions=rounds, **_SHORT, progress=lab.progress
            )
            found |= {f"{shape}, {depth} layers": timing for depth, timing in timed.items()}
        return found

    on = [list(shapes), rounds, lab.machine]
    return lab.sources.note(cache.once(lab, path, measure, on=on, modules=SPEED), path)


def sizes(lab: Workspace, students: Models, *, name: str = "sizes") -> dict[str, Size]:
    """Layers, parameters and bytes on disk of each."""
    found = _each(lab, "size", students, pruning.size, on=[], modules=SIZE)
    return lab.save(name, found)


def _on_test(lab: Workspace, students: Models, name: str, *, text: str | None) -> dict[str, Score]:
    contents = [cache.content(student) for student in students.values()]
    if lab.tests_read.setdefault(name, contents) != contents:
        raise StudyError(
            f"record {name}: the test articles were read already in this notebook; "
            "score every student in one call"
        )
    windows = lab.scoring(lab.split("test", text), tokens=scored.tokens(lab))
    return lab.save(name, scores(lab, students, windows))


def _each(
    lab: Workspace,
    step: str,
    students: Models,
    measure: Callable[[PreTrainedModel], Any],
    *,
    on: Sequence[Any],
    modules: Sequence[str],
) -> dict[str, Any]:
    """What `measure` finds in each, known by content: two rules may choose the same layers."""
    found = {}
    for name, student in students.items():
        stamp = cache.stamped(lab, step, [student, *on], modules=modules, shared=True)
        path = scored.measured_path(lab, stamp.key)
        found[name] = cache.measured(
            lab, path, stamp, lambda s=student: measure(s.model), name=f"{step} {name}"
        )
    return found
