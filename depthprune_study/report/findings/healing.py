"""Findings about healing: how much comes back, at which of the two costs, and elsewhere."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from depthprune_core.records import Answers, Curve, Divergence, Score
from depthprune_study.report import wording as w
from depthprune_study.report.wording import Finding
from depthprune_study.results import statistics

CONTROL = "whole, same text"


def path(scores: Mapping[str, Score]) -> Finding:
    """Whole, cut, refitted, healed: the repair cost at each stage."""
    stages = [name for name in ("cut", "refitted", "healed") if name in scores]
    ratios = {name: w.ratio(scores, name) for name in stages}
    last = stages[-1]
    gain = w.side(w.ratio(scores, last, "cut"), 1)
    told = ", ".join(f"{name} {w.interval(ratios[name])}" for name in stages)
    text = f"Perplexity over the frozen whole model's: {told} (n = {ratios[last].n} test articles)."
    lost, left = (statistics.nll_rise(scores[n], scores["whole"]) for n in ("cut", last))
    if w.side(lost, 0) == w.ABOVE and gain == w.BELOW:
        text += f" {w.percent(1 - left.point / lost.point)} of the loss is won back."
    cut, end = w.short(ratios["cut"]), w.short(ratios[last])
    title = {
        w.BELOW: f"Healing brings the cut from {cut} to {end} times the perplexity",
        w.ABOVE: f"Healing makes it worse: {cut} before, {end} after",
        w.OPEN: f"Healing is not shown to help: {cut} before, {end} after",
    }[gain]
    return Finding(title, text + w.adaptation(ratios[last]), gain != w.BELOW)


def control(scores: Mapping[str, Score]) -> Finding:
    """The two costs side by side: repair, and matched."""
    repair, matched = w.ratio(scores, "healed"), w.ratio(scores, "ce", CONTROL)
    trained = w.ratio(scores, "ce")
    text = (
        f"Repair: the healed student stands at {w.interval(repair)} times the frozen whole model's"
        f" perplexity. Matched: the student trained on the text stands at {w.interval(matched)}"
        f" times that of the whole model trained on the same text (n = {matched.n} test articles)."
    )
    if w.adaptation(trained, repair):
        text += (
            " Against the frozen whole model the student trained on the text is at"
            f" {w.interval(trained)}, and the whole model trained on the same text at"
            f" {w.over(scores, CONTROL)}: {w.ADAPTATION}."
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
    repair = w.ratio(scores, "healed")
    students = {
        "healed": "the healed student stands",
        "cut": "the cut",
        "ce": "the student trained on the text",
        CONTROL: "the whole model trained on the same text",
    }
    told = ", ".join(f"{who} at {w.over(scores, n)}" for n, who in students.items() if n in scores)
    told = (
        f"On {text}, which nothing was trained on, {told} (times the frozen whole model's"
        f" perplexity; n = {repair.n} documents)."
    )
    if "ce" in scores and CONTROL in scores:
        told += f" Matched cost there: {w.over(scores, 'ce', CONTROL)}."
    return w.outcome(
        w.side(w.ratio(scores, "healed", "cut"), 1),
        told,
        below=f"Healing helps on other text too: {w.short(repair)} times",
        above=f"On other text healing does harm: {w.short(repair)} times",
        open=f"On other text healing is not shown to help: {w.short(repair)} times",
    )


def divergences(divergences: Mapping[str, Divergence]) -> Finding:
    """How far each student's predictions are from the whole model's, and which is closer."""
    told = []
    for name in w.natural(divergences):
        found = divergences[name]
        mean = w.interval(statistics.mean_per_token(found.kl_nats, found.n_tokens))
        told.append(f"{w.words(name)} {mean} (same first choice {w.percent(found.agreement)})")
    ours, theirs = divergences["healed"], divergences["ce"]
    gap = statistics.mean_per_token(np.subtract(ours.kl_nats, theirs.kl_nats), ours.n_tokens)
    return w.outcome(
        w.side(gap, 0),
        f"KL to the whole model, nats per token: {', '.join(told)}; n = {gap.n} articles."
        f" Healed less trained on the text: {w.interval(gap)}.",
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
    healed = {"cut", "healed"} <= set(by_student)
    stages = ["cut", "healed"] if healed else [w.natural(by_student)[-1]]  # the deepest
    losses = [
        {f: statistics.accuracy_difference(by_student[student][f], whole[f]) for f in whole}
        for student in stages
    ]
    lost, left = losses[0], losses[-1]
    order = sorted(whole, key=lambda f: (lost[f].point, f))
    gone = [f for f in order if w.side(lost[f], 0) == w.BELOW]
    back = [f for f in gone if w.side(left[f], 0) != w.BELOW]
    told = ", ".join(f"{f} {', then '.join(w.interval(loss[f]) for loss in losses)}" for f in order)
    n = sum(len(items.right) for items in whole.values())
    text = (
        f"Accuracy less the whole model's, {', then '.join(stages)} (n = {n:,} items in all):"
        f" {told}."
    )
    if not gone:
        return Finding("No ability is shown to suffer from the cut", text)
    worst = f"{w.up(gone[0])} suffers most"
    if not healed:
        return Finding(f"{worst} with {stages[0]}", text)
    if not back:
        return Finding(f"{worst}; every loss is still there after healing", text, True)
    where = "" if back == gone else f" in {w.listed(back)}"
    return Finding(f"{worst}; after healing no loss is shown{where}", text)


def curves(curves: Mapping[str, Curve]) -> Finding:
    """How the losses fell, and whether they are still falling at the end."""
    told, falling = [], []
    for name in w.natural(curves):
        curve = curves[name]
        loss, values = max(curve.losses.items(), key=lambda item: len(item[1]))
        fifth = max(1, len(values) // 5)
        start, end = (math.fsum(of) / fifth for of in (values[:fifth], values[-fifth:]))
        before = math.fsum(values[-2 * fifth : -fifth]) / fifth
        falling += [name] if end < (before if len(values) >= 2 * fifth else start) else []
        of = "the whole model's predictions" if loss == "kl" else "the text"
        stopped = " (stopped: it diverged)" if curve.diverged else ""
        told.append(
            f"{w.words(name)}: loss against {of} from {w.number(start)} to {w.number(end)} nats per"
            f" token in {curve.tokens[-1]:,} tokens{stopped}"
        )
    text = f"Means of the first and last fifth of the steps. {w.up('; '.join(told))}."
    diverged = [name for name, curve in curves.items() if curve.diverged]
    if diverged:
        return Finding(f"Training diverged: {w.listed(map(w.words, diverged))}", text)
    if len(falling) == len(curves):
        return Finding("Every loss is still falling at the end: more tokens may help", text)
    if falling:
        return Finding(f"Still falling at the end: {w.listed(map(w.words, falling))}", text)
    return Finding("No loss is falling any more at the end", text)
