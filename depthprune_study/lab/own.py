"""Prunes your own model: choose layers, drop them, heal, score, write a folder.

`prune` does all steps. notebooks/your_model.ipynb calls them one by one: `prepare`, `profile`,
`choose`, `cut`, `refit`, `heal`, `score`, `continuations`, `save`.
"""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from depthprune_core import (
    evaluation,
    pruning,
    refitting,
    selection,
    sensitivity,
    subsets,
)
from depthprune_core.anatomy import anatomy
from depthprune_core.records import Curve, Plan, Profile, Score
from depthprune_study import locks
from depthprune_study.lab import cache, devices, export, healing, weights
from depthprune_study.lab.card import CUT, SAVED, WHOLE, mergekit, model_card
from depthprune_study.lab.job import Job, prepare
from depthprune_study.results import statistics
from depthprune_study.results.statistics import Interval

WITHOUT_PROFILE = ("greedy", "exhaustive", "contiguous", "evenly_spaced", "last_k", "random")
N_PROMPTS, PROMPT_CHARS, NEW_TOKENS = 3, 120, 24


@dataclass(frozen=True)
class Pruned:
    """The result: the plan, its scores on held-out passages, and its folder."""

    plan: Plan
    scores: dict[str, Score]
    ratios: dict[str, Interval]  # PPL ratios to the whole model
    out: Path
    address: str = ""  # on the hub, if it was pushed

    def __str__(self) -> str:
        gone = ", ".join(map(str, self.plan.dropped))
        where = f"{self.out.name} and {self.address}" if self.address else self.out.name
        return f"{where}: dropped layers {gone}, perplexity ratio {self.ratios[SAVED]}"


def prune(model: str, *, say: Callable[[str], None] = print, **options: Any) -> Pruned:
    """Drop layers from a named model, a local folder or a hub id; heal; write a plain model folder.

    text: a named text, a file, a folder, or a hub data set (ORG/NAME:column). Some passages are
      held out for choosing layers and for scoring; they are never trained on.
    out: the folder to write. It must not exist, unless `replace` is true.
    drop: layers to drop: a number, a share of the parameters ("8%"), or a target size ("120M").
    layers: exact layers to drop, instead of a rule.
    rule: a name of selection.RULES.
    recover_tokens: training tokens for healing (KL to the whole model, after a refit); 0 = none.
    lr: learning rate; 0 = that of params/recipe.yaml, times ten for adapters.
    trained: `all` weights, or `lora`: only adapters, which takes far less memory.
    seq_len, score_tokens: tokens per window, and per held-out passage.
    seed, device: the seed of the windows; auto, cpu or cuda.
    push_to: a hub repository for the folder; "" = none.

    An interrupted run resumes from its last checkpoint when it is started again.

    Raises StudyError or ValueError for invalid options before layers are chosen;
    FloatingPointError if a loss is not finite.
    """
    job = prepare(model, say=say, **options)
    with _alone(job):
        n = job.teacher.model.num_parameters()
        say(f"{model}: {n:,} parameters; choosing {job.n_dropped} layers to drop")
        plan = choose(job)
        say(f"dropping layers {', '.join(map(str, plan.dropped))} ({plan.rule})")
        student = cut(job, plan)
        scores = score(job, {WHOLE: job.teacher.model, CUT: student})
        say(f"perplexity ratio after the cut: {statistics.ratios(scores, whole=WHOLE)[CUT]}")
        if job.recipe is not None:
            refit(job, student, plan)
            heal(job, student, plan)
        return save(job, student, plan, scores)


def profile(job: Job) -> Profile:
    """What each layer is worth, on the calibration passages."""
    windows = job.windows("calibration")
    return sensitivity.profile(job.teacher.model, windows, gradients=False, progress=job.progress)


def choose(job: Job, known: Profile | None = None) -> Plan:
    """The given layers, or the layers that the rule chooses on the calibration passages."""
    n_layers = len(anatomy(job.teacher.model).layers)
    if job.layers:
        return Plan(n_layers, job.layers, "named")
    if known is None and job.rule not in WITHOUT_PROFILE:
        known = profile(job)
    windows = job.windows("calibration")
    cost = partial(subsets.rises, job.teacher.model, windows, progress=job.progress)
    evidence = selection.Evidence(n_layers, known, cost, job.seed)
    return selection.choose(job.rule, evidence, job.n_dropped)


def cut(job: Job, plan: Plan) -> PreTrainedModel:
    """The whole model without the plan's layers.

    Raises ValueError before any training if its logits differ from those of the whole model with
    these layers skipped, or if they change after saving and opening.
    """
    student = pruning.drop_layers(job.teacher.model, plan)
    job.work.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=job.work.parent, prefix=f".{job.out.name}.") as folder:
        pruning.check_saved(student, Path(folder))
    return student


