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
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from depthprune_core.assets import sha256_of
from depthprune_core.records import read, write_atomically
from depthprune_study import places, preparation, provenance, run, settings
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
        return run.single(self.folder, CELL, self.parameters)

    @property
    def done(self) -> bool:
        """By this host's libraries, or by those of a worker that this host has asked."""
        step = self.step
        return step.done or run._is_done(self.folder, CELL, run.read_named(_asked(self.folder)).get(step.key, ""))

    @property
    def content(self) -> str:
        """Hash of code, local model and local text as they lie on this host, whatever Python and libraries it has."""
        notebook = places.NOTEBOOKS / f"{CELL}.ipynb"
        modules = sorted(provenance.closure(provenance.imports(provenance.notebook_code(notebook))))
        code = [sha256_of(places.ROOT / Path(*module.split(".")).with_suffix(".py")) for module in modules]
        named = [run.content_of(name) for name in (self.parameters.model, self.parameters.text)]
        return hashlib.sha256(" ".join([provenance.notebook_hash(notebook, prose=True), *code, *named]).encode()).hexdigest()


def cells(sweep: Sweep) -> list[Cell]:
    """The cells of a sweep, each with a folder named by what it is. Raises StudyError for parameters that a cell does not take."""
    found = []
    for model, rule, drop_count, seed in product(sweep.models, sweep.rules, sweep.drop_counts, sweep.seeds):
        varying = {"model": run.resolved(model), "rule": rule, "drop_count": drop_count, "seed": seed}
        if clash := sorted((varying.keys() | {"study"}) & sweep.same.keys()):
            raise StudyError(f"same.{clash[0]} is given by the sweep itself: leave it out of what all cells share")
        same = {name: run.resolved(value) if name == "text" else value for name, value in sweep.same.items()}
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
    todo, failed = _fetched(todo, say)  # once, before many would fetch the same
    moved = {name: value for name, value in os.environ.items() if name.startswith("DEPTHPRUNE_")}
    futures = {}
    for cell in todo:
        asked = {"key": cell.step.key, "content": cell.content}
        futures[pool.submit(run_cell, cell.folder, cell.parameters.model_dump(mode="json"), moved, asked)] = cell
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


def _fetched(todo: list[Cell], say: Callable[[str], None]) -> tuple[list[Cell], list[str]]:
    """Those cells whose model is there, and a sentence for each of the others. Raises StudyError where what all need is not there."""
    if todo:
        preparation.fetch(
            [replace(cell.step, parameters=cell.parameters.model_dump(mode="json", exclude={"model"})) for cell in todo], say
        )
    missing: dict[str, str] = {}
    for cell in {cell.parameters.model: cell for cell in todo}.values():
        try:
            preparation.fetch([replace(cell.step, parameters={"model": cell.parameters.model})], say)
        except (StudyError, OSError, ImportError) as error:  # whatever is wrong with one model is wrong with no other
            missing[cell.parameters.model] = " ".join(str(error).split())
            say(missing[cell.parameters.model])
    failed = [f"{cell.words}: {missing[cell.parameters.model]}" for cell in todo if cell.parameters.model in missing]
    return [cell for cell in todo if cell.parameters.model not in missing], failed


def run_cell(folder: str, parameters: dict[str, Any], moved: dict[str, str], asked: dict[str, str]) -> None:
    """Run one cell in a process of its own, so that whatever ends it ends nothing else. `moved`: where folders lie, in the variables
    DEPTHPRUNE_*; those of the worker's own host come first. `asked`: the cell's key and content where it was asked for. Raises
    RuntimeError with the reason.
    """
    command = [sys.executable, "-m", "depthprune_study.grid", folder, json.dumps(parameters), json.dumps(asked)]
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
    with _told_of(site):
        spec.loader.exec_module(module)
    if not callable(getattr(module, "config", None)):
        raise StudyError(f"{site} has no function config() that gives a parsl.Config")
    with _told_of(site):
        config = module.config()
    # Parsl starts its own scripts by name, also where the environment is not activated.
    beside = str(Path(sys.executable).parent)
    if beside not in os.environ.get("PATH", "").split(os.pathsep):
        os.environ["PATH"] = os.pathsep.join([beside, os.environ.get("PATH", "")])
    return ParslPoolExecutor(config=config)


@contextmanager
def _told_of(site: Path) -> Iterator[None]:
    """What stops a site file (a package that is not installed, a cluster that is not set up) is told in a sentence."""
    try:
        yield
    except Exception as error:
        raise StudyError(f"{site} gives no parsl.Config ({type(error).__name__}): {' '.join(str(error).split())}") from error


def gather(sweep: Sweep) -> Path:
    """The results of all cells that are done as one Parquet table, and the notebook that plots it; returns the notebook.

    Raises StudyError where no cell is done.
    """
    import datasets

    done = [cell for cell in cells(sweep) if cell.done]
    if not done:
        raise StudyError(f"sweep {sweep.name}: no cell is done, so there is nothing to show")
    paths = [_record(cell, name) for cell in done for name in ("cell", "validation_scores")]
    study = f"sweep-{sweep.name}"
    table = places.runs(study) / "table.parquet"
    table.parent.mkdir(parents=True, exist_ok=True)
    temporary = table.with_name(f".{table.name}.{os.getpid()}.tmp")
    try:
        datasets.Dataset.from_list([_row(cell) for cell in done]).to_parquet(str(temporary))
        os.replace(temporary, table)
    finally:
        temporary.unlink(missing_ok=True)
    parameters = settings.check(TABLE, {"study": study})
    run.run_single(study, run.single(study, TABLE, parameters, inputs=[sha256_of(path) for path in paths]))
    return run.executed(study, TABLE)


def _row(cell: Cell) -> dict[str, Any]:
    """What a cell was and gave: its record, and its PPL ratios to the whole model (infinity where one overflows)."""
    from depthprune_core import intervals  # late: it brings scipy

    scores = read(_record(cell, "validation_scores"))
    row = dict(read(_record(cell, "cell")).values)
    for when, arm in (("before", "unrecovered"), ("after", "recovered")):
        ratio = intervals.ppl_ratio(scores[arm], scores["teacher"])
        row |= {f"{when}_point": ratio.point, f"{when}_low": ratio.low, f"{when}_high": ratio.high}
    return row


def _record(cell: Cell, name: str) -> Path:
    return places.runs(cell.folder) / "records" / CELL / f"{name}.json"


def _asked(folder: str) -> Path:
    """Key of a cell where it was asked for -> its key where it ran: libraries of another build (CPU here, CUDA there) give another."""
    return places.runs(folder) / "asked.json"


def main(folder: str, parameters: str, asked: str) -> None:
    """One cell, in this process; what stops it is told in a sentence."""
    try:
        cell, host = Cell(folder, "", settings.check(CELL, json.loads(parameters))), json.loads(asked)
        if cell.content != host["content"]:
            raise StudyError(
                "the worker has other code than the host, or not the same local model or text: give both the same version, in "
                "folders that they share"
            )
        step = cell.step
        with open(os.devnull, "w", encoding="utf-8") as nowhere:
            run.run_single(folder, step, terminal=nowhere)
        known = run.read_named(_asked(folder))
        write_atomically(_asked(folder), json.dumps({**known, host["key"]: step.key}, indent=1))
    except (ValueError, RuntimeError, OSError) as error:
        sys.exit(f"{STOPPED}{error}")


if __name__ == "__main__":
    main(*sys.argv[1:])
