"""The walls of the house, kept by reading the code: a breach fails with a sentence that names the file and the line."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CORE = {path.stem: path for path in sorted((ROOT / "depthprune_core").glob("*.py"))}
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PURE = ("records", "selection", "intervals", "progress", "figures")  # never import torch
STUDY = {"depthprune_study", "papermill", "IPython", "ipykernel", "nbformat", "nbconvert", "yaml", "typer", "pydantic"}
NETWORK = {"huggingface_hub", "datasets", "urllib", "requests", "httpx", "http", "socket", "subprocess", "ftplib", "aiohttp"}
ARCHITECTURE = re.compile(
    r"gpt|llama|bloom|gemma|qwen|mistral|mixtral|falcon|pythia|smollm|\bopt\b|\bphi\d?\b|\bt5\b|bert|mamba|deepseek|olmo",
    re.IGNORECASE,
)
DRAWS = {
    "rand",
    "randn",
    "randint",
    "randperm",
    "normal",
    "multinomial",
    "bernoulli",
    "rand_like",
    "randn_like",
    "randint_like",
}


def tree_of(source: str) -> ast.Module:
    """Parsed, every node knowing its parent."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        for child in ast.iter_child_nodes(node):
            child.parent = node
    return tree


TREES = {name: tree_of(path.read_text(encoding="utf-8")) for name, path in CORE.items()}


