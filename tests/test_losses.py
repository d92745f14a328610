"""Losses and their gradients, by hand and by plain autograd on full logits."""

from __future__ import annotations

import math

import pytest
import torch
from tiny import FAMILIES, plain_logits, tiny
from torch import nn
from torch.nn import functional

from depthprune_core import losses
from depthprune_core.decoders import Decoder, decoder, hidden_states


def head_of(weight: torch.Tensor) -> Decoder:
    """Parts of a model that is nothing but a head."""
    head = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    head.weight.data = weight.clone()
    return Decoder(nn.ModuleList(), "", head, head, 0.0, False)


IDENTITY = head_of(torch.eye(3))  # hidden states are the logits
TARGETS = torch.tensor([0, 2])
EVEN = torch.zeros(2, 3)
KNOWN = torch.tensor([[1.0, 2.0, 1.0], [6.0, 1.0, 1.0]]).log()  # probabilities (1/4, 1/2, 1/4) and (3/4, 1/8, 1/8)
KL_KNOWN_EVEN = [
    math.log(3) - 1.5 * math.log(2),
    0.75 * math.log(3 * 0.75) + 0.25 * math.log(3 / 8),
]  # KL(known || even), by hand
KL_EVEN_KNOWN = [(math.log(4 / 3) + math.log(2 / 3) + math.log(4 / 3)) / 3, (math.log(4 / 9) + 2 * math.log(8 / 3)) / 3]


@pytest.fixture(params=[2, 7, 256])
def chunk(request, monkeypatch) -> int:
    """Tiles that cut both ways, with a rest on either side."""
    monkeypatch.setattr(losses, "TILE_TOKENS", request.param)
    monkeypatch.setattr(losses, "BACKWARD_TOKENS", request.param)
    monkeypatch.setattr(losses, "TILE_WORDS", {"cpu": request.param + 3})
    return request.param


def test_nll_matches_a_hand_computed_example():
    assert losses.nll(IDENTITY, KNOWN, TARGETS).tolist() == pytest.approx([math.log(4), math.log(8)])


def test_kl_matches_a_hand_computed_example_and_runs_from_teacher_to_student():
    _, kl = losses.nll_and_kl([EVEN, KNOWN], IDENTITY, KNOWN, IDENTITY, TARGETS)
    assert kl[0].tolist() == pytest.approx(KL_KNOWN_EVEN, abs=1e-6)
    assert kl[1].tolist() == pytest.approx([0, 0], abs=1e-6)
    _, kl = losses.nll_and_kl([KNOWN], IDENTITY, EVEN, IDENTITY, TARGETS)
    assert kl[0].tolist() == pytest.approx(KL_EVEN_KNOWN, abs=1e-6)


def test_the_top_token_is_the_first_of_the_largest(chunk):
    assert losses.top_tokens(IDENTITY, KNOWN).tolist() == [1, 0]
    assert losses.top_tokens(IDENTITY, EVEN).tolist() == [0, 0]


def test_the_trained_kl_matches_the_hand_computed_example():
    values, _ = losses.backward_in_chunks(IDENTITY, EVEN, TARGETS, torch.ones(2), scale=1.0, kl=1.0, teacher=(IDENTITY, KNOWN))
    assert values["kl"] == pytest.approx(sum(KL_KNOWN_EVEN), abs=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
def test_kl_is_that_of_torch_by_token_and_scaled_by_the_squared_temperature(temperature, chunk):
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(2, 5, 3, generator=generator) for _ in range(2))  # (batch, seq, vocab)
    log_q, log_p = (student / temperature).log_softmax(-1), (teacher / temperature).log_softmax(-1)
    by_token = functional.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1)
    trap = functional.kl_div(log_q, log_p, log_target=True, reduction="batchmean")
    assert trap == pytest.approx(float(by_token.sum() / 2))  # not / 10
    flat = (student.flatten(0, 1), torch.zeros(10, dtype=torch.long), torch.ones(10))
    values, _ = losses.backward_in_chunks(
        IDENTITY, *flat, scale=1.0, kl=1.0, temperature=temperature, teacher=(IDENTITY, teacher.flatten(0, 1))
    )
    assert values["kl"] == pytest.approx(temperature**2 * float(by_token.sum()), rel=1e-5)


def test_weights_do_not_enter_the_reported_values_and_absent_terms_are_zero():
    both, _ = losses.backward_in_chunks(
        IDENTITY, EVEN, TARGETS, torch.ones(2), scale=0.1, ce=3.0, kl=5.0, teacher=(IDENTITY, KNOWN)
    )
    assert both == pytest.approx({"ce": 2 * math.log(3), "kl": sum(KL_KNOWN_EVEN)}, abs=1e-6)
    alone, _ = losses.backward_in_chunks(IDENTITY, EVEN, TARGETS, torch.ones(2), scale=0.1, ce=3.0)
    assert alone == pytest.approx({"ce": 2 * math.log(3), "kl": 0})


def test_without_a_token_term_there_is_no_gradient():
    values, gradient = losses.backward_in_chunks(IDENTITY, KNOWN, TARGETS, torch.ones(2), scale=1.0)
    assert values == {"ce": 0.0, "kl": 0.0} and torch.equal(gradient, torch.zeros(2, 3))


def test_masked_tokens_add_neither_loss_nor_gradient(chunk):
    generator = torch.Generator().manual_seed(0)
    hidden, teacher = torch.randn(9, 3, generator=generator), torch.randn(9, 3, generator=generator)
    targets, mask = torch.randint(3, (9,), generator=generator), torch.tensor([1, 0, 1, 1, 0, 0, 1, 1, 0]).bool()
    kept = losses.backward_in_chunks(
        IDENTITY, hidden[mask], targets[mask], torch.ones(5), scale=1.0, ce=1.0, kl=2.0, teacher=(IDENTITY, teacher[mask])
    )
    all_of_them = losses.backward_in_chunks(
        IDENTITY, hidden, targets, mask, scale=1.0, ce=1.0, kl=2.0, teacher=(IDENTITY, teacher)
    )
    assert all_of_them[0] == pytest.approx(kept[0], rel=1e-5)
    torch.testing.assert_close(all_of_them[1][mask], kept[1])
    assert not all_of_them[1][~mask].any()


