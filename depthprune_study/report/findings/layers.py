"""Findings about layers: what each is worth, and which rule chooses best."""

from __future__ import annotations

from collections.abc import Mapping

from depthprune_core.records import Profile, Score, SetCosts
from depthprune_study.report import wording as w
from depthprune_study.report.wording import Finding
from depthprune_study.results import statistics

MOST_NAMED = 3  # layers that a title names


def costly_in_the_middle(profile: Profile) -> list[int]:
    """The costly layers of the middle half."""
    quarter = max(1, profile.n_layers // 4)
    middle = range(quarter, profile.n_layers - quarter)
    return [layer for layer in statistics.costly_layers(profile) if layer in middle]


def profile(profile: Profile) -> Finding:
    """What each layer costs when only it is dropped; costly middle layers by number."""
    costs, n = statistics.layer_intervals(profile), profile.n_layers
    order = sorted(range(n), key=lambda layer: profile.drop_one[layer])
    costly = statistics.costly_layers(profile)
    ends = [layer for layer in (0, n - 1) if layer in costly]
    text = (
        f"Of single layers, layer {order[-1]} costs most, {w.interval(costs[order[-1]])} nats per"
        f" token, and layer {order[0]} least, {w.interval(costs[order[0]])} (n = {costs[0].n}"
        f" articles). A layer is costly if its interval lies above {statistics.COSTLY:g} times the"
        f" median layer's cost; the costly layers are {w.listed(costly)}."
    )
    if len(ends) == 2:
        start = "Both end layers are costly"
    elif ends:
        start = f"Of the two ends, only layer {ends[0]} is costly"
    else:
        start = "Neither end layer is costly"
    inner = costly_in_the_middle(profile)
    if not inner:
        return Finding(f"{start}; no middle layer is", text)
    each = ", ".join(f"{layer} ({w.interval(costs[layer])})" for layer in inner)
    text += f" In the middle half: {each}."
    which = w.listed(inner) if len(inner) <= MOST_NAMED else f"{len(inner)} layers"
    return Finding(f"{start}; so {'is' if len(inner) == 1 else 'are'} {which} in the middle", text)


def criteria(profile: Profile) -> Finding:
    """Which cheap criteria rank the layers well, and which miss the costly middle layers."""
    truth = profile.drop_one
    others = {name: values for name, values in profile.criteria.items() if name != "drop_nll_nats"}
    rho = {name: statistics.rank_correlation(values, truth) for name, values in others.items()}
    order = sorted(rho, key=lambda name: rho[name].point)
    best, worst = order[-1], order[0]
    text = (
        f"With the cost of dropping each layer, {w.words(best)} has the highest rank correlation,"
        f" {w.interval(rho[best])}, and {w.words(worst)} the lowest, {w.interval(rho[worst])}"
        f" (n = {len(truth)} layers)."
    )
    inner, missed = costly_in_the_middle(profile), {}
    for layer in inner:
        cheaper = {name: sum(v < of[layer] for v in of) for name, of in others.items()}
        missing = [w.words(name) for name, n in cheaper.items() if n < len(truth) / 2]
        missed |= {layer: missing} if missing else {}
    if not inner:
        title = f"{w.up(w.words(best))} ranks the layers best"
        if w.side(rho[best], 0) != w.ABOVE:
            title = "No criterion is shown to rank the layers well"
        return Finding(title, text)
    if not missed:
        title = "Every criterion finds the costly middle layers"
        return Finding(title, f"{text} All find layer {w.listed(inner)}.")
    parts = "; ".join(f"layer {layer} is missed by {w.listed(of)}" for layer, of in missed.items())
    return Finding(
        f"Costly middle layers that some criteria miss: {w.listed(list(missed)[:MOST_NAMED])}",
        f"{text} Of the costly middle layers, {parts} (ranked in the cheaper half).",
    )


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


def rules(scores: Mapping[str, Score], k: int, *, split: str = "validation") -> Finding:
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
        f"{start}, {who} {cost}: {w.interval(value)} times the perplexity (n = {value.n} {split}"
        " articles)"
    )
    more = f"not clearly different: {w.listed(map(w.words, tied))}"
    text += f"; {more if tied else 'every other rule costs more'}."
    named |= {"random": statistics.mean_score(random)} if random else {}
    if random and w.side(w.ratio(named, first, "random"), 1) != w.BELOW:
        text += f" Random draws cost {w.over(named, 'random')} on average."
        return Finding(f"{start}: no rule is shown to beat random draws", text, True)
    if tied:
        choices = 1 + len({named[name].nll_nats for name in tied})
        return Finding(f"{start}: {choices} choices of layers are tied as the best", text)
    if len(same) > 2:  # too many names for a title
        return Finding(f"{start}: {len(same)} rules agree on the best layers", text)
    return Finding(f"{start}: {who} choose{'' if len(same) > 1 else 's'} best", text)
