"""Notebook parameters: declared in the notebook, changed by a study's YAML, checked here."""

from __future__ import annotations

import ast
import importlib.util
import io
import tokenize
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from depthprune_core.records import Recipe
from depthprune_study import paths, provenance
from depthprune_study.errors import StudyError
from depthprune_study.ranges import TYPES, Parameter, problems_of, short

# In running order; 09 chooses the recipe that all later notebooks read.
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
DEFAULT = "quick"  # the study whose values are the notebooks' defaults
SWEEP, OWN = "sweep-", "prune-"  # name prefixes of studies that have no files under params/
OTHER_MODEL = ("04_transfer", "your_model")  # may use another model and text than 01
TRAINED_ON = ("tokens", "pair_tokens", "full_tokens", "budgets", "longest")  # training budgets
STAGED = "04_transfer"  # it heals in two stages, so its budget is two steps at least
KINDS = {"list", "dict", *TYPES, *(f"list[{name}]" for name in TYPES)}


def declared(notebook: str) -> dict[str, Parameter]:
    """Name -> parameter, from the notebook's cell tagged `parameters`. Raises StudyError."""
    path = paths.notebooks() / f"{notebook}.ipynb"
    return dict(_declared(path, path.stat().st_mtime_ns if path.is_file() else 0))


@cache
def _declared(path: Path, mtime_ns: int) -> dict[str, Parameter]:
    cells = [c for c in provenance.read_cells(path) if "parameters" in provenance.tags(c)]
    if len(cells) != 1:
        raise StudyError(f"notebook {path} has {len(cells)} cells tagged `parameters`, not one")
    try:
        return {parameter.name: parameter for parameter in _parsed("".join(cells[0]["source"]))}
    except (SyntaxError, ValueError, tokenize.TokenError) as error:
        raise StudyError(f"notebook {path}, parameters cell: {error}") from None


def _parsed(source: str) -> Iterator[Parameter]:
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    helps = {t.start[0]: t.string.lstrip("# ") for t in tokens if t.type == tokenize.COMMENT}
    for node in ast.parse(source).body:
        if not isinstance(node, ast.AnnAssign) or node.value is None:
            raise ValueError(f"line {node.lineno} is not `name: type = value  # meaning`")
        name, kind = ast.unparse(node.target), ast.unparse(node.annotation)
        if kind not in KINDS:
            raise ValueError(f"{name}: its type {kind} is not str, int, float, bool, list or dict")
        yield Parameter(name, kind, ast.literal_eval(node.value), helps.get(node.end_lineno, ""))


def reads(notebook: str) -> tuple[str, ...]:
    """The notebooks whose records this one reads: those named in its code, in chain order."""
    if notebook == CHAIN[-1]:
        return CHAIN[:-1]
    tree = ast.parse(provenance.notebook_code(paths.notebooks() / f"{notebook}.ipynb"))
    named = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    return tuple(name for name in CHAIN if name in named and name != notebook)


