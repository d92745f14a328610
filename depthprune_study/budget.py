"""What a study will cost, by arithmetic on its parameters: tokens, forward passes, hours and memory on GPUs that people rent."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from depthprune_core import models, speed
from depthprune_core.decoders import text_config
from depthprune_study import run
from depthprune_study.settings import StudyError

# Forward passes a token: student forward and backward (as two), and the teacher's forward.
TAUGHT, TRAINED, SCORED = 4.0, 3.0, 1.0
# Documents of each split; WikiText-2's are those of its published files (its training articles give the rest).
DOCUMENTS = {
    "wikipedia-excerpt": {"calibration": 8, "validation": 12, "test": 30},
    "wikitext-2": {"calibration": 8, "validation": 60, "test": 62},
}
PEAK_TFLOPS = {"T4": 65, "A100": 312, "H100": 989}  # dense, in the 16-bit type that each has; NVIDIA's data sheets
# In float32, in which everything but a recovery's steps is computed; the same sheets.
PEAK_TFLOPS_32 = {"T4": 8.1, "A100": 19.5, "H100": 67}
MEASURE_ONLY = ("01_sensitivity", "02_prune_gpt2")  # which train nothing
IN_STAGES = ("03b_controls", "04_transfer_tinyllama")  # which cut a recovered student once more
GPU_GIB = {"T4": 14.5, "A100": 79, "H100": 79}  # what CUDA itself leaves of 15 and 80
SHARE_OF_PEAK = 0.25  # what a plain training loop of this size is taken to reach: an assumption, not a measurement
# A token, a layer and a hidden unit, attention computed in tiles (Korthikanti et al. 2022, arXiv:2205.05198).
ACTIVATION_BYTES = 34 * 1.5


@dataclass(frozen=True)
class Item:
    """One kind of work: so many tokens of text, each of which costs so many full forward passes of the model."""

    what: str
    model: str
    tokens: int
    forwards: float


@dataclass(frozen=True)
class Cost:
    """A notebook's work, and the memory that it needs at most: of its largest recovery, or between two stages of one."""

    notebook: str
    items: tuple[Item, ...]
    teraflops: float  # floating-point operations, in 10^12
    training_teraflops: float  # those of them that are a recovery's steps, in 16 bits
    peak_bytes: int

    def hours(self, gpu: str, share: float = SHARE_OF_PEAK) -> float:
        """On a GPU of PEAK_TFLOPS, at this share of its peaks: in 16 bits for a recovery's steps, in float32 for the rest."""
        seconds = self.training_teraflops / PEAK_TFLOPS[gpu] + (self.teraflops - self.training_teraflops) / PEAK_TFLOPS_32[gpu]
        return seconds / share / 3_600


def costs(study: str) -> list[Cost]:
    """The costs of a study's notebooks. Raises StudyError for bad parameters, or a model or text whose size is not known here."""
    return costs_of({step.notebook: step.parameters for step in run.plan(study)})


def costs_of(parameters: Mapping[str, dict[str, Any]]) -> list[Cost]:
    """The same of parameters by notebook, which are checked already."""
    return [_cost(notebook, parameters) for notebook in parameters if notebook in ITEMS]


def lines(study: str) -> Iterator[str]:
    """The costs as text, a line a kind of work."""
    found = costs(study)
    for cost in found:
        memory = f": {cost.peak_bytes / 2**30:.1f} GiB of GPU memory at most" if cost.peak_bytes else ""
        yield f"  {cost.notebook}{memory}"
        for item in cost.items:
            yield f"    {item.what:<44} {item.tokens:>14,} tokens x {item.forwards:4.1f} forward passes, {item.model}"
    yield ""
    yield (
        f"  hours, by arithmetic at {SHARE_OF_PEAK:.0%} of each GPU's peaks (16 bits in recovery, 32 elsewhere): "
        + ", ".join(f"{gpu} {sum(cost.hours(gpu) for cost in found):.1f}" for gpu in PEAK_TFLOPS)
    )
    largest = max(found, key=lambda cost: cost.peak_bytes)
    yield (
        f"  GPU memory, by arithmetic: {largest.peak_bytes / 2**30:.1f} GiB at most ({largest.notebook}: teacher, student, gradients and "
        "moments, activations of what is computed at once; or, between two stages, teacher, student and what is cut from it)"
    )


