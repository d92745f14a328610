"""Standard tasks with lm-eval (Gao et al., EleutherAI), with the model in memory."""

from __future__ import annotations

import io
import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers import PreTrainedModel

from depthprune_core.models import Teacher
from depthprune_core.records import Answers
from depthprune_study.errors import StudyError

if TYPE_CHECKING:
    from depthprune_study.lab.students import Student
    from depthprune_study.lab.workspace import Workspace

BATCH = 8  # items per pass
FOLDER = "lm-eval"  # below the run's folder: results in lm-eval's format, one folder per student


def harness(
    lab: Workspace, students: Mapping[str, Student | Teacher], tasks: Sequence[str]
) -> dict[str, Answers]:
    """Which items of each task a student gets right: {f"{name}: {task}": Answers}, record `tasks`.

    lm-eval's results and samples are kept below runs/<study>/lm-eval/<name>/.
    """
    found = {}
    for name, student in students.items():
        folder = Path(lab.folder) / FOLDER / name.replace("/", "-")
        for task, given in run(student.model, lab.teacher.tokenizer, tasks, folder=folder).items():
            found[f"{name}: {task}"] = given
    if found:
        lab.save("tasks", found)
    return found


def run(
    model: PreTrainedModel,
    tokenizer: Any,
    tasks: Sequence[str],
    *,
    folder: Path | None = None,
    include_path: Path | None = None,
) -> dict[str, Answers]:
    """Which items of each task the model gets right (`acc`), in the task's order.

    `folder`: for lm-eval's files; `include_path`: a folder with further task files.

    Raises StudyError for an unknown task, or a task whose items are not right or wrong.
    """
    import lm_eval  # late: it takes seconds, and few studies need it
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    with _quietly():
        manager = TaskManager(include_path=str(include_path) if include_path else None)
        if unknown := sorted(set(tasks) - set(manager.all_subtasks)):
            raise StudyError(f"names that match no lm-eval task: {', '.join(unknown)}")
        result = lm_eval.simple_evaluate(
            model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=BATCH),
            tasks=list(tasks),
            task_manager=manager,
            bootstrap_iters=0,
            log_samples=True,
            random_seed=None,
            numpy_random_seed=None,
            torch_random_seed=None,
        )
        samples = result.pop("samples")
        if folder is not None:
            tracker = EvaluationTracker(output_path=str(folder))
            tracker.save_results_aggregated(results=result, samples=samples)
            for task in tasks:
                tracker.save_results_samples(task_name=task, samples=samples[task])
    found = {}
    for task in tasks:
        items = sorted(samples[task], key=lambda sample: sample["doc_id"])
        if not items or any("acc" not in item for item in items):
            raise StudyError(f"task {task} has no metric acc, so its items are not right or wrong")
        found[task] = Answers(task, tuple(bool(item["acc"]) for item in items))
    return found


@contextmanager
def _quietly() -> Iterator[None]:
    """Hides lm-eval's log and bars, and restores the global random states."""
    states = random.getstate(), np.random.get_state()
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)
        random.setstate(states[0])
        np.random.set_state(states[1])
