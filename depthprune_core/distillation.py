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
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from depthprune_core import adapters, checkpoints, losses
from depthprune_core.decoder import Decoder, anatomy
from depthprune_core.evaluation import score
from depthprune_core.progress import Progress, silent
from depthprune_core.records import Curve, Recipe
from depthprune_core.running import checkpointed, hidden_states
from depthprune_core.teachers import TeacherStates
from depthprune_core.text import Windows


class DivergedError(FloatingPointError):
    """A loss, a gradient or a weight was not finite. `curve`: the run up to there."""

    def __init__(self, problem: str, curve: Curve) -> None:
        super().__init__(problem)
        self.curve = curve


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

    `validation` is scored at the end; with `validate_every_tokens` at the start and between too.

    With `checkpoint` the run goes on from that file if it is there, bit for bit on a CPU; the file
    is the caller's to remove. It never holds a step whose loss or gradient was not finite. The
    student is to be the one that the run began with: cut it anew after an interruption.

    Raises ValueError for a setting that cannot work or another run's checkpoint; DivergedError.
    """
    _check(student, teacher, windows, recipe, states)
    shared = set(student.parameters()) & set(teacher.parameters() if teacher is not None else ())
    if shared and recipe.trained != "lora":
        raise ValueError(
            "the student shares weights with its teacher: only adapters (trained='lora') can be "
            f"trained, not {recipe.trained!r}"
        )
    key = _key(student, teacher, windows, recipe) if checkpoint is not None else ""
    with _training(student), _adapted(student, recipe, keep=shared):
        run = _Run(student, teacher, windows, recipe)
        run.states, run.micro_batch_size = states, micro_batch_size or recipe.batch_size
        run.checkpoint_activations = checkpoint_activations
        keeper = _Keeper(run, key, checkpoint, checkpoint_every_seconds)
        keeper.resume()
        if validation is not None and validate_every_tokens and not run.log["validation_tokens"]:
            run.validate(validation)
        while run.log["step"] < len(run.batches):
            before = run.seen
            run.accumulate()
            keeper.save_if_due()
            run.update()
            done = run.log["step"] == len(run.batches)
            every = validate_every_tokens or math.inf
            if validation is not None and (done or run.seen // every > before // every):
                run.validate(validation)
            progress(run.seen, len(windows) * windows.seq_len, "tokens")
        run.check_end()
        keeper.save_if_due()
    return student, run.curve()


class _Run:
    """One recovery under way: its models, its optimiser, and what has happened so far."""

    states: TeacherStates | None = None
    micro_batch_size = 1
    checkpoint_activations = False

    def __init__(
        self,
        student: PreTrainedModel,
        teacher: PreTrainedModel | None,
        windows: Windows,
        recipe: Recipe,
    ) -> None:
        self.student, self.teacher, self.windows, self.recipe = student, teacher, windows, recipe
        self.batches = list(windows.batches(recipe.batch_size))
        trained = [p for p in student.parameters() if p.requires_grad]
        fused = student.device.type in ("cpu", "cuda")  # one pass over the weights a step
        self.optimiser = torch.optim.AdamW(
            trained, lr=recipe.lr, betas=(0.9, 0.95), weight_decay=0.0, fused=fused
        )
        self.scaler = torch.amp.GradScaler(
            student.device.type, enabled=recipe.precision == "float16"
        )
        terms = {name: [] for name in ("kl", "ce") if getattr(recipe, name)}
        self.log: dict[str, Any] = {"step": 0, "skipped": 0, "tokens": [], "losses": terms}
        self.log |= {"validation_tokens": [], "validation": []}

    @property
    def seen(self) -> int:
        """Tokens so far."""
        n = min(self.log["step"] * self.recipe.batch_size, len(self.windows))
        return n * self.windows.seq_len

    def accumulate(self) -> None:
        """The step's gradient, clipped, and its losses. Raises DivergedError."""
        step = self.log["step"]
        batch, recipe = self.batches[step], self.recipe
        totals = dict.fromkeys(self.log["losses"], 0.0)
        for part in batch.batches(self.micro_batch_size):
            for term, value in self._backward(part, batch.n_tokens).items():
                totals[term] += value
        self.terms = {term: value / batch.n_tokens for term, value in totals.items()}
        for group in self.optimiser.param_groups:
            group["lr"] = recipe.lr * schedule(step, len(self.batches), recipe.warmup)
        self.scaler.unscale_(self.optimiser)
        gradients = [p for p in self.student.parameters() if p.grad is not None]
        norm = float(nn.utils.clip_grad_norm_(gradients, 1.0))
        self.fits = math.isfinite(norm)  # else float16 could not hold the gradient
        for term, value in self.terms.items():
            if not math.isfinite(value):
                self.fail(f"the {term} loss is {value} at step {step}")
        if not self.fits and not self.scaler.is_enabled():
            self.fail(f"the gradient is not finite at step {step}")

    def _backward(self, part: Windows, n_tokens: int) -> dict[str, float]:
        """Adds the gradient of some windows; returns their losses, summed over tokens."""
        device, recipe = self.student.device, self.recipe
        parts, ids = anatomy(self.student), part.inputs.to(device)
        half = recipe.precision != "float32"
        # asking the scaler for its scale would not start it
        loss_scale = float(self.scaler.scale(torch.ones((), device=device)))
        sparing = checkpointed(parts.layers) if self.checkpoint_activations else nullcontext()
        # A cast is used once: no need to keep both models' copies.
        with torch.autocast(
            device.type, getattr(torch, recipe.precision), enabled=half, cache_enabled=False
        ):
            teacher = self._teacher(ids) if recipe.kl else None
            with sparing:
                hidden = hidden_states(self.student, ids)
            values, gradient = losses.backward_in_chunks(
                parts,
                hidden.flatten(0, 1),
                part.targets.to(device).flatten(),
                part.mask.to(device).flatten(),
                scale=loss_scale / n_tokens,
                ce=recipe.ce,
                kl=recipe.kl,
                temperature=recipe.temperature,
                teacher=teacher,
            )
        hidden.backward(gradient.view_as(hidden))
        return {term: values[term] for term in self.log["losses"]}

    @torch.no_grad()
    def _teacher(self, ids: torch.Tensor) -> tuple[Decoder, torch.Tensor]:
        if self.states is not None:
            return self.states.of(ids)
        return anatomy(self.teacher), hidden_states(self.teacher, ids).flatten(0, 1)

    def update(self) -> None:
        """Steps the optimiser and writes the log."""
        if self.fits:
            self.scaler.step(self.optimiser)
        self.optimiser.zero_grad(set_to_none=True)
        self.scaler.update()
        self.log["skipped"] += not self.fits
        self.log["step"] += 1
        self.log["tokens"].append(self.seen)
        for term, value in self.terms.items():
            self.log["losses"][term].append(value)

    def validate(self, validation: Windows) -> None:
        nll = score(self.student, validation).mean_nll_nats
        if not math.isfinite(nll):
            self.fail(f"the validation loss is {nll} after {self.seen:,} tokens")
        self.log["validation_tokens"].append(self.seen)
        self.log["validation"].append(nll)

    def check_end(self) -> None:
        if self.log["skipped"] == len(self.batches):
            precision = self.recipe.precision
            self.fail(f"no step of {len(self.batches)} had a gradient that {precision} can hold")
        trained = [p for p in self.student.parameters() if p.requires_grad]
        if not all(bool(p.isfinite().all()) for p in trained):
            self.fail("a weight is not finite after the last step")

    def fail(self, problem: str) -> None:
        advice = f"lower the learning rate (lr={self.recipe.lr:g})"
        raise DivergedError(f"{problem}: {advice}", self.curve(diverged=problem))

    def curve(self, diverged: str = "") -> Curve:
        log = self.log
        return Curve(
            recipe=self.recipe,
            token_hash=self.windows.token_hash,
            tokens=tuple(log["tokens"]),
            losses={term: tuple(values) for term, values in log["losses"].items()},
            validation_tokens=tuple(log["validation_tokens"]),
            validation_nll_nats=tuple(log["validation"]),
            diverged=diverged,
        )


