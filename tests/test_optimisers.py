"""Optimisers by name, and the learning rate over time."""

from __future__ import annotations

import itertools

import pytest
import torch
from tiny import tiny

from depthprune_core import optimisers
from depthprune_core.decoders import decoder


def stepped(name: str) -> tuple[list[torch.optim.Optimizer], dict[str, torch.Tensor]]:
    """A small model (matrices of 8,192 weights and more) after four steps on the same gradients."""
    model = tiny("llama", hidden_size=64, intermediate_size=128, num_attention_heads=4, num_key_value_heads=4, head_dim=16)
    found = optimisers.optimisers_of(model, decoder(model), name, lr=1e-3, weight_decay=0.1)
    generator = torch.Generator().manual_seed(0)
    for _ in range(4):
        for p in model.parameters():
            p.grad = torch.randn(p.shape, generator=generator)
        for optimiser in found:
            optimiser.step()
    return found, {n: p.detach().clone() for n, p in model.named_parameters()}


def moments(found: list[torch.optim.Optimizer]) -> list[torch.Tensor]:
    states = [state for optimiser in found for state in optimiser.state.values()]
    return [state[name] for state in states for name in ("exp_avg", "exp_avg_sq", "state1", "state2") if name in state]


def test_moments_in_8_bits_take_a_quarter_and_steps_stay_close() -> None:
    plain, in_8_bits = stepped("adamw"), stepped("adamw_8bit")
    large = [m for m in moments(in_8_bits[0]) if m.numel() >= 4_096]  # smaller ones are not worth it
    assert large and all(m.dtype == torch.uint8 for m in large)
    assert sum(m.nbytes for m in moments(in_8_bits[0])) < 0.3 * sum(m.nbytes for m in moments(plain[0]))
    for name, p in plain[1].items():
        torch.testing.assert_close(in_8_bits[1][name], p, rtol=0, atol=1e-3)  # of the 4e-3 that four steps go


def test_an_optimiser_whose_package_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimisers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="needs the package bitsandbytes, which is not installed here: take 'adamw'"):
        optimisers.check("adamw_8bit")
    optimisers.check("adamw")


def test_the_rate_rises_and_falls() -> None:
    rates = [optimisers.schedule(step, 20, 0.1) for step in range(20)]
    assert rates[:2] == [0.5, 1.0] and rates[2] == 1.0 and rates[11] == pytest.approx(0.5)
    assert all(a > b for a, b in itertools.pairwise(rates[2:])) and 0 < rates[-1] < 0.01
