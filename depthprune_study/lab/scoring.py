"""Measurements of students: scores, divergences, continuations, times, sizes.

Each function takes {name: student}; the value of "whole" is `lab.teacher`. Each saves its result as
one record of the notebook. Results are cached by the content of a student, not by its name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel

from depthprune_core import evaluation, models, pruning, speed
from depthprune_core.models import Teacher
from depthprune_core.records import Divergence, Facts, Score, Size, Timing
from depthprune_core.text import Document, Windows, training_windows
from depthprune_study import paths
from depthprune_study.errors import StudyError
from depthprune_study.lab import cache, weights

if TYPE_CHECKING:
    from depthprune_study.lab.students import Student
    from depthprune_study.lab.workspace import Workspace

    Models = Mapping[str, Teacher | Student]

PUBLISHED = {"gpt2-shape": (12, 10, 9), "tinyllama-1.1b-shape": (22, 20, 19)}  # the source's layers
PROMPT_WORDS, PROMPT_CHARS = 16, 200  # at the beginning of a validation document
MOST_ELSEWHERE = 100  # documents of another text that are scored
CONTEXT, NEW_TOKENS = 128, 32  # timed: prefill tokens, then decoded tokens


def validation(lab: Workspace, students: Models, *, name: str = "validation") -> dict[str, Score]:
    """Each student's score on the validation articles, which are used for choices."""
    return lab.save(name, scores(lab, students, validation_windows(lab)))


def test(lab: Workspace, students: Models, *, name: str = "test") -> dict[str, Score]:
    """Each student's score on the test articles, read once under this name, after all choices."""
    return elsewhere(lab, "", students, name=name)


def elsewhere(
    lab: Workspace, text: str, students: Models, *, name: str = "elsewhere"
) -> dict[str, Score]:
    """Each student's score on test documents of another text, read once under this name.

    Of another text than the study's own: the first MOST_ELSEWHERE documents.
    """
    contents = [cache.content(student) for student in students.values()]
    if lab.tests_read.setdefault(name, contents) != contents:
        raise StudyError(
            f"record {name}: this notebook has already read the test articles; "
            "score all students in one call"
        )
    tokens = lab.parameters.get("score_tokens", 0)
    documents = lab.split("test", text)
    windows = lab.scoring(documents[:MOST_ELSEWHERE] if text else documents, tokens=tokens)
    return lab.save(name, scores(lab, students, windows))


def conventional(lab: Workspace) -> dict[str, Score]:
    """The whole model's score as papers give it: the test articles as one text.

    Full windows of `seq_len` tokens without overlap, so the first tokens of each have no context.
    """
    one = Document("all test articles", "".join(d.text for d in lab.split("test")))
    windows = training_windows(
        [one],
        lab.teacher.tokenizer,
        start=lab.teacher.start,
        seq_len=min(lab.parameters["seq_len"], lab.context),
    )
    return lab.save("conventional", scores(lab, {"whole": lab.teacher}, windows))


def scores(lab: Workspace, students: Models, windows: Windows) -> dict[str, Score]:
    """Each student's score on these windows, marked if the student diverged."""

    def score(model: PreTrainedModel) -> Score:
        return evaluation.score(model, windows, progress=lab.progress)

    found = each(lab, "score", students, score, on=[windows], room="evaluation")
    diverged = {name: getattr(student, "diverged", "") for name, student in students.items()}
    return {name: replace(score, diverged=diverged[name]) for name, score in found.items()}


def validation_windows(lab: Workspace) -> Windows:
    """The windows for choices: the first `score_tokens` (0: all) of each document."""
    return lab.windows("validation", tokens=lab.parameters.get("score_tokens", 0))


def divergences(lab: Workspace, students: Models) -> dict[str, Divergence]:
    """KL(teacher || student) and top-1 agreement on the validation articles."""
    return lab.save("divergences", distances(lab, students))