@pytest.mark.parametrize("terms", [{"ce": 1.0}, {"kl": 1.0}, {"ce": 0.3, "kl": 0.7}], ids=str)
@pytest.mark.parametrize("name", [*FAMILIES, "gemma2"])
def test_gradients_are_those_of_plain_autograd_on_full_logits(name, terms, windows, chunk):
    student, teacher, temperature, mask = tiny(name), tiny(name, seed=1), 2.0, windows.mask

    logits = student(input_ids=windows.inputs, use_cache=False).logits
    with torch.no_grad():
        log_p = (teacher(input_ids=windows.inputs, use_cache=False).logits / temperature).log_softmax(-1)
    ce = functional.cross_entropy(logits[mask], windows.targets[mask])
    kl = (
        functional.kl_div((logits / temperature).log_softmax(-1), log_p, log_target=True, reduction="none").sum(-1)[mask].mean()
        * temperature**2
    )
    (terms.get("ce", 0) * ce + terms.get("kl", 0) * kl).backward()
    expected = {parameter: p.grad.clone() for parameter, p in student.named_parameters()}
    student.zero_grad()

    hidden = hidden_states(student, windows.inputs)
    with torch.no_grad():
        teacher_hidden = hidden_states(teacher, windows.inputs).flatten(0, 1)
    values, gradient = losses.backward_in_chunks(
        decoder(student),
        hidden.flatten(0, 1),
        windows.targets.flatten(),
        mask.flatten(),
        scale=1 / windows.n_tokens,
        temperature=temperature,
        teacher=(decoder(teacher), teacher_hidden),
        **terms,
    )
    hidden.backward(gradient.view_as(hidden))
    for term in terms:
        assert values[term] / windows.n_tokens == pytest.approx({"ce": ce, "kl": kl}[term].item(), rel=1e-5)
    for parameter, p in student.named_parameters():
        torch.testing.assert_close(p.grad, expected[parameter], rtol=1e-4, atol=1e-6)
    assert all(p.grad is None for p in teacher.parameters())


def test_several_students_are_measured_as_each_alone(model, windows, chunk):
    teacher = tiny(model.config.model_type, seed=1)
    mask, targets = windows.mask, windows.targets[windows.mask]
    with torch.no_grad():
        hidden, other = hidden_states(model, windows.inputs)[mask], hidden_states(teacher, windows.inputs)[mask]
        together = losses.nll_and_kl([hidden, 0.5 * hidden], decoder(model), other, decoder(teacher), targets)
        alone = losses.nll_and_kl([0.5 * hidden], decoder(model), other, decoder(teacher), targets)
        plain = losses.nll(decoder(model), hidden, targets)
    assert [tuple(part.shape) for part in together] == [(2, windows.n_tokens)] * 2
    for both, one in zip(together, alone, strict=True):
        torch.testing.assert_close(both[1], one[0])
    torch.testing.assert_close(together[0][0], plain)
    log_p, log_q = (plain_logits(m, windows.inputs)[mask].log_softmax(-1) for m in (teacher, model))
    torch.testing.assert_close(
        together[1][0], functional.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1), rtol=1e-4, atol=1e-5
    )


# ---------------------------------------------------------------- the teacher's top tokens alone


@pytest.mark.parametrize("k", [1, 5, 127])
def test_kl_against_the_top_tokens_is_that_of_k_plus_one_outcomes(model, windows, chunk, k):
    teacher = tiny(model.config.model_type, seed=1)
    mask, targets = windows.mask.flatten(), windows.targets.flatten()
    with torch.no_grad():
        states = hidden_states(teacher, windows.inputs).flatten(0, 1)
        log_p = decoder(teacher).logits(states).log_softmax(-1)
    top = losses.most_likely(decoder(teacher), states, k)
    hidden = hidden_states(model, windows.inputs).flatten(0, 1)
    values, gradient = losses.backward_in_chunks(decoder(model), hidden, targets, mask, scale=0.1, ce=0.5, kl=2.0, teacher=top)
    head, of_head = decoder(model).head, decoder(model).head.weight.grad.clone()
    model.zero_grad()
    leaf = hidden.detach().requires_grad_()
    log_q = functional.linear(leaf, head.weight, head.bias).log_softmax(-1)
    best, tokens = log_p.topk(k)
    ours, rest = log_q.gather(1, tokens), (1 - best.exp().sum(-1), 1 - log_q.gather(1, tokens).exp().sum(-1))
    merged = (best.exp() * (best - ours)).sum(-1) + rest[0] * (rest[0].log() - rest[1].log())
    ce = -log_q.gather(1, targets[:, None])[:, 0]
    (0.1 * ((2.0 * merged + 0.5 * ce) * mask).sum()).backward()
    full = float(((log_p.exp() * (log_p - log_q)).sum(-1) * mask).sum().detach())
    assert values["kl"] == pytest.approx(float((merged * mask).sum().detach()), rel=1e-4)
    assert values["kl"] <= full * (1 + 1e-5)  # merging outcomes never adds to KL
    if k == 127:  # of 128: nothing is merged
        assert values["kl"] == pytest.approx(full, rel=1e-4)
    torch.testing.assert_close(gradient, leaf.grad, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(of_head, head.weight.grad, rtol=1e-3, atol=1e-6)
