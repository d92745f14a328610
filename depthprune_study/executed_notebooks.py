"""What executed notebooks say of themselves, and whether the records beside them are theirs."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from depthprune_core import records
from depthprune_study import provenance
from depthprune_study.settings import SCHEMAS


def of_other_notebooks(folder: Path, root: Path) -> Iterator[str]:
    """Records that another version of their notebook, or other parameters, have left."""
    for notebook in SCHEMAS:
        cells = cells_of(folder / "notebooks" / f"{notebook}.ipynb")
        if cells is None:
            continue
        now, parameters = provenance.hash_of_cells(cells), injected(cells)
        if parameters is None:
            yield f"notebooks/{notebook}.ipynb was given parameters that are no plain values"
            continue
        for path in sorted((root / notebook).rglob("*.json")):
            stamp = records.read_stamp(path)
            if stamp.notebook_hash != now:
                yield f"{path.relative_to(folder)} was made by another version of notebook {notebook} than the one beside it"
            elif stamp.parameters != parameters:
                yield f"{path.relative_to(folder)} was made with other parameters than notebook {notebook} shows"


def cells_of(path: Path) -> list[dict[str, Any]] | None:
    """The cells of a notebook; None where it is missing or no valid one."""
    import nbformat

    try:
        notebook = nbformat.reads(path.read_text(encoding="utf-8"), as_version=4)
        nbformat.validate(notebook)
    except Exception:  # nbformat says many things of what is no notebook
        return None
    return notebook.cells


def injected(cells: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The parameters that papermill wrote into an executed notebook; read, never executed. None where they are no plain values."""
    values: dict[str, Any] = {}
    for cell in cells:
        if "injected-parameters" in cell["metadata"].get("tags", []):
            try:
                for node in ast.parse("".join(cell["source"])).body:
                    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                        values[node.targets[0].id] = ast.literal_eval(node.value)
            except (ValueError, SyntaxError):
                return None
    return values
