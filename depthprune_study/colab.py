"""Functions of notebooks/colab.ipynb: machine, drive, a study with progress, its report."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from html import escape
from pathlib import Path

from IPython.display import HTML, Markdown

from depthprune_study import paths
from depthprune_study.errors import StudyError

DRIVE = Path("/content/drive/MyDrive/depthprune")
NEEDED = ("papermill", "psutil", "filelock", "seaborn", "gguf")  # to run notebooks
ROOM_BYTES = 2 * 2**30  # of a drive: records and checkpoints, with room to spare
STAYS = (".safetensors", ".tmp", ".part")  # not copied: weights, and unfinished files
EVERY_SECONDS = 300  # between two copies to the drive


def prepare(study: str, *, keep_on_drive: bool = False) -> Markdown:
    """Mount the drive if asked, install missing packages, and say what the study needs.

    The study runs on the machine. Records on the drive are copied back. Weights are not stored on
    the drive, because a drive is small; they are made again if needed. Raises StudyError.
    """
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    lines = [_device(), f"{memory:.0f} GiB of memory"]
    if keep_on_drive:
        lines.append(mounted(study))
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        _install(missing)
        lines.append(f"installed: {', '.join(missing)}")
    from depthprune_study.runner import chain, estimate

    lines += [line.strip() for line in estimate.lines(study, chain.plan(study))]
    return Markdown("\n".join(f"- {line}" for line in lines))


def run(study: str, *, keep_on_drive: bool = False) -> None:
    """Run `depthprune run STUDY` in a separate process and print its output as it comes.

    Raises StudyError if it stopped; running the same cell again resumes it.
    """
    command = [sys.executable, "-m", "depthprune_study", "run", study]
    environment = {**os.environ, "DEPTHPRUNE_HOME": str(paths.home()), "PYTHONUNBUFFERED": "1"}
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with (
        kept_on_drive(study) if keep_on_drive else nullcontext(),
        subprocess.Popen(command, env=environment, text=True, **output) as process,
    ):
        for line in process.stdout:
            print(line, end="", flush=True)
    if process.returncode != 0:
        raise StudyError(f"study {study} stopped: see the lines above, then run this cell again")


def show_report(study: str) -> HTML:
    """The report inside the notebook's page. Raises StudyError if it is missing."""
    page = paths.reports(study) / "report.html"
    if not page.is_file():
        raise StudyError(f"study {study} has no report yet: run the cell above to its end")
    frame = 'style="width: 100%; height: 900px; border: 0" title="report"'
    content = escape(page.read_text(encoding="utf-8"))
    # IPython warns of an iframe that is not inside something.
    return HTML(f'<div><iframe {frame} srcdoc="{content}"></iframe></div>')


def mounted(study: str) -> str:
    """Copies the study's files from the drive; returns a line about the drive's free space."""
    if "google.colab" in sys.modules:
        from google.colab import drive

        drive.mount(str(DRIVE.parents[1]))
    if not DRIVE.parent.is_dir():
        raise StudyError("no Google Drive is mounted: set keep_on_drive to False")
    DRIVE.mkdir(exist_ok=True)
    for here, there in _folders(study).items():
        _copy(there, here)
    free = shutil.disk_usage(DRIVE).free
    room = "" if free > ROOM_BYTES else ": a study needs 2 GiB; delete files first"
    return f"drive: {free / 2**30:.1f} GiB free{room}; records and checkpoints go to {DRIVE}"


def _folders(study: str) -> dict[Path, Path]:
    """Folder on the machine -> its copy on the drive."""
    return {
        paths.runs(study): DRIVE / "runs" / study,
        paths.reports(study): DRIVE / "reports" / study,
    }


@contextmanager
def kept_on_drive(study: str) -> Iterator[None]:
    """Copies to the drive during the block and at its end."""
    stop = threading.Event()

    def keep() -> None:
        while not stop.wait(EVERY_SECONDS):
            with suppress(OSError):  # reported at the end
                to_drive(study)

    thread = threading.Thread(target=keep, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        try:
            to_drive(study)
        except OSError as error:
            raise StudyError(f"the drive could not be written ({error.strerror})") from None


def to_drive(study: str) -> None:
    for here, there in _folders(study).items():
        _copy(here, there)
        for checkpoint in there.rglob("*.ckpt"):  # of runs that are over
            if not (here / checkpoint.relative_to(there)).exists():
                checkpoint.unlink()


def _copy(source: Path, target: Path) -> None:
    """Copies files that are newer in `source`, except weights and the whole model's states."""
    for file in [path for path in source.rglob("*") if path.is_file()]:
        name = file.relative_to(source)
        to, part = target / name, target / f"{name}.part"
        if file.suffix in STAYS or file.name == ".lock" or name.parts[0] == "teacher":
            continue
        with suppress(FileNotFoundError):  # the run has just replaced it: copied next time
            if not to.exists() or _age(to) < _age(file):
                to.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(file, part)
                os.replace(part, to)


def _age(file: Path) -> tuple[int, int]:
    """Whole seconds, as a drive keeps them, then the size."""
    return int(file.stat().st_mtime), file.stat().st_size


def _install(missing: list[str]) -> None:
    pip = [sys.executable, "-m", "pip", "install", "--quiet", *missing]
    done = subprocess.run(pip, capture_output=True, text=True)
    importlib.invalidate_caches()
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise StudyError(f"{', '.join(missing)} could not be installed: {reason}")


def _device() -> str:
    import torch

    if not torch.cuda.is_available():
        return f"no GPU; {os.cpu_count()} CPU cores (for `full` and `full-t4`: Runtime, T4 GPU)"
    gpu = torch.cuda.get_device_properties(0)
    return f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB"