def distances(lab: Workspace, students: Models) -> dict[str, Divergence]:
    """As `divergences`, but not saved as a record of the notebook."""
    windows, teacher = validation_windows(lab), lab.teacher.model

    def divergence(model: PreTrainedModel) -> Divergence:
        return evaluation.divergence(model, teacher, windows, progress=lab.progress)

    on = [lab.teacher, windows]
    return each(lab, "divergence", students, divergence, on=on, room="evaluation")


def continuations(lab: Workspace, students: Models, *, n_prompts: int, new_tokens: int) -> Facts:
    """Greedy continuations of the beginnings of validation articles: `prompts`, `samples`."""
    tokenizer, start = lab.teacher.tokenizer, lab.teacher.start
    room = lab.context - new_tokens - 1
    documents = lab.documents("validation")[:n_prompts]
    prompts = [_beginning(d.text, tokenizer, most=max(1, room)) for d in documents]

    def continued(model: PreTrainedModel) -> Facts:
        options = {"new_tokens": new_tokens, "start": start}
        samples = evaluation.continuations(model, tokenizer, prompts, **options)
        return Facts({"samples": samples})

    on = [start, prompts, tokenizer(prompts).input_ids, new_tokens]
    found = each(lab, "continued", students, continued, on=on, room="evaluation")
    samples = {name: facts.values["samples"] for name, facts in found.items()}
    return lab.save("continuations", Facts({"prompts": prompts, "samples": samples}))


def _beginning(text: str, tokenizer: Any, *, most: int) -> str:
    """The first words of a document, at most `most` tokens."""
    words = " ".join(text.split()[:PROMPT_WORDS])[:PROMPT_CHARS]
    ids = tokenizer(words, add_special_tokens=False).input_ids
    return words if len(ids) <= most else tokenizer.decode(ids[:most])


def timing(lab: Workspace, students: Models, *, rounds: int) -> dict[str, Timing]:
    """Times of each student and the teacher, interleaved. Another machine measures again."""

    def measure() -> dict[str, Timing]:
        return speed.compare_all(
            lab.teacher.model,
            {name: student.model for name, student in students.items()},
            context=min(CONTEXT, lab.context - NEW_TOKENS),
            new_tokens=NEW_TOKENS,
            repetitions=rounds,
            progress=lab.progress,
        )

    on = [lab.teacher, list(students), *students.values(), rounds, CONTEXT, NEW_TOKENS, lab.machine]
    return lab.save("timing", cache.measured(lab, "timing", measure, on=on, room="speed"))


def shape_timing(lab: Workspace, shapes: Sequence[str], *, rounds: int) -> dict[str, Timing]:
    """Times at the source's depths, with random weights: "gpt2-shape, 10 layers" and so on."""
    if unknown := [shape for shape in shapes if shape not in PUBLISHED]:
        raise StudyError(f"shapes: {unknown[0]!r} is not one of {', '.join(PUBLISHED)}")

    def measure() -> dict[str, Timing]:
        found = {}
        for shape in shapes:
            weights.release()
            model = models.load(shape, cache=paths.cache(), device=lab.device).model
            timed = speed.compare_depths(
                model,
                PUBLISHED[shape][1:],
                context=CONTEXT,
                new_tokens=NEW_TOKENS,
                repetitions=rounds,
                progress=lab.progress,
            )
            found |= {f"{shape}, {depth} layers": timing for depth, timing in timed.items()}
        return found

    on = [list(shapes), rounds, lab.machine]
    found = cache.measured(lab, "shape timing", measure, on=on, room="speed")
    return lab.save("shape_timing", found)


def sizes(lab: Workspace, students: Models) -> dict[str, Size]:
    """Layers, parameters and bytes on disk of each."""
    return lab.save("sizes", each(lab, "size", students, pruning.size, on=[], room="pruning"))


def each(
    lab: Workspace,
    step: str,
    students: Models,
    measure: Callable[[PreTrainedModel], Any],
    *,
    on: Sequence[Any],
    room: str,
) -> dict[str, Any]:
    """The result of `measure` for each, cached by content: two rules may choose the same layers."""
    return {
        name: cache.measured(
            lab,
            step,
            lambda student=student: measure(student.model),
            on=[student, *on],
            room=room,
            name=f"{step} {name}",
        )
        for name, student in students.items()
    }
