"""Runs a study's notebooks in order with papermill, each in its own kernel; what is finished and unchanged is not run again."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import json
import os
import platform
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TextIO

from depthprune_core.assets import sha256_of
from depthprune_core.records import read_stamp, write_atomically
from depthprune_study import places, provenance, settings, verdict_rules
from depthprune_study.settings import StudyError

# Which earlier notebooks' records each one reads.
READS = {
    "01_sensitivity": (),
    "02_prune_gpt2": ("01_sensitivity",),
    "03_recovery": ("01_sensitivity", "02_prune_gpt2"),
    "03b_controls": ("02_prune_gpt2", "03_recovery"),
    "03c_choice": ("02_prune_gpt2", "03_recovery"),
    "04_transfer_tinyllama": ("03_recovery",),
    "05_seed_stability": ("02_prune_gpt2", "03_recovery"),
}
READS["06_report"] = tuple(READS)
NAMED = ("model", "first_model", "text", "elsewhere")  # parameters that may be a local folder or file
TEXTS = ("wikipedia-excerpt", "news-excerpt", "wikitext-2")
BUNDLED = (places.ROOT / "models" / "gpt2-mini", places.ROOT / "depthprune_core" / "splits.json")
FULL_DISK_BYTES = 1_000_000  # with less left, whatever failed did so for want of room
RESTORED = ("records/**/*.json", "arms/**/*.json", "costs.json")  # what a run goes on from, of a published report


@dataclass(frozen=True)
class Step:
    """One notebook of a study: what it would run with, and whether that is done already."""

    notebook: str
    parameters: dict[str, Any]
    key: str  # of everything that can change its output
    done: bool
    expected_seconds: float  # of the run whose report is committed; 0 = never measured


def plan(study: str) -> list[Step]:
    """The steps of a study, in order. Raises StudyError for bad parameters, claims or notebooks."""
    checked = settings.read_study(study)
    verdict_rules.read()  # which the last notebook reads: told before the first
    expected = {notebook: cost["seconds"] for notebook, cost in read_costs(places.ROOT / "reports" / study).items()}
    keys: dict[str, str] = {}
    steps = []
    for notebook, parameters in checked.items():
        given = parameters.model_dump(mode="json")
        values = {name: resolved(value) if name in NAMED else value for name, value in given.items()}
        keys[notebook] = _key(notebook, values, [keys[earlier] for earlier in READS[notebook]])
        steps.append(
            Step(notebook, values, keys[notebook], _is_done(study, notebook, keys[notebook]), expected.get(notebook, 0))
        )
    return steps


def run(study: str, *, say: Callable[[str], None], terminal: TextIO = sys.stderr) -> None:
    """Run what is not done. Raises StudyError when a notebook fails; what was finished before stays finished."""
    steps = plan(study)
    folder = places.runs(study)
    with alone(folder, say):
        if not all(step.done for step in steps):
            for sentence in slow_precisions(steps):
                say(sentence)
            fetch(steps, say)
        for step in steps:
            if _is_done(study, step.notebook, step.key):  # asked anew: an earlier one may have left other records just now
                say(f"{step.notebook}: done already")
                continue
            expected = f", about {step.expected_seconds:.0f} s on two CPU cores" if step.expected_seconds else ""
            say(f"{step.notebook}: running{expected}")
            seconds = _execute(study, step, terminal)
            say(f"{step.notebook}: done in {seconds:.0f} s")


def single(study: str, notebook: str, parameters: settings.Common, *, inputs: Sequence[str] = ()) -> Step:
    """The only step of a folder under runs/ that one notebook works in: a cell of a sweep, or its table. `inputs`: hashes of what it reads."""
    values = parameters.model_dump(mode="json")
    key = _key(notebook, values, list(inputs))
    return Step(notebook, values, key, _is_done(study, notebook, key), 0)


def run_single(study: str, step: Step, *, terminal: TextIO = sys.stderr) -> float:
    """Run it unless it is done; returns the seconds that it took. Raises StudyError when the notebook fails."""
    with alone(places.runs(study), lambda line: print(line, file=terminal)):
        return 0.0 if _is_done(study, step.notebook, step.key) else _execute(study, step, terminal)


def restore(study: str, source: Path) -> int:
    """Copy the records of a published report to where the study runs, as far as there are none; returns how many files.

    Nothing is taken on trust: each piece of work reads back only what carries its own stamp. Raises StudyError where there is nothing.
    """
    settings.read_study(study)
    files = [path for part in RESTORED for path in sorted(source.glob(part)) if path.is_file()]
    if not files:
        raise StudyError(f"{source} holds no records of a study: name a folder like reports/{study}")
    target, n_copied = places.runs(study), 0
    with alone(target):
        for path in files:
            copy = target / path.relative_to(source)
            if not copy.exists():
                try:
                    content = path.read_text(encoding="utf-8")
                except UnicodeDecodeError:
                    raise StudyError(
                        f"{path} is damaged: it is no text; take a whole copy of the report, or remove it"
                    ) from None
                write_atomically(copy, content)
                n_copied += 1
    return n_copied


def read_costs(folder: Path) -> dict[str, dict[str, float]]:
    """Notebook -> {"seconds", "peak_bytes", "peak_gpu_bytes"} that it took, and whether it was `resumed`; none where they are damaged."""
    return {notebook: cost for notebook, cost in read_named(folder / "costs.json").items() if _is_cost(cost)}


def _is_cost(cost: Any) -> bool:
    numbers = [cost.get("seconds"), cost.get("peak_bytes"), cost.get("peak_gpu_bytes", 0)] if isinstance(cost, dict) else [None]
    return all(type(number) in (int, float) and 0 <= number < float("inf") for number in numbers)


def read_named(path: Path) -> dict[str, Any]:
    """Values by name from a small JSON file; none where it is missing or damaged."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def fetch(steps: Sequence[Step], say: Callable[[str], None]) -> None:
    """Get and check every model and text that the steps name before the first of them runs: what is missing is told at once."""
    from transformers.utils import logging

    from depthprune_core import models, text, zero_shot

    logging.disable_progress_bar()
    logging.set_verbosity_error()  # a table of what is wrong with a folder, which is told in a sentence
    asks_tasks = [
        step.notebook for step in steps if step.parameters.get("zero_shot_items") or step.parameters.get("zero_shot_tasks")
    ]
    if asks_tasks and importlib.util.find_spec("lm_eval") is None:
        raise StudyError(
            f"{asks_tasks[0]} asks for zero-shot tasks, which need lm-eval: pip install 'depthprune[eval]', or ask for none"
        )
    for step in steps:
        if (tasks := step.parameters.get("zero_shot_tasks")) and (unknown := zero_shot.unknown(tasks)):
            raise StudyError(
                f"{step.notebook}: zero_shot_tasks names {unknown[0]!r}, which is no single task that lm-eval knows"
            )
    wanted_texts = {step.parameters[key] for step in steps for key in ("text", "elsewhere") if key in step.parameters}
    wanted_models = {step.parameters["model"] for step in steps if "model" in step.parameters}
    try:
        for name in sorted(wanted_texts):
            say(f"text {name}: fetching, or checking what is cached")
            text.split_named(name, cache=places.cache(), assets=places.assets())
        for name in sorted(wanted_models):
            say(f"model {name}: fetching, or checking what is cached")
            models.fetch_only(name, cache=places.cache(), assets=places.assets())
        for step in steps:
            _check_depth(step, models.depth(step.parameters["model"]) if "model" in step.parameters else 0)
    except (ValueError, RuntimeError) as error:
        raise StudyError(str(error)) from None


