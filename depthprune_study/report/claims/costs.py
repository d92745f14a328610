"""What a cut costs and what healing does: C1, C2, C4, C5, C10, C14."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from depthprune_core.records import Recipe, Score
from depthprune_study.report import wording as w
from depthprune_study.report.evidence import Evidence
from depthprune_study.report.findings import healing
from depthprune_study.report.findings.limits import share_removed
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
    how: str = "at once"
    beside: str = ""  # the matched cost at another depth, where this one has none

    @property
    def figure(self) -> str:
        return f"{w.interval(self.repair)} at {self.fewer} fewer ({w.percent(self.removed)})"

    @property
    def detail(self) -> str:
        told = f"repair cost {w.paired(self.repair)}, {self.how}"
        matched = w.interval(self.matched) if self.matched else self.beside
        return f"{told}; matched cost {matched or 'not measured'}"


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
    """For each model its healed cut nearest to the source's share; in stages where asked."""
    found: dict[str, list[Cut]] = {}
    for cut in cuts(evidence):
        found.setdefault(cut.model, []).append(cut)
    nearest = []
    for of in found.values():
        best = min(abs(cut.removed - rule["removed"]) for cut in of)
        near = [cut for cut in of if abs(cut.removed - rule["removed"]) == best]
        in_stages = [cut for cut in near if cut.how.startswith("staged")]
        at_once = [cut for cut in near if cut.how == "at once"][:1]
        chosen = in_stages if staged and in_stages else at_once or near[:1]
        both = [f"{w.interval(c.matched)} at {c.fewer} fewer" for c in of if c.matched]
        nearest += [replace(cut, beside=both[0] if both else "") for cut in chosen]
    return nearest


def _far(cut: Cut, rule: Rule) -> bool:
    return abs(cut.removed - rule["removed"]) > rule["tolerance"] * rule["removed"]


@claim("C2", "08_limits")
def worsens_by(evidence: Evidence, rule: Rule) -> Iterator[Reading]:
    """Inside the source's range; a smaller loss is better, and no reproduction."""
    for cut in _nearest(evidence, rule):
        word = NOT_TESTED if _far(cut, rule) else within(cut.repair, rule["low"], rule["high"])
        better = word == FAILS and w.side(cut.repair, rule["low"]) == w.BELOW
        told = ": better than claimed, so no reproduction" if better else ""
        yield Reading(cut.model, word, cut.figure + told, cut.notebook, cut.detail)


@claim("C4", "08_limits")
def two_of_22(evidence: Evidence, rule: Rule) -> Iterator[Reading]:
    """At most the source's ratio, at its share of the parameters."""
    yield from _at_most_ratio(evidence, rule, _nearest(evidence, rule))


@claim("C5", "08_limits")
def three_of_22(evidence: Evidence, rule: Rule) -> Iterator[Reading]:
    """The same of the staged cut; where none is as deep, at once, with what staging changes."""
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


@claim("C14", "03_recovery")
def real_work(evidence: Evidence, rule: Rule) -> Iterator[Reading]:
    """Healing against the frozen whole model; trained on the text, against the whole model too."""
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
