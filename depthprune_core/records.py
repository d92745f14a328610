"""The frozen result types. No torch; `storage` keeps them as JSON files."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

TRAINED_PARTS = ("all", "lora")
PRECISIONS = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Plan:
    """Which layers are dropped. Numbers are counted from 0, in the original model."""

    n_layers: int
    dropped: tuple[int, ...]
    rule: str
    evidence: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "dropped", tuple(sorted(self.dropped)))
        if len(set(self.dropped)) != len(self.dropped):
            raise ValueError(f"the plan drops a layer twice: {list(self.dropped)}")
        for layer in self.dropped:
            if not 0 <= layer < self.n_layers:
                raise ValueError(
                    f"the plan drops layer {layer}, but the model has layers 0..{self.n_layers - 1}"
                )
        if len(self.dropped) == self.n_layers:
            raise ValueError(f"the plan drops all {self.n_layers} layers: at least one must stay")

    @property
    def kept(self) -> tuple[int, ...]:
        return tuple(layer for layer in range(self.n_layers) if layer not in self.dropped)

    def then(self, second: Plan) -> Plan:
        """Two cuts as one plan of the original model; `second` counts self's kept layers."""
        if second.n_layers != len(self.kept):
            raise ValueError(
                f"the second plan is for {second.n_layers} layers, but the first leaves "
                f"{len(self.kept)}"
            )
        more = tuple(self.kept[layer] for layer in second.dropped)
        evidence = {"first": list(self.dropped), "second": list(more)}
        return Plan(self.n_layers, self.dropped + more, f"staged_{second.rule}", evidence)


@dataclass(frozen=True)
class Recipe:
    """How a student is healed: one pass over `tokens` of text; AdamW, warm-up, cosine to zero."""

    tokens: int  # of training
    lr: float
    kl: float = 1.0  # weight of KL(teacher || student), scaled by temperature^2
    ce: float = 0.0  # weight of the text itself (cross-entropy)
    temperature: float = 1.0  # of both distributions in KL
    warmup: float = 0.1  # share of the steps in which the rate rises
    batch_tokens: int = 2_048  # a step
    seq_len: int = 512  # tokens per window
    trained: str = "all"  # all, or lora: adapters on every linear map of the layers
    lora_rank: int = 8
    refit_tokens: int = 0  # text for the closed-form refit before training; 0 = no refit
    precision: str = "float32"  # of the arithmetic; weights stay float32
    seed: int = 0  # draws the windows and their order

    def __post_init__(self) -> None:
        def check(holds: bool, name: str, wanted: str) -> None:
            if not holds:
                raise ValueError(f"{name}={getattr(self, name)!r} is not possible: {wanted}")

        check(math.isfinite(self.lr) and self.lr > 0, "lr", "it must be above 0")
        check(self.kl >= 0 and self.ce >= 0, "kl", "loss weights must not be below 0")
        check(self.kl + self.ce > 0, "kl", "one of kl and ce must be above 0")
        check(self.temperature > 0, "temperature", "it must be above 0")
        check(0 <= self.warmup < 1, "warmup", "it is a share of the steps, from 0 to below 1")
        check(self.seq_len >= 1, "seq_len", "it must be 1 or more")
        whole = self.batch_tokens > 0 and self.batch_tokens % self.seq_len == 0
        check(whole, "batch_tokens", f"a step takes whole windows of seq_len={self.seq_len} tokens")
        check(self.tokens >= self.batch_tokens, "tokens", f"one step takes {self.batch_tokens:,}")
        check(self.trained in TRAINED_PARTS, "trained", f"name one of {', '.join(TRAINED_PARTS)}")
        check(self.lora_rank >= 1, "lora_rank", "an adapter has a rank of 1 or more")
        check(self.refit_tokens >= 0, "refit_tokens", "0 (no refit) or more")
        check(self.precision in PRECISIONS, "precision", f"name one of {', '.join(PRECISIONS)}")

    @property
    def batch_size(self) -> int:
        """Windows a step."""
        return self.batch_tokens // self.seq_len

    def but(self, **changes: Any) -> Recipe:
        """The same recipe with some fields changed."""
        return replace(self, **changes)


@dataclass(frozen=True)
class Score:
    """How well a model predicts documents: one entry per document, sums over its scored tokens."""

    documents: tuple[str, ...]
    nll_nats: tuple[float, ...]
    n_tokens: tuple[int, ...]
    n_bytes: tuple[int, ...]
    # why healing was stopped; the score is then that of the student it began from
    diverged: str = ""

    @property
    def mean_nll_nats(self) -> float:
        """Nats per token."""
        return math.fsum(self.nll_nats) / sum(self.n_tokens)

    @property
    def ppl(self) -> float:
        """Perplexity: exp of the mean NLL per token; infinity if that overflows."""
        return math.inf if self.mean_nll_nats >= 700 else math.exp(self.mean_nll_nats)

    @property
    def bits_per_byte(self) -> float:
        return math.fsum(self.nll_nats) / math.log(2) / sum(self.n_bytes)


