"""Dropping layers gives a model that always was that shallow, as plain transformers has it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import (
    ARCHITECTURES,
    FAMILIES,
    layers_of,
    plain_logits,
    plan_of,
    skipping,
    state_of,
    tiny,
    tiny_windows,
)
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from depthprune_core.decoder import mlp_outputs
from depthprune_core.pruning import drop_layers, share_equal, size
from depthprune_core.records import Plan

IDS = tiny_windows().inputs
CUTS = ((0,), (-1,), (1, 3), (0, 2))  # -1: the last layer


def cut(model: PreTrainedModel, dropped: tuple[int, ...]) -> Plan:
    n_layers = len(layers_of(model))
    return Plan(n_layers, tuple(layer % n_layers for layer in dropped), "by hand")


def reloaded(student: PreTrainedModel, folder) -> PreTrainedModel:
    """Saved and opened by plain transformers, which only reports what it had to draw at random."""
    student.save_pretrained(folder)
    again, info = AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True, attn_implementation=student.config._attn_implementation
    )
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    return again.eval()


# ---------------------------------------------------------------- the same, less the layers


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_dropping_nothing_changes_no_logit(name):
    model = tiny(name)
    student = drop_layers(model, Plan(len(layers_of(model)), (), "none"))
    assert torch.equal(plain_logits(student, IDS), plain_logits(model, IDS))


@pytest.mark.parametrize("dropped", CUTS, ids=str)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_dropped_layers_are_skipped_layers_and_stay_so_when_saved_and_reloaded(
    name, dropped, tmp_path
):
    model = tiny(name)
    plan = cut(model, dropped)
    student = drop_layers(model, plan)
    with skipping(model, plan.dropped):
        expected = plain_logits(model, IDS)
    assert (expected - plain_logits(model, IDS)).abs().mean() > 0.1  # the layers mattered
    torch.testing.assert_close(plain_logits(student, IDS), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(plain_logits(reloaded(student, tmp_path), IDS), plain_logits(student, IDS))
    assert student.config.num_hidden_layers == len(layers_of(student)) == len(plan.kept)


@pytest.mark.parametrize(
    ("dropped", "share"),
    [((0,), False), ((0, 2), False), ((1, 3), False), ((0, 2), True)],
    ids=["0", "0,2", "1,3", "shared"],
)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_cached_generation_matches_uncached_after_drop(name, dropped, share):
    """A stale layer number corrupts the KV cache, silently or with an IndexError."""
    model = tiny(name)
    student = drop_layers(model, plan_of(model, *dropped), share=share)
    prompt = IDS[:2, :5]
    options = {
        "max_new_tokens": 12,
        "do_sample": False,
        "return_dict_in_generate": True,
        "output_logits": True,
        "pad_token_id": 0,
    }
    mask = torch.ones_like(prompt)
    cached = student.generate(prompt, attention_mask=mask, use_cache=True, **options)
    uncached = student.generate(prompt, attention_mask=mask, use_cache=False, **options)
    assert torch.equal(cached.sequences, uncached.sequences) and cached.sequences.shape == (2, 17)
    for step, (with_cache, without) in enumerate(zip(cached.logits, uncached.logits, strict=True)):
        torch.testing.assert_close(with_cache, without, rtol=1e-4, atol=1e-4, msg=f"step {step}")
    whole = plain_logits(student, cached.sequences)[:, 4:-1]
    torch.testing.assert_close(torch.stack(cached.logits, 1), whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_layer_knows_its_new_number(name):
    model = tiny(name)
    student = drop_layers(model, plan_of(model, 0, 2))
    for number, layer in enumerate(layers_of(student)):
        assert {
            m.layer_idx for m in layer.modules() if getattr(m, "layer_idx", None) is not None
        } in ({number}, set())


def test_layer_numbers_are_looked_at_where_there_are_any():
    model = tiny("gpt2")
    student = drop_layers(model, plan_of(model, 0, 2))
    assert [layer.attn.layer_idx for layer in layers_of(student)] == [0, 1, 2]


@pytest.mark.parametrize("name", ["qwen2", "qwen3", "gemma2", "gemma3_text"])
def test_sliding_layers_still_slide_and_full_ones_do_not(name):
    model = tiny(name)
    plan = plan_of(model, 0, 3)
    kinds = [layer.self_attn.sliding_window for layer in layers_of(model)]
    assert {None, 6} == set(kinds)
    student = drop_layers(model, plan)
    assert [layer.self_attn.sliding_window for layer in layers_of(student)] == [
        kinds[layer] for layer in plan.kept
    ]
    assert student.config.layer_types == [model.config.layer_types[layer] for layer in plan.kept]


@pytest.mark.parametrize("name", FAMILIES)
def test_the_dropped_layers_go_and_not_the_tail(name, tmp_path):
    """What a changed config alone would do."""
    model = tiny(name)
    inner, tail = drop_layers(model, plan_of(model, 1, 2)), drop_layers(model, plan_of(model, 3, 4))
    difference = plain_logits(reloaded(inner, tmp_path), IDS) - plain_logits(tail, IDS)
    assert difference.abs().max() > 0.5


# ---------------------------------------------------------------- what stays as it was


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_original_and_the_random_state_are_untouched(name):
    model = tiny(name)
    unchanged, random_state = state_of(model), torch.get_rng_state()
    drop_layers(model, plan_of(model, 0, 2))
    assert unchanged()
    assert torch.equal(torch.get_rng_state(), random_state)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_training_the_student_leaves_the_original_as_it_was(name):
    model = tiny(name)
    unchanged = state_of(model)
    student = drop_layers(model, plan_of(model, 1))
    before = plain_logits(student, IDS)
    optimiser = torch.optim.SGD(student.parameters(), lr=0.1)
    student(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
    optimiser.step()
    assert (plain_logits(student, IDS) - before).abs().max() > 1e-3
    assert unchanged()


def test_the_student_may_be_trained_whatever_was_frozen_and_is_in_eval_mode(model):
    model.requires_grad_(False).train()
    student = drop_layers(model, plan_of(model, 1))
    assert all(p.requires_grad for p in student.parameters()) and not student.training


def test_generation_settings_are_carried_over_as_a_copy(model, tmp_path):
    model.generation_config.max_new_tokens = 7
    model.generation_config.eos_token_id = 9
    student = drop_layers(model, plan_of(model, 1))
    again = reloaded(student, tmp_path)
    assert (again.generation_config.max_new_tokens, again.generation_config.eos_token_id) == (7, 9)
    student.generation_config.max_new_tokens = 3
    assert model.generation_config.max_new_tokens == 7


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_student_keeps_the_dtype(model, dtype):
    student = drop_layers(model.to(dtype), plan_of(model, 1))
    assert {p.dtype for p in student.parameters()} == {dtype} == {student.config.dtype}


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_student_keeps_the_way_attention_is_computed(model, attention):
    model.set_attn_implementation(attention)
    assert drop_layers(model, plan_of(model, 1)).config._attn_implementation == attention


# ---------------------------------------------------------------- on the original's own weights


def tensors_in(held: Any) -> Iterator[torch.Tensor]:
    """Every tensor that a module holds, as whatever, in whatever containers."""
    if isinstance(held, torch.Tensor):
        yield held
    elif isinstance(held, nn.Module):
        yield from tensors_in(vars(held))
    elif isinstance(held, dict):
        yield from tensors_in(list(held.values()))
    elif isinstance(held, list | tuple | set):
        for item in held:
            yield from tensors_in(item)


@pytest.mark.parametrize("dropped", CUTS, ids=str)
@pytest.mark.parametrize("name", FAMILIES)
def test_a_student_that_shares_computes_what_a_copy_computes(name, dropped):
    model = tiny(name)
    plan, unchanged = cut(model, dropped), state_of(model)
    shared, copied = drop_layers(model, plan, share=True), drop_layers(model, plan)
    assert torch.equal(plain_logits(shared, IDS), plain_logits(copied, IDS)) and not shared.training
    assert shared.config.to_dict() == copied.config.to_dict()
    assert unchanged()


@pytest.mark.parametrize("tie", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_student_that_shares_holds_the_originals_tensors_and_no_other(name, tie):
    model = tiny(name, tie_word_embeddings=tie)
    plan = plan_of(model, 0, 2)
    student = drop_layers(model, plan, share=True)
    own = {id(p) for p in model.parameters()}
    assert all(id(p) in own for p in student.parameters())
    for new, old in enumerate(plan.kept):
        ours, theirs = layers_of(student)[new].state_dict(), layers_of(model)[old].state_dict()
        assert {key: t.data_ptr() for key, t in ours.items()} == {
            key: t.data_ptr() for key, t in theirs.items()
        }
    storages = {tensor.untyped_storage().data_ptr() for tensor in tensors_in(model)}
    assert {tensor.untyped_storage().data_ptr() for tensor in tensors_in(student)} <= storages


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_student_that_shares_holds_no_tensor_without_data(name):
    student = drop_layers((model := tiny(name)), plan_of(model, 1), share=True)
    held = list(tensors_in(student))
    assert {id(p) for p in (*student.parameters(), *student.buffers())} <= {
        id(tensor) for tensor in held
    }
    assert not any(tensor.is_meta for tensor in held)


def test_a_tensor_that_is_a_plain_attribute_is_shared_too(monkeypatch):
    kind = type(layers_of(tiny("llama"))[0])
    begin = kind.__init__

    def with_a_table(self, *args, **options):
        begin(self, *args, **options)
        self.table = torch.arange(3)

    monkeypatch.setattr(kind, "__init__", with_a_table)
    model = tiny("llama")
    student = drop_layers(model, plan_of(model, 1, 3), share=True)
    for new, old in enumerate((0, 2, 4)):
        assert layers_of(student)[new].table is layers_of(model)[old].table
    assert not any(tensor.is_meta for tensor in tensors_in(student))


# ---------------------------------------------------------------- tied heads


@pytest.mark.parametrize("name", FAMILIES)
def test_a_tied_head_is_one_parameter_and_stays_tied(name, tmp_path):
    model = tiny(name, tie_word_embeddings=True)
    student = drop_layers(model, plan_of(model, 0))
    embedding = student.get_input_embeddings().weight
    assert student.get_output_embeddings().weight is embedding
    assert embedding.data_ptr() != model.get_input_embeddings().weight.data_ptr()
    assert sum(p is embedding for p in student.parameters()) == 1
    same = [
        name
        for name, tensor in student.state_dict().items()
        if tensor.data_ptr() == embedding.data_ptr()
    ]
    assert len(same) == 2 and "lm_head.weight" in same
    again = reloaded(student, tmp_path)
    assert again.get_output_embeddings().weight is again.get_input_embeddings().weight
    assert len(set(load_file(tmp_path / "model.safetensors")) & set(same)) == 1


@pytest.mark.parametrize("name", FAMILIES)
def test_an_untied_head_stays_apart(name):
    model = tiny(name, tie_word_embeddings=False)
    student = drop_layers(model, plan_of(model, 0))
    assert student.get_output_embeddings().weight is not student.get_input_embeddings().weight
    assert torch.equal(student.get_output_embeddings().weight, model.get_output_embeddings().weight)


# ---------------------------------------------------------------- plans


def test_a_plan_for_another_depth_is_refused(model):
    with pytest.raises(ValueError, match="the plan is for 6 layers, but the model has 5"):
        drop_layers(model, Plan(6, (1,), "by hand"))


@pytest.mark.parametrize(
    ("dropped", "sentence"),
    [
        ((5,), r"drops layer 5, but the model has layers 0\.\.4"),
        ((-1,), "drops layer -1"),
        ((1, 1), "a layer twice"),
        (tuple(range(5)), "drops all 5 layers"),
    ],
    ids=["not there", "negative", "twice", "all"],
)
def test_a_plan_that_cannot_be_is_refused(dropped, sentence):
    with pytest.raises(ValueError, match=sentence):
        Plan(5, dropped, "by hand")


def test_attention_scaled_by_the_layers_number_is_refused():
    model = tiny("gpt2", scale_attn_by_inverse_layer_idx=True)
    with pytest.raises(ValueError, match="scale_attn_by_inverse_layer_idx"):
        drop_layers(model, plan_of(model, 1))


@pytest.mark.parametrize("name", FAMILIES)
def test_only_what_is_equal_is_shared_afterwards(name):
    model = tiny(name)
    plan = plan_of(model, 1)
    student = drop_layers(model, plan)
    changed = mlp_outputs(student)[0].weight
    with torch.no_grad():
        changed += 1
    before = {n: p.clone() for n, p in student.named_parameters()}
    assert share_equal(student, model, plan) is student
    assert {id(p) for p in student.parameters()} - {id(p) for p in model.parameters()} == {
        id(changed)
    }
    assert all(torch.equal(p, before[n]) for n, p in student.named_parameters())


def test_a_second_cut_is_told_in_the_original_numbers(model):
    first = plan_of(model, 1)  # leaves 0, 2, 3, 4
    both = first.then(Plan(4, (1, 3), "greedy"))
    assert (both.n_layers, both.dropped, both.rule) == (5, (1, 2, 4), "staged_greedy")
    assert both.evidence == {"first": [1], "second": [2, 4]}
    in_two = drop_layers(drop_layers(model, first), Plan(4, (1, 3), "greedy"))
    assert torch.equal(plain_logits(in_two, IDS), plain_logits(drop_layers(model, both), IDS))


def test_a_second_cut_of_another_model_is_refused():
    with pytest.raises(ValueError, match="the second plan is for 5 layers, but the first leaves 4"):
        Plan(5, (1,), "greedy").then(Plan(5, (1,), "greedy"))


# ---------------------------------------------------------------- size


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("name", FAMILIES)
def test_size_counts_a_tied_tensor_once_and_weighs_the_file(name, tie, tmp_path):
    student = drop_layers(tiny(name, tie_word_embeddings=tie), Plan(5, (1, 2), "by hand"))
    student.save_pretrained(tmp_path)
    measured = size(student)
    # A tied one is saved once.
    n_parameters = sum(
        tensor.numel() for tensor in load_file(tmp_path / "model.safetensors").values()
    )
    assert (measured.n_layers, measured.n_parameters) == (3, n_parameters)
    assert measured.n_bytes_on_disk == (tmp_path / "model.safetensors").stat().st_size
