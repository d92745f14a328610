"""A folder becomes a GGUF file that computes the same, or is refused in a sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from tiny import FAMILIES, plan_of, tiny, tiny_tokenizer
from tokenizers import Tokenizer, normalizers, pre_tokenizers, trainers
from tokenizers import models as models_of_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast
from typer.testing import CliRunner

from depthprune_core import gguf_files, models, pruning
from depthprune_study import cli, own, to_gguf

MINI = models.BUNDLED / "gpt2-mini"


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(MINI)


def of_pieces(prefix: str = "normalizer") -> PreTrainedTokenizerFast:
    """A tokenizer as Llama 2 has it, of a few hundred pieces: bytes for what it does not know, every way to make a piece is a merge."""
    trained = Tokenizer(models_of_tokenizers.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    trained.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    first = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=first, show_progress=False)
    trained.train_from_iterator(
        ["the layers of a model are dropped, one by one, and the rest learns again  " * 3, __doc__ or ""], trainer
    )
    vocabulary = trained.get_vocab()
    ways = [
        (token[:cut], token[cut:], index)
        for token, index in vocabulary.items()
        for cut in range(1, len(token))
        if token not in first and token[:cut] in vocabulary and token[cut:] in vocabulary
    ]
    merges = [(left, right) for left, right, _ in sorted(ways, key=lambda way: way[2])]
    made = Tokenizer(models_of_tokenizers.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    if prefix == "normalizer":
        made.normalizer = trained.normalizer
    else:
        made.pre_tokenizer = pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme=prefix, split=False)
    made.add_special_tokens(first[:3])
    made.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


WORDS = ("the layers of a model", "In 1984, don't", "n\u00e9e \u00b7 12\n\n34", "and again")


@pytest.mark.parametrize("prefix", ["normalizer", "first", "never"])
def test_a_tokenizer_of_pieces_is_written_with_scores_and_bytes(prefix: str, tmp_path: Path) -> None:
    tokenizer = of_pieces(prefix)
    to_gguf.convert(saved(tmp_path / "model", tiny("llama", vocab_size=len(tokenizer)), tokenizer), tmp_path / "model.gguf")
    fields = {name: field.contents() for name, field in GGUFReader(tmp_path / "model.gguf").fields.items()}
    assert (fields["tokenizer.ggml.model"], fields["tokenizer.ggml.add_space_prefix"]) == ("llama", prefix != "never")
    assert [fields[f"tokenizer.ggml.{name}_token_id"] for name in ("unknown", "bos", "eos")] == [0, 1, 2]
    kinds = fields["tokenizer.ggml.token_type"]
    assert kinds[:3] == [2, 3, 3] and set(kinds[3:259]) == {6} and set(kinds[259:]) == {1}
    scores = dict(zip(fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.scores"], strict=True))
    for words in WORDS:  # by hand: of all neighbours that make a piece, the one with the highest score, the first of these
        pieces = list(("" if prefix == "never" else "\u2581") + words.replace(" ", "\u2581"))
        while ways := [i for i in range(len(pieces) - 1) if pieces[i] + pieces[i + 1] in scores]:
            best = max(ways, key=lambda i: (scores[pieces[i] + pieces[i + 1]], -i))
            pieces[best : best + 2] = [pieces[best] + pieces[best + 1]]
        in_bytes = [[piece] if piece in scores else [f"<0x{byte:02X}>" for byte in piece.encode()] for piece in pieces]
        assert [token for piece in in_bytes for token in piece] == tokenizer.tokenize(words)


@pytest.mark.parametrize("spoilt", ["a way is missing", "two pieces in turn", "a piece that nothing makes"])
def test_pieces_whose_merges_are_no_scores_are_refused(spoilt: str, tmp_path: Path) -> None:
    tokenizer = of_pieces()
    folder = saved(tmp_path / "model", tiny("llama", vocab_size=len(tokenizer)), tokenizer)
    told = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    merges = told["model"]["merges"]
    if spoilt == "a piece that nothing makes":
        told["model"]["merges"] = merges[:-1]
    else:
        several = next(i for i in range(len(merges) - 1) if "".join(merges[i]) == "".join(merges[i + 1]))
        told["model"]["merges"] = merges[:several] + merges[several + 1 :] + ([] if "missing" in spoilt else [merges[several]])
    (folder / "tokenizer.json").write_text(json.dumps(told), encoding="utf-8")
    assert "nor one of pieces as Llama 2 has it" in refused(folder, tmp_path / "model.gguf")


def saved(folder: Path, model: Any, tokenizer: Any) -> Path:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(5, 40)[None]).logits


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("kind", "tolerance"), [("f32", 1e-5), ("f16", 1e-2)])
def test_the_file_computes_what_the_folder_does(
    family: str, kind: str, tolerance: float, tokenizer: Any, tmp_path: Path
) -> None:
    model = tiny(family, vocab_size=len(tokenizer))
    opened = to_gguf.convert(saved(tmp_path / "model", model, tokenizer), tmp_path / "model.gguf", kind=kind)
    wanted = logits(model)
    torch.testing.assert_close(logits(opened), wanted, rtol=0, atol=tolerance * float(wanted.abs().max()))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "model.gguf"]


def test_the_file_says_what_the_config_says(tokenizer: Any, tmp_path: Path) -> None:
    for family in FAMILIES:
        model = tiny(family, vocab_size=len(tokenizer))
        to_gguf.convert(saved(tmp_path / family, model, tokenizer), tmp_path / f"{family}.gguf")
    gpt2, llama = (
        {name: field.contents() for name, field in GGUFReader(tmp_path / f"{family}.gguf").fields.items()}
        for family in FAMILIES
    )
    shape = {"context_length": 64, "embedding_length": 32, "block_count": 5, "attention.head_count": 4}
    assert {name: gpt2[f"gpt2.{name}"] for name in shape} == {name: llama[f"llama.{name}"] for name in shape} == shape
    assert (gpt2["gpt2.feed_forward_length"], llama["llama.feed_forward_length"]) == (128, 48)
    assert gpt2["gpt2.attention.layer_norm_epsilon"] == pytest.approx(1e-5)
    assert llama["llama.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-6)
    assert (llama["llama.attention.head_count_kv"], llama["llama.rope.dimension_count"]) == (2, 8)
    assert llama["llama.rope.freq_base"] == 10_000
    assert len(gpt2["tokenizer.ggml.tokens"]) == len(gpt2["tokenizer.ggml.token_type"]) == len(tokenizer)


@pytest.mark.parametrize("tied", [True, False])
def test_a_tied_head_is_written_once(tied: bool, tokenizer: Any, tmp_path: Path) -> None:
    model = tiny("llama", vocab_size=len(tokenizer), tie_word_embeddings=tied)
    opened = to_gguf.convert(saved(tmp_path / "model", model, tokenizer), tmp_path / "model.gguf", kind="f32")
    names = [tensor.name for tensor in GGUFReader(tmp_path / "model.gguf").tensors]
    assert ("output.weight" in names) == (not tied)
    assert opened.num_parameters() == model.num_parameters()


@pytest.mark.parametrize("family", FAMILIES)
def test_cutting_the_file_equals_writing_the_cut_model(family: str, tokenizer: Any, tmp_path: Path) -> None:
    model = tiny(family, vocab_size=len(tokenizer))
    cut = pruning.drop_layers(model, plan_of(model, 1, 3))
    to_gguf.convert(saved(tmp_path / "whole", model, tokenizer), tmp_path / "whole.gguf", kind="f16")
    to_gguf.convert(saved(tmp_path / "cut", cut, tokenizer), tmp_path / "written.gguf", kind="f16")
    gguf_files.cut(tmp_path / "whole.gguf", tmp_path / "cut.gguf", [1, 3])
    ours, theirs = ({t.name: t.data for t in GGUFReader(tmp_path / f"{name}.gguf").tensors} for name in ("cut", "written"))
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)


def test_the_tokenizer_in_the_file_is_the_folders(tmp_path: Path, tokenizer: Any) -> None:
    to_gguf.convert(MINI, tmp_path / "mini.gguf")
    read = AutoTokenizer.from_pretrained(tmp_path, gguf_file="mini.gguf")
    for words in ("The capital of France", "in 1984, don't", "née · 12\n\n34", "  two spaces"):
        assert read(words, add_special_tokens=False).input_ids == tokenizer(words, add_special_tokens=False).input_ids
    assert read.eos_token == tokenizer.eos_token


def test_the_bundled_model_computes_the_same_from_a_file(tmp_path: Path) -> None:
    opened = to_gguf.convert(MINI, tmp_path / "mini.gguf", kind="f16")
    model = AutoModelForCausalLM.from_pretrained(MINI, dtype=torch.float32)
    assert torch.equal(logits(opened).argmax(-1), logits(model).argmax(-1))


# ---------------------------------------------------------------- refusals


def refused(folder: Path, target: Path, **options: Any) -> str:
    with pytest.raises(ValueError) as error:
        to_gguf.convert(folder, target, **options)
    assert not target.exists()
    return str(error.value)


def test_another_architecture_or_type_is_refused(tokenizer: Any, tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", tiny("opt", vocab_size=len(tokenizer)), tokenizer)
    assert "holds a opt: GGUF files are written for llama, gpt2" in refused(folder, tmp_path / "model.gguf")
    assert "type 'q4' is not known: name one of f32, f16" in refused(folder, tmp_path / "model.gguf", kind="q4")


def test_a_tokenizer_that_is_no_byte_level_bpe_is_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", tiny("llama"), tiny_tokenizer())
    assert "is no byte-level BPE that splits words as GPT-2 or SmolLM do" in refused(folder, tmp_path / "model.gguf")


@pytest.mark.parametrize(
    ("family", "changes", "sentence"),
    [
        ("llama", {"attention_bias": True}, "a Llama with biases"),
        ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "rope_type='linear'"),
        ("llama", {"hidden_act": "relu"}, "hidden_act='relu'"),
        ("gpt2", {"activation_function": "relu"}, "activation_function='relu'"),
        ("gpt2", {"scale_attn_weights": False}, "scaled in another way"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scaled in another way"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(
    family: str, changes: dict[str, Any], sentence: str, tokenizer: Any, tmp_path: Path
) -> None:
    folder = saved(tmp_path / "model", tiny(family, vocab_size=len(tokenizer), **changes), tokenizer)
    assert sentence in refused(folder, tmp_path / "model.gguf")


@pytest.mark.parametrize("n_layers", [3, 7])
def test_a_config_of_another_depth_than_the_weights_is_refused(n_layers: int, tokenizer: Any, tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", tiny("llama", vocab_size=len(tokenizer)), tokenizer)
    config = json.loads((folder / "config.json").read_text()) | {"num_hidden_layers": n_layers}
    (folder / "config.json").write_text(json.dumps(config))
    assert "so this is another model" in refused(folder, tmp_path / "model.gguf")


@pytest.mark.parametrize(
    "changes",
    [
        {"normalizer": {"type": "NFC"}},
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "use_regex": True, "trim_offsets": True}},
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False, "trim_offsets": True}},
    ],
)
def test_a_tokenizer_that_splits_words_otherwise_is_refused(changes: dict[str, Any], tokenizer: Any, tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", tiny("gpt2", vocab_size=len(tokenizer)), tokenizer)
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")
    assert "is no byte-level BPE that splits words as GPT-2 or SmolLM do" in refused(folder, tmp_path / "model.gguf")


def test_a_tokenizer_whose_tokens_are_a_list_is_refused(tokenizer: Any, tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", tiny("llama", vocab_size=len(tokenizer)), tokenizer)
    path = folder / "tokenizer.json"
    told = json.loads(path.read_text(encoding="utf-8"))
    told["model"] = {"type": "Unigram", "unk_id": 0, "vocab": [[token, -1.0] for token in told["model"]["vocab"]]}
    path.write_text(json.dumps(told), encoding="utf-8")
    assert "is no byte-level BPE that splits words as GPT-2 or SmolLM do" in refused(folder, tmp_path / "model.gguf")


ADDED = {
    "nothing": ([], (False, False)),
    "its first token": (["<|endoftext|>", "$A"], (True, False)),
    "both": (["<|endoftext|>", "$A", "<|endoftext|>"], (True, True)),
    "another token": (["!", "$A"], None),
}


@pytest.mark.parametrize("added", ADDED)
def test_what_the_tokenizer_adds_to_a_text_is_said_in_the_file(added: str, tmp_path: Path) -> None:
    template, expected = ADDED[added]
    tokenizer = AutoTokenizer.from_pretrained(MINI)
    if template:
        special = [(token, tokenizer.convert_tokens_to_ids(token)) for token in set(template) - {"$A"}]
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=" ".join(template), special_tokens=special)
    tokenizer.chat_template = "{{ messages[0].content }}"
    folder, target = saved(tmp_path / "model", tiny("gpt2", vocab_size=len(tokenizer)), tokenizer), tmp_path / "model.gguf"
    if expected is None:
        assert "can say of its first and last token alone that they are added" in refused(folder, target)
        return
    to_gguf.convert(folder, target)
    fields = {name: field.contents() for name, field in GGUFReader(target).fields.items()}
    assert tuple(fields[f"tokenizer.ggml.add_{which}_token"] for which in ("bos", "eos")) == expected
    assert fields["tokenizer.chat_template"] == tokenizer.chat_template


def test_nothing_is_overwritten(tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "mine.gguf").write_text("mine")
    with pytest.raises(ValueError, match="is there already"):
        to_gguf.convert(MINI, tmp_path / "mine.gguf")
    assert (tmp_path / "mine.gguf").read_text() == "mine"


def test_a_number_too_large_for_f16_is_refused(tokenizer: Any, tmp_path: Path) -> None:
    model = tiny("llama", vocab_size=len(tokenizer))
    model.model.layers[1].mlp.up_proj.weight.data[0, 0] = 1e6
    folder = saved(tmp_path / "model", model, tokenizer)
    assert "tensor blk.1.ffn_up.weight reaches 1e+06, which f16 cannot hold: write f32" in refused(folder, tmp_path / "m.gguf")


def test_a_file_that_computes_something_else_is_not_left_there(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(to_gguf, "_turned_pairwise", lambda data, n_heads: data)
    folder = saved(tmp_path / "model", tiny("llama", vocab_size=len(tokenizer)), tokenizer)
    assert "does not compute what the folder does" in refused(folder, tmp_path / "model.gguf")
    assert json.loads((folder / "config.json").read_text())["model_type"] == "llama"


def depthprune(*words: object) -> tuple[int, str]:
    result = CliRunner().invoke(cli.app, [*map(str, words)])
    return result.exit_code, result.output + result.stderr


def test_a_model_that_was_cut_and_recovered_becomes_a_file_that_computes_what_its_folder_does(
    tokenizer: Any, tmp_path: Path
) -> None:
    base, out, target = (
        saved(tmp_path / "base", tiny("llama", vocab_size=len(tokenizer)), tokenizer),
        tmp_path / "out",
        tmp_path / "x.gguf",
    )
    (tmp_path / "words.txt").write_text(
        "".join(f"a{i} bc {i * i} over and over again\n" for i in range(3_000)), encoding="utf-8"
    )
    options = {"seq_len": 32, "batch_tokens": 64, "say": lambda line: None}
    own.prune(str(base), text_name=str(tmp_path / "words.txt"), out=out, drop=1, recover_tokens=256, **options)
    code, said = depthprune("to-gguf", out, target, "--type", "f32")
    assert code == 0 and "opened, and its logits compared\n" in said
    opened = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=target.name, dtype=torch.float32)
    torch.testing.assert_close(logits(opened), logits(AutoModelForCausalLM.from_pretrained(out)), rtol=0, atol=1e-5)


def test_a_command_whose_file_computes_something_else_says_so_by_its_exit_code(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = saved(tmp_path / "model", tiny("llama", vocab_size=len(tokenizer)), tokenizer)
    monkeypatch.setattr(to_gguf, "_turned_pairwise", lambda data, n_heads: data)
    code, said = depthprune("to-gguf", folder, tmp_path / "model.gguf")
    assert code == 1 and "does not compute what the folder does" in said and "Traceback" not in said
    assert not (tmp_path / "model.gguf").exists()
