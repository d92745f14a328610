"""A pruned model as a folder that plain `from_pretrained` opens: weights, tokenizer, model card, the cut for mergekit."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from depthprune_core import decoders
from depthprune_core.intervals import Interval
from depthprune_core.records import Plan
from depthprune_study import places
from depthprune_study.settings import StudyError


@dataclass(frozen=True)
class Card:
    """What a model card tells. `hub` is the base model's id on the hub, if it has one; `source` what mergekit finds it by: a folder, or
    empty. Ratios are PPL ratios to the whole model on held-out text, perplexities those of the models that they compare.
    """

    base: str
    hub: str
    plan: Plan
    n_parameters: int
    tokens: int  # of recovery; 0 = none
    text: str
    recipe: str
    ratios: dict[str, Interval]  # "before recovery", "as saved"
    license: str = ""
    revision: str = ""  # of the hub
    source: str = ""
    perplexities: dict[str, Interval] = field(default_factory=dict)  # "whole model", and as `ratios`


def folder(out: Path, model: PreTrainedModel, tokenizer: Any, card: Card, *, dtype: torch.dtype) -> None:
    """Write the folder under a temporary name, open it with plain transformers, compare, and only then give it its name.

    The model's parameters are cast in place. Raises StudyError where `out` is there already, or where what was opened is not what
    was written.
    """
    check_free(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    try:
        cast(model, dtype)
        model.save_pretrained(building)
        tokenizer.save_pretrained(building)
        (building / "README.md").write_text(model_card(card, out.name), encoding="utf-8")
        (building / "mergekit.yaml").write_text(mergekit(card, dtype), encoding="utf-8")
        _check(building, model, tokenizer)
        os.chmod(building, 0o755)
        os.replace(building, out)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise


@torch.no_grad()
def cast(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """The model with its parameters in this precision, in place; what it derives from its config (rotary frequencies) stays exact."""
    for p in model.parameters():
        p.data = p.data.to(dtype)
    return model


def check_free(out: Path) -> None:
    """Raises StudyError where something is there already, or where no folder of that name can be put when the work is done."""
    if out.name in ("", ".."):
        raise StudyError(f"--out={out} has no name of its own: name a folder that is not there yet")
    if out.is_symlink() or os.path.ismount(out):
        raise StudyError(
            f"--out={out} is a link or a disk of its own, which no finished folder can replace: name a folder inside it"
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise StudyError(f"{out} is there already: name a folder that is not, nothing is overwritten")


def mergekit(card: Card, dtype: torch.dtype) -> str:
    """The unrecovered cut as a configuration of mergekit (https://github.com/arcee-ai/mergekit): kept spans, passed through."""
    if card.hub:
        told, model = "", f"{card.hub}@{card.revision}" if card.revision else card.hub
    elif card.source:
        told, model = "# model: the folder as it was named when this was written; change it to where that lies.\n", card.source
    else:
        told = f"# model: {card.base} has no folder of its own; save it by save_pretrained and name that folder here.\n"
        model = card.base
    slices = [{"sources": [{"model": model, "layer_range": [first, last + 1]}]} for first, last in _spans(card.plan.kept)]
    return told + yaml.safe_dump(
        {"slices": slices, "merge_method": "passthrough", "dtype": str(dtype).removeprefix("torch.")}, sort_keys=False
    )


def model_card(card: Card, name: str) -> str:
    """The README.md of a model folder."""
    head: dict[str, Any] = {"base_model": card.hub} if card.hub else {}
    head |= {"library_name": "transformers", "pipeline_tag": "text-generation"}
    if card.license:
        head["license"] = card.license
    head["tags"] = ["depth-pruning"]
    gone, kept = (", ".join(map(str, layers)) for layers in (card.plan.dropped, card.plan.kept))
    licence = card.license or "that of the base model, whose terms hold for this one too"
    recovered = (
        f"It was then trained on {card.tokens:,} tokens of {card.text}: {card.recipe}."
        if card.tokens
        else "It was not trained after the cut."
    )
    at = f" (revision {card.revision[:12]})" if card.revision else ""
    ppl = {when: f"{value.point:.2f} [{value.low:.2f}, {value.high:.2f}]" for when, value in card.perplexities.items()}
    rows = [f"| {when} | {ppl.get(when, '')} | {ratio} | {ratio.n} |" for when, ratio in card.ratios.items()]
    if "whole model" in ppl:
        rows.insert(0, f"| whole model | {ppl['whole model']} | 1 | |")
    table = "\n".join(rows)
    return f"""---
{yaml.safe_dump(head, sort_keys=False).strip()}
---

# {name}

{card.base}{at} without layers {gone} (counted from 0) of its {card.plan.n_layers}: {card.n_parameters:,} parameters, made by
[depthprune](https://github.com/{places.REPOSITORY}). Layers kept: {kept}. {recovered}

| | perplexity a token, 95 % interval | ratio to {card.base}, 95 % interval | held-out passages |
|---|---|---|---|
{table}

A ratio of 1 is the whole model's. What the model can do beyond predicting this kind of text was not measured.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{name}")
tokenizer = AutoTokenizer.from_pretrained("{name}")
```

`mergekit.yaml` makes the same cut, without recovery, from the base model. Licence: {licence}.
"""


def _spans(kept: Sequence[int]) -> list[tuple[int, int]]:
    """First and last of each run of neighbours."""
    spans: list[tuple[int, int]] = []
    for layer in kept:
        if spans and layer == spans[-1][1] + 1:
            spans[-1] = (spans[-1][0], layer)
        else:
            spans.append((layer, layer))
    return spans


def _check(path: Path, saved: PreTrainedModel, tokenizer: Any) -> None:
    opened, info = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, output_loading_info=True)
    wrong = {problem: names for problem in ("missing_keys", "unexpected_keys", "mismatched_keys") if (names := info[problem])}
    ours = dict(saved.named_parameters())
    differing = [name for name, p in opened.named_parameters() if not torch.equal(p, ours[name].detach().cpu().float())]
    if wrong or differing:
        raise StudyError(f"the written model does not open as what it is: {wrong or differing[:3]}")
    words = "Which layers can go? (14 + 17)"
    if AutoTokenizer.from_pretrained(path)(words).input_ids != tokenizer(words).input_ids:
        raise StudyError("the written tokenizer does not open as what it is")
    decoders.decoder(opened)
