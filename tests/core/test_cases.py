"""Real models whose cuts once went wrong, and the check of every cut."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import (
    BYTES,
    layers_of,
    plain_logits,
    plan_of,
    saved,
    tiny,
    tiny_windows,
)
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    Emu3Config,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)

from depthprune_core import models, pruning
from depthprune_core.anatomy import anatomy
from depthprune_core.configs import slice_config
from depthprune_core.guard import check_saved
from depthprune_core.probing import probe_ids
from depthprune_core.records import Plan

IDS = tiny_windows().inputs

# ---------------------------------------------------------------- the guard


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("by", ["number", "count"])
def test_layers_that_depend_on_their_number_or_count_are_refused(family, by, monkeypatch):
    """Only the logits show it, not names, shapes or settings."""
    kind = type(layers_of(tiny(family))[0])
    begin, forward = kind.__init__, kind.forward

    def with_config(self, config, layer_idx=None):
        begin(self, config, layer_idx)
        self._number = layer_idx if by == "number" else config.num_hidden_layers

    def by_number(self, hidden_states, *args, **options):
        return hidden_states + (1 + 0.001 * self._number) * (
            forward(self, hidden_states, *args, **options) - hidden_states
        )

    monkeypatch.setattr(kind, "__init__", with_config)
    monkeypatch.setattr(kind, "forward", by_number)
    model = tiny(family)
    with pytest.raises(ValueError, match=r"without layers 1 computes something else .* number"):
        pruning.drop_layers(model, plan_of(model, 1))


def test_one_tensor_for_all_layers_is_refused(monkeypatch):
    kind = type(tiny("llama").model)
    begin = kind.__init__

    def with_table(self, config):
        begin(self, config)
        self.table = nn.Parameter(torch.zeros(config.num_hidden_layers, 4))

    monkeypatch.setattr(kind, "__init__", with_table)
    model = tiny("llama")
    with pytest.raises(ValueError, match=r"one tensor for all its layers \(model\.table\)"):
        pruning.drop_layers(model, plan_of(model, 1))


def test_a_part_of_a_larger_model_is_refused_before_any_work():
    """AutoModelForCausalLM takes it out of the larger model, but opens no folder of it alone."""
    shape = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 4, "intermediate_size": 48}
    shape |= {"num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 2}
    model = AutoModelForCausalLM.from_config(Emu3Config(text_config=shape))
    with pytest.raises(ValueError, match=r"part of a larger model: .* Emu3TextConfig alone"):
        pruning.check_droppable(model)


def test_a_window_longer_than_the_probe_is_checked_by_its_setting(monkeypatch):
    model = tiny("mistral", sliding_window=4_096)
    kind = type(layers_of(model)[0].self_attn)
    begin = kind.__init__

    def every_other(self, config, layer_idx):
        begin(self, config, layer_idx)
        self.window = config.sliding_window if layer_idx % 2 else 0

    monkeypatch.setattr(kind, "__init__", every_other)
    model = tiny("mistral", sliding_window=4_096)
    with pytest.raises(
        ValueError, match=r"self_attn\.window of layer 2 would be 4096 instead of 0$"
    ):
        pruning.drop_layers(model, plan_of(model, 1))
    pruning.drop_layers(model, plan_of(model, 4))  # without the last, none moves
    pruning.check_droppable(model)


def test_the_probe_is_twice_as_long_as_a_small_window_and_names_no_special_token():
    ids = probe_ids(tiny("mistral", sliding_window=20, bos_token_id=3, eos_token_id=5))
    assert ids.shape == (2, 40) and not {3, 5} & set(ids.flatten().tolist())
    assert torch.equal(ids[0, :-1], ids[1, :-1]) and ids[0, -1] != ids[1, -1]
    assert probe_ids(tiny("llama", max_position_embeddings=8)).shape == (2, 8)
    assert probe_ids(tiny("mpt", max_position_embeddings=None, max_seq_len=8)).shape == (2, 8)


def test_a_folder_that_opens_as_another_model_is_refused(model, tmp_path):
    student = pruning.drop_layers(model, plan_of(model, 1))
    check_saved(student, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    name = next(key for key in tensors if "mlp" in key and key.endswith("weight"))
    tensors[name][0] += 0.1
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=f"opens with another tensor .*{name.split('.', 1)[1]}"):
        check_saved(student, tmp_path)


def test_a_config_that_opens_as_another_model_is_refused_though_the_weights_agree(tmp_path):
    model = tiny("mistral", sliding_window=6)
    student = pruning.drop_layers(model, plan_of(model, 1))
    check_saved(student, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "sliding_window": 4}))
    with pytest.raises(ValueError, match="opens as a model that computes something else"):
        check_saved(student, tmp_path)


def test_a_folder_in_a_coarser_dtype_is_the_same_student(model, tmp_path):
    student = pruning.drop_layers(model, plan_of(model, 1))
    coarse = pruning.drop_layers(model, plan_of(model, 1)).to(torch.bfloat16)
    coarse.save_pretrained(tmp_path)
    check_saved(student, tmp_path)


# ---------------------------------------------------------------- weights


@pytest.mark.parametrize("share", [False, True])
def test_two_different_tensors_under_a_tied_flag_stay_two(share, tmp_path):
    folder = saved(
        tiny("llama", tie_word_embeddings=False, vocab_size=BYTES),
        tmp_path / "whole",
        tie_word_embeddings=True,
    )
    teacher = models.load(str(folder), cache=tmp_path).model
    nothing = pruning.drop_layers(teacher, Plan(5, (), "none"), share=share)
    assert torch.equal(plain_logits(nothing, IDS), plain_logits(teacher, IDS))
    student = pruning.drop_layers(teacher, plan_of(teacher, 1), share=share)
    assert student.config.tie_word_embeddings is False
    check_saved(student, tmp_path / "student")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "student")
    assert again.get_output_embeddings().weight is not again.get_input_embeddings().weight


def test_remote_code_of_a_known_model_is_reported_and_not_referenced(tmp_path):
    code = {"AutoConfig": "configuration_phi3.C", "AutoModelForCausalLM": "modeling_phi3.M"}
    folder = saved(tiny("phi3", vocab_size=BYTES), tmp_path / "phi3", auto_map=code)
    teacher = models.load(str(folder), cache=tmp_path)
    assert "auto_map" in teacher.note and "is not run" in teacher.note
    check_saved(pruning.drop_layers(teacher.model, plan_of(teacher.model, 1)), tmp_path / "out")
    assert "auto_map" not in (tmp_path / "out" / "config.json").read_text()


# ---------------------------------------------------------------- configs


FIVE = [5, 6, 7, 8, 9]
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}


@pytest.mark.parametrize(
    ("kind", "facts", "dropped", "wanted"),
    [
        ("qwen3_moe", {"mlp_only_layers": [0, 3], **MOE}, (1,), {"mlp_only_layers": [0, 2]}),
        ("llama4_text", {"moe_layers": [1, 3]}, (0, 1), {"moe_layers": [1]}),
        ("deepseek_v3", {"first_k_dense_replace": 2}, (0, 3), {"first_k_dense_replace": 1}),
        ("deepseek_v3", {"first_k_dense_replace": 2}, (3,), {"first_k_dense_replace": 2}),
        ("afmoe", {"num_dense_layers": 2}, (0, 1), {"num_dense_layers": 0}),
        (
            "qwen3_moe",
            {"decoder_sparse_step": 2, "mlp_only_layers": [3]},
            (0,),  # of 0 dense, 1 sparse, 2 dense, 3 dense by name, 4 dense
            {"decoder_sparse_step": 1, "mlp_only_layers": [1, 2, 3]},
        ),
        (
            "qwen3_moe",
            {"decoder_sparse_step": 2, "mlp_only_layers": [3, 1, 9]},
            (0,),  # the model passes over layer 9, which it has not
            {"decoder_sparse_step": 1, "mlp_only_layers": [0, 1, 2, 3]},
        ),
        ("qwen3_moe", {"mlp_only_layers": [3, 0], **MOE}, (1,), {"mlp_only_layers": [0, 2]}),
        ("llama", {"eos_token_id": FIVE}, (1,), {"eos_token_id": FIVE}),  # one a layer, by chance
    ],
)
def test_per_layer_settings_of_a_config_follow_the_layers(kind, facts, dropped, wanted):
    config = tiny(kind, num_key_value_heads=4, **facts).config
    new = slice_config(config, tuple(layer for layer in range(5) if layer not in dropped))
    assert {name: getattr(new, name) for name in wanted} == wanted


@pytest.mark.parametrize(
    ("kind", "facts", "scale"),
    [("granite", {"logits_scaling": 8.0}, 1 / 8), ("cohere", {"logit_scale": 0.3}, 0.3)],
)
def test_a_constant_scale_of_the_logits_is_found_and_applied(kind, facts, scale):
    model = tiny(kind, **facts)
    parts = anatomy(model)
    assert parts.scale == scale
    with torch.no_grad():
        hidden = parts.base(input_ids=IDS, use_cache=False).last_hidden_state
        ours, some = parts.logits(hidden), parts.logits(hidden, slice(3, 9))
    torch.testing.assert_close(ours, plain_logits(model, IDS), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(some, ours[..., 3:9], rtol=1e-5, atol=1e-6)
    assert anatomy(pruning.drop_layers(model, plan_of(model, 1))).scale == scale


def test_a_scale_before_a_softcap_is_found_and_applied(monkeypatch):
    model = tiny("gemma2", final_logit_softcapping=5.0)
    head = model.lm_head
    monkeypatch.setattr(head, "forward", lambda x: 0.5 * nn.functional.linear(x, head.weight))
    parts = anatomy(model)
    assert parts.softcap == 5.0 and parts.scale == pytest.approx(0.5, rel=1e-3)
    with torch.no_grad():
        hidden = parts.base(input_ids=IDS, use_cache=False).last_hidden_state
        ours = parts.logits(hidden)
    torch.testing.assert_close(ours, plain_logits(model, IDS), rtol=2e-3, atol=2e-3)


# ---------------------------------------------------------------- where the layers are


def test_a_tower_for_images_is_not_taken_for_the_decoder(tmp_path):
    text = {"vocab_size": 128, "hidden_size": 32, "num_hidden_layers": 5, "intermediate_size": 48}
    text |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    text |= {"bos_token_id": 0, "eos_token_id": 0}
    text |= {"rope_scaling": {"rope_type": "default", "mrope_section": [1, 1, 2]}}
    tower = {"depth": 5, "hidden_size": 32, "out_hidden_size": 32, "num_heads": 2}
    tower |= {"intermediate_size": 32, "fullatt_block_indexes": [1]}
    words = ("image", "video", "vision_start", "vision_end")
    special = {f"{word}_token_id": 127 - i for i, word in enumerate(words)}
    config = Qwen2_5_VLConfig(text_config=text, vision_config=tower, **special)
    model = Qwen2_5_VLForConditionalGeneration(config).eval()
    assert anatomy(model).layers_name == "model.language_model.layers"
    student = pruning.drop_layers(model, Plan(5, (1, 3), "by hand"))
    assert len(student.model.visual.blocks) == 5 and len(anatomy(student).layers) == 3
    check_saved(student, tmp_path)


def test_layers_that_return_a_list_are_cut_as_any_other():
    model = tiny("openai-gpt", n_embd=32, n_layer=5, n_head=4, n_positions=64)
    parts = anatomy(model)
    assert isinstance(parts.layers, nn.ModuleList) and parts.returns_tuple
    hook = parts.layers[1].register_forward_hook(lambda module, args, out: [args[0], *out[1:]])
    expected = plain_logits(model, IDS)
    hook.remove()
    student = pruning.drop_layers(model, Plan(5, (1,), "by hand"))
    torch.testing.assert_close(plain_logits(student, IDS), expected, rtol=1e-5, atol=1e-5)


def test_a_model_without_a_layer_that_can_go_is_refused_when_it_is_loaded(tmp_path):
    model = tiny("gpt2", scale_attn_by_inverse_layer_idx=True, vocab_size=BYTES)
    folder = saved(model, tmp_path / "gpt2")
    for get in (models.load, models.fetch_only):
        with pytest.raises(ValueError, match=r"no layer of model .* can be dropped: scale_attn"):
            get(str(folder), cache=tmp_path)
