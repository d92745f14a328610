"""Parameters: declared in the notebook, changed by YAML, all problems reported at once."""

from __future__ import annotations

from pathlib import Path

import pytest
import toy
import yaml
from papermill import inspect_notebook
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

from depthprune_core import storage
from depthprune_core.records import Recipe
from depthprune_study import parameters, paths
from depthprune_study.errors import StudyError

HERE = [path.stem for path in sorted((toy.ROOT / "notebooks").glob("[0-9y]*.ipynb"))]
STUDIES = sorted({path.parent.name for path in (toy.ROOT / "params").glob("*/01_*.yaml")})
CELL = """\
study: str = "quick"  # folder under runs/
model: str = "gpt2-mini"  # a name
lr: float = 1e-4  # learning rate
pairs: bool = True  # all pairs
seeds: list = [0, 1]  # one run each
factors: dict = {"lr": [1e-4]}  # field -> levels
"""


@pytest.fixture
def params(fresh: Path) -> Path:
    """The folder of the study `toy`, whose first notebook has parameters of every kind."""
    toy.write(fresh, "01_sensitivity", "pass", parameters=CELL)
    (fresh / "params/toy/01_sensitivity.yaml").write_text("study: toy\n")
    return fresh / "params" / "toy"


def problems(params: Path, content: str | bytes) -> list[str]:
    content = content if isinstance(content, bytes) else ("study: toy\n" + content).encode()
    (params / "01_sensitivity.yaml").write_bytes(content)
    with pytest.raises(StudyError) as raised:
        parameters.of_study("toy")
    return str(raised.value).splitlines()


# ------------------------------------------------------------- the committed notebooks and studies


@pytest.mark.parametrize("notebook", HERE)
def test_papermill_reads_the_same_names_types_defaults_and_meanings(notebook: str) -> None:
    path = toy.ROOT / "notebooks" / f"{notebook}.ipynb"
    theirs, ours = inspect_notebook(str(path)), parameters.declared(notebook)
    assert list(theirs) == list(ours)
    for name, parameter in ours.items():
        assert theirs[name]["inferred_type_name"] == parameter.type
        assert eval(theirs[name]["default"]) == parameter.default
        assert parameter.help and theirs[name]["help"] == parameter.help


@pytest.mark.parametrize("notebook", HERE)
def test_the_defaults_are_those_of_the_default_study_and_read_what_ran_before(
    notebook: str,
) -> None:
    known = parameters.declared(notebook)
    assert parameters.checked(notebook, {n: p.default for n, p in known.items()})
    assert known["study"].default == parameters.DEFAULT and len(known) <= 14
    before = parameters.CHAIN[: parameters.CHAIN.index(notebook)]
    assert set(parameters.reads(notebook)) <= set(before)


@pytest.mark.parametrize("study", STUDIES)
def test_every_committed_study_is_valid_and_lists_only_differences(study: str) -> None:
    found = parameters.of_study(study)
    for notebook in found:
        _, given = parameters.read_yaml(toy.ROOT / "params" / study / f"{notebook}.yaml")
        known = parameters.declared(notebook)
        same = [n for n, value in given.items() if value == known[n].default and n != "study"]
        assert not same, f"{study}/{notebook}.yaml repeats the default of {same}"


# ------------------------------------------------------------- reading


def test_differences_replace_defaults_and_papermill_injects_them(params: Path) -> None:
    (params / "01_sensitivity.yaml").write_text("study: toy\nseeds: [7]\nlr: 1\n")
    found = parameters.of_study("toy")["01_sensitivity"]
    assert found == {
        "study": "toy",
        "model": "gpt2-mini",
        "lr": 1,
        "pairs": True,
        "seeds": [7],
        "factors": {"lr": [1e-4]},
    }
    book = load_notebook_node(str(paths.notebooks() / "01_sensitivity.ipynb"))
    scope: dict = {}
    exec(parameterize_notebook(book, found, report_mode=False).cells[1].source, scope)
    assert {name: scope[name] for name in found} == found


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("lr: 1e-4", "lr must be a number, not '1e-4' (YAML reads 1e-4 as text: write 1.0e-4)"),
        ("lr: 0", "lr must be above 0, at most 1, not 0"),
        ("lr: .nan", "lr must be finite, not nan"),
        ("model: no", "model must be text, not False (YAML reads yes, no, on and off"),
        ("model: ''", "model must be a named model, a folder or a hub id, not ''"),
        ("pairs: 1", "pairs must be true or false, not 1"),
        ("seeds: 3", "seeds must be a list, not 3"),
        ("seeds: [0, 0]", "seeds contains a value twice: [0, 0]"),
        ("seeds: [-1]", "seeds must be 0 to 4,294,967,295, not -1"),
        ("factors: {lr: [1e-4]}", "factors: lr must be a number, not '1e-4'"),
        ("factors: {rl: [1]}", "factors: rl is not a parameter; the parameters are tokens"),
        ("factors: [1]", "factors must map names to lists, not [1]"),
        ("rate: 1", "rate is not a parameter; the parameters are study, model, lr"),
        ("lr: 0.1\nlr: 0.2", "lr is given more than once"),
        ("lr: [0.1", "not readable as YAML"),
        ("- 1", "not readable as YAML"),
        ("1: 2", "the file must hold `name: value` lines"),
        ("lr: 2026-13-45", "not readable as YAML"),
    ],
)
def test_a_bad_line_is_reported_with_name_value_and_valid_range(
    params: Path, line: str, sentence: str
) -> None:
    (problem,) = problems(params, line)
    assert problem.startswith(sentence) and problem.endswith("(params/toy/01_sensitivity.yaml)")


