"""Scores against plain transformers, and what must hold whatever the model."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from tiny import ARCHITECTURES, by_document, plain_logits, plan_of, state_of, tiny, tiny_tokenizer, tiny_windows
from torch.nn import functional

from depthprune_core.evaluation import continuations, divergence, score
from depthprune_core.pruning import drop_layers


def test_uniform_model_has_perplexity_equal_to_vocab_size(model, windows):
    model.get_output_embeddings().weight.data.zero_()
    result = score(model, windows)
    assert result.ppl == pytest.approx(128, rel=1e-6)
    assert result.bits_per_byte == pytest.approx(7 / 4, rel=1e-6)  # 7 bits a token, 4 bytes a token


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_score_equals_transformers_own_loss_of_each_document(name, windows):
    """BOS and the window's tokens as ids and as labels: transformers shifts, so that every token but BOS is scored."""
    model = tiny(name)
    result = score(model, windows)
    assert (result.documents, result.n_tokens, result.n_bytes) == (windows.names, (29, 12, 5), (116, 48, 20))
    expected = [0.0, 0.0, 0.0]
    for targets, mask, document in zip(windows.targets, windows.mask, windows.document, strict=True):
        ids = torch.cat([torch.tensor([0]), targets[mask]])[None]
        with torch.no_grad():
            expected[document] += model(input_ids=ids, labels=ids, use_cache=False).loss.item() * int(mask.sum())
    assert result.nll_nats == pytest.approx(expected, rel=1e-5)
    assert result.mean_nll_nats == pytest.approx(sum(expected) / 46, rel=1e-5)


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_batch_size_does_not_change_scores(model, windows, batch_size):
    other = tiny(model.config.model_type, seed=1)
    assert score(model, windows, batch_size=batch_size).nll_nats == pytest.approx(
        score(model, windows, batch_size=3).nll_nats, abs=1e-5 * 29
    )
    pair = [divergence(model, other, windows, batch_size=size) for size in (batch_size, 3)]
    assert pair[0].kl_nats == pytest.approx(pair[1].kl_nats, abs=1e-5 * 29)
    assert pair[0].top1_agreements == pair[1].top1_agreements


def test_padded_tokens_do_not_count(model, windows):
    expected = score(model, windows)
    for tensor in (windows.inputs, windows.targets):
        tensor[~windows.mask] = 77
    assert score(model, windows).nll_nats == pytest.approx(expected.nll_nats, rel=1e-6)


def test_wider_padding_changes_no_score(model, windows):
    wide = replace(windows, **{n: functional.pad(getattr(windows, n), (0, 7)) for n in ("inputs", "targets", "mask")})
    assert wide.seq_len == 12 + 7
    assert score(model, wide).nll_nats == pytest.approx(score(model, windows).nll_nats, rel=1e-6)


def test_documents_do_not_see_each_other(model):
    both, alone = tiny_windows(lengths=(20, 15)), tiny_windows(lengths=(20,))
    assert score(model, both).nll_nats[0] == pytest.approx(score(model, alone).nll_nats[0], rel=1e-6)


def test_divergence_of_a_model_from_itself_is_zero_and_they_agree(model, windows):
    result = divergence(model, model, windows)
    assert result.mean_kl_nats == pytest.approx(0, abs=1e-5) and result.agreement == 1


def test_divergence_equals_kl_of_full_logits_from_teacher_to_student(model, windows):
    student = drop_layers(model, plan_of(model, 1))
    result = divergence(student, model, windows)
    logits, teacher_logits = (
        plain_logits(student, windows.inputs)[windows.mask],
        plain_logits(model, windows.inputs)[windows.mask],
    )
    kl = functional.kl_div(logits.log_softmax(-1), teacher_logits.log_softmax(-1), log_target=True, reduction="none").sum(-1)
    assert result.kl_nats == pytest.approx(by_document(kl, windows), rel=1e-4)
    assert list(result.top1_agreements) == by_document(logits.argmax(-1) == teacher_logits.argmax(-1), windows)
    assert result.n_tokens == (29, 12, 5)
    assert abs(result.mean_kl_nats - divergence(model, student, windows).mean_kl_nats) > 1e-3  # it has a direction


@pytest.mark.parametrize("training", [True, False])
def test_scoring_draws_no_dropout_and_leaves_the_model_as_it_was(model, windows, training):
    expected = score(model, windows)
    model.train(training)
    unchanged = state_of(model)
    assert score(model, windows) == expected
    assert unchanged()


def test_a_score_too_large_for_exp_is_infinite(model, windows):
    model.get_output_embeddings().weight.data.mul_(1e5)
    result = score(model, windows)
    assert result.mean_nll_nats > 700 and result.ppl == math.inf


def test_continuations_are_greedy(model):
    tokenizer = tiny_tokenizer()
    ids = torch.tensor([[3, 5, 7]])
    for _ in range(6):
        ids = torch.cat([ids, plain_logits(model, ids)[:, -1:].argmax(-1)], dim=1)
    assert continuations(model, tokenizer, ["w3 w5 w7", "w9"], new_tokens=6)[0] == tokenizer.decode(ids[0, 3:])
