"""A toy study of three small notebooks in its own folder, for the runner's tests."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from depthprune_study import paths

ROOT = Path(__file__).resolve().parents[1]
PARAMETERS = 'study: str = "quick"  # folder\ntokens: int = 8  # of training\n'
SAVE = """\
from pathlib import Path

from depthprune_core import storage
from depthprune_core.records import Facts
from depthprune_study import paths, provenance

here, given = "{name}", {"study": study, "tokens": tokens}
stamp = storage.Stamp(
    study=study, step=here + "/facts", code_hash=provenance.code_hash("depthprune_core.records"),
    notebook_hash=provenance.notebook_hash(Path(here + ".ipynb")), parameters=given, inputs={},
    versions={}, device="cpu", dtype="float32", seed=0, commit="",
)
records = paths.runs(study) / "records"
"""
WORK = {
    "01_sensitivity": "n = tokens",
    "02_prune": 'n = 2 * storage.read(records / "01_sensitivity" / "facts.json").values["n"]',
    "10_report": 'n = storage.read(records / "02_prune" / "facts.json").values["n"] + 1',
}
KEEP = """\
storage.write(records / here / "facts.json", Facts({"n": n}), stamp)
print("kept", n)"""


def code_cell(source: str, number: int, tags: list[str] | None = None) -> dict[str, Any]:
    metadata = {"tags": tags} if tags else {}
    return {
        "cell_type": "code",
        "id": f"cell-{number}",
        "metadata": metadata,
        "source": source,
        "execution_count": None,
        "outputs": [],
    }


def notebook(*sources: str, parameters: str = PARAMETERS) -> str:
    """A notebook whose first cell holds the parameters."""
    cells = [code_cell(parameters, 0, ["parameters"])]
    cells += [code_cell(source, number) for number, source in enumerate(sources, start=1)]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    content = {
        "cells": cells,
        "metadata": {"kernelspec": kernel},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    return json.dumps(content)


def build(folder: Path) -> Path:
    """Notebooks and parameters of the studies `quick` and `toy`."""
    for name, work in WORK.items():
        write(folder, name, SAVE.replace("{name}", name), work, KEEP)
        for study in ("quick", "toy"):
            path = folder / "params" / study / f"{name}.yaml"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("" if study == "quick" else "study: toy\ntokens: 16\n")
    (folder / "params" / "claims.yaml").write_text("C1: {}\n")
    (folder / "params" / "recipe.yaml").write_text("batch_tokens: 8\nseq_len: 8\n")
    return folder


def write(folder: Path, name: str, *sources: str, parameters: str = PARAMETERS) -> Path:
    path = folder / "notebooks" / f"{name}.ipynb"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(notebook(*sources, parameters=parameters))
    return path


def checkout(folder: Path) -> Path:
    """The toy study as a separate checkout with the code, for commands in other processes."""
    build(folder)
    shutil.copy(ROOT / "pyproject.toml", folder)
    for package in ("depthprune_core", "depthprune_study"):
        ignored = shutil.ignore_patterns("__pycache__", "*.gz")
        shutil.copytree(ROOT / package, folder / package, ignore=ignored)
    return folder


def enter(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in this folder as if it were a checkout; its kernels import the code from here."""
    monkeypatch.setenv("DEPTHPRUNE_HOME", str(folder))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for name in ("DEPTHPRUNE_RUNS", "DEPTHPRUNE_REPORTS", "DEPTHPRUNE_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(paths, "shipped", lambda name: folder / name)
    monkeypatch.setattr("depthprune_study.runner.prepare.shipped", tuple)
    return folder
