"""Findings about healing: how much comes back, at which of the two costs, and elsewhere."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from depthprune_core.records import Answers, Curve, Divergence, Score
from depthprune_study.report import wording as w
from depthprune_study.report.wording import Finding
from depthprune_study.results import statistics

ADAPTATION = "a ratio below 1 against the frozen whole model is adaptation to the text, not repair"
CONTROL = "whole, same text"
FIFTH = 5


def won_back(scores: Mapping[str, Score], healed: str = "healed", cut: str = "cut") -> float | None:
    """The share of the cut's rise in NLL that healing takes away; None where none is shown."""
    lost = statistics.nll_rise(scores[cut], scores["whole"])
    left = statistics.nll_rise(scores[healed], scores["whole"])
    return 1 - left.point / lost.point if w.side(lost, 0) == w.ABOVE else None


def path(scores: Mapping[str, Score]) -> Finding:
    """Whole, cut, refitted, healed: the repair cost at each stage."""
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
        return Finding(f"Healing makes it worse: {cut} before, {end} after", text, True)
    return Finding(f"Healing is not shown to help: {cut} before, {end} after", text, True)


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
    return w.outcome(
        w.side(matched, 1),
        text,
        above=f"Trained alike, the cut still costs: {w.short(matched)} times the perplexity",
        below=f"Trained alike, the cut model is the better one: {w.short(matched)} times",
        open="Trained alike, the cut and the whole model cannot be told apart",
    )


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
    return w.outcome(
        w.side(gain, 1),
        told,
        below=f"Healing helps on other text too: {w.short(repair)} times",
        above=f"On other text healing does harm: {w.short(repair)} times",
        open=f"On other text healing is not shown to help: {w.short(repair)} times",
    )


def divergences(divergences: Mapping[str, Divergence]) -> Finding:
    """How far each student's predictions are from the whole model's, and which is closer."""
    means = {
        name: statistics.mean_per_token(d.kl_nats, d.n_tokens) for name, d in divergences.items()
    }
    told = ", ".join(
        f"{w.name(name)} {w.interval(value)} (same first choice"
        f" {w.percent(divergences[name].agreement)})"
        for name, value in ((n, means[n]) for n in w.natural(means))
        if name != "whole"
    )
    n = next(iter(means.values())).n
    text = f"KL to the whole model, nats per token: {told}; n = {n} articles."
    if "healed" not in means or "ce" not in means:
        return Finding("How far each student's predictions are from the whole model's", text)
    ours, theirs = divergences["healed"], divergences["ce"]
    gap = statistics.mean_per_token(np.subtract(ours.kl_nats, theirs.kl_nats), ours.n_tokens)
    return w.outcome(
        w.side(gap, 0),
        f"{text} Healed less trained on the text: {w.interval(gap)}.",
        below="Healing keeps closer to the whole model than training on the text",
        above="Training on the text keeps closer to the whole model than healing",
        open="Neither healing nor the text is shown to keep closer to the whole model",
    )


def probes(answers: Mapping[str, Answers]) -> Finding:
    """Which ability goes with the layers, and which comes back."""
    by_student: dict[str, dict[str, Answers]] = {}
    for name, items in answers.items():
        student, _, family = name.rpartition(": ")
        by_student.setdefault(student, {})[family] = items
    whole = by_student.pop("whole")
    n = sum(len(items.right) for items in whole.values())
    if not by_student:
        return Finding("Probes of the whole model alone", f"{n:,} items, {len(whole)} families.")
    both = {"cut", "healed"} <= set(by_student)
    first = "cut" if both else max(by_student, key=lambda name: (w.counts([name]) or [0])[-1])
    last = "healed" if both else first
    lost, left = (
        {f: statistics.accuracy_difference(by_student[student][f], whole[f]) for f in whole}
        for student in (first, last)
    )
    order = sorted(whole, key=lambda f: (lost[f].point, f))
    gone = [f for f in order if w.side(lost[f], 0) == w.BELOW]
    back = [f for f in gone if w.side(left[f], 0) != w.BELOW]
    told = ", ".join(
        f"{f} {w.interval(lost[f])}" + (f", then {w.interval(left[f])}" if both else "")
        for f in order
    )
    stages = f"{first}, then {last}" if both else first
    text = f"Accuracy less the whole model's, {stages} (n = {n:,} items in all): {told}."
    if not gone:
        return Finding("No ability is shown to suffer from the cut", text)
    worst = f"{w.up(gone[0])} suffers most"
    if not both:
        return Finding(f"{worst} with {first}", text)
    if len(back) == len(gone):
        return Finding(f"{worst}; after healing no loss is shown", text)
    if back:
        return Finding(f"{worst}; after healing no loss is shown in {w.listed(back)}", text)
    return Finding(f"{worst}; every loss is still there after healing", text, True)


def curves(curves: Mapping[str, Curve]) -> Finding:
    """How the losses fell, and whether they are still falling at the end."""
    told, falling = [], []
    for name, curve in ((n, curves[n]) for n in w.natural(curves)):
        loss, values = max(curve.losses.items(), key=lambda item: len(item[1]))
        part = max(1, len(values) // FIFTH)
        start, before, end = (
            math.fsum(values[a:b]) / part
            for a, b in ((0, part), (-2 * part, -part or None), (-part, None))
        )
        if len(values) < 2 * part:
            before = start
        falling += [name] if end < before else []
        of = "the whole model's predictions" if loss == "kl" else "the text"
        stopped = " (stopped: it diverged)" if curve.diverged else ""
        told.append(
            f"{w.name(name)}: loss against {of} from {w.number(start)} to {w.number(end)} nats per"
            f" token in {curve.tokens[-1]:,} tokens{stopped}"
        )
    text = f"Means of the first and last fifth of the steps. {w.up('; '.join(told))}."
    stopped = [name for name, curve in curves.items() if curve.diverged]
    if stopped:
        return Finding(f"Training diverged: {w.listed(map(w.name, stopped))}", text)
    if len(falling) == len(curves):
        return Finding("Every loss is still falling at the end: more tokens may help", text)
    if falling:
        return Finding(f"Still falling at the end: {w.listed(map(w.name, falling))}", text)
    return Finding("No loss is falling any more at the end", text)
