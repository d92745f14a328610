"""Choices among recipes and plans, on validation articles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from depthprune_core import storage
from depthprune_core.records import Plan, Recipe, Score
from depthprune_study import paths
from depthprune_study.errors import StudyError
from depthprune_study.lab import scored, students
from depthprune_study.lab.devices import whole_windows

if TYPE_CHECKING:
    from depthprune_study.lab.workspace import Workspace

NOT_IN_FILE = ("tokens", "seed", "precision")  # the notebook's, or the machine's


def best_rate(
    lab: Workspace,
    name: str,
    plan: Plan | None,
    recipe: Recipe,
    lrs: Sequence[float],
    *,
    tokens: int,
    start: students.Student | None = None,
) -> tuple[Recipe, dict[str, Score]]:
    """The recipe with the best of these learning rates, and each trial's score as "name, lr rate".

    A plan that drops nothing is the whole model, for a control with as many trials as its student.
    """
    trials = {}
    for lr in lrs:
        option = recipe.but(lr=lr, tokens=tokens)
        trials[f"{name}, lr {lr:g}"] = trial(lab, f"{name}, lr {lr:g}", plan, option, start=start)
    rates = {f"{name}, lr {lr:g}": lr for lr in lrs}
    return recipe.but(lr=rates[lowest(trials)]), trials


def one_factor_at_a_time(
    lab: Workspace,
    plan: Plan,
    base: Recipe,
    factors: Mapping[str, Sequence[Any]],
    *,
    tokens: int,
) -> tuple[Recipe, dict[str, Score]]:
    """The best recipe, each factor's best level kept while the next is tried; all trials' scores.

    factors: a field of Recipe -> its levels. A level may be a dict that changes several fields; its
    factor may then have any name. The earlier level wins a tie. A recipe is tried once.
    """
    best, found = base, {}
    for factor, levels in factors.items():
        changes = {label_of(level): _changes(factor, level) for level in levels}
        tried = {}
        for label, change in changes.items():
            name = f"{factor}: {label}"
            option = _but(best, change).but(tokens=tokens)
            tried[label] = found[name] = trial(lab, name, plan, option)
        best = _but(best, changes[lowest(tried)])
    return best, found


def trial(
    lab: Workspace,
    name: str,
    plan: Plan | None,
    recipe: Recipe,
    *,
    start: students.Student | None = None,
) -> Score:
    """The validation score of a student healed by the recipe, whose weights are not kept."""
    if lab.tests_read:
        raise StudyError(f"{name}: the test articles were read already; choices come before that")
    student = students.recover(lab, name, plan, recipe, start=start, keep_weights=False)
    return scored.score(lab, name, student, scored.validation_windows(lab))


def lowest(found: Mapping[str, Score]) -> str:
    """The trial with the lowest mean NLL, the earlier one of two that tie; none that diverged.

    Raises StudyError where all have.
    """
    sound = [name for name, score in found.items() if not score.diverged]
    if not sound:
        raise StudyError(f"every trial diverged ({', '.join(found)}): give lower learning rates")
    return min(sound, key=lambda name: found[name].mean_nll_nats)


def write_recipe(recipe: Recipe, path: Path | None = None, *, because: str) -> None:
    """Keep a recipe as the YAML file that every notebook reads. `because`: why this one."""
    lines = [f"# {line}" for line in because.splitlines()]
    for name, value in asdict(recipe).items():
        if name not in NOT_IN_FILE:
            lines.append(f"{name}: {_yaml(value)}")
    path = path or paths.params() / "recipe.yaml"
    storage.write_atomically(path, "\n".join([*lines, "precision: auto  # by device"]) + "\n")


def label_of(level: Any) -> str:
    """A level in words, as it stands in the name of its trial."""
    if isinstance(level, Mapping):
        return ", ".join(f"{name} {label_of(value)}" for name, value in level.items())
    return f"{level:g}" if isinstance(level, float) else str(level)


def _changes(factor: str, level: Any) -> dict[str, Any]:
    return dict(level) if isinstance(level, Mapping) else {factor: level}


def _but(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """The changed recipe, its step in whole windows."""
    values = {"batch_tokens": recipe.batch_tokens, "seq_len": recipe.seq_len, **changes}
    values["batch_tokens"] = whole_windows(values["batch_tokens"], values["seq_len"])
    return recipe.but(**values)


def _yaml(value: Any) -> str:
    """A number as PyYAML reads it back: 1e-4 without a point would be text."""
    if isinstance(value, float):
        text = f"{value:g}"
        return text if "." in text or "e" not in text else text.replace("e", ".0e")
    return str(value)
