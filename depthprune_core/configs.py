"""A model's config for fewer layers: per-layer settings follow the kept layers."""

from __future__ import annotations

import json
import math
import re
import tempfile
from typing import Any

from depthprune_core.decoder import text_config
from depthprune_core.progress import reason

# "The first so many layers are dense": the count of those that stay.
_FIRST = ("first_k_dense_replace", "num_dense_layers", "max_window_layers", "moe_layer_start_index")
_LAST = ("moe_layer_end_index",)  # the last layer of a kind
_NUMBERED = re.compile(r"layers?$|layers?_(ids?|idx|ind|list|num)|attn_idxs?$")  # lists of numbers


def slice_config(config: Any, kept: tuple[int, ...]) -> Any:
    """A copy of the config for the kept layers, after writing and opening it again.

    The layer count, per-layer lists and tables, lists of layer numbers and counts of first layers
    follow the kept layers. References to remote code are removed.

    Raises ValueError if an option makes a layer's computation depend on its number, if the config
    cannot be written, or if it changes when it is opened again.
    """
    part = text_config(config)
    if getattr(part, "scale_attn_by_inverse_layer_idx", False):
        raise ValueError(
            "scale_attn_by_inverse_layer_idx=True scales attention by the layer's number, so no "
            "layer can be dropped unchanged"
        )
    facts = written(config)
    facts.pop("auto_map", None)
    inner = facts
    if part is not config:
        inner = facts[next(key for key, value in vars(config).items() if value is part)]
    _follow(inner, part.num_hidden_layers, kept)
    inner[part.attribute_map.get("num_hidden_layers", "num_hidden_layers")] = len(kept)
    name, layers = type(config).__name__, ", ".join(map(str, kept))
    try:
        new = type(config).from_dict(json.loads(json.dumps(facts)))
        again = written(new)
    except Exception as error:  # whatever its validators raise
        raise ValueError(f"{name} does not allow layers {layers} alone: {reason(error)}") from error
    if changed := _difference(facts, again):
        raise ValueError(
            f"{name} changes {changed} when it is opened, so a model of layers {layers} alone "
            "would be another one: drop other layers"
        )
    return new


def written(config: Any) -> dict[str, Any]:
    """The config as in its config.json. Raises ValueError if it cannot be written."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            config.save_pretrained(folder)
    except Exception as error:  # whatever its validators raise
        raise ValueError(
            f"{type(config).__name__} would not be written when the model is saved, so nothing was "
            f"begun: {reason(error)}"
        ) from error
    return json.loads(json.dumps(config.to_dict()))


def _follow(facts: dict[str, Any], n_layers: int, kept: tuple[int, ...]) -> None:
    """Change the config's per-layer settings to those of the kept layers."""
    listed = facts.get("mlp_only_layers") or []
    for key, value in list(facts.items()):
        if "token_id" in key or "label" in key or isinstance(value, bool):
            continue
        if key in _FIRST and isinstance(value, int):
            facts[key] = sum(layer < value for layer in kept)
        elif key in _LAST and isinstance(value, int) and value >= 0:
            facts[key] = sum(layer <= value for layer in kept) - 1
        elif isinstance(value, list):
            facts[key] = _followed_list(key, value, n_layers, kept)
        elif isinstance(value, dict) and value and set(value) <= set(map(str, range(n_layers))):
            facts[key] = {str(i): value[str(k)] for i, k in enumerate(kept) if str(k) in value}
    if (types := facts.get("attention_layers")) and "attention_types" in facts:  # GPT-Neo
        facts["attention_types"] = [[types, 1]]
    if isinstance(facts.get("scale_depth"), int | float):  # MiniCPM: over the root of the count
        facts["scale_depth"] *= math.sqrt(len(kept) / n_layers)
    if (step := facts.get("decoder_sparse_step") or 1) > 1 and "mlp_only_layers" in facts:
        # "Every so many layers one is sparse" becomes a list of the others.
        dense = {layer for layer in range(n_layers) if (layer + 1) % step or layer in listed}
        facts["decoder_sparse_step"] = 1
        facts["mlp_only_layers"] = [new for new, old in enumerate(kept) if old in dense]


def _followed_list(key: str, value: list, n_layers: int, kept: tuple[int, ...]) -> list:
    whole = all(isinstance(v, int) and not isinstance(v, bool) for v in value)
    numbers = whole and len(value) == len(set(value)) and all(0 <= v < n_layers for v in value)
    if value and numbers and _NUMBERED.search(key) and (len(value) != n_layers or n_layers > 2):
        return [new for new, old in enumerate(kept) if old in value]
    return [value[layer] for layer in kept] if len(value) == n_layers else value


def _difference(wanted: dict[str, Any], found: dict[str, Any]) -> str:
    """The first field that differs after writing and reading; empty if none differs."""
    for key, value in wanted.items():
        other = found.get(key)
        if isinstance(value, dict) and isinstance(other, dict):
            if inner := _difference(value, other):
                return f"{key}.{inner}"
        elif value != other and key not in ("transformers_version", "dtype", "architectures"):
            return key
    return ""
