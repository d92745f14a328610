"""Drops layers from a GGUF file; no tensor is dequantised or changed."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader, GGUFValueType, GGUFWriter

from depthprune_core.records import Plan

# Architectures in which llama.cpp treats all layers the same. In others (gemma 2 and 3, smollm3,
# cohere2) every nth layer differs.
LAYERS_ALIKE = (
    *("llama", "gpt2", "qwen2", "qwen3", "gptneox"),
    *("bloom", "falcon", "starcoder2", "stablelm", "phi2"),
)
DROPPED = "depthprune.dropped_layers"  # counted from 0 in the file that was cut
_ARCHITECTURE = "general.architecture"
_OF_A_LAYER = re.compile(r"blk\.(\d+)\.(.+)")
# In a file with one of these keys, a layer's computation depends on its number.
_BY_NUMBER = (
    *("sliding_window", "interleave", "full_attention_interval"),
    *("leading_dense_block_count", "nextn_predict", "ssm."),
)


def cut(source: Path, target: Path, dropped: Iterable[int]) -> Plan:
    """Write `target`: the model of `source` without some layers (counted from 0); returns the plan.

    Tensors of kept layers are copied byte for byte and renumbered; the layer count and every
    per-layer list are updated. The key `depthprune.dropped_layers` stores the dropped numbers.
    The file is checked under a temporary name before it is renamed.

    Raises ValueError for an incomplete GGUF model, an architecture whose layers differ, or layers
    that the model does not have; RuntimeError if the written file is wrong.
    """
    source, target = Path(source), Path(target)
    if target.exists():
        raise ValueError(f"{target} exists already and is not overwritten: name another file")
    reader = _read(source)
    plan = _plan(source, reader, dropped)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".cut-") as folder:
        written = Path(folder) / target.name
        _write(written, reader, plan)
        check(written, source, plan)
        os.replace(written, target)
    return plan


def check(path: Path, source: Path, plan: Plan) -> None:
    """Raises RuntimeError unless `path` equals `source` without the plan's layers."""
    ours, theirs = _read(path), _read(source)
    wanted = dict(_kept(theirs, plan))
    found = {tensor.name: tensor for tensor in ours.tensors}
    if found.keys() != wanted.keys():
        others = sorted(found.keys() ^ wanted.keys())[:3]
        raise RuntimeError(f"{path} has missing or unexpected tensors: {others}")
    for name, tensor in wanted.items():
        copy = found[name]
        same_kind = copy.tensor_type == tensor.tensor_type
        same_shape = copy.shape.tolist() == tensor.shape.tolist()
        if not (same_kind and same_shape and np.array_equal(copy.data, tensor.data)):
            raise RuntimeError(f"{path}: tensor {name} differs from {source}")
    has, should = _fields(ours), {key: value for key, (value, *_) in _values(theirs, plan).items()}
    if differing := [key for key, value in should.items() if repr(has.get(key)) != repr(value)]:
        raise RuntimeError(f"{path} has wrong values: {sorted(differing)[:3]}")


def _read(path: Path) -> GGUFReader:
    if not Path(path).is_file():
        raise ValueError(f"{path} does not exist, or is not a file")
    try:
        reader = GGUFReader(path)
        reader.fields[_ARCHITECTURE]
    except Exception as error:  # the library raises many kinds for a damaged file
        reason = f"{type(error).__name__}: {str(error)[:80]}"
        raise ValueError(f"{path} is not a complete GGUF model file ({reason})") from None
    return reader


