"""Muon in arithmetic that the device has. torch.optim.Muon multiplies in bfloat16 everywhere, which a CPU without AVX-512 does many
times slower than in float32: its steps would take longer than all the rest of a recovery.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch

from depthprune_core.products import has_bfloat16

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic that takes singular values from 0..1 to about 1 in five rounds
ROUNDS = 5


class Muon(torch.optim.Optimizer):
    """Matrices (m, n) stepped by their Nesterov momentum, made orthogonal (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/)
    and scaled so that AdamW's learning rates and weight decay fit (Liu et al. 2025, arXiv:2502.16982): what torch.optim.Muon does with
    `adjust_lr_fn="match_rms_adamw"`. Its products are in bfloat16 on a GPU that truly has it, else in float32.
    """

    def __init__(self, params: Iterable[torch.Tensor], *, lr: float, momentum: float = 0.95, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["momentum"] = torch.zeros_like(p)
                average = state["momentum"]
                average.lerp_(p.grad, 1 - group["momentum"])
                in_which = torch.bfloat16 if has_bfloat16(p.device) else torch.float32
                update = orthogonal(p.grad.lerp(average, group["momentum"]), in_which)
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update, alpha=-group["lr"] * 0.2 * math.sqrt(max(p.shape)))


def orthogonal(matrix: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """U V^T of a matrix U S V^T, near enough (singular values of about 0.7 to 1.2), by Newton-Schulz rounds in `dtype`."""
    linear, cubic, quintic = COEFFICIENTS
    x = matrix.to(dtype)
    wide = x if x.shape[0] <= x.shape[1] else x.T
    wide = wide / wide.norm().clamp(min=1e-7)
    for _ in range(ROUNDS):
        gram = wide @ wide.T
        wide = torch.addmm(wide, torch.addmm(gram, gram, gram, beta=cubic, alpha=quintic), wide, beta=linear)
    return wide if x.shape[0] <= x.shape[1] else wide.T
