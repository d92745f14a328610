"""Next-token losses from hidden states, one tile of (tokens x vocabulary) at a time.

The full logits are never stored: a tile fits a processor's cache, but full logits would be read
from memory and written back for every step of a softmax.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from depthprune_core.decoder import Decoder
from depthprune_core.products import linear

TILE_TOKENS = 1_024
TILE_WORDS = {"cpu": 1_024}  # of the vocabulary; a GPU starts a kernel for each tile, so fewer
TILE_WORDS_ELSEWHERE = 16_384
BACKWARD_TOKENS = 256  # whose logits, all tiles of them, are kept until their gradient is known


@torch.no_grad()
def nll(parts: Decoder, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood of each target in nats; no gradient.  (n, d), (n,) -> (n,) float32"""
    losses = []
    pieces = zip(hidden.split(TILE_TOKENS), targets.split(TILE_TOKENS), strict=True)
    for states, target in pieces:
        normaliser, at_target = _LogSumExp(target), torch.zeros(len(target), device=target.device)
        for words, logits in _tiles(parts, states):
            at_target += _at(target, logits, words)
            normaliser.add(logits)
        losses.append(normaliser.value - at_target)
    return torch.cat(losses)


@torch.no_grad()
def nll_and_kl(
    student_hiddens: list[torch.Tensor],
    parts: Decoder,
    teacher_hidden: torch.Tensor,
    teacher_parts: Decoder,
    targets: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """NLL and KL(teacher || student) in nats, for several students that share one head.

    The teacher's distribution is computed once per tile for all students.
    k x (n, d) -> 2 x (k, n)
    """
    losses, divergences = [], []
    for start in range(0, len(targets), TILE_TOKENS):
        rows = slice(start, start + TILE_TOKENS)
        target = targets[rows]
        normaliser = _LogSumExp(target)
        for _, logits in _tiles(teacher_parts, teacher_hidden[rows]):
            normaliser.add(logits)
        students = [_LogSumExp(target) for _ in student_hiddens]
        at_target = torch.zeros(len(students), len(target), device=target.device)
        cross = torch.zeros_like(at_target)  # sum of p x the student's logit
        negative_entropy = torch.zeros_like(at_target[0])
        for words, teacher_logits in _tiles(teacher_parts, teacher_hidden[rows]):
            log_p = teacher_logits.sub_(normaliser.value[:, None])
            p = log_p.exp()
            negative_entropy += (p * log_p).sum(-1)
            for i, hidden in enumerate(student_hiddens):
                logits = parts.logits(hidden[rows], words)
                at_target[i] += _at(target, logits, words)
                cross[i] += torch.linalg.vecdot(p, logits)
                students[i].add(logits)
        normalisers = torch.stack([student.value for student in students])
        losses.append(normalisers - at_target)
        divergences.append((negative_entropy - cross + normalisers).clamp_min(0))
    return torch.cat(losses, 1), torch.cat(divergences, 1)


@torch.no_grad()
def top_tokens(parts: Decoder, hidden: torch.Tensor) -> torch.Tensor:
    """The most likely next token; the lower id wins a tie.  (n, d) -> (n,)"""
    best = torch.full((len(hidden),), -torch.inf, device=hidden.device)
    token = torch.zeros(len(hidden), dtype=torch.long, device=hidden.device)
    for words, logits in _tiles(parts, hidden):
        value, index = logits.max(-1)
        token = torch.where(value > best, index + words.start, token)
        best = torch.maximum(best, value)
    return token


@torch.no_grad()
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
    """Masked CE and T^2-scaled KL(teacher || student), summed over tokens, and their gradient.

    The gradient is that of `scale x (ce x CE + kl x KL)`. The head's gradient is added to .grad;
    the gradient for `hidden` is returned, for the rest of the model. On the logits it has a closed
    form (softmax minus target distribution), so this needs no graph, no second copy of the logits
    and no recomputation. Matrix products run in autocast's dtype if autocast is on.
    hidden (n, d), targets (n,), mask (n,) -> {"ce": nats, "kl": nats}, (n, d)
    """
    device = hidden.device
    gradient = torch.zeros(hidden.shape, dtype=torch.float32, device=device)
    totals = {term: torch.zeros((), dtype=torch.float64, device=device) for term in ("ce", "kl")}
    ours, theirs = _Head(parts, device), _Head(teacher[0], device) if kl else None
    for start in range(0, len(targets), BACKWARD_TOKENS):
        rows = slice(start, start + BACKWARD_TOKENS)
        inputs, target, kept = hidden[rows].to(ours.dtype), targets[rows], mask[rows].float()
        logits = ours.fill(inputs)
        if ce:
            normaliser = _normaliser(logits, target)
            totals["ce"] += (normaliser[:, 0] * kept).sum()
        if kl:
            teacher_logits = theirs.fill(teacher[1][rows].to(theirs.dtype))
            log_z = _normaliser(logits, target, temperature)
            teacher_log_z = _normaliser(teacher_logits, target, temperature)
        for tile, words in enumerate(ours.words):
            z, into = logits[tile], None  # (chunk, tile)
            if kl:
                into = torch.div(z, temperature).sub_(log_z)  # log q
                log_p = teacher_logits[tile].div_(temperature).sub_(teacher_log_z)
                p = log_p.exp()
                by_token = torch.linalg.vecdot(p, log_p.sub_(into))
                totals["kl"] += temperature**2 * (by_token * kept).sum()
                into.exp_().sub_(p).mul_(kl * temperature)
            if ce:
                totals["ce"] -= (_at(target, z, words) * kept).sum()
                q = torch.sub(z, normaliser).exp_().mul_(ce)
                into = q if into is None else into.add_(q)
                inside, index = _where(target, words)
                into.scatter_add_(1, index[:, None], (inside * -ce).to(into.dtype)[:, None])
            gradient[rows] += ours.backward(into.mul_(scale * kept[:, None]), z, inputs, words)
    return {term: float(total) for term, total in totals.items()}, gradient.to(hidden.dtype)


class _LogSumExp:
    """log(sum(exp(logits))) of logits that come one tile at a time."""

    def __init__(self, like: torch.Tensor) -> None:
        self.top = torch.full((len(like),), -torch.inf, device=like.device)
        self.total = torch.zeros(len(like), device=like.device)

    def add(self, logits: torch.Tensor, into: torch.Tensor | None = None) -> None:
        """Takes in a tile (n, width), which is overwritten unless `into` is given to work in."""
        top = torch.maximum(self.top, logits.amax(-1))
        shifted = torch.sub(logits, top[:, None], out=logits if into is None else into)
        self.total = self.total * (self.top - top).exp() + shifted.exp_().sum(-1)
        self.top = top

    @property
    def value(self) -> torch.Tensor:
        return self.total.log() + self.top


class _Head:
    """The head for training: logits of a chunk of tokens in one buffer, and their gradients."""

    def __init__(self, parts: Decoder, device: torch.device) -> None:
        self.head, self.softcap, self.scale = parts.head, parts.softcap, parts.scale
        autocast = torch.is_autocast_enabled(device.type)
        weight = self.head.weight
        self.dtype = torch.get_autocast_dtype(device.type) if autocast else weight.dtype
        self.weight = weight.detach().to(self.dtype)
        self.words = list(_words(len(weight), device))
        n = BACKWARD_TOKENS * len(weight)
        self.buffer = torch.empty(n, dtype=torch.float32, device=device)

    def fill(self, inputs: torch.Tensor) -> list[torch.Tensor]:
        """Logits tile by tile, each in a piece of the buffer.  (chunk, d) -> (chunk, width) each"""
        tiles = []
        for words in self.words:
            shape = (len(inputs), words.stop - words.start)
            piece = self.buffer[len(inputs) * words.start : len(inputs) * words.stop]
            tile = piece.view(shape).copy_(linear(inputs, self.weight[words]))
            if self.head.bias is not None:
                tile.add_(self.head.bias[words])
            if self.scale != 1:
                tile.mul_(self.scale)
            if self.softcap:
                tile.div_(self.softcap).tanh_().mul_(self.softcap)
            tiles.append(tile)
        return tiles

    def backward(
        self, gradient: torch.Tensor, logits: torch.Tensor, inputs: torch.Tensor, words: slice
    ) -> torch.Tensor:
        """Gradient on a tile's logits -> on `inputs`; the head's is added to its .grad."""
        if self.softcap:
            gradient.mul_(1 - torch.div(logits, self.softcap).square_())
        if self.scale != 1:
            gradient.mul_(self.scale)
        narrow = gradient.to(self.dtype)
        for p in (self.head.weight, self.head.bias):
            if p is not None and p.requires_grad and p.grad is None:
                p.grad = torch.zeros_like(p)
        if self.head.weight.requires_grad:
            self.head.weight.grad[words] += linear(narrow.T, inputs.T)
        if self.head.bias is not None and self.head.bias.requires_grad:
            self.head.bias.grad[words] += gradient.sum(0)
        return linear(narrow, self.weight[words].T)


def _normaliser(
    tiles: list[torch.Tensor], like: torch.Tensor, temperature: float = 1.0
) -> torch.Tensor:
    """The normaliser, (n, 1); the tiles are unchanged."""
    total, room = _LogSumExp(like), torch.empty_like(tiles[0])
    for tile in tiles:
        into = room[:, : tile.shape[1]]
        total.add(torch.div(tile, temperature, out=into) if temperature != 1 else tile, into)
    return total.value[:, None]


def _words(vocabulary: int, device: torch.device) -> Iterator[slice]:
    width = TILE_WORDS.get(device.type, TILE_WORDS_ELSEWHERE)
    for start in range(0, vocabulary, width):
        yield slice(start, min(start + width, vocabulary))


def _tiles(parts: Decoder, hidden: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
    for words in _words(len(parts.head.weight), hidden.device):
        yield words, parts.logits(hidden, words)


def _at(targets: torch.Tensor, logits: torch.Tensor, words: slice) -> torch.Tensor:
    """Each target's logit if it is in this tile, else 0.  (n,)"""
    inside, index = _where(targets, words)
    return torch.where(inside, logits.gather(-1, index[:, None])[:, 0], 0.0)


def _where(targets: torch.Tensor, words: slice) -> tuple[torch.Tensor, torch.Tensor]:
    """Which targets are in a tile, and their columns (an arbitrary column for the others)."""
    inside = (targets >= words.start) & (targets < words.stop)
    return inside, (targets - words.start).clamp(0, words.stop - words.start - 1)
