"""Findings about what a cut saves, and whether the choice of layers survives healing."""

from __future__ import annotations

from collections.abc import Mapping

from depthprune_core.records import Score, Size, Timing
from depthprune_study.report import wording as w
from depthprune_study.report.wording import Finding
from depthprune_study.results import statistics


def sizes(sizes: Mapping[str, Size]) -> Finding:
    """The share of parameters and file bytes that dropping layers saves. By arithmetic."""
    whole, parts, title = sizes["0 fewer"], [], ""
    for k in w.counts(sizes)[1:]:
        size = sizes[f"{k} fewer"]
        saved = w.percent(statistics.share_removed(sizes, k))
        title = title or f"Dropping {w.plural(k, 'layer')} saves {saved} of the parameters"
        parts.append(
            f"dropping {k} of {whole.n_layers} layers saves {saved} of the parameters"
            f" ({whole.n_parameters:,} to {size.n_parameters:,}) and"
            f" {w.percent(1 - size.n_bytes_on_disk / whole.n_bytes_on_disk)} of the file"
        )
    return Finding(title, w.up("; ".join(parts)) + ". This is arithmetic.")


def speed(timings: Mapping[str, Timing]) -> Finding:
    """How much faster decoding is, compared with the limits from layer count and weight bytes."""
    timings = {name: t for name, t in timings.items() if t.by_layer_count > 1} or timings
    gains = {name: statistics.decode_gain(timing) for name, timing in timings.items()}
    shown = {w.ABOVE: "", w.OPEN: ", so no gain is shown", w.BELOW: ", which is slower"}
    suspect = {name for name in timings if statistics.is_suspect(gains[name], timings[name])}
    parts = []
    for name in w.natural(timings):
        timing, gain = timings[name], gains[name]
        doubt = " (suspect: more than fewer layers can give)" if name in suspect else ""
        parts.append(
            f"{name}: decoding is {w.interval(gain)} times as fast{shown[w.side(gain, 1)]}{doubt};"
            f" the layer count alone would give {timing.by_layer_count:.3f}, the weight bytes"
            f" {timing.by_weight_bytes:.3f} (n = {gain.n} rounds)"
        )
    faster, slower = (
        [gain.point for gain in gains.values() if w.side(gain, 1) == side]
        for side in (w.ABOVE, w.BELOW)
    )
    text = ". ".join(parts) + "."
    if faster:
        where = "" if len(faster) == len(gains) else f" in {len(faster)} of {len(gains)} cases"
        most = f": up to {max(faster):.2f} times" + (" (suspect)" if suspect else "")
        return Finding(f"Decoding is faster{where}{most}", text)
    if slower:
        return Finding(f"Decoding is slower in {len(slower)} of {len(gains)} cases", text, True)
    return Finding("No gain in decoding speed is shown", text, True)


def choice(before: Mapping[str, Score], after: Mapping[str, Score], *, tail: int) -> Finding:
    """Whether the ranking of sets survives healing: over all, and among the `tail` cheapest."""
    names = [name for name in before if name != "whole" and name in after]
    names.sort(key=lambda name: before[name].mean_nll_nats)
    rho, within = (
        statistics.rank_correlation(*([s[n].mean_nll_nats for n in of] for s in (before, after)))
        for of in (names, names[:tail])
    )
    regret = statistics.nll_rise(after[names[0]], after[w.best({n: after[n] for n in names})])
    text = (
        f"The rank correlation of the costs before and after healing is {w.interval(rho)} over all"
        f" {rho.n} sets and {w.interval(within)} among the {within.n} cheapest. After healing, the"
        f" set that was best before costs {w.interval(regret)} nats per token more than the best"
        f" set (n = {regret.n} articles)."
    )
    if w.side(within, 0) == w.ABOVE:
        return Finding("The ranking survives healing, among the cheap sets too", text)
    if w.side(rho, 0) == w.ABOVE:
        how = "reverses" if w.side(within, 0) == w.BELOW else "is unclear"
        return Finding(f"The ranking survives healing; among the cheap sets it {how}", text)
    if w.side(rho, 0) == w.BELOW:
        return Finding("Sets that are cheap before healing are costly after it", text)
    return Finding("It is open whether the ranking survives healing", text)


def winners(before: Mapping[str, Score], after: Mapping[str, Score]) -> tuple[str, str, int]:
    """The set that is best before healing, the set that is best after it, the number of sets."""
    sets = [name for name in before if name in after and name != "whole"]
    old, new = (w.best({name: scores[name] for name in sets}) for scores in (before, after))
    return old, new, len(sets)


def winner(
    before: Mapping[str, Score], after: Mapping[str, Score], healed: Mapping[str, Score]
) -> Finding:
    """Whether the set best after healing beats the one best before it, both healed in full."""
    old, new, n = winners(before, after)
    if old == new:
        title = f"Layers {old} are the best choice before and after healing"
        return Finding(title, f"Of {n} sets, {old} is best before and after healing.")
    first, second = statistics.average(healed, old), statistics.average(healed, new)
    if first is None or second is None:  # it diverged, or the notebook asked for fewer
        text = f"Best before healing: layers {old}; after it: {new}. Not both were healed in full."
        return Finding("The best set changes; not both were healed in full", text)
    gap = statistics.ppl_ratio(second, first)
    return w.outcome(
        w.side(gap, 1),
        f"Best before healing: layers {old}; after it: {new}. Healed in full, {new} has"
        f" {w.interval(gap)} times the perplexity of {old} (n = {gap.n} test articles).",
        below=f"The best set changes with healing: {new} beats {old}",
        above=f"The set that was best before healing stays better: {old}",
        open=f"Healed in full, {new} and {old} are not clearly different",
    )


def regret(after: Mapping[str, Score], rules: Mapping[str, str]) -> Finding:
    """What each rule's choice costs after healing, compared with the best set tried."""
    best = w.best(after)
    gaps = {rule: w.ratio(after, pair, best) for rule, pair in rules.items() if pair in after}
    if not gaps:
        return Finding("No rule's choice was healed", "No rule's choice was among the healed sets.")
    order = sorted(gaps, key=lambda rule: gaps[rule].point)
    parts = "; ".join(f"{w.words(rule)} ({rules[rule]}) {w.interval(gaps[rule])}" for rule in order)
    text = (
        f"After healing, perplexity over that of the best of {len(after) - 1} sets, layers"
        f" {best}: {parts} (n = {gaps[order[0]].n} articles)."
    )
    level = sum(w.side(gap, 1) != w.ABOVE for gap in gaps.values())
    if level == len(gaps):
        return Finding("After healing, no rule's choice is clearly worse than the best", text)
    if level:
        title = (
            f"After healing, {level} of {len(gaps)} rules' choices are about as good as the best"
        )
        return Finding(title, text)
    return Finding("After healing, every rule's choice is worse than the best", text)
