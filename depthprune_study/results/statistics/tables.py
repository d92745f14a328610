"""Converts named records into the tables that charts draw; names encode what varies."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import TypeVar

from depthprune_core.records import Answers, Recipe, Score, Size
from depthprune_study.results.statistics.documents import ppl_ratio
from depthprune_study.results.statistics.interval import Interval
from depthprune_study.results.statistics.items import proportion

Value = TypeVar("Value")
CONTROL = "whole, same text"  # the whole model, trained on the text of the cut model


def ratios(
    scores: Mapping[str, Score], *, whole: str = "whole", suffix: str = ""
) -> dict[str, Interval]:
    """Name -> PPL ratio to scores[whole]; `whole` itself is left out.

    With `suffix`, only names with this ending, which is removed: `greedy-2` -> `greedy`.
    """
    return {
        name.removesuffix(suffix): ppl_ratio(score, scores[whole])
        for name, score in scores.items()
        if name != whole and name.endswith(suffix)
    }


def matched(scores: Mapping[str, Score]) -> dict[str, Interval]:
    """`k fewer, ce` -> {`k fewer, matched`: PPL ratio to the whole model on the same text}."""
    end = ", ce"
    return {
        f"{name.removesuffix(end)}, matched": ppl_ratio(score, scores[CONTROL])
        for name, score in scores.items()
        if name.endswith(end) and CONTROL in scores
    }


def rises(scores: Mapping[str, Score]) -> dict[str, float]:
    """Name -> mean NLL above that of the whole model, nats per token."""
    zero = scores["whole"].mean_nll_nats
    return {name: s.mean_nll_nats - zero for name, s in scores.items() if name != "whole"}


def accuracies(answers: Mapping[str, Answers]) -> dict[str, dict[str, Interval]]:
    """`name: family` -> {family: {name: accuracy}}."""
    table: dict[str, dict[str, Interval]] = {}
    for key, given in answers.items():
        name, _, family = key.rpartition(": ")
        table.setdefault(family, {})[name] = proportion(given)
    return table


def by_depth(named: Mapping[str, Value]) -> dict[str, dict[int, Value]]:
    """`method, k fewer` -> {method: {k: value}}; other names are ignored."""
    lines = _grouped(named, r"(.+), (\d+) fewer")
    return {method: {int(k): v for k, v in line.items()} for method, line in lines.items()}


def by_seed(named: Mapping[str, Interval]) -> dict[str, dict[str, Interval]]:
    """`name, seed s` -> {name: {"seed s": ratio}}; other names are ignored."""
    return _grouped(named, r"(.+), (seed \d+)")


def by_budget(named: Mapping[str, Interval]) -> dict[str, dict[int, Interval]]:
    """`source, N tokens` -> {source: {N: ratio}}; `refitted` (on articles) is 0 tokens of them."""
    lines = {
        source: dict(sorted((int(n), ratio) for n, ratio in line.items()))
        for source, line in _grouped(named, r"(.+), (\d+) tokens").items()
    }
    if "refitted" in named and "articles" in lines:
        lines["articles"] = {0: named["refitted"]} | lines["articles"]
    return lines


def _grouped(named: Mapping[str, Value], pattern: str) -> dict[str, dict[str, Value]]:
    """First group of the pattern -> {second group: value}, for names that match."""
    table: dict[str, dict[str, Value]] = {}
    for name, value in named.items():
        if match := re.fullmatch(pattern, name):
            table.setdefault(match[1], {})[match[2]] = value
    return table


def share_removed(sizes: Mapping[str, Size], k: int) -> float:
    """The share of the parameters that dropping k layers removes."""
    return 1 - sizes[f"{k} fewer"].n_parameters / sizes["0 fewer"].n_parameters


def cheap_pairs(n_pairs: int, cheap_layers: int) -> int:
    """How many of the pairs tried are those of the cheapest layers."""
    return min(n_pairs, cheap_layers * (cheap_layers - 1) // 2)


def by_share(
    named: Mapping[str, Interval], sizes: Mapping[str, Size]
) -> dict[str, dict[float, Interval]]:
    """`k fewer, stage[, seed s]` -> {stage: {share of the parameters removed: ratio}}.

    Several seeds of one stage give one point, their mean. Other names are ignored.
    """
    of_stage: dict[str, dict[float, list[Interval]]] = {}
    for name, ratio in named.items():
        if match := re.fullmatch(r"(\d+) fewer, (.+?)(, seed \d+)?", name):
            share = share_removed(sizes, int(match[1]))
            runs = of_stage.setdefault(match[2], {}).setdefault(share, [])
            if ratio not in runs:  # the run without a seed number is one of the seeds
                runs.append(ratio)
    return {
        stage: {share: _mean(runs) for share, runs in sorted(line.items())}
        for stage, line in of_stage.items()
    }


def by_factor(trials: Mapping[str, Score], kept: Recipe) -> dict[str, dict[str, Interval]]:
    """`factor: level` -> {factor: {level: PPL ratio to the level that was kept}}."""
    chosen = kept_levels(trials, kept)
    return {
        factor: {level: ppl_ratio(score, levels[chosen[factor]]) for level, score in levels.items()}
        for factor, levels in _levels(trials).items()
    }


def kept_levels(trials: Mapping[str, Score], kept: Recipe) -> dict[str, str]:
    """Factor -> the kept level: the recipe's, else the one with the lowest loss.

    A factor that changes several fields at once is not a recipe field.
    """
    chosen = {}
    for factor, levels in _levels(trials).items():
        value = getattr(kept, factor, None)
        label = f"{value:g}" if isinstance(value, float) else str(value)
        best = min(levels, key=lambda n: (bool(levels[n].diverged), levels[n].mean_nll_nats))
        chosen[factor] = label if label in levels else best
    return chosen


def _levels(trials: Mapping[str, Score]) -> dict[str, dict[str, Score]]:
    table: dict[str, dict[str, Score]] = {}
    for name, score in trials.items():
        factor, _, level = name.partition(": ")
        table.setdefault(factor, {})[level] = score
    return table


def _mean(runs: list[Interval]) -> Interval:
    """The mean of several seeds' ratios; its bounds are the means of their bounds."""
    if len(runs) == 1:
        return runs[0]
    bounds = zip(*((run.point, run.low, run.high) for run in runs), strict=True)
    point, low, high = (math.fsum(values) / len(runs) for values in bounds)
    return replace(runs[0], point=point, low=low, high=high, note=f"mean of {len(runs)} seeds")
