"""Documents -> windows of tokens, for scoring every token once and for training."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Document:
    """One text that is scored separately: an article, a news story, a passage."""

    name: str
    text: str


@dataclass(frozen=True)
class Windows:
    """Windows of tokens that never cross a document. `inputs[w, t]` predicts `targets[w, t]`.

    A position counts if `mask` is True; the others are padding, or context that an earlier window
    has already scored.
    """

    inputs: torch.Tensor  # (n_windows, seq_len) int64
    targets: torch.Tensor  # (n_windows, seq_len) int64
    mask: torch.Tensor  # (n_windows, seq_len) bool; True = this target is scored
    document: torch.Tensor  # (n_windows,) int64, index into `names`
    names: tuple[str, ...]
    n_bytes: tuple[int, ...]  # UTF-8 bytes of the text that the targets cover, one a document

    def __len__(self) -> int:
        return self.inputs.shape[0]

    @property
    def n_tokens(self) -> int:
        """Scored tokens."""
        return int(self.mask.sum())

    @property
    def seq_len(self) -> int:
        return self.inputs.shape[1]

    @property
    def owner(self) -> torch.Tensor:
        """The document of each scored token.  (n_tokens,)"""
        return self.document[:, None].expand_as(self.mask)[self.mask]

    @property
    def tokens_by_document(self) -> tuple[int, ...]:
        """Scored tokens, one number a document."""
        return tuple(torch.bincount(self.owner, minlength=len(self.names)).tolist())

    @property
    def token_hash(self) -> str:
        """Hash of the exact token ids, their order and their windows."""
        shape = repr((tuple(self.inputs.shape), self.names, self.n_bytes))
        digest = hashlib.sha256(shape.encode())
        for tensor in (self.inputs, self.targets, self.mask, self.document):
            digest.update(tensor.numpy().tobytes())
        return digest.hexdigest()[:16]

    def take(self, rows: torch.Tensor | slice) -> Windows:
        """The same documents, but only these windows, in this order."""
        parts = (self.inputs[rows], self.targets[rows], self.mask[rows], self.document[rows])
        return Windows(*parts, self.names, self.n_bytes)

    def trimmed(self) -> Windows:
        """Without the columns after the last scored target; no scored target depends on them."""
        parts = (self.inputs, self.targets, self.mask)
        end = int(self.mask.any(0).nonzero().max()) + 1
        return Windows(*(part[:, :end] for part in parts), self.document, self.names, self.n_bytes)

    def batches(self, batch_size: int) -> Iterator[Windows]:
        """Some windows at a time, without the padding that all of them have at their end."""
        for begin in range(0, len(self), batch_size):
            yield self.take(slice(begin, begin + batch_size)).trimmed()


def scoring_windows(
    documents: Sequence[Document],
    tokenizer: Any,
    *,
    start: int,
    seq_len: int,
    tokens_per_document: int | None = None,
) -> Windows:
    """Windows of `seq_len` tokens, half a window apart: every token is scored exactly once.

    A document is `start` and its first `tokens_per_document` tokens (None: all). The first window
    scores all its targets; each later window scores its second half, with at least half a window
    of context. This is the strided method of Hugging Face's page "Perplexity of fixed-length
    models" with max_length = seq_len and stride = seq_len // 2, document by document.

    Raises ValueError for seq_len below 2, and if the documents contain no token.
    """
    if seq_len < 2:
        raise ValueError(f"seq_len must be 2 or more, not {seq_len}: one token predicts nothing")
    rows, owners, n_bytes = [], [], []
    for owner, document in enumerate(documents):
        ids, covered = _tokens(document, tokenizer, start, tokens_per_document)
        n_bytes.append(covered)
        scored_to = 1  # the start token is given, not predicted
        for begin in range(0, len(ids), seq_len // 2):
            end = min(begin + seq_len, len(ids))
            if scored_to < end:
                rows.append((ids[begin:end], scored_to - begin))
                owners.append(owner)
            scored_to = end
            if end == len(ids):
                break
    if not rows:
        raise ValueError(f"there is nothing to score: {len(documents)} documents hold no token")
    longest = max(len(window) for window, _ in rows)  # no window is wider than the longest document
    inputs = torch.zeros(len(rows), longest, dtype=torch.long)
    targets, mask = torch.zeros_like(inputs), torch.zeros(inputs.shape, dtype=torch.bool)
    for row, (window, first) in enumerate(rows):
        n_targets = len(window) - 1
        inputs[row, : n_targets + 1] = torch.tensor(window)
        targets[row, :n_targets] = inputs[row, 1 : n_targets + 1]
        mask[row, first - 1 : n_targets] = True
    names = tuple(document.name for document in documents)
    return Windows(inputs, targets, mask, torch.tensor(owners), names, tuple(n_bytes))


def training_windows(
    documents: Sequence[Document], tokenizer: Any, *, start: int, seq_len: int
) -> Windows:
    """Full windows without overlap: a token is a target at most once; a document's rest is unused.

    `start` is only at a document's beginning. Raises ValueError if no window can be filled.
    """
    rows, owners, n_bytes = [], [], []
    for owner, document in enumerate(documents):
        ids, covered = _tokens(document, tokenizer, start, None)
        n_bytes.append(covered)
        for begin in range(0, len(ids) - seq_len, seq_len):
            # the next window begins with this one's last target
            rows.append(ids[begin : begin + seq_len + 1])
            owners.append(owner)
    if not rows:
        n_chars = sum(len(document.text) for document in documents)
        raise ValueError(
            f"the text is too short: {n_chars:,} characters in {len(documents)} documents give no "
            f"full window of seq_len={seq_len} tokens"
        )
    ids = torch.tensor(rows)  # (n_windows, seq_len + 1)
    mask = torch.ones(len(rows), seq_len, dtype=torch.bool)
    parts = (ids[:, :-1].contiguous(), ids[:, 1:].contiguous(), mask, torch.tensor(owners))
    names = tuple(document.name for document in documents)
    return Windows(*parts, names, tuple(n_bytes))


def draw(pool: Windows, *, n_tokens: int, seed: int) -> Windows:
    """A training sample of `n_tokens // seq_len` windows; each seed draws its own documents.

    It takes half of the documents in random order, or more if half is not enough. It takes one
    window of each in turn, so that a short sample also reads many documents, and then shuffles the
    windows. The whole pool is used before a window repeats, each time in a new order.
    """
    wanted = n_tokens // pool.seq_len
    if wanted < 1:
        raise ValueError(f"n_tokens={n_tokens} is less than one window of {pool.seq_len} tokens")
    generator = torch.Generator().manual_seed(seed)
    drawn: list[torch.Tensor] = []
    # how many windows of its document stand before each window; documents stand in order
    turn = torch.arange(len(pool)) - torch.searchsorted(pool.document, pool.document)
    while wanted:
        place = torch.randperm(len(pool.names), generator=generator)[pool.document]
        half = max(len(pool.names) // 2, int(place.sort().values[:wanted].max()) + 1)
        # documents of the half first; among these, every document's first window, then its second
        rank = torch.where(place < half, turn, turn + len(pool)) * len(pool.names) + place
        rows = rank.argsort()[:wanted]
        drawn.append(rows[torch.randperm(len(rows), generator=generator)])
        wanted -= len(rows)
    return pool.take(torch.cat(drawn))


def _tokens(
    document: Document, tokenizer: Any, start: int, limit: int | None
) -> tuple[list[int], int]:
    """`start` and the ids of the document's first `limit` tokens, and the bytes they cover."""
    encoded = tokenizer(
        document.text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
    )
    ids = encoded["input_ids"][:limit]
    end = encoded["offset_mapping"][len(ids) - 1][1] if ids else 0
    return [start, *ids], len(document.text[:end].encode())