class _Keeper:
    """Keeps a run in its checkpoint, now and then."""

    def __init__(self, run: _Run, key: str, path: Path | None, every_seconds: float) -> None:
        self.run, self.key, self.every_seconds = run, key, every_seconds
        self.path = None if path is None else Path(path)
        self.saved_at = time.monotonic()

    def resume(self) -> None:
        if self.path is not None and self.path.exists():
            run = self.run
            run.log = checkpoints.resume(
                self.path, self.key, run.student, run.optimiser, run.scaler
            )

    def save_if_due(self) -> None:
        if self.path is None or time.monotonic() - self.saved_at < self.every_seconds:
            return
        run = self.run
        checkpoints.save(self.path, self.key, run.student, run.optimiser, run.scaler, run.log)
        self.saved_at = time.monotonic()


def schedule(step: int, n_steps: int, warmup: float) -> float:
    """The share of the peak rate at a step: up over the share `warmup`, then a cosine to zero."""
    n_warmup = math.ceil(warmup * n_steps)
    if step < n_warmup:
        return (step + 1) / n_warmup
    return 0.5 * (1 + math.cos(math.pi * (step - n_warmup) / max(1, n_steps - n_warmup)))


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


def _adapted(
    student: PreTrainedModel, recipe: Recipe, keep: set[nn.Parameter]
) -> AbstractContextManager[None]:
    if recipe.trained != "lora":
        return nullcontext()
    return adapters.low_rank(student, rank=recipe.lora_rank, seed=recipe.seed, keep=keep)


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
    if recipe.ce or teacher is None:
        return
    depths = [len(anatomy(model).layers) for model in (student, teacher)]
    if depths[0] == depths[1] and student.num_parameters() == teacher.num_parameters():
        raise ValueError(
            "the student has its teacher's shape: without ce its gradient is zero, and AdamW would "
            "step on rounding noise"
        )
