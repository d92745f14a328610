"""What a pruning of one's own model is to do: everything is checked here, before any work."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from depthprune_core import models, selection, splits, text
from depthprune_core.decoder import anatomy, text_config
from depthprune_core.models import Teacher
from depthprune_core.progress import Progress
from depthprune_core.records import TRAINED_PARTS, Plan, Recipe
from depthprune_study import parameters, paths
from depthprune_study.errors import StudyError
from depthprune_study.lab import base, export, goal
from depthprune_study.lab.devices import device_of, fast_precision, whole_windows

MOST_TOKENS = 10**9  # of healing: they lie in memory
LR, LORA_TIMES = 1e-4, 10  # without params/recipe.yaml; adapters take a higher rate
REFIT_TOKENS = 102_400  # without params/recipe.yaml
REFIT_TIMES = 10  # the tokens of healing, at most
CHOICE_TOKENS = 512  # of each passage that layers are chosen by, at most


@dataclass(frozen=True)
class Job:
    """All that is fixed before the work begins."""

    base: base.Base
    teacher: Teacher
    parts: Mapping[str, list[text.Document]]  # split -> passages
    text: str
    out: Path
    n_dropped: int
    layers: tuple[int, ...]  # named ones, instead of a rule
    rule: str
    recipe: Recipe | None  # None: nothing is trained
    seq_len: int
    score_tokens: int  # of each held-out passage
    seed: int
    checkpoint_activations: bool
    micro_batch: int  # windows a pass; 0 = a whole step
    push_to: str
    replace: bool  # an output of an earlier run
    progress: Progress
    say: Callable[[str], None]

    def windows(self, part: str) -> text.Windows:
        """Scoring windows of a split's passages: the first tokens of each, fewer to choose by."""
        n_tokens = self.score_tokens if part == "test" else min(self.score_tokens, CHOICE_TOKENS)
        return text.scoring_windows(
            self.parts[part],
            self.teacher.tokenizer,
            start=self.teacher.start,
            seq_len=self.seq_len,
            tokens_per_document=n_tokens,
        )

    def sample(self, tokens: int, *, once: bool = False) -> text.Windows:
        """Windows to train on, drawn by the seed; `once`: no more than there are."""
        pool = text.training_windows(
            self.parts["recovery"],
            self.teacher.tokenizer,
            start=self.teacher.start,
            seq_len=self.seq_len,
        )
        most = pool.inputs.numel() if once else tokens
        return text.draw(pool, n_tokens=min(tokens, most), seed=self.seed)

    @property
    def context(self) -> int:
        """The longest text that the model can read, in tokens."""
        return context_of(self.teacher)

    @property
    def work(self) -> Path:
        """Where an interrupted run leaves what it goes on from."""
        return self.out.with_name(f".{self.out.name}.work")


def prepare(
    model: str,
    *,
    text: str,
    out: str | Path,
    drop: int | str = "",
    layers: tuple[int, ...] = (),
    rule: str = "least_sensitive",
    recover_tokens: int = 0,
    lr: float | None = None,
    trained: str = "all",
    checkpoint_activations: bool = False,
    micro_batch: int = 0,
    seq_len: int = 512,
    score_tokens: int = 1_024,
    seed: int = 0,
    device: str = "auto",
    push_to: str = "",
    replace: bool = False,
    progress: Progress | None = None,
    say: Callable[[str], None] = print,
) -> Job:
    """Check everything, find model and text, load the model. The options are those of `own.prune`.

    Raises StudyError or ValueError, in a sentence.
    """
    out, layers = Path(out), tuple(layers)
    lr = lr or 0.0
    _check_words(drop, layers, rule, trained, device)
    _check_numbers(recover_tokens, lr, micro_batch, seq_len, score_tokens, seed)
    if not replace:
        export.check_free(out)
    export.check_push(push_to)
    found = base.find(model)
    parts = splits.split_named(text, cache=paths.cache())
    on = device_of(device)
    with export.quietly():
        teacher = models.load(found.loaded_by, cache=paths.cache(), device=on, seed=seed)
    if teacher.note:
        say(f"{model}: {teacher.note}")
    seq_len = min(seq_len, context_of(teacher))
    return Job(
        base=found,
        teacher=teacher,
        parts=parts,
        text=text,
        out=out,
        n_dropped=len(layers) or goal.n_dropped(teacher, drop, say),
        layers=_layers(teacher, layers),
        rule=rule,
        recipe=_recipe(recover_tokens, lr, trained, seq_len, seed, on) if recover_tokens else None,
        seq_len=seq_len,
        score_tokens=score_tokens,
        seed=seed,
        checkpoint_activations=checkpoint_activations,
        micro_batch=micro_batch,
        push_to=push_to,
        replace=replace,
        progress=progress or now_and_then(say),
        say=say,
    )


