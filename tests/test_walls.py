"""Checks the import rules in the code; a violation is named by file and line."""

from __future__ import annotations

import ast
import json
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted([*ROOT.glob("depthprune_core/**/*.py"), *ROOT.glob("depthprune_study/**/*.py")])
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

CORE, STUDY = "depthprune_core", "depthprune_study"
GROUND = tuple(
    f"{STUDY}.{name}"
    for name in ("errors", "locks", "numerics", "paths", "provenance", "parameters")
)
PLAIN = tuple(f"{CORE}.{name}" for name in ("records", "storage", "selection", "sources"))
# Import rules (importer, imported) as prefixes of module names. The first line that matches a
# module counts; a package may always import itself.
WALLS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (CORE, ()),
    (f"{STUDY}.results", (f"{CORE}.records",)),
    (f"{STUDY}.lab", (CORE, f"{STUDY}.results", *GROUND)),
    # The core fetches and checks models and texts before the first notebook.
    (f"{STUDY}.runner.prepare", (CORE, f"{STUDY}.runner", *GROUND)),
    (f"{STUDY}.runner", (*PLAIN, *GROUND)),
    (f"{STUDY}.report", (f"{STUDY}.results", *PLAIN, *GROUND)),
    (f"{STUDY}.cli_own", (f"{STUDY}.runner.own", f"{STUDY}.lab.gguf", f"{STUDY}.telling",
                          *PLAIN, *GROUND)),
    (f"{STUDY}.cli", (f"{STUDY}.runner", f"{STUDY}.report", f"{STUDY}.cli_own",
                      f"{STUDY}.telling", *GROUND)),
    (f"{STUDY}.__main__", (f"{STUDY}.cli",)),
    (f"{STUDY}.colab", (f"{STUDY}.runner", *GROUND)),
    (f"{STUDY}.parameters", (*PLAIN, f"{STUDY}.ranges", *GROUND)),
    (f"{STUDY}.ranges", PLAIN),
    (f"{STUDY}.errors", ()),
    (f"{STUDY}.locks", (f"{STUDY}.errors",)),
    (f"{STUDY}.numerics", ()),
    (f"{STUDY}.paths", ()),
    (f"{STUDY}.provenance", (*PLAIN, *GROUND)),
    (f"{STUDY}.telling", GROUND),
)  # fmt: skip
NO_TORCH = (  # modules that must start without torch
    *(f"{CORE}.{name}" for name in ("records", "storage", "selection", "sources", "progress")),
    *(f"{STUDY}.{name}" for name in ("report", "parameters", "cli", "runner.chain")),
)
ARCHITECTURE = re.compile(
    r"gpt|llama|bloom|gemma|qwen|mi[sx]tral|falcon|pythia|smollm|\bopt\b|\bphi\d?\b|bert|mamba",
    re.I,
)
DRAWS = ("rand", "randn", "randint", "randperm", "normal", "multinomial", "bernoulli")
NOT_IMPORTED = {"jupyterlab", "ipykernel", "lm-eval", "parsl", "depthprune"}  # run, or optional


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in FILES}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}


def imported(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, module or name) of every import, including late imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, node.module or ""
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def edges(module: str, *, late: bool = True) -> dict[str, int]:
    """Our modules that a module imports -> line, except imports for annotations.

    Without `late`: only imports at the top of the module.
    """
    tree = ast.Module([n for n in TREES[module].body if not _only_for_types(n)], [])
    if not late:
        functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]
        inside = {id(m) for function in functions for m in ast.walk(function)}
        found = [n for n in ast.walk(tree) if id(n) not in inside]
        tree = ast.Module([n for n in found if isinstance(n, ast.Import | ast.ImportFrom)], [])
    named = {name: line for line, name in imported(tree) if name in MODULES}
    # `from package import module` means the module.
    packages = {n for n in named if MODULES[n].name == "__init__.py" and any(
        other.startswith(f"{n}.") for other in named)}  # fmt: skip
    return {name: line for name, line in named.items() if name not in packages}


def _only_for_types(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def begins(name: str, prefixes: tuple[str, ...]) -> bool:
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)


def dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return f"{inner}.{node.attr}" if (inner := dotted(node.value)) else ""
    return node.id if isinstance(node, ast.Name) else ""


def refuse(breaches: list[str], sentence: str) -> None:
    assert not breaches, f"{sentence}:\n  " + "\n  ".join(breaches)


def test_a_module_imports_only_what_its_wall_allows() -> None:
    breaches = []
    for module, path in MODULES.items():
        allowed: tuple[str, ...] = ()
        if module != STUDY:
            room, allowed = next((r, a) for r, a in WALLS if begins(module, (r,)))
            allowed = (*allowed, room)
        wrong = {n: line for n, line in edges(module).items() if not begins(n, allowed)}
        breaches += [f"{path}:{line} imports {n}" for n, line in wrong.items()]
    refuse(breaches, "a wall")


def test_no_imports_run_in_a_circle_late_ones_among_them() -> None:
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " -> ".join((*way, module))
        if module not in done:
            for other in edges(module):
                visit(other, (*way, module))
            done.add(module)

    for module in MODULES:
        visit(module, ())


def test_no_private_name_of_another_module_is_used() -> None:
    breaches = []
    for module, tree in TREES.items():
        ours = [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)
                and (n.module or "").startswith((CORE, STUDY))]  # fmt: skip
        aliases = {alias.asname or alias.name for node in ours for alias in node.names}
        breaches += [f"{module}: line {n.lineno}: {dotted(n)}" for n in ast.walk(tree)
                     if isinstance(n, ast.Attribute) and n.attr.startswith("_")
                     and not n.attr.startswith("__") and dotted(n.value) in aliases]  # fmt: skip
        breaches += [f"{module}: imports {name}" for name in aliases if name.startswith("_")]
    refuse(breaches, "a private name of another module")


