"""Whether a cut model is the original less its layers: by parts, logits and saved folder."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from depthprune_core.decoder import Decoder, anatomy
from depthprune_core.probing import probe_ids, tolerance
from depthprune_core.records import Plan
from depthprune_core.running import passing, replaced

_NUMBERS = ("idx", "index", "layer_id", "layer_number", "layer_num")  # by which a layer is told


def check_alike(
    student: PreTrainedModel, model: PreTrainedModel, parts: Decoder, kept: tuple[int, ...]
) -> None:
    """Raises ValueError unless each layer of the student is made as the one it stands for, and all
    that is no layer is as it was. Looks at names, shapes and settings alone.
    """
    name = type(model).__name__
    layers = student.get_submodule(parts.layers_name)
    for new, old in enumerate(kept):
        ours, theirs = facts(layers[new]), facts(parts.layers[old])
        shapes = [key for key in {**theirs, **ours} if _is_shape(key, ours, theirs)]
        if differing := [key for key in shapes if ours.get(key) != theirs.get(key)]:
            fields = _suspects(model.config.get_text_config(decoder=True))
            raise ValueError(
                f"{name} without these layers would make layer {old} another one ({differing[0]})"
                + (f": {fields} of its config cannot say otherwise" if fields else "")
            )
        if differing := [key for key in theirs if key in ours and _differ(ours[key], theirs[key])]:
            raise ValueError(
                f"what a layer of {name} computes depends on its number: {differing[0]} of layer "
                f"{old} would be {ours[differing[0]]} instead of {theirs[differing[0]]}"
            )
    rest = {key: tuple(t.shape) for key, t in model.named_parameters(remove_duplicate=False)}
    for key, tensor in student.named_parameters(remove_duplicate=False):
        if key.startswith(f"{parts.layers_name}."):
            continue
        if rest.get(key, tuple(tensor.shape)) != tuple(tensor.shape):
            raise ValueError(
                f"{name} keeps one tensor for all its layers together ({key}), so no layer can be "
                "dropped"
            )


@torch.no_grad()
def check_cut(student: PreTrainedModel, model: PreTrainedModel, plan: Plan) -> None:
    """Raises ValueError unless the student computes the original with the layers passed over."""
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
    """Raises ValueError unless plain `from_pretrained` opens the folder as this very student.

    Saves the student there first if the folder holds no config.json yet. Weights may be rounded to
    the dtype of the file, logits of the opened model with the student's weights must agree.
    """
    folder = Path(folder)
    try:
        if not (folder / "config.json").exists():
            student.save_pretrained(folder)
        opened, info = _class_for(student).from_pretrained(
            folder, dtype=student.dtype, output_loading_info=True, trust_remote_code=False
        )
    except Exception as error:  # of the library's validators, of its reader
        raise ValueError(
            f"the student cannot be saved and opened again: {' '.join(str(error).split())[:200]}"
        ) from error
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if names := sorted(map(str, info[problem])):
            raise ValueError(f"{folder} opens with {problem.replace('_', ' ')}: {names[:3]}")
    theirs, loose = opened.state_dict(), _rounding(folder)
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
    """Largest distance of the model's logits; infinite where one of them is no number."""
    distance = (model(input_ids=ids, use_cache=False).logits.float() - wanted).abs().max()
    return float(distance) if torch.isfinite(distance) else float("inf")


def _class_for(student: PreTrainedModel) -> Any:
    """The class by which users open it: the automatic one where that gives the same model."""
    known = AutoModelForCausalLM._model_mapping
    config = type(student.config)
    return (
        AutoModelForCausalLM
        if config in known and known[config] is type(student)
        else type(student)
    )


def _rounding(folder: Path) -> float:
    """Relative rounding of the coarsest dtype in the folder's files; 0 for float32."""
    kinds = {"BF16": torch.bfloat16, "F16": torch.float16}
    found = {0.0}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            for key in opened.keys():  # noqa: SIM118 - no mapping
                if dtype := kinds.get(opened.get_slice(key).get_dtype()):
                    found.add(torch.finfo(dtype).eps)
    return max(found)


def facts(layer: nn.Module) -> dict[str, Any]:
    """How a layer is made: kinds of its modules, shapes of its tensors, its plain settings."""
    found: dict[str, Any] = {}
    for path, module in layer.named_modules():
        prefix = f"{path}." if path else ""
        found[f"{prefix}class"] = type(module).__name__
        for key, tensor in module.named_parameters(recurse=False):
            found[prefix + key] = tuple(tensor.shape)
        for key, value in vars(module).items():
            told = not key.startswith("_") and not any(word in key for word in _NUMBERS)
            if (
                told
                and key != "training"
                and isinstance(value, bool | int | float | str | type(None))
            ):
                found[prefix + key] = value
    return found


def _differ(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, float) and isinstance(theirs, float):
        return not math.isclose(ours, theirs, rel_tol=1e-6)
    return ours != theirs


def _is_shape(key: str, *sides: dict[str, Any]) -> bool:
    return key.endswith("class") or any(isinstance(side.get(key), tuple) for side in sides)


def _suspects(config: Any) -> str:
    """Fields of a config by which layers may differ, as they are called."""
    words = ("step", "interval", "period", "freq", "pattern", "every", "only", "dense", "_layers")
    names = [
        key
        for key, value in config.to_dict().items()
        if any(word in key for word in words)
        and ("layer" in key or "dense" in key or "moe" in key or "sparse" in key)
        and "num_hidden" not in key
        and value not in (None, [], {})
    ]
    return ", ".join(names[:4])
