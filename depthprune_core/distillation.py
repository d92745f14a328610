"""Student + teacher + windows -> recovered student + Curve. Without a teacher the same loop is plain training (CE)."""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from depthprune_core import adapters, losses
from depthprune_core.evaluation import score
from depthprune_core.models import Decoder, checkpointed, decoder, hidden_states, recording
from depthprune_core.progress import Progress, silent
from depthprune_core.records import Curve, Plan
from depthprune_core.teachers import TeacherStates, TeacherTop
from depthprune_core.text import Windows

LOSS_TERMS = ("kl", "ce", "hidden")
TRAINED_PARTS = ("all", "after_first_cut", "lora")
OPTIMISERS = ("adamw", "muon")
PRECISIONS = ("float32", "bfloat16", "float16")


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
    `lora`: adapters of `lora_rank` on every linear map of the layers, added to the weights at the end.
    checkpoint_activations: layers keep their input alone and compute their inside again in the backward pass: less memory,
    a third more time, the same result.
    teacher_cache: what other recoveries on these windows have had the teacher compute (no hidden term; `TeacherTop`, KL against its top
    tokens alone, at temperature 1 only).
    optimiser: `adamw`, or `muon` for the layers' matrices with AdamW for the rest.

    `validation` is scored at the end; with `validate_every_tokens` also at the start and in between.

    With `checkpoint`, the run goes on from that file if it is there, bit for bit on a CPU; the file is the caller's to remove.

    Raises ValueError for bad settings or another run's checkpoint; FloatingPointError when loss or gradient is not finite.
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
    run = _Run(student, teacher, plan, trained, checkpoint_activations, teacher_cache)
    batches = list(windows.batches(batch_size))
    log = {"step": 0, "tokens": [], "losses": {term: [] for term in loss}, "validation_tokens": [], "validation": []}
    identity = json.dumps([recipe, windows.token_hash, list(plan.dropped) if plan else []], sort_keys=True)
    key = hashlib.sha256(identity.encode()).hexdigest()

    def validate(tokens_seen: int) -> None:
        log["validation_tokens"].append(tokens_seen)
        log["validation"].append(score(student, validation).mean_nll_nats)

    cuda = [student.device] if student.device.type == "cuda" else []
    adapted = adapters.low_rank(student, rank=lora_rank, seed=seed) if trained == "lora" else nullcontext()
    with _training(student), torch.random.fork_rng(devices=cuda), adapted:
        run.freeze(windows.inputs[:1])
        optimisers = _optimisers(student, run.parts, optimiser, lr=lr, weight_decay=weight_decay)
        peak_rates = [[group["lr"] for group in opt.param_groups] for opt in optimisers]
        scaler = torch.amp.GradScaler(student.device.type, enabled=precision == "float16")
        if checkpoint is not None and Path(checkpoint).exists():
            log = _resume(Path(checkpoint), key, student, optimisers, scaler)
        if validation is not None and validate_every_tokens and not log["validation_tokens"]:
            validate(0)
        saved_at = time.monotonic()
        while log["step"] < len(batches):
            step = log["step"]
            torch.manual_seed(hash((seed, step)) % 2**63)  # by seed and step alone: a resumed run draws the same dropout
            student.train(dropout)
            terms = run.accumulate(batches[step], loss, temperature, micro_batch_size, precision, scaler)
            _check_finite(terms, step)
            for opt, rates in zip(optimisers, peak_rates, strict=True):
                for group, rate in zip(opt.param_groups, rates, strict=True):
                    group["lr"] = rate * _schedule(step, len(batches), warmup)
                scaler.unscale_(opt)
            norm = nn.utils.clip_grad_norm_([p for p in student.parameters() if p.grad is not None], 1.0)
            if not scaler.is_enabled() and not torch.isfinite(norm):
                raise FloatingPointError(f"the gradient is not finite at step {step}: lower the learning rate (lr={lr})")
            for opt in optimisers:
                scaler.step(opt)
                opt.zero_grad(set_to_none=True)
            scaler.update()
            log["step"] = step + 1
            seen = min((step + 1) * batch_size, len(windows)) * windows.seq_len
            log["tokens"].append(seen)
            for term, value in terms.items():
                log["losses"][term].append(value)
            before = seen - batches[step].inputs.numel()
            due = validate_every_tokens and seen // validate_every_tokens > before // validate_every_tokens
            if validation is not None and (due or step + 1 == len(batches)):
                validate(seen)
            if checkpoint is not None and time.monotonic() - saved_at >= checkpoint_every_seconds:
                _save(Path(checkpoint), key, student, optimisers, scaler, log)
                saved_at = time.monotonic()
            progress(seen, len(windows) * windows.seq_len, "tokens")
    curve = Curve(
        recipe=recipe,
        token_hash=windows.token_hash,
        tokens=tuple(log["tokens"]),
        losses={term: tuple(values) for term, values in log["losses"].items()},
        validation_tokens=tuple(log["validation_tokens"]),
        validation_nll_nats=tuple(log["validation"]),
    )
    return student, curve


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
    ) -> None:
        self.student, self.teacher, self.plan, self.teacher_cache = student, teacher, plan, teacher_cache
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
        for part in batch.batches(micro_batch_size):
            for term, value in self._backward(part, loss, temperature, precision, batch.n_tokens, loss_scale).items():
                totals[term] += value
        return {term: value / batch.n_tokens for term, value in totals.items()}

    def _backward(
        self, part: Windows, loss: Mapping[str, float], temperature: float, precision: str, n_tokens: int, loss_scale: float
    ) -> dict[str, float]:
        device = self.student.device
        ids, targets, mask = part.inputs.to(device), part.targets.to(device).flatten(), part.mask.to(device).flatten()
        with torch.autocast(device.type, dtype=getattr(torch, precision), enabled=precision != "float32"):
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
    student: PreTrainedModel, teacher: PreTrainedModel | None, plan: Plan | None, loss: Mapping[str, float], **choices: str
) -> None:
    if unknown := set(loss) - set(LOSS_TERMS):
        raise ValueError(f"loss has unknown terms {sorted(unknown)}: known are {', '.join(LOSS_TERMS)}")
    if not any(weight > 0 for weight in loss.values()) or any(weight < 0 for weight in loss.values()):
        raise ValueError(f"loss weights {dict(loss)}: at least one must be above 0 and none below")
    allowed = {"trained": TRAINED_PARTS, "optimiser": OPTIMISERS, "precision": PRECISIONS}
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


