"""Checks a student against its original: layer structure, logits and saved folder."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from depthprune_core.anatomy import anatomy
from depthprune_core.decoder import Decoder
from depthprune_core.folders import KEY_PROBLEMS, dtypes
from depthprune_core.probing import probe_ids, tolerance
from depthprune_core.progress import reason
from depthprune_core.records import Plan
from depthprune_core.running import passing, replaced

_NUMBERS = ("idx", "index", "layer_id", "layer_num")  # settings that hold a layer's number


def check_alike(
    student: PreTrainedModel, model: PreTrainedModel, parts: Decoder, kept: tuple[int, ...]
) -> None:
    """Raises ValueError unless each layer of the student has its original's structure.

    Compares modules, shapes and settings only. A tensor outside the layers must keep its shape.
    """
    name = type(model).__name__
    layers = student.get_submodule(parts.layers_name)
    if len(layers) != len(kept):
        raise ValueError(
            f"{name} would keep {len(layers)} layers instead of {len(kept)}: its config counts "
            "them in a field that is not known here, so no layer can be dropped"
        )
    for new, old in enumerate(kept):
        ours, theirs = _facts(layers[new]), _facts(parts.layers[old])
        for key in {**theirs, **ours}:
            if not _same(ours.get(key), theirs.get(key)):
                raise ValueError(
                    f"what a layer of {name} is depends on its number: without the dropped layers, "
                    f"{key} of layer {old} would be {ours.get(key)} instead of {theirs.get(key)}"
                )
    shapes = {key: p.shape for key, p in model.named_parameters(remove_duplicate=False)}
    for key, p in student.named_parameters(remove_duplicate=False):
        if not key.startswith(f"{parts.layers_name}.") and p.shape != shapes.get(key):
            raise ValueError(
                f"{name} keeps one tensor for all its layers ({key}), so no layer can be dropped"
            )


@torch.no_grad()
def check_cut(student: PreTrainedModel, model: PreTrainedModel, plan: Plan) -> None:
    """Raises ValueError unless the student equals the original with the layers skipped."""
    parts, ids = anatomy(model), probe_ids(model)[:1]
    was_training = model.training
    model.eval()
    try:
        with replaced(parts.layers, {layer: passing(parts) for layer in plan.dropped}):
            wanted = model(input_ids=ids, use_cache=False).logits.float()
    finally:
        model.train(was_training)
    if (apart := _apart(student, ids, wanted)) > tolerance(model, wanted):
        raise ValueError(
            f"{type(model).__name__} without layers {', '.join(map(str, plan.dropped))} computes "
            f"something else than with them passed over (logits are {apart:.2g} apart): what a "
            "layer computes depends on its number, or on how many there are"
        )


@torch.no_grad()
def check_saved(student: PreTrainedModel, folder: Path) -> None:
    """Raises ValueError unless plain `from_pretrained` opens the folder as the same student.

    Saves the student there first if the folder holds no config.json yet. Weights may be rounded to
    the dtype of the file; logits of the opened model with the student's weights must agree.
    """
    is_causal = type(student.config) in MODEL_FOR_CAUSAL_LM_MAPPING  # else with an image tower
    kind = AutoModelForCausalLM if is_causal else type(student)
    try:
        if not (folder / "config.json").exists():
            student.save_pretrained(folder)
        opened, info = kind.from_pretrained(
            folder, dtype=student.dtype, output_loading_info=True, trust_remote_code=False
        )
    except Exception as error:  # of the library's validators, of its reader
        raise ValueError(
            f"the student cannot be saved and opened again: {reason(error)}"
        ) from error
    for problem in KEY_PROBLEMS:
        if names := sorted(map(str, info[problem])):
            raise ValueError(f"{folder} opens with {problem.replace('_', ' ')}: {names[:3]}")
    coarse = {dtype for dtype in dtypes(folder).values() if dtype.itemsize == 2}
    loose = max((torch.finfo(dtype).eps for dtype in coarse), default=0.0)
    theirs = opened.state_dict()
    for key, tensor in student.state_dict().items():
        saved = theirs[key].to(tensor.device)
        same = torch.equal(saved, tensor)
        if not same and not (loose and torch.allclose(saved, tensor, rtol=loose, atol=1e-6)):
            raise ValueError(f"{folder} opens with another tensor {key} than was saved")
    opened = opened.to(student.device).eval()
    if loose:
        opened.load_state_dict(student.state_dict())
    ids = probe_ids(student)[:1]
    wanted = student(input_ids=ids, use_cache=False).logits.float()
    if (apart := _apart(opened, ids, wanted)) > tolerance(student, wanted):
        raise ValueError(
            f"{folder} opens as a model that computes something else (logits are {apart:.2g} apart)"
        )


def _apart(model: PreTrainedModel, ids: torch.Tensor, wanted: torch.Tensor) -> float:
    """Largest distance between the models' logits; infinite if one of them is NaN."""
    distance = (model(input_ids=ids, use_cache=False).logits.float() - wanted).abs().max()
    return float(distance) if torch.isfinite(distance) else float("inf")


def _facts(layer: nn.Module) -> dict[str, Any]:
    """A layer's structure: module types, tensor shapes, plain settings."""
    facts: dict[str, Any] = {}
    for path, module in layer.named_modules():
        prefix = f"{path}." if path else ""
        facts[f"{prefix}class"] = type(module).__name__
        for key, tensor in module.named_parameters(recurse=False):
            facts[prefix + key] = tuple(tensor.shape)
        for key, value in vars(module).items():
            counts = key != "training" and not key.startswith("_")
            counts = counts and not any(word in key for word in _NUMBERS)
            if counts and isinstance(value, bool | int | float | str):
                facts[prefix + key] = value
    return facts


def _same(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, float) and isinstance(theirs, float):
        return math.isclose(ours, theirs, rel_tol=1e-6)
    return ours == theirs
