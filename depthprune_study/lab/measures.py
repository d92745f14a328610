"""What is measured on the whole model, and the plans that follow from it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from depthprune_core import models, pruning, selection, sensitivity, speed, subsets
from depthprune_core.records import Facts, Plan, Profile, SetCosts
from depthprune_core.text import Windows
from depthprune_study.errors import StudyError
from depthprune_study.lab import cache

if TYPE_CHECKING:
    from depthprune_study.lab.workspace import Workspace

AT_ONCE = 16  # windows: what is lost, at most, where the measuring of many sets is stopped
PUBLISHED = {"gpt2-shape": (12, 10, 9), "tinyllama-1.1b-shape": (22, 20, 19)}  # layers


def profile(
    lab: Workspace, windows: Windows, *, gradients: bool = True, name: str = "profile"
) -> Profile:
    """What each layer is worth, by every criterion."""
    path = lab.record_path(name)

    def measure() -> Profile:
        model = lab.teacher.model
        return sensitivity.profile(model, windows, gradients=gradients, progress=lab.progress)

    on, modules = [lab.teacher, windows, gradients], ("depthprune_core.sensitivity",)
    return lab.sources.note(cache.once(lab, path, measure, on=on, modules=modules), path)


def set_costs(lab: Workspace, windows: Windows, *, up_to: int, name: str) -> SetCosts:
    """The exact cost of every set of 1 to `up_to` layers, nothing healed; goes on where stopped."""
    n_layers = lab.n_layers
    sets = [tuple(sorted(dropped)) for dropped in subsets.up_to(n_layers, up_to)]
    rises = _rises(lab, windows, sets)
    costs = {",".join(map(str, dropped)): rise for dropped, rise in zip(sets, rises, strict=True)}
    return lab.save(name, SetCosts(n_layers, costs))


def plans(
    lab: Workspace,
    profile: Profile,
    costs: SetCosts,
    drop_counts: Sequence[int],
    *,
    windows: Windows,
    rules: Sequence[str] | None = None,
    draws: int = 1,
) -> dict[str, Plan]:
    """Every rule's plan for each count, as "rule-count"; `draws` random ones, random_0-2 ...

    A set of layers that `costs` does not hold is measured on `windows` when a rule asks for it.
    exhaustive is left out where `costs` does not hold all sets of that count.
    """
    seed = lab.parameters.get("seed", 0)
    cost = _Cost(lab, windows, costs)
    chosen: dict[str, Plan] = {}
    for rule, k in itertools.product(rules or selection.RULES, drop_counts):
        if rule == "exhaustive" and not costs.of_size(k) and rules is None:
            continue
        if not 1 <= k < profile.n_layers:
            raise StudyError(f"drop_counts: {k} of {profile.n_layers} layers cannot be dropped")
        for draw in range(draws if rule == "random" else 1):
            known = selection.Evidence(profile.n_layers, profile, cost, seed + draw)
            label = f"random_{draw}" if rule == "random" else rule
            chosen[f"{label}-{k}"] = selection.choose(rule, known, k)
    return lab.save("plans", chosen)


def published(lab: Workspace) -> Facts:
    """Parameters and bytes read a token of the source's models, by arithmetic: no weights needed."""
    values = {}
    for name, counts in PUBLISHED.items():
        for n_layers in counts:
            model = models.shape(name, n_layers=n_layers)
            values[f"{name.removesuffix('-shape')}, {n_layers} layers"] = {
                "n_parameters": pruning.size(model).n_parameters,
                "weight_bytes_per_token": speed.weight_bytes_per_token(model),
            }
    return lab.save("published", Facts(values))


class _Cost:
    """The cost of any set of layers: as kept, else measured, and kept."""

    def __init__(self, lab: Workspace, windows: Windows, known: SetCosts) -> None:
        self._lab, self._windows = lab, windows
        self._rises = {
            frozenset(map(int, key.split(","))): rise for key, rise in known.rise_nll_nats.items()
        }

    def __call__(self, dropped: frozenset[int]) -> float:
        if not dropped:
            return 0.0
        self.ahead([dropped])
        return self._rises[dropped]

    def ahead(self, sets: Sequence[frozenset[int]]) -> None:
        """Measure those that are not known yet, together."""
        new = sorted({tuple(sorted(s)) for s in sets if s and s not in self._rises})
        if new:
            rises = _rises(self._lab, self._windows, new)
            self._rises |= {frozenset(s): rise for s, rise in zip(new, rises, strict=True)}


def _rises(
    lab: Workspace, windows: Windows, sets: Sequence[tuple[int, ...]]
) -> list[float]:
    """Rise in mean NLL (nats per token) with each set dropped; some windows at a time are kept."""
    totals = [0.0] * (len(sets) + 1)
    modules = ("depthprune_core.subsets",)
    for begin in range(0, len(windows), AT_ONCE):
        some = windows.take(slice(begin, begin + AT_ONCE))
        on = [lab.teacher, some, [list(s) for s in sets]]
        stamp = cache.stamped(lab, "sets of layers", on, modules=modules, shared=True)
        path = lab.folder / "measured" / f"{stamp.key}.json"

        def measure(some: Windows = some) -> Facts:
            wanted = [(), *sets]
            model = lab.teacher.model
            nll = subsets.nll_by_window(model, some, wanted, progress=lab.progress).sum(1)
            return Facts({"nll_nats": nll.tolist()})

        part = f"sets of layers, windows {begin}.. of {len(windows)}"
        found = cache.measured(lab, path, stamp, measure, name=part)
        totals = [a + b for a, b in zip(totals, found.values["nll_nats"], strict=True)]
    return [(total - totals[0]) / windows.n_tokens for total in totals[1:]]
