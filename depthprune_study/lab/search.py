"""Chooses recipes on validation articles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from depthprune_core import storage
from depthprune_core.records import Divergence, Plan, Recipe, Score
from depthprune_study import paths
from depthprune_study.errors import StudyError
from depthprune_study.lab import scoring, students
from depthprune_study.lab.devices import whole_windows

if TYPE_CHECKING:
    from depthprune_study.lab.workspace import Workspace

Trial = tuple[Score, Divergence | None]
NOT_IN_FILE = ("tokens", "seed", "precision")  # the notebook's, or the machine's
REFIT_TOKENS = 102_400  # written for a recipe whose trial was refitted on as much as it healed on


def best_rate(
    lab: Workspace,
    name: str,
    plan: Plan | None,
    recipe: Recipe,
    lrs: Sequence[float],
    *,
    tokens: int,
    start: students.Student | None = None,
) -> tuple[Recipe, dict[str, Trial]]:
    """The recipe with the best of these learning rates, and each trial as "name, lr rate".

    Best is the lowest KL to the whole model, or for a recipe without KL the lowest loss. A single
    rate needs no trial.
    A plan that drops no layer gives the whole model, a control with equally many trials.
    """
    options = {f"{name}, lr {lr:g}": recipe.but(lr=lr) for lr in lrs}
    if len(options) == 1:
        return next(iter(options.values())), {}
    trials = {
        label: trial(lab, label, plan, option.but(tokens=tokens), start=start)
        for label, option in options.items()
    }
    return options[best(trials)], trials


def one_factor_at_a_time(
    lab: Workspace,
    plan: Plan,
    base: Recipe,
    factors: Mapping[str, Sequence[Any]],
    *,
    tokens: int,
) -> tuple[Recipe, dict[str, Trial]]:
    """The best recipe, and all trials; each factor keeps the level closest to the whole model.

    The search starts from `base` with the first level of every factor.
    factors: a field of Recipe -> its levels. The earlier level wins a tie. Equal recipes are tried
    once.
    """
    kept, found = base, {}
    for factor, levels in factors.items():
        for level in levels:
            if not _but(base, factor, level).kl:
                name = f"{factor}: {label_of(level)}"
                raise StudyError(f"factors: {name!r} trains without KL, which chooses here")
        kept = _but(kept, factor, levels[0])
    for factor, levels in factors.items():
        options = {f"{factor}: {label_of(level)}": _but(kept, factor, level) for level in levels}
        tried = {
            name: trial(lab, name, plan, option.but(tokens=tokens))
            for name, option in options.items()
        }
        found |= tried
        kept = options[best(tried)]
    return kept, found


def trial(
    lab: Workspace,
    name: str,
    plan: Plan | None,
    recipe: Recipe,
    *,
    start: students.Student | None = None,
) -> Trial:
    """A student healed with the recipe, on the validation articles; its weights are not kept.

    The distance is None for a recipe without KL.
    """
    if lab.tests_read:
        raise StudyError(f"{name}: the test articles were already read; make choices before that")
    student = students.recover(lab, name, plan, recipe, start=start, keep_weights=False)
    score = scoring.scores(lab, {name: student}, scoring.validation_windows(lab))[name]
    return score, scoring.distances(lab, {name: student})[name] if recipe.kl else None


def saved(
    lab: Workspace, trials: Mapping[str, Trial]
) -> tuple[dict[str, Score], dict[str, Divergence]]:
    """The trials as two records: `trials`, and `distances` of those that learn from KL.

    A diverged trial has no distance. An empty record is not written.
    """
    scores = {name: score for name, (score, _) in trials.items()}
    known = {name: d for name, (score, d) in trials.items() if d and not score.diverged}
    named = {"trials": scores, "distances": known}
    return tuple(lab.save(name, of) if of else {} for name, of in named.items())


def best(trials: Mapping[str, Trial]) -> str:
    """The trial with the lowest KL, or without one the lowest mean NLL; the earlier wins a tie.

    Raises StudyError if all diverged.
    """
    sound = {name: found for name, found in trials.items() if not found[0].diverged}
    if not sound:
        raise StudyError(f"every trial diverged ({', '.join(trials)}): use lower learning rates")

    def loss(name: str) -> float:
        score, distance = sound[name]
        return score.mean_nll_nats if distance is None else distance.mean_kl_nats

    return min(sound, key=loss)


def write_recipe(recipe: Recipe, path: Path | None = None, *, because: str) -> None:
    """Write a recipe to the YAML file that every notebook reads. `because`: a comment.

    A trial has less text than a run. If it was refitted on as many tokens as it healed on, the file
    gets REFIT_TOKENS.
    """
    values = {name: v for name, v in asdict(recipe).items() if name not in NOT_IN_FILE}
    if recipe.refit_tokens == recipe.tokens:
        values["refit_tokens"] = REFIT_TOKENS
    head = "".join(f"# {line}\n" for line in because.splitlines())
    text = head + yaml.safe_dump(values | {"precision": "auto"}, sort_keys=False)
    storage.write_atomically(path or paths.params() / "recipe.yaml", text)


def label_of(level: Any) -> str:
    """The text of a level in the name of its trial."""
    return f"{level:g}" if isinstance(level, float) else str(level)


def _but(recipe: Recipe, factor: str, level: Any) -> Recipe:
    """The changed recipe; a step has whole windows."""
    values = {"batch_tokens": recipe.batch_tokens, "seq_len": recipe.seq_len, factor: level}
    values["batch_tokens"] = whole_windows(values["batch_tokens"], values["seq_len"])
    return recipe.but(**values)
