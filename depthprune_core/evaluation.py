"""How well a model predicts text, alone and next to its teacher."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from depthprune_core import losses
from depthprune_core.decoders import decoder, hidden_states
from depthprune_core.progress import Progress, silent
from depthprune_core.records import Divergence, Score
from depthprune_core.text import Windows


@torch.no_grad()
def score(model: PreTrainedModel, windows: Windows, *, batch_size: int = 4, progress: Progress = silent) -> Score:
    """Negative log-likelihood of every scored token, summed by document (nats, float64 sums of float32 terms)."""
    parts = decoder(model)
    was_training = model.training
    model.eval()
    sums = torch.zeros(len(windows.names), dtype=torch.float64)
    counts = torch.zeros(len(windows.names), dtype=torch.long)
    for done, batch in enumerate(windows.batches(batch_size)):
        mask = batch.mask.to(model.device)
        hidden = hidden_states(model, batch.inputs.to(model.device))[mask]
        values = losses.nll(parts, hidden, batch.targets.to(model.device)[mask])
        owner = batch.document[:, None].expand_as(batch.mask)[batch.mask]
        sums.index_add_(0, owner, values.double().cpu())
        counts.index_add_(0, owner, torch.ones_like(owner))
        progress(min((done + 1) * batch_size, len(windows)), len(windows), "windows scored")
    model.train(was_training)
    return Score(windows.names, tuple(sums.tolist()), tuple(counts.tolist()), windows.n_bytes)


@torch.no_grad()
def divergence(student: PreTrainedModel, teacher: PreTrainedModel, windows: Windows, *, batch_size: int = 4) -> Divergence:
    """KL(teacher || student) and top-1 agreement, by document. Both models must share a vocabulary."""
    ours, theirs = decoder(student), decoder(teacher)
    kl_sums = torch.zeros(len(windows.names), dtype=torch.float64)
    agreements = torch.zeros(len(windows.names), dtype=torch.long)
    counts = torch.zeros(len(windows.names), dtype=torch.long)
    for batch in windows.batches(batch_size):
        ids, mask = batch.inputs.to(student.device), batch.mask.to(student.device)
        hidden, teacher_hidden = hidden_states(student, ids)[mask], hidden_states(teacher, ids)[mask]
        _, kl = losses.nll_and_kl([hidden], ours, teacher_hidden, theirs, batch.targets.to(student.device)[mask])
        same = losses.top_tokens(ours, hidden) == losses.top_tokens(theirs, teacher_hidden)
        owner = batch.document[:, None].expand_as(batch.mask)[batch.mask]
        kl_sums.index_add_(0, owner, kl[0].double().cpu())
        agreements.index_add_(0, owner, same.long().cpu())
        counts.index_add_(0, owner, torch.ones_like(owner))
    return Divergence(windows.names, tuple(kl_sums.tolist()), tuple(agreements.tolist()), tuple(counts.tolist()))


@torch.no_grad()
def continuations(model: PreTrainedModel, tokenizer: object, prompts: list[str], *, new_tokens: int) -> list[str]:
    """Greedy continuations, as text."""
    texts = []
    for prompt in prompts:
        ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False).input_ids.to(model.device)
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new_tokens,
            do_sample=False,
            pad_token_id=tokenizer.eos_token_id,
        )
        texts.append(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))
    return texts