def impure(tree: ast.AST) -> Iterator[str]:
    """What prints, reads the environment, or draws from a random state that is not given."""
    forked: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.With) and "fork_rng" in ast.unparse(node.items[0].context_expr):
            forked |= {id(inside) for inside in ast.walk(node)}
    for node in ast.walk(tree):
        name = dotted(node)
        if name in ("os.environ", "os.getenv"):
            yield f"line {node.lineno}: {name}"
        if isinstance(node, ast.Call):
            name = dotted(node.func)
            owner, _, last = name.rpartition(".")
            prints = name in ("print", "display", "tqdm", "sys.stdout.write", "sys.stderr.write")
            seeds = last in ("manual_seed", "seed", "set_seed") and owner in (
                "torch",
                "np.random",
                "random",
                "",
            )
            given = any(keyword.arg == "generator" for keyword in node.keywords)
            draws = owner == "torch" and last in DRAWS and not given
            draws |= owner in ("random", "np.random") and last not in ("Random", "default_rng")
            if prints or ((seeds or draws) and id(node) not in forked):
                yield f"line {node.lineno}: calls {name}"


def test_the_core_prints_nothing_reads_no_environment_and_leaves_random_state() -> None:
    core = [module for module in MODULES if begins(module, (CORE,))]
    breaches = [f"{MODULES[module]} {b}" for module in core for b in impure(TREES[module])]
    refuse(breaches, "the core is silent and pure")


def test_these_start_without_torch() -> None:
    heavy, breaches = {"torch", "transformers", "peft"}, []
    for module in (name for name in MODULES if begins(name, NO_TORCH)):
        waiting, found = [module], set()
        while waiting:
            name = waiting.pop()
            if name not in found:
                found.add(name)
                waiting += edges(name, late=False)
        breaches += [f"{module} by {name}: line {node.lineno}"
                     for name in found for node in TREES[name].body
                     if {n.split(".")[0] for _, n in imported(node)} & heavy
                     and isinstance(node, ast.Import | ast.ImportFrom)]  # fmt: skip
    refuse(breaches, "must not need torch")


def test_only_sources_knows_architectures_by_name() -> None:
    breaches = []
    for module in (n for n in MODULES if begins(n, (CORE,)) and n != f"{CORE}.sources"):
        nodes = list(ast.walk(TREES[module]))
        prose = {id(n.value) for n in nodes if isinstance(n, ast.Expr)}
        breaches += [f"{MODULES[module]} line {n.lineno}: {n.value!r}" for n in nodes
                     if isinstance(n, ast.Constant) and isinstance(n.value, str)
                     and id(n) not in prose and ARCHITECTURE.search(n.value)]  # fmt: skip
    refuse(breaches, "only sources.py knows architectures")


def test_what_is_imported_is_declared_and_what_is_declared_is_imported() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    lines = [*project["dependencies"], *extras["study"], *extras["eval"], *extras["cluster"]]
    declared = {re.split(r"[^a-z0-9_-]", line.lower())[0].replace("_", "-") for line in lines}
    called = {"yaml": "pyyaml", "PIL": "pillow", "IPython": "ipython"}
    used = {n.split(".")[0] for tree in TREES.values() for _, n in imported(tree)}
    used -= {*sys.stdlib_module_names, CORE, STUDY, "google", ""}
    used = {called.get(name, name).lower().replace("_", "-") for name in used}
    assert used - declared == set(), "imported, but not in pyproject.toml"
    assert declared - used - NOT_IMPORTED == set(), "in pyproject.toml, but not imported"


# ------------------------------------------------------------- notebooks


def cells_of(path: Path) -> list[dict]:
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_calls_figures_and_findings(path: Path) -> None:
    wrong = []
    for number, cell in enumerate(cells_of(path)):
        tags, source = cell["metadata"].get("tags", []), "".join(cell["source"])
        if cell["cell_type"] != "code":
            continue
        if "parameters" in tags and source.count("\n") >= 14:
            wrong.append(f"cell {number} has {source.count(chr(10)) + 1} parameters, 14 at most")
        elif "setup" not in tags and "parameters" not in tags and source.count("\n") >= 15:
            wrong.append(f"cell {number} has {source.count(chr(10)) + 1} lines, 15 at most")
        code = "\n".join(re.sub(r"^(\s*)[!%].*", r"\1pass", line) for line in source.split("\n"))
        kinds = (ast.FunctionDef, ast.ClassDef, ast.Lambda)
        found = [n for n in ast.walk(ast.parse(code)) if isinstance(n, kinds)]
        wrong += [f"cell {number} defines something (line {n.lineno})" for n in found]
        last = ast.parse(code).body[-1:]
        if last and isinstance(last[0], ast.Expr) and ast.unparse(last[0]).startswith("lab.save("):
            wrong.append(f"cell {number} ends in a record, which would be printed: give it a name")
        if cell["outputs"] or cell["execution_count"]:
            wrong.append(f"cell {number} holds outputs: strip them")
        if set(tags) & {"setup", "parameters"} and not cell["metadata"].get("jupyter"):
            wrong.append(f"cell {number} ({tags[0]}) is not folded")
    refuse([f"{path.name}: {w}" for w in wrong], "notebooks hold no machinery")