def _cost(notebook: str, steps: Mapping[str, dict[str, Any]]) -> Cost:
    own = steps[notebook]
    items = tuple(ITEMS[notebook](own, steps))
    in_training = [] if notebook in MEASURE_ONLY else [item for item in items if item.forwards >= TRAINED]
    peak = _largest_recovery(own, steps["03_recovery"]) if in_training else 0
    if notebook in IN_STAGES:
        peak = max(peak, _between_stages(_model(own["model"]), own.get("drop_count", steps["03_recovery"]["drop_count"])))
    return Cost(notebook, items, _teraflops(items), _teraflops(in_training), peak)


def _teraflops(items: Iterable[Item]) -> float:
    return sum(2 * _read_parameters(item.model) * item.tokens * item.forwards for item in items) / 1e12


def _sensitivity(own: dict[str, Any], steps: Mapping[str, Any]) -> Iterator[Item]:
    n, tokens = _layers(own["model"]), _tokens(own, "calibration", own["calibration_tokens"])
    yield Item("profile: every layer dropped once", own["model"], tokens, (n + 1) / 2 + 1)
    yield Item("profile: gradients (Taylor)", own["model"], tokens, TRAINED)
    if own["pairs"]:
        yield Item("every pair of layers, on a prefix tree", own["model"], tokens, tree_passes(n, 2) / n)


def _prune(own: dict[str, Any], steps: Mapping[str, Any]) -> Iterator[Item]:
    n, tokens = _layers(own["model"]), _tokens(own, "calibration", own["calibration_tokens"])
    yield Item(
        f"every set of up to {own['exhaustive_to']} layers", own["model"], tokens, tree_passes(n, own["exhaustive_to"]) / n
    )
    for k in own["race_counts"]:
        raced = _tokens(own, "calibration", own["race_tokens"])
        yield Item(f"race for {k} layers, a tenth of all sets", own["model"], raced, tree_passes(n, k) / n / 10)
    plans = len(own["drop_counts"]) * (8 + own["random_draws"]) + 1
    yield Item(f"{plans} plans scored", own["model"], plans * _scored(own), SCORED)


def _recovery(own: dict[str, Any], steps: Mapping[str, Any]) -> Iterator[Item]:
    model, validation = own["model"], _tokens(own, "validation", own["score_tokens"])
    kinds = ("train_seq_lens", "batch_tokens", "warmups", "temperatures", "trained_parts", "hidden_weights", "rules")
    trials = 2 + sum(len(own[kind]) - 1 for kind in kinds) + len(own["lora_lr_grid"])
    rates = len(own["optimisers"]) * len(own["lr_grid"])
    in_full = 2 if own["mixed_in_full"] else 1
    yield Item(f"{trials} trials of the recipe", model, trials * own["pilot_tokens"], TAUGHT)
    yield Item(f"{rates} rates of the recipe", model, rates * own["rate_tokens"], TAUGHT)
    others = 2 * in_full * rates + (0 if own["mixed_in_full"] else 1)
    yield Item(f"{others} rates with the text itself, whole model too", model, others * own["rate_tokens"], TRAINED)
    yield Item("the recipe in full", model, own["tokens"], TAUGHT)
    yield Item(f"{2 * in_full} runs with the text itself", model, 2 * in_full * own["tokens"], TRAINED)
    yield Item("trials and curves scored", model, (trials + rates + others + 5 * (1 + 2 * in_full)) * validation, SCORED)
    yield Item("arms scored", model, (4 + 2 * in_full) * _scored(own), SCORED)
    yield Item("profile after recovery", model, _tokens(own, "calibration", own["calibration_tokens"]), _layers(model) / 2)