def checked(notebook: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The notebook's defaults with these values. Raises StudyError that names every problem."""
    known = declared(notebook)
    _refuse([f"{problem} ({notebook})" for problem in problems_of(known, values)])
    found = {name: parameter.default for name, parameter in known.items()} | dict(values)
    _refuse([f"{problem} ({notebook})" for problem in _too_short(notebook, found)])
    return found


def notebooks_of(study: str) -> tuple[str, ...]:
    """The notebooks that a study runs, in order: those with a file in params/<study>/."""
    files = [path for path in paths.params().glob("*/*.yaml") if path.stem in CHAIN]
    studies = sorted({path.parent.name for path in files})
    if study not in studies:
        raise StudyError(f"study {study!r} is not known: name one of {', '.join(studies)}")
    return tuple(name for name in CHAIN if paths.params() / study / f"{name}.yaml" in files)


def of_study(study: str) -> dict[str, dict[str, Any]]:
    """Notebook -> all its parameters, in order. Raises StudyError that names every problem."""
    notebooks, folder = notebooks_of(study), paths.params() / study
    strangers = sorted(path.stem for path in folder.glob("*.yaml") if path.stem not in notebooks)
    problems = [f"there is no notebook {name} (params/{study}/{name}.yaml)" for name in strangers]
    found: dict[str, dict[str, Any]] = {}
    for notebook in notebooks:
        wrong, differences = read_yaml(folder / f"{notebook}.yaml")
        known = declared(notebook)
        wrong += problems_of(known, differences)
        if not wrong and differences.get("study", DEFAULT) != study:
            wrong.append(f"study must be {study}, as the folder says: write `study: {study}`")
        found[notebook] = {p.name: p.default for p in known.values()} | differences
        wrong = wrong or list(_too_short(notebook, found[notebook]))
        problems += [f"{problem} (params/{study}/{notebook}.yaml)" for problem in wrong]
    if not problems:
        problems += _disagreements(study, found)
    _refuse(problems)
    return found


def _too_short(notebook: str, values: Mapping[str, Any]) -> Iterator[str]:
    """Training budgets below what the recipe's steps need."""
    recipe = {"batch_tokens": Recipe.batch_tokens, "seq_len": Recipe.seq_len} | recipe_values()
    step = max(1, recipe["batch_tokens"] // recipe["seq_len"]) * recipe["seq_len"]
    least, why = step, "one step of params/recipe.yaml"
    if notebook == STAGED:
        least, why = 2 * step, "one step of params/recipe.yaml for each of its two stages"
    for name in (name for name in TRAINED_ON if name in values):
        given = values[name] if isinstance(values[name], list) else [values[name]]
        for n in given:
            if n < least and (n or name != "longest"):  # longest=0 is none
                yield f"{name} must be at least {least:,}, {why}, not {n}"


def _disagreements(study: str, found: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Values that contradict notebooks 01 and 02, whose records the notebook reads."""
    first, cuts = found.get("01_sensitivity", {}), found.get("02_prune", {})
    for notebook, values in found.items():
        where = f"(params/{study}/{notebook}.yaml)"
        for key in sorted({"model", "text"} & values.keys() & first.keys()):
            if values[key] != first[key] and notebook not in OTHER_MODEL:
                yield f"{key} must be {short(first[key])}, as in 01_sensitivity.yaml {where}"
        if extra := set(values.get("seeded_counts", ())) - set(values.get("drop_counts", ())):
            yield f"seeded_counts must be among drop_counts, not {sorted(extra)} {where}"
        second = found.get("04_transfer", {}).get("model")
        if second and values.get("other_model") not in (None, "", second):
            yield f"other_model must be {short(second)}, as in 04_transfer.yaml {where}"
        k = values.get("drop_count")
        if notebook in OTHER_MODEL or not k or "drop_counts" not in cuts:
            continue
        if k not in cuts["drop_counts"]:
            yield f"drop_count must be one of 02_prune's {cuts['drop_counts']}, not {k} {where}"
        elif values.get("rule") == "random":
            yield f"rule must not be random: 02_prune draws several random plans {where}"
        elif values.get("rule") == "exhaustive" and k > cuts["exhaustive_to"]:
            yield f"rule=exhaustive needs exhaustive_to={k} in 02_prune.yaml {where}"


def resolved(notebook: str, cell_values: Mapping[str, Any]) -> dict[str, Any]:
    """The cell's values, checked.

    In a study other than the default, values left at the notebook's default come from that study's
    file. So it is enough to change the line `study` after opening a notebook from its badge.
    """
    known = declared(notebook)
    values = {name: cell_values[name] for name in known if name in cell_values}
    study = values.get("study", DEFAULT)
    if study != DEFAULT and not str(study).startswith((SWEEP, OWN)):
        if notebook not in notebooks_of(study):
            raise StudyError(f"study {study} does not run notebook {notebook}")
        of_the_study = of_study(study)[notebook]
        values |= {n: of_the_study[n] for n, v in values.items() if v == known[n].default}
    return checked(notebook, values)


def check_extras(values: Mapping[str, Any]) -> None:
    """Raises StudyError if a notebook uses lm-eval tasks and lm-eval is not installed."""
    if values.get("tasks") and importlib.util.find_spec("lm_eval") is None:
        raise StudyError(
            f"tasks={short(values['tasks'])} need lm-eval: pip install lm-eval, or set tasks=[]"
        )


def recipe_values(path: Path | None = None) -> dict[str, Any]:
    """params/recipe.yaml as the fields of a Recipe; empty if the file is missing.

    `precision` may be `auto` there. Raises StudyError that names every problem.
    """
    path = path or paths.params() / "recipe.yaml"
    if not path.is_file():
        return {}
    wrong, values = read_yaml(path)
    wrong += problems_of(
        {f.name: Parameter(f.name, str(f.type), None) for f in fields(Recipe)}, values
    )
    if not wrong:
        found = {"tokens": 10**9, "lr": 1e-4} | values
        try:
            Recipe(**found | ({"precision": "float32"} if found.get("precision") == "auto" else {}))
        except ValueError as error:
            wrong.append(str(error))
    _refuse([f"{problem} (params/{path.name})" for problem in wrong])
    return values


def read_yaml(path: Path) -> tuple[list[str], dict[str, Any]]:
    """Problems, one sentence each, and the values; with problems, the values are empty."""
    try:
        written = path.read_text(encoding="utf-8")
        values, node = yaml.safe_load(written), yaml.compose(written, Loader=yaml.SafeLoader)
    except Exception as error:  # PyYAML raises other errors too, for 2026-13-45 or `!!bool maybe`
        return [f"not readable as YAML: {' '.join(str(error).split())[:200]}"], {}
    if values is None:
        return [], {}
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        return ["the file must hold `name: value` lines"], {}
    names = Counter(key.value for key, _ in node.value)
    twice = [name for name, n in names.items() if n > 1]  # PyYAML would silently take the last
    return ([f"{name} is given more than once" for name in twice], {} if twice else values)


def _refuse(problems: list[str]) -> None:
    if problems:
        raise StudyError("\n".join(problems))
