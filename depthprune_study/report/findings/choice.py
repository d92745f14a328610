"""Findings about what a cut saves, and whether the choice of layers survives healing."""

from __future__ import annotations

from collections.abc import Mapping

from depthprune_core.records import Score, Size, Timing
from depthprune_study.report import wording as w
from depthprune_study.report.wording import Finding
from depthprune_study.results import statistics

THIRD = 3


def sizes(sizes: Mapping[str, Size]) -> Finding:
    """What dropping layers saves of the parameters and the file. By arithmetic."""
    whole = sizes.get("0 fewer") or max(sizes.values(), key=lambda size: size.n_layers)
    smaller = sorted(
        (size for size in sizes.values() if size.n_layers < whole.n_layers),
        key=lambda s: -s.n_layers,
    )
    if not smaller:
        return Finding(
            "No smaller model was measured",
            f"The whole model has {whole.n_parameters:,} parameters.",
        )
    told = [
        f"{whole.n_layers - size.n_layers} of {whole.n_layers} layers fewer are"
        f" {w.percent(1 - size.n_parameters / whole.n_parameters)} of the parameters"
        f" ({whole.n_parameters:,} to {size.n_parameters:,}) and"
        f" {w.percent(1 - size.n_bytes_on_disk / whole.n_bytes_on_disk)} of the file"
        for size in smaller
    ]
    one = smaller[0]
    title = (
        f"{w.plural(whole.n_layers - one.n_layers, 'layer')} fewer saves "
        f"{w.percent(1 - one.n_parameters / whole.n_parameters)} of the parameters"
    )
    return Finding(title, "; ".join(told) + ". This is arithmetic.")


def speed(timings: Mapping[str, Timing]) -> Finding:
    """How much faster decoding is, beside what layer count and weight bytes allow."""
    timings = {name: t for name, t in timings.items() if t.by_layer_count > 1} or timings
    gains = {name: statistics.decode_gain(timing) for name, timing in timings.items()}
    told = []
    for name in w.natural(timings):
        timing, gain = timings[name], gains[name]
        doubt = " (suspect: more than layers allow)" if gain.low > timing.by_layer_count else ""
        shown = {w.ABOVE: "", w.OPEN: ", so no gain is shown", w.BELOW: ", which is slower"}[
            w.side(gain, 1)
        ]
        told.append(
            f"{name}: decoding is {w.interval(gain)} times as fast{shown}{doubt}; layer count"
            f" allows {timing.by_layer_count:.3f}, weight bytes {timing.by_weight_bytes:.3f} (n ="
            f" {gain.n} rounds)"
        )
    faster = [name for name, gain in gains.items() if w.side(gain, 1) == w.ABOVE]
    slower = [name for name, gain in gains.items() if w.side(gain, 1) == w.BELOW]
    text = ". ".join(told) + "."
    if faster:
        most = max(gains[name].point for name in faster)
        some = "" if len(faster) == len(gains) else f" in {len(faster)} of {len(gains)} cases"
        return Finding(f"Decoding is faster{some}: up to {most:.2f} times", text)
    if slower:
        return Finding(f"Decoding is slower in {len(slower)} of {len(gains)} cases", text, True)
    return Finding("No gain in decoding speed is shown", text, True)


def choice(
    before: Mapping[str, Score], after: Mapping[str, Score], *, tail: int | None = None
) -> Finding:
    """Whether the ranking of sets survives healing: over all of them, and in the cheap tail."""
    names = sorted(
        (n for n in before if n != "whole" and n in after), key=lambda n: before[n].mean_nll_nats
    )
    cheap = names[: tail or max(3, len(names) // THIRD)]
    rho, within = (
        statistics.rank_correlation(
            [before[n].mean_nll_nats for n in of], [after[n].mean_nll_nats for n in of]
        )
        for of in (names, cheap)
    )
    regret = statistics.nll_rise(after[names[0]], after[w.best({n: after[n] for n in names})])
    text = (
        f"The rank correlation before against after healing is {w.interval(rho)} over all {rho.n}"
        f" sets and {w.interval(within)} among the {within.n} cheapest. Keeping the set that was"
        f" best before costs {w.interval(regret)} nats per token beside the best one after (n ="
        f" {regret.n} articles)."
    )
    if w.side(within, 0) == w.ABOVE:
        return Finding("The ranking before healing holds after it, among the cheap sets too", text)
    if w.side(rho, 0) == w.ABOVE:
        how = "turns round" if w.side(within, 0) == w.BELOW else "tells nothing clear"
        return Finding(f"The ranking survives healing; among the cheap sets it {how}", text)
    if w.side(rho, 0) == w.BELOW:
        return Finding("What is cheap before healing is dear after it", text)
    return Finding("Whether the ranking survives healing is open", text)


def winner(
    before: Mapping[str, Score], after: Mapping[str, Score], healed: Mapping[str, Score]
) -> Finding:
    """Whether the set best after healing beats the one best before it, both healed in full."""
    both = {name: before[name] for name in before if name in after}
    old, new = w.best(both), w.best({name: after[name] for name in both})
    if old == new:
        n = len(both) - ("whole" in both)
        return Finding(
            f"Layers {old} are the best choice before and after healing",
            f"Of {n} sets, {old} is best both times.",
        )
    text = f"Best before healing: layers {old}; after it: {new}"
    first, second = w.average(healed, old), w.average(healed, new)
    if first is None or second is None:
        return Finding(
            "The best set changes; not healed in full", text + ". They were not healed in full."
        )
    gap = statistics.ppl_ratio(second, first)
    text += (
        f". Healed in full, {new} stands at {w.interval(gap)} times the perplexity of {old} (n ="
        f" {gap.n} test articles)."
    )
    return w.outcome(
        w.side(gap, 1),
        text,
        below=f"The best set changes in healing: {new} beats {old}",
        above=f"The set that was best before healing stays better: {old}",
        open=f"Healed in full, {new} and {old} cannot be told apart",
    )


def regret(after: Mapping[str, Score], rules: Mapping[str, str]) -> Finding:
    """What each rule's choice costs after healing, beside the best of all sets that were tried."""
    best = w.best(after)
    known = {rule: pair for rule, pair in rules.items() if pair in after}
    if not known:
        return Finding("No rule's choice was healed", "No rule's choice was among the healed sets.")
    gaps = {rule: statistics.ppl_ratio(after[pair], after[best]) for rule, pair in known.items()}
    order = sorted(gaps, key=lambda rule: gaps[rule].point)
    told = "; ".join(f"{w.name(rule)} ({known[rule]}) {w.interval(gaps[rule])}" for rule in order)
    text = f"Healed, over the best of {len(after) - ('whole' in after)} sets, layers {best}: {told}"
    text += f" (n = {gaps[order[0]].n} articles)."
    level = [rule for rule in order if w.side(gaps[rule], 1) != w.ABOVE]
    if len(level) == len(gaps):
        return Finding("After healing no rule's choice is shown to cost anything", text)
    if level:
        title = f"After healing {len(level)} of {len(gaps)} rules' choices are as good as the best"
        return Finding(title, text)
    return Finding("After healing every rule's choice costs something", text)
