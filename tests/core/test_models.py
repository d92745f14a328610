"""Loading named models and folders, and counting them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import VOCABULARY, plain_logits, tiny_tokenizer, tiny_windows
from transformers import AutoConfig, AutoModelForCausalLM

from depthprune_core import models, obtaining

IDS = tiny_windows().inputs


@pytest.fixture
def folder(model, tmp_path) -> Path:
    """A model as `save_pretrained` leaves it, with a tokenizer."""
    model.save_pretrained(tmp_path / "saved")
    tiny_tokenizer().save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def test_a_saved_folder_loads_as_the_same_model_with_its_tokenizer(model, folder, tmp_path):
    teacher = models.load(str(folder), cache=tmp_path)
    loaded, tokenizer = teacher.model, teacher.tokenizer
    assert teacher.start == 0
    assert not loaded.training
    torch.testing.assert_close(plain_logits(loaded, IDS), plain_logits(model, IDS), rtol=0, atol=0)
    assert tokenizer("w3 w5").input_ids == [3, 5]


def test_a_folder_with_pickled_weights_only_is_refused(folder, tmp_path):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"no \.safetensors file"):
        models.load(str(folder), cache=tmp_path)


def test_weights_with_a_missing_tensor_are_refused(folder, tmp_path):
    weights = load_file(folder / "model.safetensors")
    gone = next(name for name in weights if ".3." in name)
    save_file(
        {name: tensor for name, tensor in weights.items() if name != gone},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    with pytest.raises(ValueError, match="missing keys"):
        models.load(str(folder), cache=tmp_path)


def test_layers_without_their_config_are_refused(folder, tmp_path):
    """A config that says one layer less: Llama would drop the tail silently."""
    config = json.loads((folder / "config.json").read_text())
    count = "n_layer" if "n_layer" in config else "num_hidden_layers"
    (folder / "config.json").write_text(json.dumps({**config, count: config[count] - 1}))
    with pytest.raises(ValueError, match="unexpected keys"):
        models.load(str(folder), cache=tmp_path)


def test_an_unknown_name_is_refused_with_the_known_ones(tmp_path):
    with pytest.raises(ValueError, match=r"'gpt5' is not known.*smollm2-135m"):
        models.load("gpt5", cache=tmp_path)


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("gpt2-shape", {12: 124_439_808, 10: 110_264_064, 9: 103_176_192}),
        ("tinyllama-1.1b-shape", {22: 1_100_048_384, 20: 1_011_959_808, 19: 967_915_520}),
    ],
)
def test_parameter_counts_are_those_of_the_source(name, counts):
    assert {
        n_layers: models.shape(name, n_layers=n_layers).num_parameters() for n_layers in counts
    } == counts
    assert models.shape(name).num_parameters() == counts[max(counts)]


@pytest.mark.parametrize(
    ("name", "layer_parameters"), [("gpt2-shape", 7_087_872), ("tinyllama-1.1b-shape", 44_044_288)]
)
def test_a_shape_is_a_model_of_that_depth_without_weights(name, layer_parameters):
    whole, shallow = models.shape(name), models.shape(name, n_layers=3)
    assert shallow.config.num_hidden_layers == 3
    assert all(
        tensor.is_meta
        for model in (whole, shallow)
        for tensor in (*model.parameters(), *model.buffers())
    )
    assert whole.num_parameters() - shallow.num_parameters() == layer_parameters * (
        whole.config.num_hidden_layers - 3
    )
    tied = whole.get_output_embeddings().weight is whole.get_input_embeddings().weight
    assert tied is whole.config.tie_word_embeddings


def test_the_depth_of_a_model_is_known_before_its_weights_are_there(folder):
    depths = {
        name: models.depth(name)
        for name in ("gpt2", "gpt2-mini", "smollm2-135m", "llama-tiny", "distilgpt2", str(folder))
    }
    assert list(depths.values()) == [12, 12, 30, 6, 0, 5]


@pytest.mark.parametrize("get", [models.load, models.fetch_only])
def test_a_folder_that_holds_no_decoder_is_refused_before_it_is_loaded_too(tmp_path, get):
    shape = {
        "hidden_size": 16,
        "state_size": 4,
        "num_hidden_layers": 2,
        "vocab_size": VOCABULARY,
        "conv_kernel": 2,
    }
    AutoModelForCausalLM.from_config(AutoConfig.for_model("mamba", **shape)).save_pretrained(
        tmp_path
    )
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(
        ValueError,
        match=r"carries a state from token .* only transformer decoders can be pruned here$",
    ):
        get(str(tmp_path), cache=tmp_path)


@pytest.fixture
def bundled(tmp_path, monkeypatch) -> Path:
    """A copy of the bundled model that a test may spoil."""
    shutil.copytree(obtaining.BUNDLED / "gpt2-mini", tmp_path / "gpt2-mini")
    monkeypatch.setattr(obtaining, "BUNDLED", tmp_path)
    return tmp_path / "gpt2-mini"


@pytest.mark.parametrize("get", [models.load, models.fetch_only])
@pytest.mark.parametrize("file", obtaining.BUNDLED_SHA256)
def test_a_bundled_file_with_one_bit_flipped_is_refused_by_name(bundled, tmp_path, file, get):
    content = bytearray((bundled / file).read_bytes())
    content[len(content) // 2] ^= 1
    (bundled / file).write_bytes(content)
    with pytest.raises(ValueError) as refusal:
        get("gpt2-mini", cache=tmp_path)
    told = str(refusal.value)
    assert told.startswith(f"model gpt2-mini: {bundled / file} has sha256 ")
    assert told.endswith(
        f", expected {obtaining.BUNDLED_SHA256[file]}: restore it, with `git checkout` for example"
    )


@pytest.mark.parametrize("name", ["gpt2-mini", "llama-tiny"])
def test_a_bundled_file_that_is_missing_is_named(bundled, tmp_path, name):
    (bundled / "tokenizer.json").unlink()
    with pytest.raises(
        ValueError, match=r"^model gpt2-mini: .*tokenizer\.json is missing: restore it"
    ):
        models.fetch_only(name, cache=tmp_path)


def test_a_size_is_not_counted_on_a_config_that_was_changed(bundled):
    (bundled / "config.json").write_text((bundled / "config.json").read_text().replace("12", "13"))
    with pytest.raises(ValueError, match=r"config\.json has sha256"):
        models.shape("gpt2-mini")


@pytest.mark.parametrize("name", ["distilgpt2", "gpt-7"])
def test_a_model_without_a_shape_of_its_own_cannot_be_counted(name):
    with pytest.raises(
        ValueError, match=f"model '{name}' has no shape to count: name one of gpt2, "
    ):
        models.shape(name)


# ---------------------------------------------------------------- where a document begins


class Words:
    """Stands for a tokenizer with these special tokens."""

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


def test_a_tokenizer_without_such_a_token_is_refused():
    with pytest.raises(ValueError, match="neither a BOS nor an EOS token"):
        models.document_start(Words(None, None))
    with pytest.raises(ValueError, match="no token '<s>', which should begin a document"):
        models.document_start(Words(1, 2), "<s>")


def test_named_models_know_their_separator():
    starts = {name: source.document_start for name, source in models.SOURCES.items()}
    assert starts["smollm2-135m"] == starts["gpt2"] == "<|endoftext|>"
    assert starts["tinyllama-1.1b"] == "<s>"
