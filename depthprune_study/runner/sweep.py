"""A sweep: one notebook run per cell of a grid, in parallel, on this machine or with Parsl."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import multiprocessing
import os
import runpy
import sys
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from depthprune_core import storage
from depthprune_study import parameters, paths
from depthprune_study.errors import StudyError
from depthprune_study.runner import chain, prepare

SENT = ("DEPTHPRUNE_", "GOMP_", "OMP_")  # variables that workers get


@dataclass(frozen=True)
class Cell:
    """One point of the grid: a study of one notebook, in its own folder."""

    study: str
    notebook: str
    values: dict[str, Any]
    words: str  # what varies

    @property
    def done(self) -> bool:
        """Whether it has run, here or on a worker with the same code, versions and runs/."""
        return chain.plan(self.study, {self.notebook: self.values})[0].done


@dataclass(frozen=True)
class Sweep:
    """The content of a sweep file."""

    name: str
    cells: tuple[Cell, ...]


def read(path: Path) -> Sweep:
    """Read a sweep file. Raises StudyError with every problem, before anything runs."""
    wrong, given = parameters.read_yaml(path)
    kinds = {"name": str, "notebook": str, "vary": dict, "same": dict}
    if not wrong:
        wrong = [f"{k} is missing" for k in kinds if not isinstance(given.get(k), kinds[k])]
    if not wrong:
        names = [*given["vary"], *given["same"]]
        wrong += [f"{name!r} is no parameter's name" for name in names if not isinstance(name, str)]
        lists = {
            k: value for k, value in given["vary"].items() if isinstance(value, list) and value
        }
        wrong += [
            f"vary.{name} must be a list of values" for name in given["vary"] if name not in lists
        ]
        both = lists.keys() & given["same"].keys()
        wrong += [f"{name} must be in vary or in same, not in both" for name in both]
    if wrong:
        raise StudyError("\n".join(f"{problem} ({path})" for problem in wrong))
    cells, name, notebook = [], given["name"], given["notebook"]
    for point in product(*lists.values()):
        varying = dict(zip(lists, point, strict=True))
        values = parameters.checked(notebook, prepare.absolute(given["same"] | varying))
        content = json.dumps([notebook, values], sort_keys=True).encode()
        study = f"{parameters.SWEEP}{name}-{hashlib.sha256(content).hexdigest()[:8]}"
        words = ", ".join(f"{name}={value}" for name, value in varying.items())
        checked = parameters.checked(notebook, values | {"study": study})
        cells.append(Cell(study, notebook, checked, words))
    return Sweep(name, tuple(cells))


def run(sweep: Sweep, pool: Executor, *, say: Callable[[str], None]) -> list[str]:
    """Run unfinished cells; returns a sentence for each failed cell. The others continue."""
    todo = [cell for cell in sweep.cells if not cell.done]
    say(f"sweep {sweep.name}: {len(sweep.cells)} cells, {len(todo)} to run")
    moved = {name: value for name, value in os.environ.items() if name.startswith(SENT)}
    failed = []
    try:
        futures = {pool.submit(run_cell, c.study, c.notebook, c.values, moved): c for c in todo}
        for n, future in enumerate(as_completed(futures), start=1):
            cell, outcome = futures[future], "done"
            try:
                future.result()
                if not cell.done:
                    raise StudyError("no results found: workers must share runs/, code, versions")
            except Exception as error:  # the cell failed, or its worker was lost
                outcome = f"failed ({(str(error).strip() or type(error).__name__).splitlines()[0]})"
                failed.append(f"{cell.words}: {outcome}")
            say(f"{n} of {len(todo)}: {cell.words}: {outcome}")
    finally:
        pool.shutdown(cancel_futures=isinstance(pool, ProcessPoolExecutor))
    return failed


def run_cell(study: str, notebook: str, values: dict[str, Any], moved: dict[str, str]) -> None:
    """Run one cell in a worker process. Raises StudyError with the reason."""
    os.environ.update(moved)
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        chain.run(study, given={notebook: values}, say=lambda line: None, terminal=nowhere)


def pool(workers: int = 0, site: Path | None = None) -> Executor:
    """Workers on this machine, one per GPU (or one), or the workers of a Parsl site file."""
    if site is not None:
        return _parsl_pool(site)
    import torch

    context = multiprocessing.get_context("spawn")
    n_gpus = torch.cuda.device_count()
    seen = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(n_gpus)))
    workers, gpus = workers or n_gpus or 1, context.Queue()
    for worker in range(workers if n_gpus else 0):
        gpus.put(seen.split(",")[worker % n_gpus])
    given = {"initializer": _take_gpu, "initargs": (gpus,)} if n_gpus else {}
    return ProcessPoolExecutor(workers, mp_context=context, **given)


def _take_gpu(gpus: multiprocessing.Queue) -> None:
    """Let a worker's kernels see one GPU."""
    os.environ["CUDA_VISIBLE_DEVICES"] = gpus.get()


def _parsl_pool(site: Path) -> Executor:
    try:
        from parsl.concurrent import ParslPoolExecutor

        config = runpy.run_path(str(site))["config"]()
    except Exception as error:  # a missing package or cluster raises many kinds of errors
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise StudyError(f"config() in {site} must return a parsl.Config ({reason})") from None
    config.run_dir = str(paths.runs(".parsl"))  # its logs; by default in the current folder
    # Parsl starts its scripts by name, even if the environment is not activated.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return ParslPoolExecutor(config=config)


def gather(sweep: Sweep) -> Path:
    """Parameters and results of all finished cells, as one CSV table."""
    rows = [cell.values | _results(cell) for cell in sweep.cells if cell.done]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    written = io.StringIO()
    table = csv.DictWriter(written, columns, lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    target = paths.runs(f"{parameters.SWEEP}{sweep.name}") / "table.csv"
    return storage.write_atomically(target, written.getvalue())


def _results(cell: Cell) -> dict[str, Any]:
    """The notebook's record `cell`, else the perplexities of its `validation` scores."""
    folder = paths.runs(cell.study) / "records" / cell.notebook
    if (folder / "cell.json").is_file():
        return dict(storage.read(folder / "cell.json").values)
    scores = storage.read(folder / "validation.json")
    return {f"{name}: ppl": score.ppl for name, score in scores.items()}
