"""Formats numbers for findings, tables and verdicts. Every number comes from a record."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from depthprune_core.records import Score
from depthprune_study.results import statistics
from depthprune_study.results.charts.wording import STAGES, factor, interval, number, words
from depthprune_study.results.statistics import Interval

__all__ = ["factor", "interval", "number", "words"]  # the same in figures and in sentences
LONGEST_TITLE = 75
ABOVE, BELOW, OPEN = "above", "below", "open"
ADAPTATION = "a ratio below 1 against the frozen whole model is adaptation to the text, not repair"


@dataclass(frozen=True)
class Finding:
    """A title for the figure, and sentences with numbers, intervals and n."""

    title: str  # at most 75 characters
    text: str
    against: bool = False  # evidence against the recipe, or for a simpler method

    def __post_init__(self) -> None:
        if len(self.title) > LONGEST_TITLE:
            cut = self.title[: LONGEST_TITLE - 1].rsplit(" ", 1)[0].rstrip(" ,;:")
            object.__setattr__(self, "title", f"{cut}…")


def sound(value: Interval) -> bool:
    """Whether the value can decide: not NaN, no run behind it diverged, not too few rounds."""
    doubts = statistics.DIVERGED in value.note, statistics.TOO_FEW in value.note
    return not any(doubts) and not math.isnan(value.point)


def side(value: Interval, at: float) -> str:
    """Where the whole interval lies: above `at`, below, or open (contains it, or is not sound)."""
    if not sound(value):
        return OPEN
    return ABOVE if value.low > at else BELOW if value.high < at else OPEN


def short(value: Interval) -> str:
    """Only the point, for titles."""
    return f"{value.point:.2f}" if abs(value.point) < 10 else number(value.point)


def percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f} %"


def listed(items: Iterable[Any]) -> str:
    """1, 2 and 3"""
    names = [str(item) for item in items]
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]])) if names else "none"


def plural(n: int, one: str) -> str:
    """1 layer, 2 layers"""
    return f"{n:,} {one}" if n == 1 else f"{n:,} {one}s"


def ratio(scores: Mapping[str, Score], student: str, whole: str = "whole") -> Interval:
    """Perplexity of a student divided by that of another model in the same scores."""
    return statistics.ppl_ratio(scores[student], scores[whole])


def staged(names: Iterable[str]) -> list[str]:
    """The students that were healed in stages."""
    return sorted(n for n in names if n.startswith("staged") and n.endswith("healed"))


def counts(names: Iterable[str]) -> list[int]:
    """The numbers of layers fewer in these names, sorted: `3 fewer, healed` -> 3."""
    found = (re.search(r"(\d+) fewer", name) for name in names)
    return sorted({int(match[1]) for match in found if match})


def best(scores: Mapping[str, Score]) -> str:
    """The name with the lowest mean NLL, except `whole`; ties go to the first by name."""
    return statistics.ranked({name: scores[name] for name in natural(scores)})[0]


def over(scores: Mapping[str, Score], student: str, whole: str = "whole") -> str:
    """`ratio` as text: 1.062 [1.052, 1.073]"""
    return interval(ratio(scores, student, whole))


def adaptation(*ratios: Interval) -> str:
    """A note if one of the ratios lies below 1; otherwise empty."""
    return f" Note: {ADAPTATION}." if any(side(value, 1) == BELOW for value in ratios) else ""


def up(text: str) -> str:
    return text[:1].upper() + text[1:]


def paired(value: Interval) -> str:
    """An interval over test articles with its n."""
    return f"{interval(value)} (n = {value.n} test articles)"


def outcome(
    value: Interval,
    at: float,
    text: str,
    *,
    below: str,
    above: str,
    open: str,
    against: str = ABOVE,
) -> Finding:
    """The finding for the value's side of `at`; `against`: the side against the recipe."""
    if statistics.DIVERGED in value.note:
        return Finding("A run diverged, so this is not decided", text)
    found = side(value, at)
    title = {BELOW: below, ABOVE: above, OPEN: open}[found]
    return Finding(title, text, found == against)


def natural(names: Iterable[str]) -> list[str]:
    """Names in natural order: 9 before 10; whole, cut, refitted, healed first."""

    def key(name: str) -> tuple:
        place = STAGES.index(name) if name in STAGES else len(STAGES)
        return place, [
            (0, int(p), "") if p.isdigit() else (1, 0, p) for p in re.split(r"(\d+)", name)
        ]

    return sorted(names, key=key)
