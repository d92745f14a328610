"""Any decoder's parts, what is refused, and running parts of a model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import (
    ARCHITECTURES,
    FAMILIES,
    VOCABULARY,
    count_layer_passes,
    final_norm_of,
    layers_of,
    plain_logits,
    skipping,
    state_of,
    tiny,
    tiny_tokenizer,
    tiny_windows,
)
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM

from depthprune_core import models
from depthprune_core.decoders import checkpointed, decoder, hidden_states, passing, recording, replaced, slice_config

IDS = tiny_windows().inputs


# ---------------------------------------------------------------- anatomy


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_decoder_finds_the_layers_and_computes_the_models_own_logits(name):
    model = tiny(name)
    parts = decoder(model)
    assert parts.layers is layers_of(model)
    assert model.get_submodule(parts.layers_name) is parts.layers
    with torch.no_grad():
        ours = parts.logits(parts.base(input_ids=IDS, use_cache=False).last_hidden_state)
    torch.testing.assert_close(ours, plain_logits(model, IDS), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["gemma2", "llama", "gpt2"])
def test_decoder_accepts_a_model_in_bfloat16(name):
    assert len(decoder(tiny(name).to(torch.bfloat16)).layers) == 5


def test_the_probe_sees_whether_a_layer_returns_a_tuple_or_a_bare_tensor():
    assert {name: decoder(tiny(name)).returns_tuple for name in ("gpt2", "llama", "bloom")} == {
        "gpt2": False,
        "llama": False,
        "bloom": True,
    }


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("name", FAMILIES)
def test_decoder_knows_whether_the_head_is_tied_to_the_embedding(name, tie):
    assert decoder(tiny(name, tie_word_embeddings=tie)).tied is tie


@pytest.mark.parametrize("name", FAMILIES)
def test_looking_for_the_parts_changes_neither_the_model_nor_the_random_state(name):
    model = tiny(name).train()
    unchanged, random_state = state_of(model), torch.get_rng_state()
    decoder(model)
    assert unchanged()
    assert torch.equal(torch.get_rng_state(), random_state)


# ---------------------------------------------------------------- what is refused


def tiny_t5() -> nn.Module:
    return AutoModelForSeq2SeqLM.from_config(
        AutoConfig.for_model("t5", d_model=16, d_kv=4, d_ff=16, num_layers=2, num_heads=4, vocab_size=32)
    )


def tiny_bert(kind: type) -> nn.Module:
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 32}
    return kind.from_config(AutoConfig.for_model("bert", **shape))


def tiny_mamba() -> nn.Module:
    shape = {"hidden_size": 16, "state_size": 4, "num_hidden_layers": 2, "vocab_size": 32, "conv_kernel": 2}
    return AutoModelForCausalLM.from_config(AutoConfig.for_model("mamba", **shape))


_HYBRID = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 32,
    "pad_token_id": None,
}
_WITH_A_STATE = {
    "mamba": {"hidden_size": 16, "state_size": 4, "num_hidden_layers": 2, "vocab_size": 32, "conv_kernel": 2},
    "rwkv": {"hidden_size": 16, "attention_hidden_size": 16, "num_hidden_layers": 2, "vocab_size": 32, "rescale_every": 1},
    "falcon_h1": {**_HYBRID, "mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1},
    "jamba": {**_HYBRID, "attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 2},
    "bamba": {**_HYBRID, "attn_layer_indices": [1], "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8},
    "minimax": _HYBRID,
}


@pytest.mark.parametrize("name", _WITH_A_STATE)
def test_a_model_that_carries_a_state_is_refused_and_left_as_it_was(name):
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **_WITH_A_STATE[name])).eval()
    unchanged = state_of(model)
    with pytest.raises(
        ValueError, match=r"carries a state from token to token .* only transformer decoders can be pruned here$"
    ):
        decoder(model)
    assert unchanged()


@pytest.mark.parametrize(
    "make",
    [
        tiny_t5,
        lambda: tiny_bert(AutoModelForCausalLM),
        lambda: tiny_bert(AutoModelForMaskedLM),
        tiny_mamba,
        lambda: tiny("gemma3_text", use_bidirectional_attention=True),
    ],
    ids=["encoder-decoder", "encoder-with-lm-head", "encoder", "state-space", "bidirectional"],
)
def test_what_is_no_decoder_is_refused_in_one_sentence(make):
    with pytest.raises(ValueError) as refusal:
        decoder(make().eval())
    assert "\n" not in str(refusal.value) and 20 < len(str(refusal.value)) < 200


def test_a_backbone_without_a_head_is_refused():
    with pytest.raises(ValueError, match="no language-model head"):
        decoder(tiny("llama").model)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_head_that_is_no_linear_map_is_refused(name):
    model = tiny(name)
    model.lm_head = nn.Sequential(model.lm_head, nn.Tanh())
    with pytest.raises(
        ValueError, match=r"^\w+ has a head that is no linear map \(Sequential\), so it cannot be measured here$"
    ):
        decoder(model)


def test_a_model_with_broken_weights_is_refused(model):
    final_norm_of(model).weight.data[3] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        decoder(model)


def test_scaling_attention_by_the_layers_number_is_refused():
    model = tiny("gpt2", scale_attn_by_inverse_layer_idx=True)
    with pytest.raises(ValueError, match="scale_attn_by_inverse_layer_idx"):
        slice_config(model.config, (0, 2, 3))


# ---------------------------------------------------------------- config


@pytest.mark.parametrize("name", ["qwen2", "qwen3", "gemma2", "gemma3_text"])
def test_layer_types_are_those_of_the_kept_layers(name):
    config = tiny(name).config
    before = list(config.layer_types)
    assert set(before) == {"full_attention", "sliding_attention"}
    new = slice_config(config, (1, 3, 4))
    assert new.num_hidden_layers == 3
    assert new.layer_types == [before[1], before[3], before[4]]
    assert config.layer_types == before and config.num_hidden_layers == len(before)


def test_a_list_of_token_ids_is_not_mistaken_for_one_entry_a_layer():
    config = tiny("llama", num_hidden_layers=4, eos_token_id=[5, 6, 7, 8]).config
    assert slice_config(config, (0, 2)).eos_token_id == [5, 6, 7, 8]


# ---------------------------------------------------------------- running parts of a model


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_hidden_states_are_those_before_the_head(name):
    model = tiny(name)
    with torch.no_grad():
        expected = model(input_ids=IDS, use_cache=False, output_hidden_states=True).hidden_states[
            -1
        ]  # the last one is after the norm
        torch.testing.assert_close(hidden_states(model, IDS), expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_resuming_behind_any_layer_with_its_own_output_changes_nothing(name):
    model = tiny(name)
    with torch.no_grad():
        with recording(layers_of(model)) as inputs:
            whole = hidden_states(model, IDS)
        for layer in range(len(layers_of(model))):
            resumed = hidden_states(model, IDS, resume_after=layer, hidden=inputs[layer + 1])
            torch.testing.assert_close(resumed, whole, rtol=0, atol=0, msg=f"resumed after layer {layer}")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_passing_layers_are_skipped_layers(name):
    model = tiny(name)
    parts = decoder(model)
    with skipping(model, (0, 3)):
        expected = plain_logits(model, IDS)
    with replaced(parts.layers, {0: passing(parts), 3: passing(parts)}):
        torch.testing.assert_close(plain_logits(model, IDS), expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", FAMILIES)
def test_recorded_inputs_are_the_models_own_hidden_states_and_the_last_output_is_before_the_norm(name):
    model = tiny(name)
    n_layers = len(layers_of(model))
    with torch.no_grad(), recording(layers_of(model)) as inputs:
        states = model(input_ids=IDS, use_cache=False, output_hidden_states=True).hidden_states
    assert sorted(inputs) == list(range(n_layers + 1))
    for layer in range(n_layers):
        torch.testing.assert_close(inputs[layer], states[layer], rtol=0, atol=0)
    with torch.no_grad():
        torch.testing.assert_close(final_norm_of(model)(inputs[n_layers]), states[n_layers], rtol=0, atol=0)
    assert not torch.allclose(inputs[n_layers], states[n_layers], atol=1e-2)


@pytest.mark.parametrize("name", FAMILIES)
def test_an_error_inside_leaves_no_hook_and_no_replaced_forward(name):
    model = tiny(name)
    parts = decoder(model)
    unchanged = state_of(model)
    with pytest.raises(KeyboardInterrupt), recording(parts.layers), replaced(parts.layers, {1: passing(parts)}):
        raise KeyboardInterrupt
    assert unchanged()


def test_a_block_inside_another_gives_the_layers_back_to_the_outer_one(model):
    parts, unchanged = decoder(model), state_of(model)
    with skipping(model, (1, 2)):
        both = plain_logits(model, IDS)
    with skipping(model, (1,)):
        outer = plain_logits(model, IDS)
    plain = plain_logits(model, IDS)

    def returning_nothing(*args, **options):
        raise ValueError("the inner forward ran")

    with replaced(parts.layers, {1: passing(parts)}):
        with replaced(parts.layers, {2: passing(parts)}):
            torch.testing.assert_close(plain_logits(model, IDS), both, rtol=0, atol=0)
        for _ in range(2):
            with pytest.raises(ValueError, match="the inner forward ran"), replaced(parts.layers, {1: returning_nothing}):
                plain_logits(model, IDS)
            torch.testing.assert_close(plain_logits(model, IDS), outer, rtol=0, atol=0)
    torch.testing.assert_close(plain_logits(model, IDS), plain, rtol=0, atol=0)
    assert unchanged()


# ---------------------------------------------------------------- checkpointed layers


def loss_and_gradients(model) -> tuple[float, dict[str, torch.Tensor]]:
    loss = model(input_ids=IDS, labels=IDS, use_cache=False).loss
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return loss.item(), gradients


@pytest.mark.parametrize("training", [False, True], ids=["eval", "dropout"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_checkpointed_layers_change_neither_loss_nor_gradients(name, training):
    model = tiny(name, **({"attention_dropout": 0.1} if name == "llama" else {})).train(training)
    decoder(model)
    unchanged = state_of(model)
    torch.manual_seed(0)
    loss, gradients = loss_and_gradients(model)
    torch.manual_seed(0)
    with checkpointed(layers_of(model)):
        same_loss, same_gradients = loss_and_gradients(model)
    assert same_loss == loss and same_gradients.keys() == gradients.keys()
    for key, gradient in gradients.items():
        torch.testing.assert_close(same_gradients[key], gradient, rtol=0, atol=0, msg=key)
    assert unchanged()


def test_the_backward_pass_may_come_after_the_block(model):
    _, expected = loss_and_gradients(model)
    with checkpointed(layers_of(model)):
        loss = model(input_ids=IDS, labels=IDS, use_cache=False).loss
    loss.backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, expected[name], rtol=0, atol=0)


def test_checkpointed_layers_compute_their_inside_again_and_passed_ones_do_not(model):
    parts, passes = decoder(model), count_layer_passes(model)
    with checkpointed(parts.layers), replaced(parts.layers, {0: passing(parts), 2: passing(parts)}):
        hidden_states(model, IDS).sum().backward()
    assert passes == [1, 3, 4, 4, 3, 1]


def test_checkpointed_layers_keep_their_input_alone_for_the_backward_pass(model):
    def bytes_kept() -> int:
        kept: dict[int, int] = {}

        def note(tensor: torch.Tensor) -> torch.Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            hidden = hidden_states(model, IDS)
        assert hidden.requires_grad
        own = {p.untyped_storage().data_ptr() for p in model.parameters()}
        return sum(n_bytes for pointer, n_bytes in kept.items() if pointer not in own)

    plainly = bytes_kept()
    with checkpointed(layers_of(model)):
        assert bytes_kept() < plainly / 5


# ---------------------------------------------------------------- loading and counting


@pytest.fixture
def folder(model, tmp_path) -> Path:
    """A model as `save_pretrained` leaves it, with a tokenizer."""
    model.save_pretrained(tmp_path / "saved")
    tiny_tokenizer().save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def test_a_saved_folder_loads_as_the_same_model_with_its_tokenizer(model, folder, tmp_path):
    loaded, tokenizer = models.load(str(folder), cache=tmp_path)
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
        {name: tensor for name, tensor in weights.items() if name != gone}, folder / "model.safetensors", {"format": "pt"}
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
    assert {n_layers: models.shape(name, n_layers=n_layers).num_parameters() for n_layers in counts} == counts
    assert models.shape(name).num_parameters() == counts[max(counts)]


@pytest.mark.parametrize(("name", "layer_parameters"), [("gpt2-shape", 7_087_872), ("tinyllama-1.1b-shape", 44_044_288)])
def test_a_shape_is_a_model_of_that_depth_without_weights(name, layer_parameters):
    whole, shallow = models.shape(name), models.shape(name, n_layers=3)
    assert shallow.config.num_hidden_layers == 3
    assert all(tensor.is_meta for model in (whole, shallow) for tensor in (*model.parameters(), *model.buffers()))
    assert whole.num_parameters() - shallow.num_parameters() == layer_parameters * (whole.config.num_hidden_layers - 3)
    tied = whole.get_output_embeddings().weight is whole.get_input_embeddings().weight
    assert tied is whole.config.tie_word_embeddings


def test_the_depth_of_a_model_is_known_before_its_weights_are_there(folder):
    depths = {
        name: models.depth(name) for name in ("gpt2", "gpt2-mini", "smollm2-135m", "llama-tiny", "distilgpt2", str(folder))
    }
    assert list(depths.values()) == [12, 12, 30, 6, 0, 5]


@pytest.mark.parametrize("get", [models.load, models.fetch_only])
def test_a_folder_that_holds_no_decoder_is_refused_before_it_is_loaded_too(tmp_path, get):
    shape = {"hidden_size": 16, "state_size": 4, "num_hidden_layers": 2, "vocab_size": VOCABULARY, "conv_kernel": 2}
    AutoModelForCausalLM.from_config(AutoConfig.for_model("mamba", **shape)).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=r"carries a state from token to token .* only transformer decoders can be pruned here$"
    ):
        get(str(tmp_path), cache=tmp_path)


@pytest.fixture
def bundled(tmp_path, monkeypatch) -> Path:
    """A copy of the bundled model that a test may spoil."""
    shutil.copytree(models.BUNDLED / "gpt2-mini", tmp_path / "gpt2-mini")
    monkeypatch.setattr(models, "BUNDLED", tmp_path)
    return tmp_path / "gpt2-mini"


@pytest.mark.parametrize("get", [models.load, models.fetch_only])
@pytest.mark.parametrize("file", models.BUNDLED_SHA256)
def test_a_bundled_file_with_one_bit_flipped_is_refused_by_name(bundled, tmp_path, file, get):
    content = bytearray((bundled / file).read_bytes())
    content[len(content) // 2] ^= 1
    (bundled / file).write_bytes(content)
    with pytest.raises(ValueError) as refusal:
        get("gpt2-mini", cache=tmp_path)
    told = str(refusal.value)
    assert told.startswith(f"model gpt2-mini: {bundled / file} has sha256 ")
    assert told.endswith(f", expected {models.BUNDLED_SHA256[file]}: restore it, with `git checkout` for example")


@pytest.mark.parametrize("name", ["gpt2-mini", "llama-tiny"])
def test_a_bundled_file_that_is_missing_is_named(bundled, tmp_path, name):
    (bundled / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"^model gpt2-mini: .*tokenizer\.json is missing: restore it"):
        models.fetch_only(name, cache=tmp_path)


def test_a_size_is_not_counted_on_a_config_that_was_changed(bundled):
    (bundled / "config.json").write_text((bundled / "config.json").read_text().replace("12", "13"))
    with pytest.raises(ValueError, match=r"config\.json has sha256"):
        models.shape("gpt2-mini")


@pytest.mark.parametrize("name", ["distilgpt2", "gpt-7"])
def test_a_model_without_a_shape_of_its_own_cannot_be_counted(name):
    with pytest.raises(ValueError, match=f"model '{name}' has no shape to count: name one of gpt2, "):
        models.shape(name)
