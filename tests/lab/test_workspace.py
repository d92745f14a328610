"""The workspace: its parameters, texts, recipe, records, and displays with their sources."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from little_notebook import NOTEBOOK, write_notebook
from matplotlib.figure import Figure

from depthprune_core import storage
from depthprune_core.records import Facts, Plan, Score
from depthprune_core.text import Windows
from depthprune_study import parameters
from depthprune_study.errors import StudyError
from depthprune_study.lab import showing
from depthprune_study.lab.workspace import Workspace, open_workspace
from depthprune_study.report.evidence import Evidence, Told
from depthprune_study.report.wording import Finding
from depthprune_study.results import charts

Open = Callable[..., Workspace]
FOUND = Finding("Two layers cost 5 %", "Dropping two layers costs 5 % [4, 6] (n = 24).")


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Displayed items: data, metadata, and the display id."""
    calls: list[dict[str, Any]] = []

    def display(data: dict[str, str], *, raw: bool, **options: Any) -> None:
        assert raw
        calls.append({"data": data, **options})

    monkeypatch.setattr(showing, "display", display)
    monkeypatch.setattr(showing, "update_display", display)
    return calls


def figure_of() -> Figure:
    figure = Figure(figsize=(4, 3))
    figure.add_subplot().plot([0, 1], [1, 2])
    figure.set_label("a line from 1 to 2")
    return figure


# ---------------------------------------------------------------- parameters


def test_parameters_are_written_back_into_the_cell(home: Path) -> None:
    variables: dict[str, Any] = {"tokens": 3_000, "other": 1}
    lab = open_workspace(NOTEBOOK, variables)
    assert lab.parameters["tokens"] == variables["tokens"] == 3_000
    assert variables["seq_len"] == 48
    assert variables["other"] == 1
    assert lab.folder == home / "runs" / "quick"


def test_a_wrong_parameter_is_refused_before_any_work(open_lab: Open) -> None:
    with pytest.raises(StudyError, match="seq_len must be"):
        open_lab(seq_len=-1)