def refit(job: Job, student: PreTrainedModel, plan: Plan) -> None:
    """Fit the maps around the cut to the whole model's hidden states; in place, no training.

    If the model or the cut allows no refit, nothing changes. A resumed run reuses the maps of the
    interrupted run, because another machine may round differently.
    """
    n_tokens = job.recipe.refit_tokens if job.recipe else 0
    if not n_tokens or not refitting.is_possible(student) or not refitting.fitted_layers(plan):
        return
    windows = job.sample(n_tokens, once=True)
    key = cache.short_hash([cache.weights_hash(student), windows.token_hash])
    kept = job.work / f"{key}.safetensors"
    if not weights.load(student, kept):
        refitting.refit(student, job.teacher.model, plan, windows, progress=job.progress)
        whole = pruning.drop_layers(job.teacher.model, plan, share=True)
        weights.save(student, kept, unlike=whole)


def heal(
    job: Job, student: PreTrainedModel, plan: Plan, *, watched: bool = False
) -> tuple[PreTrainedModel, Curve]:
    """Train the student on the whole model's predictions, in place; resumes from its checkpoint.

    watched: score the validation passages during training, for the curve.
    """
    if job.recipe.trained == "lora":
        pruning.share_equal(student, job.teacher.model, plan)
    name = cache.short_hash([cache.weights_hash(job.teacher.model), list(plan.dropped)])
    student, curve = healing.distil(
        student,
        job.teacher.model,
        job.sample(job.recipe.tokens),
        job.recipe,
        validation=job.windows("validation") if watched else None,
        checkpoint=job.work / f"{name}.ckpt",
        progress=job.progress,
    )
    cache.forget_hash(student)
    return student, curve


def score(job: Job, named: Mapping[str, PreTrainedModel]) -> dict[str, Score]:
    """Scores on held-out passages. Raises FloatingPointError if a loss is not finite."""
    windows, scores = job.windows("test"), {}
    for name, model in named.items():
        scores[name] = evaluation.score(model, windows, progress=job.progress)
        if not math.isfinite(nll := scores[name].mean_nll_nats):
            raise FloatingPointError(f"the loss of the model ({name}) on held-out text is {nll}")
    return scores


def validation(job: Job, model: PreTrainedModel) -> Score:
    """The score on the validation passages that `heal` uses for its curve."""
    return evaluation.score(model, job.windows("validation"), progress=job.progress)


def prompts(job: Job) -> list[str]:
    """The first words of some held-out passages, with room for the continuation."""
    context = devices.context_of(job.teacher.model)
    room, texts = max(1, context - NEW_TOKENS - 1), []
    for passage in job.parts["test"][:N_PROMPTS]:
        begin = passage.text[:PROMPT_CHARS].rsplit(" ", 1)[0]
        found = job.teacher.tokenizer(
            begin, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        texts.append(begin[: found["offset_mapping"][:room][-1][1]])
    return texts


def continuations(job: Job, named: Mapping[str, PreTrainedModel]) -> dict[str, list[str]]:
    """Each model's greedy continuation of `prompts`."""
    asked, teacher = prompts(job), job.teacher
    options = {"new_tokens": NEW_TOKENS, "start": teacher.start}
    return {
        name: evaluation.continuations(model, teacher.tokenizer, asked, **options)
        for name, model in named.items()
    }


def save(job: Job, student: PreTrainedModel, plan: Plan, scores: Mapping[str, Score]) -> Pruned:
    """Write the folder, scored in the precision of its file; push it if `push_to` is set.

    scores: of WHOLE and CUT. The student is rounded in place to the file's precision.
    """
    dtypes = export.file_dtypes(job.teacher.model, student, plan)
    export.cast(export.cast(student, dtypes), dict.fromkeys(dtypes, torch.float32))
    scores = {**scores, **score(job, {SAVED: student})}
    files = {
        "README.md": model_card(job, plan, scores, student.num_parameters()),
        "mergekit.yaml": mergekit(job.base, plan, next(iter(dtypes.values()), torch.float32)),
    }
    tokenizer = job.teacher.tokenizer
    export.folder(job.out, student, tokenizer, dtypes=dtypes, files=files, replace=job.replace)
    shutil.rmtree(job.work, ignore_errors=True)
    address = export.push(job.out, job.push_to) if job.push_to else ""
    return Pruned(plan, scores, statistics.ratios(scores, whole=WHOLE), job.out, address)


@contextmanager
def _alone(job: Job) -> Iterator[None]:
    """Lock `out` for one process. Raises StudyError for a second process."""
    with locks.alone(job.work, f"writing {job.out}", job.say):
        try:
            yield
        finally:
            if not [path for path in job.work.glob("*") if path.name != ".lock"]:
                shutil.rmtree(job.work, ignore_errors=True)
