"""The five verdicts of a claim and the rules behind them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from depthprune_study.report import wording as w
from depthprune_study.report.evidence import Evidence
from depthprune_study.results.statistics import Interval

HOLDS, FAILS, OPEN = "holds", "fails", "open"
NOT_TESTED, BY_ARITHMETIC = "not tested here", "by arithmetic"
WORDS = (HOLDS, FAILS, OPEN, NOT_TESTED, BY_ARITHMETIC)


@dataclass(frozen=True)
class Reading:
    """The result of one model for a claim."""

    model: str
    word: str
    figure: str  # the deciding number, short
    notebook: str  # its source
    detail: str = ""


@dataclass(frozen=True)
class Verdict:
    """A row of the claims table."""

    id: str
    word: str
    figure: str
    model: str  # the deciding model
    notebook: str
    notes: tuple[str, ...]  # whose weights, the other cost, comparison with the source


Measure = Callable[[Evidence, dict], "Iterable[Reading]"]
MEASURES: dict[str, tuple[str, Measure]] = {}


def claim(name: str, notebook: str) -> Callable[[Measure], Measure]:
    """Registers the measure of a claim of params/claims.yaml and the notebook that tests it."""

    def register(measure: Measure) -> Measure:
        MEASURES[name] = (notebook, measure)
        return measure

    return register


def tally(verdicts: Sequence[Verdict]) -> str:
    """How many of the decided claims hold, then the counts of the other verdicts."""
    n = Counter(v.word for v in verdicts)
    decided = n[HOLDS] + n[FAILS]
    return (
        f"Of {decided} decided claims, {n[HOLDS]} {'holds' if n[HOLDS] == 1 else 'hold'}. Of all"
        f" {len(verdicts)}, {n[OPEN]} {'is' if n[OPEN] == 1 else 'are'} open, {n[NOT_TESTED]}"
        f" {'was' if n[NOT_TESTED] == 1 else 'were'} not tested here, and {n[BY_ARITHMETIC]}"
        f" {'is' if n[BY_ARITHMETIC] == 1 else 'are'} true by arithmetic."
    )


def together(words: Sequence[str]) -> str:
    """The word if all are equal, else open."""
    return words[0] if len(set(words)) == 1 else OPEN


def both(words: Sequence[str]) -> str:
    """The verdict of a claim with parts: one failure fails it, and it holds if all parts hold."""
    return FAILS if FAILS in words else HOLDS if set(words) == {HOLDS} else OPEN


def at_most(value: Interval, threshold: float) -> str:
    """Holds if the whole interval is at or below the threshold, fails if all of it is above."""
    if not w.sound(value):
        return OPEN
    return HOLDS if value.high <= threshold else FAILS if value.low > threshold else OPEN


def at_least(value: Interval, threshold: float) -> str:
    """Holds if the whole interval is at or above the threshold, fails if all of it is below."""
    if not w.sound(value):
        return OPEN
    return HOLDS if value.low >= threshold else FAILS if value.high < threshold else OPEN


def within(value: Interval, low: float, high: float) -> str:
    """Holds if the interval lies inside; fails if it lies outside, even on the better side."""
    outside = w.side(value, high) == w.ABOVE or w.side(value, low) == w.BELOW
    inside = at_least(value, low) == HOLDS and at_most(value, high) == HOLDS
    return FAILS if outside else HOLDS if inside else OPEN
