"""The optimisers of a recovery by name, and its learning rate over time."""

from __future__ import annotations

import importlib.util
import math

import torch
from transformers import PreTrainedModel

from depthprune_core.decoders import Decoder
from depthprune_core.muon import Muon

OPTIMISERS = ("adamw", "adamw_8bit", "muon")


def check(name: str) -> None:
    """Raises ValueError for an optimiser that is not known, or whose package is not here."""
    if name not in OPTIMISERS:
        raise ValueError(f"optimiser={name!r} is not known: name one of {', '.join(OPTIMISERS)}")
    if name == "adamw_8bit" and importlib.util.find_spec("bitsandbytes") is None:
        raise ValueError("optimiser='adamw_8bit' needs the package bitsandbytes, which is not installed here: take 'adamw'")


def optimisers_of(
    student: PreTrainedModel, parts: Decoder, optimiser: str, *, lr: float, weight_decay: float
) -> list[torch.optim.Optimizer]:
    """For all of the student that can be trained; weight decay goes to the layers' matrices alone."""
    trainable = [p for p in student.parameters() if p.requires_grad]
    in_layers = {p for layer in parts.layers for p in layer.parameters()}
    matrices = [p for p in trainable if p.ndim == 2 and p in in_layers]
    others = [p for p in trainable if not (p.ndim == 2 and p in in_layers)]
    fused = student.device.type in ("cpu", "cuda")  # one pass over the weights a step
    if optimiser == "muon":
        both = []  # either can be empty: a tail that is cut leaves no matrix to train, adapters are nothing else
        if matrices:
            both.append(Muon(matrices, lr=lr, weight_decay=weight_decay))
        if others:
            both.append(torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.95), weight_decay=0.0, fused=fused))
        return both
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    if optimiser == "adamw_8bit":
        from bitsandbytes.optim import AdamW8bit

        return [AdamW8bit(groups, lr=lr, betas=(0.9, 0.95))]
    return [torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), fused=fused)]


def schedule(step: int, n_steps: int, warmup: float) -> float:
    """The share of the peak rate at a step: up over the fraction `warmup` of the steps, then a cosine to zero."""
    n_warmup = math.ceil(warmup * n_steps)
    if step < n_warmup:
        return (step + 1) / n_warmup
    return 0.5 * (1 + math.cos(math.pi * (step - n_warmup) / max(1, n_steps - n_warmup)))
