"""Probes: small generated tasks that show which abilities a cut loses and healing restores.

An item is a context and two or more candidates; one is right. The model's answer is the candidate
with the largest total log-likelihood after the document-start token and the context. No item comes
from a benchmark. All students get the same items in the same order, so answers are paired.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel

from depthprune_core import losses
from depthprune_core.anatomy import anatomy
from depthprune_core.models import Teacher
from depthprune_core.progress import Progress, silent
from depthprune_core.records import Answers
from depthprune_core.running import hidden_states
from depthprune_study import provenance
from depthprune_study.lab import scoring
from depthprune_study.lab.harness import harness
from depthprune_study.lab.items import Item, make_items

if TYPE_CHECKING:
    from depthprune_study.lab.students import Student
    from depthprune_study.lab.workspace import Workspace

__all__ = ["answers", "harness", "right"]

BATCH_TOKENS = 2_048  # per forward pass, with padding
NOT_OF_THE_ANSWERS = (  # the items are hashed themselves; the others give no answers
    "depthprune_study.provenance",
    *(
        f"depthprune_study.lab.{n}"
        for n in ("harness", "items", "scoring", "students", "workspace")
    ),
)


def answers(
    lab: Workspace, students: Mapping[str, Student | Teacher], *, n_items: int
) -> dict[str, Answers]:
    """Which items each student gets right: {f"{name}: {family}": Answers}, record `probes`.

    `n_items` in total, in equal shares; if a text gives too few, the other families give more.
    """
    passages = {"articles": lab.split("test"), "news": lab.split("test", "news-excerpt")}
    items = make_items(n_items, passages)
    teacher = lab.teacher
    tokenizer, start = teacher.tokenizer, teacher.start

    def answered(model: PreTrainedModel) -> dict[str, Answers]:
        marks = right(model, tokenizer, items, start=start, progress=lab.progress)
        of: dict[str, list[bool]] = {}
        for item, mark in zip(items, marks, strict=True):
            of.setdefault(item.family, []).append(mark)
        return {family: Answers(family, tuple(marks)) for family, marks in of.items()}

    code = provenance.code_hash(__name__, without=NOT_OF_THE_ANSWERS)
    ids = tokenizer([item.context for item in items]).input_ids
    on = [code, start, [asdict(item) for item in items], ids]
    each = scoring.each(lab, "probes", students, answered, on=on, room="evaluation")
    found = {f"{name}: {family}": a for name, of in each.items() for family, a in of.items()}
    return lab.save("probes", found)


@torch.no_grad()
def right(
    model: PreTrainedModel,
    tokenizer: Any,
    items: Sequence[Item],
    *,
    start: int,
    progress: Progress = silent,
) -> list[bool]:
    """Whether the right candidate has the largest log-likelihood; a tie counts as wrong."""
    scores = log_likelihoods(model, tokenizer, items, start=start, progress=progress)
    return [
        all(row[item.right] > value for i, value in enumerate(row) if i != item.right)
        for item, row in zip(items, scores, strict=True)
    ]


@torch.no_grad()
def log_likelihoods(
    model: PreTrainedModel,
    tokenizer: Any,
    items: Sequence[Item],
    *,
    start: int,
    progress: Progress = silent,
) -> list[list[float]]:
    """For each item's candidates: total log-likelihood (nats) of the tokens in which they differ.

    The whole text [start] + context + candidate is tokenised. A sequence that is a prefix of
    another is not run separately. So an item with one-token candidates costs one pass over its
    context.
    """
    texts = [item.context + candidate for item in items for candidate in item.candidates]
    encoded = iter(tokenizer(texts, add_special_tokens=False).input_ids) if texts else iter(())
    rows, asked = [], []  # sequences; per candidate (item, row, first scored position, tokens)
    for number, item in enumerate(items):
        sequences = [[start, *next(encoded)] for _ in item.candidates]
        shared = _shared(sequences)
        inputs = sorted({tuple(ids[:-1]) for ids in sequences}, key=len, reverse=True)
        needed: list[tuple[int, ...]] = []
        for ids in inputs:
            if not any(longer[: len(ids)] == ids for longer in needed):
                needed.append(ids)
        for ids in sequences:
            row = next(
                i for i, longer in enumerate(needed) if list(longer[: len(ids) - 1]) == ids[:-1]
            )
            asked.append((number, len(rows) + row, shared - 1, ids[shared:]))
        rows.extend(needed)
    return _scored(model, rows, asked, len(items), progress)


def _scored(
    model: PreTrainedModel,
    rows: list[tuple[int, ...]],
    asked: list[tuple[int, int, int, list[int]]],
    n_items: int,
    progress: Progress,
) -> list[list[float]]:
    parts = anatomy(model)
    of_row: dict[int, list[int]] = {}
    for index, (_, row, _, _) in enumerate(asked):
        of_row.setdefault(row, []).append(index)
    values = [0.0] * len(asked)
    for batch in _batches(rows):
        ids = torch.zeros(len(batch), len(rows[batch[0]]), dtype=torch.long)
        at, targets, owners = [], [], []
        for line, row in enumerate(batch):
            ids[line, : len(rows[row])] = torch.tensor(rows[row])  # padding is never attended to
            for index in of_row[row]:
                _, _, first, tokens = asked[index]
                at += [(line, first + i) for i in range(len(tokens))]
                targets += tokens
                owners += [index] * len(tokens)
        hidden = hidden_states(parts, ids.to(model.device))
        where = torch.tensor(at, device=hidden.device)
        chosen = hidden[where[:, 0], where[:, 1]]  # (n, d)
        lost = losses.nll(parts, chosen, torch.tensor(targets, device=hidden.device))
        for index, value in zip(owners, lost.tolist(), strict=True):
            values[index] -= value
        progress(max(asked[i][0] for i in of_row[batch[-1]]) + 1, n_items, "items answered")
    found: list[list[float]] = [[] for _ in range(n_items)]
    for (number, _, _, _), value in zip(asked, values, strict=True):
        found[number].append(value)
    return found


def _batches(rows: list[tuple[int, ...]]) -> list[list[int]]:
    """Row numbers, longest first, so that rows of a batch have similar lengths."""
    batches: list[list[int]] = []
    for row in sorted(range(len(rows)), key=lambda row: -len(rows[row])):
        if batches and (len(batches[-1]) + 1) * len(rows[batches[-1][0]]) <= BATCH_TOKENS:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


def _shared(sequences: list[list[int]]) -> int:
    """The length of the common prefix, in tokens."""
    first, last = min(sequences), max(sequences)
    same = (i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b)
    return next(same, min(len(first), len(last)))
