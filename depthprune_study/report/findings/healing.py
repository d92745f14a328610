"""Findings about healing: the repair and matched costs, other text, probes, training curves."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from depthprune_core.records import Answers, Curve, Divergence, Score
from depthprune_study.report import wording as w
from depthprune_study.report.wording import Finding
from depthprune_study.results import statistics

LITERATURE = 29.9  # GPT-2 124M, windows of 1,024; its paper undoes the tokenisation: 29.41

LEAST_FALL = 0.001  # nats between the last two validations; less is called flat


def path(scores: Mapping[str, Score]) -> Finding:
    """The repair cost at each stage: cut, refitted, healed."""
    stages = [name for name in ("cut", "refitted", "healed") if name in scores]
    ratios = {name: w.ratio(scores, name) for name in stages}
    last = stages[-1]
    gain = w.side(w.ratio(scores, last, "cut"), 1)
    first, *others = (w.interval(ratios[name]) for name in stages)
    parts = [f"After the cut, perplexity is {first} times the unchanged whole model's"]
    parts += [f"{name}, {value}" for name, value in zip(stages[1:], others, strict=True)]
    cost = " (the repair cost)" if last == "healed" else ""
    whole = w.number(math.exp(scores["whole"].mean_nll_nats))
    text = f"{'; '.join(parts)}{cost}. The whole model's perplexity is {whole}"
    text += f" (n = {ratios[last].n} test articles)."
    if last == "cut":
        return Finding(f"Cut, not healed: perplexity ratio {w.short(ratios['cut'])}", text)
    lost, left = (statistics.nll_rise(scores[n], scores["whole"]) for n in ("cut", last))
    if w.side(lost, 0) == w.ABOVE and gain == w.BELOW:
        text += f" {w.percent(1 - left.point / lost.point)} of the loss in nats is recovered."
    after = w.ratio(scores, "healed", "refitted")
    shown = {w.BELOW: "a clear gain", w.ABOVE: "a loss", w.OPEN: "nothing clear"}
    text += f" Healed ÷ refitted is {w.interval(after)}: healing adds {shown[w.side(after, 1)]}."
    adds = w.side(after, 1) == w.BELOW
    lower = "Refit and healing lower" if adds else "The refit, not healing, lowers"
    cut, end = w.short(ratios["cut"]), w.short(ratios[last])
    title = {
        w.BELOW: f"{lower} the perplexity ratio from {cut} to {end}",
        w.ABOVE: f"Refit and healing make the cut worse: ratio {cut} before, {end} after",
        w.OPEN: f"Refit and healing are not shown to help: ratio {cut} before, {end} after",
    }[gain]
    return Finding(title, text + w.adaptation(ratios[last]), gain != w.BELOW)


def conventional(scores: Mapping[str, Score], model: str) -> Finding:
    """The whole model's perplexity on the test articles as one text, beside the literature's."""
    found = w.number(math.exp(scores["whole"].mean_nll_nats))
    text = (
        f"As one text of {scores['whole'].n_tokens[0]:,} tokens, in full windows without overlap,"
        f" the test articles give the whole {model} a perplexity of {found}."
    )
    if model == "gpt2":
        text += f" The usual figure for WikiText-2 raw, at 1,024 tokens a window, is {LITERATURE}."
    return Finding(f"{model}: perplexity {found} as papers measure it", text)


def control(scores: Mapping[str, Score]) -> Finding:
    """The matched cost; `path` tells the repair cost."""
    matched, trained = w.ratio(scores, "ce", statistics.CONTROL), w.ratio(scores, "ce")
    text = (
        f"Trained on the words of the text, the refitted student is at {w.interval(trained)}. The"
        f" text teaches the whole model too ({w.over(scores, statistics.CONTROL)}), so only their"
        f" ratio shows what the cut costs: {w.interval(matched)} (the matched cost; n ="
        f" {matched.n} test articles).{w.adaptation(trained)}"
    )
    value, given = w.short(matched), "Trained on the same text, the student is"
    return w.outcome(
        matched,
        1,
        text,
        above=f"{given} worse than the whole: ratio {value}",
        below=f"{given} better than the whole: ratio {value}",
        open="Trained on the same text, student and whole model are not clearly different",
    )


def elsewhere(scores: Mapping[str, Score], text: str) -> Finding:
    """The same students on a text that was not used for training or for any choice."""
    repair = w.ratio(scores, "healed")
    students = {
        "healed": "the healed student is",
        "cut": "the cut",
        "ce": "the student trained on the text",
        statistics.CONTROL: "the whole model trained on the same text",
    }
    parts = ", ".join(f"{who} at {w.over(scores, name)}" for name, who in students.items())
    parts = (
        f"On {text}, which no model was trained on here, {parts} (times the frozen whole model's"
        f" perplexity; n = {repair.n} documents). The matched cost on this text is"
        f" {w.over(scores, 'ce', statistics.CONTROL)}."
    )
    return w.outcome(
        w.ratio(scores, "healed", "cut"),
        1,
        parts,
        below=f"Healing helps on other text too: ratio {w.short(repair)}",
        above=f"Healing does harm on other text: ratio {w.short(repair)}",
        open=f"Healing is not shown to help on other text: ratio {w.short(repair)}",
    )


def divergences(divergences: Mapping[str, Divergence]) -> Finding:
    """Whether healing brings the predictions closer to the whole model's than the refit did."""
    means, parts = {}, []
    for name in w.natural(divergences):
        found = divergences[name]
        means[name] = statistics.mean_per_token(found.kl_nats, found.n_tokens)
        first = w.percent(found.agreement)
        parts.append(f"{w.words(name)} {w.interval(means[name])} (same first choice {first})")
    healed, gaps = divergences["healed"], {}
    for name in ("refitted", "ce"):
        less = np.subtract(healed.kl_nats, divergences[name].kl_nats)
        gaps[name] = statistics.mean_per_token(less, healed.n_tokens)
    text = (
        f"KL to the whole model, nats per token: {', '.join(parts)}; n = {gaps['ce'].n} articles."
        f" Healed minus refitted: {w.interval(gaps['refitted'])}; healed minus trained on the text:"
        f" {w.interval(gaps['ce'])}."
    )
    if w.side(gaps["refitted"], 0) == w.ABOVE:
        text += " So a fall in perplexity is not a return to the whole model's predictions."
    change = " to ".join(w.number(means[name].point) for name in ("refitted", "healed"))
    return w.outcome(
        gaps["refitted"],
        0,
        text,
        below=f"Healing brings predictions closer to the whole model's: KL {change}",
        above=f"Healing moves predictions away from the whole model's: KL {change}",
        open="Healing is not shown to change the distance to the whole model",
    )


