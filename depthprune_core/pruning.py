"""Model + Plan -> a new, smaller model. The original is untouched."""

from __future__ import annotations

import copy
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from depthprune_core import guard
from depthprune_core.anatomy import anatomy, remember
from depthprune_core.configs import slice_config
from depthprune_core.decoder import Decoder, structure, text_config
from depthprune_core.guard import check_saved
from depthprune_core.records import Plan, Size

__all__ = ["check_droppable", "check_saved", "drop_layers", "original_name", "share_equal", "size"]


def drop_layers(model: PreTrainedModel, plan: Plan, *, share: bool = False) -> PreTrainedModel:
    """A new model without the plan's layers, in eval mode.

    It is built from the sliced config and then given the kept weights. So everything that depends
    on a layer's number (`layer_idx`, its slot in the KV cache, sliding or full attention) is right,
    and plain `from_pretrained` opens what `save_pretrained` writes. Its logits must equal those of
    the original with these layers skipped. Weights are copied, so training the result does not
    change the original. With `share`, both use the same tensors, which takes no memory: for
    measuring, not for training.

    Raises ValueError if the plan is for another number of layers, or if the smaller model would
    not equal the original with these layers skipped.
    """
    parts = anatomy(model)
    if len(parts.layers) != plan.n_layers:
        raise ValueError(
            f"the plan is for {plan.n_layers} layers, but the model has {len(parts.layers)}"
        )
    student = _outline(model, parts, plan.kept)
    copies: dict[int, torch.Tensor] = {}  # what is tied stays tied
    for held, key, theirs in _tensors(student, model, parts.layers_name, plan.kept):
        held[key] = theirs if share else copy.deepcopy(theirs, copies)
    if not share:
        student.requires_grad_(True)
    student.generation_config = copy.deepcopy(model.generation_config)
    student.eval()
    remember(student, parts)
    guard.check_cut(student, model, plan)
    return student


def check_droppable(model: PreTrainedModel) -> None:
    """Raises ValueError with the reason if no layer of a model can be dropped.

    Uses only config and shapes, so a model on torch's meta device works too.
    """
    parts = structure(model)
    if type(model.config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ValueError(
            f"{type(model).__name__} is part of a larger model: AutoModelForCausalLM opens no "
            f"folder with {type(model.config).__name__} alone, so no layer can be dropped"
        )
    n_layers = len(parts.layers)
    if n_layers == 1:
        return
    reason = ""
    for layer in sorted(range(n_layers), key=lambda i: abs(i - n_layers // 2)):
        try:
            _outline(model, parts, tuple(i for i in range(n_layers) if i != layer))
            return
        except ValueError as error:
            reason = str(error)
    raise ValueError(reason)


def share_equal(student: PreTrainedModel, model: PreTrainedModel, plan: Plan) -> PreTrainedModel:
    """Share every student tensor that equals the model's tensor.

    The student has the plan's layers. Shared tensors take no memory and must not be trained in
    place; adapters on them can be trained (`adapters.low_rank`).
    """
    stack = structure(model).layers_name
    for held, key, theirs in _tensors(student, model, stack, plan.kept):
        if torch.equal(held[key], theirs):
            held[key] = theirs
    return student


def size(model: PreTrainedModel) -> Size:
    """Layers, parameters (a tied tensor counts once) and bytes of its safetensors files."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        on_disk = sum(file.stat().st_size for file in Path(folder).glob("*.safetensors"))
    return Size(text_config(model.config).num_hidden_layers, model.num_parameters(), on_disk)


def original_name(name: str, stack: str, kept: tuple[int, ...]) -> str:
    """`model.layers.5.mlp.weight` in the student -> the name of the same tensor in the original.

    `stack` is the path of the layers: `model.layers`.
    """
    match = re.match(rf"{re.escape(stack)}\.(\d+)(?=\.|$)", name)
    return f"{stack}.{kept[int(match[1])]}{name[match.end() :]}" if match else name


def _outline(model: PreTrainedModel, parts: Decoder, kept: tuple[int, ...]) -> PreTrainedModel:
    """The student without weights (on the meta device), with the structure of the kept layers.

    Raises ValueError if the config gives other layers, or if a tensor belongs to all layers.
    """
    config = slice_config(model.config, kept)
    head, embedding = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    for part in (config, text_config(config)):
        # Of two tensors that differ, tying would lose one; of one, untying would double it.
        if hasattr(part, "tie_word_embeddings"):
            part.tie_word_embeddings = head is embedding
    options = {"dtype": model.dtype, "attn_implementation": model.config._attn_implementation}
    with torch.device("meta"):
        student = type(model)._from_config(config, **options)
    guard.check_alike(student, model, parts, kept)
    return student


def _tensors(
    student: PreTrainedModel, model: PreTrainedModel, stack: str, kept: tuple[int, ...]
) -> Iterator[tuple[dict, str, torch.Tensor]]:
    """For every tensor of the student: its module, its name, and the original's tensor."""
    # By all their names: layers may share one module, such as an activation.
    originals = dict(model.named_modules(remove_duplicate=False))
    for name, module in student.named_modules():
        original = originals[original_name(name, stack, kept)]
        for held in (module._parameters, module._buffers, vars(module)):
            for key, value in list(held.items()):
                if isinstance(value, torch.Tensor):
                    yield held, key, getattr(original, key)