def _optimisers(
    student: PreTrainedModel, parts: Decoder, optimiser: str, *, lr: float, weight_decay: float
) -> list[torch.optim.Optimizer]:
    trainable = [p for p in student.parameters() if p.requires_grad]
    in_layers = {p for layer in parts.layers for p in layer.parameters()}
    matrices = [p for p in trainable if p.ndim == 2 and p in in_layers]
    others = [p for p in trainable if not (p.ndim == 2 and p in in_layers)]
    fused = student.device.type in ("cpu", "cuda")  # one pass over the weights a step
    if optimiser == "muon":
        both = []  # either can be empty: a tail that is cut leaves no matrix to train, adapters are nothing else
        if matrices:
            muon = {"momentum": 0.95, "weight_decay": weight_decay, "adjust_lr_fn": "match_rms_adamw"}
            both.append(torch.optim.Muon(matrices, lr=lr, **muon))
        if others:
            both.append(torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.95), weight_decay=0.0, fused=fused))
        return both
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [torch.optim.AdamW([group for group in groups if group["params"]], lr=lr, betas=(0.9, 0.95), fused=fused)]


def _schedule(step: int, n_steps: int, warmup: float) -> float:
    n_warmup = math.ceil(warmup * n_steps)
    if step < n_warmup:
        return (step + 1) / n_warmup
    return 0.5 * (1 + math.cos(math.pi * (step - n_warmup) / max(1, n_steps - n_warmup)))


def _check_finite(terms: Mapping[str, float], step: int) -> None:
    for term, value in terms.items():
        if not math.isfinite(value):
            raise FloatingPointError(f"the {term} loss is {value} at step {step}: the run is stopped")


# ---------------------------------------------------------------- checkpoints


def _save(
    path: Path,
    key: str,
    student: PreTrainedModel,
    optimisers: list[torch.optim.Optimizer],
    scaler: torch.amp.GradScaler,
    log: dict[str, Any],
) -> None:
    """A zip file whose members carry checksums, under a temporary name first."""
    state = {
        "key": key,
        "student": {name: p.detach() for name, p in student.named_parameters() if p.requires_grad},
        "optimisers": [opt.state_dict() for opt in optimisers],
        "scaler": scaler.state_dict(),
        "log": log,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    torch.save(state, temporary)
    os.replace(temporary, path)


def _resume(
    path: Path, key: str, student: PreTrainedModel, optimisers: list[torch.optim.Optimizer], scaler: torch.amp.GradScaler
) -> dict[str, Any]:
    if not _is_whole(path):
        raise ValueError(f"checkpoint {path} is damaged: remove it to begin this recovery again")
    state = torch.load(path, map_location=student.device, weights_only=True)
    if state["key"] != key:
        raise ValueError(f"checkpoint {path} belongs to another run (recipe, text or plan differ): remove it to begin again")
    with torch.no_grad():
        for name, p in student.named_parameters():
            if name in state["student"]:
                p.copy_(state["student"][name])
    for opt, saved in zip(optimisers, state["optimisers"], strict=True):
        opt.load_state_dict(saved)
    if scaler.is_enabled():
        scaler.load_state_dict(state["scaler"])
    return state["log"]


def _is_whole(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except zipfile.BadZipFile:
        return False
