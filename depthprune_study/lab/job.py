"""Checks the options for pruning your own model, before any work."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from depthprune_core import folders, models, selection, splits, text
from depthprune_core.anatomy import anatomy
from depthprune_core.models import SOURCES, Teacher
from depthprune_core.progress import Progress
from depthprune_core.records import Plan, Recipe
from depthprune_study import parameters, paths
from depthprune_study.errors import StudyError
from depthprune_study.lab import devices, export
from depthprune_study.lab.bars import Bar

LR, LORA_TIMES = 1e-4, 10  # without params/recipe.yaml; adapters take a higher rate
REFIT_TOKENS = 102_400  # without params/recipe.yaml
REFIT_TIMES = 10  # limit of refit tokens, as a multiple of the healing tokens
CHOICE_TOKENS = 512  # limit per passage for choosing layers
UNITS = {"K": 10**3, "M": 10**6, "B": 10**9, "G": 10**9}


@dataclass(frozen=True)
class Base:
    """The origin of a model, without local paths. Empty: not known, or none."""

    title: str
    hub: str = ""  # its hub id
    revision: str = ""  # its commit on the hub
    card: str = ""  # its model card: a file, or a hub id


@dataclass(frozen=True)
class Job:
    """Everything that is fixed before the work begins."""

    base: Base
    teacher: Teacher
    parts: Mapping[str, list[text.Document]]  # split -> passages
    text: str
    out: Path
    n_dropped: int
    layers: tuple[int, ...]  # exact layers, instead of a rule
    rule: str
    recipe: Recipe | None  # None: no training
    seq_len: int
    score_tokens: int  # of each held-out passage
    seed: int
    push_to: str
    replace: bool  # overwrite the output of an earlier run
    progress: Progress
    say: Callable[[str], None]

    def windows(self, part: str) -> text.Windows:
        """Scoring windows of a split: the first tokens of each passage, fewer for choices."""
        n_tokens = self.score_tokens if part == "test" else min(self.score_tokens, CHOICE_TOKENS)
        return text.scoring_windows(
            self.parts[part],
            self.teacher.tokenizer,
            start=self.teacher.start,
            seq_len=self.seq_len,
            tokens_per_document=n_tokens,
        )

    def sample(self, tokens: int, *, once: bool = False) -> text.Windows:
        """Training windows drawn by the seed; `once`: without repetition."""
        pool = text.training_windows(
            self.parts["recovery"],
            self.teacher.tokenizer,
            start=self.teacher.start,
            seq_len=self.seq_len,
        )
        most = pool.inputs.numel() if once else tokens
        return text.draw(pool, n_tokens=min(tokens, most), seed=self.seed)

    @property
    def work(self) -> Path:
        """The folder with the files that resume an interrupted run."""
        return self.out.with_name(f".{self.out.name}.work")


def prepare(
    model: str,
    *,
    text: str,
    out: str | Path,
    drop: int | str = "",
    layers: Sequence[int] = (),
    rule: str = "least_sensitive",
    recover_tokens: int = 0,
    lr: float = 0.0,
    trained: str = "all",
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

    Raises StudyError or ValueError for invalid options.
    """
    out, device = Path(out), devices.device_of(device)
    goal = None if layers else _goal(drop)
    if rule not in selection.RULES:
        names = ", ".join(selection.RULES)
        raise StudyError(f"rule={rule!r} is not known: name one of {names}")
    if not 0 <= seed < 2**63:
        raise StudyError(f"seed={seed} is not valid: give a whole number from 0 to 2^63 - 1")
    export.check_free(out, replace=replace)
    export.check_push(push_to)
    base, place = _find(model)
    parts = splits.split_named(text, cache=paths.cache())
    teacher = models.load(place, cache=paths.cache(), device=device, seed=seed)
    if teacher.note:
        say(f"{model}: {teacher.note}")
    seq_len = min(seq_len, devices.context_of(teacher.model))
    recipe = _recipe(recover_tokens, lr, trained, seq_len, seed, device)
    named = Plan(len(anatomy(teacher.model).layers), tuple(layers), "named").dropped
    return Job(
        base=base,
        teacher=teacher,
        parts=parts,
        text=text,
        out=out,
        n_dropped=_n_dropped(teacher, *goal) if goal else len(named),
        layers=named,
        rule=rule,
        recipe=recipe if recover_tokens else None,
        seq_len=seq_len,
        score_tokens=score_tokens,
        seed=seed,
        push_to=push_to,
        replace=replace,
        progress=progress or Bar(),
        say=say,
    )