def test_a_missing_gpu_is_reported(open_lab: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(StudyError, match="not possible without a GPU"):
        open_lab(device="cuda")


def test_another_model_shares_records_and_folder(lab: Workspace) -> None:
    there = lab.other("gpt2-mini")
    assert there.teacher.name == "gpt2-mini"
    assert lab.teacher.name == "llama-tiny"
    assert there.folder == lab.folder
    assert there.tests_read is lab.tests_read
    assert there.windows("validation", tokens=30).n_tokens == 90
    assert lab.other("llama-tiny") is lab


# ---------------------------------------------------------------- text and recipe


def test_windows_are_no_longer_than_the_model_can_read(open_lab: Open) -> None:
    lab = open_lab(seq_len=4096)
    assert lab.context == 512
    assert lab.windows("validation").seq_len <= 512
    recipe = lab.recipe(seq_len=2048, batch_tokens=3000, tokens=4096)
    assert (recipe.seq_len, recipe.batch_tokens) == (512, 2560)


def test_a_text_for_tests_alone_is_refused_elsewhere(lab: Workspace) -> None:
    assert lab.split("test", "news-excerpt")
    with pytest.raises(StudyError, match=r"'news-excerpt' has no recovery split: .* `elsewhere`"):
        lab.split("recovery", "news-excerpt")


def test_the_recipe_is_the_files_and_tokens_and_seed_the_notebooks(
    open_lab: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = {"lr": 3e-4, "seq_len": 32, "batch_tokens": 64, "precision": "auto"}
    monkeypatch.setattr(parameters, "recipe_values", lambda: dict(kept))
    recipe = open_lab(seed=5).recipe()
    assert (recipe.lr, recipe.tokens, recipe.seed, recipe.seq_len) == (3e-4, 2_048, 5, 32)
    assert recipe.precision == "float32"
    assert open_lab().recipe(lr=1e-3, trained="recipe").lr == 1e-3
    assert open_lab().recipe(trained="lora").trained == "lora"


def test_an_impossible_recipe_is_one_sentence(lab: Workspace) -> None:
    with pytest.raises(StudyError, match="the recipe is not valid: lr=-1"):
        lab.recipe(lr=-1.0)


def test_each_seed_draws_its_own_text(lab: Workspace) -> None:
    recipe = lab.recipe(seq_len=48, batch_tokens=96)
    again, other = lab.training(recipe), lab.training(recipe.but(seed=1))
    assert again.token_hash == lab.training(recipe).token_hash != other.token_hash
    assert len(again) == 2_048 // 48


def test_refit_and_healing_read_different_windows(open_lab: Open) -> None:
    lab = open_lab()
    recipe = lab.recipe(seq_len=48, batch_tokens=96, tokens=960).but(refit_tokens=480)
    fitted, trained = lab.for_refit(recipe), lab.training(recipe)
    assert (len(fitted), len(trained)) == (10, 20)
    assert not rows_of(fitted) & rows_of(trained)
    assert lab.for_refit(recipe.but(tokens=1_920)).token_hash == fitted.token_hash
    assert lab.for_refit(recipe.but(seed=1)).token_hash != fitted.token_hash
    few = recipe.but(tokens=48, batch_tokens=48, refit_tokens=48)
    for windows in (lab.for_refit(few), lab.training(few)):  # beginnings of different documents
        assert windows.inputs[:, 0].eq(lab.teacher.start).all()
    assert not {*lab.for_refit(few).document.tolist()} & {*lab.training(few).document.tolist()}
    assert torch.equal(lab.training(few).inputs, lab.training(few.but(refit_tokens=0)).inputs)


def test_a_refit_takes_a_quarter_of_the_text_at_most(open_lab: Open) -> None:
    lab = open_lab()
    recipe = lab.recipe(seq_len=48, batch_tokens=96, tokens=10**6).but(refit_tokens=0)
    pool = rows_of(lab.training(recipe))
    most = recipe.but(refit_tokens=10**6)
    assert len(lab.for_refit(most)) == len(pool) // 4
    assert rows_of(lab.training(most)) == pool - rows_of(lab.for_refit(most))
    asked = lab.recipe(seq_len=48, batch_tokens=96, tokens=10**6)
    assert asked.refit_tokens == min(102_400 // 48, len(pool) // 4) * 48
    lab.can_refit = False
    assert lab.recipe(seq_len=48, batch_tokens=96).refit_tokens == 0


def test_adapters_take_ten_times_the_rate(lab: Workspace) -> None:
    usual = lab.recipe(tokens=2_048).lr
    assert lab.recipe(tokens=2_048, trained="lora").lr == pytest.approx(10 * usual)
    assert lab.recipe(tokens=2_048, trained="lora", lr=0.1).lr == 0.1


def rows_of(windows: Windows) -> set[tuple[int, ...]]:
    return {tuple(row) for row in windows.inputs.tolist()}


# ---------------------------------------------------------------- records


def test_records_are_saved_and_read_back(open_lab: Open) -> None:
    lab = open_lab()
    plans = {"greedy-1": Plan(6, (2,), "greedy")}
    assert lab.save("plans", plans) is plans
    assert open_lab().read(NOTEBOOK, "plans") == plans
    stamp = storage.read_stamp(lab.record_path("plans"))
    assert stamp.parameters == lab.parameters
    assert stamp.notebook_hash == lab.notebook_hash
    with pytest.raises(StudyError, match="is missing: run 02_prune of study quick first"):
        lab.read("02_prune", "plans")


# ---------------------------------------------------------------- what is shown


def test_a_figure_names_the_records_that_it_was_drawn_from(
    lab: Workspace, shown: list[dict[str, Any]]
) -> None:
    scores = lab.save("test", {"whole": Score(("a",), (1.0,), (2,), (3,))})
    plan = lab.save("plan", Plan(6, (2,), "greedy"))
    lab.show("path", figure_of(), FOUND, of=[scores, plan])
    sources = {
        f"records/{NOTEBOOK}/{name}.json": storage.data_hash(lab.record_path(name))
        for name in ("plan", "test")
    }
    image, found = shown
    assert image["metadata"]["depthprune"]["sources"] == sources
    assert image["metadata"]["image/png"]["alt"] == "a line from 1 to 2"
    assert set(image["data"]) == {"image/png", "text/plain"}
    assert all(isinstance(value, str) for value in image["data"].values())  # as Jupyter sends it
    json.dumps(image)
    assert found["data"]["text/markdown"] == f"**Found.** {FOUND.text}"
    kept = lab.folder / "figures" / f"{NOTEBOOK}-path.png"
    assert charts.sources_in(kept.read_bytes()) == sources
    assert "<svg" in kept.with_suffix(".svg").read_text()


def test_one_record_of_many_leads_to_their_file(lab: Workspace) -> None:
    scores = lab.save("test", {"a": Facts({"x": 1}), "b": Facts({"x": 2})})
    other = lab.save("other", {"c": Facts({"x": 3})})
    mixed = {"a": scores["a"], "c": other["c"]}
    files = {f"records/{NOTEBOOK}/test.json", f"records/{NOTEBOOK}/other.json"}
    assert set(lab.sources_of([mixed], "figure")) == files
    assert set(lab.sources_of([scores["b"]], "figure")) == {f"records/{NOTEBOOK}/test.json"}


def test_a_figure_of_an_unsaved_record_is_refused(lab: Workspace) -> None:
    with pytest.raises(StudyError, match=r"figure path uses an unsaved Facts"):
        lab.show("path", figure_of(), FOUND, of=[Facts({"x": 1})])


def test_the_box_is_filled_by_at_most_three_findings(
    lab: Workspace, shown: list[dict[str, Any]]
) -> None:
    lab.box()
    assert "**Found.**" not in shown[0]["data"]["text/markdown"]
    for n in range(3):
        lab.found(f"{n}", Finding(f"{n}", f"finding {n}"), lead=True)
    lab.found("less", Finding("aside", "an aside"))
    box = [call for call in shown if call.get("display_id") == showing.BOX]
    last = box[-1]["data"]["text/markdown"]
    assert all(f"**Found.** finding {n}" in last for n in range(3))
    assert "aside" not in last
    assert "llama-tiny" in last
    with pytest.raises(StudyError, match="at most 3 findings"):
        lab.found("path", FOUND, lead=True)


def test_the_report_finds_what_the_notebook_told(lab: Workspace) -> None:
    lab.found("path", FOUND, lead=True)
    lab.found("less", Finding("aside", "an aside", True))
    told = Evidence(lab.study, lab.folder).told
    assert told == [
        Told(NOTEBOOK, "path", FOUND, True),
        Told(NOTEBOOK, "less", Finding("aside", "an aside", True), False),
    ]


def test_continuations_are_a_table(lab: Workspace, shown: list[dict[str, Any]]) -> None:
    samples = {"whole": ["a | b"], "cut": ["c\nd"]}
    lab.table(Facts({"prompts": ["Once"], "samples": samples}))
    rows = shown[0]["data"]["text/markdown"].splitlines()
    assert rows[2:] == ["| **prompt** | **Once** |", r"| whole | a \| b |", "| cut | c d |"]


@pytest.mark.slow
def test_an_executed_notebook_holds_figure_box_and_no_progress(home: Path) -> None:
    import nbclient
    import nbformat

    opened = f"""from pathlib import Path
from depthprune_study import paths
paths.notebooks = lambda: Path({str(home / "notebooks")!r})
from depthprune_study.lab.workspace import open_workspace
from depthprune_study.lab import students
from matplotlib.figure import Figure
from types import SimpleNamespace
lab = open_workspace({NOTEBOOK!r}, globals())
lab.box()"""
    worked = """from depthprune_core.records import Plan
recipe = lab.recipe(seq_len=48, batch_tokens=96, refit_tokens=0)
student = students.recover(lab, "healed", Plan(6, (2, 3), "x"), recipe)
curve = lab.save("curve", student.curve)
found = SimpleNamespace(title="a title", text="It was found.")
lab.show("curve", Figure(figsize=(4, 3)), found, of=[curve], lead=True)"""
    notebook = nbformat.read(write_notebook(home, opened, worked), as_version=4)
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    first, second = (c.outputs for c in notebook.cells[1:])
    streams = [output.text for output in first + second if output.output_type == "stream"]
    assert not streams
    assert [output.output_type for output in first + second] == ["display_data"] * 3
    assert "**Found.** It was found." in first[0].data["text/markdown"]
    assert list(second[0].metadata["depthprune"]["sources"]) == [f"records/{NOTEBOOK}/curve.json"]
    assert second[1].data["text/markdown"] == "**Found.** It was found."