def slow_precisions(steps: Sequence[Step]) -> list[str]:
    """A sentence for each notebook that asks for 16-bit arithmetic of an x86 processor for which PyTorch has no kernels of it.

    Of the host that runs them: one that hands cells on to a cluster says nothing of the cluster's. Raises StudyError for a GPU that is not there.
    """
    asked = [step for step in steps if step.parameters.get("precision") in ("bfloat16", "float16")]
    if not asked:
        return []
    import torch

    from depthprune_study.bench import device_of

    is_slow = platform.machine() in ("x86_64", "AMD64") and torch.backends.cpu.get_cpu_capability() != "AVX512"
    return [
        f"{step.notebook}: precision={step.parameters['precision']} can take many times as long as float32 on this CPU, "
        "which has no AVX-512: a GPU is wanted, or precision=auto"
        for step in asked
        if device_of(step.parameters["device"]) == "cpu" and is_slow
    ]


def _check_depth(step: Step, n_layers: int) -> None:
    """Raises StudyError where a notebook would leave no layer; 0 layers: not known. After a single count, one more goes in stages."""
    for name, most in (("drop_counts", n_layers - 1), ("race_counts", n_layers - 1), ("drop_count", n_layers - 2)):
        asked = step.parameters.get(name, [])
        if n_layers and max(asked if isinstance(asked, list) else [asked], default=0) > most:
            raise StudyError(
                f"{step.notebook}: {name}={asked} should be at most {most}: {step.parameters['model']} has {n_layers} layers"
            )


