"""Text in charts: names, numbers, units, alt text."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping

from depthprune_study.results.statistics import NO_BCA, Interval

RATIO = "perplexity ÷ the whole model's"
BASELINE = "whole model"
STAGES = ("whole", "cut", "refitted", "healed", "ce", "whole, same text")

_NAMES = {
    "whole": BASELINE,
    "whole, same text": "whole, trained on the text",
    "ce": "cut, trained on the text",
    "narrower, cut": "narrower, not healed",
    "adapters": "adapters, healed",
    "Q8_0": "8-bit weights (Q8_0)",
    "Q4_0": "4-bit weights (Q4_0)",
    "prune_and_comp": "Prune&Comp",
    "linear_patch": "LinearPatch",
    "replaceme": "ReplaceMe",
    "ghosted_layers": "Ghosted Layers",
    # rules and criteria
    "least_sensitive": "least sensitive (loss)",
    "block_influence": "block influence (ShortGPT)",
    "angular": "angular distance (Gromov)",
    "greedy": "greedy (SLEB)",
    "drop_nll_nats": "loss without it",
    "drop_kl_nats": "KL without it",
    "taylor": "the Taylor score",
    "magnitude": "size of weights",
}
_FACTORS = {
    "lr": "learning rate",
    "kl": "weight of the teacher",
    "ce": "weight of the text",
    "warmup": "warm-up",
    "batch_tokens": "tokens per step",
    "seq_len": "tokens per window",
    "refit_tokens": "tokens of the refit",
    "lora_rank": "rank of adapters",
    "trained": "parts trained",
}
_IDEAS = {  # idea -> pattern; the first pattern found in a name gives its idea
    "control": "whole.*text|matched",
    "rival": "^(narrower|adapters|Q8_0|Q4_0|prune_and_comp|linear_patch|replaceme|ghosted_layers)",
    "text": r"\bce\b|the text",
    "healed": "healed|^articles",
    "refitted": "refit",
    "whole": "^whole",
    "cut": r"\bcut\b",
    "other": "",
}


def words(name: str) -> str:
    """The label of a record's name: `random_0, 2 fewer` is "random 0, 2 fewer"."""
    if known := _NAMES.get(name):
        return known
    if count := re.fullmatch(r"(\d+) fewer", name):
        return f"{count[1]} layer{'s' if count[1] != '1' else ''} fewer"
    first, comma, rest = name.partition(", ")
    if comma:
        return f"{words(first)}, {rest if rest.endswith('fewer') else words(rest)}"
    return name.replace("_", " ")


def factor(name: str) -> str:
    """The label of a recipe field."""
    return _FACTORS.get(name, name.replace("_", " "))


def idea(name: str) -> str:
    """The idea behind a name (a key of style.IDEAS)."""
    return next(idea for idea, sign in _IDEAS.items() if re.search(sign, name))


def number(value: float) -> str:
    """Three decimals for small numbers, fewer for large ones; words if not finite."""
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else "infinite"
    size = abs(value)
    if size >= 1e6:
        return f"{value:.1e}"
    return f"{value:.3f}" if size < 10 else f"{value:,.{1 if size < 1_000 else 0}f}"


def bounds(value: Interval) -> str:
    """[1.052, 1.073]; empty without an interval."""
    known = value.n > 0 and math.isfinite(value.low) and math.isfinite(value.high)
    return f"[{number(value.low)}, {number(value.high)}]" if known else ""


def interval(value: Interval) -> str:
    """1.062 [1.052, 1.073], with its note."""
    note = f"({value.note})" if value.note and value.note != NO_BCA else ""
    return " ".join(filter(None, [number(value.point), bounds(value), note]))


def alt(title: str, what: str, values: Mapping[str, Interval | float]) -> str:
    """Alt text: the finding, the measure, and every value."""
    items = (
        f"{name} {interval(value) if isinstance(value, Interval) else f'{value:.4g}'}"
        for name, value in values.items()
    )
    return f"{title.rstrip('.')}. Chart of {what}: {'; '.join(items)}."


def units(intervals: Iterable[Interval], unit: str = "articles") -> str:
    """The line below a chart that explains the intervals."""
    counts = sorted({i.n for i in intervals if bounds(i)})
    if not counts:
        return ""
    n = f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"
    return f"Error bars: 95 % intervals over {n} {unit}."
