"""Model folders that are not whole: each is refused in one sentence that names it, none is used."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import FAMILIES, tiny, tiny_tokenizer
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from depthprune_core import folders, models

UP, DOWN, EMBEDDING = (
    "model.layers.2.mlp.up_proj.weight",
    "model.layers.2.mlp.down_proj.weight",
    "model.embed_tokens.weight",
)
FAULTS: dict[str, tuple[Callable[[Path], Any], str]] = {}
MARKER = "remote-code-was-run"


def fault(sentence: str) -> Callable[[Callable[[Path], Any]], Callable[[Path], Any]]:
    def add(spoil: Callable[[Path], Any]) -> Callable[[Path], Any]:
        FAULTS[spoil.__name__] = spoil, sentence
        return spoil

    return add


def weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def config(folder: Path, **changes: Any) -> None:
    values = json.loads((folder / "config.json").read_text(encoding="utf-8")) | changes
    (folder / "config.json").write_text(json.dumps(values), encoding="utf-8")


def spoil_number(folder: Path, name: str, value: float) -> None:
    weights(folder, lambda tensors: tensors[name].view(-1).__setitem__(-1, value))


def remote(folder: Path) -> None:
    (folder / "evil.py").write_text(f"open({str(folder / MARKER)!r}, 'w').close()\n")


@fault("missing keys")
def a_missing_tensor(folder: Path) -> None:
    weights(folder, lambda tensors: tensors.pop(UP))


@fault("unexpected keys")
def an_extra_tensor(folder: Path) -> None:
    weights(folder, lambda tensors: tensors.update(more=torch.zeros(3)))


@fault(f"tensor {DOWN} has shape (48, 32), its config wants (32, 48)")
def swapped_tensors(folder: Path) -> None:
    weights(
        folder,
        lambda tensors: tensors.update({UP: tensors[DOWN].clone(), DOWN: tensors[UP].clone()}),
    )


@fault(f"tensor {UP} holds numbers that are not finite")
def a_nan_in_a_layer(folder: Path) -> None:
    spoil_number(folder, UP, float("nan"))


@fault(f"tensor {EMBEDDING} holds numbers that are not finite")
def a_nan_in_a_row_of_the_embedding(folder: Path) -> None:
    spoil_number(folder, EMBEDDING, float("nan"))


@fault("tensor lm_head.weight holds numbers that are not finite")
def an_infinity_in_a_row_of_the_head(folder: Path) -> None:
    spoil_number(folder, "lm_head.weight", float("inf"))


@fault("holds no .safetensors file")
def pickled_weights_alone(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


@fault("is not one that transformers knows")
def a_model_of_remote_code(folder: Path) -> None:
    remote(folder)
    config(
        folder,
        model_type="evil",
        auto_map={"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"},
    )


@fault("its tokenizer has 5,000 tokens, but the model embeds 128")
def a_tokenizer_of_another_model(folder: Path) -> None:
    words = Tokenizer(
        WordLevel({"<s>": 0, **{f"w{i}": i for i in range(1, 5_000)}}, unk_token="<s>")
    )
    PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<s>", eos_token="<s>"
    ).save_pretrained(folder)


@fault("cannot be read")
def half_a_tokenizer(folder: Path) -> None:
    path = folder / "tokenizer.json"
    path.write_bytes(path.read_bytes()[:-100])


@fault("cannot be read")
def a_tokenizer_of_another_kind(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"more": 1}')


@fault("mismatched keys")
def a_misshapen_tensor_under_its_short_name(folder: Path) -> None:
    weights(
        folder,
        lambda tensors: tensors.update(
            {
                name.removeprefix("model."): tensors.pop(name)
                for name in list(tensors)
                if name.startswith("model.")
            }
            | {UP.removeprefix("model."): torch.zeros(3, 3)}
        ),
    )


@fault("holds no tokenizer")
def no_tokenizer(folder: Path) -> None:
    for file in folder.glob("*token*"):
        file.unlink()


@fault("holds no config.json")
def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


@fault("is not one that transformers knows")
def half_a_config(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "llama",')


@fault("holds a t5: only causal language models")
def the_config_of_another_kind(folder: Path) -> None:
    config(folder, model_type="t5")


@fault("is not one that transformers knows")
def a_config_without_a_kind(folder: Path) -> None:
    (folder / "config.json").write_text('{"hidden_size": 32}')


@fault("is not one that transformers knows")
def a_config_that_divides_by_zero(folder: Path) -> None:
    config(folder, num_attention_heads=0)


@fault("no model can be built from its config.json")
def a_config_that_makes_no_sense(folder: Path) -> None:
    config(folder, hidden_act="nothing")


@fault("are damaged")
def weights_cut_short(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5_000])


@fault("are damaged")
def empty_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"")


@fault("missing keys")
def a_config_of_more_layers(folder: Path) -> None:
    config(folder, num_hidden_layers=7)


@fault("unexpected keys")
def a_config_of_fewer_layers(folder: Path) -> None:
    config(folder, num_hidden_layers=3)


@fault("has shape (128, 32), its config wants (64, 32)")
def a_config_of_another_vocabulary(folder: Path) -> None:
    config(folder, vocab_size=64)


@fault("model-00002-of-00002.safetensors is missing, which model.safetensors.index.json names")
def a_part_that_is_missing(folder: Path) -> None:
    (folder / folders.INDEX).write_text(
        json.dumps({"weight_map": {UP: "model-00002-of-00002.safetensors"}})
    )


@fault("model.safetensors.index.json is damaged")
def a_damaged_index(folder: Path) -> None:
    (folder / folders.INDEX).write_text("[]")


@fault("is quantised (bitsandbytes): layers are dropped from whole-precision weights")
def a_quantised_model(folder: Path) -> None:
    config(folder, quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True})


@fault("holds an adapter (adapter_config.json) beside the model")
def an_adapter_beside_the_model(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")


@fault("holds an adapter (adapter_config.json) and no model: merge it into its base model")
def an_adapter_alone(folder: Path) -> None:
    (folder / "config.json").rename(folder / "adapter_config.json")


@fault("CTRLTokenizer) has no fast version")
def a_slow_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    letters = {letter + "</w>": i for i, letter in enumerate("abcdefghij", 1)}
    (folder / "vocab.json").write_text(json.dumps({"<unk>": 0, **letters}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    kind = {"tokenizer_class": "CTRLTokenizer", "unk_token": "<unk>", "bos_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(kind))


@fault("LlamaConfig would not be written when the model is saved, so nothing was begun")
def a_config_that_cannot_be_written_again(folder: Path) -> None:
    config(folder, output_attentions=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "a model"
    tiny("llama").save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


def read(folder: Path, cache: Path) -> None:
    folders.check(folder)
    models.load(str(folder), cache=cache)


@pytest.mark.parametrize("name", FAULTS)
def test_a_spoilt_folder_is_refused_in_a_sentence(name: str, folder: Path, tmp_path: Path) -> None:
    spoil, sentence = FAULTS[name]
    spoil(folder)
    with pytest.raises(ValueError) as error:
        read(folder, tmp_path)
    said = str(error.value)
    assert sentence in said and "a model" in said
    assert "\n" not in said and len(said) < 600
    assert not (folder / MARKER).exists()


@pytest.mark.parametrize("name", FAULTS)
def test_a_spoilt_folder_is_refused_before_the_first_run(
    name: str, folder: Path, tmp_path: Path
) -> None:
    spoil, sentence = FAULTS[name]
    models.fetch_only(str(folder), cache=tmp_path)
    spoil(folder)
    with pytest.raises(ValueError) as error:
        models.fetch_only(str(folder), cache=tmp_path)
    said = str(error.value)
    assert sentence in said and "a model" in said
    assert "\n" not in said and len(said) < 600
    assert not (folder / MARKER).exists()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_whole_folder_is_looked_through_without_its_weights_in_memory(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny(family).save_pretrained(tmp_path, max_shard_size="20KB")
    tiny_tokenizer().save_pretrained(tmp_path)
    seen: list[Any] = []
    monkeypatch.setattr(
        folders, "check_fit", lambda model, tokenizer, name: seen.extend(model.parameters())
    )
    models.fetch_only(str(tmp_path), cache=tmp_path)
    assert seen and all(p.is_meta for p in seen)


def test_code_that_lies_beside_a_known_model_is_not_run(folder: Path, tmp_path: Path) -> None:
    remote(folder)
    config(folder, auto_map={"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"})
    read(folder, tmp_path)
    assert not (folder / MARKER).exists()


def test_pickled_weights_beside_good_ones_are_not_read(folder: Path, tmp_path: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"no pickle at all")
    read(folder, tmp_path)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_whole_folder_is_let_through(family: str, tmp_path: Path) -> None:
    tiny(family).save_pretrained(tmp_path, max_shard_size="20KB")
    tiny_tokenizer().save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    read(tmp_path, tmp_path)


def test_the_bundled_model_is_whole() -> None:
    folders.check(models.BUNDLED / "gpt2-mini")
