"""Low-rank adapters: what they change, and that nothing of them remains."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import import_utils
from tiny import (
    ARCHITECTURES,
    FAMILIES,
    layers_of,
    plan_of,
    state_of,
    tiny,
    tiny_windows,
    weights_of,
)
from torch import nn
from transformers.pytorch_utils import Conv1D

from depthprune_core.adapters import SCALING, low_rank
from depthprune_core.anatomy import anatomy
from depthprune_core.distillation import recover
from depthprune_core.pruning import drop_layers, share_equal
from depthprune_core.records import Plan, Recipe

WINDOWS = tiny_windows(seed=1, lengths=(60, 29, 31))
RECIPE = Recipe(tokens=132, lr=1e-2, batch_tokens=48, seq_len=12, trained="lora", lora_rank=2)
OTHERS = {  # maps that are subclasses of nn.Linear; a mixture of experts beside linear maps
    "falcon": {"ffn_hidden_size": 48, "new_decoder_architecture": True, "num_kv_heads": 2},
    "deepseek_v3": {
        "num_key_value_heads": 4,
        "q_lora_rank": 16,
        "kv_lora_rank": 8,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 8,
        "v_head_dim": 8,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "n_shared_experts": 1,
        "n_group": 2,
        "topk_group": 1,
        "first_k_dense_replace": 1,
    },
}


def trained_maps(model) -> int:
    """The adapters that the model currently has."""
    return sum(hasattr(module, "lora_A") for module in model.modules())


@pytest.mark.parametrize("name", [*ARCHITECTURES, *OTHERS])
def test_every_linear_map_of_every_layer_has_one_and_untrained_ones_change_no_bit(name):
    model = tiny(name, **OTHERS.get(name, {}))
    layers = anatomy(model).layers
    n_maps = sum(isinstance(m, nn.Linear | Conv1D) for m in layers.modules())
    before, logits = weights_of(model), model(WINDOWS.inputs).logits
    with low_rank(model, rank=3, seed=0):
        assert torch.equal(model(WINDOWS.inputs).logits, logits)
        trainable = {n: p for n, p in model.named_parameters() if p.requires_grad}
        assert trained_maps(model) == n_maps and len(trainable) == 2 * n_maps
        assert all("lora_" in n and 3 in p.shape for n, p in trainable.items())
    assert weights_of(model).keys() == before.keys()
    assert all(torch.equal(p, before[n]) and p.requires_grad for n, p in model.named_parameters())


@pytest.mark.parametrize("name", FAMILIES)
def test_the_merged_weights_are_the_old_ones_plus_the_scaled_product(name):
    model = tiny(name, **OTHERS.get(name, {}))
    before, expected = weights_of(model), {}
    with low_rank(model, rank=2, seed=0):
        for n, m in model.named_modules():
            if hasattr(m, "lora_A"):
                m.lora_B["default"].weight.data.normal_()
                update = SCALING * m.lora_B["default"].weight @ m.lora_A["default"].weight
                conv = isinstance(m.base_layer, Conv1D)
                expected[f"{n}.weight"] = update.t() if conv else update  # (out, in)
        adapted = model(WINDOWS.inputs).logits
    assert expected
    for n, p in model.named_parameters():
        torch.testing.assert_close(p, before[n] + expected.get(n, 0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model(WINDOWS.inputs).logits, adapted, rtol=1e-3, atol=1e-3)


def test_they_work_beside_an_old_torchao_with_the_same_bits(monkeypatch):
    """Colab has torchao 0.10, at which peft raises when it is asked for any linear map."""
    expected = recover(*healing("llama"), WINDOWS, RECIPE)[0]

    def raises() -> bool:
        raise ImportError("Found an incompatible version of torchao. Found version 0.10.0")

    for module in (import_utils, __import__("peft.tuners.lora.torchao", fromlist=["x"])):
        monkeypatch.setattr(module, "is_torchao_available", raises)
    healed = recover(*healing("llama"), WINDOWS, RECIPE)[0]
    pairs = zip(healed.parameters(), expected.parameters(), strict=True)
    assert all(torch.equal(p, q) for p, q in pairs)


def healing(name: str):
    """A student and its teacher."""
    teacher = tiny(name)
    return drop_layers(teacher, plan_of(teacher, 2)), teacher


def test_an_error_inside_leaves_the_model_unchanged(model):
    before = weights_of(model)
    with pytest.raises(RuntimeError, match="cut short"), low_rank(model, rank=2, seed=0):
        for n, p in model.named_parameters():
            if "lora_" in n:
                p.data.normal_()
        raise RuntimeError("cut short")
    now = dict(model.named_parameters())
    assert now.keys() == before.keys()
    assert all(torch.equal(p, before[n]) and p.requires_grad for n, p in now.items())


def test_the_seed_draws_them_and_leaves_the_global_state():
    state, drawn = torch.random.get_rng_state(), []
    for seed in (0, 0, 1):
        model = tiny("llama")
        with low_rank(model, rank=2, seed=seed):
            maps = [p.detach().flatten() for n, p in model.named_parameters() if "lora_A" in n]
            drawn.append(torch.cat(maps))
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    assert torch.equal(torch.random.get_rng_state(), state)


def test_recovery_by_adapters_equals_a_loop_with_plain_matrices():
    """One step of AdamW, written out: W + 2 B A, gradients by autograd through full logits."""
    student, teacher = healing("llama")
    reference, batch = copy.deepcopy(student), WINDOWS.take(slice(0, 2))
    with low_rank(reference, rank=2, seed=5):
        adapters = [p for n, p in reference.named_parameters() if "lora_" in n]
        logits = reference(batch.inputs).logits[batch.mask]
        nn.functional.cross_entropy(logits, batch.targets[batch.mask]).backward()
        nn.utils.clip_grad_norm_(adapters, 1.0)
        torch.optim.AdamW(adapters, lr=1e-2, betas=(0.9, 0.95), weight_decay=0.0).step()
    recover(student, teacher, batch, RECIPE.but(kl=0.0, ce=1.0, seed=5, batch_tokens=24))
    for p, q in zip(student.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [*FAMILIES, *OTHERS])
def test_a_student_that_shares_its_teachers_weights_is_recovered_as_a_copy_is(name):
    teacher = tiny(name, **OTHERS.get(name, {}))
    plan = Plan(len(anatomy(teacher).layers), (1,), "by hand")
    copied = drop_layers(teacher, plan)
    shared = share_equal(drop_layers(teacher, plan), teacher, plan)
    assert set(shared.parameters()) <= set(teacher.parameters())
    before, unchanged = weights_of(copied), state_of(teacher)
    _, of_copy = recover(copied, teacher, WINDOWS, RECIPE)
    _, of_shared = recover(shared, teacher, WINDOWS, RECIPE)
    assert unchanged() and of_copy == of_shared
    pairs = zip(copied.parameters(), shared.parameters(), strict=True)
    assert all(torch.equal(p, q) and q.requires_grad for p, q in pairs)
    changed = set(shared.parameters()) - set(teacher.parameters())
    assert changed and all(p.ndim == 2 for p in changed)  # the maps that moved, nothing else
    moved = {
        n: p - before[n] for n, p in copied.named_parameters() if not torch.equal(p, before[n])
    }
    assert all(torch.linalg.matrix_rank(p, atol=1e-4) <= 2 for p in moved.values())


def test_a_model_without_linear_maps_is_refused():
    model = tiny("llama")
    layers = layers_of(model)
    anatomy(model)
    for layer in layers:
        for name in ("self_attn", "mlp"):
            setattr(layer, name, nn.Identity())
    with (
        pytest.raises(ValueError, match="has no linear map in its layers"),
        low_rank(model, rank=1, seed=0),
    ):
        pass
