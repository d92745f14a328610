"""How findings, tables and verdicts put numbers into words. Every number comes from a record."""

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
    """What was found: a title for the figure, and sentences with numbers, intervals and n."""

    title: str  # at most 75 characters
    text: str
    against: bool = False  # it speaks against the recipe, or for something plainer

    def __post_init__(self) -> None:
        if len(self.title) > LONGEST_TITLE:
            cut = self.title[: LONGEST_TITLE - 1].rsplit(" ", 1)[0].rstrip(" ,;:")
            object.__setattr__(self, "title", f"{cut}…")


def sound(value: Interval) -> bool:
    """Whether it can decide anything: it is a number, and no run behind it diverged."""
    return statistics.DIVERGED not in value.note and not math.isnan(value.point)


def side(value: Interval, at: float) -> str:
    """Where the whole interval lies: above, below, or open (it straddles, or is not sound)."""
    if not sound(value):
        return OPEN
    return ABOVE if value.low > at else BELOW if value.high < at else OPEN


def short(value: Interval) -> str:
    """The point alone, for titles."""
    return f"{value.point:.2f}" if abs(value.point) < 10 else number(value.point)


def percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f} %"


def listed(items: Iterable[Any], last: str = "and") -> str:
    """1, 2 and 3"""
    names = [str(item) for item in items]
    return f" {last} ".join(filter(None, [", ".join(names[:-1]), names[-1]])) if names else "none"


def plural(n: int, one: str) -> str:
    """1 layer, 2 layers"""
    return f"{n:,} {one}" if n == 1 else f"{n:,} {one}s"


def ratio(scores: Mapping[str, Score], student: str, whole: str = "whole") -> Interval:
    """Perplexity of a student over that of another model of the same scores."""
    return statistics.ppl_ratio(scores[student], scores[whole])


def average(scores: Mapping[str, Score], start: str) -> Score | None:
    """The mean over seeds of `start` itself and of `start, seed s`; None where there is neither."""
    found = [s for name, s in scores.items() if name == start or name.startswith(f"{start}, seed")]
    return statistics.mean_score(found) if found else None


def staged(names: Iterable[str]) -> list[str]:
    """The students that were healed in stages."""
    return sorted(n for n in names if n.startswith("staged") and n.endswith("healed"))


def counts(names: Iterable[str]) -> list[int]:
    """How many layers fewer the names tell of, in order: `3 fewer, healed` -> 3."""
    found = (re.search(r"(\d+) fewer", name) for name in names)
    return sorted({int(match[1]) for match in found if match})


def best(scores: Mapping[str, Score]) -> str:
    """The name of the lowest mean NLL, `whole` apart; of equal ones the first by name."""
    names = (name for name in natural(scores) if name != "whole")
    return min(names, key=lambda name: scores[name].mean_nll_nats)


def over(scores: Mapping[str, Score], student: str, whole: str = "whole") -> str:
    """`ratio` in words: 1.062 [1.052, 1.073]"""
    return interval(ratio(scores, student, whole))


def adaptation(*ratios: Interval) -> str:
    """A note where one of the ratios lies below 1; else nothing."""
    return f" Note: {ADAPTATION}." if any(side(value, 1) == BELOW for value in ratios) else ""


def up(text: str) -> str:
    return text[:1].upper() + text[1:]


def paired(value: Interval, unit: str = "test articles") -> str:
    """An interval with its n."""
    return f"{interval(value)} (n = {value.n} {unit})"


def outcome(
    found: str, text: str, *, below: str, above: str, open: str, against: str = ABOVE
) -> Finding:
    """The finding of the side that was found; `against`: the side that is against the recipe."""
    title = {BELOW: below, ABOVE: above, OPEN: open}[found]
    return Finding(title, text, found == against)


def natural(names: Iterable[str]) -> list[str]:
    """In the order in which a reader counts: 9 before 10; whole, cut, refitted, healed first."""

    def key(name: str) -> tuple:
        place = STAGES.index(name) if name in STAGES else len(STAGES)
        return place, [
            (0, int(p), "") if p.isdigit() else (1, 0, p) for p in re.split(r"(\d+)", name)
        ]

    return sorted(names, key=key)