def _controls(own: dict[str, Any], steps: Mapping[str, Any]) -> Iterator[Item]:
    model, first = own["model"], steps["03_recovery"]
    tokens, rates = first["tokens"], len(own["width_lr_grid"] or first["lr_grid"])
    yield Item(f"{rates} rates of the narrower model", model, rates * first["rate_tokens"], TAUGHT)
    yield Item("narrower; three layers at once; in two stages", model, 3 * tokens, TAUGHT)
    yield Item(
        f"{len(own['lora_lr_grid'])} rates of adapters with CE", model, len(own["lora_lr_grid"]) * first["rate_tokens"], TRAINED
    )
    yield Item("adapters with CE, on as many tokens", model, tokens, TRAINED)
    yield Item("CE and adapters, for as long (time of two recoveries)", model, 2 * tokens, TAUGHT)
    yield Item("arms scored", model, (14 + 2 * len(own["bits"])) * _scored(own), SCORED)


def _choice(own: dict[str, Any], steps: Mapping[str, Any]) -> Iterator[Item]:
    model, second = own["model"], steps["02_prune_gpt2"]
    rules = 8 + second["random_draws"]
    yield Item(f"{rules} rules recovered", model, rules * own["arm_tokens"], TAUGHT)
    runs = own["n_sets"] * len(own["set_seeds"])
    yield Item(f"{runs} recoveries of sets", model, runs * own["set_tokens"], TAUGHT)
    yield Item("arms scored", model, 2 * rules * _scored(own) + runs * _tokens(own, "validation", own["score_tokens"]), SCORED)


def _transfer(own: dict[str, Any], steps: Mapping[str, Any]) -> Iterator[Item]:
    model, rates = own["model"], len(own["lr_grid"] or steps["03_recovery"]["lr_grid"])
    tokens = _tokens(own, "calibration", own["calibration_tokens"])
    yield Item(
        "two profiles", model, tokens, _layers(model) / 2 * (1 + own["second_choice_tokens"] / own["calibration_tokens"])
    )
    again = 1.0 if own["checkpoint_activations"] else 0.0  # layers computed anew in the backward pass
    yield Item(f"{rates} rates", model, rates * own["pilot_tokens"], TAUGHT + again)
    yield Item(f"{rates} rates of the control", model, rates * own["pilot_tokens"], TRAINED + again)
    yield Item("two layers; three at once; three in stages", model, 3 * own["tokens"], TAUGHT + again)
    yield Item("the control", model, own["tokens"], TRAINED + again)
    yield Item("arms scored", model, 8 * _scored(own), SCORED)


def _seeds(own: dict[str, Any], steps: Mapping[str, Any]) -> Iterator[Item]:
    others = len(own["seeds"]) - 1
    yield Item(f"{others} more seeds", own["model"], others * steps["03_recovery"]["tokens"], TAUGHT)
    yield Item("arms scored", own["model"], (others + 3) * _scored(own), SCORED)


ITEMS = {
    "01_sensitivity": _sensitivity,
    "02_prune_gpt2": _prune,
    "03_recovery": _recovery,
    "03b_controls": _controls,
    "03c_choice": _choice,
    "04_transfer_tinyllama": _transfer,
    "05_seed_stability": _seeds,
}


def tree_passes(n_layers: int, k: int) -> int:
    """Layers that run to measure every set of up to k dropped layers, each node only those behind its last dropped one."""
    total, nodes = n_layers, {-1: 1}  # nodes: last dropped layer -> how many sets of the size at hand end in it
    for _ in range(k):
        nodes = {last: sum(n for before, n in nodes.items() if before < last) for last in range(n_layers)}
        total += sum(n * (n_layers - 1 - last) for last, n in nodes.items())
    return total


def _tokens(own: dict[str, Any], split: str, per_document: int) -> int:
    """Tokens of a split, at most: no document is taken to be shorter."""
    if own["text"] not in DOCUMENTS:
        raise StudyError(f"text {own['text']!r}: how many documents it has is not known before it is read")
    documents = DOCUMENTS[own["text"]][split]
    return (min(documents, own["max_documents"]) if own["max_documents"] else documents) * per_document


