"""The parameters of each notebook: declared in its own cell, changed by a study's YAML, checked."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator, Mapping
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

from depthprune_core.records import Recipe
from depthprune_study import paths, provenance, yaml_files
from depthprune_study.errors import StudyError
from depthprune_study.ranges import Parameter, problems_of
from depthprune_study.yaml_files import short

# In the order in which they run; 09 chooses the recipe that all behind it read.
CHAIN = (
    "01_sensitivity",
    "02_prune",
    "09_recipe",
    "03_recovery",
    "04_transfer",
    "05_seed_stability",
    "06_controls",
    "07_choice",
    "08_limits",
    "your_model",
    "10_report",
)
DEFAULT = "quick"  # the study whose values stand in the notebooks
SWEEP = "sweep-"  # begins the names of a sweep's cells, which have no files under params/
SAME_MODEL = tuple(n for n in CHAIN if n not in ("04_transfer", "your_model", "10_report"))


def declared(notebook: str) -> dict[str, Parameter]:
    """Name -> parameter, from the notebook's cell tagged `parameters`. Raises StudyError."""
    path = paths.notebooks() / f"{notebook}.ipynb"
    return dict(_declared(path, path.stat().st_mtime_ns) if path.is_file() else _declared(path, 0))


@cache
def _declared(path: Path, mtime_ns: int) -> dict[str, Parameter]:
    cells = [c for c in provenance.read_cells(path) if "parameters" in provenance.tags(c)]
    if len(cells) != 1:
        raise StudyError(f"notebook {path} has {len(cells)} cells tagged `parameters`, not one")
    source = "".join(cells[0]["source"])
    try:
        return {parameter.name: parameter for parameter in _parsed(source)}
    except (SyntaxError, ValueError, tokenize.TokenError) as error:
        raise StudyError(f"notebook {path}, parameters cell: {error}") from None


def _parsed(source: str) -> Iterator[Parameter]:
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    helps = {t.start[0]: t.string.lstrip("# ") for t in tokens if t.type == tokenize.COMMENT}
    for node in ast.parse(source).body:
        if not (
            isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value
        ):
            raise ValueError(f"line {node.lineno} is not `name: type = value  # meaning`")
        name, type_ = node.target.id, ast.unparse(node.annotation)
        if re.fullmatch(r"list|dict|(list\[)?(str|int|float|bool)\]?", type_) is None:
            raise ValueError(f"{name}: its type {type_} is not str, int, float, bool, list or dict")
        yield Parameter(name, type_, ast.literal_eval(node.value), helps.get(node.end_lineno, ""))


def reads(notebook: str) -> tuple[str, ...]:
    """The notebooks whose records this one reads: those that its code names, in chain order."""
    if notebook == CHAIN[-1]:
        return CHAIN[:-1]
    tree = ast.parse(provenance.notebook_code(paths.notebooks() / f"{notebook}.ipynb"))
    named = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    return tuple(name for name in CHAIN if name in named and name != notebook)