def executed(study: str, notebook: str) -> Path:
    """Where a run leaves the executed notebook."""
    return places.runs(study) / "notebooks" / f"{notebook}.ipynb"


def resolved(name: Any) -> Any:
    """A local folder or file as a whole path, since a notebook runs elsewhere; anything else as it is."""
    return str(Path(name).resolve()) if _is_local(name) else name


def content_of(name: str) -> str:
    """Hash of a local model or text; empty for a name."""
    return _hash_of(Path(name)) if _is_local(name) else ""


def _hash_of(path: Path) -> str:
    """Of a folder or file, without what only people read."""
    files = [path] if path.is_file() else sorted(file for file in path.iterdir() if file.is_file())
    read = [file for file in files if file.suffix not in {".md", ".ipynb"}]
    hashes = [f"{file.name} {_hash(file, file.stat().st_size, file.stat().st_mtime_ns)}" for file in read]
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def _is_local(name: Any) -> bool:
    if not isinstance(name, str) or not os.path.exists(name) or name in TEXTS:
        return False
    from depthprune_core.models import SOURCES  # late: it brings torch, and most names are no path

    return name not in SOURCES


@cache
def _hash(path: Path, size: int, mtime_ns: int) -> str:
    """Once for a file as it is now: every notebook asks for the same weights."""
    return sha256_of(path)


