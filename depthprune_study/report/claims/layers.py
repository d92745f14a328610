"""Claims about seeds, layers, their choice, depth and width: C7, C8, C9, C11, C12, C13."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from depthprune_study.report import wording as w
from depthprune_study.report.evidence import Evidence
from depthprune_study.report.findings.choice import differ_in_sign, gaps_by_seed, winners
from depthprune_study.report.findings.repeats import spread as spread_of
from depthprune_study.report.verdicts import (
    FAILS,
    HOLDS,
    OPEN,
    Reading,
    at_least,
    at_most,
    both,
    claim,
)
from depthprune_study.results import statistics

Rule = dict[str, Any]


@claim("C7", "05_seed_stability")
def seeds_agree(evidence: Evidence, rule: Rule) -> Iterator[Reading]:
    """The spread of the healed ratios; each seed draws half of the articles."""
    second = str(evidence.parameters("05_seed_stability").get("other_model", "")) or "another model"
    for name, model in (("test", evidence.model("05_seed_stability")), ("other", second)):
        scores = evidence.get("05_seed_stability", name)
        runs = [w.ratio(scores, run) for run in scores if run.startswith("healed")]
        if len(runs) < 2:
            continue
        spread = spread_of([run.point for run in runs])
        word = HOLDS if spread <= rule["holds"] else FAILS if spread > rule["fails"] else OPEN
        if not math.isfinite(spread) or any(statistics.DIVERGED in run.note for run in runs):
            word = OPEN
        points = w.listed(w.number(run.point) for run in runs)
        detail = f"ratios {points} (n = {len(runs)} seeds, {runs[0].n} test articles)"
        yield Reading(model, word, f"spread {w.percent(spread, 2)}", "05_seed_stability", detail)


@claim("C8", "01_sensitivity")
def ends_are_critical(evidence: Evidence, rule: Rule) -> Iterator[Reading]:
    """In resampled articles: both ends among the costliest, the cheapest in the first 2/3."""
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
        detail = f"layer 0 ranks {first} and the last {last} of {n}, 1 = costliest"
        detail += f" (n = {len(profile.teacher.documents)} calibration articles)"
        thirds = [float(np.mean(of)) for of in np.array_split(profile.drop_one[1:-1], 3) if len(of)]
        if len(thirds) == 3:
            detail += (
                f"; mean costs of the thirds between the ends: {w.listed(map(w.number, thirds))}"
            )
        figure = f"true in {w.percent(share, 0)} of resampled article sets"
        yield Reading(evidence.model(notebook), word, figure, notebook, detail)


@claim("C9", "07_choice")
def winner_changes(evidence: Evidence, rule: Rule) -> Iterator[Reading]:
    """The best set before healing against its rival after it, both healed in full."""
    before, after, full = (evidence.get("07_choice", n) for n in ("before", "after", "healed"))
    if not full:
        return
    model, (old, new, n) = evidence.model("07_choice"), winners(before, after)
    first, second = statistics.average(full, old), statistics.average(full, new)
    if first is None or second is None:
        yield Reading(model, OPEN, f"{old}, then {new}; not healed in full", "07_choice")
        return
    lost = statistics.nll_rise(before[new], before[old])
    gap = statistics.nll_rise(second, first)
    by_seed = gaps_by_seed(full, old, new)
    word = FAILS if w.side(gap, 0) == w.ABOVE else OPEN
    word = HOLDS if w.side(gap, 0) == w.BELOW and lost.low > gap.high else word
    word = word if n >= rule["pairs"] and len(by_seed) >= rule["seeds"] else OPEN
    word = OPEN if differ_in_sign(by_seed) else word
    detail = f"{new} minus {old}, nats per token: {w.interval(lost)} before healing (validation), "
    detail += (
        f"{w.interval(gap)} healed in full (n = {gap.n} test articles; by seed"
        f" {w.listed(map(w.number, by_seed))}); {n} sets, {len(by_seed)} seeds"
    )
    figure = f"healed, {new} minus {old}: {w.interval(gap)} nats"
    yield Reading(model, word, figure, "07_choice", detail)


@claim("C11", "06_controls")
def beats_width(evidence: Evidence, rule: Rule) -> Iterator[Reading]:
    """Perplexity of fewer layers over narrower MLPs, at equal size, both healed."""
    scores = evidence.get("06_controls", "test")
    if "narrower, healed" in scores:
        gap = w.ratio(scores, "healed", "narrower, healed")
        detail = f"fewer layers over narrower MLPs, both healed (n = {gap.n} test articles)"
        word = at_most(gap, rule["threshold"])
        figure = f"healed: fewer layers ÷ narrower {w.interval(gap)}"
        yield Reading(evidence.model("06_controls"), word, figure, "06_controls", detail)


@claim("C12", "02_prune")
def which_end(evidence: Evidence, rule: Rule) -> Iterator[Reading]:
    """Most sensitive layers dropped, over least sensitive layers dropped; at each depth."""
    scores, what = evidence.get("02_prune", "test"), "perplexity, most ÷ least "
    for name in sorted(name for name in scores if name.startswith("least_sensitive-")):
        k = name.rpartition("-")[2]
        if f"most_sensitive-{k}" in scores:
            gap = w.ratio(scores, f"most_sensitive-{k}", name)
            detail = f"most over least sensitive, without healing (n = {gap.n} test articles)"
            figure, what = f"{what}{w.interval(gap)} at {k} fewer", ""
            word = at_least(gap, rule["threshold"])
            yield Reading(evidence.model("02_prune"), word, figure, "02_prune", detail)


@claim("C13", "06_controls")
def depth_is_redundant(evidence: Evidence, rule: Rule) -> Iterator[Reading]:
    """Both parts on one model: depth against width, and the middle against the outer layers."""
    scores, profile = evidence.get("06_controls", "test"), evidence.get("01_sensitivity", "profile")
    model = evidence.model("06_controls")
    if "narrower, cut" not in scores or not profile or evidence.model("01_sensitivity") != model:
        return
    gap = w.ratio(scores, "cut", "narrower, cut")
    rises, quarter = np.asarray(profile.by_document["drop_nll_nats"]), max(1, profile.n_layers // 4)
    inner = np.arange(quarter, profile.n_layers - quarter)
    outer = np.setdiff1d(np.arange(1, profile.n_layers - 1), inner)
    words, middle = [at_most(gap, rule["threshold"]), OPEN], "no outer layers but the two ends"
    if len(outer) and len(inner):
        more = rises[inner].mean(axis=0) - rises[outer].mean(axis=0)
        value = statistics.mean_per_token(more, profile.teacher.n_tokens)
        words[1] = at_most(value, 0.0)
        middle = f"middle minus outer {w.interval(value)} nats"
    detail = (
        f"before healing, fewer layers over narrower MLPs (n = {gap.n} test articles); the middle"
        f" half minus the outer layers, nats per token (n = {len(profile.teacher.documents)}"
        " articles). The layers were searched by loss, the neurons ranked by their own outputs"
    )
    figure = f"not healed: fewer layers ÷ narrower {w.interval(gap)}; {middle}"
    yield Reading(model, both(words), figure, "06_controls", detail)
