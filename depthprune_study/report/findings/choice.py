"""Findings about what a cut saves, and whether the choice of layers survives healing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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
        fewer = w.counts([name])
        case = f"Without {w.plural(*fewer, 'layer')}, decoding" if fewer else f"{name}: decoding"
        parts.append(
            f"{case} is {w.interval(gain)} times as fast{shown[w.side(gain, 1)]}{doubt};"
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
    """Whether the ranking of sets survives healing: among the `tail` cheapest, and over all.

    Diverged sets are left out.
    """
    names = [n for n in before if n != "whole" and n in after and not after[n].diverged]
    names.sort(key=lambda name: before[name].mean_nll_nats)
    rho, within = (
        statistics.rank_correlation(*([s[n].mean_nll_nats for n in of] for s in (before, after)))
        for of in (names, names[:tail])
    )
    regret = statistics.nll_rise(after[names[0]], after[w.best({n: after[n] for n in names})])
    text = (
        f"The rank correlation (rho) of the costs before and after healing is {w.interval(within)}"
        f" among the {within.n} cheapest sets and {w.interval(rho)} over all {rho.n}, which were"
        " chosen to differ widely. The intervals come from resampling the sets; sets that share a"
        " layer are not independent, so these intervals are too narrow. After healing, the"
        f" set that was best before costs {w.interval(regret)} nats per token more than the best"
        f" set (n = {regret.n} articles)."
    )
    if w.side(within, 0) == w.ABOVE:
        related = f"related, rho {w.short(within)}"
        title = f"Cheap sets: costs before and after healing are {related}"
        return Finding(title, text)
    if w.side(rho, 0) == w.ABOVE:
        how = "reverses" if w.side(within, 0) == w.BELOW else "is unclear"
        title = f"Costly sets stay costly (rho {w.short(rho)}); the order of cheap ones {how}"
        return Finding(title, text)
    if w.side(rho, 0) == w.BELOW:
        return Finding("Sets that are cheap before healing are costly after it", text, True)
    return Finding("It is open whether the ranking survives healing", text)


def winners(before: Mapping[str, Score], after: Mapping[str, Score]) -> tuple[str, str, int]:
    """The best set before healing, its rival after healing, and the number of sets.

    The rival is the best set after healing, or the second best if both are the same.
    """
    sets = [name for name in before if name in after and name != "whole"]
    old = w.best({name: before[name] for name in sets})
    others = {name: after[name] for name in sets if name != old}
    return old, w.best(others) if others else old, len(sets)


def gaps_by_seed(healed: Mapping[str, Score], old: str, new: str) -> list[float]:
    """NLL of `new` minus that of `old`, nats per token, for each seed that both have."""
    runs = statistics.by_seed(healed)
    first, second = runs.get(old, {}), runs.get(new, {})
    return [second[s].mean_nll_nats - first[s].mean_nll_nats for s in second if s in first]


def differ_in_sign(gaps: Sequence[float]) -> bool:
    """Whether one seed speaks for one set, and another seed for the other."""
    return any(gap < 0 for gap in gaps) and any(gap > 0 for gap in gaps)


def winner(
    before: Mapping[str, Score], after: Mapping[str, Score], healed: Mapping[str, Score]
) -> Finding:
    """Whether the set best before healing is still the best after it, both healed in full."""
    old, new, n = winners(before, after)
    same = w.best({old: after[old], new: after[new]}) == old
    which = "the second best after it" if same else "the best after it"
    text = f"Of {n} sets, {old} is best before healing; {new} is {which}."
    first, second = statistics.average(healed, old), statistics.average(healed, new)
    if first is None or second is None:  # it diverged, or the notebook asked for fewer
        stays = "The best set stays the best" if same else "The best set changes"
        return Finding(f"{stays}; its rival was not healed in full", text)
    gap, seeds = statistics.ppl_ratio(second, first), gaps_by_seed(healed, old, new)
    text += (
        f" Healed in full, {new} has {w.interval(gap)} times the perplexity of {old}"
        f" (n = {gap.n} test articles). By seed, {new} minus {old} in nats per token:"
        f" {w.listed(map(w.number, seeds))}."
    )
    if differ_in_sign(seeds):
        return Finding(f"Seeds disagree whether {new} or {old} is better healed in full", text)
    return w.outcome(
        gap,
        1,
        text,
        below=f"The best set changes with healing: {new} beats {old}",
        above=f"The set that was best before healing stays better: {old}",
        against=w.BELOW,
        open=f"Healed in full, {new} and {old} are not clearly different",
    )


def regret(after: Mapping[str, Score], rules: Mapping[str, str]) -> Finding:
    """What each rule's choice costs after healing, compared with the best set tried."""
    best, who = w.best(after), {}
    for rule, chosen in rules.items():
        who.setdefault(chosen, []).append(w.words(rule))
    gaps = {chosen: w.ratio(after, chosen, best) for chosen in who if chosen in after}
    gaps = {chosen: gap for chosen, gap in gaps.items() if w.sound(gap)}
    if not gaps:
        return Finding("No rule's choice was healed", "No rule's choice was among the healed sets.")
    order = sorted(gaps, key=lambda chosen: gaps[chosen].point)
    parts = "; ".join(f"{of} ({w.listed(who[of])}) {w.interval(gaps[of])}" for of in order)
    text = (
        f"After healing, perplexity over that of the best of {len(after) - 1} sets, layers"
        f" {best}: {parts} (n = {gaps[order[0]].n} articles, on which the best was picked too)."
    )
    level = sum(w.side(gap, 1) != w.ABOVE for gap in gaps.values())
    if level == len(gaps):
        return Finding("After healing, no rule's choice is clearly worse than the best", text)
    if level:
        which = f"{level} of the rules' {len(gaps)} choices"
        return Finding(f"After healing, {which}: not clearly worse than the best", text)
    return Finding("After healing, every rule's choice is worse than the best", text)
