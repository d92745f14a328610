"""Runs a study's notebooks in order; finished and unchanged notebooks are skipped."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

from depthprune_core import storage
from depthprune_study import locks, numerics, parameters, paths, provenance
from depthprune_study.errors import StudyError
from depthprune_study.runner import execute, marks, prepare
from depthprune_study.runner.marks import Step, hash_of

DRAWING = ("matplotlib", "seaborn")
KEPT = (  # files of a report that a resumed run needs
    *("records/**/*.json", "measured/*.json", "students/*.json"),
    *("notebooks/*.ipynb", "figures/*", "done/*.json", "costs.json"),
)
Say = Callable[[str], None]


def plan(study: str, given: Mapping[str, dict[str, Any]] | None = None) -> list[Step]:
    """The steps of a study, in order. `given`: parameters that replace the study's files.

    Raises StudyError with every problem of parameters or notebooks.
    """
    return list(_steps(study, given))


def _steps(study: str, given: Mapping[str, dict[str, Any]] | None) -> Iterator[Step]:
    """Each step in its state at the time it is requested: earlier steps may change records."""
    steps: dict[str, Step] = {}
    for notebook, values in (given or parameters.of_study(study)).items():
        absolute = prepare.absolute(values)
        earlier = [steps[name].key for name in parameters.reads(notebook) if name in steps]
        key = _key(notebook, absolute, earlier)
        steps[notebook] = Step(study, notebook, absolute, key, marks.is_done(study, notebook, key))
        yield steps[notebook]


def run(
    study: str,
    *,
    say: Say,
    given: Mapping[str, dict[str, Any]] | None = None,
    terminal: TextIO = sys.stderr,
) -> list[Step]:
    """Run unfinished steps; returns all steps, which are then done.

    Raises StudyError if a notebook fails; finished notebooks stay finished.
    """
    steps = plan(study, given)
    with alone(study, say):
        if not all(step.done for step in steps):
            numerics.settle()
            prepare.fetch({s.notebook: s.parameters for s in steps}, say)
        finished = []
        for step in _steps(study, given):
            finished.append(replace(step, done=True))
            if step.done:
                say(f"{step.notebook}: done already")
                continue
            cost = marks.expected(study).get(step.notebook)
            say(f"{step.notebook}: running{f', {marks.minutes(cost)}' if cost else ''}")
            seconds = _execute(step, terminal)
            say(f"{step.notebook}: done in {seconds:.0f} s")
    return finished


def kept(study: str) -> str:
    """What remains of a run that was just stopped."""
    try:
        done = [step.notebook for step in plan(study) if step.done]
    except ValueError:
        return "no notebook was run"
    which = f"{', '.join(done)} done" if done else "no notebook is finished"
    return f"{which}; partial results of the others are kept; `depthprune run {study}` resumes"


def restore(study: str, source: Path) -> int:
    """Copy a report into the study's working folder without overwriting; returns the file count.

    Everything is checked again. A notebook counts as done if its key and files still agree, and a
    partial result is reused if its stamp is still valid.
    """
    parameters.notebooks_of(study)
    files = [path for pattern in KEPT for path in sorted(source.glob(pattern))]
    if not any(path.suffix == ".json" for path in files):
        raise StudyError(
            f"{source} contains no records of a study: name a folder such as reports/{study}"
        )
    target = paths.runs(study)
    with alone(study):
        missing = [path for path in files if not (target / path.relative_to(source)).exists()]
        for path in missing:
            storage.write_atomically(target / path.relative_to(source), path.read_bytes())
    return len(missing)


def alone(study: str, say: Say = lambda line: None) -> AbstractContextManager[None]:
    """Lock a study's working folder. Raises StudyError if another process holds it."""
    return locks.alone(paths.runs(study), f"running or publishing study {study}", say)


def _key(notebook: str, values: dict[str, Any], earlier: list[str]) -> str:
    path = paths.notebooks() / f"{notebook}.ipynb"
    modules = provenance.imports(provenance.notebook_code(path))
    before = parameters.CHAIN[: parameters.CHAIN.index("09_recipe")]
    reads_recipe = notebook not in before and not values.get("writes_recipe")
    libraries = (*provenance.LIBRARIES, *DRAWING)
    content = {
        "notebook": provenance.notebook_hash(path, prose=True),
        "code": provenance.code_hash(*modules),
        "parameters": values,
        "inputs": prepare.contents(values),
        "recipe": hash_of(paths.params() / "recipe.yaml") if reads_recipe else "",
        "claims": hash_of(paths.params() / "claims.yaml") if notebook == "10_report" else "",
        "earlier": earlier,
        # A build (+cpu, +cu128) changes no key: a sweep's host and its workers may differ in it.
        "versions": {name: provenance.version(name).split("+")[0] for name in libraries},
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _execute(step: Step, terminal: TextIO) -> float:
    """Run the notebook, record its files and cost; returns the seconds it took."""
    folder, began = paths.runs(step.study), time.monotonic()
    target = marks.executed(step.study, step.notebook)
    records = folder / "records" / step.notebook
    goes_on = any(records.rglob("*.json")) or execute.partial(target).exists()
    shutil.rmtree(records, ignore_errors=True)  # the notebook writes them again
    for figure in (folder / "figures").glob(f"{step.notebook}-*"):
        figure.unlink()
    try:
        peak_bytes = execute.execute(
            paths.notebooks() / f"{step.notebook}.ipynb",
            target,
            step.parameters,
            log=folder / "logs" / f"{step.notebook}.log",
            terminal=terminal,
        )
    except StudyError as error:
        raise StudyError(f"{step.notebook} of study {step.study} stopped: {error}") from None
    marks.leave(step)
    seconds = time.monotonic() - began
    marks.remember_cost(step, seconds, peak_bytes, goes_on=goes_on)
    return seconds
