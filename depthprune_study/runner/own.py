"""Runs notebooks/your_model.ipynb once, for one folder: `depthprune prune`."""

from __future__ import annotations

import hashlib
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from depthprune_core import storage
from depthprune_study import locks, parameters, paths
from depthprune_study.runner import execute, prepare

NOTEBOOK = "your_model"


def prune(
    model: str,
    *,
    out: Path,
    say: Callable[[str], None],
    terminal: TextIO = sys.stderr,
    **options: Any,
) -> str:
    """Drop layers from a named model, a local folder or a hub id; heal; write a plain model folder.

    out: the folder to write; it must not exist. The executed notebook is written there too.
    options: the parameters of the notebook, which says what they mean.

    Returns the result as a sentence. An interrupted run resumes from its last checkpoint when it is
    started again.

    Raises StudyError for invalid options before layers are chosen, or if the notebook fails.
    """
    out = Path(out).absolute()
    given = prepare.absolute({"model": model, **options}) | {"out": str(out)}
    study = f"{parameters.OWN}{out.name}-{hashlib.sha256(str(out).encode()).hexdigest()[:8]}"
    values = parameters.checked(NOTEBOOK, {**given, "study": study})
    folder, log = paths.runs(study), paths.runs(study) / "logs" / f"{NOTEBOOK}.log"
    executed = folder / "notebooks" / f"{NOTEBOOK}.ipynb"
    with locks.alone(folder, f"writing {out}", say):
        source = paths.notebooks() / executed.name
        execute.execute(source, executed, values, log=log, terminal=terminal)
        shutil.copy2(executed, out)
        said = storage.read(folder / "records" / NOTEBOOK / "made.json").values["said"]
    shutil.rmtree(folder)
    return said
