"""How each claim of the source is read off the records: one function a claim."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from depthprune_core.records import Recipe, Score, Timing
from depthprune_study.report.findings import healing, repeats
from depthprune_study.report import wording as w
from depthprune_study.report.evidence import SHAPES, Evidence
from depthprune_study.report.findings.limits import share_removed
from depthprune_study.report.verdicts import (
    BY_ARITHMETIC,
    FAILS,
    HOLDS,
    NOT_TESTED,
    OPEN,
    Reading,
    at_least,
    at_most,
    both,
    claim,
    within,
)
from depthprune_study.results import statistics
from depthprune_study.results.statistics import Interval

Rule = dict[str, Any]


@claim("C1", "02_prune")
def smaller(evidence: Evidence, rule: Rule) -> Iterator[Reading]:
    """Shares of GPT-2 124M's parameters, from its shape."""
    sizes = w.plain(evidence.get("02_prune", "published"))
    if sizes:
        whole, *smaller = (sizes[f"gpt2, {n} layers"]["n_parameters"] for n in (12, 10, 9))
        shares = [1 - n / whole for n in smaller]
        figure = " / ".join(f"{100 * share:.2f} %" for share in shares)
        close = all(
            abs(100 * a - b) <= rule["tolerance"]
            for a, b in zip(shares, rule["values"], strict=True)
        )
        yield Reading("gpt2-shape", BY_ARITHMETIC if close else FAILS, figure, "02_prune")


# ---------------------------------------------------------------- how much perplexity a cut costs


@dataclass(frozen=True)
class Cut:
    """A healed cut: both costs, and its share of the parameters."""

    model: str
    notebook: str
    fewer: int
    removed: float
    repair: Interval
    matched: Interval | None
    how: str = "at once"

    @property
    def figure(self) -> str:
        return f"{w.interval(self.repair)} at {self.fewer} fewer ({w.percent(self.removed)})"

    @property
    def detail(self) -> str:
        told = f"repair cost {w.paired(self.repair)}, {self.how}"
        return told + (f"; matched cost {w.interval(self.matched)}" if self.matched else "")


def cuts(evidence: Evidence) -> Iterator[Cut]:
    """Every healed cut of the study that has a size: notebooks 08, 03 and 04."""
    scores, sizes = evidence.get("08_limits", "depth"), evidence.get("08_limits", "sizes")
    for k in w.counts(scores):
        healed = w.average(scores, f"{k} fewer, healed")
        if healed:
            trained = w.average(scores, f"{k} fewer, ce")
            yield _cut(evidence, "08_limits", k, sizes, scores, healed, trained)
    for notebook in ("03_recovery", "04_transfer"):
        scores, sizes = evidence.get(notebook, "test"), evidence.get(notebook, "sizes")
        k = next((k for k in w.counts(sizes) if k), None)
        if k and "healed" in scores:
            yield _cut(evidence, notebook, k, sizes, scores, scores["healed"], scores.get("ce"))
        for how in ("at once", "staged, pair first", "staged, single first"):
            if f"{how}, healed" in scores and k and f"{k + 1} fewer" in sizes:
                score = scores[f"{how}, healed"]
                yield _cut(evidence, notebook, k + 1, sizes, scores, score, None, how)


def _cut(
    evidence: Evidence,
    notebook: str,
    k: int,
    sizes: Mapping,
    scores: Mapping[str, Score],
    healed: Score,
    trained: Score | None,
    how: str = "at once",
) -> Cut:
    repair, control = statistics.ppl_ratio(healed, scores["whole"]), scores.get(healing.CONTROL)
    matched = statistics.ppl_ratio(trained, control) if trained and control else None
    share = share_removed(sizes, k)
    return Cut(evidence.model(notebook), notebook, k, share, repair, matched, how)


def _nearest(evidence: Evidence, rule: Rule, *, staged: bool = False) -> list[Cut]:
    """For each model its healed cut that is nearest to the source's share; in stages where asked."""
    found: dict[str, list[Cut]] = {}
    for cut in cuts(evidence):
        found.setdefault(cut.model, []).append(cut)
    nearest = []
    for of in found.values():
        best = min(abs(cut.removed - rule["removed"]) for cut in of)
        near = [cut for cut in of if abs(cut.removed - rule["removed"]) == best]
        in_stages = [cut for cut in near if cut.how.startswith("staged")]
        at_once = [cut for cut in near if cut.how == "at once"][:1]
        nearest += in_stages if staged and in_stages else at_once or near[:1]
    return nearest


def _far(cut: Cut, rule: Rule) -> bool:
    return abs(cut.removed - rule["removed"]) > rule["tolerance"] * rule["removed"]


