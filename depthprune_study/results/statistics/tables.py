"""Converts named records into the tables that charts draw; names encode what varies."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeVar

from depthprune_core.records import Answers, Divergence, Recipe, Score, Size
from depthprune_study.results.statistics.documents import kl_ratio, mean_score, ppl_ratio
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


def rises(scores: Mapping[str, Score]) -> dict[str, float]:
    """Name -> mean NLL above that of the whole model, nats per token; without diverged runs."""
    zero = scores["whole"].mean_nll_nats
    sound = {n: s for n, s in scores.items() if n != "whole" and not s.diverged}
    return {name: score.mean_nll_nats - zero for name, score in sound.items()}


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


def by_seed(named: Mapping[str, Value]) -> dict[str, dict[str, Value]]:
    """`name, seed s` -> {name: {"seed s": value}}; other names are ignored."""
    return _grouped(named, r"(.+), (seed \d+)")


def by_budget(named: Mapping[str, Interval]) -> dict[str, dict[int, Interval]]:
    """`source, N tokens` -> {source: {N: ratio}}; 0 tokens: refitted only."""
    return {
        source: dict(sorted((int(n), ratio) for n, ratio in line.items()))
        for source, line in _grouped(named, r"(.+), (\d+) tokens").items()
    }


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
    scores: Mapping[str, Score], sizes: Mapping[str, Size]
) -> dict[str, dict[float, Interval]]:
    """`k fewer, stage[, seed s]` -> {stage: {share of the parameters removed: PPL ratio}}.

    Several seeds of one stage are one point, from the mean loss of each document. The stage `ce` is
    `matched`: it is compared with the whole model on the same text. Other names are ignored.
    """
    lines: dict[str, dict[float, Interval]] = {}
    for start in dict.fromkeys(re.sub(r", seed \d+$", "", name) for name in scores):
        if match := re.fullmatch(r"(\d+) fewer, (.+)", start):
            stage, whole = ("matched", CONTROL) if match[2] == "ce" else (match[2], "whole")
            ratio = ppl_ratio(average(scores, start), scores[whole])
            lines.setdefault(stage, {})[share_removed(sizes, int(match[1]))] = ratio
    return {stage: dict(sorted(line.items())) for stage, line in lines.items()}


def average(scores: Mapping[str, Score], start: str) -> Score | None:
    """The mean over `start` and every `start, seed s`; None if neither exists."""
    named = (name for name in scores if name == start or name.startswith(f"{start}, seed"))
    found = {scores[name].nll_nats: scores[name] for name in named}  # a run under two names is one
    return mean_score([*found.values()]) if found else None


def by_factor(distances: Mapping[str, Divergence], kept: Recipe) -> dict[str, dict[str, Interval]]:
    """`factor: level` -> {factor: {level: KL ÷ that of the level that was kept}}."""
    chosen = kept_levels(distances, kept)
    return {
        factor: {level: kl_ratio(found, levels[chosen[factor]]) for level, found in levels.items()}
        for factor, levels in _levels(distances).items()
    }


def kept_levels(distances: Mapping[str, Divergence], kept: Recipe) -> dict[str, str]:
    """Factor -> the kept level: the recipe's, else the one with the lowest KL.

    The recipe may hold no level of a factor: a step is rounded to whole windows.
    """
    chosen = {}
    for factor, levels in _levels(distances).items():
        value = getattr(kept, factor)
        label = f"{value:g}" if isinstance(value, float) else str(value)
        lowest = min(levels, key=lambda level: levels[level].mean_kl_nats)
        chosen[factor] = label if label in levels else lowest
    return chosen


def _levels(named: Mapping[str, Value]) -> dict[str, dict[str, Value]]:
    table: dict[str, dict[str, Value]] = {}
    for name, value in named.items():
        factor, _, level = name.partition(": ")
        table.setdefault(factor, {})[level] = value
    return table
