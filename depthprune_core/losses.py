"""Next-token losses from hidden states, a chunk of tokens at a time: (tokens x vocab) logits never exist as a whole."""

from __future__ import annotations

import torch

from depthprune_core.models import Decoder

CHUNK_TOKENS = 256


def nll(parts: Decoder, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood of each target in nats.  (n, d), (n,) -> (n,) float32"""
    pieces = zip(hidden.split(CHUNK_TOKENS), targets.split(CHUNK_TOKENS), strict=True)
    return torch.cat([_nll_of_logits(parts.logits(h), t) for h, t in pieces])


def nll_and_kl(
    student_hiddens: list[torch.Tensor],
    parts: Decoder,
    teacher_hidden: torch.Tensor,
    teacher_parts: Decoder,
    targets: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """NLL, KL(teacher || student) in nats, and top-1 agreement, of several students that share one head.

    The teacher's distribution is computed once a chunk, whatever the number of students.  k x (n, d) -> 3 x (k, n)
    """
    losses, divergences, agreements = [], [], []
    for start in range(0, len(targets), CHUNK_TOKENS):
        rows = slice(start, start + CHUNK_TOKENS)
        log_p = teacher_parts.logits(teacher_hidden[rows]).log_softmax(-1)  # (chunk, vocab)
        p, top = log_p.exp(), log_p.argmax(-1)
        negative_entropy = (p * log_p).sum(-1)
        of_chunk = []
        for hidden in student_hiddens:
            logits = parts.logits(hidden[rows])
            normaliser = logits.logsumexp(-1)
            kl = negative_entropy - torch.einsum("nv,nv->n", p, logits) + normaliser
            loss = normaliser - logits.gather(-1, targets[rows, None])[:, 0]
            of_chunk.append((loss, kl.clamp_min(0), logits.argmax(-1) == top))
        for sink, values in zip((losses, divergences, agreements), zip(*of_chunk, strict=True), strict=True):
            sink.append(torch.stack(values))
    return torch.cat(losses, 1), torch.cat(divergences, 1), torch.cat(agreements, 1)


def backward_in_chunks(
    parts: Decoder,
    hidden: torch.Tensor,
    targets: torch.Tensor,
    mask: torch.Tensor,
    *,
    scale: float,
    ce: float = 0.0,
    kl: float = 0.0,
    temperature: float = 1.0,
    teacher: tuple[Decoder, torch.Tensor] | None = None,
) -> tuple[dict[str, float], torch.Tensor]:
    """Masked CE and T^2-scaled KL(teacher || student), summed over tokens, with the gradient of
    `scale x (ce x CE + kl x KL)` on the head (added to its .grad) and on `hidden` (returned, for the rest of the model).

    Each chunk's logits are made, differentiated and freed before the next: no second copy, nothing recomputed.
    hidden (n, d), targets (n,), mask (n,) -> {"ce": nats, "kl": nats}, (n, d)
    """
    leaf = hidden.detach().requires_grad_()
    leaf.grad = torch.zeros_like(leaf)
    totals = {"ce": 0.0, "kl": 0.0}
    for start in range(0, len(targets) if ce or kl else 0, CHUNK_TOKENS):  # the hidden term alone needs no logits
        rows = slice(start, start + CHUNK_TOKENS)
        kept = mask[rows].float()
        logits = parts.logits(leaf[rows])  # (chunk, vocab)
        loss = logits.new_zeros(())
        if ce:
            term = (_nll_of_logits(logits, targets[rows]) * kept).sum()
            totals["ce"] += float(term.detach())
            loss = loss + ce * term
        if kl:
            teacher_parts, teacher_hidden = teacher
            with torch.no_grad():
                log_p = (teacher_parts.logits(teacher_hidden[rows]) / temperature).log_softmax(-1)
            log_q = (logits / temperature).log_softmax(-1)
            term = temperature**2 * ((log_p.exp() * (log_p - log_q)).sum(-1) * kept).sum()
            totals["kl"] += float(term.detach())
            loss = loss + kl * term
        (scale * loss).backward()
    return totals, leaf.grad


def _nll_of_logits(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return logits.logsumexp(-1) - logits.gather(-1, targets[:, None])[:, 0]