def _plan(path: Path, reader: GGUFReader, dropped: Iterable[int]) -> Plan:
    fields = _fields(reader)
    kind = fields[_ARCHITECTURE]
    if (n := fields.get("split.count", 1)) not in (0, 1):
        raise ValueError(f"{path} is one of {n} parts: merge them first (gguf-split --merge)")
    if DROPPED in fields:
        gone = fields[DROPPED]
        raise ValueError(f"layers {gone} were already dropped from {path}: cut the original file")
    if kind not in LAYERS_ALIKE:
        known = ", ".join(LAYERS_ALIKE)
        raise ValueError(
            f"{path} has the architecture {kind!r}: layers can only be dropped from {known}, "
            "where llama.cpp treats all layers the same"
        )
    n_layers = fields.get(f"{kind}.block_count")
    if not isinstance(n_layers, int):
        raise ValueError(f"{path} does not give the number of layers of its {kind} model")
    _check_alike(path, reader, n_layers)
    plan = Plan(n_layers, tuple(dropped), "named")
    if not plan.dropped:
        raise ValueError(f"no layers to drop from {path}: name at least one")
    return plan


def _check_alike(path: Path, reader: GGUFReader, n_layers: int) -> None:
    for name in reader.fields:
        if any(word in name for word in _BY_NUMBER):
            raise ValueError(
                f"{path} has the key {name}: its layers depend on their numbers, so none can be "
                "dropped"
            )
    parts: dict[int, set[tuple[str, tuple[int, ...]]]] = {layer: set() for layer in range(n_layers)}
    for tensor in reader.tensors:
        if (match := _OF_A_LAYER.fullmatch(tensor.name)) is None:
            if "blk." in tensor.name:
                raise ValueError(
                    f"{path} has the tensor {tensor.name}: only plain decoders can be cut"
                )
            continue
        parts.setdefault(int(match[1]), set()).add((match[2], tuple(tensor.shape.tolist())))
    if set(parts) != set(range(n_layers)) or len(set(map(frozenset, parts.values()))) != 1:
        raise ValueError(
            f"{path} cannot be cut: its layers are not all alike, or their number is not {n_layers}"
        )


def _kept(reader: GGUFReader, plan: Plan) -> Iterator[tuple[str, Any]]:
    """New name -> tensor of the source, for all kept tensors."""
    number = {old: new for new, old in enumerate(plan.kept)}
    for tensor in reader.tensors:
        match = _OF_A_LAYER.fullmatch(tensor.name)
        if match is None:
            yield tensor.name, tensor
        elif (old := int(match[1])) in number:
            yield f"blk.{number[old]}.{match[2]}", tensor


def _fields(reader: GGUFReader) -> dict[str, Any]:
    """The file's keys and values, without those that the library adds."""
    fields = reader.fields.items()
    return {name: field.contents() for name, field in fields if not name.startswith("GGUF.")}


def _values(
    reader: GGUFReader, plan: Plan
) -> dict[str, tuple[Any, GGUFValueType, GGUFValueType | None]]:
    """Keys of the cut file -> value, type and (for a list) the type of its entries."""
    prefix = f"{_fields(reader)[_ARCHITECTURE]}."
    values = {}
    for name, value in _fields(reader).items():
        kind, *inner = reader.fields[name].types
        is_list = name.startswith(prefix) and kind == GGUFValueType.ARRAY
        if name == f"{prefix}block_count":
            value = len(plan.kept)
        elif is_list and len(value) == plan.n_layers:
            value = [value[layer] for layer in plan.kept]
        values[name] = value, kind, inner[-1] if inner else None
    return values


def _write(path: Path, reader: GGUFReader, plan: Plan) -> None:
    values = _values(reader, plan)
    writer = GGUFWriter(path, arch=values.pop(_ARCHITECTURE)[0], endianess=reader.endianess)
    writer.data_alignment = int(reader.alignment)
    try:
        for name, (value, kind, inner) in values.items():
            writer.add_key_value(name, value, kind, sub_type=inner)
        writer.add_array(DROPPED, list(plan.dropped))
        kept = list(_kept(reader, plan))
        for name, tensor in kept:
            data = tensor.data
            writer.add_tensor_info(name, data.shape, data.dtype, data.nbytes, tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for _, tensor in kept:
            writer.write_tensor_data(tensor.data, tensor_endianess=reader.endianess)
    finally:
        writer.close()
