"""Model + Plan -> a new, smaller model. The original is untouched."""

from __future__ import annotations

import copy
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel

from depthprune_core.decoder import (
    anatomy,
    mlp_outputs,
    mlp_width,
    narrow_config,
    slice_config,
    text_config,
)
from depthprune_core.records import Plan, Size


def drop_layers(model: PreTrainedModel, plan: Plan, *, share: bool = False) -> PreTrainedModel:
    """A new model without the plan's layers, as if it had always been that shallow, in eval mode.

    It is built from the sliced config and then given the kept weights, so whatever a layer derives from its number
    (`layer_idx`, its slot in the KV cache, sliding or full attention) is right, and plain `from_pretrained` opens what
    `save_pretrained` writes. Weights are copied: training the result leaves the original as it was. With `share` they are
    the original's own tensors, which takes no memory: for measuring, not for training.

    Raises ValueError when the plan is for another number of layers.
    """
    parts = anatomy(model)
    if len(parts.layers) != plan.n_layers:
        raise ValueError(
            f"the plan is for {plan.n_layers} layers, but the model has {len(parts.layers)}"
        )
    new_config = slice_config(model.config, plan.kept)
    reference = next(model.parameters())
    options = {"dtype": reference.dtype, "attn_implementation": model.config._attn_implementation}
    if share:
        with torch.device("meta"):
            student = type(model)._from_config(new_config, **options)
        _lend(student, model, parts.layers_name, plan.kept)
        student.generation_config = copy.deepcopy(model.generation_config)
        return student.eval()
    with torch.random.fork_rng(
        devices=[]
    ):  # a fresh model draws weights, all of which are replaced below
        student = type(model)._from_config(new_config, **options)
    student = student.to(reference.device)
    with torch.no_grad():
        source = {
            **dict(model.named_parameters(remove_duplicate=False)),
            **dict(model.named_buffers(remove_duplicate=False)),
        }
        targets = [
            *student.named_parameters(remove_duplicate=False),
            *student.named_buffers(remove_duplicate=False),
        ]
        for name, tensor in targets:
            tensor.copy_(source[_original_name(name, parts.layers_name, plan.kept)])
    student.generation_config = copy.deepcopy(model.generation_config)
    return student.eval()


def share_equal(student: PreTrainedModel, model: PreTrainedModel, plan: Plan) -> PreTrainedModel:
    """Let every tensor of the student (it has the plan's layers) that has the model's values be the model's own, and take no memory.

    What is shared must not be trained in place; adapters can be (`adapters.low_rank`).
    """
    _lend(student, model, anatomy(model).layers_name, plan.kept, equal_only=True)
    return student


def drop_more(plan: Plan, second: Plan) -> Plan:
    """Two cuts as one plan of the original model: `second` is numbered in the model that `plan` left."""
    kept = plan.kept
    if second.n_layers != len(kept):
        raise ValueError(
            f"the second plan is for {second.n_layers} layers, but the first leaves {len(kept)}"
        )
    dropped = plan.dropped + tuple(kept[layer] for layer in second.dropped)
    return Plan(
        plan.n_layers,
        dropped,
        f"staged_{second.rule}",
        {"first": list(plan.dropped), "second": [kept[i] for i in second.dropped]},
    )


def narrow_mlps(model: PreTrainedModel, kept: Sequence[Sequence[int]]) -> PreTrainedModel:
    """A new model whose layers keep these neurons of their MLPs alone (as many in each), in eval mode; the original is untouched.

    A weight with a dimension of neurons is cut along it, fused gate and up projections in each of their parts.

    Raises ValueError for another number of layers, or of neurons in one of them.
    """
    parts = anatomy(model)
    own, width = mlp_width(model), len(kept[0])
    mlp_outputs(model)
    if len(kept) != len(parts.layers) or any(len(set(neurons)) != width for neurons in kept):
        raise ValueError(
            f"kept names neurons of {len(kept)} layers: {len(parts.layers)} are wanted, with equally many different ones"
        )
    options = {"dtype": model.dtype, "attn_implementation": model.config._attn_implementation}
    with torch.random.fork_rng(devices=[]):
        student = type(model)._from_config(narrow_config(model, width), **options)
    student = student.to(model.device)
    source = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
    with torch.no_grad():
        for name, tensor in [
            *student.named_parameters(remove_duplicate=False),
            *student.named_buffers(remove_duplicate=False),
        ]:
            whole = source[name]
            for dim, (new, old) in enumerate(zip(tensor.shape, whole.shape, strict=True)):
                if new != old:
                    layer = int(re.match(rf"{re.escape(parts.layers_name)}\.(\d+)\.", name)[1])
                    neurons = torch.tensor(sorted(kept[layer]), device=whole.device)
                    index = torch.cat([neurons + part * own for part in range(old // own)])
                    whole = whole.index_select(dim, index)
            tensor.copy_(whole)
    student.generation_config = copy.deepcopy(model.generation_config)
    return student.eval()


def width_of_size(model: PreTrainedModel, n_parameters: int) -> int:
    """The width of MLPs at which the narrowed model's parameters come nearest to `n_parameters`.

    Raises ValueError where that is more than the model has, or less than it has without its MLPs.
    """
    own = mlp_width(model)
    at_most, at_least = own - 1, 1
    n = {width: _parameters_of(model, width) for width in (at_least, at_most)}
    per_neuron = (n[at_most] - n[at_least]) / (at_most - at_least)
    width = round(at_least + (n_parameters - n[at_least]) / per_neuron)
    if not at_least <= width <= at_most:
        raise ValueError(
            f"n_parameters={n_parameters:,} cannot be reached by narrowing the MLPs: they allow {n[at_least]:,} to {n[at_most]:,}"
        )
    return width


def _parameters_of(model: PreTrainedModel, width: int) -> int:
    with torch.device("meta"):
        narrowed = type(model)._from_config(narrow_config(model, width))
    narrowed.tie_weights()
    return narrowed.num_parameters()


def size(model: PreTrainedModel) -> Size:
    """Layers, parameters (a tied tensor counts once) and the bytes of the safetensors files that `save_pretrained` writes."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        on_disk = sum(file.stat().st_size for file in Path(folder).glob("*.safetensors"))
    return Size(text_config(model.config).num_hidden_layers, model.num_parameters(), on_disk)


def _lend(
    student: PreTrainedModel,
    model: PreTrainedModel,
    layers_name: str,
    kept: tuple[int, ...],
    *,
    equal_only: bool = False,
) -> None:
    """Every tensor of the student (or every one with equal values), whatever holds it, becomes the model's own."""
    originals = dict(model.named_modules())
    for name, module in student.named_modules():
        original = originals[_original_name(f"{name}.", layers_name, kept).removesuffix(".")]
        for held in (module._parameters, module._buffers, vars(module)):
            for key, value in list(held.items()):
                if isinstance(value, torch.Tensor) and (
                    not equal_only or torch.equal(value, getattr(original, key))
                ):
                    held[key] = getattr(original, key)


def _original_name(name: str, layers_name: str, kept: tuple[int, ...]) -> str:
    """`model.layers.5.mlp.weight` of the student -> the name of the same tensor in the original."""
    return re.sub(
        rf"^{re.escape(layers_name)}\.(\d+)\.",
        lambda match: f"{layers_name}.{kept[int(match[1])]}.",
        name,
    )
