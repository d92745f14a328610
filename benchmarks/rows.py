"""The rows of the table: both sides timed in turn on the same windows, their numbers compared."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations

import torch
from torch import nn
from transformers import PreTrainedModel

from benchmarks import machine, plain
from benchmarks.measure import Row, in_turn
from depthprune_core import distillation, pruning, sensitivity, subsets
from depthprune_core.anatomy import anatomy
from depthprune_core.models import Teacher
from depthprune_core.products import linear, onednn_is_better
from depthprune_core.progress import Progress
from depthprune_core.records import Plan, Recipe
from depthprune_core.teachers import TeacherStates
from depthprune_core.text import Windows

PAIR = (16, 17)  # what the recovery rows drop from SmolLM2
SAMPLED_SETS = 24  # full forwards timed of an exhaustive search


def all_rows(progress: Progress, *, only: str = "") -> Iterator[Row]:
    """Row after row, each as soon as it is done; `only` those whose name contains the text."""
    makers: dict[str, Callable[[], Row]] = {
        "products": products,
        "drop-one gpt2": lambda: drop_one("gpt2-shape", 512, 4),
        "drop-one smollm2": lambda: drop_one("smollm2-135m", 512, 4),
        "profile": lambda: whole_profile("smollm2-135m", 512, 2),
        "drop-one tinyllama": lambda: drop_one("tinyllama-1.1b-shape", 128, 3, batch_size=1),
        "pairs": lambda: all_pairs("smollm2-135m", 128, 3),
        "recovery": lambda: recovery(states=False),
        "recovery, states kept": lambda: recovery(states=True),
        "memory, activations kept": lambda: recovery_memory(False),
        "memory, layers recomputed": lambda: recovery_memory(True),
    }
    makers = {name: make for name, make in makers.items() if only in name}
    for number, (name, make) in enumerate(makers.items()):
        progress(number, len(makers), f"rows done; now {name}")
        yield make()


def head_in_layers(model: PreTrainedModel) -> float:
    """What the head weighs, in layers: multiplications a token."""
    parts = anatomy(model)
    layer = sum(p.numel() for p in parts.layers[0].parameters() if p.ndim == 2)
    return parts.head.weight.numel() / layer


def passes(n_layers: int, k: int, head: float, *, tree: bool) -> float:
    """Layer passes (the head counted in layers) for the model and every set of 1..k layers.

    Plain: a full forward a set. On the tree a set runs the layers behind its last dropped one, and
    the head.
    """
    sizes, n, c = range(1, k + 1), n_layers, math.comb
    heads = head * (1 + sum(c(n, size) for size in sizes))
    if not tree:
        return n + heads + sum(c(n, size) * (n - size) for size in sizes)
    behind = sum(c(last, size - 1) * (n - 1 - last) for size in sizes for last in range(n))
    return n + heads + behind


def products() -> Row:
    """The product that takes most of a SmolLM2 layer's time, by both of torch's libraries."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(512, 576, generator=generator)
    weight = torch.randn(1_536, 576, generator=generator) / 576**0.5

    def repeated(product: Callable) -> list[float]:
        for _ in range(199):
            product(x, weight)
        return product(x, weight).flatten().tolist()

    row = Row("200 products of 512 x 576 by 576 x 1,536", "-", "float32")
    sides = (lambda r: repeated(nn.functional.linear)), (lambda r: repeated(linear))
    row.largest_difference = _largest(in_turn(row, *sides, repetitions=7), 1)
    row.note = f"chosen here: {'oneDNN' if onednn_is_better() else 'the default'}"
    return row


def drop_one(name: str, tokens: int, repetitions: int, *, batch_size: int = 2) -> Row:
    """The rise in NLL with each layer dropped alone."""
    teacher = machine.load(name)
    model, n_layers = teacher.model, len(anatomy(teacher.model).layers)
    parts = _parts(teacher, "calibration", tokens, repetitions, batch_size)
    sets, head = [(), *((layer,) for layer in range(n_layers))], head_in_layers(model)
    row = Row("drop-one profile (NLL)", name, f"{tokens} tokens")
    row.counts_allow = passes(n_layers, 1, head, tree=False) / passes(n_layers, 1, head, tree=True)

    def ours(r: int) -> list[float]:
        return subsets.nll_by_window(model, parts[r], sets, batch_size=batch_size).sum(1).tolist()

    results = in_turn(
        row, lambda r: plain.nll_sums(model, parts[r], sets), ours, repetitions=repetitions
    )
    row.largest_difference = _largest(results, tokens)
    return row


def whole_profile(name: str, tokens: int, repetitions: int) -> Row:
    """Plain drop-one NLL beside all our activation criteria in one pass: more work on our side."""
    teacher = machine.load(name)
    model = teacher.model
    parts = _parts(teacher, "calibration", tokens, repetitions, 2)
    sets = [(), *((layer,) for layer in range(len(anatomy(model).layers)))]

    def run_plain(r: int) -> list[float]:
        whole, *dropped = plain.nll_sums(model, parts[r], sets)
        return [(value - whole) / tokens for value in dropped]

    def ours(r: int) -> tuple[float, ...]:
        return sensitivity.profile(model, parts[r], batch_size=2, gradients=False).drop_one

    row = Row("the same, ours with KL, block influence and angles", name, f"{tokens} tokens")
    row.largest_difference = _largest(in_turn(row, run_plain, ours, repetitions=repetitions), 1)
    return row