@claim("C2", "08_limits")
def worsens_by(evidence: Evidence, rule: Rule) -> Iterator[Reading]:
    """Inside the source's range; a smaller loss is better, and no reproduction."""
    for cut in _nearest(evidence, rule):
        word = NOT_TESTED if _far(cut, rule) else within(cut.repair, rule["low"], rule["high"])
        better = word == FAILS and w.side(cut.repair, rule["low"]) == w.BELOW
        told = "; it loses less than the source says: better, so no reproduction" if better else ""
        yield Reading(cut.model, word, cut.figure, cut.notebook, cut.detail + told)


@claim("C4", "08_limits")
def two_of_22(evidence: Evidence, rule: Rule) -> Iterator[Reading]:
    """At most the source's ratio, at its share of the parameters."""
    yield from _at_most_ratio(evidence, rule, _nearest(evidence, rule))


@claim("C5", "08_limits")
def three_of_22(evidence: Evidence, rule: Rule) -> Iterator[Reading]:
    """The same of the staged cut; where none is as deep, of one at once, with what staging changes."""
    yield from _at_most_ratio(
        evidence, rule, _nearest(evidence, rule, staged=True), _staging(evidence)
    )


def _at_most_ratio(
    evidence: Evidence, rule: Rule, cuts: list[Cut], more: str = ""
) -> Iterator[Reading]:
    for cut in cuts:
        word = NOT_TESTED if _far(cut, rule) else at_most(cut.repair, rule["threshold"])
        yield Reading(cut.model, word, cut.figure, cut.notebook, cut.detail + more)


def _staging(evidence: Evidence) -> str:
    scores = evidence.get("04_transfer", "test")
    gaps = [
        f"{name.removesuffix(', healed')} {w.interval(w.ratio(scores, name, 'at once, healed'))}"
        for name in scores
        if name.startswith("staged") and name.endswith("healed")
    ]
    model = evidence.model("04_transfer")
    return f"; staged over at once on {model}: {', '.join(gaps)}" if gaps else ""


# ---------------------------------------------------------------- speed


def _timings(evidence: Evidence, shape: str) -> Iterator[tuple[str, str, dict[int, Timing]]]:
    """Model, notebook, {layers fewer: Timing}: of the source's shape, then of what was cut here."""
    whole = {"gpt2-shape": 12, "tinyllama-1.1b-shape": 22}[shape]
    of_shape = {
        whole - int(name.split(", ")[1].split()[0]): timing
        for name, timing in evidence.get("02_prune", "shape_timing").items()
        if name.startswith(f"{shape}, ")
    }
    if of_shape:
        yield shape, "02_prune", of_shape
    for notebook in ("04_transfer", "02_prune"):
        timed = {
            w.counts([n])[0]: t
            for n, t in evidence.get(notebook, "timing").items()
            if w.counts([n])
        }
        if timed:
            yield evidence.model(notebook), notebook, timed


@claim("C3", "02_prune")
def faster(evidence: Evidence, rule: Rule) -> Iterator[Reading]:
    """Two layers fewer, decoding; models whose layer count allows less cannot test it."""
    for model, notebook, timed in _timings(evidence, "gpt2-shape"):
        if 2 not in timed:
            continue
        gain, allowed = statistics.decode_gain(timed[2]), timed[2].by_layer_count
        word = within(gain, rule["low"], rule["high"]) if allowed >= rule["low"] else NOT_TESTED
        detail = f"n = {gain.n} rounds; layer count allows {allowed:.2f}"
        detail += f", weight bytes {timed[2].by_weight_bytes:.2f}"
        detail += _shape_note(model)
        yield Reading(model, word, f"{w.interval(gain)} at 2 fewer", notebook, detail)


@claim("C6", "02_prune")
def clean_then_mixed(evidence: Evidence, rule: Rule) -> Iterator[Reading]:
    """Two fewer clearly faster; three not clear of two, by intervals that would have shown it."""
    for model, notebook, timed in _timings(evidence, "tinyllama-1.1b-shape"):
        if not {2, 3} <= set(timed):
            continue
        two, three = statistics.decode_gain(timed[2]), statistics.decode_gain(timed[3])
        step = two.point * (timed[3].by_layer_count / timed[2].by_layer_count - 1)
        fine = (two.high - two.low + three.high - three.low) / 2 < step
        clean, clearer = two.low > rule["clean"], three.low > two.high
        word = HOLDS if clean and fine and not clearer else OPEN
        word = FAILS if two.high < rule["clean"] or (clean and clearer) else word
        detail = f"n = {two.n} rounds" + (
            "; three fewer are clearly faster than two" if clearer else ""
        )
        detail += "" if fine else "; the intervals are too wide to show the step"
        figure = f"{w.interval(two)} / {w.interval(three)}"
        yield Reading(model, word, figure, notebook, detail + _shape_note(model))


