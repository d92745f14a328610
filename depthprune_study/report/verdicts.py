"""Five words for a claim, the rules behind them, and which model may decide."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from depthprune_study.report import wording as w
from depthprune_study.report.evidence import Evidence
from depthprune_study.results.statistics import Interval

HOLDS, FAILS, OPEN = "holds", "fails", "open"
NOT_TESTED, BY_ARITHMETIC = "not tested here", "by arithmetic"


@dataclass(frozen=True)
class Reading:
    """What one model shows of a claim."""

    model: str
    word: str
    figure: str  # the number that decides, short
    notebook: str  # that made it
    detail: str = ""


@dataclass(frozen=True)
class Verdict:
    """A row of the claims table."""

    id: str
    word: str
    figure: str
    model: str  # on which it was decided
    notebook: str
    notes: tuple[str, ...]  # whose weights, the other cost, how it reads beside the source
    others: tuple[Reading, ...]  # what other models show; they decide nothing


Measure = Callable[[Evidence, dict], "Iterable[Reading]"]
MEASURES: dict[str, tuple[str, Measure]] = {}


def claim(name: str, notebook: str) -> Callable[[Measure], Measure]:
    """Registers how a claim of params/claims.yaml is read, and the notebook that would test it."""

    def register(measure: Measure) -> Measure:
        MEASURES[name] = (notebook, measure)
        return measure

    return register


def tally(verdicts: Sequence[Verdict]) -> str:
    """How many claims hold, of those that an experiment decided; the rest apart."""
    n = Counter(v.word for v in verdicts)
    decided = n[HOLDS] + n[FAILS]
    told = f"Of {len(verdicts)} claims, experiments decided {decided}"
    told += f": {n[HOLDS]} hold and {n[FAILS]} fail" if decided else ""
    return (
        f"{told}. {n[OPEN]} open, {n[NOT_TESTED]} not tested here,"
        f" {n[BY_ARITHMETIC]} by arithmetic."
    )


def together(words: Sequence[str]) -> str:
    """One word where all say it, else open."""
    return words[0] if len(set(words)) == 1 else OPEN


def both(words: Sequence[str]) -> str:
    """Of a claim in parts: one that fails is enough to fail, and all must hold."""
    return FAILS if FAILS in words else HOLDS if set(words) == {HOLDS} else OPEN


def at_most(value: Interval, threshold: float) -> str:
    """Holds if the whole interval is at or below the threshold, fails if all of it is above."""
    if not w.sound(value):
        return OPEN
    return HOLDS if value.high <= threshold else FAILS if value.low > threshold else OPEN


def at_least(value: Interval, threshold: float) -> str:
    """The mirror image of `at_most`."""
    if not w.sound(value):
        return OPEN
    return HOLDS if value.low >= threshold else FAILS if value.high < threshold else OPEN


def within(value: Interval, low: float, high: float) -> str:
    """Holds if the interval lies inside; fails if it lies outside, on the better side too."""
    outside = w.side(value, high) == w.ABOVE or w.side(value, low) == w.BELOW
    inside = at_least(value, low) == HOLDS and at_most(value, high) == HOLDS
    return FAILS if outside else HOLDS if inside else OPEN