def probes(answers: Mapping[str, Answers]) -> Finding:
    """Which abilities the cut loses, and which come back."""
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
    chance = [f for f in order if _by_chance(whole[f])]
    gone = [f for f in order if f not in chance and w.side(lost[f], 0) == w.BELOW]
    back = [f for f in gone if w.side(left[f], 0) != w.BELOW]
    first, last = (by_student[student] for student in (stages[0], stages[-1]))
    regained = {f: statistics.accuracy_difference(last[f], first[f]) for f in gone if healed}
    part = [f for f in regained if w.side(regained[f], 0) == w.ABOVE]
    changed = [f for f in order if any(w.side(loss[f], 0) != w.OPEN for loss in losses)]
    parts = "; ".join(
        f"{f} {', then '.join(w.interval(loss[f]) for loss in losses)}" for f in changed
    )
    n = sum(len(items.right) for items in whole.values())
    reach = max((loss[f].high - loss[f].low) / 2 for loss in losses for f in whole)
    text = (
        f"Accuracy minus the whole model's, {', then '.join(stages)} (n = {n:,} items in total):"
        f" {parts or 'no clear change in any task'}. The widest interval is"
        f" ± {w.number(reach)}: these items cannot show a smaller change."
    )
    if chance:
        text += (
            f" In {w.listed(chance)} the whole model itself is not clearly better than random"
            " answers, so no loss can show there."
        )
    if not gone:
        title = "No loss of ability is shown"
        few = f"; in {len(chance)} of {len(whole)} tasks none could show"
        return Finding(title + (few if chance else ""), text)
    if regained:
        gains = (f"{f} {w.interval(gain)}" for f, gain in regained.items())
        text += f" Healed minus cut, where a loss is shown: {', '.join(gains)}."
    worst = f"{w.up(gone[0])} loses most"
    if not healed:
        return Finding(f"{worst} with {stages[0]}", text)
    if worse := [f for f in regained if w.side(regained[f], 0) == w.BELOW]:
        most = min(worse, key=lambda f: regained[f].point)
        before, after = (-100 * loss[most].point for loss in (lost, left))
        drop = f"from {before:.0f} to {after:.0f} points of accuracy lost"
        return Finding(f"Healing makes {most} worse: {drop}", text, True)
    if not back and not part:
        return Finding(f"{worst}; healing brings nothing clear back", text, True)
    if not back:
        return Finding(f"{worst}; healing brings back part of {w.listed(part)}", text)
    where = "" if back == gone else f" in {w.listed(back)}"
    return Finding(f"{worst}; after healing no loss is shown{where}", text)


def _by_chance(whole: Answers) -> bool:
    """Whether random answers could do as well; tasks without a known chance are not judged."""
    known = statistics.CHANCE.get(whole.task)
    return known is not None and w.side(statistics.proportion(whole), known) != w.ABOVE


def curves(curves: Mapping[str, Curve]) -> Finding:
    """Whether validation perplexity still fell at the end of training."""
    parts, falling = [], []
    for name in w.natural(curves):
        curve = curves[name]
        nll, tokens = curve.validation_nll_nats, curve.validation_tokens
        stopped = " (stopped: it diverged)" if curve.diverged else ""
        if len(nll) < 2:
            parts.append(f"{w.words(name)} has fewer than two points{stopped}")
            continue
        since, last = w.number(math.exp(nll[-1] - nll[0])), w.number(math.exp(nll[-1] - nll[-2]))
        falling += [name] if nll[-2] - nll[-1] > LEAST_FALL else []
        parts.append(
            f"{w.words(name)} {since} times its first value after {tokens[-1]:,} tokens, {last}"
            f" times over the last {tokens[-1] - tokens[-2]:,}{stopped}"
        )
    text = f"Validation perplexity: {'; '.join(parts)}."
    diverged = [name for name, curve in curves.items() if curve.diverged]
    if diverged:
        return Finding(f"Training diverged: {w.listed(map(w.words, diverged))}", text)
    if len(falling) == len(curves):
        return Finding("Every curve still falls at its end: more tokens may help", text)
    if falling:
        return Finding(f"Still falling at the end: {w.listed(map(w.words, falling))}", text)
    return Finding("No curve still falls at its end", text)
