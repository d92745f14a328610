"""Model + Plan -> a new, smaller model. The original is untouched."""

from __future__ import annotations

import copy
import re
import tempfile
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel

from depthprune_core import decoder, guard
from depthprune_core.configs import slice_config
from depthprune_core.decoder import Decoder, anatomy, structure, text_config
from depthprune_core.guard import check_saved
from depthprune_core.records import Plan, Size

__all__ = ["check_saved", "drop_layers", "original_name", "share_equal", "size", "undroppable"]


def drop_layers(model: PreTrainedModel, plan: Plan, *, share: bool = False) -> PreTrainedModel:
    """A new model without the plan's layers, as if it had always been that shallow, in eval mode.

    It is built from the sliced config and then given the kept weights, so whatever a layer derives
    from its number (`layer_idx`, its slot in the KV cache, sliding or full attention) is right, and
    plain `from_pretrained` opens what `save_pretrained` writes. Its logits are held to those of the
    original with these layers passed over. Weights are copied: training the result leaves the
    original as it was. With `share` they are the original's own tensors, which takes no memory:
    for measuring, not for training.

    Raises ValueError when the plan is for another number of layers, or when a model without these
    layers would compute something else.
    """
    parts = anatomy(model)
    if len(parts.layers) != plan.n_layers:
        raise ValueError(
            f"the plan is for {plan.n_layers} layers, but the model has {len(parts.layers)}"
        )
    student = _outline(model, parts, plan.kept)
    _fill(student, model, plan, copied=not share)
    student.generation_config = copy.deepcopy(model.generation_config)
    student.eval()
    decoder.remember(student, parts)
    guard.check_cut(student, model, plan)
    return student


def undroppable(model: PreTrainedModel, *, first: bool = False) -> dict[int, str]:
    """Layers that cannot go, each with the reason; found from the config and on the meta device.

    With `first`, the search ends at the first layer that can go, and tells nothing then.
    """
    parts = structure(model)
    reasons: dict[int, str] = {}
    n_layers = len(parts.layers)
    kinds = [str(guard.facts(layer)) for layer in parts.layers]
    tried: dict[str, str] = {}  # what is left -> why it cannot be; like layers are tried once
    for layer in sorted(range(n_layers), key=lambda i: abs(i - n_layers // 2)):
        kept = tuple(i for i in range(n_layers) if i != layer)
        reason = _reason(model, parts, kept, [kinds[i] for i in kept], tried) if kept else ""
        if reason:
            reasons[layer] = reason
        elif first:
            return {}
    return dict(sorted(reasons.items()))


def _reason(
    model: PreTrainedModel,
    parts: Decoder,
    kept: tuple[int, ...],
    kinds: list[str],
    tried: dict[str, str],
) -> str:
    """Why no student of these layers can be made; empty where it can."""
    try:
        key = f"{slice_config(model.config, kept).to_json_string()} {kinds}"
    except ValueError as error:
        return str(error)
    if key not in tried:
        try:
            _outline(model, parts, kept)
            tried[key] = ""
        except ValueError as error:
            tried[key] = str(error)
    return tried[key]


def share_equal(student: PreTrainedModel, model: PreTrainedModel, plan: Plan) -> PreTrainedModel:
    """Let every tensor of the student that has the model's values be the model's own.

    The student has the plan's layers. What is shared takes no memory and must not be trained in
    place; adapters on it can be (`adapters.low_rank`).
    """
    originals, stacks = _modules(model), _stacks(model, plan.n_layers)
    for name, module in student.named_modules():
        original = originals[original_name(name, stacks, plan.kept)]
        for held in (module._parameters, module._buffers, vars(module)):
            for key, value in list(held.items()):
                if isinstance(value, torch.Tensor) and torch.equal(value, getattr(original, key)):
                    held[key] = getattr(original, key)
    return student


def size(model: PreTrainedModel) -> Size:
    """Layers, parameters (a tied tensor counts once) and bytes of its safetensors files."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        on_disk = sum(file.stat().st_size for file in Path(folder).glob("*.safetensors"))
    return Size(text_config(model.config).num_hidden_layers, model.num_parameters(), on_disk)


def original_name(name: str, stacks: str | tuple[str, ...], kept: tuple[int, ...]) -> str:
    """`model.layers.5.mlp.weight` of the student -> the name of the same tensor in the original.

    `stacks` are paths of lists that have one entry a layer, the layers themselves first.
    """
    for stack in (stacks,) if isinstance(stacks, str) else stacks:
        if match := re.match(rf"{re.escape(stack)}\.(\d+)(?=\.|$)", name):
            return f"{stack}.{kept[int(match[1])]}{name[match.end() :]}"
    return name


def _outline(model: PreTrainedModel, parts: Decoder, kept: tuple[int, ...]) -> PreTrainedModel:
    """The student without weights (on the meta device), its layers made as the kept ones are.

    Raises ValueError where the config gives other layers, or a tensor belongs to all of them.
    """
    config = slice_config(model.config, kept)
    tied = _head(model) is not None and _head(model) is _embedding(model)
    for part in (config, text_config(config)):
        # Of two tensors that differ, tying would lose one; of one, untying would double it.
        if getattr(part, "tie_word_embeddings", tied) != tied and _head(model) is not None:
            part.tie_word_embeddings = tied
    options = {"dtype": model.dtype, "attn_implementation": model.config._attn_implementation}
    with torch.device("meta"):
        student = type(model)._from_config(config, **options)
    guard.check_alike(student, model, parts, kept)
    return student


def _fill(student: PreTrainedModel, model: PreTrainedModel, plan: Plan, *, copied: bool) -> None:
    """Every tensor of the student, whatever holds it, becomes the original's or a copy of it."""
    originals, stacks = _modules(model), _stacks(model, plan.n_layers)
    copies: dict[int, torch.Tensor] = {}  # what is tied stays tied

    def taken(theirs: torch.Tensor) -> torch.Tensor:
        if not copied:
            return theirs
        if id(theirs) not in copies:
            copy_ = theirs.detach().clone()
            copies[id(theirs)] = nn.Parameter(copy_) if isinstance(theirs, nn.Parameter) else copy_
        return copies[id(theirs)]

    for name, module in student.named_modules():
        original = originals[original_name(name, stacks, plan.kept)]
        for held in (module._parameters, module._buffers, vars(module)):
            for key, value in list(held.items()):
                if isinstance(value, torch.Tensor):
                    held[key] = taken(getattr(original, key))


def _stacks(model: PreTrainedModel, n_layers: int) -> tuple[str, ...]:
    """Paths of the layers and of what else the base keeps as a list of one entry a layer."""
    parts = structure(model)
    home = parts.layers_name.rpartition(".")[0]
    others = [
        path
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList)
        and len(module) == n_layers
        and path.rpartition(".")[0] == home
        and path != parts.layers_name
    ]
    return (parts.layers_name, *others)


def _modules(model: PreTrainedModel) -> dict[str, nn.Module]:
    """By all their names: layers may share one, such as an activation."""
    return dict(model.named_modules(remove_duplicate=False))


def _head(model: PreTrainedModel) -> torch.Tensor | None:
    return getattr(model.get_output_embeddings(), "weight", None)


def _embedding(model: PreTrainedModel) -> torch.Tensor | None:
    return getattr(model.get_input_embeddings(), "weight", None)
