"""Scores a model on text, measures its divergence from the teacher, and samples text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel

from depthprune_core import losses
from depthprune_core.anatomy import anatomy
from depthprune_core.products import fast_products
from depthprune_core.progress import Progress, silent
from depthprune_core.records import Divergence, Score
from depthprune_core.running import hidden_states
from depthprune_core.text import Windows


@contextmanager
def _evaluating(*models: PreTrainedModel) -> Iterator[None]:
    """Disables dropout within the block."""
    modes = [model.training for model in models]
    try:
        for model in models:
            model.eval()
        yield
    finally:
        for model, mode in zip(models, modes, strict=True):
            model.train(mode)


@torch.no_grad()
def score(
    model: PreTrainedModel, windows: Windows, *, batch_size: int = 4, progress: Progress = silent
) -> Score:
    """Negative log-likelihood of every scored token, summed by document (nats).

    Terms are float32, sums float64. The model and its training flag are unchanged.
    """
    parts = anatomy(model)
    sums = torch.zeros(len(windows.names), dtype=torch.float64)
    with _evaluating(model):
        for done, batch in enumerate(windows.batches(batch_size)):
            mask = batch.mask.to(model.device)
            hidden = hidden_states(parts, batch.inputs.to(model.device))[mask]  # (n_scored, d)
            values = losses.nll(parts, hidden, batch.targets.to(model.device)[mask])
            sums.index_add_(0, batch.owner, values.double().cpu())
            progress(min((done + 1) * batch_size, len(windows)), len(windows), "windows scored")
    nll_nats = tuple(sums.tolist())
    return Score(windows.names, nll_nats, windows.tokens_by_document, windows.n_bytes)


@torch.no_grad()
def divergence(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    windows: Windows,
    *,
    batch_size: int = 4,
    progress: Progress = silent,
) -> Divergence:
    """KL(teacher || student) and top-1 agreement at the scored tokens, summed by document."""
    ours, theirs = anatomy(student), anatomy(teacher)
    kl_sums = torch.zeros(len(windows.names), dtype=torch.float64)
    agreements = torch.zeros(len(windows.names), dtype=torch.long)
    with _evaluating(student, teacher):
        for done, batch in enumerate(windows.batches(batch_size)):
            ids, mask = batch.inputs.to(student.device), batch.mask.to(student.device)
            hidden = hidden_states(ours, ids)[mask]  # (n_scored, d)
            teacher_hidden = hidden_states(theirs, ids)[mask]
            targets = batch.targets.to(student.device)[mask]
            _, kl = losses.nll_and_kl([hidden], ours, teacher_hidden, theirs, targets)
            same = losses.top_tokens(ours, hidden) == losses.top_tokens(theirs, teacher_hidden)
            kl_sums.index_add_(0, batch.owner, kl[0].double().cpu())
            agreements.index_add_(0, batch.owner, same.long().cpu())
            progress(min((done + 1) * batch_size, len(windows)), len(windows), "windows compared")
    return Divergence(
        documents=windows.names,
        kl_nats=tuple(kl_sums.tolist()),
        top1_agreements=tuple(agreements.tolist()),
        n_tokens=windows.tokens_by_document,
    )


@torch.no_grad()
def continuations(
    model: PreTrainedModel,
    tokenizer: Any,
    prompts: Sequence[str],
    *,
    new_tokens: int,
    start: int | None = None,
) -> list[str]:
    """Greedy continuations of prompts, as text. `start` (if given) precedes each prompt."""
    texts = []
    for prompt in prompts:
        ids = tokenizer(prompt, add_special_tokens=False).input_ids
        ids = torch.tensor([ids if start is None else [start, *ids]], device=model.device)
        written = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new_tokens,
            do_sample=False,
            pad_token_id=tokenizer.eos_token_id,
        )
        texts.append(tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True))
    return texts


@torch.no_grad()
def write_text(
    model: PreTrainedModel,
    *,
    start: int,
    n_windows: int,
    seq_len: int,
    seed: int,
    batch_size: int = 16,
    progress: Progress = silent,
) -> Windows:
    """Documents sampled from the model at temperature 1, `seq_len` tokens each.

    A document begins with `start`, which is never drawn again. Document i gets the same random
    numbers for every batch size. The result has token ids but no text, so `n_bytes` is 0.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        chances = torch.rand(n_windows, seq_len, dtype=torch.float64)
    written, done = [], 0
    with _evaluating(model):
        for batch in chances.split(batch_size):
            written.append(_write(model, start, batch))
            done += len(batch)
            progress(done * seq_len, n_windows * seq_len, "tokens written")
    targets = torch.cat(written)  # (n_windows, seq_len)
    inputs = torch.cat([torch.full((n_windows, 1), start), targets[:, :-1]], dim=1)
    names = tuple(f"own words {i}" for i in range(n_windows))
    mask = torch.ones(targets.shape, dtype=torch.bool)
    return Windows(inputs, targets, mask, torch.arange(n_windows), names, (0,) * n_windows)


def _write(model: PreTrainedModel, start: int, chances: torch.Tensor) -> torch.Tensor:
    """Tokens by inversion: the first whose cumulated probability exceeds the random number."""
    parts = anatomy(model)
    ids = torch.full((len(chances), 1), start, device=model.device)
    cache, written = None, []
    with fast_products(parts.base):
        for chance in chances.to(model.device).T:
            out = parts.base(input_ids=ids, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            logits = parts.logits(out.last_hidden_state[:, -1])  # (batch, vocabulary)
            logits[:, start] = -torch.inf
            cumulated = logits.softmax(-1).cumsum(-1, dtype=torch.float64)
            # the last sum is 1 but for rounding; the product keeps the number below it
            wanted = chance[:, None] * cumulated[:, -1:]
            ids = torch.searchsorted(cumulated, wanted, right=True)
            written.append(ids.cpu())
    return torch.cat(written, dim=1)
