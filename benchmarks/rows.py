"""The rows of the table: each times the plain side and ours in turn on the same windows, and compares their numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from itertools import combinations

import torch
from torch import nn
from transformers import PreTrainedModel

from benchmarks import plain
from benchmarks.measure import ABOUT_MEMORY, Row, in_turn
from depthprune_core import distillation, models, pruning, sensitivity, subsets, text
from depthprune_core.decoders import decoder, hidden_states
from depthprune_core.products import fast_products, linear, onednn_is_better
from depthprune_core.progress import Progress
from depthprune_core.records import Plan
from depthprune_core.text import Windows
from depthprune_study import places

PAIR = (5, 14)  # what the recovery rows drop from SmolLM2
SAMPLED_SETS = 24  # full forwards timed of an exhaustive search


def all_rows(progress: Progress, *, only: str = "") -> Iterator[Row]:
    """Row after row, each as soon as it is done; `only` those whose work contains the text."""
    makers: list[tuple[str, Callable[[], Row]]] = [
        ("products", products),
        ("drop-one gpt2", lambda: drop_one("gpt2-shape", 512, 4, 0.0)),
        ("drop-one smollm2", lambda: drop_one("smollm2-135m", 512, 4, 1.7)),
        (
            "drop-one smollm2, same library",
            lambda: drop_one("smollm2-135m", 512, 2, 0.0, same_library=True),
        ),
        ("profile", lambda: whole_profile("smollm2-135m", 512, 2)),
        ("drop-one tinyllama", lambda: drop_one("tinyllama-1.1b-shape", 128, 3, 1.75, batch_size=1)),
        ("pairs", lambda: all_pairs("smollm2-135m", 128, 3)),
        ("recovery after_first_cut against all", lambda: recovery("after_first_cut", 1.2, "all")),
        ("recovery after_first_cut", lambda: recovery("after_first_cut", 0.0, "after_first_cut")),
        ("recovery all", lambda: recovery("all", 1.05, "all")),
        ("memory, activations kept", lambda: recovery_memory(False)),
        ("memory, layers recomputed", lambda: recovery_memory(True)),
    ]
    makers = [(name, make) for name, make in makers if only in name]
    for number, (name, make) in enumerate(makers):
        progress(number, len(makers), f"rows done; now {name}")
        yield make()


def load(name: str) -> tuple[PreTrainedModel, object]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return models.load(name, cache=places.cache(), assets=places.assets(), device=device)


def windows_of(tokenizer: object, split: str, *, seq_len: int, count: int) -> Windows:
    """Whole windows of the article text."""
    documents = text.split_named("wikipedia-excerpt", cache=places.cache(), assets=places.assets())[split]
    return text.windows(documents, tokenizer, seq_len=seq_len, whole=True).take(slice(0, count))


def head_in_layers(model: PreTrainedModel) -> float:
    """What the head weighs, in layers: multiplications a token."""
    parts = decoder(model)
    layer = sum(p.numel() for p in parts.layers[0].parameters() if p.ndim == 2)
    return parts.head.weight.numel() / layer


def passes(n_layers: int, k: int, head: float, *, tree: bool) -> float:
    """Layer passes, the head counted in layers, for the whole model and every set of 1..k dropped layers.

    Plain: a full forward a set. On the tree a set runs the layers behind its last dropped one, and the head.
    """
    sizes = range(1, k + 1)
    heads = head * (1 + sum(math.comb(n_layers, size) for size in sizes))
    if not tree:
        return n_layers + heads + sum(math.comb(n_layers, size) * (n_layers - size) for size in sizes)
    return (
        n_layers + heads + sum(math.comb(last, size - 1) * (n_layers - 1 - last) for size in sizes for last in range(n_layers))
    )


def greedy_passes(n_layers: int, k: int, head: float) -> float:
    """Layer passes of a greedy search for k layers by full forwards, the head counted in layers."""
    return sum((n_layers - i) * (n_layers - i - 1 + head) for i in range(k))


def products() -> Row:
    """The matrix product that a layer of SmolLM2 takes most of its time for: torch's default against the library we choose."""
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(512, 576, generator=generator), torch.randn(1_536, 576, generator=generator) / 576**0.5

    def repeated(product: Callable) -> list[float]:
        for _ in range(199):
            product(x, weight)
        return product(x, weight).flatten().tolist()

    row = Row("200 products of 512 x 576 by 576 x 1,536", "-", "float32", unit="")
    results = in_turn(row, lambda r: repeated(nn.functional.linear), lambda r: repeated(linear), repetitions=7)
    row.largest_difference = _largest(results, 1)
    row.note = "chosen here: oneDNN" if onednn_is_better() else "chosen here: torch's default"
    return row