def imports(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of everything imported, inside functions too; `from a import b` gives a and a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "depthprune_core" if node.level else node.module
            yield node.lineno, module
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def imported_packages(tree: ast.Module) -> dict[str, int]:
    return {name.split(".")[0]: line for line, name in imports(tree)}


def core_modules(tree: ast.Module) -> set[str]:
    """Modules of the core that are imported, straight or through another."""
    found: set[str] = set()
    wanted = {name.split(".")[1] for _, name in imports(tree) if name.startswith("depthprune_core.")} & set(CORE)
    while wanted - found:
        module = (wanted - found).pop()
        found.add(module)
        wanted |= core_modules_once(module)
    return found


def core_modules_once(module: str) -> set[str]:
    return {name.split(".")[1] for _, name in imports(TREES[module]) if name.startswith("depthprune_core.")} & set(CORE)


TENSOR = {name for name, tree in TREES.items() if "torch" in imported_packages(tree)}


def dotted(node: ast.AST) -> str:
    """`a.b.c` of an attribute chain; empty for anything else."""
    if isinstance(node, ast.Attribute):
        return f"{inner}.{node.attr}" if (inner := dotted(node.value)) else ""
    return node.id if isinstance(node, ast.Name) else ""


def calls(tree: ast.Module) -> Iterator[tuple[ast.Call, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield node, dotted(node.func)


def inside_fork(node: ast.AST) -> bool:
    while (node := getattr(node, "parent", None)) is not None:
        if isinstance(node, ast.With) and any("torch.random.fork_rng" in ast.unparse(item.context_expr) for item in node.items):
            return True
    return False


def docstrings(tree: ast.Module) -> set[int]:
    """Ids of the string nodes that are docstrings, or stand alone as statements."""
    return {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)}


def words(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Identifiers and strings of the code, docstrings apart."""
    documentation = docstrings(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation:
            yield node.lineno, node.value
        for field in ("id", "attr", "name", "arg"):
            word = getattr(node, field, None)
            if isinstance(word, str) and word != "opt":  # an optimiser's short name
                yield getattr(node, "lineno", 0), word


def code_of(notebook: Path) -> str:
    """All code cells as one source; lines of notebook magic are left out."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    source = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    return re.sub(r"^([ \t]*)[%!].*$", r"\1pass", source, flags=re.MULTILINE)


def refuse(breaches: list[str], sentence: str) -> None:
    assert not breaches, f"{sentence}: {'; '.join(breaches)}"


# ---------------------------------------------------------------- the core


def test_there_is_a_core_to_look_at():
    assert {"records", "models", "text", "sensitivity", "distillation", "figures"} <= set(CORE)
    assert {"models", "losses", "text", "sensitivity"} <= TENSOR


@pytest.mark.parametrize("module", CORE)
def test_the_core_imports_nothing_of_the_study(module):
    found = [f"{module}.py:{line} imports {name}" for name, line in imported_packages(TREES[module]).items() if name in STUDY]
    refuse(found, "the core must not know the study, its parameters or its notebooks")


@pytest.mark.parametrize("module", CORE)
def test_the_core_prints_nothing(module):
    silent = {"print", "pprint", "display", "sys.stdout.write", "sys.stderr.write", "tqdm"}
    found = [f"{module}.py:{node.lineno} calls {name}" for node, name in calls(TREES[module]) if name in silent]
    refuse(found, "the core tells its progress by callback and prints nothing")


@pytest.mark.parametrize("module", CORE)
def test_the_core_reads_no_environment_variable(module):
    found = [
        f"{module}.py:{node.lineno} uses {dotted(node)}"
        for node in ast.walk(TREES[module])
        if isinstance(node, ast.Attribute | ast.Name)
        and dotted(node) in {"os.environ", "os.getenv", "environ", "getenv", "os.putenv"}
    ]
    refuse(found, "the core takes arguments and reads no environment variable")


@pytest.mark.parametrize("module", CORE)
def test_global_random_state_is_touched_only_inside_a_fork(module):
    found = []
    for node, name in calls(TREES[module]):
        owner, _, last = name.rpartition(".")
        seeds = last in {"manual_seed", "manual_seed_all", "seed", "set_rng_state", "set_seed"} and owner.split(".")[0] in {
            "torch",
            "np",
            "numpy",
            "random",
            "",
        }
        draws = (owner == "torch" and last in DRAWS and not any(keyword.arg == "generator" for keyword in node.keywords)) or (
            owner in {"np.random", "numpy.random"} and last not in {"default_rng", "Generator", "SeedSequence"}
        )
        draws |= owner == "random" and last != "Random"
        restores = last in {"getstate", "setstate", "get_state", "set_state"}  # behind a library that has drawn
        if (seeds or draws) and not restores and not inside_fork(node):
            found.append(f"{module}.py:{node.lineno} calls {name}")
    refuse(found, "randomness is an argument, and global random state is touched only inside `with torch.random.fork_rng(...)`")


@pytest.mark.parametrize("module", sorted(TENSOR))
def test_tensor_modules_do_not_import_matplotlib(module):
    plotting = {name for name, tree in TREES.items() if {"matplotlib", "seaborn", "PIL"} & set(imported_packages(tree))}
    found = [name for name in {module, *core_modules(TREES[module])} if name in plotting]
    refuse(found, f"{module}.py knows tensors, so it must not reach matplotlib or seaborn, not even through")


@pytest.mark.parametrize("module", PURE)
def test_records_rules_intervals_and_figures_do_not_import_torch(module):
    found = [
        name
        for name in {module, *core_modules(TREES[module])}
        if name in TENSOR or "transformers" in imported_packages(TREES[name])
    ]
    refuse(found, f"{module}.py works where no torch is, so it must not import it, not even through")


def test_no_library_brings_torch_in_by_another_way():
    script = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module("depthprune_core." + name)
    assert "torch" not in sys.modules, name
"""
    done = subprocess.run([sys.executable, "-c", script, *PURE], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, (
        f"importing a module that needs no torch loads it all the same: {done.stderr.strip().splitlines()[-1]}"
    )


@pytest.mark.parametrize("module", [name for name in CORE if name != "models"])
def test_only_models_knows_architectures(module):
    found = [f"{module}.py:{line} says {word!r}" for line, word in words(TREES[module]) if ARCHITECTURE.search(word)]
    refuse(found, "only models.py knows architectures by name")


@pytest.mark.parametrize("module", [name for name in CORE if name not in ("models", "text", "assets")])
def test_only_models_text_and_assets_touch_the_network(module):
    found = [f"{module}.py:{line} imports {name}" for name, line in imported_packages(TREES[module]).items() if name in NETWORK]
    found += [
        f"{module}.py:{node.lineno} calls {name}"
        for node, name in calls(TREES[module])
        if name.endswith(("from_pretrained", "load_dataset"))
    ]
    refuse(found, "only models.py, text.py and assets.py fetch anything")


# ---------------------------------------------------------------- the walls themselves


def test_the_walls_see_a_breach():
    tree = tree_of(
        'import yaml\nfrom os import environ\n"""gpt2"""\nname = "gpt2"\n'
        "with torch.random.fork_rng(devices=[]):\n    torch.manual_seed(0)\ntorch.manual_seed(1)"
    )
    assert {"yaml", "os"} == set(imported_packages(tree))
    assert [word for _, word in words(tree) if ARCHITECTURE.search(word)] == ["gpt2"]
    assert {node.lineno: inside_fork(node) for node, name in calls(tree) if name == "torch.manual_seed"} == {6: True, 7: False}


# ---------------------------------------------------------------- notebooks


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.name)
def test_notebooks_define_no_class_and_no_training_loop(notebook):
    tree = tree_of(code_of(notebook))
    found = [f"class {node.name}" for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    found += [
        node.func.attr
        for node, _ in calls(tree)
        if isinstance(node.func, ast.Attribute) and node.func.attr in {"backward", "zero_grad"}
    ]
    found += [name for _, name in calls(tree) if re.search(r"(optim\w*|scheduler|scaler)\.step$|^torch\.optim\.", name)]
    refuse(found, f"{notebook.name} shows the study, and classes and training loops belong in the core")


@pytest.mark.parametrize("notebook", [path for path in NOTEBOOKS if path.name == "06_report.ipynb"], ids=lambda path: path.name)
def test_the_report_reads_records_only(notebook):
    tree = tree_of(code_of(notebook))
    found = sorted({"torch", "transformers"} & set(imported_packages(tree))) + sorted(core_modules(tree) & TENSOR)
    refuse(found, f"{notebook.name} reads records, so it imports no torch, no transformers and no core module that does")
