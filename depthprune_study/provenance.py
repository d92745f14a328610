"""Where a result comes from: hashes of code, notebook, inputs; versions, device, commit."""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import json
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

from depthprune_core.records import Stamp
from depthprune_study import places
from depthprune_study.settings import StudyError

PACKAGES = ("depthprune_core", "depthprune_study")
LIBRARIES = ("torch", "transformers", "tokenizers", "numpy", "scipy", "mwparserfromhell", "matplotlib")


def code_hash(*modules: str) -> str:
    """Hash of these modules and of all of ours that they import, docstrings and comments apart."""
    digest = hashlib.sha256()
    for module in sorted(closure(modules)):
        digest.update(module.encode() + _meaning(_file_of(module)).encode())
    return digest.hexdigest()[:16]


def closure(modules: tuple[str, ...] | list[str]) -> set[str]:
    """These modules of ours and all of ours that they import, directly or not."""
    found: set[str] = set()
    waiting = list(modules)
    while waiting:
        module = waiting.pop()
        if module not in found:
            found.add(module)
            waiting += imports(_file_of(module).read_text(encoding="utf-8"))
    return found


def imports(source: str) -> list[str]:
    """Modules of ours that a Python source imports."""
    return [name for name in _imported(source) if _file_of(name).exists()]


@cache  # a study's keys ask for the same sources many times
def _imported(source: str) -> list[str]:
    names: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return [name for name in names if name.split(".")[0] in PACKAGES and "." in name]


def notebook_code(path: Path) -> str:
    """The Python of a notebook's code cells, without shell and magic lines."""
    sources = ["".join(cell["source"]) for cell in read_cells(path) if cell["cell_type"] == "code"]
    lines = "\n".join(sources).split("\n")
    code = "\n".join("    pass" if line.lstrip().startswith(("!", "%")) else line for line in lines)
    try:
        ast.parse(code)
    except (SyntaxError, ValueError, RecursionError) as error:
        line = getattr(error, "lineno", None)
        where = f" (in {lines[line - 1].strip()[:60]!r})" if line and line <= len(lines) else ""
        raise StudyError(f"notebook {path}: its code is no Python: {getattr(error, 'msg', error)}{where}") from None
    return code


def notebook_hash(path: Path, *, prose: bool = False) -> str:
    """Hash of a notebook's code cells, with `prose` of its text too; outputs and execution counts apart."""
    return hash_of_cells(read_cells(path), prose=prose)


def read_cells(path: Path) -> list[dict[str, Any]]:
    """A notebook's cells. Raises StudyError for a file that is damaged, or no notebook."""
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        whole = all(_is_cell(cell) for cell in cells)
    except (ValueError, RecursionError, LookupError, TypeError) as error:
        reason = " ".join(str(error).split())[:120]
        raise StudyError(f"notebook {path} is damaged, or is no notebook ({type(error).__name__}: {reason})") from None
    if not whole:
        raise StudyError(f"notebook {path} is damaged: a cell of it has no kind, no metadata or no source")
    return cells


def _is_cell(cell: Any) -> bool:
    source = cell["source"]
    lines = source if isinstance(source, list) else [source]
    tags = cell["metadata"].get("tags", []) if isinstance(cell["metadata"], dict) else None
    return isinstance(cell["cell_type"], str) and isinstance(tags, list) and all(isinstance(line, str) for line in lines)


def hash_of_cells(cells: list[dict[str, Any]], *, prose: bool = False) -> str:
    """The same of a notebook's cells; the cell that papermill injects is left out, so that an executed copy has its original's hash."""
    own = [cell for cell in cells if "injected-parameters" not in cell["metadata"].get("tags", [])]
    content = [[cell["cell_type"], "".join(cell["source"])] for cell in own if prose or cell["cell_type"] == "code"]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


@cache
def versions() -> dict[str, str]:
    """Versions of the libraries that can change a number."""
    return {name: importlib.metadata.version(name) for name in LIBRARIES}


@cache
def commit() -> str:
    """The commit of the code, with `+changes` where tracked code differs from it; `no-git` outside a repository or without git."""
    if shutil.which("git") is None:
        return "no-git"
    git = ["git", "-C", str(places.ROOT)]
    head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True)
    if head.returncode != 0:
        return "no-git"
    changed = subprocess.run(
        [*git, "status", "--porcelain", "--", *PACKAGES, "notebooks", "params"], capture_output=True, text=True
    )
    return head.stdout.strip() + ("+changes" if changed.stdout.strip() else "")


def stamp(
    *,
    study: str,
    notebook: str,
    notebook_hash: str,
    step: str,
    modules: tuple[str, ...],
    parameters: dict[str, Any],
    inputs: dict[str, str],
    device: str,
    dtype: str,
    seed: int,
) -> Stamp:
    """The stamp of one piece of work of one notebook. `notebook_hash`: of the notebook as it was when its cells were read."""
    return Stamp(
        study=study,
        step=f"{notebook}/{step}",
        code_hash=code_hash(*modules),
        notebook_hash=notebook_hash,
        parameters=parameters,
        inputs=inputs,
        versions=versions(),
        device=device,
        dtype=dtype,
        seed=seed,
        commit=commit(),
    )


def _file_of(module: str) -> Path:
    return places.ROOT / Path(*module.split(".")).with_suffix(".py")


@cache
def _meaning(path: Path) -> str:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            and ast.get_docstring(node, clean=False) is not None
        ):
            node.body = node.body[1:] or [ast.Pass()]
    return ast.dump(tree)
