"""Findings about healing: how much comes back, at which of the two costs, and what it does elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from depthprune_core.records import Answers, Divergence, Score
from depthprune_study.report import wording as w
from depthprune_study.report.rules import rule
from depthprune_study.report.wording import Finding
from depthprune_study.results import statistics
from depthprune_study.results.statistics import Interval

ADAPTATION = "a ratio below 1 against the frozen whole model is adaptation to the text, not repair"
CONTROL = "whole, same text"


def won_back(scores: Mapping[str, Score], healed: str = "healed", cut: str = "cut") -> float | None:
    """The share of the cut's rise in NLL that healing takes away; None where the cut is not shown to cost anything."""
    lost = statistics.nll_rise(scores[cut], scores["whole"])
    left = statistics.nll_rise(scores[healed], scores["whole"])
    return 1 - left.point / lost.point if w.side(lost, 0) == w.ABOVE else None


def path(scores: Mapping[str, Score]) -> Finding:
    """Whole, cut, refitted, healed: the repair cost at each stage, against the frozen whole model."""
    stages = [name for name in ("cut", "refitted", "healed") if name in scores]
    ratios = {name: w.ratio(scores, name) for name in stages}
    last, gain = stages[-1], w.side(w.ratio(scores, stages[-1], "cut"), 1)
    told = ", ".join(f"{name} {w.interval(ratios[name])}" for name in stages)
    text = f"Perplexity over the frozen whole model's: {told} (n = {ratios[last].n} test articles)."
    share, cut, end = won_back(scores, last), w.short(ratios["cut"]), w.short(ratios[last])
    text += (
        f" {w.percent(share)} of the loss is won back."
        if share is not None and gain == w.BELOW
        else ""
    )
    text += f" Note: {ADAPTATION}." if w.side(ratios[last], 1) == w.BELOW else ""
    if gain == w.BELOW:
        return Finding(f"Healing brings the cut from {cut} to {end} times the perplexity", text)
    if gain == w.ABOVE:
        return Finding(f"Healing makes it worse: from {cut} to {end} times the perplexity", text)
    return Finding(f"Healing is not shown to help: {cut} before, {end} after", text)


def control(scores: Mapping[str, Score]) -> Finding:
    """The two costs side by side: repair, and matched."""
    repair, matched = w.ratio(scores, "healed"), w.ratio(scores, "ce", CONTROL)
    trained, text_gain = w.ratio(scores, "ce"), w.ratio(scores, CONTROL)
    text = (
        f"Repair: the healed student stands at {w.interval(repair)} times the frozen whole model's"
        f" perplexity. Matched: the student trained on the text stands at {w.interval(matched)}"
        f" times that of the whole model trained on the same text (n = {matched.n} test articles)."
    )
    if w.side(trained, 1) == w.BELOW or w.side(repair, 1) == w.BELOW:
        text += (
            " Against the frozen whole model the student trained on the text is at"
            f" {w.interval(trained)}, and the whole model trained on the same text at"
            f" {w.interval(text_gain)}: {ADAPTATION}."
        )
    titles = {
        w.ABOVE: f"Trained alike, the cut still costs: {w.short(matched)} times the perplexity",
        w.BELOW: f"Trained alike, the cut model is the better one: {w.short(matched)} times",
        w.OPEN: "Trained alike, the cut and the whole model cannot be told apart",
    }
    return Finding(titles[w.side(matched, 1)], text)


def elsewhere(scores: Mapping[str, Score], text: str) -> Finding:
    """The same students on a text that nothing was trained on or chosen by."""
    repair, gain = w.ratio(scores, "healed"), w.ratio(scores, "healed", "cut")
    told = (
        f"On {text}, which nothing was trained on, the healed student stands at"
        f" {w.interval(repair)}, the cut at {w.interval(w.ratio(scores, 'cut'))}"
    )
    if "ce" in scores:
        told += f", the student trained on the text at {w.interval(w.ratio(scores, 'ce'))}"
    if CONTROL in scores:
        told += (
            f", the whole model trained on the same text at {w.interval(w.ratio(scores, CONTROL))}"
        )
    told += f" (times the frozen whole model's perplexity; n = {repair.n} documents)."
    if "ce" in scores and CONTROL in scores:
        matched = w.ratio(scores, "ce", CONTROL)
        told += f" Matched cost there: {w.interval(matched)}."
    titles = {
        w.BELOW: f"Healing helps on other text too: {w.short(repair)} on {text}",
        w.ABOVE: f"On other text healing does harm: {w.short(repair)} on {text}",
        w.OPEN: f"On other text healing is not shown to help: {w.short(repair)} on {text}",
    }
    return Finding(titles[w.side(gain, 1)], told)


def divergences(divergences: Mapping[str, Divergence]) -> Finding:
    """How far each student's predictions are from the whole model's; which way of training stays closer."""
    means = {
        name: statistics.mean_per_token(d.kl_nats, d.n_tokens) for name, d in divergences.items()
    }
    told = ", ".join(
        f"{_plain(name)} {w.interval(value)} (same first choice"
        f" {w.percent(divergences[name].agreement)})"
        for name, value in means.items()
        if name != "whole"
    )
    n = next(iter(means.values())).n
    text = f"KL to the whole model, nats per token: {told}; n = {n} articles."
    if "healed" not in means or "ce" not in means:
        return Finding("How far each student's predictions are from the whole model's", text)
    ours, theirs = divergences["healed"], divergences["ce"]
    gap = statistics.mean_per_token(np.subtract(ours.kl_nats, theirs.kl_nats), ours.n_tokens)
    titles = {
        w.BELOW: "The healed student predicts more like the whole model than one trained on text",
        w.ABOVE: "A student trained on the text predicts more like the whole model",
        w.OPEN: "Neither way of training is shown to predict more like the whole model",
    }
    return Finding(
        titles[w.side(gap, 0)], f"{text} Healed less trained on the text: {w.interval(gap)}."
    )


