"""The frozen results that everything hangs on, and their JSON files."""

from __future__ import annotations

import hashlib
import json
import math
import os
import typing
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Plan:
    """Which layers go. Numbers are 0-based, in the original model."""

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
                raise ValueError(f"the plan drops layer {layer}, but the model has layers 0..{self.n_layers - 1}")
        if len(self.dropped) == self.n_layers:
            raise ValueError(f"the plan drops all {self.n_layers} layers: at least one must stay")

    @property
    def kept(self) -> tuple[int, ...]:
        return tuple(layer for layer in range(self.n_layers) if layer not in self.dropped)


@dataclass(frozen=True)
class Score:
    """How well a model predicts some documents: one entry a document, sums over its scored tokens."""

    documents: tuple[str, ...]
    nll_nats: tuple[float, ...]
    n_tokens: tuple[int, ...]
    n_bytes: tuple[int, ...]
    diverged: str = ""  # why the model's recovery was stopped; the score is then that of the student it began from

    @property
    def mean_nll_nats(self) -> float:
        """Nats per token."""
        return math.fsum(self.nll_nats) / sum(self.n_tokens)

    @property
    def ppl(self) -> float:
        """Perplexity: exp of the mean NLL per token; infinity where that overflows, NaN where the NLL is."""
        return math.inf if self.mean_nll_nats >= 700 else math.exp(self.mean_nll_nats)

    @property
    def bits_per_byte(self) -> float:
        return math.fsum(self.nll_nats) / math.log(2) / sum(self.n_bytes)


@dataclass(frozen=True)
class Divergence:
    """How far a student's next-token distributions are from the teacher's: one entry a document."""

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
    """What each layer is worth, by several criteria; larger = more sensitive (worse to drop) in every one of them."""

    n_layers: int
    teacher: Score
    # criterion -> layer -> document; sums over tokens. Keys: drop_nll_nats (rise in NLL), drop_kl_nats, block_influence
    by_document: dict[str, tuple[tuple[float, ...], ...]]
    # criterion -> layer, for criteria that do not split by document. Keys: taylor, magnitude
    by_layer: dict[str, tuple[float, ...]]
    # span length -> first layer of the span -> mean angular distance (in units of pi) across the span
    angular_distance: dict[str, tuple[float, ...]]

    @property
    def criteria(self) -> dict[str, tuple[float, ...]]:
        """Every criterion as one number a layer (means per token where it depends on text)."""
        n_tokens = sum(self.teacher.n_tokens)
        means = {name: tuple(math.fsum(row) / n_tokens for row in rows) for name, rows in self.by_document.items()}
        return {**means, "angular_distance": self.angular_distance["1"], **self.by_layer}

    @property
    def drop_one(self) -> tuple[float, ...]:
        """The reference criterion: rise in NLL (nats per token) when the layer alone is dropped."""
        return self.criteria["drop_nll_nats"]


@dataclass(frozen=True)
class PairCosts:
    """Rise in mean NLL (nats per token) when two layers are dropped together, next to each dropped alone."""

    n_layers: int
    single: tuple[float, ...]
    pair: dict[str, float]  # "i,j" with i < j

    def cost(self, dropped: frozenset[int]) -> float:
        """As the search rules take it: no layer, one layer or two."""
        if not dropped:
            return 0.0
        if len(dropped) == 1:
            return self.single[next(iter(dropped))]
        return self.pair[",".join(map(str, sorted(dropped)))]

    def interaction(self, i: int, j: int) -> float:
        """Pair cost minus the sum of the two single costs: above 0, the two layers stand in for each other."""
        return self.cost(frozenset({i, j})) - self.single[i] - self.single[j]


@dataclass(frozen=True)
class Race:
    """The certificate of a race among all sets of k dropped layers: what was measured, and how sure the winner is."""

    n_layers: int
    winner: tuple[int, ...]
    error_probability: float
    tolerance_nats: float  # per token: the winner may be this much worse than the best set
    n_windows: int  # of the text that the promise is about
    n_sets: int
    ruled_out_by_parts: int  # sets never measured, since a part of them had lost already
    rounds: tuple[dict[str, int], ...]  # windows seen, sets in the race
    finalists: dict[str, tuple[float, ...]]  # still in: "i,j" -> gap to the winner, its bounds (nats per token)
    rise_nll_nats: float  # of the winner, per token, estimated for all the windows from those it was seen on
    set_windows: int  # sets x windows measured, parts included; an exhaustive search takes n_sets x n_windows
    part_checks: int  # comparisons of a measured set with a part one layer smaller
    part_failures: int  # of these, how often the part cost more
    largest_part_failure_nats: float
    gap_skewness: tuple[float, ...]  # 5, 50 and 95 % points over the sets measured; far below 0, the bounds are too bold


@dataclass(frozen=True)
class Curve:
    """One recovery as it went."""

    recipe: dict[str, Any]  # loss weights, temperature, lr, schedule, trained part, seed
    token_hash: str  # names the exact token ids and their order
    tokens: tuple[int, ...]  # seen so far, at each logged step
    losses: dict[str, tuple[float, ...]]  # term -> value at each logged step, nats per token
    validation_tokens: tuple[int, ...]
    validation_nll_nats: tuple[float, ...]  # mean per token


