"""A rule by its name, for any model: what one family's notebook has chosen by, the other family's notebook chooses by too."""

from __future__ import annotations

from transformers import PreTrainedModel

from depthprune_core import racing, selection, sensitivity, subsets
from depthprune_core.decoders import decoder
from depthprune_core.progress import Progress, silent
from depthprune_core.records import Plan, Profile
from depthprune_core.text import Windows

BY_PROFILE = ("least_sensitive", "most_sensitive")
BY_COST = ("greedy", "pairwise", "exhaustive", "contiguous")
BY_NUMBER = ("evenly_spaced", "last_k")
NAMES = (*BY_PROFILE, *BY_COST, "racing", *BY_NUMBER)


def choose(
    rule: str,
    k: int,
    model: PreTrainedModel,
    windows: Windows,
    *,
    profile: Profile | None = None,
    progress: Progress = silent,
) -> Plan:
    """The k layers that a rule drops from this model, measured on these windows (or read off their `profile`)."""
    n_layers = len(decoder(model).layers)
    if rule in BY_PROFILE:
        profile = profile or sensitivity.profile(model, windows, batch_size=4, gradients=False, progress=progress)
        return getattr(selection, rule)(profile.drop_one, k)
    if rule in BY_COST:
        return getattr(selection, rule)(n_layers, k, subsets.CostFunction(model, windows, progress=progress))
    if rule == "racing":
        return racing.best_set(model, windows, k, progress=progress)[0]
    return getattr(selection, rule)(n_layers, k)
