"""Low-rank adapters: a small trained update beside every linear map of a model's layers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from depthprune_core.anatomy import anatomy

if TYPE_CHECKING:
    from peft import LoraConfig

SCALING = 2.0  # of the update: alpha = 2 x rank, as most recipes have it


@contextmanager
def low_rank(model: PreTrainedModel, *, rank: int, seed: int) -> Iterator[None]:
    """Within the block only adapters can be trained (LoRA: Hu et al. 2021, 2106.09685).

    Every linear map of every layer gets one (subclasses too, but not a mixture's experts that share
    one tensor). Adapters are drawn by `seed` and start without effect. At the end of the block they
    are merged into the weights; after an error they are removed without a trace.
    Changed weights get new tensors, because another model may share the old ones.

    Raises ValueError for a model whose layers have no linear map.
    """
    from peft.tuners.lora import LoraModel

    flags = {p: p.requires_grad for p in model.parameters()}
    cuda = [model.device] if model.device.type == "cuda" else []
    layers = anatomy(model).layers
    config = _config(layers, type(model).__name__, rank)
    with torch.random.fork_rng(devices=cuda):
        torch.manual_seed(seed)
        # The layers alone: of a whole model, peft translates the names and wraps experts as well.
        adapted = LoraModel(layers, {"default": config}, "default")
    for p in flags:  # what lies outside the layers is not trained either
        p.requires_grad_(False)
    try:
        yield
    except BaseException:
        adapted.unload()
        raise
    finally:
        for p, flag in flags.items():
            p.requires_grad_(flag)
    for module in layers.modules():
        if hasattr(module, "lora_A"):
            weight = module.base_layer.weight
            copied = nn.Parameter(weight.detach().clone(), requires_grad=flags[weight])
            module.base_layer.weight = copied
    adapted.merge_and_unload()


def _config(layers: nn.ModuleList, name: str, rank: int) -> LoraConfig:
    """peft's settings for one adapter on every linear map."""
    from peft import LoraConfig

    maps = [path for path, m in layers.named_modules() if isinstance(m, nn.Linear | Conv1D)]
    if not maps:
        raise ValueError(f"{name} has no linear map in its layers, so no adapters can be trained")
    config = LoraConfig(r=rank, lora_alpha=SCALING * rank, target_modules=maps, lora_dropout=0.0)
    # Without a class of our choice peft asks each quantisation library in turn what to do, and an
    # old torchao (0.10, as Colab has it) makes it raise.
    config._register_custom_module({nn.Linear: _adapted, Conv1D: _adapted})
    return config


def _adapted(target: nn.Module, *args: Any, config: LoraConfig, **kwargs: Any) -> nn.Module:
    """peft's adapter beside one map, whose weight a Conv1D keeps transposed."""
    from peft.tuners.lora import Linear

    transposed = isinstance(target, Conv1D)
    config = replace(config, fan_in_fan_out=transposed)
    return Linear(target, *args, config=config, is_target_conv_1d_layer=transposed, **kwargs)