@dataclass(frozen=True)
class Timing:
    """Measured times of a model next to its teacher, taken in turn (A B A B): one entry a repetition.

    Milliseconds. `prefill` is one forward over `context` tokens; `decode` is per new token, after the prompt.
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
    by_layer_count: float  # expected decode ratio if each layer costs the same and nothing else costs
    by_weight_bytes: float  # expected decode ratio if reading the weights is all that costs
    teacher_kv_bytes_per_token: int
    student_kv_bytes_per_token: int


@dataclass(frozen=True)
class Size:
    """What a model weighs."""

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
    """Small results that are no more than names and values."""

    values: dict[str, Any]


@dataclass(frozen=True)
class Stamp:
    """Where a record comes from. Equal stamps (commit apart) mean that the result can be reused."""

    study: str
    step: str  # which notebook, or which piece of work inside it
    code_hash: str  # the modules used, docstrings and comments apart
    notebook_hash: str
    parameters: dict[str, Any]
    inputs: dict[str, str]  # name -> hash of what went in
    versions: dict[str, str]
    device: str
    dtype: str
    seed: int
    commit: str

    @property
    def key(self) -> str:
        """A hash of everything that can change the result."""
        content = {name: value for name, value in asdict(self).items() if name != "commit"}
        return hashlib.sha256(_dump(content).encode()).hexdigest()[:16]


Record = Plan | Score | Divergence | Profile | PairCosts | Race | Curve | Timing | Size | Answers | Facts
_KINDS = {kind.__name__: kind for kind in typing.get_args(Record)}


def write(path: Path, record: Record | Mapping[str, Record], stamp: Stamp) -> Path:
    """Save one record, or several of one kind by name, with its stamp; under a temporary name first.

    Raises ValueError for NaN or infinity, which JSON cannot hold.
    """
    members = list(record.values()) if isinstance(record, Mapping) else [record]
    kinds = {type(member).__name__ for member in members}
    if len(kinds) != 1 or not kinds <= set(_KINDS):
        raise ValueError(f"{Path(path).name}: one kind of record a file is wanted, got {sorted(kinds) or 'none'}")
    data = {name: asdict(member) for name, member in record.items()} if isinstance(record, Mapping) else asdict(record)
    try:
        text, stamped = _dump(data), _dump(asdict(stamp))
    except ValueError as error:
        raise ValueError(f"{Path(path).name}: a value is NaN or infinite, so the record is not saved") from error
    content = {
        "kind": kinds.pop(),
        "many": isinstance(record, Mapping),
        "data": json.loads(text),
        "data_sha256": _sha256(text),
        "stamp": json.loads(stamped),
        "stamp_sha256": _sha256(stamped),
    }
    write_atomically(Path(path), json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
    return Path(path)


def read(path: Path) -> Any:
    """The record, or {name: record}, that `write` saved. Raises ValueError for a file that is damaged or no record."""
    content = _content(Path(path))
    kind = _KINDS[content["kind"]]
    try:
        if content["many"]:
            return {name: _build(kind, data) for name, data in content["data"].items()}
        return _build(kind, content["data"])
    except (KeyError, TypeError, AttributeError):  # intact data under another kind's name
        raise ValueError(_damaged(path)) from None


def read_stamp(path: Path) -> Stamp:
    """The stamp alone. Raises ValueError as `read` does."""
    content = _content(Path(path))
    try:
        return Stamp(**content["stamp"])
    except (KeyError, TypeError):
        raise ValueError(_damaged(path)) from None


def data_hash(path: Path) -> str:
    """Names a record's content, its stamp apart: equal results have equal hashes."""
    return _content(Path(path))["data_sha256"]


def write_atomically(path: Path, text: str) -> None:
    """Write under a temporary name in the same folder, then rename: a reader sees all of it or the old file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _dump(data: Any) -> str:
    return json.dumps(data, sort_keys=True, allow_nan=False, ensure_ascii=False, separators=(",", ":"))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _content(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        intact = content["kind"] in _KINDS and _sha256(_dump(content["data"])) == content["data_sha256"]
        if set(content) != {"kind", "many", "data", "data_sha256", "stamp"}:  # older files have no more
            intact = intact and _sha256(_dump(content["stamp"])) == content["stamp_sha256"]
    except (ValueError, KeyError, TypeError, AttributeError):
        intact = False
    if not intact:
        raise ValueError(_damaged(path))
    return content


def _damaged(path: Path) -> str:
    return f"{path} is damaged or is no record: remove it and run the study again"


def _build(kind: Any, value: Any) -> Any:
    """JSON back into the declared type: lists into tuples, mappings into records."""
    origin = typing.get_origin(kind)
    if is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        known = [f for f in fields(kind) if f.name in value or f.default is MISSING]  # older files lack what has a default
        return kind(**{f.name: _build(hints[f.name], value[f.name]) for f in known})
    if origin is tuple:
        return tuple(_build(typing.get_args(kind)[0], item) for item in value)
    if origin is dict:
        return {key: _build(typing.get_args(kind)[1], item) for key, item in value.items()}
    return value
