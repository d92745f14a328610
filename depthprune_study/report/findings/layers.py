"""Findings about layers: what each is worth, and which rule chooses best."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from depthprune_core.records import Profile, Score, SetCosts
from depthprune_study.report import wording as w
from depthprune_study.report.wording import Finding
from depthprune_study.results import statistics

MOST_NAMED = 3  # layers that a title names
DEAR = 2.0  # times the median layer's cost: above it a layer counts as costly
ALIKE = 0.95  # rank correlation at or above which two rankings count as equal


def dear_in_the_middle(profile: Profile) -> list[int]:
    """Layers of the middle half whose interval lies above DEAR times the median layer's cost."""
    quarter, limit = max(1, profile.n_layers // 4), DEAR * float(np.median(profile.drop_one))
    costs = statistics.layer_intervals(profile)
    middle = range(quarter, profile.n_layers - quarter)
    return [layer for layer in middle if w.side(costs[layer], limit) == w.ABOVE]


def profile(profile: Profile) -> Finding:
    """What each layer costs when only it is dropped; costly middle layers by number."""
    costs, n = statistics.layer_intervals(profile), profile.n_layers
    order = sorted(range(n), key=lambda layer: profile.drop_one[layer])
    ends = [layer for layer in (0, n - 1) if layer in order[-max(2, n // 4) :]]
    text = (
        f"Of single layers, layer {order[-1]} costs most, {w.interval(costs[order[-1]])} nats per"
        f" token, and layer {order[0]} least, {w.interval(costs[order[0]])} (n = {costs[0].n}"
        " articles)."
    )
    if len(ends) == 2:
        start = "Both end layers are costly"
    elif ends:
        start = f"Of the two ends, only layer {ends[0]} is costly"
    else:
        start = "Neither end layer is costly"
    dear = dear_in_the_middle(profile)
    if not dear:
        text += " In the middle half no layer is costly."
        return Finding(f"{start}; no middle layer is", text)
    each = ", ".join(f"{layer} ({w.interval(costs[layer])})" for layer in dear)
    text += f" In the middle half, above {DEAR:g} times the median layer: {each}."
    which = w.listed(dear) if len(dear) <= MOST_NAMED else f"{len(dear)} layers"
    return Finding(f"{start}; so {'is' if len(dear) == 1 else 'are'} {which} in the middle", text)


def criteria(profile: Profile) -> Finding:
    """Which cheap criteria rank the layers well, and which miss the costly middle layers."""
    truth = profile.drop_one
    others = {name: values for name, values in profile.criteria.items() if name != "drop_nll_nats"}
    rho = {name: statistics.rank_correlation(values, truth) for name, values in others.items()}
    order = sorted(rho, key=lambda name: rho[name].point)
    best, worst = order[-1], order[0]
    text = (
        f"Against the cost of dropping each layer, {w.words(best)} ranks best (rank correlation"
        f" {w.interval(rho[best])}) and {w.words(worst)} worst ({w.interval(rho[worst])};"
        f" n = {len(truth)} layers)."
    )
    dear, missed = dear_in_the_middle(profile), {}
    for layer in dear:
        cheaper = {name: sum(v < of[layer] for v in of) for name, of in others.items()}
        missing = [w.words(name) for name, n in cheaper.items() if n < len(truth) / 2]
        missed |= {layer: missing} if missing else {}
    if not dear:
        title = f"{w.up(w.words(best))} ranks the layers best"
        if w.side(rho[best], 0) != w.ABOVE:
            title = "No criterion is shown to rank the layers well"
        return Finding(title, f"{text} No middle layer is costly.")
    if not missed:
        title = "Every criterion finds the costly middle layers"
        return Finding(title, f"{text} All find layer {w.listed(dear)}.")
    parts = "; ".join(f"layer {layer} is missed by {w.listed(of)}" for layer, of in missed.items())
    return Finding(
        f"Costly middle layers that some criteria miss: {w.listed(list(missed)[:MOST_NAMED])}",
        f"{text} Of the costly middle layers, {parts} (ranked in the cheaper half).",
    )


def stability(stability: Mapping[int, float]) -> Finding:
    """How many articles a stable ranking of the layers needs."""
    counts = sorted(stability)
    first, enough, most = counts[0], counts[-1], counts[-1]
    for n in reversed(counts):
        if stability[n] < ALIKE:
            break
        enough = n
    text = (
        f"A ranking from {w.plural(first, 'article')} has a rank correlation of"
        f" {stability[first]:.2f} with the ranking from all {most}; from {enough} articles on it"
        f" stays at {ALIKE:g} or above (mean over random draws)."
    )
    if enough <= most / 2:
        return Finding(f"{enough} of {most} articles are enough to rank the layers", text)
    return Finding(f"The ranking of the layers needs {enough} of {most} articles", text)


def pairs(costs: SetCosts) -> Finding:
    """Whether the two cheapest layers are also the cheapest pair."""
    pair_costs, single = costs.of_size(2), costs.of_size(1)
    cheapest = min(pair_costs, key=lambda pair: pair_costs[pair])
    naive = tuple(sorted(layer for (layer,) in sorted(single, key=lambda key: single[key])[:2]))
    more = sum(beyond > 0 for beyond in costs.interactions().values())
    alone = w.listed(w.number(single[layer,]) for layer in cheapest)
    text = (
        f"Of {len(pair_costs):,} pairs, {w.listed(cheapest)} cost least together,"
        f" {w.number(pair_costs[cheapest])} nats per token (separately {alone})."
        f" {w.percent(more / len(pair_costs))} of the pairs cost more than the sum of their two"
        " layers (every pair was measured, so there is no interval)."
    )
    which = w.listed(cheapest)
    if naive == cheapest:
        return Finding(f"The two cheapest layers, {which}, are also the cheapest pair", text)
    text += f" The two cheapest layers, {w.listed(naive)}, cost {w.number(pair_costs[naive])}."
    return Finding(f"The cheapest pair is {which}, not the two cheapest layers", text)


def rules(scores: Mapping[str, Score], k: int) -> Finding:
    """Which rules choose best with k layers fewer before healing, compared with random draws."""
    end = f"-{k}"
    named = {name.removesuffix(end): s for name, s in scores.items() if name.endswith(end)}
    random = [named.pop(name) for name in list(named) if name.startswith("random")]
    first, start = w.best(named), f"{w.plural(k, 'layer')} fewer"
    same = [name for name in named if named[name].nll_nats == named[first].nll_nats]  # the same set
    named["whole"] = scores["whole"]
    value = w.ratio(named, first)
    others = [name for name in w.natural(named) if name not in ("whole", *same)]
    tied = [name for name in others if w.side(w.ratio(named, name, first), 1) == w.OPEN]
    who = w.listed(map(w.words, w.natural(same)))
    cost = "choose the same layers, which cost least" if len(same) > 1 else "costs least"
    text = (
        f"{start}, {who} {cost}: {w.interval(value)} times the perplexity (n = {value.n} articles)"
    )
    more = f"not clearly different: {w.listed(map(w.words, tied))}"
    text += f"; {more if tied else 'every other rule costs more'}."
    if random:
        named["random"] = statistics.mean_score(random)
        drawn = [w.number(statistics.ppl_ratio(of, scores["whole"]).point) for of in random]
        text += f" Random draws cost {w.listed(drawn)}."
    for name, label in (
        ("most_sensitive", "The most sensitive layers"),
        ("last_k", "The last layers"),
    ):
        text += f" {label} cost {w.over(named, name)}." if name in named else ""
    if random and w.side(w.ratio(named, first, "random"), 1) != w.BELOW:
        return Finding(f"{start}: no rule is shown to beat random draws", text, True)
    if tied:
        title = f"{start}: {len(tied) + len(same)} rules are tied as the best"
        return Finding(title, text)
    return Finding(f"{start}: {who} choose{'' if len(same) > 1 else 's'} best", text)
