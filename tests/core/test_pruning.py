"""Dropping layers gives a plain transformers model with fewer layers."""

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

from depthprune_core.mlps import mlp_outputs
from depthprune_core.pruning import drop_layers, share_equal, size
from depthprune_core.records import Plan

IDS = tiny_windows().inputs
CUTS = ((0, 2), (-1,))  # the first and one inside; the last


def cut(model: PreTrainedModel, dropped: tuple[int, ...]) -> Plan:
    n_layers = len(layers_of(model))
    return plan_of(model, *(layer % n_layers for layer in dropped))


def reloaded(student: PreTrainedModel, folder) -> PreTrainedModel:
    """Saved and opened with plain transformers, which only reports randomly initialised weights."""
    student.save_pretrained(folder)
    again, info = AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True, attn_implementation=student.config._attn_implementation
    )
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    return again.eval()


# ---------------------------------------------------------------- the same, less the layers


@pytest.mark.parametrize("name", FAMILIES)
def test_dropping_nothing_changes_no_logit(name):
    model = tiny(name)
    assert torch.equal(
        plain_logits(drop_layers(model, plan_of(model)), IDS), plain_logits(model, IDS)
    )


@pytest.mark.parametrize("dropped", CUTS, ids=str)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_dropped_layers_are_skipped_layers_and_stay_so_when_saved_and_reloaded(
    name, dropped, tmp_path
):
    model = tiny(name)
    unchanged, random_state = state_of(model), torch.get_rng_state()
    plan = cut(model, dropped)
    student = drop_layers(model, plan)
    assert unchanged() and torch.equal(torch.get_rng_state(), random_state)
    with skipping(model, plan.dropped):
        expected = plain_logits(model, IDS)
    assert (expected - plain_logits(model, IDS)).abs().mean() > 0.1  # the layers mattered
    torch.testing.assert_close(plain_logits(student, IDS), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(plain_logits(reloaded(student, tmp_path), IDS), plain_logits(student, IDS))
    assert student.config.num_hidden_layers == len(layers_of(student)) == len(plan.kept)


@pytest.mark.parametrize(("dropped", "share"), [((0,), False), ((0, 2), True)], ids=str)
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


# ---------------------------------------------------------------- what stays as it was


@pytest.mark.parametrize("name", [*FAMILIES, "gemma3_text"])
def test_training_the_student_does_not_change_the_original(name):
    model = tiny(name).requires_grad_(False)
    unchanged = state_of(model)
    student = drop_layers(model, plan_of(model, 1))
    before = plain_logits(student, IDS)
    assert all(p.requires_grad for p in student.parameters())
    optimiser = torch.optim.SGD(student.parameters(), lr=0.1)
    student(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
    optimiser.step()
    assert (plain_logits(student, IDS) - before).abs().max() > 1e-3
    assert unchanged()


def test_generation_settings_are_carried_over_as_a_copy(model, tmp_path):
    model.generation_config.max_new_tokens = 7
    model.generation_config.eos_token_id = 9
    student = drop_layers(model, plan_of(model, 1))
    again = reloaded(student, tmp_path)
    assert (again.generation_config.max_new_tokens, again.generation_config.eos_token_id) == (7, 9)
    student.generation_config.max_new_tokens = 3
    assert model.generation_config.max_new_tokens == 7


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_student_keeps_dtype_and_attention_and_is_in_eval_mode(model, dtype, attention):
    model.to(dtype).train().set_attn_implementation(attention)
    student = drop_layers(model, plan_of(model, 1))
    assert {p.dtype for p in student.parameters()} == {dtype} == {student.config.dtype}
    assert student.config._attn_implementation == attention
    assert model.training and not student.training


# ---------------------------------------------------------------- on the original's weights


def tensors_in(held: Any) -> Iterator[torch.Tensor]:
    """Every tensor of a module, in any container."""
    if isinstance(held, torch.Tensor):
        yield held
    elif isinstance(held, nn.Module):
        yield from tensors_in(vars(held))
    elif isinstance(held, dict):
        yield from tensors_in(list(held.values()))
    elif isinstance(held, list | tuple | set):
        for item in held:
            yield from tensors_in(item)


@pytest.mark.parametrize(
    ("name", "tie"), [(name, True) for name in ARCHITECTURES] + [(name, False) for name in FAMILIES]
)
def test_a_student_that_shares_holds_the_originals_tensors_and_no_other(name, tie):
    model = tiny(name, tie_word_embeddings=tie)
    plan = plan_of(model, 0, 2)
    shared, copied = drop_layers(model, plan, share=True), drop_layers(model, plan)
    assert torch.equal(plain_logits(shared, IDS), plain_logits(copied, IDS)) and not shared.training
    assert {id(p) for p in shared.parameters()} <= {id(p) for p in model.parameters()}
    for new, old in enumerate(plan.kept):
        ours, theirs = layers_of(shared)[new].state_dict(), layers_of(model)[old].state_dict()
        assert {key: t.data_ptr() for key, t in ours.items()} == {
            key: t.data_ptr() for key, t in theirs.items()
        }
    storages = {tensor.untyped_storage().data_ptr() for tensor in tensors_in(model)}
    assert {tensor.untyped_storage().data_ptr() for tensor in tensors_in(shared)} <= storages
    assert not any(tensor.is_meta for student in (shared, copied) for tensor in tensors_in(student))


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


@pytest.mark.parametrize("name", FAMILIES)
def test_only_equal_tensors_are_shared_afterwards(name):
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


# ---------------------------------------------------------------- tied heads


@pytest.mark.parametrize("tie", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_head_stays_tied_or_apart_and_counts_so(name, tie, tmp_path):
    model = tiny(name, tie_word_embeddings=tie)
    student = drop_layers(model, plan_of(model, 0))
    again = reloaded(student, tmp_path)
    for made in (student, again):
        embedding, head = made.get_input_embeddings().weight, made.get_output_embeddings().weight
        assert (head is embedding) is tie
    assert student.get_input_embeddings().weight is not model.get_input_embeddings().weight
    weights, measured = load_file(tmp_path / "model.safetensors"), size(student)
    assert measured.n_layers == 4
    assert measured.n_parameters == sum(tensor.numel() for tensor in weights.values())
    assert measured.n_bytes_on_disk == (tmp_path / "model.safetensors").stat().st_size


def test_a_plan_for_another_depth_is_refused(model):
    with pytest.raises(ValueError, match="the plan is for 6 layers, but the model has 5"):
        drop_layers(model, Plan(6, (1,), "by hand"))


def test_a_cut_of_a_cut_is_the_cut_of_both(model):
    first, second = plan_of(model, 1), Plan(4, (1, 3), "greedy")  # of what is left: 0, 2, 3, 4
    in_two, at_once = drop_layers(drop_layers(model, first), second), first.then(second)
    assert torch.equal(plain_logits(in_two, IDS), plain_logits(drop_layers(model, at_once), IDS))
