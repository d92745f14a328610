"""Claims about the cost of a cut and the effect of healing: C1, C2, C4, C5, C10, C14."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from depthprune_core.records import Recipe, Score, Size
from depthprune_study.report import wording as w
from depthprune_study.report.evidence import STAND_IN, Evidence, kind
from depthprune_study.report.verdicts import (
    BY_ARITHMETIC,
    FAILS,
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
THE_RECIPE = ("lr", "kl", "ce", "temperature", "warmup", "trained")  # other fields: the budget


@claim("C1", "02_prune")
def smaller(evidence: Evidence, rule: Rule) -> Iterator[Reading]:
    """Shares of GPT-2 124M's parameters, from its shape."""
    facts = evidence.get("02_prune", "published")
    if facts:
        whole, *fewer = (facts.values[f"gpt2, {n} layers"]["n_parameters"] for n in (12, 10, 9))
        shares = [100 * (1 - n / whole) for n in fewer]
        close = np.allclose(shares, rule["values"], rtol=0, atol=rule["tolerance"])
        figure = " / ".join(f"{share:.2f} %" for share in shares)
        yield Reading("gpt2", BY_ARITHMETIC if close else FAILS, figure, "02_prune")


@dataclass(frozen=True)
class Cut:
    """A healed cut: both costs, and its share of the parameters."""

    model: str
    notebook: str
    fewer: int
    removed: float
    repair: Interval
    matched: Interval | None
    tokens: int = 0  # healed on
    how: str = "at once"
    beside: str = ""  # the matched cost at another depth, if this depth has none

    @property
    def figure(self) -> str:
        return f"{w.interval(self.repair)} at {self.fewer} fewer ({w.percent(self.removed)})"

    @property
    def detail(self) -> str:
        note = f"repair cost {w.paired(self.repair)}, {self.how}"
        note += f", healed on {self.tokens:,} tokens" if self.tokens else ""
        matched = w.interval(self.matched) if self.matched else self.beside
        return f"{note}; matched cost {matched or 'not measured'}"


def cuts(evidence: Evidence) -> Iterator[Cut]:
    """Every healed cut with a known size: notebooks 08, 03 and 04."""
    scores, sizes = evidence.get("08_limits", "depth"), evidence.get("08_limits", "sizes")
    for k in w.counts(scores):
        healed, trained = (
            statistics.average(scores, f"{k} fewer, {how}") for how in ("healed", "ce")
        )
        yield _cut(evidence, "08_limits", k, sizes, scores, healed, trained)
    for notebook in ("03_recovery", "04_transfer"):
        scores, sizes = evidence.get(notebook, "test"), evidence.get(notebook, "sizes")
        for k in [k for k in w.counts(sizes) if k][:1]:  # the main cut; one layer more, in stages
            yield _cut(evidence, notebook, k, sizes, scores, scores["healed"], scores.get("ce"))
            for name in ("at once, healed", *w.staged(scores)):
                if name in scores:
                    how = name.removesuffix(", healed")
                    yield _cut(evidence, notebook, k + 1, sizes, scores, scores[name], None, how)


def _cut(
    evidence: Evidence,
    notebook: str,
    k: int,
    sizes: Mapping[str, Size],
    scores: Mapping[str, Score],
    healed: Score,
    trained: Score | None,
    how: str = "at once",
) -> Cut:
    control = scores.get(statistics.CONTROL)
    return Cut(
        evidence.model(notebook),
        notebook,
        k,
        statistics.share_removed(sizes, k),
        statistics.ppl_ratio(healed, scores["whole"]),
        statistics.ppl_ratio(trained, control) if trained and control else None,
        evidence.parameters(notebook).get("tokens", 0),
        how,
    )


def _nearest(evidence: Evidence, rule: Rule, *, staged: bool = False) -> list[Cut]:
    """For each model the healed cut nearest to the source's share; `staged` prefers stages."""
    by_model: dict[str, list[Cut]] = {}
    for cut in cuts(evidence):
        by_model.setdefault(cut.model, []).append(cut)
    nearest = []
    for of in by_model.values():
        distance = {id(cut): abs(cut.removed - rule["removed"]) for cut in of}
        near = [cut for cut in of if distance[id(cut)] == min(distance.values())]
        in_stages = [cut for cut in near if cut.how.startswith("staged")]
        at_once = [cut for cut in near if cut.how == "at once"][:1]
        matched = [f"{w.interval(c.matched)} at {c.fewer} fewer" for c in of if c.matched]
        for cut in in_stages if staged and in_stages else at_once:
            nearest.append(replace(cut, beside=matched[0] if matched else ""))
    return nearest


def _far(cut: Cut, rule: Rule) -> bool:
    return abs(cut.removed - rule["removed"]) > rule["tolerance"] * rule["removed"]