def test_all_problems_are_reported_at_once(params: Path) -> None:
    (params / "02_prune.yaml").write_text("study: toy\ntokens: x\n")
    (params / "11_more.yaml").write_text("")
    found = problems(params, "lr: 0\npairs: maybe")
    assert len(found) == 4 and "there is no notebook 11_more" in found[0]


def test_the_study_must_be_that_of_its_folder(params: Path) -> None:
    (problem,) = problems(params, b"lr: 0.1\n")
    assert problem.startswith("study must be toy, as the folder says: write `study: toy`")


def test_an_unknown_study_is_refused_and_the_known_ones_named(params: Path) -> None:
    with pytest.raises(StudyError, match="study 'x' is not known: name one of quick, toy"):
        parameters.of_study("x")


def test_notebooks_that_read_each_other_have_one_model(params: Path) -> None:
    toy.write(params.parents[1], "02_prune", "pass", parameters=CELL)
    (params / "02_prune.yaml").write_text("study: toy\nmodel: llama-tiny\n")
    (problem,) = problems(params, "")
    assert problem.startswith("model must be 'gpt2-mini', as in 01_sensitivity.yaml")


@pytest.mark.parametrize(
    ("notebook", "changed", "sentence"),
    [
        ("03_recovery", {"rule": "random"}, "rule must not be random"),
        ("03_recovery", {"drop_count": 5}, r"drop_count must be one of 02_prune's \[2, 3\], not 5"),
        (
            "08_limits",
            {"seeded_counts": [9]},
            r"seeded_counts must be among drop_counts, not \[9\]",
        ),
        ("05_seed_stability", {"other_model": "llama-tiny"}, "other_model must be 'smollm2-135m'"),
        ("03_recovery", {"tokens": 1_023}, "tokens must be at least 1,024, one step of params/rec"),
        ("04_transfer", {"tokens": 1_024}, "tokens must be at least 2,048, one step .* two stages"),
        ("08_limits", {"budgets": [8, 4_096]}, "budgets must be at least 1,024, one step .* not 8"),
    ],
)
def test_values_that_contradict_an_earlier_notebook_or_the_recipe_are_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    notebook: str,
    changed: dict[str, object],
    sentence: str,
) -> None:
    folder = tmp_path / "params" / "mine"
    for name in ("01_sensitivity", "02_prune", "03_recovery", "04_transfer", notebook):
        values = {"study": "mine", **(changed if name == notebook else {})}
        storage.write_atomically(folder / f"{name}.yaml", yaml.safe_dump(values))
    recipe = "lr: 2.0e-04\nbatch_tokens: 1024\nseq_len: 512\n"
    storage.write_atomically(folder.parent / "recipe.yaml", recipe)
    monkeypatch.setattr(paths, "params", lambda: folder.parent)
    with pytest.raises(StudyError, match=sentence):
        parameters.of_study("mine")


@pytest.mark.parametrize(
    ("cell", "sentence"),
    [
        ("study = 'quick'", "line 1 is not `name: type = value  # meaning`"),
        ("x: complex = 1j  # an x", "x: its type complex is not"),
        ("study: str = f()  # x", "parameters cell: malformed node"),
    ],
)
def test_a_parameters_cell_of_another_form_is_refused(
    fresh: Path, cell: str, sentence: str
) -> None:
    toy.write(fresh, "02_prune", "pass", parameters=cell)
    with pytest.raises(StudyError, match=r"02_prune\.ipynb, parameters cell") as raised:
        parameters.declared("02_prune")
    assert sentence in str(raised.value)


# ------------------------------------------------------------- one notebook opened alone


def test_another_study_replaces_values_left_at_their_default(params: Path) -> None:
    (params / "01_sensitivity.yaml").write_text("study: toy\nseeds: [7]\nlr: 0.5\n")
    cell = {p.name: p.default for p in parameters.declared("01_sensitivity").values()}
    other = {**cell, "study": "toy", "lr": 0.25, "_i": "not a parameter"}
    found = parameters.resolved("01_sensitivity", other)
    assert (found["seeds"], found["lr"], "_i" in found) == ([7], 0.25, False)
    assert parameters.resolved("01_sensitivity", cell) == cell


def test_a_study_without_the_notebook_is_refused_and_a_sweeps_cell_needs_no_files(
    params: Path,
) -> None:
    assert parameters.resolved("01_sensitivity", {"study": "sweep-x-1"})["study"] == "sweep-x-1"
    (params / "01_sensitivity.yaml").unlink()
    with pytest.raises(StudyError, match="study toy does not run notebook 01_sensitivity"):
        parameters.resolved("01_sensitivity", {"study": "toy"})


# ------------------------------------------------------------- the recipe


def test_the_recipe_is_checked_as_a_recipe(fresh: Path) -> None:
    path = fresh / "params" / "recipe.yaml"
    path.unlink()
    assert parameters.recipe_values() == {}
    path.write_text("lr: 2.0e-04\nbatch_tokens: 1024\nprecision: auto\n")
    values = parameters.recipe_values()
    assert Recipe(tokens=4096, **(values | {"precision": "float32"})).batch_size == 2
    path.write_text("batch_tokens: 1000\n")
    with pytest.raises(StudyError, match=r"batch_tokens=1000 is not possible.*recipe.yaml"):
        parameters.recipe_values()
    path.write_text("lr: 1e-4\nheat: 2\n")
    with pytest.raises(StudyError, match=r"lr must be a number.*\nheat is not a parameter"):
        parameters.of_study("toy")