def checked(notebook: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The notebook's defaults with these values. Raises StudyError that names every problem."""
    known = declared(notebook)
    problems = list(problems_of(known, values))
    if problems:
        raise StudyError("\n".join(f"{problem} ({notebook})" for problem in problems))
    return {name: parameter.default for name, parameter in known.items()} | dict(values)


def studies() -> list[str]:
    """Names of the studies that have parameters: the folders with a file of a notebook."""
    folders = [folder for folder in paths.params().iterdir() if folder.is_dir()]
    return sorted(f.name for f in folders if any((f / f"{n}.yaml").is_file() for n in CHAIN))


def notebooks_of(study: str) -> tuple[str, ...]:
    """The notebooks that a study runs, in order: those with a file in params/<study>/."""
    if study not in studies():
        raise StudyError(f"study {study!r} is not known: name one of {', '.join(studies())}")
    folder = paths.params() / study
    return tuple(name for name in CHAIN if (folder / f"{name}.yaml").is_file())


def of_study(study: str) -> dict[str, dict[str, Any]]:
    """Notebook -> all its parameters, in order. Raises StudyError that names every problem."""
    notebooks = notebooks_of(study)
    found: dict[str, dict[str, Any]] = {}
    problems: list[str] = []
    for path in sorted((paths.params() / study).glob("*.yaml")):
        if path.stem not in CHAIN:
            problems.append(f"there is no notebook {path.stem} (params/{study}/{path.name})")
    for notebook in notebooks:
        where = f"(params/{study}/{notebook}.yaml)"
        wrong, differences = yaml_files.read(paths.params() / study / f"{notebook}.yaml")
        known = declared(notebook)
        wrong += list(problems_of(known, differences))
        if not wrong and differences.get("study", DEFAULT) != study:
            wrong.append(
                f"study must be {study}, as the folder says: write the line `study: {study}`"
            )
        problems += [f"{problem} {where}" for problem in wrong]
        found[notebook] = {p.name: p.default for p in known.values()} | differences
    problems += _disagreements(study, found) if not problems else []
    try:
        recipe_values()
    except StudyError as error:
        problems += str(error).splitlines()
    if problems:
        raise StudyError("\n".join(problems))
    return found


def _disagreements(study: str, found: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """What a notebook says otherwise than 01, whose records lead to its own."""
    together = [name for name in SAME_MODEL if name in found and "model" in found[name]]
    for name in together[1:]:
        for key in ("model", "text"):
            wanted = found[together[0]].get(key)
            if key in found[name] and wanted is not None and found[name][key] != wanted:
                where = f"(params/{study}/{name}.yaml)"
                yield f"{key} must be {short(wanted)}, as in {together[0]}.yaml, {where}"
    cuts = found.get("02_prune", {})
    for name in ("03_recovery", "09_recipe"):
        k, rule = (found.get(name, {}).get(key) for key in ("drop_count", "rule"))
        where = f"(params/{study}/{name}.yaml)"
        if k and cuts and k not in cuts["drop_counts"]:
            yield f"drop_count must be one of 02_prune's {cuts['drop_counts']}, not {k} {where}"
        elif k and cuts and rule == "exhaustive" and k > cuts["exhaustive_to"]:
            most = f"02_prune's exhaustive_to={cuts['exhaustive_to']}"
            yield f"rule=exhaustive needs every set of {k} layers, but {most} {where}"


def resolved(notebook: str, cell_values: Mapping[str, Any]) -> dict[str, Any]:
    """The cell's values, checked; in a study that is not the default, what still is the notebook's
    default is taken from that study's file: so that one changed line of a badge's cell is enough.
    """
    values = {name: cell_values[name] for name in declared(notebook) if name in cell_values}
    study = values.get("study", DEFAULT)
    if study != DEFAULT and not str(study).startswith(SWEEP):
        if notebook not in notebooks_of(study):
            raise StudyError(f"study {study} does not run notebook {notebook}")
        of_the_study, known = of_study(study)[notebook], declared(notebook)
        values |= {n: of_the_study[n] for n, v in values.items() if v == known[n].default}
    return checked(notebook, values)


def recipe_values(path: Path | None = None) -> dict[str, Any]:
    """params/recipe.yaml as the fields of a Recipe; empty where there is no such file.

    `precision` may be `auto` there. Raises StudyError that names every problem.
    """
    path = path or paths.params() / "recipe.yaml"
    if not path.is_file():
        return {}
    wrong, values = yaml_files.read(path)
    known = {f.name: Parameter(f.name, str(f.type), None, "") for f in fields(Recipe)}
    wrong += list(problems_of(known, values))
    if not wrong:
        auto = {"precision": "float32"} if values.get("precision") == "auto" else {}
        try:
            Recipe(**{"tokens": 10**9, "lr": 1e-4} | values | auto)
        except ValueError as error:
            wrong.append(str(error))
    if wrong:
        raise StudyError("\n".join(f"{problem} (params/{path.name})" for problem in wrong))
    return values
