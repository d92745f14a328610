"""Provenance of a result: hashes of code and notebooks, versions, the commit, the stamp."""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import json
import re
import subprocess
from collections.abc import Collection, Iterable
from functools import cache
from pathlib import Path
from typing import Any

from depthprune_study import paths
from depthprune_study.errors import StudyError

PACKAGES = ("depthprune_core", "depthprune_study")
LIBRARIES = ("torch", "transformers", "tokenizers", "peft", "numpy", "scipy")  # can change a number


def code_hash(*modules: str, without: Collection[str] = ()) -> str:
    """Hash of these modules and of our modules that they import; docstrings do not count.

    without: modules that do not count, nor do those that only they import.
    """
    digest = hashlib.sha256()
    for module in sorted(closure(modules, without)):
        file = _file_of(module)
        digest.update(module.encode() + _meaning(file, file.stat().st_mtime_ns).encode())
    return digest.hexdigest()[:16]


def closure(modules: Iterable[str], without: Collection[str] = ()) -> set[str]:
    """These modules and all modules of this project that they import, directly or indirectly."""
    found: set[str] = set()
    waiting = list(modules)
    while waiting:
        module = waiting.pop()
        if module not in found and module not in without:
            found.add(module)
            waiting += [module.rpartition(".")[0]] if "." in module else []
            waiting += imports(_file_of(module).read_text(encoding="utf-8"), module)
    return found


@cache  # a study's keys ask for the same sources many times
def imports(source: str, importer: str = "") -> tuple[str, ...]:
    """Modules and packages of this project that a source imports. `importer`: the source's name."""
    names: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:  # from . import x
                raise StudyError(f"{importer}: relative imports are not followed; name the module")
            names += [base, *(f"{base}.{alias.name}" for alias in node.names)]
    ours = [name for name in names if name.split(".")[0] in PACKAGES]
    return tuple(dict.fromkeys(name for name in ours if _file_of(name).exists()))


def notebook_code(path: Path) -> str:
    """The Python of a notebook's code cells; a shell or magic line becomes `pass`."""
    sources = ["".join(c["source"]) for c in read_cells(path) if c["cell_type"] == "code"]
    code = re.sub(r"^([ \t]*)[!%].*", r"\1pass", "\n".join(sources), flags=re.MULTILINE)
    try:
        ast.parse(code)
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "text", "") or ""
        raise StudyError(
            f"notebook {path}: its code is not valid Python: {error} {line.strip()}"
        ) from None
    return code


def notebook_hash(path: Path, *, prose: bool = False) -> str:
    """Hash of a notebook's code cells, with `prose` also of its text; never of its outputs.

    The cell that papermill injects is ignored, so an executed copy has the hash of its original.
    """
    content = [
        [cell["cell_type"], "".join(cell["source"])]
        for cell in read_cells(path)
        if "injected-parameters" not in tags(cell) and (prose or cell["cell_type"] == "code")
    ]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def read_cells(path: Path) -> list[dict[str, Any]]:
    """A notebook's cells. Raises StudyError if the file is missing, damaged or not a notebook."""
    try:
        cells = json.loads(Path(path).read_text(encoding="utf-8"))["cells"]
        for cell in cells:
            "".join(cell["source"]), cell["cell_type"], tags(cell)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise StudyError(f"notebook {path} cannot be read ({type(error).__name__})") from None
    return cells


def tags(cell: dict[str, Any]) -> list[str]:
    """A cell's tags."""
    return cell["metadata"].get("tags", [])


def versions() -> dict[str, str]:
    """Versions of the libraries that can change a number."""
    return {name: version(name) for name in LIBRARIES}


@cache
def version(package: str) -> str:
    """The version of an installed package; `absent` if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


@cache
def commit() -> str:
    """The code's commit, with `+changes` if files differ from it; `no-git` without git."""
    if paths.checkout() is None:
        return f"release {version('depthprune')}"
    asked = ["status", "--porcelain", "--", *PACKAGES, "notebooks", "params"]
    try:
        head, changed = _git("rev-parse", "--short=12", "HEAD"), _git(*asked)
    except (OSError, subprocess.CalledProcessError):
        return "no-git"
    return head + ("+changes" if changed else "")


def _git(*words: str) -> str:
    command = ["git", "-C", str(paths.CODE), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _file_of(module: str) -> Path:
    path = paths.CODE / Path(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@cache
def _meaning(path: Path, mtime_ns: int) -> str:
    """A source as its syntax tree without docstrings; `mtime_ns` keeps the cache valid."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    for node in ast.walk(tree):
        if isinstance(node, kinds) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.dump(tree)
