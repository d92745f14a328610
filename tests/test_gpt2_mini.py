"""The bundled stand-in: what it is, and that it is a language model at all."""

from __future__ import annotations

import json
import lzma
import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2LMHeadModel

from depthprune_core import evaluation, models, text
from depthprune_study import places

FOLDER = models.BUNDLED / "gpt2-mini"


@pytest.fixture(scope="module")
def articles() -> dict[str, list[text.Document]]:
    return text.split_named("wikipedia-excerpt", cache=places.cache(), assets=places.assets())


@pytest.fixture(scope="module")
def loaded() -> tuple[GPT2LMHeadModel, dict]:
    """By plain transformers: nothing of ours."""
    return AutoModelForCausalLM.from_pretrained(FOLDER, output_loading_info=True, dtype=torch.float32)


def card() -> str:
    return (FOLDER / "README.md").read_text(encoding="utf-8")


def test_it_loads_plain_with_no_key_missing_and_none_over(loaded: tuple[GPT2LMHeadModel, dict]) -> None:
    model, info = loaded
    assert isinstance(model, GPT2LMHeadModel)
    assert [info[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys")] == [set()] * 3


def test_it_has_twelve_layers_and_few_parameters(loaded: tuple[GPT2LMHeadModel, dict]) -> None:
    model, _ = loaded
    assert len(model.transformer.h) == model.config.n_layer == 12
    assert model.num_parameters() <= 5_900_000


def test_it_is_small_enough_for_a_repository() -> None:
    assert (FOLDER / "model.safetensors").stat().st_size <= 12_000_000
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 13_000_000


def test_every_file_that_is_read_of_it_is_pinned() -> None:
    assert set(models.BUNDLED_SHA256) == {path.name for path in FOLDER.iterdir() if path.suffix in {".safetensors", ".json"}}


def test_its_weights_are_safetensors_alone() -> None:
    assert {path.suffix for path in FOLDER.iterdir()} <= {".safetensors", ".json", ".md", ".ipynb"}


def test_its_tokenizer_gives_every_text_back() -> None:
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    for sample in ("The cat sat.", " Żółta łódź — 東京 😀\n\tx"):
        assert tokenizer.decode(tokenizer(sample).input_ids) == sample


def test_its_tokenizer_has_as_many_tokens_as_the_model_has_rows(loaded: tuple[GPT2LMHeadModel, dict]) -> None:
    assert len(AutoTokenizer.from_pretrained(FOLDER)) == loaded[0].get_input_embeddings().num_embeddings


def test_its_card_lists_exactly_the_recovery_articles() -> None:
    listed = card().split("articles:\n")[1].strip().removesuffix(".")
    splits = json.loads(text.SPLITS_FILE.read_text(encoding="utf-8"))
    assert listed == ", ".join(entry["title"] for entry in splits["recovery"])


def test_its_card_says_what_it_is_not() -> None:
    assert "Its numbers say nothing about GPT-2 124M" in card()
    assert "CC BY-SA" in card()


@pytest.mark.slow
def test_it_predicts_unseen_articles_better_than_a_primed_compressor(
    loaded: tuple[GPT2LMHeadModel, dict], articles: dict[str, list[text.Document]]
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    score = evaluation.score(loaded[0], text.windows(articles["test"], tokenizer, seq_len=256), batch_size=16)
    per_byte = xz_bits_per_byte(articles)
    assert score.n_bytes == tuple(len(d.text.encode()) for d in articles["test"])
    assert score.bits_per_byte <= 0.97 * per_byte
    assert f"{score.bits_per_byte:.3f}" in card() or f"{score.bits_per_byte:.4f}" in card()


def xz_bits_per_byte(articles: dict[str, list[text.Document]]) -> float:
    """What `xz -9e`, primed with the recovery articles, adds for the test articles."""

    def size(documents: list[text.Document]) -> int:
        joined = "\n\n".join(document.text for document in documents).encode()
        return len(lzma.compress(joined, preset=9 | lzma.PRESET_EXTREME))

    added = size(articles["recovery"] + articles["test"]) - size(articles["recovery"])
    return 8 * added / sum(len(document.text.encode()) for document in articles["test"])


def test_dropping_a_layer_costs_something(
    loaded: tuple[GPT2LMHeadModel, dict], articles: dict[str, list[text.Document]]
) -> None:
    from depthprune_core import sensitivity

    windows = text.windows(articles["calibration"], AutoTokenizer.from_pretrained(FOLDER), seq_len=256, tokens_per_document=256)
    rises = sensitivity.profile(loaded[0], windows, gradients=False).drop_one
    assert min(rises) > 0
    assert max(rises) > math.log(2)


def test_its_training_is_in_the_repository() -> None:
    notebook = json.loads((FOLDER / "train.ipynb").read_text(encoding="utf-8"))
    assert "distillation.recover(" in "".join("".join(cell["source"]) for cell in notebook["cells"])


def test_the_named_model_is_this_one(tmp_path: Path, loaded: tuple[GPT2LMHeadModel, dict]) -> None:
    model, _ = models.load("gpt2-mini", cache=tmp_path)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), loaded[0].parameters(), strict=True))
    assert list(tmp_path.iterdir()) == []