def _key(notebook: str, parameters: dict[str, Any], earlier: list[str]) -> str:
    path = places.NOTEBOOKS / f"{notebook}.ipynb"
    if (n := sum("parameters" in cell["metadata"].get("tags", []) for cell in provenance.read_cells(path))) != 1:
        raise StudyError(
            f"notebook {path} has {n} cells tagged `parameters`; one is wanted, or it would not take what it is given"
        )
    modules = provenance.imports(provenance.notebook_code(path))
    content = {
        "notebook": provenance.notebook_hash(path, prose=True),
        "code": provenance.code_hash(*modules),
        "parameters": parameters,
        "local": {name: content_of(parameters[name]) for name in NAMED if name in parameters},
        "bundled": [_hash_of(path) for path in BUNDLED],
        "earlier": earlier,
        "versions": provenance.versions(),
        "claims": hashlib.sha256((places.PARAMS / "claims.yaml").read_bytes()).hexdigest() if notebook == "06_report" else "",
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _mark(study: str, notebook: str) -> Path:
    return places.runs(study) / "done" / f"{notebook}.json"


def _is_done(study: str, notebook: str, key: str) -> bool:
    try:
        mark = json.loads(_mark(study, notebook).read_text(encoding="utf-8"))
        return mark["key"] == key and mark["files"] == _files(study, notebook)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _files(study: str, notebook: str) -> dict[str, str]:
    """Hashes of what a notebook leaves, the executed notebook and its records, and of the records that it has read."""
    paths = [executed(study, notebook)]
    for name in (notebook, *READS.get(notebook, ())):
        paths += (places.runs(study) / "records" / name).rglob("*.json")
    return {
        path.relative_to(places.runs(study)).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(paths)
    }


def _execute(study: str, step: Step, terminal: TextIO) -> float:
    import logging

    import papermill
    from traitlets.config import Config

    logging.getLogger("papermill").setLevel(logging.ERROR)
    began = time.monotonic()
    goes_on = any((places.runs(study) / "records" / step.notebook).rglob("*.json"))
    target = executed(study, step.notebook)
    partial = target.with_name(f".{target.name}.partial.ipynb")
    log = places.runs(study) / "logs" / f"{step.notebook}.log"
    for folder in (target.parent, log.parent):
        folder.mkdir(parents=True, exist_ok=True)
    for figure in (places.runs(study) / "figures").glob(f"{step.notebook}-*.png"):
        figure.unlink()  # the notebook draws them again
    failure = ""
    with (
        open(log, "w", encoding="utf-8") as output,
        tempfile.TemporaryDirectory(prefix="depthprune-") as sockets,  # else the files lie among the notebooks
        _shown(places.runs(study) / "progress.json", terminal),
    ):
        try:
            papermill.execute_notebook(
                _literal(places.NOTEBOOKS / f"{step.notebook}.ipynb"),
                _literal(partial),
                parameters=step.parameters,
                kernel_name="python3",
                progress_bar=False,
                stdout_file=output,
                stderr_file=output,
                cwd=places.NOTEBOOKS,
                start_timeout=180,
                coalesce_streams=True,
                # Socket files: no port that others could reach.
                config=Config({"KernelManager": {"transport": "ipc", "ip": f"{sockets}/kernel"}}),
            )
        except Exception as error:  # whatever stops a notebook is told in one sentence, and the partial notebook is kept
            failure = _reason(error)
    failure = failure or _unfinished(partial)
    if failure:
        failure = _with_a_hint(failure, partial.parent)
        kept = f"the partial notebook: {_shown_path(partial)}\nits output: {_shown_path(log)}"
        raise StudyError(f"notebook {step.notebook} of study {study} stopped: {failure}\n{kept}")
    _tidy(partial)
    _drop_stale(study, step)
    os.replace(partial, target)
    write_atomically(
        _mark(study, step.notebook), json.dumps({"key": step.key, "files": _files(study, step.notebook)}, indent=1)
    )
    seconds = time.monotonic() - began
    _remember_cost(study, step.notebook, seconds, goes_on=goes_on)
    return seconds


def _literal(path: Path) -> str:
    """The path as papermill takes it, which reads braces in it as places for parameters."""
    return str(path).replace("{", "{{").replace("}", "}}")


def _reason(error: Exception) -> str:
    name, value = getattr(error, "ename", type(error).__name__), getattr(error, "evalue", str(error))
    return f"{value.strip()}" if name in {"StudyError", "ValueError"} else f"{name}: {value.strip()}"


def _with_a_hint(failure: str, folder: Path) -> str:
    """What stopped a notebook, with what to do where the machine had run out of something."""
    if "No space left" in failure or shutil.disk_usage(folder).free < FULL_DISK_BYTES:
        return f"the disk is full ({failure}): free some space, then the same command goes on from here"
    if any(sign in failure for sign in ("MemoryError", "OutOfMemoryError", "allocate memory")):
        return f"memory ran out ({failure}): give the machine more, or take a smaller model, shorter windows or fewer of them at once"
    return f"{failure} (often because memory ran out)" if "kernel died" in failure.lower() else failure


def _unfinished(path: Path) -> str:
    """A dead kernel leaves a notebook that says `completed`: only a cell count and no error output show the truth."""
    cells = [
        c
        for c in json.loads(path.read_text(encoding="utf-8"))["cells"]
        if c["cell_type"] == "code" and "".join(c["source"]).strip()
    ]
    for number, cell in enumerate(cells):
        if any(output["output_type"] == "error" for output in cell["outputs"]):
            return f"code cell {number} raised an error"
        if cell["execution_count"] is None:
            return f"code cell {number} was never executed: the kernel died"
    return ""


def _tidy(path: Path) -> None:
    """Drop what differs from run to run and says nothing: papermill's clock, empty progress lines, machine paths."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    notebook["metadata"].pop("papermill", None)
    notebook["metadata"].pop("widgets", None)
    for cell in notebook["cells"]:
        for key in ("papermill", "execution"):
            cell["metadata"].pop(key, None)
        if "injected-parameters" in cell["metadata"].get("tags", []):
            cell["id"] = "injected-parameters"  # papermill draws a new one each time
        if cell["cell_type"] == "code":
            cell["outputs"] = [output for output in cell["outputs"] if output.get("name") != "stderr" and not _is_empty(output)]
    write_atomically(path, json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")


def _is_empty(output: dict[str, Any]) -> bool:
    """What a progress line leaves when its piece of work is done."""
    return output["output_type"] == "display_data" and not "".join(output["data"].get("text/plain", "-"))


def _remember_cost(study: str, notebook: str, seconds: float, *, goes_on: bool = False) -> None:
    """The most that a notebook has taken here: one that `goes_on` finds pieces done already, and takes less.

    `resumed` says that no run of it has been timed from its beginning to its end.
    """
    folder = places.runs(study)
    told, before = read_named(folder / "progress.json"), read_costs(folder).get(notebook, {})
    cost = {"seconds": max(before.get("seconds", 0), round(seconds, 1))}
    # 0: a notebook that reads records alone tells nothing
    cost |= {peak: max(before.get(peak, 0), told.get(peak, 0)) for peak in ("peak_bytes", "peak_gpu_bytes")}
    if goes_on and (not before or before.get("resumed")):
        cost["resumed"] = True
    write_atomically(folder / "costs.json", json.dumps({**read_costs(folder), notebook: cost}, indent=1))


def _drop_stale(study: str, step: Step) -> None:
    """Remove what an earlier version of the notebook has left: records that were made under another stamp."""
    of_now = provenance.notebook_hash(places.NOTEBOOKS / f"{step.notebook}.ipynb")
    for path in (places.runs(study) / "records" / step.notebook).rglob("*.json"):
        with suppress(ValueError):  # what is no record was not left by a notebook of ours
            stamp = read_stamp(path)
            if stamp.notebook_hash != of_now or stamp.parameters != step.parameters:
                path.unlink()


def _shown_path(path: Path) -> str:
    return os.path.relpath(path)


@contextmanager
def alone(folder: Path, say: Callable[[str], None] = lambda line: None, *, busy: str = "") -> Iterator[None]:
    """One process at a time runs a study or publishes it (or does what `busy` says in the folder): the lock goes with the process, however
    it ends. None may ask for it twice.

    Raises StudyError where another one has it. Where a file system has no locks, that is said.
    """
    busy = busy or f"study {folder.name} is being run or published"
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StudyError(f"{busy} by another process: wait for it, or stop it") from None
        except OSError as error:  # Lustre without flock, NFS without its lock daemon, some drives
            say(f"{folder} cannot be locked ({error.strerror}): start no second process that works in it beside this one")
        yield


@contextmanager
def _shown(progress: Path, terminal: TextIO) -> Iterator[None]:
    """Show the notebook's progress: a line that is rewritten in a terminal, one a half-minute elsewhere."""
    progress.unlink(missing_ok=True)
    stop = threading.Event()

    def watch() -> None:
        last, said = "", 0.0
        while not stop.wait(1):
            try:
                line = json.loads(progress.read_text(encoding="utf-8"))["line"]
            except (OSError, ValueError, KeyError):
                continue
            if terminal.isatty() and line != last:
                terminal.write(f"\r\033[K  {line[: shutil.get_terminal_size().columns - 3]}")
                terminal.flush()
            elif not terminal.isatty() and line != last and time.monotonic() - said > 30:
                terminal.write(f"  {line}\n")
                terminal.flush()
                said = time.monotonic()
            last = line

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        if terminal.isatty():
            terminal.write("\r\033[K")