def drop_one(
    name: str, tokens: int, repetitions: int, target: float, *, batch_size: int = 2, same_library: bool = False
) -> Row:
    """The rise in NLL with each layer dropped alone; with `same_library` the plain side has our products too."""
    model, tokenizer = load(name)
    n_layers, head = len(decoder(model).layers), head_in_layers(model)
    parts = _parts(tokenizer, "calibration", tokens, repetitions, batch_size)
    sets = [(), *((layer,) for layer in range(n_layers))]
    work = "drop-one profile (NLL), plain side with our products" if same_library else "drop-one profile (NLL)"
    row = Row(work, name, f"{tokens} tokens", target=target)
    row.counts_allow = passes(n_layers, 1, head, tree=False) / passes(n_layers, 1, head, tree=True)

    def run_plain(r: int) -> list[float]:
        with fast_products(model) if same_library else nullcontext():
            return plain.nll_sums(model, parts[r], sets)

    def run_ours(r: int) -> list[float]:
        return subsets.nll_by_window(model, parts[r], sets, batch_size=batch_size).sum(1).tolist()

    row.largest_difference = _largest(in_turn(row, run_plain, run_ours, repetitions=repetitions), tokens)
    return row


def whole_profile(name: str, tokens: int, repetitions: int) -> Row:
    """Plain drop-one NLL next to all our activation criteria in one pass: more work on our side."""
    model, tokenizer = load(name)
    parts = _parts(tokenizer, "calibration", tokens, repetitions, 2)
    sets = [(), *((layer,) for layer in range(len(decoder(model).layers)))]

    def run_plain(r: int) -> list[float]:
        whole, *dropped = plain.nll_sums(model, parts[r], sets)
        return [(value - whole) / tokens for value in dropped]

    def run_ours(r: int) -> tuple[float, ...]:
        return sensitivity.profile(model, parts[r], batch_size=2, gradients=False).drop_one

    row = Row("the same, ours with KL, block influence and all spans' angles", name, f"{tokens} tokens")
    row.largest_difference = _largest(in_turn(row, run_plain, run_ours, repetitions=repetitions), 1)
    return row


def all_pairs(name: str, tokens: int, repetitions: int) -> Row:
    """Every set of one or two layers; of the plain side a sample of the pairs is timed and scaled up."""
    model, tokenizer = load(name)
    n_layers, head = len(decoder(model).layers), head_in_layers(model)
    parts = _parts(tokenizer, "calibration", tokens, repetitions, 1)
    pairs = list(combinations(range(n_layers), 2))
    chosen = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(0)).tolist()
    samples = [[pairs[i] for i in chosen[r * SAMPLED_SETS : (r + 1) * SAMPLED_SETS]] for r in range(repetitions)]
    sets = [(), *((layer,) for layer in range(n_layers)), *pairs]

    def run_ours(r: int) -> list[float]:
        by_set = dict(zip(sets, subsets.nll_by_window(model, parts[r], sets).sum(1).tolist(), strict=True))
        return [by_set[pair] for pair in samples[r]]

    row = Row("all pairs, exact", name, f"{tokens} tokens", target=2.1)
    results = in_turn(row, lambda r: plain.nll_sums(model, parts[r], samples[r]), run_ours, repetitions=repetitions)
    all_plain = passes(n_layers, 2, head, tree=False)
    row.plain_seconds = [s * all_plain / (SAMPLED_SETS * (n_layers - 2 + head)) for s in row.plain_seconds]
    row.counts_allow = all_plain / passes(n_layers, 2, head, tree=True)
    row.note = f"plain side: {SAMPLED_SETS} of {len(pairs)} pairs timed in each repetition, scaled by layer passes"
    row.largest_difference = _largest(results, tokens)
    return row