def all_pairs(name: str, tokens: int, repetitions: int) -> Row:
    """Every set of one or two layers; of the plain side a sample is timed and scaled up."""
    teacher = machine.load(name)
    model, n, head = (
        teacher.model,
        len(anatomy(teacher.model).layers),
        head_in_layers(teacher.model),
    )
    parts = _parts(teacher, "calibration", tokens, repetitions, 1)
    pairs = list(combinations(range(n), 2))
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(0)).tolist()
    drawn = [order[r * SAMPLED_SETS : (r + 1) * SAMPLED_SETS] for r in range(repetitions)]
    samples = [[pairs[i] for i in chosen] for chosen in drawn]
    sets = [(), *((layer,) for layer in range(n)), *pairs]

    def ours(r: int) -> list[float]:
        sums = subsets.nll_by_window(model, parts[r], sets).sum(1).tolist()
        by_set = dict(zip(sets, sums, strict=True))
        return [by_set[pair] for pair in samples[r]]

    row = Row("all pairs, exact", name, f"{tokens} tokens")
    results = in_turn(
        row, lambda r: plain.nll_sums(model, parts[r], samples[r]), ours, repetitions=repetitions
    )
    of_all = passes(n, 2, head, tree=False)
    row.plain_seconds = [s * of_all / (SAMPLED_SETS * (n - 2 + head)) for s in row.plain_seconds]
    row.counts_allow = of_all / passes(n, 2, head, tree=True)
    row.note = f"plain: {SAMPLED_SETS} of {len(pairs)} pairs timed, scaled by layer passes"
    row.largest_difference = _largest(results, tokens)
    return row


def recovery(*, states: bool, repetitions: int = 4) -> Row:
    """Two steps of two windows of 256 tokens; with `states`, the teacher's are there already."""
    teacher = machine.load("smollm2-135m")
    whole, plan = teacher.model, Plan(len(anatomy(teacher.model).layers), PAIR, "fixed")
    parts = _parts(teacher, "recovery", 1_024, repetitions, 4)
    students = [pruning.drop_layers(whole, plan) for _ in range(2)]
    start = {name: p.detach().clone() for name, p in students[0].named_parameters()}
    recipe = Recipe(tokens=1_024, lr=1e-4, batch_tokens=512, seq_len=256)
    kept = TeacherStates(whole) if states else None
    for part in parts if states else ():
        kept.of(part.inputs.to(whole.device))
    work = "recovery, teacher's states kept" if states else "recovery"
    row = Row(work, "smollm2-135m", "1,024 tokens")
    head, layers = head_in_layers(whole), plan.n_layers - len(PAIR)
    trained, of_teacher = 3 * (layers + head), plan.n_layers + head
    row.counts_allow = (of_teacher + trained) / ((head if states else of_teacher) + trained)

    def run_plain(r: int) -> list[float]:
        student = machine.copy_weights(start, students[0])
        return plain.recover(student, whole, parts[r], lr=1e-4, batch_size=2)

    def ours(r: int) -> list[float]:
        student = machine.copy_weights(start, students[1])
        curve = distillation.recover(student, whole, parts[r], recipe, states=kept)[1]
        return list(curve.losses["kl"])

    # the plain loop has no warm-up, so only the first losses are of the same weights
    results = in_turn(row, run_plain, ours, repetitions=repetitions)
    row.largest_difference = _largest([(a[:1], b[:1]) for a, b in results], 1)
    return row


def recovery_memory(checkpoint_activations: bool) -> Row:
    """One step of 4 windows of 1,024 tokens: memory on top of both models' weights."""
    teacher = machine.load("gpt2-shape")
    windows = machine.windows(teacher, "recovery", seq_len=1_024, count=4)
    students = [pruning.drop_layers(teacher.model, Plan(12, (4, 5), "fixed")) for _ in range(2)]
    recipe = Recipe(tokens=4_096, lr=1e-4, batch_tokens=4_096, seq_len=1_024)
    spared = {"checkpoint_activations": checkpoint_activations}
    kind = "layers recomputed" if checkpoint_activations else "activations kept"
    row = Row(f"recovery memory, {kind}", "gpt2-shape", "4 x 1,024 tokens")

    def run_plain(r: int) -> list[float]:
        return plain.recover(students[0], teacher.model, windows, lr=1e-4, batch_size=4, **spared)

    def ours(r: int) -> list[float]:
        curve = distillation.recover(students[1], teacher.model, windows, recipe, **spared)[1]
        return list(curve.losses["kl"])

    row.largest_difference = _largest(in_turn(row, run_plain, ours, repetitions=1), 1)
    return row


def _parts(
    teacher: Teacher, split: str, tokens: int, repetitions: int, windows_each: int
) -> list[Windows]:
    """The windows of each repetition: `windows_each` of them, `tokens` together."""
    count, seq_len = windows_each * repetitions, tokens // windows_each
    return list(machine.windows(teacher, split, seq_len=seq_len, count=count).batches(windows_each))


def _largest(results: list[tuple[Sequence[float], Sequence[float]]], tokens: int) -> float:
    """The largest difference between the two sides' numbers, per token."""
    pairs = [pair for a, b in results for pair in zip(a, b, strict=True)]
    return max(abs(a - b) / tokens for a, b in pairs)
