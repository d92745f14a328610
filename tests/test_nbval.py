"""The committed notebooks of the ci study run anew, from nothing, and come to the same facts (nbval)."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from depthprune_study import places, run

REPORT = places.reports("ci") / "notebooks"
NAMES = tuple(run.READS)
CHECKED = "nbval-check-output"


def checked_cells(path: Path) -> list[dict]:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if CHECKED in cell["metadata"].get("tags", [])]


def copied(names: tuple[str, ...], folder: Path) -> list[Path]:
    (folder / "notebooks").mkdir()
    return [Path(shutil.copy(REPORT / f"{name}.ipynb", folder / "notebooks")) for name in names]


def nbval(notebooks: list[Path], folder: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "pytest", "-q", "--nbval-lax", "--nbval-current-env", "--nbval-cell-timeout", "300"]
    environment = {**os.environ, "DEPTHPRUNE_RUNS": str(folder / "runs"), "PYTHONDONTWRITEBYTECODE": "1"}
    command += ["-p", "no:cacheprovider", "--rootdir", str(folder), *map(str, notebooks)]
    return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)


def tracked() -> dict[str, str]:
    """Content of every tracked file (of the source alone where there is no repository)."""
    listed = subprocess.run(["git", "-C", str(places.ROOT), "ls-files", "-z"], capture_output=True, text=True)
    names = listed.stdout.split("\0")[:-1] if listed.returncode == 0 and listed.stdout else []
    paths = [places.ROOT / name for name in names] or [*places.NOTEBOOKS.rglob("*"), *REPORT.rglob("*")]
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths if path.is_file() and path.suffix != ".py"
    }


@pytest.mark.parametrize("name", NAMES)
def test_every_committed_notebook_was_executed_and_compares_something(name: str) -> None:
    cells = checked_cells(REPORT / f"{name}.ipynb")
    assert cells
    assert all(output["output_type"] == "execute_result" for cell in cells for output in cell["outputs"])
    assert all(cell["outputs"] for cell in cells)


@pytest.mark.parametrize("names", [NAMES[:2], pytest.param(NAMES, marks=pytest.mark.slow)], ids=["the first two", "all"])
def test_the_committed_notebooks_come_to_the_same_facts_when_they_run_anew(tmp_path: Path, names: tuple[str, ...]) -> None:
    before = tracked()
    done = nbval(copied(names, tmp_path), tmp_path)
    assert done.returncode == 0, done.stdout[-4_000:] + done.stderr[-2_000:]
    assert " passed" in done.stdout
    recorded = sorted(path.name for path in (tmp_path / "runs" / "ci" / "records").iterdir())
    assert recorded == [name for name in names if name != NAMES[-1]]  # they did run
    assert tracked() == before


def test_a_fact_that_was_tampered_with_is_noticed(tmp_path: Path) -> None:
    (path,) = copied(NAMES[:1], tmp_path)
    notebook = json.loads(path.read_text(encoding="utf-8"))
    (cell,) = (cell for cell in notebook["cells"] if CHECKED in cell["metadata"].get("tags", []))
    (output,) = cell["outputs"]
    said = "".join(output["data"]["text/plain"])
    assert "'layers': 12" in said
    output["data"]["text/plain"] = said.replace("'layers': 12", "'layers': 13")
    path.write_text(json.dumps(notebook), encoding="utf-8")
    done = nbval([path], tmp_path)
    assert done.returncode == 1, done.stdout[-4_000:]
    assert "1 failed" in done.stdout
    assert "'layers': 13" in done.stdout
