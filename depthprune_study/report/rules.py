"""Reads params/claims.yaml: the claims, and the numbers of the rule for each verdict."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import Any

import yaml

from depthprune_study import paths
from depthprune_study.errors import StudyError


@dataclass(frozen=True)
class Claim:
    """A sentence of the source, its figures, and the rule for its verdict."""

    claim: str
    source: str
    rule: str  # in words, with {names} of `numbers`
    numbers: dict[str, Any]
    changed: str = ""  # changes of the rule after results were seen

    @property
    def in_words(self) -> str:
        return re.sub(r"(\d)%", r"\1 %", self.rule.format(**self.numbers))


@cache
def _read() -> dict[str, Any]:
    return yaml.safe_load((paths.params() / "claims.yaml").read_text(encoding="utf-8"))


@cache
def claims() -> dict[str, Claim]:
    """Every claim by its id, in order. Raises StudyError for a missing or unknown key."""
    found = {}
    for name, entry in _read().items():
        if name == "targets":
            continue
        try:
            found[name] = Claim(**entry)
            found[name].in_words  # noqa: B018
        except (TypeError, KeyError) as error:
            raise StudyError(f"params/claims.yaml: entry {name} is invalid: {error}") from None
    return found


def rule(name: str) -> dict[str, Any]:
    """The numbers of a claim's rule."""
    return claims()[name].numbers


def targets() -> list[dict[str, Any]]:
    """The study's targets: model, layers fewer, largest perplexity ratio, most training tokens."""
    return _read().get("targets", [])


def _points() -> dict[float, float]:
    """Share of the parameters removed -> the source's perplexity ratio."""
    return {n["removed"]: n["ratio"] for n in map(rule, ("C2", "C4", "C5"))}


SOURCE_POINTS = _points()
