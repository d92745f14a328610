"""What the records of a notebook that hold many results were put together from: a record a result, or an arm."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from depthprune_core import records

TRIALS = ("sweep", "trials_with_text")
FOLDERS = dict.fromkeys(TRIALS, "validation") | {
    "set_scores": "validation",
    "divergences": "divergence",
    "zero_shot": "zero_shot",
}


def of(path: Path) -> dict[str, Path | None]:
    """Name of a result in a record -> the file that says the same of it; None where none does, or one of its name says otherwise.

    path: <report or run>/records/<notebook>/<name>.json. Empty for a record that was not put together.
    """
    if path.stem == "curves":
        arms, curves = _arms(path.parents[2] / "arms"), records.read(path)
        return {name: next((arm for arm, other in arms.items() if other == curve), None) for name, curve in curves.items()}
    folder = _folder(path)
    return {} if folder is None else _same(path, _held(folder))


def _folder(path: Path) -> Path | None:
    """Where the pieces of a record lie."""
    if path.stem.removeprefix("timed_") == "elsewhere_scores":
        return path.parent / Path(records.read_stamp(path).parameters["elsewhere"]).name
    split = path.stem.removeprefix("timed_").removesuffix("_scores")
    name = split if split in {"test", "validation"} and path.stem.endswith("_scores") else FOLDERS.get(path.stem)
    return path.parent / name if name else None


def _same(path: Path, held: dict[str, tuple[Path, Any]]) -> dict[str, Path | None]:
    found: dict[str, Path | None] = {}
    for name, result in records.read(path).items():
        # Trials are run under their names as `sweep` makes file names of them; one that came again is not run again.
        own = "pilot-" + re.sub(r"[^\w.]+", "-", name) if path.stem in TRIALS else name
        others = [own] if own in held or path.stem not in TRIALS else held
        found[name] = next((held[other][0] for other in others if other in held and held[other][1] == result), None)
    return found


def _held(folder: Path) -> dict[str, tuple[Path, Any]]:
    """Name -> file and result; of a file with several, each by both names: "arm: task"."""
    held = {}
    for path in sorted(folder.glob("*.json")):
        content = records.read(path)
        results = (
            {f"{path.stem}: {name}": one for name, one in content.items()}
            if isinstance(content, dict)
            else {path.stem: content}
        )
        held |= {name: (path, one) for name, one in results.items()}
    return held


def _arms(folder: Path) -> dict[Path, Any]:
    """File -> curve of every recovery."""
    contents = {path: records.read(path) for path in sorted(folder.rglob("*.json"))}
    return {path: content["arm"] for path, content in contents.items() if isinstance(content, dict)}
