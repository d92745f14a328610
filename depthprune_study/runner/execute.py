"""Executes one notebook with papermill in its own kernel; reports failures in one sentence."""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from depthprune_core.storage import write_atomically
from depthprune_study import paths, provenance
from depthprune_study.errors import StudyError

FULL_DISK_BYTES = 1_000_000  # with less free space, a failure counts as a full disk
EVERY_SECONDS = 30  # between two lines of progress without a terminal
WATCH_SECONDS = 0.25  # between two looks at the memory


def execute(
    notebook: Path, target: Path, parameters: Mapping[str, Any], *, log: Path, terminal: TextIO
) -> int:
    """Execute it in its folder; write the executed copy to `target` and its output to `log`.

    Returns the peak memory of its kernel, in bytes. Raises StudyError if it fails; the partial
    notebook is kept beside `target`.
    """
    import papermill
    from traitlets.config import Config

    from depthprune_study.runner import kernels

    logging.getLogger("papermill").setLevel(logging.ERROR)
    unfinished, failure = partial(target), ""
    for folder in (target.parent, log.parent):
        folder.mkdir(parents=True, exist_ok=True)
    with (
        open(log, "w", encoding="utf-8") as output,
        tempfile.TemporaryDirectory(prefix="depthprune-") as sockets,
        peak_memory() as peak,
        _variables(DEPTHPRUNE_HOME=str(paths.home()), DEPTHPRUNE_BARS="stderr"),
    ):
        try:
            papermill.execute_notebook(
                _literal(notebook),
                _literal(unfinished),
                parameters=dict(parameters),
                kernel_name="python3",
                kernel_manager_class=kernels.manager(),
                progress_bar=False,
                stdout_file=output,
                stderr_file=Screen(output, terminal),
                cwd=notebook.parent,
                start_timeout=180,
                coalesce_streams=True,
                # Socket files instead of ports, which other users could reach.
                config=Config({"KernelManager": {"transport": "ipc", "ip": f"{sockets}/kernel"}}),
            )
        except Exception as error:  # any failure is reported in one sentence
            failure = _reason(error)
    if terminal.isatty():
        terminal.write("\r\033[K")  # clear the progress line
    if failure := failure or not_executed(unfinished):
        kept = f"partial notebook: {os.path.relpath(unfinished)}\noutput: {os.path.relpath(log)}"
        raise StudyError(f"{_with_a_hint(failure, unfinished.parent)}\n{kept}")
    tidy(unfinished)
    os.replace(unfinished, target)
    return peak[0]


@contextmanager
def _variables(**values: str) -> Iterator[None]:
    """Environment variables within the block; kernels that start in it have them."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def partial(target: Path) -> Path:
    """The path of a notebook during execution, and after it was stopped."""
    return target.with_name(f".{target.name}.partial.ipynb")


def not_executed(path: Path) -> str:
    """Why an executed notebook is incomplete; empty if it is complete.

    A dead kernel leaves a notebook marked `completed`, so the cells are checked.
    """
    if not path.is_file():
        return "it did not start"
    cells = [c for c in provenance.read_cells(path) if c["cell_type"] == "code"]
    for number, cell in enumerate(cell for cell in cells if "".join(cell["source"]).strip()):
        if any(output["output_type"] == "error" for output in cell["outputs"]):
            return f"code cell {number} raised an error"
        if cell["execution_count"] is None:
            return f"code cell {number} was never executed: the kernel died"
    return ""


def tidy(path: Path) -> None:
    """Remove content that differs between runs: papermill's times, widgets, stderr."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    for key in ("papermill", "widgets"):
        notebook["metadata"].pop(key, None)
    for cell in notebook["cells"]:
        for key in ("papermill", "execution"):
            cell["metadata"].pop(key, None)
        if "injected-parameters" in provenance.tags(cell):
            cell["id"] = "injected-parameters"  # papermill draws a new one each time
        if cell["cell_type"] == "code":
            cell["outputs"] = [output for output in cell["outputs"] if _says_something(output)]
    write_atomically(path, json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")


@contextmanager
def peak_memory() -> Iterator[list[int]]:
    """A list of one number: the peak memory of any child process, in bytes."""
    import psutil

    peak, stop, this = [0], threading.Event(), psutil.Process()

    def watch() -> None:
        while not stop.wait(WATCH_SECONDS):
            with suppress(psutil.Error):  # the process has just ended
                held = [child.memory_info().rss for child in this.children(recursive=True)]
                peak[0] = max(peak[0], *held, 0)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        stop.set()
        thread.join()


class Screen:
    """Passes a kernel's stderr (mostly progress) to the log and to a terminal as it comes.

    Without a terminal, it prints the last line every half a minute.
    """

    def __init__(self, log: TextIO, terminal: TextIO) -> None:
        self.log, self.terminal, self.said = log, terminal, time.monotonic()

    def write(self, text: str) -> None:
        self.log.write(text)
        self.log.flush()
        lines = text.strip().splitlines()
        if self.terminal.isatty():
            self.terminal.write(text)
        elif lines and time.monotonic() - self.said > EVERY_SECONDS:
            self.terminal.write(f"  {lines[-1].strip()}\n")
            self.said = time.monotonic()
        self.terminal.flush()

    def flush(self) -> None:
        self.log.flush()


def _literal(path: Path) -> str:
    """The path with braces escaped, because papermill reads braces as parameters."""
    return str(path).replace("{", "{{").replace("}", "}}")


def _reason(error: Exception) -> str:
    name = getattr(error, "ename", type(error).__name__)
    value = getattr(error, "evalue", str(error)).strip()
    return value if name in {"StudyError", "ValueError"} else f"{name}: {value}"


def _with_a_hint(failure: str, folder: Path) -> str:
    """The failure, with advice if disk or memory ran out."""
    if "No space left" in failure or shutil.disk_usage(folder).free < FULL_DISK_BYTES:
        return f"the disk is full ({failure}): free some space, then run the same command again"
    if any(sign in failure for sign in ("MemoryError", "OutOfMemoryError", "allocate memory")):
        return f"memory ran out ({failure}): use a smaller model, or shorter or fewer windows"
    died = any(s in failure.lower() for s in ("kernel died", "could not create a primitive"))
    return f"{failure} (often because memory ran out)" if died else failure


def _says_something(output: dict[str, Any]) -> bool:
    """Whether an output is neither stderr nor an emptied display."""
    if output.get("name") == "stderr":
        return False
    data = output.get("data")
    return data is None or any("".join(value) for value in data.values())
