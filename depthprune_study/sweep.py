"""A sweep over a recipe, one factor at a time: each factor's best level is kept while the next is tried."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from depthprune_core.records import Score
from depthprune_study.settings import StudyError

Recipe = dict[str, Any]


def one_factor_at_a_time(
    base: Recipe, factors: Mapping[str, Mapping[str, Recipe]], run: Callable[[str, Recipe], Score]
) -> tuple[Recipe, dict[str, Score]]:
    """The best recipe, and the score of every trial by "factor: level".

    factors: name -> level -> what that level changes in the recipe. `run(name, recipe)` scores a recipe, under a name
    that can be a file's; one that comes again is not run again. The lowest mean NLL wins, the earlier level where two tie.
    """
    best, scores = dict(base), {}
    seen: list[tuple[Recipe, Score]] = []
    for factor, levels in factors.items():
        tried = {}
        for level, change in levels.items():
            recipe = {**best, **change}
            known = next((score for other, score in seen if other == recipe), None)
            score = known if known is not None else run(_as_file_name(f"{factor} {level}"), recipe)
            seen.append((recipe, score))
            tried[level] = score
            scores[f"{factor}: {level}"] = score
        best |= levels[lowest(tried)]
    return best, scores


def lowest(trials: Mapping[Any, Score]) -> Any:
    """The level with the lowest mean NLL, the earlier one where two tie; a trial that diverged never wins.

    Raises StudyError where all of them diverged.
    """
    finished = [level for level, score in trials.items() if not score.diverged]
    if not finished:
        raise StudyError(f"every trial diverged ({', '.join(map(str, trials))}): give lower learning rates")
    return min(finished, key=lambda level: trials[level].mean_nll_nats)


def _as_file_name(words: str) -> str:
    return re.sub(r"[^\w.]+", "-", words)
