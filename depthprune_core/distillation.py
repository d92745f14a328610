"""Student + teacher + windows + Recipe -> healed student + Curve."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path

from transformers import PreTrainedModel

from depthprune_core import adapters, checkpoints
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
    plus recipe.ce x the cross-entropy of the text: means over the unmasked tokens of a whole step,
    so that `micro_batch_size` windows at a time give the full step's gradient. AdamW; the rate
    warms up, then follows a cosine to zero; gradients are clipped to norm 1; no dropout. With
    ce = 1 and kl = 0 it is plain training, and no teacher runs.

    recipe.trained: all weights, or lora: adapters on every linear map of the layers, added to the
    weights at the end. Then a student may share weights with its teacher (`pruning.share_equal`).
    checkpoint_activations: layers keep their input alone and compute their inside again in the
    backward pass: less memory, a third more time, the same result.
    states: the teacher's, kept for other recoveries on these windows.
    validation: scored at the end; with `validate_every_tokens` at the start and between too.
    checkpoint: the run goes on from that file if it is there, bit for bit on a CPU; the file is the
    caller's to remove. It never holds a step whose loss or gradient was not finite. The student is
    to be the one that the run began with: cut it anew after an interruption.

    Raises ValueError for a setting that cannot work or another run's checkpoint; DivergedError.
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
        saved_at = time.monotonic()

        def save_if_due() -> None:
            nonlocal saved_at
            if checkpoint and time.monotonic() - saved_at >= checkpoint_every_seconds:
                checkpoints.save(checkpoint, key, run)
                saved_at = time.monotonic()

        if checkpoint is not None and checkpoint.exists():
            checkpoints.resume(checkpoint, key, run)
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


def _key(
    student: PreTrainedModel, teacher: PreTrainedModel | None, windows: Windows, recipe: Recipe
) -> str:
    """Names a run: recipe, text, start and teacher."""
    begun = checkpoints.content(student, teacher).hex()
    identity = json.dumps([asdict(recipe), windows.token_hash, begun], sort_keys=True)
    return hashlib.sha256(identity.encode()).hexdigest()


@contextmanager
def _training(student: PreTrainedModel) -> Iterator[None]:
    """However the block ends, the student comes out in eval mode, as trainable as it went in."""
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
    if states is not None and states.teacher is not teacher:
        raise ValueError("the states were made from another model than this teacher")
    shared = set(student.parameters()) & set(teacher.parameters() if teacher is not None else ())
    if shared and recipe.trained != "lora":
        raise ValueError(
            "the student shares weights with its teacher: only adapters (trained='lora') can be "
            f"trained, not {recipe.trained!r}"
        )