def context_of(teacher: Teacher) -> int:
    """The longest text that the model can read, in tokens."""
    config = text_config(teacher.model.config)
    return getattr(config, "max_position_embeddings", None) or sys.maxsize


def now_and_then(say: Callable[[str], None], *, every_seconds: float = 10) -> Progress:
    """A progress callback that speaks every ten seconds."""
    last = time.monotonic()

    def tell(done: int, total: int, unit: str) -> None:
        nonlocal last
        if time.monotonic() - last >= every_seconds:
            last = time.monotonic()
            say(f"  {done:,} of {total:,} {unit}")

    return tell


def _check_words(
    drop: int | str, layers: tuple[int, ...], rule: str, trained: str, device: str
) -> None:
    if not layers and str(drop).strip() in ("", "0"):
        raise StudyError("drop is missing: a number of layers, 8% of the parameters, or 120M")
    if not layers:
        goal.parsed(drop)
    for name, value, known in (
        ("rule", rule, tuple(selection.RULES)),
        ("trained", trained, TRAINED_PARTS),
        ("device", device, ("auto", "cpu", "cuda")),
    ):
        if value not in known:
            raise StudyError(f"{name}={value!r} is not known: name one of {', '.join(known)}")


def _check_numbers(
    recover_tokens: int, lr: float, micro_batch: int, seq_len: int, score_tokens: int, seed: int
) -> None:
    if not (math.isfinite(lr) and lr >= 0):
        raise StudyError(
            f"lr={lr:g} is not possible: a number above 0, such as 1e-4 (0: the usual)"
        )
    if seq_len < 2:
        raise StudyError(f"seq_len={seq_len} is not possible: 2 tokens a window or more")
    if score_tokens < 2:
        raise StudyError(f"score_tokens={score_tokens} is not possible: 2 tokens a passage or more")
    if micro_batch < 0:
        raise StudyError(f"micro_batch={micro_batch} is not possible: windows a pass (0: a step's)")
    if not 0 <= seed < 2**63:
        raise StudyError(f"seed={seed} is not possible: a whole number from 0 to below 2^63")
    if recover_tokens > MOST_TOKENS:
        raise StudyError(
            f"recover_tokens={recover_tokens:.3g} is not possible: {MOST_TOKENS:,} tokens at most, "
            "since they lie in memory"
        )
    if recover_tokens < 0:
        raise StudyError(f"recover_tokens={recover_tokens} is not possible: 0 (no healing) or more")


def _recipe(tokens: int, lr: float, trained: str, seq_len: int, seed: int, device: str) -> Recipe:
    """params/recipe.yaml with these changes; without a rate, adapters take ten times its rate."""
    values = parameters.recipe_values()
    usual = values.get("lr", LR) * (LORA_TIMES if trained == "lora" else 1)
    batch = whole_windows(values.get("batch_tokens", Recipe.batch_tokens), seq_len)
    if tokens < batch:
        raise StudyError(f"recover_tokens={tokens} is less than one step of {batch:,} tokens")
    values |= {"tokens": tokens, "lr": lr or usual, "trained": trained, "seq_len": seq_len}
    values |= {"batch_tokens": batch, "seed": seed, "precision": fast_precision(device)}
    refit_tokens = values.get("refit_tokens", REFIT_TOKENS)
    values["refit_tokens"] = min(refit_tokens, REFIT_TIMES * tokens)
    return Recipe(**values)


def _layers(teacher: Teacher, layers: tuple[int, ...]) -> tuple[int, ...]:
    """Checked against the model: ValueError as `Plan` raises it."""
    return Plan(len(anatomy(teacher.model).layers), layers, "named").dropped if layers else ()
