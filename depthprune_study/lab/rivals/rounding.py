"""Weights rounded to a few bits in llama.cpp's formats: the usual method to shrink a model."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from depthprune_core.anatomy import anatomy
from depthprune_core.records import Plan
from depthprune_study import provenance
from depthprune_study.errors import StudyError
from depthprune_study.lab.students import Student, made

if TYPE_CHECKING:
    from depthprune_study.lab.workspace import Workspace

KINDS = ("Q8_0", "Q4_0")  # 8.5 and 4.5 bits a weight: blocks of 32 that share one 16-bit scale


def rounded(lab: Workspace, kind: str) -> tuple[Student, int]:
    """The whole model in this format, and its size in bytes."""
    model = lab.teacher.model
    n_bytes = size_in(model, kind)
    plan = Plan(len(anatomy(model).layers), (), "rounded")
    version = f"gguf {provenance.version('gguf')}"
    make = lambda: quantised(model, kind)  # noqa: E731
    return made(lab, kind, plan, make, module=__name__, on=[version]), n_bytes


@torch.no_grad()
def quantised(model: PreTrainedModel, kind: str) -> PreTrainedModel:
    """A copy whose layers' linear maps are rounded to `kind` (with gguf.quants).

    It computes in the model's precision, so it shows the loss, not the speed.

    Raises StudyError for a kind that is not in KINDS, or a map whose inputs are not whole blocks.
    """
    size_in(model, kind)
    result, form = copy.deepcopy(model), GGMLQuantizationType[kind]
    for module in _maps(result):
        weight = module.weight.t() if isinstance(module, Conv1D) else module.weight
        blocks = quants.quantize(weight.float().cpu().contiguous().numpy(), form)
        near = torch.from_numpy(quants.dequantize(blocks, form))
        module.weight.copy_(near.t() if isinstance(module, Conv1D) else near)
    return result.eval()


def size_in(model: PreTrainedModel, kind: str) -> int:
    """Bytes of the model in this format: gguf's block sizes for the layers' linear maps, 16 bits
    for other tensors (embedding, norms, biases), a tied tensor once. Errors as in `quantised`.
    """
    if kind not in KINDS:
        raise StudyError(f"kind={kind!r} is not known: name one of {', '.join(KINDS)}")
    block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    n_bytes = 2 * model.num_parameters()
    for module in _maps(model):
        n_inputs = module.weight.shape[0 if isinstance(module, Conv1D) else 1]
        if n_inputs % block:
            raise StudyError(
                f"{kind} takes blocks of {block} weights, but a map of this model has {n_inputs} "
                "inputs"
            )
        n_bytes += module.weight.numel() // block * block_bytes - 2 * module.weight.numel()
    return n_bytes


def _maps(model: PreTrainedModel) -> Iterator[nn.Linear | Conv1D]:
    for layer in anatomy(model).layers:
        yield from (m for m in layer.modules() if isinstance(m, nn.Linear | Conv1D))
