"""Student + teacher + windows + Recipe -> healed student + Curve."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path

from transformers import PreTrainedModel

from depthprune_core import adapters, checkpoints
from depthprune_core.anatomy import anatomy
from depthprune_core.progress import Progress, silent
from depthprune_core.records import Curve, Recipe
from depthprune_core.steps import DivergedError, Run
from depthprune_core.teachers import TeacherStates
from depthprune_core.text import Windows

__all__ = ["DivergedError", "recover"]


def recover(
    student: PreTrainedModel,
    teacher: PreTrainedModel | None,
    windows: Windows,
    recipe: Recipe,
    *,
    validation: Windows | None = None,
    validate_every_tokens: int | None = None,
    checkpoint: Path | None = None,
    checkpoint_every_seconds: float = 60,
    micro_batch_size: int | None = None,
    checkpoint_activations: bool = False,
    states: TeacherStates | None = None,
    progress: Progress = silent,
) -> tuple[PreTrainedModel, Curve]:
    """Train `student` in place, one pass over `windows` in order; returns it in eval mode.

    The loss is recipe.kl x KL(teacher || student), T^2-scaled (Hinton et al. 2015, 1503.02531),
    plus recipe.ce x the cross-entropy of the text. Both are means over the unmasked tokens of a
    whole step, so micro-batches of `micro_batch_size` windows give the full step's gradient. AdamW;
    the rate warms up, then follows a cosine to zero; gradients are clipped to norm 1; no dropout.

    recipe.trained: all weights, or lora: adapters on every linear map of the layers, merged into
    the weights at the end. With lora, a student may share weights with its teacher
    (`pruning.share_equal`).
    checkpoint_activations: recomputes layers: less memory, a third more time, the same result.
    states: the teacher's hidden states, kept for other recoveries on these windows.
    validation: scored at the end; with `validate_every_tokens` also at the start and in between.
    checkpoint: the run resumes from this file, bit for bit on a CPU, with a newly cut student. The
    file contains only finite steps. The caller removes it.

    Raises ValueError for an invalid setting or another run's checkpoint; DivergedError.
    """
    _check(student, teacher, windows, recipe, states)
    key = _key(student, teacher, windows, recipe) if checkpoint is not None else ""
    with _training(student), _adapted(student, recipe):
        run = Run(
            student,
            teacher,
            windows,
            recipe,
            states=states,
            micro_batch_size=micro_batch_size or recipe.batch_size,
            checkpoint_activations=checkpoint_activations,
        )
        save_if_due = _saver(run, key, checkpoint, checkpoint_every_seconds)
        every = validate_every_tokens or math.inf
        if validation is not None and validate_every_tokens and not run.log["validation_tokens"]:
            run.validate(validation)
        while run.log["step"] < len(run.batches):
            before = run.seen
            run.accumulate()
            save_if_due()
            run.update()
            done = run.log["step"] == len(run.batches)
            if validation is not None and (done or run.seen // every > before // every):
                run.validate(validation)
            progress(run.seen, len(windows) * windows.seq_len, "tokens")
        run.check_end()
        save_if_due()
    return student, run.curve()


def _saver(run: Run, key: str, path: Path | None, every_seconds: float) -> Callable[[], None]:
    """Resumes from the checkpoint if it exists; returns a function that saves the run in it."""
    if path is not None and path.exists():
        checkpoints.resume(path, key, run)
    saved_at = time.monotonic()

    def save_if_due() -> None:
        nonlocal saved_at
        if path is not None and time.monotonic() - saved_at >= every_seconds:
            checkpoints.save(path, key, run)
            saved_at = time.monotonic()

    return save_if_due


def _key(
    student: PreTrainedModel, teacher: PreTrainedModel | None, windows: Windows, recipe: Recipe
) -> str:
    """The key of a run, from recipe, text, start and teacher."""
    begun = checkpoints.content(student, teacher).hex()
    identity = json.dumps([asdict(recipe), windows.token_hash, begun], sort_keys=True)
    return hashlib.sha256(identity.encode()).hexdigest()


@contextmanager
def _training(student: PreTrainedModel) -> Iterator[None]:
    """After the block, the student is in eval mode and its requires_grad flags are restored."""
    flags = {p: p.requires_grad for p in student.parameters()}
    student.eval().zero_grad(set_to_none=True)
    try:
        yield
    finally:
        for p, flag in flags.items():
            p.requires_grad_(flag)
            p.grad = None
        student.eval()


def _adapted(student: PreTrainedModel, recipe: Recipe) -> AbstractContextManager[None]:
    if recipe.trained != "lora":
        return nullcontext()
    return adapters.low_rank(student, rank=recipe.lora_rank, seed=recipe.seed)


def _check(
    student: PreTrainedModel,
    teacher: PreTrainedModel | None,
    windows: Windows,
    recipe: Recipe,
    states: TeacherStates | None,
) -> None:
    if windows.seq_len != recipe.seq_len:
        raise ValueError(
            f"the windows have {windows.seq_len} tokens, the recipe asks for "
            f"seq_len={recipe.seq_len}"
        )
    if recipe.kl and teacher is None:
        raise ValueError(f"kl={recipe.kl:g} needs a teacher")
    if recipe.kl and teacher is not None:
        words, known = (len(anatomy(model).head.weight) for model in (student, teacher))
        if words != known:
            raise ValueError(
                f"the student's vocabulary has {words:,} tokens and the teacher's {known:,}: "
                "kl compares them token by token"
            )
    if states is not None and states.teacher is not teacher:
        raise ValueError("the states were made from another model than this teacher")
    shared = set(student.parameters()) & set(teacher.parameters() if teacher is not None else ())
    if shared and recipe.trained != "lora":
        raise ValueError(
            "the student shares weights with its teacher: only adapters (trained='lora') can be "
            f"trained, not {recipe.trained!r}"
        )
