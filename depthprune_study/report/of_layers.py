"""Findings about layers: what each is worth, which go, what that saves, whether the choice survives."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from depthprune_core.records import Profile, Score, SetCosts, Size, Timing
from depthprune_study.report import wording as w
from depthprune_study.report.wording import Finding
from depthprune_study.results import statistics

DEAR = 2.0  # times the median layer's cost: dear
ALIKE = 0.95  # rank correlation from which two rankings count as the same
NAMES = {
    "drop_nll_nats": "cost when dropped",
    "drop_kl_nats": "KL when dropped",
    "block_influence": "block influence",
    "angular_distance": "angular distance",
    "taylor": "the Taylor score",
    "magnitude": "weight magnitude",
}


def dear_in_the_middle(profile: Profile) -> list[int]:
    """Layers of the middle half whose interval lies above twice the median layer's cost."""
    quarter, limit = max(1, profile.n_layers // 4), DEAR * float(np.median(profile.drop_one))
    costs = statistics.layer_intervals(profile, "drop_nll_nats")
    middle = range(quarter, profile.n_layers - quarter)
    return [layer for layer in middle if w.side(costs[layer], limit) == w.ABOVE]


def profile(profile: Profile) -> Finding:
    """What each layer costs when it alone is dropped; dear middle layers by name."""
    costs, rises = statistics.layer_intervals(profile, "drop_nll_nats"), profile.drop_one
    order, dear = (
        sorted(range(profile.n_layers), key=lambda i: rises[i]),
        dear_in_the_middle(profile),
    )
    ends = [
        layer for layer in (0, profile.n_layers - 1) if layer in order[-max(2, len(order) // 4) :]
    ]
    which = {
        2: "Both end layers are dear",
        1: f"Of the two ends, only layer {ends and ends[0]} is dear",
    }
    start = which.get(len(ends), "Neither end layer is among the dear ones")
    middle = f"so is {w.listed(dear)} in the middle" if dear else "no middle layer is"
    text = (
        f"Dropped alone, layer {order[-1]} costs most, {w.interval(costs[order[-1]])} nats per"
        f" token, and layer {order[0]} least, {w.interval(costs[order[0]])} (n = {costs[0].n}"
        " articles)."
    )
    each = ", ".join(f"{layer} ({w.interval(costs[layer])})" for layer in dear)
    told = (
        f"dear all the same, above {DEAR:g} times the median layer: {each}"
        if dear
        else "no layer is dear"
    )
    return Finding(f"{start}; {middle}", f"{text} In the middle half, {told}.")


def criteria(profile: Profile) -> Finding:
    """Which cheap criteria rank the layers as dropping them does, and which miss the dear middle layers."""
    truth = profile.drop_one
    others = {name: values for name, values in profile.criteria.items() if name != "drop_nll_nats"}
    rho = {name: statistics.rank_correlation(values, truth) for name, values in others.items()}
    order = sorted(rho, key=lambda name: rho[name].point)
    text = (
        f"Against the cost of dropping each layer, {_named(order[-1])} ranks best (rank correlation"
        f" {w.interval(rho[order[-1]])}) and {_named(order[0])} worst ({w.interval(rho[order[0]])};"
        f" n = {len(truth)} layers)."
    )
    dear = dear_in_the_middle(profile)
    missed = {
        layer: [
            _named(name) for name, values in others.items() if _in_the_cheaper_half(values, layer)
        ]
        for layer in dear
    }
    told = [
        f"layer {layer} is missed by {w.listed(names)}" for layer, names in missed.items() if names
    ]
    if not dear:
        return Finding(
            f"{_first_up(_named(order[-1]))} ranks the layers best",
            f"{text} No middle layer is dear.",
        )
    if not told:
        return Finding(
            "Every criterion sees the dear middle layers", f"{text} All see layer {w.listed(dear)}."
        )
    title = (
        "Dear middle layers that some criteria miss:"
        f" {w.listed(layer for layer in dear if missed[layer])}"
    )
    return Finding(
        title, f"{text} Of the dear middle layers, {'; '.join(told)} (ranked in the cheaper half)."
    )


def stability(stability: Mapping[int, float]) -> Finding:
    """How many articles the ranking of the layers needs."""
    n, most = sorted(stability), max(stability)
    enough = next(
        (few for few in n if all(stability[more] >= ALIKE for more in n if more >= few)), most
    )
    text = (
        f"A ranking from {w.plural(n[0], 'article')} correlates at {stability[n[0]]:.2f} with the"
        f" one from all {most}; from {enough} on it stays at {ALIKE:g} or above (mean over random"
        " draws)."
    )
    if len(n) < 2:
        return Finding("One article cannot tell how stable the ranking is", text)
    if enough <= most / 2:
        return Finding(f"{w.plural(enough, 'article')} of {most} rank the layers as all do", text)
    return Finding(f"The ranking of the layers needs {enough} of {most} articles", text)


def pairs(costs: SetCosts) -> Finding:
    """Whether the two cheapest layers are also the cheapest pair."""
    pair_costs, single = costs.of_size(2), costs.of_size(1)
    cheapest = min(pair_costs, key=lambda pair: pair_costs[pair])
    naive = tuple(
        sorted(
            sorted(layer for (layer,) in single)[i]
            for i in np.argsort([single[key] for key in sorted(single)])[:2]
        )
    )
    more = [costs.interaction(*pair) for pair in pair_costs]
    share = sum(value > 0 for value in more) / len(more)
    text = (
        f"Of {len(pair_costs):,} pairs, {w.listed(cheapest)} cost least together,"
        f" {w.number(pair_costs[cheapest])} nats per token (alone"
        f" {w.listed(w.number(costs(frozenset([layer]))) for layer in cheapest)})."
        f" {w.percent(share)} of the pairs cost more than their two layers apart (measured on every"
        " pair, so without interval)."
    )
    if naive == cheapest:
        return Finding(
            f"The two cheapest layers, {w.listed(cheapest)}, are also the cheapest pair", text
        )
    beside = (
        f" The two cheapest layers, {w.listed(naive)}, cost {w.number(pair_costs[naive])}."
        if naive in pair_costs
        else ""
    )
    return Finding(
        f"The cheapest pair is {w.listed(cheapest)}, not the two cheapest layers", text + beside
    )


def rules(scores: Mapping[str, Score], k: int) -> Finding:
    """Which rules choose best at k layers fewer, nothing healed; against random draws."""
    named = {
        name.removesuffix(f"-{k}"): score
        for name, score in scores.items()
        if name.endswith(f"-{k}")
    }
    whole, first = scores["whole"], w.best(named)
    tied = [
        n
        for n in named
        if n != first and w.side(statistics.ppl_ratio(named[n], named[first]), 1) == w.OPEN
    ]
    value = statistics.ppl_ratio(named[first], whole)
    text = (
        f"{w.plural(k, 'layer')} fewer, {_rule(first)} costs least: {w.interval(value)} times the"
        f" perplexity (n = {value.n} articles)"
    )
    text += (
        f"; not told apart from it: {w.listed(map(_rule, tied))}."
        if tied
        else "; every other rule costs more."
    )
    random = [score for name, score in named.items() if name.startswith("random")]
    for label, score in (
        ("Random draws cost", statistics.mean_score(random) if random else None),
        ("The most sensitive layers cost", named.get("most_sensitive")),
        ("The last layers cost", named.get("last_k")),
    ):
        text += f" {label} {w.interval(statistics.ppl_ratio(score, whole))}." if score else ""
    if (
        random
        and w.side(statistics.ppl_ratio(named[first], statistics.mean_score(random)), 1) != w.BELOW
    ):
        return Finding(f"{w.plural(k, 'layer')} fewer: no rule is shown to beat random draws", text)
    if tied:
        return Finding(
            f"{w.plural(k, 'layer')} fewer: {len(tied) + 1} rules cannot be told apart as the best",
            text,
        )
    return Finding(f"{w.plural(k, 'layer')} fewer: {_rule(first)} chooses best", text)


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
    gains = {name: statistics.decode_gain(timing) for name, timing in timings.items()}
    told = []
    for name, timing in timings.items():
        gain, most = gains[name], max(timing.by_layer_count, timing.by_weight_bytes)
        doubt = " (suspect: more than the layers allow)" if gain.low > most else ""
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
    if faster:
        title = "Decoding is faster: " + ", ".join(
            f"{w.short(gains[n])} times ({n})" for n in faster
        )
    else:
        title = (
            f"Decoding is slower: {w.listed(slower)}"
            if slower
            else "No gain in decoding speed is shown"
        )
    return Finding(title, ". ".join(told) + ".")


def choice(before: Mapping[str, Score], after: Mapping[str, Score]) -> Finding:
    """Whether the ranking of sets before healing is the ranking after it: over all, and in the cheap tail."""
    names = sorted(
        (n for n in before if n != "whole" and n in after), key=lambda n: before[n].mean_nll_nats
    )
    tail = names[: w.cheap_tail(before)]
    rho, within = (
        statistics.rank_correlation(
            [before[n].mean_nll_nats for n in of], [after[n].mean_nll_nats for n in of]
        )
        for of in (names, tail)
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
    """Whether the set that is best after healing beats the one that was best before, healed in full on test articles."""
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
    titles = {
        w.BELOW: f"The best set changes in healing: {new} beats {old}",
        w.ABOVE: f"The set that was best before healing stays better: {old}",
        w.OPEN: f"Healed in full, {new} and {old} cannot be told apart",
    }
    return Finding(titles[w.side(gap, 1)], text)


def _named(criterion: str) -> str:
    return NAMES.get(criterion, criterion.replace("_", " "))


def _rule(name: str) -> str:
    return name.replace("_", " ")


def _first_up(text: str) -> str:
    return text[:1].upper() + text[1:]


def _in_the_cheaper_half(values: tuple[float, ...], layer: int) -> bool:
    return sum(value < values[layer] for value in values) < len(values) / 2
