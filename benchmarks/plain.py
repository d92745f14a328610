"""The plain side: what a careful user writes without this package.

Full forwards, full float32 logits, one set of layers at a time. Nothing is slowed down on purpose:
no gradients where none are wanted, no KV cache, batches as large as ours.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from depthprune_core.anatomy import anatomy
from depthprune_core.running import passing, replaced
from depthprune_core.text import Windows


@torch.no_grad()
def nll_sums(
    model: PreTrainedModel, windows: Windows, sets: Iterable[tuple[int, ...]]
) -> list[float]:
    """NLL (nats, summed over tokens) with each set of layers skipped, one full forward a set."""
    parts, sums = anatomy(model), []
    ids, targets = windows.inputs.to(model.device), windows.targets.to(model.device)
    for dropped in sets:
        with replaced(parts.layers, {layer: passing(parts) for layer in dropped}):
            logits = model(input_ids=ids, use_cache=False).logits.float()  # (batch, seq, vocab)
        loss = functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
        sums.append(float(loss[windows.mask.flatten().to(loss.device)].double().sum()))
    return sums


def recover(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    windows: Windows,
    *,
    lr: float,
    batch_size: int,
    checkpoint_activations: bool = False,
) -> list[float]:
    """Logit KL as it is usually written: full logits, autograd through them, AdamW.

    Returns the loss of each step.
    """
    layers = anatomy(student).layers if checkpoint_activations else ()
    forwards = {
        i: partial(checkpoint, layer.forward, use_reentrant=False) for i, layer in enumerate(layers)
    }
    student.eval()  # no dropout, as ours
    optimiser = torch.optim.AdamW(student.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=0.0)
    losses = []
    with replaced(layers, forwards):
        for batch in windows.batches(batch_size):
            ids, mask = batch.inputs.to(student.device), batch.mask.to(student.device)
            with torch.no_grad():
                log_p = teacher(input_ids=ids, use_cache=False).logits.float().log_softmax(-1)
            log_q = student(input_ids=ids, use_cache=False).logits.float().log_softmax(-1)
            by_token = functional.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1)
            loss = by_token[mask].mean()
            loss.backward()
            nn.utils.clip_grad_norm_(student.parameters(), 1.0)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            losses.append(float(loss.detach()))
    return losses
