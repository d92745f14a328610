"""Findings about variations: another family, stages, seeds, narrower models, adapters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from depthprune_core.records import Divergence, Score
from depthprune_study.report import wording as w
from depthprune_study.report.rules import rule
from depthprune_study.report.wording import Finding
from depthprune_study.results import statistics


def transfer(scores: Mapping[str, Score], model: str) -> Finding:
    """Whether the recipe of notebook 03 heals this model, of another family, unchanged."""
    gain = w.ratio(scores, "healed", "cut")
    return w.outcome(
        gain,
        1,
        f"With the recipe of notebook 03, the refitted and healed {model} has {w.interval(gain)}"
        f" times the cut's perplexity and {w.over(scores, 'healed', 'refitted')} times that of the"
        f" refitted model (n = {gain.n} test articles).",
        below=f"The recipe of notebook 03 heals {model} too",
        above=f"The recipe of notebook 03 harms {model}",
        open=f"The recipe of notebook 03 is not shown to heal {model}",
    )


def staged(scores: Mapping[str, Score]) -> Finding:
    """Compares stages with dropping all at once: same layers, same tokens, both orders.

    Differences inside the limit at which seeds are alike (C7) name no winner: it is one run each.
    """
    parts, gaps = [], {}
    for name in w.staged(scores):
        gap = w.ratio(scores, name, "at once, healed")
        how = name.removesuffix(", healed")
        gaps[how] = gap
        parts.append(f"{how}: {w.over(scores, name)}, {w.interval(gap)} times at once")
    at_once = w.ratio(scores, "at once, healed")
    text = (
        f"At once, healed: {w.interval(at_once)} times the perplexity. {w.up('; '.join(parts))}"
        f" (n = {at_once.n} test articles). One run each."
    )
    sides = {how: w.side(gap, 1) for how, gap in gaps.items()}
    found, limit = set(sides.values()), rule("C7")["holds"]
    if all(w.sound(gap) and max(1 - gap.low, gap.high - 1) <= limit for gap in gaps.values()):
        most = w.percent(max(abs(gap.point - 1) for gap in gaps.values()), 2)
        text += f" Seeds that differ by {w.percent(limit)} count as alike."
        return Finding(f"For the same layers, stages and at once differ by {most} at most", text)
    if {w.ABOVE, w.BELOW} <= found:
        return Finding("Whether stages help depends on which layers go first", text)
    if len(found) > 1:  # one order is clear, the other is not
        clear = next(how for how, side in sides.items() if side != w.OPEN)
        better = "better" if sides[clear] == w.BELOW else "worse"
        title = f"{w.up(clear)}, is {better} than at once; the other order is not clear"
        return Finding(title, text)
    return w.outcome(
        max(gaps.values(), key=lambda gap: statistics.DIVERGED in gap.note),
        1,
        text,
        below="For the same layers, stages are better than at once",
        above="For the same layers, at once is better than stages",
        open="For the same layers, stages and at once are not clearly different",
    )


def spread(ratios: Sequence[float]) -> float:
    """Largest minus smallest, over the mean."""
    return (max(ratios) - min(ratios)) / float(np.mean(ratios))


def seeds(scores: Mapping[str, Mapping[str, Score]]) -> Finding:
    """How much seeds differ; each heals on other articles. scores: model -> label -> score.

    The title is about the first model.
    """
    limits, parts, spreads, sound = rule("C7"), [], [], []
    for model, of in scores.items():
        runs = [w.ratio(of, label) for label in sorted(of) if "seed" in label]
        points = [value.point for value in runs]
        diverged = any(statistics.DIVERGED in value.note for value in runs)
        sound.append(len(runs) > 1 and not diverged)
        spreads.append(spread(points))
        parts.append(
            f"{model}: perplexity ratios {w.listed(map(w.number, points))}, a spread of"
            f" {w.percent(spreads[-1], 2)} of their mean (n = {w.plural(len(points), 'seed')},"
            f" {runs[0].n} test articles)"
        )
    text, widest, first = ". ".join(parts) + ".", spreads[0], next(iter(scores))
    if not sound[0] or not np.isfinite(widest):
        return Finding(f"{first}: it is open how much seeds differ", text)
    if widest <= limits["holds"]:
        return Finding(f"{first}: seeds hardly differ, by {w.percent(widest, 2)} at most", text)
    if widest > limits["fails"]:
        return Finding(f"{first}: seeds differ by up to {w.percent(widest, 2)}", text, True)
    return Finding(f"{first}: seeds differ by {w.percent(widest, 2)}, between the limits", text)


def width(scores: Mapping[str, Score], distances: Mapping[str, Divergence]) -> Finding:
    """Fewer layers against narrower MLPs at equal size. distances: of the trials of rates."""
    gap = w.ratio(scores, "healed", "narrower, healed")
    rates = [_rate(distances, name) for name in ("fewer layers", "narrower MLPs")]
    return w.outcome(
        gap,
        1,
        f"At equal parameter counts and after healing, fewer layers have"
        f" {w.over(scores, 'healed')} and narrower MLPs {w.over(scores, 'narrower, healed')} times"
        f" the whole model's perplexity. Their ratio is {w.paired(gap)}; before healing it is"
        f" {w.over(scores, 'cut', 'narrower, cut')}.{''.join(rates)}",
        below="Fewer layers beat narrower MLPs at the same size",
        above="Narrower MLPs beat fewer layers at the same size",
        open="Fewer layers and narrower MLPs are not clearly different at the same size",
    )


def adapters(scores: Mapping[str, Score], distances: Mapping[str, Divergence]) -> Finding:
    """Healing only adapters against all weights, on the same predictions. distances: of trials."""
    gap = w.ratio(scores, "adapters", "healed")
    return w.outcome(
        gap,
        1,
        f"Adapters are at {w.over(scores, 'adapters')}, all weights at"
        f" {w.over(scores, 'healed')}; their ratio is {w.paired(gap)}."
        f"{_rate(distances, 'adapters')}",
        below="Healing only adapters is better than healing all weights",
        above="Healing only adapters is worse than healing all weights",
        against=w.BELOW,
        open="Healing only adapters and all weights are not clearly different",
    )


def _rate(distances: Mapping[str, Divergence], name: str) -> str:
    """The learning rate kept in the trials of `name`, of how many, and whether it is at an end."""
    of_it = {label: d.mean_kl_nats for label, d in distances.items() if label.startswith(name)}
    if not of_it:
        return ""
    rates = {label: float(label.rpartition(" ")[2]) for label in of_it}
    kept, ends = rates[min(of_it, key=of_it.get)], (min(rates.values()), max(rates.values()))
    end = "the lowest " if kept == ends[0] else "the highest " if kept == ends[1] else ""
    return f" Learning rate kept for {name}: {kept:g}, {end}of {len(rates)} tried."