def _scored(own: dict[str, Any]) -> int:
    """Tokens of an arm's score on validation and on test."""
    return sum(_tokens(own, split, own["score_tokens"]) for split in ("validation", "test"))


@cache
def _model(name: str) -> Any:
    try:
        return models.shape(name)
    except ValueError:
        raise StudyError(f"model {name!r}: its size is not known before it is read") from None


def _layers(name: str) -> int:
    return text_config(_model(name).config).num_hidden_layers


@cache
def _read_parameters(name: str) -> float:
    """Parameters that a token's forward pass multiplies with."""
    return speed.weight_bytes_per_token(_model(name)) / 4


def _largest_recovery(own: dict[str, Any], recovery: dict[str, Any], *, first_cut: int = 0) -> int:
    """A notebook's recoveries train all weights, unless its parameters say otherwise."""
    trained, optimiser = own.get("trained", "recipe"), own.get("optimiser", "recipe")
    seq_len = max(recovery["train_seq_lens"])
    at_once = own.get("windows_at_once", 0) * seq_len or max(recovery["batch_tokens"])
    return training_bytes(
        _model(own["model"]),
        drop=recovery["drop_count"],
        tokens_at_once=at_once,
        trained="all" if trained == "recipe" else trained,
        optimiser="adamw" if optimiser == "recipe" else optimiser,
        checkpoint_activations=own.get("checkpoint_activations", False),
        first_cut=first_cut,
    )


def _between_stages(model: Any, drop: int) -> int:
    """A student that was recovered is cut once more: teacher, student and its cut are there at once, in float32."""
    return 4 * (3 * model.num_parameters() - (2 * drop + 1) * _weights_of_a_layer(model))


def training_bytes(
    model: Any,
    *,
    drop: int,
    tokens_at_once: int,
    trained: str = "all",
    optimiser: str = "adamw",
    checkpoint_activations: bool = False,
    first_cut: int = 0,
    lora_rank: int = 8,
) -> int:
    """A recovery of the model, without `drop` of its layers, in float32: teacher, student, gradients, moments, and a step's activations.

    Products are in 16 bits: the backward pass keeps such copies of the layers it goes through, one layer's with checkpointed activations,
    and both heads'. first_cut: the first dropped layer, where that is where training begins. Adapters need no second copy of the
    weights until the end, when they are added to one.
    """
    config, n = text_config(model.config), model.num_parameters()
    embedding = model.get_input_embeddings().weight.numel()
    head = 0 if config.tie_word_embeddings else embedding
    layer = _weights_of_a_layer(model)
    student = n - layer * drop
    a_moment = 1 if optimiser == "adamw_8bit" else 4
    per_weight = 4 + 2 * a_moment  # its gradient and two moments
    layers = config.num_hidden_layers - drop
    in_layer = ACTIVATION_BYTES * config.hidden_size * tokens_at_once
    step = in_layer + 4 * config.hidden_size * tokens_at_once * layers if checkpoint_activations else in_layer * layers
    passed = layers - (first_cut if trained == "after_first_cut" else 0)
    step += 2 * layer * (1 if checkpoint_activations else passed) + 2 * 2 * embedding
    if trained == "lora":
        matrices = [p.shape for name, p in model.named_parameters() if ".0." in name and p.ndim == 2]  # of the first layer
        adapters = sum(lora_rank * sum(shape) for shape in matrices) * layers
        return int(4 * n + max((4 + per_weight) * adapters + step, 4 * student))
    learning = student if trained == "all" else layer * (layers - first_cut) + head
    return int(4 * n + 4 * student + per_weight * learning + step)


def _weights_of_a_layer(model: Any) -> int:
    config, embedding = text_config(model.config), model.get_input_embeddings().weight.numel()
    words = embedding if config.tie_word_embeddings else 2 * embedding
    return (model.num_parameters() - words) // config.num_hidden_layers
