"""Student + teacher + windows -> recovered student + Curve. Without a teacher the same loop is plain training (CE)."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers import PreTrainedModel

from depthprune_core import adapters, checkpoints, losses, optimisers
from depthprune_core.decoders import checkpointed, decoder, hidden_states, recording
from depthprune_core.evaluation import score
from depthprune_core.progress import Progress, silent
from depthprune_core.records import Curve, Plan
from depthprune_core.teachers import TeacherStates, TeacherTop
from depthprune_core.teams import Team
from depthprune_core.text import Windows

if TYPE_CHECKING:
    from accelerate import Accelerator

LOSS_TERMS = ("kl", "ce", "hidden")
TRAINED_PARTS = ("all", "after_first_cut", "lora")
PRECISIONS = ("float32", "bfloat16", "float16")


class DivergedError(FloatingPointError):
    """A loss or a gradient was not finite, and the run stopped. `curve`: the run up to there."""

    def __init__(self, problem: str, curve: Curve) -> None:
        super().__init__(problem)
        self.curve = curve


def recover(
    student: PreTrainedModel,
    teacher: PreTrainedModel | None,
    windows: Windows,
    *,
    plan: Plan | None = None,
    loss: Mapping[str, float],
    lr: float,
    seed: int,
    temperature: float = 1.0,
    batch_size: int = 4,
    micro_batch_size: int | None = None,
    warmup: float = 0.1,
    weight_decay: float = 0.0,
    trained: str = "all",
    lora_rank: int = 8,
    optimiser: str = "adamw",
    precision: str = "float32",
    dropout: bool = False,
    checkpoint_activations: bool = False,
    teacher_cache: TeacherStates | TeacherTop | None = None,
    validation: Windows | None = None,
    validate_every_tokens: int | None = None,
    checkpoint: Path | None = None,
    checkpoint_every_seconds: float = 60,
    accelerator: Accelerator | None = None,
    progress: Progress = silent,
) -> tuple[PreTrainedModel, Curve]:
    """Train `student` in place, one pass over `windows` in their order; returns it in eval mode with its curve.

    loss: weights of `kl` (KL(teacher || student), T^2-scaled: Hinton et al. 2015, arXiv:1503.02531), `ce` (the text
    itself) and `hidden` (mean squared error between the input of each kept layer and its input in the teacher, divided
    by the teacher's mean square; needs `plan`). All are means over unmasked tokens of the whole batch, so accumulating
    `micro_batch_size` windows at a time gives the full batch's gradient. The rate warms up over the fraction `warmup`
    of the steps, then follows a cosine to zero; gradients are clipped to norm 1.

    trained: `all`, or `after_first_cut` (needs `plan`): what lies before the first dropped layer sees the same input as
    ever and is frozen, with the embeddings and a head tied to them; that prefix runs once where the teacher has the same; or
    `lora`: adapters of `lora_rank` on every linear map of the layers, added to the weights at the end. A student may share its weights
    with its teacher then (`pruning.share_equal`): the teacher stays as it is.
    checkpoint_activations: layers keep their input alone and compute their inside again in the backward pass: less memory,
    a third more time, the same result.
    teacher_cache: what other recoveries on these windows have had the teacher compute (no hidden term; `TeacherTop`, KL against its top
    tokens alone, at temperature 1 only).
    optimiser: `adamw`; `adamw_8bit`, its moments in 8 bits (Dettmers et al. 2022, arXiv:2110.02861; needs bitsandbytes); or `muon`
    for the layers' matrices with AdamW for the rest.

    `validation` is scored at the end; with `validate_every_tokens` also at the start and in between.

    With `checkpoint`, the run goes on from that file if it is there, bit for bit on a CPU; the file is the caller's to remove. It is
    written before the update of a step whose loss and gradient are finite (in float16, whose loss is: it passes over what it cannot
    hold), and at the end where all weights are, so it holds nothing that broke. The student is to be the one that the run began with:
    cut it anew after an interruption.

    accelerator: that of one of several processes, each of which calls with the same arguments (its models on its own device). They
    begin with the first one's weights, share the windows of each step and add up their gradients, so every process ends with the student
    of the one-process run (with dropout: with another draw). The first one alone writes checkpoints, which all of them must be able to read.

    Raises ValueError for bad settings or another run's checkpoint; DivergedError when a loss, the gradient or a weight is not finite.
    """
    micro_batch_size = micro_batch_size or batch_size
    _check_settings(student, teacher, plan, loss, trained=trained, optimiser=optimiser, precision=precision)
    if lora_rank < 1:
        raise ValueError(f"lora_rank={lora_rank} is not possible: an adapter has a rank of 1 or more")
    loss = {term: weight for term, weight in loss.items() if weight}
    if teacher_cache is not None:
        teacher_cache.check(teacher, loss, temperature)
    recipe = {
        "loss": dict(sorted(loss.items())),
        "temperature": temperature,
        "lr": lr,
        "warmup": warmup,
        "schedule": "cosine to zero",
        "weight_decay": weight_decay,
        "batch_tokens": batch_size * windows.seq_len,
        "seq_len": windows.seq_len,
        "tokens": len(windows) * windows.seq_len,
        "trained": trained,
        "optimiser": optimiser,
        "precision": precision,
        "dropout": dropout,
        "seed": seed,
    }
    if trained == "lora":
        recipe["lora_rank"] = lora_rank
    if teacher_cache is not None:
        recipe |= teacher_cache.recipe
    shared = set(student.parameters()) & set(teacher.parameters() if teacher is not None else ())
    if shared and trained != "lora":
        raise ValueError(
            f"the student shares weights with its teacher: only adapters (trained='lora') can be trained, not {trained!r}"
        )
    team = Team(accelerator)
    run = _Run(student, teacher, plan, trained, checkpoint_activations, teacher_cache, team)
    batches = list(windows.batches(batch_size))
    advice = f"lower the learning rate (lr={lr:g})"
    log = {
        "step": 0,
        "skipped": 0,
        "tokens": [],
        "losses": {term: [] for term in loss},
        "validation_tokens": [],
        "validation": [],
    }
    begun = b""
    if checkpoint is not None:
        begun = team.of_the_first(checkpoints.content(student, teacher))
    identity = json.dumps([recipe, windows.token_hash, list(plan.dropped) if plan else [], begun.hex()], sort_keys=True)
    key = hashlib.sha256(identity.encode()).hexdigest()

    def validate(tokens_seen: int) -> None:
        nll = score(student, validation).mean_nll_nats
        if not math.isfinite(nll):
            raise DivergedError(f"the validation loss is {nll} after {tokens_seen:,} tokens: {advice}", curve())
        log["validation_tokens"].append(tokens_seen)
        log["validation"].append(nll)

    def curve() -> Curve:
        return Curve(
            recipe=recipe,
            token_hash=windows.token_hash,
            tokens=tuple(log["tokens"]),
            losses={term: tuple(values) for term, values in log["losses"].items()},
            validation_tokens=tuple(log["validation_tokens"]),
            validation_nll_nats=tuple(log["validation"]),
        )

    cuda = [student.device] if student.device.type == "cuda" else []
    adapted = adapters.low_rank(student, rank=lora_rank, seed=seed, keep=shared) if trained == "lora" else nullcontext()
    with _training(student), torch.random.fork_rng(devices=cuda), adapted:
        team.align(p for p in student.parameters() if p not in shared)
        run.freeze(windows.inputs[:1])
        opts = optimisers.optimisers_of(student, run.parts, optimiser, lr=lr, weight_decay=weight_decay)
        peak_rates = [[group["lr"] for group in opt.param_groups] for opt in opts]
        scaler = torch.amp.GradScaler(student.device.type, enabled=precision == "float16")
        if checkpoint is not None and team.all_or_none(Path(checkpoint).exists(), f"checkpoint {checkpoint}"):
            log = checkpoints.resume(Path(checkpoint), key, student, opts, scaler)
            team.wait()  # until all have read it
        if validation is not None and validate_every_tokens and not log["validation_tokens"]:
            validate(0)
        saved_at = time.monotonic()

        def keep() -> None:
            nonlocal saved_at
            if checkpoint is not None and team.rank == 0 and time.monotonic() - saved_at >= checkpoint_every_seconds:
                checkpoints.save(Path(checkpoint), key, student, opts, scaler, log)
                saved_at = time.monotonic()

        while log["step"] < len(batches):
            step = log["step"]
            # by seed, step and process alone: a resumed run draws the same dropout
            torch.manual_seed(hash((seed, step, team.rank) if team.rank else (seed, step)) % 2**63)
            student.train(dropout)
            terms = run.accumulate(batches[step], loss, temperature, micro_batch_size, precision, scaler)
            for opt, rates in zip(opts, peak_rates, strict=True):
                for group, rate in zip(opt.param_groups, rates, strict=True):
                    group["lr"] = rate * optimisers.schedule(step, len(batches), warmup)
                scaler.unscale_(opt)
            norm = float(nn.utils.clip_grad_norm_([p for p in student.parameters() if p.grad is not None], 1.0))
            if problem := _not_finite(terms, 0.0 if scaler.is_enabled() else norm):
                raise DivergedError(f"{problem} at step {step}: {advice}", curve())
            keep()
            fits = math.isfinite(norm)  # else float16 could not hold the gradient: none of the optimisers steps
            for opt in opts:
                if fits:
                    scaler.step(opt)
                opt.zero_grad(set_to_none=True)
            scaler.update()
            log["skipped"] += not fits
            log["step"] = step + 1
            seen = min((step + 1) * batch_size, len(windows)) * windows.seq_len
            log["tokens"].append(seen)
            for term, value in terms.items():
                log["losses"][term].append(value)
            before = seen - batches[step].inputs.numel()
            due = validate_every_tokens and seen // validate_every_tokens > before // validate_every_tokens
            if validation is not None and (due or step + 1 == len(batches)):
                validate(seen)
            progress(seen, len(windows) * windows.seq_len, "tokens")
        if log["skipped"] == len(batches):
            raise DivergedError(f"no step of {len(batches)} had a gradient that {precision} can hold: {advice}", curve())
        if not all(bool(p.isfinite().all()) for p in student.parameters() if p.requires_grad):
            raise DivergedError(f"a weight is not finite after the last step: {advice}", curve())
        keep()
    return student, curve()


@contextmanager
def _training(student: PreTrainedModel) -> Iterator[None]:
    """However the block ends, the student comes out in eval mode, without gradients and as trainable as it went in."""
    flags = {p: p.requires_grad for p in student.parameters()}
    student.eval().zero_grad(set_to_none=True)
    try:
        yield
    finally:
        for p, flag in flags.items():
            p.requires_grad_(flag)
            p.grad = None
        student.eval()


class _Run:
    """What one recovery keeps at hand: both models' parts, and where the frozen prefix ends."""

    def __init__(
        self,
        student: PreTrainedModel,
        teacher: PreTrainedModel | None,
        plan: Plan | None,
        trained: str,
        checkpoint_activations: bool = False,
        teacher_cache: TeacherStates | TeacherTop | None = None,
        team: Team | None = None,
    ) -> None:
        self.student, self.teacher, self.plan, self.teacher_cache = student, teacher, plan, teacher_cache
        self.team = team or Team(None)
        self.checkpoint_activations = checkpoint_activations
        self.parts = decoder(student)
        self.teacher_parts = decoder(teacher) if teacher is not None else None
        self.first_trained = min(plan.dropped) if trained == "after_first_cut" else 0
        self.shares_prefix = False
        self.freezes = trained == "after_first_cut"

    def freeze(self, ids: torch.Tensor) -> None:
        """Freezes all that the first trained layer's input is made of, as a backward pass tells; a tied head goes with it."""
        if not self.freezes:
            return
        flags = {p: p.requires_grad for p in self.student.parameters()}
        named = dict(self.student.requires_grad_(True).named_parameters())
        with recording(self.parts.layers) as inputs:
            hidden_states(self.student, ids.to(self.student.device))
        gradients = torch.autograd.grad(inputs[self.first_trained].sum(), list(named.values()), allow_unused=True)
        prefix = {name: p for (name, p), gradient in zip(named.items(), gradients, strict=True) if gradient is not None}
        for p, flag in flags.items():
            p.requires_grad_(flag and p not in set(prefix.values()))
        if self.teacher is not None and self.first_trained > 0 and self.teacher_cache is None:
            theirs = dict(self.teacher.named_parameters())
            pairs = [(p, theirs.get(name)) for name, p in prefix.items()]
            self.shares_prefix = all(q is not None and torch.equal(p.to(q.dtype), q) for p, q in pairs)

    def accumulate(
        self,
        batch: Windows,
        loss: Mapping[str, float],
        temperature: float,
        micro_batch_size: int,
        precision: str,
        scaler: torch.amp.GradScaler,
    ) -> dict[str, float]:
        """Gradients of the batch's mean loss, and each term's mean (nats per token)."""
        totals = dict.fromkeys(loss, 0.0)
        loss_scale = float(scaler.scale(torch.ones((), device=self.student.device)))  # asking alone would not start the scaler
        for part in self.team.share(batch).batches(micro_batch_size):
            for term, value in self._backward(part, loss, temperature, precision, batch.n_tokens, loss_scale).items():
                totals[term] += value
        totals = self.team.add_up([p for p in self.student.parameters() if p.requires_grad], totals)
        return {term: value / batch.n_tokens for term, value in totals.items()}

    def _backward(
        self, part: Windows, loss: Mapping[str, float], temperature: float, precision: str, n_tokens: int, loss_scale: float
    ) -> dict[str, float]:
        device = self.student.device
        ids, targets, mask = part.inputs.to(device), part.targets.to(device).flatten(), part.mask.to(device).flatten()
        half = {"dtype": getattr(torch, precision), "enabled": precision != "float32"}
        # A cast is used once: no need to keep both models' copies.
        with torch.autocast(device.type, cache_enabled=False, **half):
            teacher_inputs, teacher = {}, None
            if self.teacher_cache is not None:
                teacher = self.teacher_cache.of(ids)
            elif self.teacher is not None and (loss.get("kl") or loss.get("hidden") or self.shares_prefix):
                with torch.no_grad(), recording(self.teacher_parts.layers) as teacher_inputs:
                    teacher = (self.teacher_parts, hidden_states(self.teacher, ids).flatten(0, 1))
            sparing = checkpointed(self.parts.layers) if self.checkpoint_activations else nullcontext()
            with sparing, recording(self.parts.layers) as inputs:
                if self.shares_prefix:
                    at = self.first_trained
                    hidden = hidden_states(self.student, ids, resume_after=at - 1, hidden=teacher_inputs[at])
                else:
                    hidden = hidden_states(self.student, ids)
            scale = loss_scale / n_tokens
            values, gradient = losses.backward_in_chunks(
                self.parts,
                hidden.flatten(0, 1),
                targets,
                mask,
                scale=scale,
                ce=loss.get("ce", 0.0),
                kl=loss.get("kl", 0.0),
                temperature=temperature,
                teacher=teacher,
            )
            outputs, gradients = [hidden], [gradient.view_as(hidden)]
            if loss.get("hidden"):
                term = self._hidden_loss(inputs, teacher_inputs, mask)
                values["hidden"] = float(term.detach())
                if term.requires_grad:  # not where only the tail is cut and all before it frozen
                    outputs.append(scale * loss["hidden"] * term)
                    gradients.append(torch.ones_like(outputs[-1]))
        torch.autograd.backward(outputs, gradients)
        return {term: values[term] for term in loss}

    def _hidden_loss(
        self, inputs: dict[int, torch.Tensor], teacher_inputs: dict[int, torch.Tensor], mask: torch.Tensor
    ) -> torch.Tensor:
        """Summed over tokens, averaged over the layer inputs that the cut has changed."""
        kept = (*self.plan.kept, self.plan.n_layers)
        first_cut = min(self.plan.dropped, default=0)  # a student that is narrower in every layer drops none
        changed = [new for new, old in enumerate(kept) if old > first_cut]
        total = inputs[changed[0]].new_zeros(())
        for new in changed:
            target = teacher_inputs[kept[new]].flatten(0, 1)[mask].float()
            error = (inputs[new].flatten(0, 1)[mask].float() - target).square().mean(-1)  # (n,)
            total = total + (error / target.square().mean(-1).clamp_min(1e-12)).sum()
        return total / len(changed)


def _check_settings(
    student: PreTrainedModel,
    teacher: PreTrainedModel | None,
    plan: Plan | None,
    loss: Mapping[str, float],
    optimiser: str,
    **choices: str,
) -> None:
    if unknown := set(loss) - set(LOSS_TERMS):
        raise ValueError(f"loss has unknown terms {sorted(unknown)}: known are {', '.join(LOSS_TERMS)}")
    if not any(weight > 0 for weight in loss.values()) or any(weight < 0 for weight in loss.values()):
        raise ValueError(f"loss weights {dict(loss)}: at least one must be above 0 and none below")
    optimisers.check(optimiser)
    allowed = {"trained": TRAINED_PARTS, "precision": PRECISIONS}
    for name, value in choices.items():
        if value not in allowed[name]:
            raise ValueError(f"{name}={value!r} is not known: name one of {', '.join(allowed[name])}")
    if teacher is None and (loss.get("kl") or loss.get("hidden")):
        raise ValueError("the kl and hidden terms need a teacher")
    if plan is None and (loss.get("hidden") or choices["trained"] == "after_first_cut"):
        raise ValueError("the hidden term and trained='after_first_cut' need the plan")
    depths = [len(decoder(model).layers) for model in (student, teacher) if model is not None]
    alike = teacher is not None and depths[0] == depths[1] and student.num_parameters() == teacher.num_parameters()
    if alike and not loss.get("ce"):
        raise ValueError(
            "the student has its teacher's shape: without ce its gradient is zero, and AdamW would step on rounding noise"
        )
    if plan is not None and not plan.dropped and choices["trained"] == "after_first_cut":
        raise ValueError("the plan drops nothing, so there is no first cut for trained='after_first_cut'")
    if loss.get("hidden") and depths != [len(plan.kept), plan.n_layers]:
        raise ValueError(f"the plan keeps {len(plan.kept)} of {plan.n_layers} layers: it does not lead from teacher to student")


def _not_finite(terms: Mapping[str, float], norm: float) -> str:
    """What is not finite, in words; empty where all is well."""
    for term, value in terms.items():
        if not math.isfinite(value):
            return f"the {term} loss is {value}"
    return "" if math.isfinite(norm) else "the gradient is not finite"
