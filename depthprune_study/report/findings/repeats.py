"""Findings about the same again: another family, stages, seeds, narrower models, adapters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from depthprune_core.records import Score
from depthprune_study.report import wording as w
from depthprune_study.report.findings.healing import ADAPTATION
from depthprune_study.report.rules import rule
from depthprune_study.report.wording import Finding
from depthprune_study.results import statistics


def transfer(scores: Mapping[str, Score], first: Mapping[str, Score]) -> Finding:
    """Whether the recipe of the first family works on the second, unchanged."""
    gain, ratios = w.ratio(scores, "healed", "cut"), {}
    for where, of in (("first", first), ("second", scores)):
        ratios[where] = (
            f"{w.interval(w.ratio(of, 'cut'))} cut, {w.interval(w.ratio(of, 'healed'))} healed"
        )
    text = (
        f"By the same recipe, the first family goes to {ratios['first']}, the second to"
        f" {ratios['second']} (times the frozen whole model's perplexity; n = {gain.n} test"
        f" articles). On the second family the healed student stands at {w.interval(gain)} of the"
        " cut one."
    )
    return w.outcome(
        w.side(gain, 1),
        text,
        below="The recipe carries over: it heals the second family too",
        above="The recipe does not carry over: it harms the second family",
        open="Whether the recipe carries over is open",
    )


def staged(scores: Mapping[str, Score]) -> Finding:
    """In stages against all at once: the same layers, the same tokens, both ways round."""
    orders = [
        name for name in sorted(scores) if name.startswith("staged") and name.endswith("healed")
    ]
    gaps = {name: w.ratio(scores, name, "at once, healed") for name in orders}
    at_once = w.ratio(scores, "at once, healed")
    told = "; ".join(
        f"{name.removesuffix(', healed')}: {w.interval(w.ratio(scores, name))}, {w.interval(gap)}"
        " of at once"
        for name, gap in gaps.items()
    )
    text = (
        f"At once, healed: {w.interval(at_once)} times the perplexity. {w.up(told)} (n ="
        f" {at_once.n} test articles)."
    )
    found = {w.side(gap, 1) for gap in gaps.values()}
    if found == {w.BELOW}:
        return Finding("In stages is better than at once, on the same layers", text)
    if found == {w.ABOVE}:
        return Finding("At once is better than in stages, on the same layers", text, True)
    if found == {w.OPEN}:
        return Finding("In stages and at once cannot be told apart, on the same layers", text)
    return Finding("In stages or at once: it depends on which layers go first", text)


def spread(ratios: Sequence[float]) -> float:
    """Largest minus smallest, over the mean."""
    return (max(ratios) - min(ratios)) / float(np.mean(ratios))


def seeds(
    scores: Mapping[str, Mapping[str, Score]], whole: Mapping[str, Score] | None = None
) -> Finding:
    """How far seeds differ, each with its own articles to heal on: model -> label -> score.

    The whole model's score is `whole[model]`, or stands among the model's own as `whole`.
    """
    limits, told, spreads, bad = rule("C7"), [], {}, False
    for model, of in sorted(scores.items()):
        reference = whole[model] if whole else of["whole"]
        runs = [
            statistics.ppl_ratio(s, reference) for label, s in sorted(of.items()) if "seed" in label
        ]
        points = [value.point for value in runs]
        bad = bad or len(runs) < 2 or any(statistics.DIVERGED in value.note for value in runs)
        spreads[model] = spread(points) if points else 0.0
        told.append(
            f"{model}: {w.listed(map(w.number, points))} times the perplexity, a spread of"
            f" {w.fine(spreads[model])} of their mean (n = {w.plural(len(points), 'seed')},"
            f" {len(reference.documents)} test articles)"
        )
    text, widest = ". ".join(told) + ".", max(spreads.values(), default=0.0)
    if bad or not np.isfinite(widest):
        return Finding("How far seeds differ is open", text)
    if widest <= limits["holds"]:
        return Finding(f"Seeds hardly differ: by {w.fine(widest)} at most", text)
    if widest > limits["fails"]:
        return Finding(f"Seeds differ: by up to {w.fine(widest)}", text, True)
    return Finding(f"Seeds differ by {w.fine(widest)}: neither hardly nor clearly", text)


def width(scores: Mapping[str, Score]) -> Finding:
    """Fewer layers against narrower MLPs at as many parameters, each healed at its own rate."""
    gap = w.ratio(scores, "healed", "narrower, healed")
    text = (
        f"At as many parameters, fewer layers stand at {w.interval(w.ratio(scores, 'healed'))} and"
        f" narrower MLPs at {w.interval(w.ratio(scores, 'narrower, healed'))} times the whole"
        f" model's perplexity, both healed; the first over the second: {w.paired(gap)}."
    )
    if "cut" in scores and "narrower, cut" in scores:
        text += f" Before healing: {w.interval(w.ratio(scores, 'cut', 'narrower, cut'))}."
    return w.outcome(
        w.side(gap, 1),
        text,
        below="Fewer layers beat narrower MLPs at the same size",
        above="Narrower MLPs beat fewer layers at the same size",
        open="Fewer layers and narrower MLPs cannot be told apart at the same size",
    )


def adapters(scores: Mapping[str, Score]) -> Finding:
    """Healing adapters alone against healing all weights, by the same predictions."""
    gap = w.ratio(scores, "adapters", "healed")
    text = (
        f"Adapters alone stand at {w.interval(w.ratio(scores, 'adapters'))}, all weights at"
        f" {w.interval(w.ratio(scores, 'healed'))}; the first over the second: {w.paired(gap)}."
    )
    if "adapters, ce" in scores:
        trained = w.ratio(scores, "adapters, ce")
        text += f" Adapters trained on the text: {w.interval(trained)}" + (
            f"; {ADAPTATION}." if w.side(trained, 1) == w.BELOW else "."
        )
    return w.outcome(
        w.side(gap, 1),
        text,
        below="Healing adapters alone beats healing all weights",
        above="Healing adapters alone falls short of healing all weights",
        against=w.BELOW,
        open="Adapters alone and all weights cannot be told apart",
    )
