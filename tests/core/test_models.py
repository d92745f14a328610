"""Loading named models and folders, and counting them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from tiny import BYTES, FAMILIES, plain_logits, saved, tiny, tiny_windows

from depthprune_core import models, obtaining

IDS = tiny_windows().inputs


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_folder_loads_as_the_same_model_with_its_tokenizer(family, tmp_path):
    model = tiny(family, vocab_size=BYTES)
    teacher = models.load(str(saved(model, tmp_path / "saved")), cache=tmp_path)
    assert teacher.start == 0 and not teacher.model.training
    assert torch.equal(plain_logits(teacher.model, IDS), plain_logits(model, IDS))
    assert len(teacher.tokenizer("w3 w5").input_ids) == 5


def test_an_unknown_name_is_refused_with_the_known_ones(tmp_path):
    with pytest.raises(ValueError, match=r"'gpt5' is not known.*smollm2-135m"):
        models.load("gpt5", cache=tmp_path)


# ---------------------------------------------------------------- shapes


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("gpt2-shape", {12: 124_439_808, 10: 110_264_064, 9: 103_176_192}),
        ("tinyllama-1.1b-shape", {22: 1_100_048_384, 20: 1_011_959_808, 19: 967_915_520}),
    ],
)
def test_parameter_counts_are_those_of_the_source(name, counts):
    shapes = {n_layers: models.shape(name, n_layers=n_layers) for n_layers in counts}
    assert {n_layers: shape.num_parameters() for n_layers, shape in shapes.items()} == counts
    whole = shapes[max(counts)]
    assert all(tensor.is_meta for tensor in (*whole.parameters(), *whole.buffers()))
    tied = whole.get_output_embeddings().weight is whole.get_input_embeddings().weight
    assert tied is whole.config.tie_word_embeddings


def test_the_depth_of_a_model_is_known_before_its_weights_are_there(tmp_path):
    folder = str(saved(tiny("llama"), tmp_path))
    depths = {
        name: models.depth(name)
        for name in ("gpt2", "gpt2-mini", "smollm2-135m", "llama-tiny", folder)
    }
    assert list(depths.values()) == [12, 12, 30, 6, 5]


# ---------------------------------------------------------------- the bundled model


@pytest.fixture
def bundled(tmp_path, monkeypatch) -> Path:
    """A copy of the bundled model that a test may damage."""
    shutil.copytree(obtaining.BUNDLED / "gpt2-mini", tmp_path / "gpt2-mini")
    monkeypatch.setattr(obtaining, "BUNDLED", tmp_path)
    return tmp_path / "gpt2-mini"


@pytest.mark.parametrize(
    ("file", "get"),
    [("model.safetensors", models.load), ("tokenizer_config.json", models.fetch_only)],
)
def test_a_bundled_file_with_one_bit_flipped_is_refused_by_name(bundled, tmp_path, file, get):
    content = bytearray((bundled / file).read_bytes())
    content[len(content) // 2] ^= 1
    (bundled / file).write_bytes(content)
    wanted = obtaining.BUNDLED_SHA256[file]
    with pytest.raises(
        ValueError, match=rf"^model gpt2-mini: .*{file} has sha256 .*, expected {wanted}: restore"
    ):
        get("gpt2-mini", cache=tmp_path)


@pytest.mark.parametrize("name", ["gpt2-mini", "llama-tiny"])
def test_a_bundled_file_that_is_missing_is_named(bundled, tmp_path, name):
    (bundled / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"^model gpt2-mini: .*tokenizer\.json .* it is missing"):
        models.fetch_only(name, cache=tmp_path)


# ---------------------------------------------------------------- dtypes


def test_each_tensors_dtype_in_the_file_is_known_whatever_the_config_says(tmp_path):
    model = tiny("llama", vocab_size=BYTES).to(torch.bfloat16)
    for name, p in model.named_parameters():
        if "norm" in name:
            p.data = p.data.float()
    folder = saved(model, tmp_path / "mixed")
    config = json.loads((folder / "config.json").read_text())
    config.pop("dtype")
    (folder / "config.json").write_text(json.dumps(config))
    teacher = models.load(str(folder), cache=tmp_path)
    assert {p.dtype for p in teacher.model.parameters()} == {torch.float32}
    dtypes = models.file_dtypes(teacher.model)
    assert dtypes.keys() == dict(teacher.model.named_parameters()).keys()
    norms = {dtype for name, dtype in dtypes.items() if "norm" in name}
    assert (norms, dtypes["lm_head.weight"]) == ({torch.float32}, torch.bfloat16)
    assert models.file_dtypes(tiny("gpt2")) == {}


# ---------------------------------------------------------------- where a document begins


class Words:
    """Replaces a tokenizer; has these special tokens."""

    def __init__(self, bos: int | None, eos: int | None) -> None:
        self.bos_token_id, self.eos_token_id = bos, eos

    def get_vocab(self) -> dict[str, int]:
        return {"<|endoftext|>": 7}

    def convert_tokens_to_ids(self, text: str) -> int:
        return self.get_vocab()[text]


def test_a_document_begins_with_the_named_token_else_with_bos_else_with_eos():
    assert models.document_start(Words(1, 2), "<|endoftext|>") == 7
    assert models.document_start(Words(0, 2)) == 0
    assert models.document_start(Words(None, 2)) == 2
    with pytest.raises(ValueError, match="neither a BOS nor an EOS token"):
        models.document_start(Words(None, None))
    with pytest.raises(ValueError, match="no token '<s>', which should begin a document"):
        models.document_start(Words(1, 2), "<s>")
    # SmolLM2's BOS is a chat marker.
    assert models.SOURCES["smollm2-135m"].document_start == "<|endoftext|>"