@claim("C2", "08_limits")
def worsens_by(evidence: Evidence, rule: Rule) -> Iterator[Reading]:
    """Inside the source's range; a smaller loss is better, but not a reproduction."""
    for cut in _nearest(evidence, rule):
        word = NOT_TESTED if _far(cut, rule) else within(cut.repair, rule["low"], rule["high"])
        better = word == FAILS and w.side(cut.repair, rule["low"]) == w.BELOW
        note = ": better than claimed, so not a reproduction" if better else ""
        yield Reading(cut.model, word, cut.figure + note, cut.notebook, cut.detail)


@claim("C4", "08_limits")
def two_of_22(evidence: Evidence, rule: Rule) -> Iterator[Reading]:
    """At most the source's ratio, at its share of the parameters."""
    for cut in _nearest(evidence, rule):
        yield _at_most_ratio(cut, rule)


@claim("C5", "08_limits")
def three_of_22(evidence: Evidence, rule: Rule) -> Iterator[Reading]:
    """As C4, for the staged cut; without one, the cut at once and the effect of stages."""
    scores, more = evidence.get("04_transfer", "test"), ""
    for name in w.staged(scores):
        gap = w.over(scores, name, "at once, healed")
        more += f", {name.removesuffix(', healed')} {gap}"
    if more:
        more = f"; staged over at once on {evidence.model('04_transfer')}: {more.lstrip(', ')}"
    for cut in _nearest(evidence, rule, staged=True):
        found = _at_most_ratio(cut, rule, more)
        yield replace(found, figure=f"{found.figure}, {cut.how}")


def _at_most_ratio(cut: Cut, rule: Rule, more: str = "") -> Reading:
    word = NOT_TESTED if _far(cut, rule) else at_most(cut.repair, rule["threshold"])
    return Reading(cut.model, word, cut.figure, cut.notebook, cut.detail + more)


@claim("C10", "04_transfer")
def carries_over(evidence: Evidence, rule: Rule) -> Iterator[Reading]:
    """The first family's recipe heals the second; budget and window length may differ.

    From a stand-in nothing carries over: two families of real weights decide.
    """
    scores = evidence.get("04_transfer", "test")
    if "healed" not in scores:
        return
    gain = w.ratio(scores, "healed", "cut")
    given, taken = evidence.get("03_recovery", "recipe"), evidence.get("04_transfer", "recipe")
    names = [f.name for f in fields(Recipe) if f.name != "seed"] if given and taken else []
    names = [name for name in names if getattr(given, name) != getattr(taken, name)]
    changed = [name for name in names if name in THE_RECIPE]
    capped = [name for name in names if name not in THE_RECIPE]
    detail = f"healed over cut, from {evidence.model('03_recovery')} (n = {gain.n} test articles)"
    detail += f"; the recipe differs in {', '.join(changed)}" if changed else ""
    detail += f"; the budget differs in {', '.join(capped)}" if capped else ""
    word = OPEN if changed else at_most(gain, rule["threshold"])
    if kind(evidence.model("03_recovery")) == STAND_IN:
        word = NOT_TESTED
        detail += "; the first model is a stand-in, from which nothing carries over"
    figure = f"healed ÷ cut {w.interval(gain)}"
    yield Reading(evidence.model("04_transfer"), word, figure, "04_transfer", detail)


@claim("C14", "03_recovery")
def real_work(evidence: Evidence, rule: Rule) -> Iterator[Reading]:
    """Healing lowers perplexity, and text training helps the cut more than the whole model."""
    for notebook in ("03_recovery", "04_transfer"):
        scores = evidence.get(notebook, "test")
        if not {"whole", "cut", "healed", "ce", statistics.CONTROL} <= set(scores):
            continue
        whole, cut, control = scores["whole"], scores["cut"], scores[statistics.CONTROL]
        gain = w.ratio(scores, "healed", "cut")
        more, first = (
            statistics.gain_difference(cut, scores[how], whole, control) for how in ("ce", "healed")
        )
        it = {w.ABOVE: "it holds", w.BELOW: "it fails", w.OPEN: "it is open"}[w.side(first, 0)]
        detail = (
            f"healed over cut (n = {gain.n} test articles); and what the cut gains more than the"
            " whole model, if both are trained on the text, per token. By the first version"
            f" of the rule (healing minus the whole model's gain: {w.interval(first)}) {it}"
        )
        word = both([at_most(gain, rule["threshold"]), at_least(more, 0.0)])
        figure = f"healed ÷ cut {w.interval(gain)}; text gain, cut minus whole:"
        figure += f" {w.interval(more)} nats"
        yield Reading(evidence.model(notebook), word, figure, notebook, detail)
