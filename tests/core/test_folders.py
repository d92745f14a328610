"""Incomplete model folders: each is refused in one sentence that names it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import FAMILIES, tiny, tiny_tokenizer
from transformers import AutoConfig

from depthprune_core import folders, models

LAYER = "model.layers.2.mlp."
UP, DOWN = f"{LAYER}up_proj.weight", f"{LAYER}down_proj.weight"
MARKER = "remote-code-was-run"
NAN, INFINITY = float("nan"), float("inf")


def weights(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return spoil


def number(name: str, value: float) -> Callable[[Path], None]:
    return weights(lambda tensors: tensors[name].view(-1).__setitem__(-1, value))


def config(**changes: Any) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        values = json.loads((folder / "config.json").read_text(encoding="utf-8")) | changes
        (folder / "config.json").write_text(json.dumps(values), encoding="utf-8")

    return spoil


def content(name: str, text: str | bytes) -> Callable[[Path], None]:
    text = text.encode() if isinstance(text, str) else text
    return lambda folder: (folder / name).write_bytes(text)


def cut_short(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-500])


def gone(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def pickled_weights_alone(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def remote_code(folder: Path) -> None:
    (folder / "evil.py").write_text(f"open({str(folder / MARKER)!r}, 'w').close()\n")
    config(auto_map={"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"})(folder)


def unknown_remote_code(folder: Path) -> None:
    remote_code(folder)
    config(model_type="evil")(folder)


def slow_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    content("vocab.json", '{"<unk>": 0, "a</w>": 1}')(folder)
    content("merges.txt", "#version: 0.2\n")(folder)
    kind = {"tokenizer_class": "CTRLTokenizer", "unk_token": "<unk>", "bos_token": "<unk>"}
    content("tokenizer_config.json", json.dumps(kind))(folder)


def many_words(folder: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([f"more{i}" for i in range(1_000)])
    tokenizer.save_pretrained(folder)


QUANTISED = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}
NO_CONFIG = "has no config.json that transformers knows"
OTHER_PART = json.dumps({"metadata": {}, "weight_map": {UP: "model-00002-of-00002.safetensors"}})
FAULTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a missing tensor": (weights(lambda tensors: tensors.pop(UP)), "missing keys"),
    "one more tensor": (weights(lambda t: t.update(more=torch.zeros(3))), "unexpected keys"),
    "another shape": (weights(lambda t: t.update({UP: torch.zeros(3, 3)})), "mismatched keys"),
    "NaN in a layer": (number(UP, NAN), f"tensor {UP} holds numbers that are not finite"),
    "NaN in a rare row": (number("model.embed_tokens.weight", NAN), "are not finite"),
    "an infinity": (number("lm_head.weight", INFINITY), "are not finite"),
    "weights cut short": (cut_short("model.safetensors"), "cannot be opened"),
    "empty weights": (content("model.safetensors", b""), "cannot be opened"),
    "pickled weights": (pickled_weights_alone, "model.safetensors"),
    "a missing part": (
        lambda folder: (
            gone("model.safetensors")(folder),
            content("model.safetensors.index.json", OTHER_PART)(folder),
        ),
        "model-00002-of-00002.safetensors",
    ),
    "no config": (gone("config.json"), NO_CONFIG),
    "half a config": (content("config.json", '{"model_type": "llama",'), NO_CONFIG),
    "a config without a kind": (content("config.json", '{"hidden_size": 32}'), NO_CONFIG),
    "a config of no kind": (content("config.json", '{"model_type": null}'), NO_CONFIG),
    "no config at all": (content("config.json", "[]"), NO_CONFIG),
    "float8": (weights(lambda t: t.update({UP: t[UP].to(torch.float8_e4m3fn)})), "(F8_E4M3): name"),
    "int8": (
        weights(lambda t: t.update({UP: t[UP].to(torch.int8)})),
        "is quantised (I8): name",
    ),
    "no heads": (config(num_attention_heads=0), NO_CONFIG),
    "no such activation": (config(hidden_act="none such"), "cannot be opened"),
    "another kind": (config(model_type="t5"), "T5Config"),
    "more layers": (config(num_hidden_layers=7), "missing keys"),
    "fewer layers": (config(num_hidden_layers=3), "unexpected keys"),
    "another vocabulary": (config(vocab_size=64), "mismatched keys"),
    "unwritable": (config(output_attentions=True), "LlamaConfig would not be written"),
    "remote code": (unknown_remote_code, NO_CONFIG),
    "quantised": (config(**QUANTISED), "is quantised (bitsandbytes): layers are dropped from"),
    "an adapter beside": (content("adapter_config.json", "{}"), "(adapter_config.json) beside"),
    "an adapter alone": (
        lambda folder: (folder / "config.json").rename(folder / "adapter_config.json"),
        "holds an adapter (adapter_config.json) and no model: merge it into its base model",
    ),
    "many words": (many_words, "its tokenizer has 1,128 tokens, but the model embeds 128"),
    "half a tokenizer": (cut_short("tokenizer.json"), "cannot be read"),
    "no tokenizer": (
        lambda folder: [file.unlink() for file in folder.glob("*token*")],
        "the tokenizer of",
    ),
    "a slow tokenizer": (slow_tokenizer, "CTRLTokenizer) has no fast version"),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "a model"
    tiny("llama").save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


@pytest.mark.parametrize(
    ("name", "get"),
    [*((name, models.fetch_only) for name in FAULTS), ("unwritable", models.load)],
)
def test_a_damaged_folder_is_refused_in_a_sentence(name, get, folder, tmp_path):
    spoil, sentence = FAULTS[name]
    spoil(folder)
    with pytest.raises(ValueError) as error:
        get(str(folder), cache=tmp_path)
    said = str(error.value)
    assert sentence in said and "a model" in said
    assert "\n" not in said and len(said) < 600
    assert not (folder / MARKER).exists()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_complete_folder_is_accepted_without_loading_its_weights(family, tmp_path):
    tiny(family).save_pretrained(tmp_path, max_shard_size="20KB")
    tiny_tokenizer().save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    outline, _ = folders.check(tmp_path)
    assert all(p.is_meta for p in outline.parameters())
    models.load(str(tmp_path), cache=tmp_path)


def test_an_infinite_number_in_a_config_is_read_as_the_library_writes_it(tmp_path):
    hybrid = AutoConfig.for_model("granitemoehybrid", time_step_limit=(0.0, float("inf")))
    hybrid.save_pretrained(tmp_path)
    assert tuple(folders.config_of(tmp_path).time_step_limit) == (0.0, float("inf"))


def test_code_and_pickles_beside_a_known_model_are_not_touched(folder, tmp_path):
    remote_code(folder)
    content("pytorch_model.bin", b"no pickle at all")(folder)
    folders.check(folder)
    models.load(str(folder), cache=tmp_path)
    assert not (folder / MARKER).exists()
