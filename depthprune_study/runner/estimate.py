"""What a study will take: minutes and memory as they were measured, the disk, model downloads."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from depthprune_study import paths
from depthprune_study.runner import marks, prepare
from depthprune_study.runner.marks import Step


def lines(study: str, steps: Sequence[Step]) -> Iterator[str]:
    """One line a notebook, then the sum; what was never measured is said to be so."""
    measured = marks.expected(study)
    waiting = [step for step in steps if not step.done]
    yield f"study {study}: {len(steps)} notebooks, {len(waiting)} to run"
    for step in steps:
        cost = measured.get(step.notebook)
        about = f"about {marks.minutes(cost)}" if cost else "time not measured"
        memory = f", {cost['peak_bytes'] / 2**30:.1f} GiB" if cost and cost["peak_bytes"] else ""
        names = " ".join(
            str(step.parameters[k]) for k in ("model", "tokens") if k in step.parameters
        )
        yield f"  {step.notebook:<20} {'done' if step.done else about + memory:<26} {names}"
    yield from _sum(waiting, measured)


def _sum(waiting: Sequence[Step], measured: dict) -> Iterator[str]:
    costs = [measured[step.notebook] for step in waiting if step.notebook in measured]
    if costs:
        seconds = sum(cost["seconds"] for cost in costs)
        partly = len(costs) < len(waiting) or any(cost.get("resumed") for cost in costs)
        time_ = marks.minutes({"seconds": seconds, "resumed": partly})
        memory = max(cost["peak_bytes"] for cost in costs) / 2**30
        yield f"  in all: {time_}, {memory:.1f} GiB of memory, measured on two CPU cores"
    if waiting:
        kept = max((cost.get("disk_bytes", 0) for cost in measured.values()), default=0) / 2**30
        fetched = prepare.download_bytes({s.notebook: s.parameters for s in waiting}) / 2**30
        runs = f"{kept:.1f} GiB for the run, measured" if kept else "the run's size not measured"
        free = shutil.disk_usage(_existing(paths.home())).free / 2**30
        yield f"  disk: {runs}; about {fetched:.1f} GiB of models at most; {free:.0f} GiB are free"


def _existing(path: Path) -> Path:
    return next(folder for folder in (path, *path.parents) if folder.exists())
