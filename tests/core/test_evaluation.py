"""Scores against plain transformers, and properties that hold for every model."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny import (
    ARCHITECTURES,
    VOCABULARY,
    by_document,
    plain_logits,
    state_of,
    tiny,
)
from tiny import tiny_tokenizer as tokenizer_of
from torch.nn import functional
from transformers import PreTrainedModel

from depthprune_core import text
from depthprune_core.evaluation import continuations, divergence, score, write_text
from depthprune_core.text import Document, Windows

START = 0


def documents_of(*lengths: int) -> list[Document]:
    generator = torch.Generator().manual_seed(1)
    drawn = [torch.randint(1, VOCABULARY, (n,), generator=generator).tolist() for n in lengths]
    contents = [" ".join(f"w{i}" for i in ids) for ids in drawn]
    return [Document(f"document {i}", content) for i, content in enumerate(contents)]


def windows_of(*lengths: int, seq_len: int = 16) -> Windows:
    return text.scoring_windows(
        documents_of(*lengths), tokenizer_of(), start=START, seq_len=seq_len
    )


def published_recipe(
    model: PreTrainedModel, ids: torch.Tensor, max_length: int, stride: int
) -> tuple[float, int]:
    """Sum of NLL and number of tokens, as in huggingface.co/docs/transformers/perplexity."""
    nll_sum, n_tokens, prev_end_loc = 0.0, 0, 0
    seq_len = ids.size(1)
    for begin_loc in range(0, seq_len, stride):
        end_loc = min(begin_loc + max_length, seq_len)
        trg_len = end_loc - prev_end_loc  # may be different from stride on last loop
        input_ids = ids[:, begin_loc:end_loc]
        target_ids = input_ids.clone()
        target_ids[:, :-trg_len] = -100
        with torch.no_grad():
            neg_log_likelihood = model(input_ids, labels=target_ids, use_cache=False).loss
        # the labels are shifted inside the model, so the first of them is not scored
        num_loss_tokens = int((target_ids[:, 1:] != -100).sum())
        nll_sum += float(neg_log_likelihood) * num_loss_tokens
        n_tokens += num_loss_tokens
        prev_end_loc = end_loc
        if end_loc == seq_len:
            break
    return nll_sum, n_tokens


def test_a_batch_without_padding_computes_none():
    model, windows = tiny("llama"), windows_of(15, 3, 3, 3, 3)
    assert windows.inputs.shape == (5, 16)
    widths: list[int] = []
    score(model, windows)  # the model is probed once
    model.model.layers[0].register_forward_pre_hook(
        lambda _, given: widths.append(given[0].size(1))
    )
    score(model, windows.take(slice(1, None)), batch_size=2)
    assert set(widths) == {3}


@pytest.mark.parametrize("seq_len", [2, 7, 16, 60])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_score_equals_the_published_strided_recipe(name, seq_len):
    model, lengths = tiny(name), (57, 16, 15, 1)
    result = score(model, windows_of(*lengths, seq_len=seq_len))
    assert result.n_tokens == lengths
    for document, nll in zip(documents_of(*lengths), result.nll_nats, strict=True):
        ids = tokenizer_of()(document.text, add_special_tokens=False).input_ids
        ids = torch.tensor([[START, *ids]])
        expected, n_tokens = published_recipe(model, ids, seq_len, seq_len // 2)
        assert n_tokens == ids.shape[1] - 1
        assert nll / n_tokens == pytest.approx(expected / n_tokens, abs=1e-4)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_document_of_one_window_scores_as_transformers_own_loss(name):
    model, windows = tiny(name), windows_of(15)
    ids = torch.cat([windows.inputs[0, :1], windows.targets[0][windows.mask[0]]])[None]
    with torch.no_grad():
        expected = model(input_ids=ids, labels=ids, use_cache=False).loss.item()
    assert score(model, windows).mean_nll_nats == pytest.approx(expected, rel=1e-5)


def test_uniform_model_has_perplexity_equal_to_vocab_size(model):
    model.get_output_embeddings().weight.data.zero_()
    result = score(model, replace(windows_of(40, 9), n_bytes=(160, 36)))
    assert result.ppl == pytest.approx(VOCABULARY, rel=1e-6)
    assert result.bits_per_byte == pytest.approx(7 / 4, rel=1e-6)  # 7 bits a token, 4 bytes a token


def test_batch_size_changes_no_score_and_no_divergence(model):
    other, windows = tiny(model.config.model_type, seed=1), windows_of(57, 12, 30)
    expected, far = score(model, windows, batch_size=3), divergence(model, other, windows)
    for batch_size in (1, 50):
        result = score(model, windows, batch_size=batch_size)
        assert result.nll_nats == pytest.approx(expected.nll_nats, abs=5e-4)
        pair = divergence(model, other, windows, batch_size=batch_size)
        assert pair.kl_nats == pytest.approx(far.kl_nats, abs=5e-4)
        assert pair.top1_agreements == far.top1_agreements


def test_divergence_equals_kl_of_full_logits_at_the_scored_positions(model):
    windows = windows_of(29, 12, 5)
    student = tiny(model.config.model_type, seed=1)
    result = divergence(student, model, windows)
    logits = plain_logits(student, windows.inputs)[windows.mask].log_softmax(-1)
    teacher_logits = plain_logits(model, windows.inputs)[windows.mask].log_softmax(-1)
    kl = functional.kl_div(logits, teacher_logits, log_target=True, reduction="none").sum(-1)
    assert result.kl_nats == pytest.approx(by_document(kl, windows), rel=1e-4)
    same = by_document(logits.argmax(-1) == teacher_logits.argmax(-1), windows)
    assert list(result.top1_agreements) == same
    assert result.n_tokens == (29, 12, 5)
    back = divergence(model, student, windows)
    assert abs(result.mean_kl_nats - back.mean_kl_nats) > 1e-3  # it has a direction


@pytest.mark.parametrize("training", [True, False])
def test_scoring_uses_no_dropout_and_leaves_the_models_unchanged(model, training):
    windows, other = windows_of(29, 12), tiny(model.config.model_type, seed=1)
    expected, far = score(model, windows), divergence(model, other, windows)
    model.train(training), other.train(training)
    unchanged = state_of(model)
    assert score(model, windows) == expected and divergence(model, other, windows) == far
    assert unchanged() and other.training == training


# ---------------------------------------------------------------- what a model writes


def test_continuations_are_greedy_and_may_begin_with_the_start_token(model):
    for start, ids in ((None, [3, 5, 7]), (9, [9, 3, 5, 7])):
        ids = torch.tensor([ids])
        n_prompt = ids.shape[1]
        for _ in range(6):
            ids = torch.cat([ids, plain_logits(model, ids)[:, -1:].argmax(-1)], dim=1)
        written = continuations(
            model, tokenizer_of(), ["w3 w5 w7", "w9"], new_tokens=6, start=start
        )
        assert written[0] == tokenizer_of().decode(ids[0, n_prompt:])


def test_written_text_is_what_the_full_distribution_gives_without_a_cache(model):
    """The reference recomputes every prefix, and inverts the same random numbers."""
    windows = write_text(model, start=2, n_windows=5, seq_len=9, seed=3, batch_size=2)
    assert windows.inputs[:, 0].tolist() == [2] * 5
    assert torch.equal(windows.inputs[:, 1:], windows.targets[:, :-1])
    assert windows.mask.all() and windows.document.tolist() == list(range(5))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        chances = torch.rand(5, 9, dtype=torch.float64)
    logits = plain_logits(model, windows.inputs).double()
    logits[..., 2] = -torch.inf
    cumulated = logits.softmax(-1).cumsum(-1)
    at = windows.targets[..., None]
    above = cumulated.gather(-1, at).squeeze(-1)
    below = torch.where(windows.targets > 0, cumulated.gather(-1, (at - 1).clamp_min(0))[..., 0], 0)
    assert (below - 1e-5 <= chances).all() and (chances <= above + 1e-5).all()


def test_writing_is_seeded_and_leaves_the_global_random_state_alone(model):
    before = torch.random.get_rng_state()
    options = {"start": 0, "n_windows": 3, "seq_len": 12}
    first, again, other = (write_text(model, seed=seed, **options) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert first.token_hash == again.token_hash != other.token_hash
    one = write_text(model, seed=1, batch_size=1, **options)
    assert one.token_hash == first.token_hash
