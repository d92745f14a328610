"""Matrix products in float32 on a CPU, with the faster of torch's two libraries."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from transformers.pytorch_utils import Conv1D

CPUINFO = Path("/proc/cpuinfo")


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x @ weight.T + bias, as `torch.nn.functional.linear`.  (..., k), (n, k), (n,) -> (..., n)

    Supports gradients. If MKL, torch's default, is slower, float32 products use oneDNN, which torch
    also ships: the same sums in another order.
    """
    plain = x.dtype == weight.dtype == torch.float32
    on_cpu = x.device.type == weight.device.type == "cpu"
    if not (plain and on_cpu and onednn_is_better()) or torch.is_autocast_enabled("cpu"):
        return nn.functional.linear(x, weight, bias)
    if torch.is_grad_enabled():
        # As a matrix: else the result is a view made inside the function, which a model may not
        # change in place (OLMo's clip_qkv does).
        rows = _Linear.apply(x.reshape(-1, x.shape[-1]), weight, bias)
        return rows.view(*x.shape[:-1], -1)
    return _onednn(x, weight, bias)


@contextmanager
def fast_products(model: nn.Module) -> Iterator[None]:
    """Within the block, the linear maps of a model use `linear`."""
    modules = []
    if onednn_is_better():
        modules = [m for m in model.modules() if type(m) in (nn.Linear, Conv1D)]
        modules = [m for m in modules if "forward" not in vars(m)]
    for module in modules:
        module.forward = partial(_forward, module)
    try:
        yield
    finally:
        for module in modules:
            del module.forward


@cache
def onednn_is_better() -> bool:
    """On AMD processors with AVX-512 (`make bench` times both).

    Decided by the processor's name, not by timing, because results must not depend on timing.
    """
    has_op = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    wide = torch.backends.cpu.get_cpu_capability() == "AVX512"
    return has_op and wide and CPUINFO.exists() and "AuthenticAMD" in CPUINFO.read_text()


def _forward(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    weight = module.weight.t() if isinstance(module, Conv1D) else module.weight
    return linear(x, weight, module.bias)


def _onednn(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class _Linear(torch.autograd.Function):
    """A linear map of rows; gradients use the same library.  (m, k) -> (m, n)"""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        return _onednn(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x = _onednn(gradient, weight.t()) if ctx.needs_input_grad[0] else None
        of_weight = _onednn(gradient.t(), x.t()) if ctx.needs_input_grad[1] else None
        return of_x, of_weight, gradient.sum(0) if ctx.needs_input_grad[2] else None
