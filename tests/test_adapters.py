"""Low-rank adapters: what they touch, and what is left of them."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny import ARCHITECTURES, FAMILIES, layers_of, plan_of, state_of, tiny, tiny_windows
from torch import nn
from transformers.pytorch_utils import Conv1D

from depthprune_core.adapters import SCALING, low_rank
from depthprune_core.distillation import recover
from depthprune_core.pruning import drop_layers, share_equal

WINDOWS = tiny_windows(seed=1, lengths=(60, 29, 31))
MAPS = (nn.Linear, Conv1D)


def weights_of(model) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_untrained_adapters_change_no_bit(name):
    model = tiny(name)
    before, logits = weights_of(model), model(WINDOWS.inputs).logits
    with low_rank(model, rank=3, seed=0):
        assert torch.equal(model(WINDOWS.inputs).logits, logits)
    assert weights_of(model).keys() == before.keys()
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_linear_map_of_every_layer_has_an_adapter_and_nothing_else_can_be_trained(name):
    model = tiny(name)
    n_maps = sum(type(m) in MAPS for layer in layers_of(model) for m in layer.modules())
    with low_rank(model, rank=3, seed=0):
        trainable = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert len(trainable) == 2 * n_maps
    assert all("lora_" in n and 3 in p.shape for n, p in trainable.items())


@pytest.mark.parametrize("name", FAMILIES)
def test_the_merged_weights_are_the_old_ones_plus_the_scaled_product(name):
    model = tiny(name)
    before = weights_of(model)
    with low_rank(model, rank=2, seed=0):
        wrapped = {n: m for n, m in model.named_modules() if hasattr(m, "lora_A")}
        expected = {}
        for n, m in wrapped.items():
            m.lora_B["default"].weight.data.normal_()
            update = SCALING * m.lora_B["default"].weight @ m.lora_A["default"].weight  # (out, in)
            expected[f"{n}.weight"] = update.t() if isinstance(m.base_layer, Conv1D) else update
    assert expected
    for n, p in model.named_parameters():
        torch.testing.assert_close(p, before[n] + expected.get(n, 0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", FAMILIES)
def test_an_error_inside_leaves_the_model_as_it_was(name):
    model = tiny(name)
    before = weights_of(model)
    with pytest.raises(RuntimeError, match="cut short"), low_rank(model, rank=2, seed=0):
        for n, p in model.named_parameters():
            if "lora_" in n:
                p.data.normal_()
        raise RuntimeError("cut short")
    assert {n: p.tolist() for n, p in model.named_parameters()} == {n: p.tolist() for n, p in before.items()}


def test_the_seed_draws_the_adapters_and_leaves_the_global_state():
    state = torch.random.get_rng_state()
    drawn = []
    for seed in (0, 0, 1):
        model = tiny("llama")
        with low_rank(model, rank=2, seed=seed):
            drawn.append(torch.cat([p.detach().flatten() for n, p in model.named_parameters() if "lora_A" in n]))
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("name", FAMILIES)
def test_recovery_by_adapters_moves_the_layers_by_a_low_rank_alone(name):
    teacher = tiny(name)
    plan = plan_of(teacher, 2)
    student = drop_layers(teacher, plan)
    before, unchanged = weights_of(student), state_of(teacher)
    _, curve = recover(student, teacher, WINDOWS, plan=plan, loss={"kl": 1.0}, lr=1e-2, seed=0, trained="lora", lora_rank=2)
    moved = {n: p - before[n] for n, p in student.named_parameters() if not torch.equal(p, before[n])}
    assert moved and all(p.ndim == 2 for p in moved.values())
    assert all(torch.linalg.matrix_rank(p, atol=1e-4) <= 2 for p in moved.values())
    assert curve.recipe["trained"] == "lora" and curve.recipe["lora_rank"] == 2
    assert curve.losses["kl"][-1] < curve.losses["kl"][0] and unchanged()


def test_recovery_by_adapters_equals_a_loop_with_plain_matrices():
    """One step of AdamW, written out: W + 2 B A, gradients by autograd through full logits."""
    teacher = tiny("llama")
    plan = plan_of(teacher, 2)
    student = drop_layers(teacher, plan)
    reference = copy.deepcopy(student)
    batch = WINDOWS.take(slice(0, 2))
    with low_rank(reference, rank=2, seed=5):
        adapters = [p for n, p in reference.named_parameters() if "lora_" in n]
        logits = reference(batch.inputs).logits[batch.mask]
        nn.functional.cross_entropy(logits, batch.targets[batch.mask]).backward()
        nn.utils.clip_grad_norm_(adapters, 1.0)
        torch.optim.AdamW(adapters, lr=1e-2, betas=(0.9, 0.95), weight_decay=0.0).step()
    recover(student, teacher, batch, plan=plan, loss={"ce": 1.0}, lr=1e-2, seed=5, batch_size=2, trained="lora", lora_rank=2)
    for p, q in zip(student.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_student_that_shares_its_teacher_s_weights_is_recovered_as_a_copy_is(name):
    teacher = tiny(name)
    plan = plan_of(teacher, 2)
    copied = drop_layers(teacher, plan)
    shared = share_equal(drop_layers(teacher, plan), teacher, plan)
    assert set(shared.parameters()) <= set(teacher.parameters())
    trainable = [p.requires_grad for p in copied.parameters()]
    unchanged = state_of(teacher)
    way = {"plan": plan, "loss": {"kl": 1.0}, "lr": 1e-2, "seed": 0, "trained": "lora", "lora_rank": 2}
    _, of_copy = recover(copied, teacher, WINDOWS, **way)
    _, of_shared = recover(shared, teacher, WINDOWS, **way)
    assert unchanged() and of_copy == of_shared
    assert all(torch.equal(p, q) for p, q in zip(copied.parameters(), shared.parameters(), strict=True))
    assert [p.requires_grad for p in shared.parameters()] == trainable and all(p.requires_grad for p in teacher.parameters())
    own = set(shared.parameters()) - set(teacher.parameters())
    assert own and all(p.ndim == 2 for p in own)  # the maps that have changed, and nothing else


def test_weights_that_a_student_shares_are_not_trained_themselves():
    teacher = tiny("llama")
    plan = plan_of(teacher, 2)
    student = share_equal(drop_layers(teacher, plan), teacher, plan)
    with pytest.raises(
        ValueError, match=r"shares weights with its teacher: only adapters \(trained='lora'\) can be trained, not 'all'"
    ):
        recover(student, teacher, WINDOWS, plan=plan, loss={"kl": 1.0}, lr=1e-2, seed=0)


@pytest.mark.parametrize("name", FAMILIES)
def test_an_old_torchao_does_not_stop_them_and_changes_no_weight(name, monkeypatch):
    """Colab has torchao 0.10, at which peft raises for plain linear maps."""

    def made() -> dict[str, torch.Tensor]:
        model = tiny(name)
        with low_rank(model, rank=2, seed=0), torch.no_grad():
            for own, p in model.named_parameters():
                if "lora_B" in own:
                    p.add_(0.1)
        return weights_of(model)

    def too_old() -> bool:
        raise ImportError("Found an incompatible version of torchao. Found version 0.10.0")

    plain = made()
    monkeypatch.setattr("peft.tuners.lora.torchao.is_torchao_available", too_old)
    assert all(torch.equal(value, plain[own]) for own, value in made().items())