def _shape_note(model: str) -> str:
    return (
        f"; random weights of {SHAPES[model]}'s shape, which decide speed"
        if model in SHAPES
        else ""
    )


# ---------------------------------------------------------------- luck, layers, choice


@claim("C7", "05_seed_stability")
def seeds_agree(evidence: Evidence, rule: Rule) -> Iterator[Reading]:
    """The spread of the healed ratios; each seed draws its own articles."""
    second = str(evidence.parameters("05_seed_stability").get("other_model", "")) or "another model"
    for name, model in (("test", evidence.model("05_seed_stability")), ("other", second)):
        scores = evidence.get("05_seed_stability", name)
        runs = [w.ratio(scores, run) for run in scores if run.startswith("healed")]
        if len(runs) < 2:
            continue
        spread = repeats.spread([run.point for run in runs])
        word = HOLDS if spread <= rule["holds"] else FAILS if spread > rule["fails"] else OPEN
        if not math.isfinite(spread) or any(statistics.DIVERGED in run.note for run in runs):
            word = OPEN
        points = w.listed(w.number(run.point) for run in runs)
        detail = f"ratios {points} (n = {len(runs)} seeds, {runs[0].n} test articles)"
        yield Reading(
            model, word, f"spread {spread:.2%}".replace("%", " %"), "05_seed_stability", detail
        )


@claim("C8", "01_sensitivity")
def ends_are_critical(evidence: Evidence, rule: Rule) -> Iterator[Reading]:
    """In resampled calibration sets: both ends among the dearest, the cheapest in the first two thirds."""
    for notebook in ("01_sensitivity", "04_transfer"):
        profile = evidence.get(notebook, "profile")
        if not profile:
            continue
        ranks, n = statistics.rank_draws(profile), profile.n_layers
        ends = (ranks[:, [0, -1]] >= n - math.ceil(rule["critical"] * n)).all(axis=1)
        cheapest = np.argmin(ranks, axis=1)
        share = float((ends & (cheapest > 0) & (cheapest < 2 * n / 3)).mean())
        word = HOLDS if share >= rule["holds"] else FAILS if share <= rule["fails"] else OPEN
        first, last = (n - int(np.median(ranks[:, layer])) for layer in (0, -1))
        detail = f"layer 0 ranks {first} and the last {last} of {n}, 1 = dearest"
        detail += f" (n = {len(profile.teacher.documents)} calibration articles)"
        figure = f"true in {share:.0%} of the resampled sets".replace("%", " %")
        yield Reading(evidence.model(notebook), word, figure, notebook, detail)


@claim("C9", "07_choice")
def winner_changes(evidence: Evidence, rule: Rule) -> Iterator[Reading]:
    """The set best after healing against the one best before it, healed in full on test articles."""
    before, after, full = (evidence.get("07_choice", n) for n in ("before", "after", "healed"))
    sets = {name: before[name] for name in before if name in after and name != "whole"}
    if not sets:
        return
    model, n = evidence.model("07_choice"), len(sets)
    old, new = w.best(sets), w.best({name: after[name] for name in sets})
    if old == new:
        word = FAILS if n >= rule["pairs"] else OPEN
        yield Reading(model, word, f"{old} is best before and after", "07_choice", f"of {n} sets")
        return
    first, second = w.average(full, old), w.average(full, new)
    if first is None or second is None:
        yield Reading(model, OPEN, f"{old}, then {new}; not healed in full", "07_choice")
        return
    lost = statistics.nll_rise(before[new], before[old])
    gap = statistics.nll_rise(second, first)
    n_seeds = sum(name.startswith(f"{new}, seed") for name in full)
    word = FAILS if w.side(gap, 0) == w.ABOVE else OPEN
    word = HOLDS if w.side(gap, 0) == w.BELOW and lost.low > gap.high else word
    word = word if n >= rule["pairs"] and n_seeds >= rule["seeds"] else OPEN
    detail = f"{new} less {old} in nats per token: {w.interval(lost)} before healing (validation), "
    detail += (
        f"{w.interval(gap)} healed in full (n = {gap.n} test articles); {n} sets, {n_seeds} seeds"
    )
    yield Reading(model, word, f"{old} before, {new} after; {w.interval(gap)}", "07_choice", detail)


