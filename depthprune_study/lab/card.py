"""The model card of a pruned model: its base model, its cut, its text, its scores."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch
import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from depthprune_core import corpora, reading
from depthprune_core.records import Plan, Score
from depthprune_study import paths
from depthprune_study.lab.job import Base, Job
from depthprune_study.results import statistics

WHOLE, CUT, SAVED = "whole", "cut", "saved"  # the models whose scores a card shows
TITLES = {WHOLE: "whole model", CUT: "cut, not healed", SAVED: "as saved"}


def model_card(job: Job, plan: Plan, scores: Mapping[str, Score], n_parameters: int) -> str:
    """The README.md of a job's folder; it contains no local path."""
    n_before = job.lab.teacher.model.num_parameters()
    text, licence = _text_of(job)[0], licence_of(job.base)
    gone, kept = (", ".join(map(str, layers)) for layers in (plan.dropped, plan.kept))
    at = f" (revision {job.base.revision[:12]})" if job.base.revision else ""
    return f"""---
{_head(job, scores, licence)}
---

# {job.out.name}

{job.base.title}{at} without layers {gone} (counted from 0) of its {plan.n_layers}:
{n_parameters:,} parameters, {1 - n_parameters / n_before:.1%} fewer, made by
[depthprune](https://github.com/{paths.REPOSITORY}). Layers kept: {kept}. {_healing(job)}

| | perplexity per token, 95 % interval | ratio to the whole model, 95 % interval | passages |
|---|---|---|---|
{_rows(scores)}

A ratio of 1 is the whole model's. The passages of {text} behind these scores were held out and
never trained on. Other abilities of the model were not measured.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{job.out.name}")
tokenizer = AutoTokenizer.from_pretrained("{job.out.name}")
```

`mergekit.yaml` makes the same cut, without healing, from the base model. Licence:
{licence or "the terms of the base model also apply to this model"}.
"""


def mergekit(base: Base, plan: Plan, dtype: torch.dtype) -> str:
    """The cut as a mergekit configuration (https://github.com/arcee-ai/mergekit)."""
    model = f"{base.hub}@{base.revision}" if base.revision else base.hub or base.title
    comment = "" if base.hub else f"# model: name the folder of {base.title} here\n"
    ends = [layer + 1 for layer in plan.kept if layer + 1 not in plan.kept]
    begins = [layer for layer in plan.kept if layer - 1 not in plan.kept]
    slices = [
        {"sources": [{"model": model, "layer_range": [begin, end]}]}
        for begin, end in zip(begins, ends, strict=True)
    ]
    kept = {"slices": slices, "merge_method": "passthrough", "dtype": str(dtype).split(".")[-1]}
    return comment + yaml.safe_dump(kept, sort_keys=False)


def licence_of(base: Base) -> str:
    """The licence in the base model's card; empty if the card is missing or unreadable."""
    with suppress(Exception):  # no network, no card, or a head that is not YAML
        found = ModelCard.load(base.card).data.license
        return found if isinstance(found, str) else ""
    return ""


def _head(job: Job, scores: Mapping[str, Score], licence: str) -> str:
    """The metadata for the hub (https://huggingface.co/docs/hub/model-cards).

    The hub has no relation "pruned" (finetune, adapter, quantized, merge): finetune is closest.
    """
    text, dataset = _text_of(job)
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=dataset or "text",
            dataset_name=f"{text}, held-out passages",
            metric_type="perplexity",
            metric_name=title,
            metric_value=round(_perplexity(scores[name]).point, 4),
        )
        for name, title in ((SAVED, "perplexity"), (WHOLE, "perplexity of the whole base model"))
    ]
    head = ModelCardData(
        base_model=job.base.hub or None,
        base_model_relation="finetune" if job.base.hub else None,
        library_name="transformers",
        pipeline_tag="text-generation",
        license=licence or None,
        datasets=[dataset] if dataset else None,
        tags=["depth-pruning", "depthprune"],
        model_name=job.out.name,
        eval_results=results,
    )
    return head.to_yaml()


def _text_of(job: Job) -> tuple[str, str]:
    """The name of the text in a card, and its hub id, if it has one."""
    given = job.lab.parameters["text"]
    if given in corpora.NAMED:
        return given, ""
    where, _ = reading.parted(given)
    if Path(where).exists() or not reading.is_hub_name(where):
        return "a private text", ""
    dataset = "/".join(where.split("/")[:2])
    return dataset, dataset


def _healing(job: Job) -> str:
    recipe = job.recipe
    if recipe is None:
        return "It was not trained after the cut."
    adapters = "low-rank adapters only, " if recipe.trained == "lora" else ""
    return (
        f"It was then trained on {recipe.tokens:,} tokens of {_text_of(job)[0]}: KL to the whole "
        f"model, AdamW at {recipe.lr:g}, {adapters}{recipe.batch_size} windows of {recipe.seq_len} "
        "tokens per step, after a closed-form refit if the architecture allows it."
    )


def _rows(scores: Mapping[str, Score]) -> str:
    ratios = statistics.ratios(scores, whole=WHOLE)
    rows = []
    for name, title in TITLES.items():
        ppl, ratio = _perplexity(scores[name]), ratios.get(name)
        left = f"{ppl.point:.2f} [{ppl.low:.2f}, {ppl.high:.2f}]"
        right = f"{ratio.point:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]" if ratio else "1"
        rows.append(f"| {title} | {left} | {right} | {ppl.n} |")
    return "\n".join(rows)


def _perplexity(score: Score) -> statistics.Interval:
    """Perplexity with its interval, as the ratio to a model with zero loss."""
    return statistics.ppl_ratio(score, replace(score, nll_nats=(0.0,) * len(score.nll_nats)))
