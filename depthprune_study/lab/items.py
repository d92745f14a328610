"""Probe items made from templates, numbers and passages; deterministic for a seed."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from depthprune_core.text import Document
from depthprune_study.errors import StudyError
from depthprune_study.results.statistics import CHANCE

PASSAGE_WORDS = (30, 80)  # words before the word to predict
N_CHOICES = 4


@dataclass(frozen=True)
class Item:
    """One question; a candidate, which begins with a space, is appended to the context."""

    family: str
    context: str
    candidates: tuple[str, ...]
    right: int  # index of the right candidate


def make_items(
    n_items: int, passages: Mapping[str, Sequence[Document]], *, seed: int = 0
) -> list[Item]:
    """At least `n_items`, in equal shares by family, in one fixed order.

    `passages`: documents for the families `articles` and `news`. If a text gives too few items,
    the template families give more.

    Raises StudyError for less than one item per family.
    """
    if n_items < len(CHANCE):
        raise StudyError(f"n_items must be at least {len(CHANCE)}, one per family, not {n_items}")
    draw = random.Random(seed)
    share = -(-n_items // (len(_TEMPLATES) + len(passages)))
    asked = []
    for family, documents in passages.items():
        found = list(_cloze(family, documents, draw))
        asked += draw.sample(found, min(share, len(found)))
    share = -(-(n_items - len(asked)) // len(_TEMPLATES))
    made: list[Item] = []
    for family, template in _TEMPLATES.items():
        seen: dict[tuple, Item] = {}
        for _ in range(100 * share):
            context, right, wrong = template(draw)
            seen.setdefault((context, right), _shuffled(family, context, right, wrong, draw))
            if len(seen) == share:
                break
        made += seen.values()
    return made + asked


def _shuffled(
    family: str, context: str, right: str, wrong: Sequence[str], draw: random.Random
) -> Item:
    candidates = [f" {word}" for word in (right, *wrong)]
    draw.shuffle(candidates)
    return Item(family, context, tuple(candidates), candidates.index(f" {right}"))


# ---------------------------------------------------------------- templates

_NOUNS = (
    *("author", "teacher", "farmer", "doctor", "driver", "pilot", "senator", "singer", "guard"),
    *("painter", "student", "officer", "customer", "worker", "manager", "neighbor", "king"),
    *("key", "picture", "letter", "report", "car", "tree", "house", "river", "book", "table"),
)
_LINKS = ("near", "behind", "next to", "with", "beside", "in front of")
_VERBS = (("is", "are"), ("was", "were"), ("has", "have"))
_OPENINGS = ("", "Everyone knows that ", "It was clear that ", "We heard that ", "At noon ")
_WORDS = (
    *("red", "stone", "lamp", "river", "paper", "seven", "cloud", "house", "green", "silver"),
    *("apple", "chair", "winter", "garden", "music", "copper", "bridge", "window", "black", "tree"),
    *("bread", "horse", "north", "island", "glass", "summer", "letter", "king", "yellow", "road"),
)
_PEOPLE = ("Anna", "Tom", "Mary", "Peter", "Laura", "David", "Sarah", "John", "Emma", "Paul")
_THINGS = ("hat", "coat", "car", "house", "bag", "boat", "book", "cup", "door", "bike")
_COLOURS = ("red", "blue", "green", "white", "black", "yellow", "brown", "grey")
_TOWNS = ("Paris", "London", "Rome", "Berlin", "Madrid", "Vienna", "Boston", "Chicago", "Moscow")

_Question = tuple[str, str, Sequence[str]]  # context, right candidate, wrong ones


def _agreement(draw: random.Random) -> _Question:
    """The verb agrees with the first noun; a noun of the other number stands between."""
    first, second = draw.sample(_NOUNS, 2)
    singular, plural = draw.choice(_VERBS)
    many = draw.random() < 0.5
    subject, other = (f"{first}s", second) if many else (first, f"{second}s")
    opening = draw.choice(_OPENINGS)
    the = "the" if opening else "The"
    context = f"{opening}{the} {subject} {draw.choice(_LINKS)} the {other}"
    return (context, plural, [singular]) if many else (context, singular, [plural])


def _copying(draw: random.Random) -> _Question:
    """A row of words, then its beginning again; predict the next word."""
    words = draw.sample(_WORDS, 8)
    at = draw.randint(2, 6)
    wrong = draw.sample([word for word in words if word != words[at]], N_CHOICES - 1)
    row, again = " ".join(words), " ".join(words[:at])
    return f"{row}. {row}. {again}", words[at], wrong


def _recall(draw: random.Random) -> _Question:
    """A fact that the context states, among others of its kind."""
    people = draw.sample(_PEOPLE, N_CHOICES)
    about = draw.randrange(N_CHOICES)
    if draw.random() < 0.5:
        facts = draw.sample(_TOWNS, N_CHOICES)
        said = [f"{person} lives in {town}." for person, town in zip(people, facts, strict=True)]
        question = f"{people[about]} lives in"
    else:
        facts, thing = draw.sample(_COLOURS, N_CHOICES), draw.choice(_THINGS)
        said = [
            f"The {thing} of {person} is {colour}."
            for person, colour in zip(people, facts, strict=True)
        ]
        question = f"The {thing} of {people[about]} is"
    wrong = [fact for fact in facts if fact != facts[about]]
    return f"{' '.join(said)} {question}", facts[about], wrong


def _arithmetic(draw: random.Random) -> _Question:
    """A sum or a difference below 20, after three solved examples."""

    def task() -> tuple[str, int]:
        a, b = draw.randint(1, 9), draw.randint(1, 9)
        return (f"{a} + {b} =", a + b) if draw.random() < 0.5 else (f"{a + b} - {b} =", a)

    solved = " ".join(f"{question} {result}." for question, result in (task() for _ in range(3)))
    question, result = task()
    near = [result + step for step in (-3, -2, -1, 1, 2, 3) if result + step >= 0]
    return f"{solved} {question}", str(result), [str(n) for n in draw.sample(near, N_CHOICES - 1)]


_TEMPLATES: dict[str, Callable[[random.Random], _Question]] = {
    "agreement": _agreement,
    "copying": _copying,
    "recall": _recall,
    "arithmetic": _arithmetic,
}


# ---------------------------------------------------------------- passages


def _cloze(family: str, documents: Sequence[Document], draw: random.Random) -> Iterator[Item]:
    """Predict a sentence's last word, which its passage used before; three words of it are wrong.

    As in LAMBADA (Paperno et al. 2016, arXiv:1606.06031), but with candidates.
    """
    for document in documents:
        for *before, last in _passages(document):
            word = last.rstrip(".!?")
            used = {
                plain for w in before if len(plain := re.sub(r"\W", "", w)) >= 4 and plain.isalpha()
            }
            others = sorted(w for w in used if w[0].isupper() == word[:1].isupper() and w != word)
            if word in used and len(others) >= N_CHOICES - 1:
                wrong = draw.sample(others, N_CHOICES - 1)
                yield _shuffled(family, " ".join(before), word, wrong, draw)


def _passages(document: Document) -> Iterator[list[str]]:
    """The words up to the end of each sentence with enough words before it."""
    words = document.text.split()
    shortest, longest = PASSAGE_WORDS
    for end, word in enumerate(words, start=1):
        if word.endswith((".", "!", "?")) and end > shortest:
            yield words[max(0, end - longest - 1) : end]
