"""Losses and their gradients, by hand and by plain autograd on full logits."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from tiny import plain_logits, tiny
from torch import nn
from torch.nn import functional

from depthprune_core import losses
from depthprune_core.anatomy import anatomy
from depthprune_core.decoder import Decoder
from depthprune_core.running import hidden_states


def head_of(weight: torch.Tensor) -> Decoder:
    """Parts of a model that has only a head."""
    head = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    head.weight.data = weight.clone()
    return Decoder(nn.ModuleList(), "", head, head, softcap=0.0, scale=1.0, returns_tuple=False)


IDENTITY = head_of(torch.eye(3))  # hidden states are the logits
TARGETS, ONES, EVEN = torch.tensor([0, 2]), torch.ones(2), torch.zeros(2, 3)
# probabilities (1/4, 1/2, 1/4) and (3/4, 1/8, 1/8)
KNOWN = torch.tensor([[1.0, 2.0, 1.0], [6.0, 1.0, 1.0]]).log()
KL_KNOWN_EVEN = [
    math.log(3) - 1.5 * math.log(2),
    0.75 * math.log(3 * 0.75) + 0.25 * math.log(3 / 8),
]  # KL(known || even), by hand
KL_EVEN_KNOWN = [
    (math.log(4 / 3) + math.log(2 / 3) + math.log(4 / 3)) / 3,
    (math.log(4 / 9) + 2 * math.log(8 / 3)) / 3,
]


@pytest.fixture(params=[7, 256])
def chunk(request, monkeypatch) -> int:
    """Small tiles of tokens and vocabulary, with a remainder in both directions."""
    monkeypatch.setattr(losses, "TILE_TOKENS", request.param)
    monkeypatch.setattr(losses, "BACKWARD_TOKENS", request.param)
    monkeypatch.setattr(losses, "TILE_WORDS", {"cpu": request.param + 3})
    return request.param


def test_nll_matches_a_hand_computed_example():
    expected = [math.log(4), math.log(8)]
    assert losses.nll(IDENTITY, KNOWN, TARGETS).tolist() == pytest.approx(expected)


def test_kl_matches_a_hand_computed_example_and_runs_from_teacher_to_student():
    _, kl = losses.nll_and_kl([EVEN, KNOWN], IDENTITY, KNOWN, IDENTITY, TARGETS)
    assert kl[0].tolist() == pytest.approx(KL_KNOWN_EVEN, abs=1e-6)
    assert kl[1].tolist() == pytest.approx([0, 0], abs=1e-6)
    _, kl = losses.nll_and_kl([KNOWN], IDENTITY, EVEN, IDENTITY, TARGETS)
    assert kl[0].tolist() == pytest.approx(KL_EVEN_KNOWN, abs=1e-6)


def test_the_top_token_is_the_first_of_the_largest(chunk):
    assert losses.top_tokens(IDENTITY, KNOWN).tolist() == [1, 0]
    assert losses.top_tokens(IDENTITY, EVEN).tolist() == [0, 0]


def test_trained_values_match_the_hand_computed_example_whatever_their_weights():
    teacher = (IDENTITY, KNOWN)
    both, _ = losses.backward_in_chunks(
        IDENTITY, EVEN, TARGETS, ONES, scale=0.1, ce=3.0, kl=5.0, teacher=teacher
    )
    assert both == pytest.approx({"ce": 2 * math.log(3), "kl": sum(KL_KNOWN_EVEN)}, abs=1e-6)
    alone, _ = losses.backward_in_chunks(IDENTITY, EVEN, TARGETS, ONES, scale=0.1, ce=3.0)
    assert alone == pytest.approx({"ce": 2 * math.log(3), "kl": 0})


@pytest.mark.parametrize("terms", [{"ce": 1.0}, {"kl": 1.0}, {"ce": 0.3, "kl": 0.7}], ids=str)
@pytest.mark.parametrize(  # gemma2 caps its logits
    ("name", "scale"), [("llama", 0.25), ("gemma2", 1.0), ("gemma2", 0.25)]
)
def test_gradients_are_those_of_plain_autograd_on_full_logits(name, scale, terms, windows, chunk):
    student, teacher, temperature = tiny(name), tiny(name, seed=1), 2.0
    mask, parts = windows.mask, [replace(anatomy(m), scale=scale) for m in (student, teacher)]
    hidden = [hidden_states(anatomy(m), windows.inputs).flatten(0, 1) for m in (student, teacher)]
    logits, other = (
        p.logits(h).unflatten(0, mask.shape) for p, h in zip(parts, hidden, strict=True)
    )
    log_p = (other.detach() / temperature).log_softmax(-1)
    log_q = (logits / temperature).log_softmax(-1)
    ce = functional.cross_entropy(logits[mask], windows.targets[mask])
    kl = functional.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1)[mask].mean()
    kl = kl * temperature**2
    (terms.get("ce", 0) * ce + terms.get("kl", 0) * kl).backward(retain_graph=True)
    expected = {parameter: p.grad.clone() for parameter, p in student.named_parameters()}
    student.zero_grad()
    values, gradient = losses.backward_in_chunks(
        parts[0],
        hidden[0],
        windows.targets.flatten(),
        mask.flatten(),
        scale=1 / windows.n_tokens,
        temperature=temperature,
        teacher=(parts[1], hidden[1].detach()),
        **terms,
    )
    hidden[0].backward(gradient)
    for term in terms:
        mean = {"ce": ce, "kl": kl}[term].item()
        assert values[term] / windows.n_tokens == pytest.approx(mean, rel=1e-5)
    for parameter, p in student.named_parameters():
        torch.testing.assert_close(p.grad, expected[parameter], rtol=1e-4, atol=1e-6)
    assert all(p.grad is None for p in teacher.parameters())


def test_several_students_are_measured_as_each_alone_and_as_by_full_logits(model, windows, chunk):
    teacher = tiny(model.config.model_type, seed=1)
    mask, targets = windows.mask, windows.targets[windows.mask]
    ours, theirs = anatomy(model), anatomy(teacher)
    with torch.no_grad():
        hidden, other = (hidden_states(anatomy(m), windows.inputs)[mask] for m in (model, teacher))
        together = losses.nll_and_kl([hidden, 0.5 * hidden], ours, other, theirs, targets)
        alone = losses.nll_and_kl([0.5 * hidden], ours, other, theirs, targets)
    assert [tuple(part.shape) for part in together] == [(2, windows.n_tokens)] * 2
    for both, one in zip(together, alone, strict=True):
        torch.testing.assert_close(both[1], one[0])
    torch.testing.assert_close(together[0][0], losses.nll(ours, hidden, targets))
    log_p, log_q = (plain_logits(m, windows.inputs)[mask].log_softmax(-1) for m in (teacher, model))
    kl = functional.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1)
    torch.testing.assert_close(together[1][0], kl, rtol=1e-4, atol=1e-5)