def recovery(trained: str, target: float, plain_trains: str, *, repetitions: int = 4) -> Row:
    """Two steps of two windows of 256 tokens each; the plain side trains all, or the same part as ours."""
    teacher, tokenizer = load("smollm2-135m")
    plan = Plan(len(decoder(teacher).layers), PAIR, "fixed")
    parts = _parts(tokenizer, "recovery", 1_024, repetitions, 4)
    students = [pruning.drop_layers(teacher, plan) for _ in range(2)]
    row = Row(f"recovery, {trained} (plain: {plain_trains})", "smollm2-135m", "1,024 tokens", target=target)
    layers, head, first = plan.n_layers - 2, head_in_layers(teacher), min(PAIR)
    teacher_passes = plan.n_layers + head
    frozen_plain = teacher_passes + layers + head + 2 * (layers - first) + head
    ours = teacher_passes + 3 * (layers + head) if trained == "all" else frozen_plain - first
    row.counts_allow = (teacher_passes + 3 * (layers + head) if plain_trains == "all" else frozen_plain) / ours
    if plain_trains == "after_first_cut":
        _freeze_prefix(students[0], first)
    start = {name: p.detach().clone() for name, p in students[0].named_parameters()}

    def reset(student: PreTrainedModel) -> PreTrainedModel:
        with torch.no_grad():
            for name, p in student.named_parameters():
                p.copy_(start[name])
        return student

    def run_ours(r: int) -> list[float]:
        options = {"loss": {"kl": 1.0}, "lr": 1e-4, "seed": 0, "batch_size": 2, "trained": trained, "plan": plan}
        return list(distillation.recover(reset(students[1]), teacher, parts[r], **options)[1].losses["kl"])

    results = in_turn(
        row,
        lambda r: plain.recover(reset(students[0]), teacher, parts[r], lr=1e-4, batch_size=2),
        run_ours,
        repetitions=repetitions,
    )
    compared = slice(0, 2 if trained == plain_trains else 1)  # where other weights train, only the first loss is the same
    row.largest_difference = _largest([(a[compared], b[compared]) for a, b in results], 1)
    return row


def recovery_memory(checkpoint_activations: bool) -> Row:
    """One step of 4 windows of 1,024 tokens: memory on top of both models' weights."""
    teacher, tokenizer = load("gpt2-shape")
    plan = Plan(12, (4, 5), "fixed")
    windows = windows_of(tokenizer, "recovery", seq_len=1_024, count=4)
    students = [pruning.drop_layers(teacher, plan) for _ in range(2)]
    spared = "layers recomputed" if checkpoint_activations else "activations kept"
    row = Row(f"recovery memory, {spared}", "gpt2-shape", "4 x 1,024 tokens")
    same = {"lr": 1e-4, "batch_size": 4, "checkpoint_activations": checkpoint_activations}

    def run_plain(r: int) -> list[float]:
        return plain.recover(students[0], teacher, windows, **same)

    def run_ours(r: int) -> list[float]:
        return list(distillation.recover(students[1], teacher, windows, loss={"kl": 1.0}, seed=0, **same)[1].losses["kl"])

    row.largest_difference = _largest(in_turn(row, run_plain, run_ours, repetitions=1), 1)
    row.note = ABOUT_MEMORY
    if not checkpoint_activations:
        kept = kept_for_backward(students[1].requires_grad_(), windows)
        row.note += f". Of both sides' peaks, {kept / 1e6:,.0f} MB are what transformers' layers keep for their backward pass: with nothing else, "
        row.note += f"it would be {kept / row.plain_peak_bytes:.2f}x"
    return row


def kept_for_backward(model: PreTrainedModel, windows: Windows) -> int:
    """Bytes that autograd keeps of a forward pass through the layers, weights apart."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden = hidden_states(model, windows.inputs.to(model.device))
    del hidden  # until here its graph holds all that was kept: no address was given out twice
    return sum(kept.values())


def _freeze_prefix(student: PreTrainedModel, first: int) -> None:
    """Embedding, the head tied to it, and the layers before the first cut."""
    parts = decoder(student)
    parts.head.weight.requires_grad_(False)
    student.get_input_embeddings().weight.requires_grad_(False)
    for layer in parts.layers[:first]:
        layer.requires_grad_(False)


def _parts(tokenizer: object, split: str, tokens: int, repetitions: int, windows_each: int) -> list[Windows]:
    """The windows of each repetition: `windows_each` of them, `tokens` together."""
    windows = windows_of(tokenizer, split, seq_len=tokens // windows_each, count=windows_each * repetitions)
    return list(windows.batches(windows_each))


def _largest(results: list[tuple[Sequence[float], Sequence[float]]], tokens: int) -> float:
    """The largest difference between the two sides' numbers, per token."""
    return max(abs(a - b) / tokens for theirs, ours in results for a, b in zip(theirs, ours, strict=True))
