"""Windows: every token once, the start token only at a document's beginning."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from depthprune_core import text
from depthprune_core.models import BUNDLED
from depthprune_core.text import Document, Windows

START = 5  # an arbitrary token
MIXED = [
    Document("plain", "The cat sat on the mat, and then the dog sat on the cat. " * 3),
    Document("accents", "Żółta łódź płynęła; 東京都 の 天気 は 晴れ 😀😀 — naïve café. " * 2),
    Document("short", "Yes."),
]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level, so a character can be cut in two."""
    return AutoTokenizer.from_pretrained(BUNDLED / "gpt2-mini")


def counting(*lengths: int) -> list[Document]:
    """Documents with different tokens of `tiny_tokenizer`, as far as it has enough."""
    words = [" ".join(f"w{1 + i % 127}" for i in range(length)) for length in lengths]
    return [Document(f"document {i}", content) for i, content in enumerate(words)]


def scored_of(windows: Windows, document: int) -> list[int]:
    """The targets that count in a document, in order."""
    rows = windows.document == document
    return windows.targets[rows][windows.mask[rows]].tolist()


# ---------------------------------------------------------------- to score


@settings(max_examples=150, deadline=None)
@given(lengths=st.lists(st.integers(0, 70), min_size=1, max_size=4), seq_len=st.integers(2, 40))
def test_windows_hold_for_every_length(lengths, seq_len):
    documents, tokenizer = counting(*lengths), tiny_tokenizer()
    if not any(lengths):
        with pytest.raises(ValueError, match="nothing to score"):
            text.scoring_windows(documents, tokenizer, start=START, seq_len=seq_len)
        return
    windows = text.scoring_windows(documents, tokenizer, start=START, seq_len=seq_len)
    assert windows.seq_len <= seq_len
    for index, length in enumerate(lengths):
        ids = [1 + i % 127 for i in range(length)]
        assert scored_of(windows, index) == ids
        rows = (windows.document == index).nonzero().flatten().tolist()
        for number, row in enumerate(rows):
            mask = windows.mask[row]
            first = int(mask.nonzero()[0])
            assert (
                windows.inputs[row, 1:][mask[:-1]].tolist() == windows.targets[row][mask].tolist()
            )
            if number == 0:
                assert windows.inputs[row, 0] == START and first == 0
            else:  # at least half a window of context, all of it from this document
                assert first + 1 >= seq_len / 2
                begin = number * (seq_len // 2) - 1
                assert windows.inputs[row, : first + 1].tolist() == ids[begin : begin + first + 1]


def test_a_window_of_one_token_is_refused(tokenizer):
    with pytest.raises(ValueError, match="seq_len must be 2 or more, not 1"):
        text.scoring_windows(MIXED, tokenizer, start=START, seq_len=1)


def test_only_the_first_tokens_of_a_document_are_scored(tokenizer):
    def windows(limit):
        options = {"start": START, "seq_len": 8, "tokens_per_document": limit}
        return text.scoring_windows(MIXED, tokenizer, **options)

    first, whole = windows(11), windows(None)
    for index in range(len(MIXED)):
        assert scored_of(first, index) == scored_of(whole, index)[:11]
    assert whole.n_bytes == tuple(len(d.text.encode()) for d in MIXED)
    for limit in (1, 5, 17):
        ids = scored_of(windows(limit), 0)
        assert windows(limit).n_bytes[0] == len(tokenizer.decode(ids).encode())


# ---------------------------------------------------------------- to train on


def test_windows_to_train_on_are_full_and_follow_each_other(tokenizer):
    windows = text.training_windows(MIXED, tokenizer, start=START, seq_len=8)
    assert windows.mask.all() and windows.inputs.shape[1] == 8
    for index, document in enumerate(MIXED):
        ids = tokenizer(document.text, add_special_tokens=False).input_ids
        n = len(ids) // 8 * 8
        rows = windows.document == index
        assert windows.targets[rows].flatten().tolist() == ids[:n]
        assert windows.inputs[rows].flatten().tolist() == [START, *ids][:n]


def test_a_text_shorter_than_one_window_is_refused(tokenizer):
    for documents in (MIXED[2:], [Document("empty", "")], []):
        with pytest.raises(ValueError, match=r"too short: \d+ characters .* seq_len=64 tokens"):
            text.training_windows(documents, tokenizer, start=START, seq_len=64)


# ---------------------------------------------------------------- draws


@pytest.fixture(scope="module")
def pool() -> Windows:
    """Eight documents of 1 to 8 windows, 36 in all; a window's first target tells which it is."""
    rows = torch.arange(36)
    document = torch.repeat_interleave(torch.arange(8), torch.arange(1, 9))
    ids = rows[:, None].expand(36, 16).contiguous()
    mask = torch.ones(36, 16, dtype=torch.bool)
    return Windows(ids, ids, mask, document, tuple("abcdefgh"), (64,) * 8)


def test_each_seed_draws_other_documents_and_a_short_sample_reads_half_of_them(pool):
    samples = [text.draw(pool, n_tokens=10 * 16, seed=seed) for seed in range(6)]
    assert text.draw(pool, n_tokens=10 * 16, seed=5).token_hash == samples[5].token_hash
    assert len({frozenset(sample.document.tolist()) for sample in samples}) >= 4
    for sample in samples:
        counts = [int((sample.document == d).sum()) for d in sample.document.unique()]
        assert len(sample) == 10 and len(counts) == len(pool.names) // 2
        assert max(counts) - min(counts) <= 1 or max(counts) <= 3


def test_the_whole_pool_comes_before_any_window_comes_again(pool):
    rows = text.draw(pool, n_tokens=(2 * 36 + 3) * 16, seed=0).targets[:, 0].tolist()
    first, second, third = rows[:36], rows[36:72], rows[72:]
    assert sorted(first) == sorted(second) == list(range(36))
    assert first != second and len(third) == 3


def test_a_draw_has_the_requested_length_and_leaves_global_random_state(pool):
    before = torch.random.get_rng_state()
    assert text.draw(pool, n_tokens=100, seed=0).n_tokens == 96  # six windows of 16
    assert torch.equal(torch.random.get_rng_state(), before)
    with pytest.raises(ValueError, match="n_tokens=15 is less than one window of 16 tokens"):
        text.draw(pool, n_tokens=15, seed=0)


def test_the_token_hash_depends_on_order_document_and_mask(pool):
    hashes = {
        pool.token_hash,
        pool.take(torch.tensor([0, 1])).token_hash,
        pool.take(torch.tensor([1, 0])).token_hash,
        replace(pool, mask=~pool.mask).token_hash,
        replace(pool, names=tuple("abcdefgx")).token_hash,
    }
    assert len(hashes) == 5
