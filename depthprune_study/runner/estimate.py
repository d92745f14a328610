"""What a study needs, from earlier measurements: minutes, memory, disk."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence

from depthprune_study import paths
from depthprune_study.runner import marks
from depthprune_study.runner.marks import Step


def lines(study: str, steps: Sequence[Step]) -> Iterator[str]:
    """One line per notebook, then the total; missing measurements are marked."""
    measured = marks.expected(study)
    waiting = [step for step in steps if not step.done]
    yield f"study {study}: {len(steps)} notebooks, {len(waiting)} to run"
    for step in steps:
        cost = measured.get(step.notebook)
        about = marks.minutes(cost) if cost else "time not measured"
        names = [str(step.parameters.get(name, "")) for name in ("model", "tokens")]
        yield f"  {step.notebook:<20} {'done' if step.done else about:<20} {' '.join(names)}"
    if not waiting:
        return
    costs = [measured[step.notebook] for step in waiting if step.notebook in measured]
    if costs:
        seconds = sum(cost["seconds"] for cost in costs)
        partly = len(costs) < len(waiting) or any(cost.get("resumed") for cost in costs)
        memory, disk = (
            max(c.get(n, 0) for c in costs) / 2**30 for n in ("peak_bytes", "disk_bytes")
        )
        in_all = marks.minutes({"seconds": seconds, "resumed": partly})
        yield f"  in all: {in_all}, {memory:.1f} GiB of memory, {disk:.1f} GiB of disk, as measured"
    home = next(f for f in (paths.home(), *paths.home().parents) if f.exists())
    yield f"  {shutil.disk_usage(home).free / 2**30:.0f} GiB of disk are free"