def _find(model: str) -> tuple[Base, str]:
    """A model's origin, and the name for `models.load`; a hub id is fetched.

    Raises StudyError if the model is not found, ValueError for a folder with an incomplete model.
    """
    if known := SOURCES.get(model):
        hub = known.where if known.kind == "hub" else ""
        card = models.BUNDLED / known.where / "README.md" if known.kind == "bundled" else hub
        return Base(model, hub, known.revision, str(card)), model
    if Path(model).is_dir():
        folders.check(Path(model))
        return Base(Path(model).resolve().name, card=str(Path(model) / "README.md")), model
    if Path(model).exists():
        raise StudyError(f"model={model!r} is a file: name the folder that contains it")
    if model.count("/") != 1:
        names = ", ".join(SOURCES)
        raise StudyError(f"model={model!r} is not known: name {names}, a local folder or a hub id")
    try:
        folder = models.fetch_hub(model)  # with its card, which names the licence
    except RuntimeError as error:
        raise StudyError(f"model={model!r} is not a local folder, and {error}") from None
    return Base(model, model, folder.name, str(folder / "README.md")), str(folder)


def _goal(drop: int | str) -> tuple[float, str]:
    """`2` -> 2 layers, `8%` -> a share of the parameters, `120M` -> the remaining parameters."""
    match = re.fullmatch(r"(\d+)|(\d+(?:\.\d+)?)(%|[KMBG])", str(drop).strip().upper())
    if match is None:
        raise StudyError(
            f"drop={drop!r} is not valid: give a number of layers (2), a share of the parameters "
            "(8%), or a target size (120M)"
        )
    return float(match[1] or match[2]), match[3] or ""


def _n_dropped(teacher: Teacher, number: float, unit: str) -> int:
    """The number of layers nearest to the goal. Raises StudyError if the goal is out of reach."""
    layers, n = anatomy(teacher.model).layers, teacher.model.num_parameters()
    each, most = sum(p.numel() for p in layers.parameters()) / len(layers), len(layers) - 1
    wanted = number
    if unit:
        wanted = (n * number / 100 if unit == "%" else n - number * UNITS[unit]) / each
    if not 0 < wanted <= most + (0.5 if unit else 0):
        raise StudyError(
            f"drop={number:g}{unit} is out of reach: {teacher.name} has {n:,} parameters in "
            f"{most + 1} layers; at most {most} can be dropped ({n - most * each:,.0f} remain)"
        )
    return max(1, min(most, round(wanted)))


def _recipe(tokens: int, lr: float, trained: str, seq_len: int, seed: int, device: str) -> Recipe:
    """params/recipe.yaml with these changes; lr=0: the recipe's rate, ten times it for adapters."""
    values = parameters.recipe_values()
    usual = values.get("lr", LR) * (LORA_TIMES if trained == "lora" else 1)
    batch = devices.whole_windows(values.get("batch_tokens", Recipe.batch_tokens), seq_len)
    values |= {"tokens": tokens or batch, "lr": lr or usual, "trained": trained, "seq_len": seq_len}
    values |= {"seed": seed, "precision": devices.fast_precision(device)}
    values["batch_tokens"] = batch
    values["refit_tokens"] = min(values.get("refit_tokens", REFIT_TOKENS), REFIT_TIMES * tokens)
    return Recipe(**values)