@dataclass(frozen=True)
class Divergence:
    """Distance of a student's next-token distributions from the teacher's, by document."""

    documents: tuple[str, ...]
    kl_nats: tuple[float, ...]  # KL(teacher || student), summed over the document's tokens
    top1_agreements: tuple[int, ...]  # tokens at which both rank the same token first
    n_tokens: tuple[int, ...]

    @property
    def mean_kl_nats(self) -> float:
        return math.fsum(self.kl_nats) / sum(self.n_tokens)

    @property
    def agreement(self) -> float:
        return sum(self.top1_agreements) / sum(self.n_tokens)


@dataclass(frozen=True)
class Profile:
    """The importance of each layer by several criteria; larger = worse to drop, in each."""

    n_layers: int
    teacher: Score
    # criterion -> layer -> document; sums over tokens: drop_nll_nats, drop_kl_nats, block_influence
    by_document: dict[str, tuple[tuple[float, ...], ...]]
    by_layer: dict[str, tuple[float, ...]]  # taylor, magnitude: they do not split by document
    # span length -> first layer of the span -> mean angular distance (in units of pi) across it
    angular_distance: dict[str, tuple[float, ...]]

    @property
    def criteria(self) -> dict[str, tuple[float, ...]]:
        """Every criterion as one number per layer (means per token if it depends on text)."""
        n = sum(self.teacher.n_tokens)
        means = {
            name: tuple(math.fsum(row) / n for row in rows)
            for name, rows in self.by_document.items()
        }
        return {**means, "angular_distance": self.angular_distance["1"], **self.by_layer}

    @property
    def drop_one(self) -> tuple[float, ...]:
        """The reference criterion: rise in NLL (nats per token) when only this layer is dropped."""
        return self.criteria["drop_nll_nats"]


@dataclass(frozen=True)
class SetCosts:
    """Rise in mean NLL (nats per token) when layers are dropped together, without healing."""

    n_layers: int
    rise_nll_nats: dict[str, float]  # "3" or "3,7": layers in ascending order

    @property
    def by_layers(self) -> dict[tuple[int, ...], float]:
        """Layers in ascending order -> rise."""
        return {tuple(map(int, key.split(","))): rise for key, rise in self.rise_nll_nats.items()}

    def of_size(self, k: int) -> dict[tuple[int, ...], float]:
        """The measured sets of k layers."""
        return {layers: rise for layers, rise in self.by_layers.items() if len(layers) == k}

    def interactions(self) -> dict[tuple[int, ...], float]:
        """Each pair's rise minus those of its two layers; above 0, they can replace each other."""
        single = self.of_size(1)
        return {(i, j): rise - single[i,] - single[j,] for (i, j), rise in self.of_size(2).items()}


@dataclass(frozen=True)
class Curve:
    """The course of one healing."""

    recipe: Recipe
    token_hash: str  # names the exact token ids and their order
    tokens: tuple[int, ...]  # seen so far, at each logged step
    losses: dict[str, tuple[float, ...]]  # kl, ce -> value at each step, nats per token
    validation_tokens: tuple[int, ...]
    validation_nll_nats: tuple[float, ...]  # mean per token
    diverged: str = ""  # why it was stopped before its end


@dataclass(frozen=True)
class Timing:
    """Interleaved times of a student and its teacher (A B A B): one entry per round.

    Milliseconds. Prefill is one forward over `context` tokens; decode is per new token, after it.
    """

    device: str
    dtype: str
    batch_size: int
    context: int
    new_tokens: int
    n_threads: int
    teacher_prefill_ms: tuple[float, ...]
    student_prefill_ms: tuple[float, ...]
    teacher_decode_ms_per_token: tuple[float, ...]
    student_decode_ms_per_token: tuple[float, ...]
    by_layer_count: float  # decode ratio if every layer costs the same and nothing else does
    by_weight_bytes: float  # decode ratio if reading the weights is all that costs
    teacher_kv_bytes_per_token: int
    student_kv_bytes_per_token: int


@dataclass(frozen=True)
class Size:
    """The size of a model."""

    n_layers: int
    n_parameters: int  # a tied tensor counts once
    n_bytes_on_disk: int  # safetensors file


@dataclass(frozen=True)
class Answers:
    """Which items of a task a model got right, in the task's order."""

    task: str
    right: tuple[bool, ...]

    @property
    def accuracy(self) -> float:
        return sum(self.right) / len(self.right)


@dataclass(frozen=True)
class Facts:
    """Small results: names and values."""

    values: dict[str, Any]


Record = (
    Plan
    | Recipe
    | Score
    | Divergence
    | Profile
    | SetCosts
    | Curve
    | Timing
    | Size
    | Answers
    | Facts
)
