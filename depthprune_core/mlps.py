"""The MLPs of a decoder: their last maps and their width."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from depthprune_core.anatomy import anatomy
from depthprune_core.decoder import text_config

_MLP_WIDTHS = ("intermediate_size", "n_inner", "ffn_dim")


def mlp_outputs(model: PreTrainedModel) -> list[nn.Module]:
    """For each layer, the linear map from the MLP's neurons back to the hidden states.

    Raises ValueError if the config does not state the width, or if the width does not identify
    this map.
    """
    name, width = _mlp_width(model)

    def ends_mlp(module: nn.Module) -> bool:
        if isinstance(module, Conv1D):
            return module.weight.shape[0] == width
        return isinstance(module, nn.Linear) and module.in_features == width

    maps = [[m for m in layer.modules() if ends_mlp(m)] for layer in anatomy(model).layers]
    if any(len(found) != 1 for found in maps):
        raise ValueError(
            f"{type(model).__name__} has not exactly one map of {width} inputs ({name}) in every "
            "layer, so its MLPs cannot be narrowed"
        )
    return [found for (found,) in maps]


def mlp_width(model: PreTrainedModel) -> int:
    """Neurons of each layer's MLP. Raises ValueError if the config does not state it."""
    return _mlp_width(model)[1]


def narrow_config(model: PreTrainedModel, width: int) -> Any:
    """A copy of the model's config with MLPs of this width."""
    new = copy.deepcopy(model.config)
    setattr(text_config(new), _mlp_width(model)[0], width)
    return new


def _mlp_width(model: PreTrainedModel) -> tuple[str, int]:
    """The config's field for the MLP's width, and the width."""
    config = text_config(model.config)
    for name in _MLP_WIDTHS:
        try:
            width = getattr(config, name)
        except (AttributeError, RuntimeError):  # none, or one for each layer
            continue
        width = width or 4 * config.hidden_size  # GPT-2 leaves it open
        if isinstance(width, int):
            return name, width
    raise ValueError(
        f"the config of {type(model).__name__} does not state one width for its MLPs "
        f"({', '.join(_MLP_WIDTHS)})"
    )
