"""Measurements on the whole model, and the plans made from them."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from depthprune_core import models, selection, sensitivity, storage, subsets
from depthprune_core.records import Facts, Plan, Profile, Score, SetCosts
from depthprune_core.text import Windows
from depthprune_study.errors import StudyError
from depthprune_study.lab import cache, scoring
from depthprune_study.results.statistics import ranked

if TYPE_CHECKING:
    from depthprune_study.lab.workspace import Workspace

SEARCHES = ("greedy", "contiguous")  # one layer after another; the best run of neighbours
AT_ONCE = 16  # windows between two saves; an interruption loses at most this much


def profile(lab: Workspace, windows: Windows, *, gradients: bool = True) -> Profile:
    """The importance of each layer, by every criterion."""

    def measure() -> Profile:
        model = lab.teacher.model
        return sensitivity.profile(model, windows, gradients=gradients, progress=lab.progress)

    on = [lab.teacher, windows, gradients]
    return lab.save("profile", cache.measured(lab, "profile", measure, on=on, room="sensitivity"))


def set_costs(lab: Workspace, windows: Windows, *, up_to: int, name: str) -> SetCosts:
    """The exact cost of every set of 1 to `up_to` layers without healing; resumes after a stop."""
    n_layers = lab.n_layers
    sets = subsets.up_to(n_layers, up_to)
    rises = _rises(lab, windows, sets)
    costs = {",".join(map(str, dropped)): rise for dropped, rise in zip(sets, rises, strict=True)}
    return lab.save(name, SetCosts(n_layers, costs))


def plans(
    lab: Workspace,
    profile: Profile,
    costs: SetCosts | None,
    drop_counts: Sequence[int],
    *,
    windows: Windows,
    rules: Sequence[str] | None = None,
    draws: int = 1,
    name: str = "plans",
) -> dict[str, Plan]:
    """Every rule's plan for each count, as "rule-count"; `draws` random plans, "random_0-2" ...

    A set of layers that is not in `costs` is measured on `windows` when a rule needs it. Without
    `rules`, exhaustive is skipped for counts that are not in `costs`.
    """
    seed, cost = lab.parameters.get("seed", 0), _Cost(lab, windows, costs)
    chosen: dict[str, Plan] = {}
    for rule, k in itertools.product(rules or selection.RULES, drop_counts):
        if rule == "exhaustive" and rules is None and not (costs and costs.of_size(k)):
            continue
        for draw in range(draws if rule == "random" else 1):
            known = selection.Evidence(profile.n_layers, profile, cost, seed + draw)
            label = f"random_{draw}" if rule == "random" else rule
            chosen[f"{label}-{k}"] = _chosen(rule, known, k)
    return lab.save(name, chosen)


def cuts(lab: Workspace, drop_counts: Sequence[int], *, after: str) -> dict[int, Plan]:
    """For each count the cheaper cut of two searches on the calibration articles, SEARCHES.

    after: the notebook whose record `costs` is reused, on the same windows.
    """
    costs = lab.read(after, "costs")
    stamp = storage.read_stamp(lab.record_path("costs", after))
    tokens = stamp.parameters["calibration_tokens"]
    cost = _Cost(lab, lab.windows("calibration", tokens=tokens), costs)
    known = selection.Evidence(lab.n_layers, cost=cost)
    found = {}
    for k in drop_counts:
        tried = [_chosen(rule, known, k) for rule in SEARCHES]
        found[k] = min(tried, key=lambda plan: cost([plan.dropped])[0])
    return found


def pairs_to_try(
    profile: Profile, costs: SetCosts, *, cheap: int, spread: int
) -> list[tuple[int, int]]:
    """All pairs of the `cheap` least sensitive layers, cheapest first; then `spread` other pairs.

    The other pairs have equal distances in the ranking of costs.
    """
    order = sorted(range(profile.n_layers), key=lambda layer: profile.drop_one[layer])
    rises = costs.of_size(2)
    ranked = sorted(rises, key=lambda pair: (rises[pair], pair))
    tail = [pair for pair in ranked if set(pair) <= set(order[:cheap])]
    others = [pair for pair in ranked if pair not in tail]
    n = min(spread, len(others))
    return tail + [others[(i + 1) * len(others) // n - 1] for i in range(n)]


def best(scores: Mapping[str, Score], n: int) -> dict[str, Score]:
    """The n students with the lowest mean NLL, without the whole model and diverged students."""
    return {name: scores[name] for name in ranked(scores)[:n] if not scores[name].diverged}


def published(lab: Workspace) -> Facts:
    """The parameters of the source's models, counted from their shapes."""
    values = {}
    for name, counts in scoring.PUBLISHED.items():
        for n_layers in counts:
            model = models.shape(name, n_layers=n_layers)
            values[f"{name.removesuffix('-shape')}, {n_layers} layers"] = {
                "n_parameters": sum(p.numel() for p in model.parameters()),
            }
    return lab.save("published", Facts(values))


def _chosen(rule: str, known: selection.Evidence, k: int) -> Plan:
    try:
        return selection.choose(rule, known, k)
    except ValueError as error:
        raise StudyError(f"drop_counts: {error}") from None


class _Cost:
    """The costs of sets of layers: known costs, else measured and kept."""

    def __init__(self, lab: Workspace, windows: Windows, known: SetCosts | None) -> None:
        self._lab, self._windows = lab, windows
        self._rises = known.by_layers if known else {}

    def __call__(self, sets: Sequence[tuple[int, ...]]) -> list[float]:
        new = sorted({layers for layers in sets if layers not in self._rises})
        if new:
            rises = _rises(self._lab, self._windows, new)
            self._rises |= dict(zip(new, rises, strict=True))
        return [self._rises[layers] for layers in sets]


def _rises(lab: Workspace, windows: Windows, sets: Sequence[tuple[int, ...]]) -> list[float]:
    """Rise in mean NLL (nats per token) with each set dropped; kept after every AT_ONCE windows."""
    wanted = [(), *sets]
    totals = [0.0] * len(wanted)
    for begin in range(0, len(windows), AT_ONCE):
        part = windows.take(slice(begin, begin + AT_ONCE))

        def measure(part: Windows = part) -> Facts:
            model = lab.teacher.model
            nll = subsets.nll_by_window(model, part, wanted, progress=lab.progress).sum(1)
            return Facts({"nll_nats": nll.tolist()})

        on = [lab.teacher, part, [list(dropped) for dropped in sets]]
        name = f"sets of layers, windows {begin}.. of {len(windows)}"
        found = cache.measured(lab, "sets of layers", measure, on=on, room="subsets", name=name)
        totals = [a + b for a, b in zip(totals, found.values["nll_nats"], strict=True)]
    return [(total - totals[0]) / windows.n_tokens for total in totals[1:]]