@claim("C10", "04_transfer")
def carries_over(evidence: Evidence, rule: Rule) -> Iterator[Reading]:
    """The first family's recipe heals the second; what a model's context caps may differ."""
    scores = evidence.get("04_transfer", "test")
    if "healed" not in scores:
        return
    gain, word, detail = w.ratio(scores, "healed", "cut"), "", ""
    given, taken = evidence.get("03_recovery", "recipe"), evidence.get("04_transfer", "recipe")
    if given and taken:
        names = [f.name for f in fields(Recipe) if getattr(given, f.name) != getattr(taken, f.name)]
        changed = [
            name for name in names if name in ("lr", "kl", "ce", "temperature", "warmup", "trained")
        ]
        word = OPEN if changed else ""
        detail = f"; not the same recipe: {', '.join(changed)}" if changed else detail
        capped = [name for name in names if name not in changed and name != "seed"]
        detail += f"; of this study's budget: {', '.join(capped)}" if capped else ""
    told = (
        f"healed over cut, from {evidence.model('03_recovery')} (n = {gain.n} test"
        f" articles){detail}"
    )
    word = word or at_most(gain, rule["threshold"])
    yield Reading(evidence.model("04_transfer"), word, w.interval(gain), "04_transfer", told)


@claim("C11", "06_controls")
def beats_width(evidence: Evidence, rule: Rule) -> Iterator[Reading]:
    """Fewer layers over narrower MLPs, as many parameters, both healed."""
    scores = evidence.get("06_controls", "test")
    if "narrower, healed" in scores:
        gap = w.ratio(scores, "healed", "narrower, healed")
        detail = f"fewer layers over narrower MLPs, both healed (n = {gap.n} test articles)"
        word = at_most(gap, rule["threshold"])
        yield Reading(evidence.model("06_controls"), word, w.interval(gap), "06_controls", detail)


@claim("C12", "02_prune")
def which_end(evidence: Evidence, rule: Rule) -> Iterator[Reading]:
    """The most sensitive layers dropped, over the least sensitive ones; at each number of layers."""
    scores = evidence.get("02_prune", "test")
    for name in sorted(name for name in scores if name.startswith("least_sensitive-")):
        k = name.rpartition("-")[2]
        if f"most_sensitive-{k}" in scores:
            gap = w.ratio(scores, f"most_sensitive-{k}", name)
            detail = f"most over least sensitive, nothing healed (n = {gap.n} test articles)"
            figure, word = f"{w.interval(gap)} at {k} fewer", at_least(gap, rule["threshold"])
            yield Reading(evidence.model("02_prune"), word, figure, "02_prune", detail)


@claim("C13", "06_controls")
def depth_is_redundant(evidence: Evidence, rule: Rule) -> Iterator[Reading]:
    """Both halves, on one model: depth against width, and the middle against the rest."""
    scores, profile = evidence.get("06_controls", "test"), evidence.get("01_sensitivity", "profile")
    model = evidence.model("06_controls")
    if "narrower, cut" not in scores or not profile or evidence.model("01_sensitivity") != model:
        return
    gap = w.ratio(scores, "cut", "narrower, cut")
    rises, quarter = np.asarray(profile.by_document["drop_nll_nats"]), max(1, profile.n_layers // 4)
    inner = np.arange(quarter, profile.n_layers - quarter)
    outer = np.setdiff1d(np.arange(1, profile.n_layers - 1), inner)
    words, middle = [at_most(gap, rule["threshold"])], "no outer layers but the ends"
    if len(outer) and len(inner):
        more = rises[inner].mean(axis=0) - rises[outer].mean(axis=0)
        value = statistics.mean_per_token(more, profile.teacher.n_tokens)
        words.append(at_most(value, 0.0))
        middle = (
            f"middle less outer layers {w.interval(value)} nats per token (n = {value.n} articles)"
        )
    detail = (
        f"before healing, fewer layers over narrower MLPs (n = {gap.n} test articles); {middle}"
    )
    yield Reading(model, both(words), w.interval(gap), "06_controls", detail)


@claim("C14", "03_recovery")
def real_work(evidence: Evidence, rule: Rule) -> Iterator[Reading]:
    """Both costs: healing against the frozen whole model, and trained on the text against its like."""
    for notebook in ("03_recovery", "04_transfer"):
        scores = evidence.get(notebook, "test")
        if not {"whole", "cut", "healed", "ce", healing.CONTROL} <= set(scores):
            continue
        whole, cut, control = scores["whole"], scores["cut"], scores[healing.CONTROL]
        gain = w.ratio(scores, "healed", "cut")
        more = statistics.gain_difference(cut, scores["ce"], whole, control)
        first = statistics.gain_difference(cut, scores["healed"], whole, control)
        words = {w.ABOVE: "it holds", w.BELOW: "it fails", w.OPEN: "it is open"}
        detail = (
            f"healed over cut (n = {gain.n} test articles); trained on the text, the cut gains "
        )
        detail += (
            f"{w.interval(more)} nats per token more than the whole model. By the first reading "
        )
        detail += f"(healing against what the text gives the whole model: {w.interval(first)}) "
        detail += words[w.side(first, 0)]
        word = both([at_most(gain, rule["threshold"]), at_least(more, 0.0)])
        yield Reading(evidence.model(notebook), word, w.interval(gain), notebook, detail)
