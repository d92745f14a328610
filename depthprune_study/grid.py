"""A sweep: one papermill notebook a cell of a grid, many at once, through any `concurrent.futures.Executor`."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import queue
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from depthprune_core.records import write_atomically
from depthprune_study import places, run, settings
from depthprune_study.settings import StudyError, Sweep

CELL, TABLE = "sweeps/cell", "sweeps/table"


@dataclass(frozen=True)
class Cell:
    """One cell: its folder under runs/, what it is in words, and its checked parameters."""

    folder: str
    words: str
    parameters: settings.Common

    @property
    def done(self) -> bool:
        return run.single(self.folder, CELL, self.parameters).done


def cells(sweep: Sweep) -> list[Cell]:
    """The cells of a sweep, each with a folder named by what it is. Raises StudyError for parameters that a cell does not take."""
    found = []
    for model, rule, drop_count, seed in product(sweep.models, sweep.rules, sweep.drop_counts, sweep.seeds):
        values = {"model": model, "rule": rule, "drop_count": drop_count, "seed": seed}
        if clash := sorted(values.keys() & sweep.same.keys()):
            raise StudyError(f"same.{clash[0]} is what varies: give it in its list above")
        own = hashlib.sha256(json.dumps(values | sweep.same, sort_keys=True).encode()).hexdigest()[:8]
        folder = f"sweep-{sweep.name}-{own}"
        words = f"{model}, {drop_count} fewer by {rule}, seed {seed}"
        found.append(Cell(folder, words, settings.check(CELL, {"study": folder, **values, **sweep.same})))
    return found


def run_sweep(sweep: Sweep, pool: Executor, *, say: Callable[[str], None]) -> list[str]:
    """Run what is not done through the pool; returns a sentence for each cell that failed. The others go on, and stay done."""
    todo = [cell for cell in cells(sweep) if not cell.done]
    say(f"sweep {sweep.name}: {len(cells(sweep))} cells, {len(todo)} to run")
    futures = {pool.submit(run_cell, cell.folder, cell.parameters.model_dump(mode="json")): cell for cell in todo}
    failed = []
    for n, future in enumerate(as_completed(futures), start=1):
        cell = futures[future]
        try:
            future.result()
            say(f"{n} of {len(todo)}: {cell.words}: done")
        except Exception as error:  # a cell's own failure, or the loss of the worker that ran it
            sentence = str(error).strip().split("\n")[0] or type(error).__name__
            failed.append(f"{cell.words}: {sentence}")
            say(f"{n} of {len(todo)}: {cell.words}: failed ({sentence})")
    return failed


def run_cell(folder: str, parameters: dict[str, Any]) -> None:
    """Run one cell in a process of its own, so that whatever ends it ends nothing else. Raises RuntimeError with what it said last."""
    command = [sys.executable, "-m", "depthprune_study.grid", folder, json.dumps(parameters)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(places.ROOT), os.environ.get("PYTHONPATH", "")])}
    with _a_gpu_of_its_own() as visible:
        done = subprocess.run(command, env=environment | visible, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(done.stderr.strip() or f"the cell's process ended with code {done.returncode}")


_gpus: queue.Queue[int] = queue.Queue()  # those that no cell of this process is using; stays empty where there is no choice


@contextmanager
def _a_gpu_of_its_own() -> Iterator[dict[str, str]]:
    """The environment in which a cell sees one GPU alone; an empty one where none was put aside (`local_pool`)."""
    try:
        gpu = _gpus.get_nowait()
    except queue.Empty:
        yield {}
        return
    try:
        yield {"CUDA_VISIBLE_DEVICES": str(gpu)}
    finally:
        _gpus.put(gpu)


def local_pool(workers: int = 0) -> Executor:
    """This machine: one cell a GPU at a time, one alone without; `workers` if given."""
    import torch

    n_gpus = torch.cuda.device_count()
    workers = workers or n_gpus or 1
    while not _gpus.empty():
        _gpus.get_nowait()
    for worker in range(workers if n_gpus else 0):
        _gpus.put(worker % n_gpus)
    return ThreadPoolExecutor(workers)  # the work is done in processes: a thread waits for each


def parsl_pool(site: Path) -> Executor:
    """Many hosts, by a site file: Python with a function `config()` that gives a parsl.Config. Raises StudyError where that fails."""
    if importlib.util.find_spec("parsl") is None:
        raise StudyError("a site needs Parsl: pip install 'depthprune[cluster]'")
    if not site.is_file():
        raise StudyError(f"{site} is not there: name a file such as params/sites/slurm.py")
    from parsl.concurrent import ParslPoolExecutor

    spec = importlib.util.spec_from_file_location("depthprune_site", site)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not callable(getattr(module, "config", None)):
        raise StudyError(f"{site} has no function config() that gives a parsl.Config")
    beside = str(
        Path(sys.executable).parent
    )  # Parsl starts its own scripts by name, also where the environment is not activated
    if beside not in os.environ.get("PATH", "").split(os.pathsep):
        os.environ["PATH"] = os.pathsep.join([beside, os.environ.get("PATH", "")])
    return ParslPoolExecutor(config=module.config())


def gather(sweep: Sweep) -> Path:
    """The results of all cells that are done as one Parquet table, and the notebook that plots it; returns the notebook.

    Raises StudyError where no cell is done.
    """
    import datasets

    from depthprune_core import records

    folders = [cell.folder for cell in cells(sweep) if cell.done]
    if not folders:
        raise StudyError(f"sweep {sweep.name}: no cell is done, so there is nothing to show")
    rows = [records.read(places.runs(folder) / "records" / CELL / "cell.json").values for folder in folders]
    study = f"sweep-{sweep.name}"
    table = places.runs(study) / "table.parquet"
    table.parent.mkdir(parents=True, exist_ok=True)
    temporary = table.with_name(f".{table.name}.{os.getpid()}.tmp")
    datasets.Dataset.from_list(rows).to_parquet(str(temporary))
    os.replace(temporary, table)
    write_atomically(places.runs(study) / "cells.json", json.dumps(folders, indent=1))
    run.run_single(study, run.single(study, TABLE, settings.check(TABLE, {"study": study, "cells": folders})))
    return run.executed(study, TABLE)


def main(folder: str, parameters: str) -> None:
    """One cell, in this process; what stops it is told in a sentence."""
    try:
        step = run.single(folder, CELL, settings.check(CELL, json.loads(parameters)))
        with open(os.devnull, "w", encoding="utf-8") as nowhere:
            run.run_single(folder, step, terminal=nowhere)
    except (ValueError, RuntimeError, OSError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main(*sys.argv[1:])
