"""The state of a running recovery, and its steps."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from depthprune_core import losses
from depthprune_core.anatomy import anatomy
from depthprune_core.decoder import Decoder
from depthprune_core.evaluation import score
from depthprune_core.records import Curve, Recipe
from depthprune_core.running import checkpointed, hidden_states
from depthprune_core.teachers import TeacherStates
from depthprune_core.text import Windows


class DivergedError(FloatingPointError):
    """A loss, a gradient or a weight was not finite. `curve`: the run up to this point."""

    def __init__(self, problem: str, curve: Curve) -> None:
        super().__init__(problem)
        self.curve = curve


class Run:
    """A running recovery: its models, its optimiser, its log."""

    def __init__(
        self,
        student: PreTrainedModel,
        teacher: PreTrainedModel | None,
        windows: Windows,
        recipe: Recipe,
        *,
        states: TeacherStates | None = None,
        micro_batch_size: int,
        checkpoint_activations: bool = False,
    ) -> None:
        self.student, self.teacher, self.windows, self.recipe = student, teacher, windows, recipe
        self.states, self.micro_batch_size = states, micro_batch_size
        self.checkpoint_activations = checkpoint_activations
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
        """Adds the gradient of these windows; returns their losses, summed over tokens."""
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
                hidden = hidden_states(parts, ids)
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
        parts = anatomy(self.teacher)
        return parts, hidden_states(parts, ids).flatten(0, 1)

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


def schedule(step: int, n_steps: int, warmup: float) -> float:
    """The share of the peak rate at a step: linear warm-up, then a cosine to zero."""
    n_warmup = math.ceil(warmup * n_steps)
    if step < n_warmup:
        return (step + 1) / n_warmup
    return 0.5 * (1 + math.cos(math.pi * (step - n_warmup) / max(1, n_steps - n_warmup)))
