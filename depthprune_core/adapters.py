"""Low-rank adapters: a small update beside every linear map of a model's layers, trained alone and added to the weights at the end."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from depthprune_core.decoders import decoder

SCALING = 2.0  # of the update: alpha = 2 x rank, as most recipes have it


@contextmanager
def low_rank(model: PreTrainedModel, *, rank: int, seed: int, keep: Collection[nn.Parameter] = frozenset()) -> Iterator[None]:
    """Within the block only adapters of this rank (LoRA: Hu et al. 2021, arXiv:2106.09685) can be trained.

    One on every linear map of every layer, drawn by `seed`, at first without effect. At the block's end they are added to the
    weights and gone; where it ends by an error they are gone without a trace. Parameters in `keep` (another model's too) stay as they
    are: the model gets its own copy of those that change.
    """
    from peft import LoraConfig
    from peft.tuners.lora import Linear, LoraModel

    layers = decoder(model).layers_name
    targets = [name for name, m in model.named_modules() if name.startswith(f"{layers}.") and type(m) in (nn.Linear, Conv1D)]
    transposed = any(type(m) is Conv1D for m in model.modules())  # peft would find out too, with a warning for each map
    flags = {p: p.requires_grad for p in model.parameters()}
    config = LoraConfig(r=rank, lora_alpha=SCALING * rank, target_modules=targets, lora_dropout=0.0, fan_in_fan_out=transposed)
    # Asked before peft's other kinds, one of which raises where an old torchao is installed (Colab has 0.10).
    config._register_custom_module({nn.Linear: Linear, Conv1D: partial(Linear, is_target_conv_1d_layer=True)})
    cuda = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.manual_seed(seed)
        adapted = LoraModel(model, {"default": config}, "default")
    try:
        yield
    except BaseException:
        adapted.unload()
        raise
    finally:
        for p, flag in flags.items():
            if p in keep:
                p.requires_grad_(flag)
    for module in model.modules():
        if hasattr(module, "lora_A") and (weight := module.base_layer.weight) in keep:
            module.base_layer.weight = nn.Parameter(weight.detach().clone(), requires_grad=flags[weight])
    adapted.merge_and_unload()
