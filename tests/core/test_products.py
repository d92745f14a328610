"""Products with oneDNN: the values and gradients of torch, and only where intended."""

from __future__ import annotations

import pytest
import torch
from tiny import FAMILIES, plain_logits, tiny
from torch import nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from depthprune_core import products
from depthprune_core.anatomy import anatomy
from depthprune_core.products import fast_products, linear
from depthprune_core.running import hidden_states

HAS_OP = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


@pytest.fixture(params=[True, False], ids=["onednn", "default"])
def library(request, monkeypatch) -> bool:
    if request.param and not HAS_OP:
        pytest.skip("this torch has no oneDNN")
    monkeypatch.setattr(products, "onednn_is_better", lambda: request.param)
    return request.param


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(7, 12), (2, 5, 12), (1, 12)], ids=str)
def test_values_and_gradients_are_those_of_torch(library, shape, bias, strided):
    x, weight, offset = drawn(*shape), drawn(9, 12), drawn(9) if bias else None
    if strided:
        x, weight = drawn(*shape[::-1]).mT.reshape(shape), drawn(12, 9).t()
    both = []
    for compute in (linear, functional.linear):
        leaves = [t.detach().requires_grad_() for t in (x, weight, offset) if t is not None]
        out = compute(*leaves)
        (out * drawn(*out.shape)).sum().backward()
        both.append([out.detach(), *(leaf.grad.clone() for leaf in leaves)])
    for ours, theirs in zip(*both, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_frozen_weights_get_no_gradient(library):
    x, weight = drawn(4, 6).requires_grad_(), drawn(3, 6)
    linear(x, weight).sum().backward()
    assert weight.grad is None and x.grad is not None
    with torch.no_grad():
        assert not linear(x, weight).requires_grad


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_and_autocast_go_the_default_way(monkeypatch, dtype):
    monkeypatch.setattr(products, "onednn_is_better", lambda: True)
    monkeypatch.setattr(products, "_onednn", lambda *args: pytest.fail("oneDNN was called"))
    assert linear(drawn(4, 6).to(dtype), drawn(3, 6).to(dtype)).dtype == dtype
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert linear(drawn(4, 6), drawn(3, 6)).dtype == torch.bfloat16


@pytest.mark.parametrize("name", FAMILIES)
def test_a_model_gives_the_same_output_and_is_unchanged(library, name, windows):
    model = tiny(name)
    modules = [m for m in model.modules() if isinstance(m, nn.Linear | Conv1D)]
    with fast_products(model):
        assert all(("forward" in vars(m)) == library for m in modules)
        with fast_products(model):
            pass
        assert all(
            ("forward" in vars(m)) == library for m in modules
        )  # the inner block takes nothing from the outer one
        within = plain_logits(model, windows.inputs)
    assert not any("forward" in vars(m) for m in modules)
    torch.testing.assert_close(within, plain_logits(model, windows.inputs), rtol=1e-4, atol=1e-4)
    logits = anatomy(model).logits(hidden_states(anatomy(model), windows.inputs))
    torch.testing.assert_close(logits, within, rtol=1e-4, atol=1e-4)


def test_a_linear_map_with_a_replaced_forward_is_not_changed(monkeypatch):
    monkeypatch.setattr(products, "onednn_is_better", lambda: True)
    module = nn.Linear(3, 3)
    module.forward = lambda x: x
    with fast_products(module):
        assert torch.equal(module(torch.ones(3)), torch.ones(3))
    assert "forward" in vars(module)


def test_the_library_is_chosen_by_the_processors_name(monkeypatch, tmp_path):
    monkeypatch.setattr(products, "CPUINFO", cpuinfo := tmp_path / "cpuinfo")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    chosen = products.onednn_is_better.__wrapped__
    assert chosen() is False  # no such file
    cpuinfo.write_text("vendor_id\t: GenuineIntel\n")
    assert chosen() is False
    cpuinfo.write_text("vendor_id\t: AuthenticAMD\n")
    assert chosen() is HAS_OP


@pytest.mark.parametrize("requires_grad", [True, False])
def test_a_product_can_be_changed_in_place(library, requires_grad):
    """Models with clip_qkv (OLMo) clamp what their maps return."""
    x, weight = drawn(2, 5, 12).requires_grad_(requires_grad), drawn(9, 12).requires_grad_()
    linear(x, weight).clamp_(-1, 1).sum().backward()
    ours, weight.grad = weight.grad, None
    functional.linear(x, weight).clamp(-1, 1).sum().backward()
    torch.testing.assert_close(ours, weight.grad)
