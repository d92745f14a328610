"""The model card of a pruned model, in the hub's own format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from depthprune_core.records import Plan
from depthprune_study import paths
from depthprune_study.results.statistics import Interval

WHOLE, CUT, SAVED = "whole", "cut", "saved"  # whose scores a card shows
_TITLES = {WHOLE: "whole model", CUT: "cut, not healed", SAVED: "as saved"}


@dataclass(frozen=True)
class Card:
    """What a model card tells.

    hub, revision: the base model on the hub, if it is there. source: the folder by which mergekit
    finds it, or empty. perplexities: WHOLE, CUT, SAVED -> perplexity a token on held-out passages;
    ratios: CUT, SAVED -> ratio to the whole model's.
    """

    base: str
    hub: str
    plan: Plan
    n_parameters: int
    base_parameters: int
    tokens: int  # of healing; 0 = none
    text: str  # as the card names it
    dataset: str  # its id on the hub; "" = none
    recipe: str  # in words
    ratios: Mapping[str, Interval]
    perplexities: Mapping[str, Interval] = field(default_factory=dict)
    license: str = ""
    revision: str = ""
    source: str = ""


def model_card(card: Card, name: str) -> str:
    """The README.md of a model folder; its head is what the hub reads."""
    head = yaml.safe_dump(metadata(card, name), sort_keys=False, allow_unicode=True).strip()
    gone, kept = (", ".join(map(str, layers)) for layers in (card.plan.dropped, card.plan.kept))
    at = f" (revision {card.revision[:12]})" if card.revision else ""
    healed = (
        f"It was then trained on {card.tokens:,} tokens of {card.text}: {card.recipe}."
        if card.tokens
        else "It was not trained after the cut."
    )
    smaller = 1 - card.n_parameters / card.base_parameters
    licence = card.license or "that of the base model, whose terms hold for this one too"
    return f"""---
{head}
---

# {name}

{card.base}{at} without layers {gone} (counted from 0) of its {card.plan.n_layers}:
{card.n_parameters:,} parameters, {smaller:.1%} fewer, made by
[depthprune](https://github.com/{paths.REPOSITORY}). Layers kept: {kept}. {healed}

| | perplexity a token, 95 % interval | ratio to {card.base}, 95 % interval | held-out passages |
|---|---|---|---|
{_rows(card)}

A ratio of 1 is the whole model's. Passages of {card.text} were held out for these figures and never
trained on. What the model can do beyond predicting this kind of text was not measured.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{name}")
tokenizer = AutoTokenizer.from_pretrained("{name}")
```

`mergekit.yaml` makes the same cut, without healing, from the base model. Licence: {licence}.
"""


def metadata(card: Card, name: str) -> dict[str, Any]:
    """What stands at the card's head (https://huggingface.co/docs/hub/model-cards).

    The hub knows no relation "pruned" (finetune, adapter, quantized, merge): finetune is nearest.
    """
    head: dict[str, Any] = {}
    if card.hub:
        head |= {"base_model": card.hub, "base_model_relation": "finetune"}
    head |= {"library_name": "transformers", "pipeline_tag": "text-generation"}
    if card.license:
        head["license"] = card.license
    if card.dataset:
        head["datasets"] = [card.dataset]
    head["tags"] = ["depth-pruning", "depthprune"]
    results = [
        {"type": "perplexity", "value": round(card.perplexities[row].point, 4), "name": title}
        for row, title in ((SAVED, "perplexity"), (WHOLE, "perplexity of the whole base model"))
        if row in card.perplexities
    ]
    if results:
        dataset = {"name": f"{card.text}, held-out passages", "type": card.dataset or "text"}
        task = {"type": "text-generation"}
        result = {"task": task, "dataset": dataset, "metrics": results}
        head["model-index"] = [{"name": name, "results": [result]}]
    return head


def _rows(card: Card) -> str:
    rows = []
    for row in (WHOLE, CUT, SAVED):
        ppl, ratio = card.perplexities.get(row), card.ratios.get(row)
        if ppl is None and ratio is None:
            continue
        left = f"{ppl.point:.2f} [{ppl.low:.2f}, {ppl.high:.2f}]" if ppl else ""
        right = f"{ratio.point:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]" if ratio else "1"
        rows.append(f"| {_TITLES[row]} | {left} | {right} | {ratio.n if ratio else ppl.n} |")
    return "\n".join(rows)
