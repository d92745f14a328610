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

from depthprune_core.assets import sha256_of
from depthprune_core.models import SOURCES
from depthprune_study import places, run, settings
from depthprune_study.settings import StudyError, Sweep

CELL, TABLE = "sweeps/cell", "sweeps/table"
STOPPED = "this cell stopped: "


@dataclass(frozen=True)
class Cell:
    """One cell: its folder under runs/, what it is in words, and its checked parameters."""

    folder: str
    words: str
    parameters: settings.Common

    @property
    def step(self) -> run.Step:
        """What runs, known by code, parameters and the content of a local model or text."""
        named = (self.parameters.model, self.parameters.text)
        return run.single(self.folder, CELL, self.parameters, inputs=[content for name in named if (content := _content(name))])

    @property
    def done(self) -> bool:
        return self.step.done


def cells(sweep: Sweep) -> list[Cell]:
    """The cells of a sweep, each with a folder named by what it is. Raises StudyError for parameters that a cell does not take."""
    found = []
    for model, rule, drop_count, seed in product(sweep.models, sweep.rules, sweep.drop_counts, sweep.seeds):
        varying = {"model": _resolved(model), "rule": rule, "drop_count": drop_count, "seed": seed}
        if clash := sorted((varying.keys() | {"study"}) & sweep.same.keys()):
            raise StudyError(f"same.{clash[0]} is given by the sweep itself: leave it out of what all cells share")
        same = {name: _resolved(value) if name == "text" else value for name, value in sweep.same.items()}
        checked = settings.check(CELL, {"study": f"sweep-{sweep.name}", **varying, **same})
        own = hashlib.sha256(json.dumps(checked.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()[:8]
        folder = f"sweep-{sweep.name}-{own}"
        words = f"{model}, {drop_count} fewer by {rule}, seed {seed}"
        found.append(Cell(folder, words, checked.model_copy(update={"study": folder})))
    return found


def run_sweep(sweep: Sweep, pool: Executor, *, say: Callable[[str], None]) -> list[str]:
    """Run what is not done through the pool; returns a sentence for each cell that failed. The others go on, and stay done."""
    known = cells(sweep)
    todo = [cell for cell in known if not cell.done]
    say(f"sweep {sweep.name}: {len(known)} cells, {len(todo)} to run")
    if todo:
        run.fetch([cell.step for cell in todo], say)  # once, before many would fetch the same
    moved = {name: value for name, value in os.environ.items() if name.startswith("DEPTHPRUNE_")}
    futures = {pool.submit(run_cell, cell.folder, cell.parameters.model_dump(mode="json"), moved): cell for cell in todo}
    failed = []
    for n, future in enumerate(as_completed(futures), start=1):
        cell = futures[future]
        try:
            future.result()
            if not cell.done:
                raise StudyError("its results are not where they should be: host and workers must share the folder runs/")
            say(f"{n} of {len(todo)}: {cell.words}: done")
        except Exception as error:  # a cell's own failure, or the loss of the worker that ran it
            sentence = str(error).strip().split("\n")[0] or type(error).__name__
            failed.append(f"{cell.words}: {sentence}")
            say(f"{n} of {len(todo)}: {cell.words}: failed ({sentence})")
    return failed


def run_cell(folder: str, parameters: dict[str, Any], moved: dict[str, str]) -> None:
    """Run one cell in a process of its own, so that whatever ends it ends nothing else. `moved`: where folders lie, in the variables
    DEPTHPRUNE_*; those of the worker's own host come first. Raises RuntimeError with the reason.
    """
    command = [sys.executable, "-m", "depthprune_study.grid", folder, json.dumps(parameters)]
    path = os.pathsep.join([str(places.ROOT), os.environ.get("PYTHONPATH", "")])
    with _a_gpu_of_its_own() as visible:
        done = subprocess.run(
            command, env={**moved, **os.environ, "PYTHONPATH": path, **visible}, capture_output=True, text=True
        )
    if done.returncode != 0:
        said = done.stderr.strip()
        raise RuntimeError(
            said.rsplit(STOPPED, 1)[1].strip()
            if STOPPED in said
            else f"its process ended with code {done.returncode} ({said.splitlines()[-1] if said else 'and said nothing'})"
        )


@contextmanager
def stopped_at_once(pool: Executor) -> Iterator[Executor]:
    """The pool; however the block ends before its time, what waits in the queue is not begun."""
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=isinstance(pool, ThreadPoolExecutor))  # Parsl cannot cancel
        raise
    pool.shutdown()


_gpus: queue.Queue[str] = queue.Queue()  # those that no cell of this process is using; stays empty where there is no choice


@contextmanager
def _a_gpu_of_its_own() -> Iterator[dict[str, str]]:
    """The environment in which a cell sees one GPU alone; an empty one where none was put aside (`local_pool`)."""
    try:
        gpu = _gpus.get_nowait()
    except queue.Empty:
        yield {}
        return
    try:
        yield {"CUDA_VISIBLE_DEVICES": gpu}
    finally:
        _gpus.put(gpu)


def local_pool(workers: int = 0) -> Executor:
    """This machine: one cell a GPU at a time, one alone without; `workers` if given."""
    import torch

    n_gpus = torch.cuda.device_count()
    workers = workers or n_gpus or 1
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    names = [name.strip() for name in visible.split(",")] if visible else [str(gpu) for gpu in range(n_gpus)]
    while not _gpus.empty():
        _gpus.get_nowait()
    for worker in range(workers if n_gpus else 0):
        _gpus.put(names[worker % len(names)])
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
    # Parsl starts its own scripts by name, also where the environment is not activated.
    beside = str(Path(sys.executable).parent)
    if beside not in os.environ.get("PATH", "").split(os.pathsep):
        os.environ["PATH"] = os.pathsep.join([beside, os.environ.get("PATH", "")])
    return ParslPoolExecutor(config=module.config())


def gather(sweep: Sweep) -> Path:
    """The results of all cells that are done as one Parquet table, and the notebook that plots it; returns the notebook.

    Raises StudyError where no cell is done.
    """
    import datasets

    from depthprune_core import records

    done = [cell for cell in cells(sweep) if cell.done]
    if not done:
        raise StudyError(f"sweep {sweep.name}: no cell is done, so there is nothing to show")
    paths = [places.runs(cell.folder) / "records" / CELL / "cell.json" for cell in done]
    study = f"sweep-{sweep.name}"
    table = places.runs(study) / "table.parquet"
    table.parent.mkdir(parents=True, exist_ok=True)
    temporary = table.with_name(f".{table.name}.{os.getpid()}.tmp")
    datasets.Dataset.from_list([records.read(path).values for path in paths]).to_parquet(str(temporary))
    os.replace(temporary, table)
    parameters = settings.check(TABLE, {"study": study, "cells": [cell.folder for cell in done]})
    run.run_single(study, run.single(study, TABLE, parameters, inputs=[sha256_of(path) for path in paths]))
    return run.executed(study, TABLE)


def _resolved(name: str) -> str:
    """A local folder or file as a whole path, since a notebook runs elsewhere; a name as it is."""
    is_local = isinstance(name, str) and name not in SOURCES and Path(name).exists()
    return str(Path(name).resolve()) if is_local else name


def _content(name: str) -> str:
    """Hash of a local folder or file; empty for a name."""
    path = Path(name)
    if name in SOURCES or not path.exists():
        return ""
    files = [path] if path.is_file() else sorted(file for file in path.iterdir() if file.is_file())
    return hashlib.sha256("".join(f"{file.name} {sha256_of(file)}" for file in files).encode()).hexdigest()


def main(folder: str, parameters: str) -> None:
    """One cell, in this process; what stops it is told in a sentence."""
    try:
        step = Cell(folder, "", settings.check(CELL, json.loads(parameters))).step
        with open(os.devnull, "w", encoding="utf-8") as nowhere:
            run.run_single(folder, step, terminal=nowhere)
    except (ValueError, RuntimeError, OSError) as error:
        sys.exit(f"{STOPPED}{error}")


if __name__ == "__main__":
    main(*sys.argv[1:])
