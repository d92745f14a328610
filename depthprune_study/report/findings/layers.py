"""Findings about layers: what each is worth, and which rule chooses best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from depthprune_core.records import Profile, Score, SetCosts
from depthprune_study.report import wording as w
from depthprune_study.report.wording import Finding
from depthprune_study.results import statistics
from depthprune_study.results.statistics import Interval

FEW = 3  # layers that a title names
DEAR = 2.0  # times the median layer's cost: dear
ALIKE = 0.95  # rank correlation from which two rankings count as the same


def dear_in_the_middle(profile: Profile, costs: Sequence[Interval] | None = None) -> list[int]:
    """Layers of the middle half whose interval lies above twice the median layer's cost."""
    quarter, limit = max(1, profile.n_layers // 4), DEAR * float(np.median(profile.drop_one))
    costs = costs or statistics.layer_intervals(profile, "drop_nll_nats")
    middle = range(quarter, profile.n_layers - quarter)
    return [layer for layer in middle if w.side(costs[layer], limit) == w.ABOVE]


def profile(profile: Profile) -> Finding:
    """What each layer costs when it alone is dropped; dear middle layers by name."""
    costs, rises = statistics.layer_intervals(profile, "drop_nll_nats"), profile.drop_one
    order, dear = (
        sorted(range(profile.n_layers), key=lambda i: rises[i]),
        dear_in_the_middle(profile, costs),
    )
    ends = [
        layer for layer in (0, profile.n_layers - 1) if layer in order[-max(2, len(order) // 4) :]
    ]
    which = {
        2: "Both end layers are dear",
        1: f"Of the two ends, only layer {ends and ends[0]} is dear",
    }
    start = which.get(len(ends), "Neither end layer is among the dear ones")
    few = w.listed(dear) if len(dear) <= FEW else f"{len(dear)} layers"
    middle = f"so {'is' if len(dear) == 1 else 'are'} {few} in the middle"
    text = (
        f"Dropped alone, layer {order[-1]} costs most, {w.interval(costs[order[-1]])} nats per"
        f" token, and layer {order[0]} least, {w.interval(costs[order[0]])} (n = {costs[0].n}"
        " articles)."
    )
    if not dear:
        return Finding(
            f"{start}; no middle layer is", f"{text} In the middle half no layer is dear."
        )
    each = ", ".join(f"{layer} ({w.interval(costs[layer])})" for layer in dear)
    more = f"In the middle half, above {DEAR:g} times the median layer: {each}."
    return Finding(f"{start}; {middle}", f"{text} {more}")


def criteria(profile: Profile) -> Finding:
    """Which cheap criteria rank the layers well, and which miss the dear middle layers."""
    truth = profile.drop_one
    others = {name: values for name, values in profile.criteria.items() if name != "drop_nll_nats"}
    rho = {name: statistics.rank_correlation(values, truth) for name, values in others.items()}
    order = sorted(rho, key=lambda name: rho[name].point)
    text = (
        f"Against the cost of dropping each layer, {w.name(order[-1])} ranks best (rank correlation"
        f" {w.interval(rho[order[-1]])}) and {w.name(order[0])} worst ({w.interval(rho[order[0]])};"
        f" n = {len(truth)} layers)."
    )
    dear = dear_in_the_middle(profile)
    missed = {
        layer: [
            w.name(name) for name, values in others.items() if _in_the_cheaper_half(values, layer)
        ]
        for layer in dear
    }
    told = [
        f"layer {layer} is missed by {w.listed(names)}" for layer, names in missed.items() if names
    ]
    if not dear:
        return Finding(
            f"{w.up(w.name(order[-1]))} ranks the layers best",
            f"{text} No middle layer is dear.",
        )
    if not told:
        return Finding(
            "Every criterion sees the dear middle layers", f"{text} All see layer {w.listed(dear)}."
        )
    title = (
        "Dear middle layers that some criteria miss:"
        f" {w.listed([layer for layer in dear if missed[layer]][:FEW])}"
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
        for n in w.natural(named)
        if n != first and w.side(statistics.ppl_ratio(named[n], named[first]), 1) == w.OPEN
    ]
    value = statistics.ppl_ratio(named[first], whole)
    text = (
        f"{w.plural(k, 'layer')} fewer, {w.name(first)} costs least: {w.interval(value)} times the"
        f" perplexity (n = {value.n} articles)"
    )
    text += (
        f"; not told apart from it: {w.listed(map(w.name, tied))}."
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
        return Finding(
            f"{w.plural(k, 'layer')} fewer: no rule is shown to beat random draws", text, True
        )
    if tied:
        return Finding(
            f"{w.plural(k, 'layer')} fewer: {len(tied) + 1} rules cannot be told apart as the best",
            text,
        )
    return Finding(f"{w.plural(k, 'layer')} fewer: {w.name(first)} chooses best", text)


def _in_the_cheaper_half(values: tuple[float, ...], layer: int) -> bool:
    return sum(value < values[layer] for value in values) < len(values) / 2
