"""A model's config for fewer layers: what it says of each layer follows the layers that stay."""

from __future__ import annotations

import json
import math
import re
import tempfile
from typing import Any

from depthprune_core.decoder import text_config

# "The first so many layers are dense": the count of those that stay.
_FIRST = ("first_k_dense_replace", "num_dense_layers", "max_window_layers", "moe_layer_start_index")
_LAST = ("moe_layer_end_index",)  # the last layer of a kind
_NUMBERED = re.compile(r"layers?$|layers?_(ids?|idx|ind|list|num)|attn_idxs?$")  # lists of numbers


def slice_config(config: Any, kept: tuple[int, ...]) -> Any:
    """A copy of the config for the kept layers, as it is when it is written and opened again.

    The count, lists and tables of one entry a layer, lists of layer numbers, counts of the first
    layers and patterns of dense and sparse ones follow the layers. Remote code is named no more.

    Raises ValueError where an option bakes a layer's number into its computation, where the config
    cannot be written, or where it is another one when it is opened again.
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
    n_layers = part.num_hidden_layers
    _follow(inner, n_layers, kept)
    inner[part.attribute_map.get("num_hidden_layers", "num_hidden_layers")] = len(kept)
    return _opened(config, facts, kept)


def written(config: Any) -> dict[str, Any]:
    """The config as its config.json has it. Raises ValueError where it cannot be written."""
    name = type(config).__name__
    try:
        with tempfile.TemporaryDirectory() as folder:
            config.save_pretrained(folder)
    except Exception as error:  # whatever its validators raise
        raise ValueError(
            f"{name} would not be written when the model is saved, so nothing was begun: "
            f"{_sentence(error)}"
        ) from error
    return json.loads(json.dumps(config.to_dict()))


def _opened(config: Any, facts: dict[str, Any], kept: tuple[int, ...]) -> Any:
    """The config that these facts give when they are read from a file."""
    name = type(config).__name__
    try:
        new = type(config).from_dict(json.loads(json.dumps(facts)))
        again = written(new)
    except Exception as error:
        raise ValueError(
            f"{name} does not allow layers {_told(kept)} alone: {_sentence(error)}"
        ) from error
    if changed := _difference(facts, again):
        raise ValueError(
            f"{name} changes {changed} when it is opened, so a model of layers {_told(kept)} alone "
            "would be another one: drop other layers"
        )
    return new


def _follow(facts: dict[str, Any], n_layers: int, kept: tuple[int, ...]) -> None:
    """Change whatever a config says of single layers to what holds for the kept ones."""
    for key, value in list(facts.items()):
        if "token_id" in key or "label" in key or isinstance(value, bool):
            continue
        if key in _FIRST and isinstance(value, int):
            facts[key] = sum(layer < value for layer in kept)
        elif key in _LAST and isinstance(value, int) and value >= 0:
            facts[key] = sum(layer <= value for layer in kept) - 1
        elif isinstance(value, list):
            facts[key] = _followed_list(key, value, n_layers, kept)
        elif isinstance(value, dict) and value and all(str(k).isdigit() for k in value):
            named = {int(k): v for k, v in value.items()}
            if max(named) < n_layers:
                facts[key] = {str(i): named[k] for i, k in enumerate(kept) if k in named}
    if (types := facts.get("attention_layers")) and "attention_types" in facts:  # GPT-Neo
        facts["attention_types"] = [[types, 1]]
    if isinstance(facts.get("scale_depth"), int | float):  # MiniCPM: over the root of the count
        facts["scale_depth"] *= math.sqrt(len(kept) / n_layers)
    _follow_steps(facts, n_layers, kept)


def _followed_list(key: str, value: list, n_layers: int, kept: tuple[int, ...]) -> list:
    whole = all(isinstance(v, int) and not isinstance(v, bool) for v in value)
    numbers = whole and value == sorted(set(value)) and all(0 <= v < n_layers for v in value)
    if value and numbers and _NUMBERED.search(key) and (len(value) != n_layers or n_layers > 2):
        return [new for new, old in enumerate(kept) if old in value]
    return [value[layer] for layer in kept] if len(value) == n_layers else value


def _follow_steps(facts: dict[str, Any], n_layers: int, kept: tuple[int, ...]) -> None:
    """Every so many layers one is sparse: told as a list where the config has one, or fitted."""
    if (step := facts.get("decoder_sparse_step") or 1) > 1 and "mlp_only_layers" in facts:
        # `_follow` has made that list one of new numbers
        dense = {kept[new] for new in facts["mlp_only_layers"] or []}
        dense |= {layer for layer in range(n_layers) if (layer + 1) % step}
        facts["decoder_sparse_step"] = 1
        facts["mlp_only_layers"] = [new for new, old in enumerate(kept) if old in dense]
    if (step := facts.get("moe_layer_interval") or 1) > 1:
        wanted = [(old + 1) % step == 0 for old in kept]
        steps = range(1, len(kept) + 2)
        fits = (s for s in steps if [(i + 1) % s == 0 for i in range(len(kept))] == wanted)
        facts["moe_layer_interval"] = next(fits, step)  # a pattern that none fits is refused later


def _difference(wanted: Any, found: Any, path: str = "") -> str:
    """The first field that was written and reads otherwise; empty where there is none."""
    if isinstance(wanted, dict) and isinstance(found, dict):
        if wanted and all(str(key).isdigit() for key in wanted):
            wanted = {str(int(key)): value for key, value in wanted.items()}
            found = {str(int(key)): value for key, value in found.items() if str(key).isdigit()}
        for key, value in wanted.items():
            if key in ("transformers_version", "dtype", "architectures"):
                continue
            if difference := _difference(value, found.get(key), f"{path}.{key}".lstrip(".")):
                return difference
        return ""
    return "" if wanted == found else path


def _told(layers: tuple[int, ...]) -> str:
    return ", ".join(map(str, layers)) if len(layers) <= 12 else f"{layers[0]} to {layers[-1]}"


def _sentence(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
