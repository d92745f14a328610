"""Muon against torch's own and against singular values worked out one by one."""

from __future__ import annotations

import pytest
import torch

from depthprune_core import muon

SHAPES = [(24, 24), (16, 40), (40, 16)]


def stepped(optimiser: type[torch.optim.Optimizer], **options: object) -> list[torch.Tensor]:
    """Matrices of each shape after four steps along the same gradients."""
    generator = torch.Generator().manual_seed(0)
    matrices = [torch.randn(shape, generator=generator).requires_grad_() for shape in SHAPES]
    found = optimiser(matrices, lr=1e-2, momentum=0.95, weight_decay=0.1, **options)
    for _ in range(4):
        for p in matrices:
            p.grad = torch.randn(p.shape, generator=generator)
        found.step()
    return [p.detach() for p in matrices]


def test_in_bfloat16_it_is_torchs_muon_bit_for_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = stepped(torch.optim.Muon, adjust_lr_fn="match_rms_adamw")
    in_float32 = stepped(muon.Muon)
    monkeypatch.setattr(muon, "has_bfloat16", lambda device: True)
    for ours, reference, close in zip(stepped(muon.Muon), theirs, in_float32, strict=True):
        assert torch.equal(ours, reference)
        assert not torch.equal(close, reference)
        torch.testing.assert_close(close, reference, rtol=0, atol=2e-3)  # of the about 2e-2 that four steps go


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_rounds_work_on_the_singular_values_alone(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    u, s, v = torch.linalg.svd(matrix.double(), full_matrices=False)
    a, b, c = muon.COEFFICIENTS
    s = s / s.norm()
    for _ in range(muon.ROUNDS):
        s = a * s + b * s**3 + c * s**5
    assert (s > 0.3).all() and (s < 1.3).all()
    torch.testing.assert_close(muon.orthogonal(matrix, torch.float32).double(), u @ torch.diag(s) @ v, rtol=0, atol=1e-5)


def test_a_cpu_multiplies_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(muon, "orthogonal", lambda matrix, dtype: seen.append(dtype) or matrix)
    stepped(muon.Muon)
    assert set(seen) == {torch.float32}


def test_what_has_no_gradient_and_a_gradient_of_zeros_stay_finite() -> None:
    still, zero = torch.ones(4, 4, requires_grad=True), torch.ones(4, 4, requires_grad=True)
    zero.grad = torch.zeros(4, 4)
    muon.Muon([still, zero], lr=1.0).step()
    assert torch.equal(still, torch.ones(4, 4)) and torch.equal(zero, torch.ones(4, 4))
