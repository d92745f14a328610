"""Weights rounded to few bits: the plain way to make a model smaller, to set pruning against."""

from __future__ import annotations

import copy

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from depthprune_core.decoders import decoder

GROUP = 32  # neighbouring weights of one output that share scale and offset


@torch.no_grad()
def rounded(model: PreTrainedModel, bits: int) -> tuple[PreTrainedModel, int]:
    """A copy whose layers' linear maps hold the nearest of 2^bits evenly spaced values a group, and the bytes that it would take.

    A group of 32 weights has its own smallest value and step, in 16 bits each; all other parameters take 16 bits, a tied one once.
    The copy computes in the model's own precision: it shows the loss, not the speed. The original is untouched.

    Raises ValueError for other than 2 to 8 bits, or for a map whose inputs do not divide into groups.
    """
    if not 2 <= bits <= 8:
        raise ValueError(f"bits={bits} is not possible here: 2 to 8 are")
    result = copy.deepcopy(model)
    saved_bits = 16 * result.num_parameters()
    for layer in decoder(result).layers:
        for module in layer.modules():
            if isinstance(module, nn.Linear | Conv1D):
                module.weight.copy_(_nearest(module.weight, bits, transposed=isinstance(module, Conv1D)))
                saved_bits -= module.weight.numel() * (16 - bits - 2 * 16 // GROUP)
    return result.eval(), saved_bits // 8


def _nearest(weight: torch.Tensor, bits: int, *, transposed: bool) -> torch.Tensor:
    rows = weight.t() if transposed else weight  # (outputs, inputs)
    if rows.shape[1] % GROUP:
        raise ValueError(f"a map of {rows.shape[1]} inputs does not divide into groups of {GROUP} weights")
    groups = rows.reshape(len(rows), -1, GROUP).float()
    low = groups.amin(-1, keepdim=True).half().float()
    step = ((groups.amax(-1, keepdim=True) - low) / (2**bits - 1)).half().float().clamp_min(1e-8)
    near = ((groups - low) / step).round().clamp(0, 2**bits - 1) * step + low
    near = near.reshape(rows.shape).to(weight.dtype)
    return near.t() if transposed else near
