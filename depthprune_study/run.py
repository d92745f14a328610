"""Runs a study's notebooks in order, each in its own kernel; what is finished and unchanged is not run again."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TextIO

from depthprune_core.assets import sha256_of
from depthprune_core.records import read, read_stamp, write_atomically
from depthprune_study import execution, places, preparation, provenance, settings, verdict_rules
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
            for sentence in preparation.shortcomings(steps):
                say(sentence)
            with told_of_replaced([places.cache()], say):
                preparation.fetch(steps, say)
        for step in steps:
            if _is_done(study, step.notebook, step.key):  # asked anew: an earlier one may have left other records just now
                say(f"{step.notebook}: done already")
                continue
            for sentence in spoilt(study, step):
                say(sentence)
            expected = f", about {step.expected_seconds:.0f} s on two CPU cores" if step.expected_seconds else ""
            say(f"{step.notebook}: running{expected}")
            with told_of_replaced([places.cache(), places.runs(study) / "arms"], say):
                seconds = _execute(study, step, terminal)
            say(f"{step.notebook}: done in {seconds:.0f} s")


def spoilt(study: str, step: Step) -> list[str]:
    """A sentence for each file of a notebook that is not what its checksum says, or not as it was when the notebook was done."""
    root, path = places.runs(study), _mark(study, step.notebook)
    told = dict.fromkeys(damaged(root / "records" / step.notebook), "is damaged: what it held is made again")
    mark = _read_mark(path)
    if mark is None and path.exists():
        told[path] = f"is damaged: {step.notebook} is run again"
    if mark and mark["key"] == step.key:
        now = _files(study, step.notebook)
        for name, content in mark["files"].items():
            is_own = not name.startswith("records/") or name.startswith(f"records/{step.notebook}/")
            if is_own and now.get(name) != content:
                told.setdefault(root / name, f"is {'not as it was' if name in now else 'gone'}: {step.notebook} is run again")
    return [f"{os.path.relpath(file)} {what}" for file, what in told.items()]


def damaged(folder: Path) -> list[Path]:
    """Records that are not what their checksums say; whatever reads them finds that too, and does their work again."""
    found = []
    for path in sorted(folder.rglob("*.json")):
        try:
            read(path)
        except ValueError:
            found.append(path)
    return found


@contextmanager
def told_of_replaced(folders: Sequence[Path], say: Callable[[str], None]) -> Iterator[None]:
    """Says which files of theirs were replaced meanwhile: each is known by what it was made from, so it was damaged, or made otherwise.
    Checkpoints apart, which are replaced as work goes on.
    """

    def inodes() -> dict[Path, int]:
        found: dict[Path, int] = {}
        for folder in folders:
            for path in sorted(
                [*folder.glob("[!.]*"), *folder.glob("[!.]*/[!.]*")]
            ):  # hidden ones are on their way to their names
                with suppress(FileNotFoundError):  # another process may share the cache
                    if path.is_file() and path.suffix != ".ckpt":
                        found[path] = path.stat().st_ino
        return found

    before = inodes()
    yield
    for path, inode in inodes().items():
        if before.get(path, inode) != inode:
            say(f"{os.path.relpath(path)} was not what it should be: it was made again")


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


def read_costs(folder: Path) -> dict[str, dict[str, Any]]:
    """Notebook -> {"seconds", "peak_bytes", "peak_gpu_bytes"} that it took, whether it was `resumed`, and the `key` of what it was then;
    none where they are damaged.
    """
    return {notebook: cost for notebook, cost in read_named(folder / "costs.json").items() if _is_cost(cost)}


def at_least(*costs: Mapping[str, Any]) -> str:
    """What stands before a time that is known only in part: `more than `; empty where every notebook was timed as a whole."""
    return "more than " if any(cost.get("resumed") for cost in costs) else ""


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
    mark = _read_mark(_mark(study, notebook))
    return mark is not None and mark["key"] == key and mark["files"] == _files(study, notebook)


def _leave_mark(study: str, step: Step) -> None:
    mark = {"key": step.key, "files": _files(study, step.notebook)}
    write_atomically(_mark(study, step.notebook), json.dumps({**mark, "sha256": _seal(mark)}, indent=1))


def _read_mark(path: Path) -> dict[str, Any] | None:
    """The key under which a notebook was done and what it left; none where there is no such file or it is damaged."""
    mark = read_named(path)
    seal = mark.pop("sha256", _seal(mark))  # older ones have none
    is_whole = isinstance(mark.get("key"), str) and isinstance(mark.get("files"), dict) and seal == _seal(mark)
    return mark if is_whole else None


def _seal(mark: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(mark, sort_keys=True).encode()).hexdigest()


def _files(study: str, notebook: str) -> dict[str, str]:
    """Hashes of what a notebook leaves (the executed notebook, its figures, its records) and of the records that it has read."""
    paths = [executed(study, notebook), *_figures(study, notebook)]
    for name in (notebook, *READS.get(notebook, ())):
        paths += (places.runs(study) / "records" / name).rglob("*.json")
    return {
        path.relative_to(places.runs(study)).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(paths)
        if path.is_file()
    }


def _figures(study: str, notebook: str) -> list[Path]:
    return list((places.runs(study) / "figures").glob(f"{notebook}-*.png"))


def _execute(study: str, step: Step, terminal: TextIO) -> float:
    """Run the notebook, note what it left and cost; returns the seconds that it took."""
    folder, began = places.runs(study), time.monotonic()
    target = executed(study, step.notebook)
    goes_on = any((folder / "records" / step.notebook).rglob("*.json")) or execution.partial(target).exists()
    for figure in _figures(study, step.notebook):
        figure.unlink()  # the notebook draws them again
    try:
        execution.execute(
            places.NOTEBOOKS / f"{step.notebook}.ipynb",
            target,
            step.parameters,
            cwd=places.NOTEBOOKS,
            log=folder / "logs" / f"{step.notebook}.log",
            progress=folder / "progress.json",
            terminal=terminal,
        )
    except StudyError as error:
        raise StudyError(f"notebook {step.notebook} of study {study} stopped: {error}") from None
    _drop_stale(study, step)
    _leave_mark(study, step)
    seconds = time.monotonic() - began
    _remember_cost(study, step, seconds, goes_on=goes_on)
    return seconds


def _remember_cost(study: str, step: Step, seconds: float, *, goes_on: bool = False) -> None:
    """The most that a notebook, as it is now, has taken here: one that `goes_on` finds pieces done already, and takes less.

    `resumed` says that no run of it has been timed from its beginning to its end.
    """
    folder = places.runs(study)
    told, before = read_named(folder / "progress.json"), read_costs(folder).get(step.notebook, {})
    before = before if before.get("key") == step.key else {}
    cost = {"seconds": max(before.get("seconds", 0), round(seconds, 1))}
    # 0: a notebook that reads records alone tells nothing
    cost |= {peak: max(before.get(peak, 0), told.get(peak, 0)) for peak in ("peak_bytes", "peak_gpu_bytes")}
    if goes_on and (not before or before.get("resumed")):
        cost["resumed"] = True
    cost["key"] = step.key
    write_atomically(folder / "costs.json", json.dumps({**read_costs(folder), step.notebook: cost}, indent=1))


def _drop_stale(study: str, step: Step) -> None:
    """Remove what an earlier version of the notebook has left: records that were made under another stamp."""
    of_now = provenance.notebook_hash(executed(study, step.notebook))  # not of the file, which may have been edited meanwhile
    for path in (places.runs(study) / "records" / step.notebook).rglob("*.json"):
        with suppress(ValueError):  # what is no record was not left by a notebook of ours
            stamp = read_stamp(path)
            if stamp.notebook_hash != of_now or stamp.parameters != step.parameters:
                path.unlink()


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
