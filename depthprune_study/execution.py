"""One notebook executed by papermill in a kernel of its own: progress shown, what stopped it told in a sentence, the result made tidy."""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from depthprune_core.records import write_atomically
from depthprune_study.settings import StudyError

# How long an idle OpenMP thread spins before it sleeps: long enough for a study alone, short enough beside other work (GNU OpenMP).
SPINS = {"GOMP_SPINCOUNT": "10000"}
FULL_DISK_BYTES = 1_000_000  # with less left, whatever failed did so for want of room


def execute(
    notebook: Path, target: Path, parameters: dict[str, Any], *, cwd: Path, log: Path, progress: Path, terminal: TextIO
) -> None:
    """Execute it in `cwd`; leave the executed copy at `target`, and what it printed at `log`.

    `progress`: the file in which it tells how far it is. Raises StudyError when it fails; a partial notebook is kept beside `target`.
    """
    import papermill
    from traitlets.config import Config

    logging.getLogger("papermill").setLevel(logging.ERROR)
    for name, value in SPINS.items():  # kernels inherit it
        os.environ.setdefault(name, value)
    unfinished = partial(target)
    for folder in (target.parent, log.parent):
        folder.mkdir(parents=True, exist_ok=True)
    failure = ""
    with (
        open(log, "w", encoding="utf-8") as output,
        tempfile.TemporaryDirectory(prefix="depthprune-") as sockets,  # else the files lie among the notebooks
        _shown(progress, terminal),
    ):
        try:
            papermill.execute_notebook(
                _literal(notebook),
                _literal(unfinished),
                parameters=parameters,
                kernel_name="python3",
                progress_bar=False,
                stdout_file=output,
                stderr_file=output,
                cwd=cwd,
                start_timeout=180,
                coalesce_streams=True,
                # Socket files: no port that others could reach.
                config=Config({"KernelManager": {"transport": "ipc", "ip": f"{sockets}/kernel"}}),
            )
        except Exception as error:  # whatever stops a notebook is told in one sentence, and the partial notebook is kept
            failure = _reason(error)
    if failure := failure or _not_executed(unfinished):
        kept = f"the partial notebook: {os.path.relpath(unfinished)}\nits output: {os.path.relpath(log)}"
        raise StudyError(f"{_with_a_hint(failure, unfinished.parent)}\n{kept}")
    _tidy(unfinished)
    os.replace(unfinished, target)


def partial(target: Path) -> Path:
    """Where a notebook lies while it is executed, and where one that was stopped is left."""
    return target.with_name(f".{target.name}.partial.ipynb")


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
    is_likely = any(sign in failure.lower() for sign in ("kernel died", "could not create a primitive"))  # the second: oneDNN
    return f"{failure} (often because memory ran out)" if is_likely else failure


def _not_executed(path: Path) -> str:
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
