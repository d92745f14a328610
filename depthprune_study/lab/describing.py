"""A job's model card: what was made, from what, on which text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from depthprune_core import reading
from depthprune_core.records import Plan, Score
from depthprune_study.lab import base
from depthprune_study.lab.card import Card
from depthprune_study.lab.job import Job
from depthprune_study.results import statistics
from depthprune_study.results.statistics import Interval

NAMED_TEXTS = ("wikipedia-excerpt", "news-excerpt", "wikitext-2")


def describe(
    job: Job,
    n_parameters: int,
    plan: Plan,
    scores: Mapping[str, Score],
    ratios: Mapping[str, Interval],
) -> Card:
    """The card of what the job made; it names no path of the maker's machine."""
    where, _ = reading.parted(job.text)
    from_hub = not Path(where).exists() and reading.is_hub_name(where)
    dataset = "/".join(where.split("/")[:2]) if from_hub and job.text not in NAMED_TEXTS else ""
    named = job.text if job.text in NAMED_TEXTS else "a text of the maker's own"
    return Card(
        base=job.base.title,
        hub=job.base.hub,
        plan=plan,
        n_parameters=n_parameters,
        base_parameters=job.teacher.model.num_parameters(),
        tokens=job.recipe.tokens if job.recipe else 0,
        text=dataset or named,
        dataset=dataset,
        recipe=_in_words(job),
        ratios=ratios,
        perplexities={name: _perplexity(found) for name, found in scores.items()},
        license=base.licence(job.base),
        revision=job.base.revision,
        source=job.base.source,
    )


def _perplexity(found: Score) -> Interval:
    """Perplexity with its interval: the ratio to a model that knows every token."""
    return statistics.ppl_ratio(found, replace(found, nll_nats=(0.0,) * len(found.nll_nats)))


def _in_words(job: Job) -> str:
    if job.recipe is None:
        return ""
    adapters = "low-rank adapters alone, " if job.recipe.trained == "lora" else ""
    return (
        f"KL to the whole model, AdamW at {job.recipe.lr:g}, {adapters}{job.recipe.batch_size} "
        f"windows of {job.recipe.seq_len} tokens a step, after a closed-form refit where the "
        "architecture allows it"
    )