def probes(answers: Mapping[str, Answers]) -> Finding:
    """Which ability goes with the layers, and which comes back."""
    by_student: dict[str, dict[str, Answers]] = {}
    for name, items in answers.items():
        student, _, family = name.rpartition(": ")
        by_student.setdefault(student, {})[family] = items
    whole = by_student["whole"]
    cut, healed = ([name for name in by_student if name.endswith(end)] for end in ("cut", "healed"))
    cut, healed = (
        sorted(names, key=lambda n: (w.counts([n]) or [0])[0])[-1:] for names in (cut, healed)
    )
    n = sum(len(items.right) for items in whole.values())
    if not cut or not healed:
        return Finding(
            "Probes of the whole model alone",
            f"{n:,} items in {len(whole)} families; no cut and healed students.",
        )
    lost = {f: statistics.accuracy_difference(by_student[cut[0]][f], whole[f]) for f in whole}
    left = {f: statistics.accuracy_difference(by_student[healed[0]][f], whole[f]) for f in whole}
    gone = sorted((f for f in whole if w.side(lost[f], 0) == w.BELOW), key=lambda f: lost[f].point)
    back = [f for f in gone if w.side(left[f], 0) != w.BELOW]
    told = ", ".join(
        f"{f} {w.interval(lost[f])}, then {w.interval(left[f])}"
        for f in sorted(whole, key=lambda f: lost[f].point)
    )
    text = (
        f"Accuracy less the whole model's, {cut[0]} then {healed[0]} (n = {n:,} items in all):"
        f" {told}."
    )
    if not gone:
        return Finding("No ability is shown to suffer from the cut", text)
    if len(back) == len(gone):
        return Finding(f"{_up(gone[0])} suffers most; after healing no loss is shown", text)
    if back:
        return Finding(
            f"{_up(gone[0])} suffers most; no loss is shown any more in {w.listed(back)}", text
        )
    return Finding(f"{_up(gone[0])} suffers most; every loss is still there after healing", text)


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
    titles = {
        w.BELOW: "The recipe carries over: it heals the second family too",
        w.ABOVE: "The recipe does not carry over: it harms the second family",
        w.OPEN: "Whether the recipe carries over is open",
    }
    return Finding(titles[w.side(gain, 1)], text)


def staged(scores: Mapping[str, Score]) -> Finding:
    """Dropping and healing in stages against all at once: the same layers, the same tokens, both ways round."""
    orders = [name for name in scores if name.startswith("staged") and name.endswith("healed")]
    gaps = {name: w.ratio(scores, name, "at once, healed") for name in orders}
    at_once = w.ratio(scores, "at once, healed")
    told = "; ".join(
        f"{name.removesuffix(', healed')}: {w.interval(w.ratio(scores, name))}, {w.interval(gap)}"
        " of at once"
        for name, gap in gaps.items()
    )
    text = (
        f"At once, healed: {w.interval(at_once)} times the perplexity. {_up(told)} (n = {at_once.n}"
        " test articles)."
    )
    found = {w.side(gap, 1) for gap in gaps.values()}
    if found == {w.BELOW}:
        return Finding("In stages is better than at once, on the same layers", text)
    if found == {w.ABOVE}:
        return Finding("At once is better than in stages, on the same layers", text)
    if found == {w.OPEN}:
        return Finding("In stages and at once cannot be told apart, on the same layers", text)
    return Finding("In stages or at once: it depends on which layers go first", text)


def spread(ratios: Sequence[float]) -> float:
    """Largest minus smallest, over the mean."""
    return (max(ratios) - min(ratios)) / float(np.mean(ratios))


def seeds(scores: Mapping[str, Mapping[str, Score]], whole: Mapping[str, Score]) -> Finding:
    """How far seeds differ, each with its own articles to heal on."""
    limits, told, spreads, notes = rule("C7"), [], {}, False
    for model, of in scores.items():
        ratios = [statistics.ppl_ratio(score, whole[model]) for score in of.values()]
        points, notes = (
            [value.point for value in ratios],
            notes or any(value.note for value in ratios),
        )
        spreads[model] = spread(points)
        told.append(
            f"{model}: {w.listed(map(w.number, points))} times the perplexity, a spread of"
            f" {_fine(spreads[model])} of their mean (n = {w.plural(len(points), 'seed')},"
            f" {ratios[0].n} test articles)"
        )
    text, widest = ". ".join(told) + ".", max(spreads.values(), default=0.0)
    if any(len(of) < 2 for of in scores.values()) or notes or not np.isfinite(widest):
        return Finding("How far seeds differ is open", text)
    if widest <= limits["holds"]:
        return Finding(f"Seeds hardly differ: by {_fine(widest)} at most", text)
    if widest > limits["fails"]:
        return Finding(f"Seeds differ: by up to {_fine(widest)}", text)
    return Finding(f"Seeds differ by {_fine(widest)}: neither hardly nor clearly", text)


def _fine(share: float) -> str:
    return f"{share:.2%}".replace("%", " %")


def _plain(name: str) -> str:
    return "trained on the text" if name == "ce" else name


def _up(text: str) -> str:
    return text[:1].upper() + text[1:]


def paired(value: Interval, unit: str = "test articles") -> str:
    """An interval with its n."""
    return f"{w.interval(value)} (n = {value.n} {unit})"
