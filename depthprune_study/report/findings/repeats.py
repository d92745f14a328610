"""Findings about the same again: another family, stages, seeds, narrower models, adapters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from depthprune_core.records import Score
from depthprune_study.report import wording as w
from depthprune_study.report.rules import rule
from depthprune_study.report.wording import Finding
from depthprune_study.results import statistics


def transfer(scores: Mapping[str, Score], first: Mapping[str, Score]) -> Finding:
    """Whether the recipe of the first family works on the second, unchanged."""
    gain = w.ratio(scores, "healed", "cut")
    one, two = (f"{w.over(of, 'cut')} cut, {w.over(of, 'healed')} healed" for of in (first, scores))
    return w.outcome(
        w.side(gain, 1),
        f"By the same recipe, the first family goes to {one}, the second to {two} (times the frozen"
        f" whole model's perplexity; n = {gain.n} test articles). On the second family the healed"
        f" student stands at {w.interval(gain)} of the cut one.",
        below="The recipe carries over: it heals the second family too",
        above="The recipe does not carry over: it harms the second family",
        open="Whether the recipe carries over is open",
    )


def staged(scores: Mapping[str, Score]) -> Finding:
    """In stages against all at once: the same layers, the same tokens, both ways round."""
    told, sides = [], set()
    for name in w.staged(scores):
        gap = w.ratio(scores, name, "at once, healed")
        sides.add(w.side(gap, 1))
        how = name.removesuffix(", healed")
        told.append(f"{how}: {w.over(scores, name)}, {w.interval(gap)} of at once")
    at_once = w.ratio(scores, "at once, healed")
    text = (
        f"At once, healed: {w.interval(at_once)} times the perplexity. {w.up('; '.join(told))} (n ="
        f" {at_once.n} test articles)."
    )
    if len(sides) > 1:
        return Finding("In stages or at once: it depends on which layers go first", text)
    return w.outcome(
        sides.pop(),
        text,
        below="In stages is better than at once, on the same layers",
        above="At once is better than in stages, on the same layers",
        open="In stages and at once cannot be told apart, on the same layers",
    )


def spread(ratios: Sequence[float]) -> float:
    """Largest minus smallest, over the mean."""
    return (max(ratios) - min(ratios)) / float(np.mean(ratios))


def seeds(scores: Mapping[str, Mapping[str, Score]]) -> Finding:
    """How far seeds differ, each with its own articles to heal on: model -> label -> score."""
    limits, told, spreads, sound = rule("C7"), [], [], True
    for model, of in sorted(scores.items()):
        runs = [w.ratio(of, label) for label in sorted(of) if "seed" in label]
        points = [value.point for value in runs]
        diverged = any(statistics.DIVERGED in value.note for value in runs)
        sound = sound and len(runs) > 1 and not diverged
        spreads.append(spread(points))
        told.append(
            f"{model}: {w.listed(map(w.number, points))} times the perplexity, a spread of"
            f" {w.percent(spreads[-1], 2)} of their mean (n = {w.plural(len(points), 'seed')},"
            f" {runs[0].n} test articles)"
        )
    text, widest = ". ".join(told) + ".", max(spreads)
    if not sound or not np.isfinite(widest):
        return Finding("How far seeds differ is open", text)
    if widest <= limits["holds"]:
        return Finding(f"Seeds hardly differ: by {w.percent(widest, 2)} at most", text)
    if widest > limits["fails"]:
        return Finding(f"Seeds differ: by up to {w.percent(widest, 2)}", text, True)
    return Finding(f"Seeds differ by {w.percent(widest, 2)}: neither hardly nor clearly", text)


def width(scores: Mapping[str, Score]) -> Finding:
    """Fewer layers against narrower MLPs at as many parameters, each healed at its own rate."""
    gap = w.ratio(scores, "healed", "narrower, healed")
    return w.outcome(
        w.side(gap, 1),
        f"At as many parameters, fewer layers stand at {w.over(scores, 'healed')} and narrower MLPs"
        f" at {w.over(scores, 'narrower, healed')} times the whole model's perplexity, both healed;"
        f" the first over the second: {w.paired(gap)}. Before healing:"
        f" {w.over(scores, 'cut', 'narrower, cut')}.",
        below="Fewer layers beat narrower MLPs at the same size",
        above="Narrower MLPs beat fewer layers at the same size",
        open="Fewer layers and narrower MLPs cannot be told apart at the same size",
    )


def adapters(scores: Mapping[str, Score]) -> Finding:
    """Healing adapters alone against healing all weights, by the same predictions."""
    gap, trained = w.ratio(scores, "adapters", "healed"), w.ratio(scores, "adapters, ce")
    return w.outcome(
        w.side(gap, 1),
        f"Adapters alone stand at {w.over(scores, 'adapters')}, all weights at"
        f" {w.over(scores, 'healed')}; the first over the second: {w.paired(gap)}. Adapters trained"
        f" on the text: {w.interval(trained)}.{w.adaptation(trained)}",
        below="Healing adapters alone beats healing all weights",
        above="Healing adapters alone falls short of healing all weights",
        against=w.BELOW,
        open="Adapters alone and all weights cannot be told apart",
    )
