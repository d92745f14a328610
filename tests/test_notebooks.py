"""What every notebook keeps to, read from its source."""

from __future__ import annotations

import ast
import json
import re

import nbformat
import pytest

from depthprune_study import places, provenance, run, settings

NAMES = tuple(run.READS)
COMPUTING = NAMES[:-1]


def cells_of(name: str) -> list[dict]:
    return nbformat.read(places.NOTEBOOKS / f"{name}.ipynb", as_version=4).cells


def code_of(name: str) -> list[dict]:
    return [cell for cell in cells_of(name) if cell.cell_type == "code"]


def tags(cell: dict) -> list[str]:
    return cell.metadata.get("tags", [])


def prose_of(name: str) -> str:
    return "\n\n".join(cell.source for cell in cells_of(name) if cell.cell_type == "markdown")


pytestmark = pytest.mark.parametrize("name", NAMES)


def test_a_notebook_is_valid(name: str) -> None:
    nbformat.validate(nbformat.read(places.NOTEBOOKS / f"{name}.ipynb", as_version=4))


def test_a_notebook_is_named_by_settings_and_runner(name: str) -> None:
    assert list(settings.SCHEMAS) == list(run.READS) == sorted(path.stem for path in places.NOTEBOOKS.glob("*.ipynb"))


def test_one_cell_is_tagged_parameters_and_one_setup(name: str) -> None:
    for tag in ("parameters", "setup"):
        assert len([cell for cell in cells_of(name) if tag in tags(cell)]) == 1, tag


def test_the_setup_cell_is_the_one_of_all_notebooks(name: str) -> None:
    (cell,) = [cell for cell in cells_of(name) if "setup" in tags(cell)]
    assert cell.source == places.setup_cell()


def test_the_badge_in_the_first_cell_leads_to_this_notebook(name: str) -> None:
    first = cells_of(name)[0]
    assert first.cell_type == "markdown"
    assert places.badge(name) in first.source.split("\n")
    assert prose_of(name).count("colab-badge.svg") == 1


def test_the_first_cell_has_title_and_question(name: str) -> None:
    first = cells_of(name)[0].source
    assert first.startswith(f"# {name.split('_')[0]} · ")
    assert "**Question.**" in first


def test_a_notebook_that_computes_says_how_long_it_takes(name: str) -> None:
    if name in COMPUTING:
        assert re.search(r"About \w+ minutes?", cells_of(name)[0].source)


def test_no_code_cell_is_long(name: str) -> None:
    assert max(len(cell.source.splitlines()) for cell in code_of(name)) <= 30


def test_what_measures_a_time_depends_on_the_machine(name: str) -> None:
    kept = [source for cell in code_of(name) for source in re.split(r"(?=bench\.once\()", cell.source)[1:]]
    timed = [source for source in kept if re.match(r'bench\.once\(\s*f?"(timing-|pace)', source)]
    assert all("bench.machine" in source for source in timed)
    assert bool(timed) == (name in ("02_prune_gpt2", "03b_controls", "04_transfer_tinyllama"))


def test_no_outputs_are_committed(name: str) -> None:
    assert [cell for cell in code_of(name) if cell.outputs or cell.execution_count is not None] == []


def test_a_notebook_keeps_no_trace_of_a_run(name: str) -> None:
    raw = json.loads((places.NOTEBOOKS / f"{name}.ipynb").read_text(encoding="utf-8"))
    assert set(raw["metadata"]) <= {"kernelspec", "language_info"}
    assert all(set(cell["metadata"]) <= {"tags"} for cell in raw["cells"])
    assert len({cell["id"] for cell in raw["cells"]}) == len(raw["cells"])


def test_a_notebook_runs_on_the_plain_python_kernel(name: str) -> None:
    assert nbformat.read(places.NOTEBOOKS / f"{name}.ipynb", as_version=4).metadata.kernelspec.name == "python3"


def test_the_test_split_is_read_in_one_tagged_cell(name: str) -> None:
    tagged = [cell for cell in code_of(name) if "test-split" in tags(cell)]
    reading = [cell for cell in code_of(name) if "test_scores(" in cell.source]
    if name in NAMES[1:-1]:
        assert len(tagged) == 1
        assert reading == tagged
        assert tagged[0].source.count("test_scores(") == 1
    else:
        assert tagged == reading == []


def test_nothing_is_chosen_after_the_test_split_was_read(name: str) -> None:
    """Behind the cell that reads it, no model is trained, cut or profiled any more."""
    sources = [cell.source for cell in code_of(name)]
    reading = [i for i, source in enumerate(sources) if "test_scores(" in source]
    for source in sources[reading[0] + 1 :] if reading else []:
        assert not re.search(r"\.(recover|profile|drop_layers|drop_more|subset_costs|recovery_windows)\(|selection\.", source)


def test_no_code_reads_test_documents_otherwise(name: str) -> None:
    code = "\n".join(cell.source for cell in code_of(name))
    assert not re.search(r"(documents|windows|split|_split)\(\s*[\"']test[\"']", code)
    assert '["test"]' not in code
    assert "._" not in code  # nothing private either


def test_a_cell_of_facts_is_compared_by_nbval(name: str) -> None:
    facts = [cell for cell in code_of(name) if "facts" in tags(cell)]
    assert len(facts) == 1
    assert "nbval-check-output" in tags(facts[0])
    last = ast.parse(facts[0].source).body[-1]
    assert isinstance(last, ast.Expr)


def test_a_notebook_says_what_it_does_not_show(name: str) -> None:
    assert re.search("does not show", prose_of(name))


def test_no_measured_number_is_typed_into_prose(name: str) -> None:
    """Behind the first cell, decimals stand in results, not in text; a few that explain a scale are named here."""
    explained = {"0.05", "1.05"}
    later = "\n".join(cell.source for cell in cells_of(name)[1:] if cell.cell_type == "markdown")
    assert set(re.findall(r"(?<![\w.])\d+\.\d+(?![\dB])", later)) <= explained


def test_no_notebook_but_the_report_reads_what_was_scored_on_the_test_split(name: str) -> None:
    read = re.findall(r"bench\.read\([^)]*\)", "\n".join(cell.source for cell in code_of(name)))
    assert not [call for call in read if "test" in call or "elsewhere" in call]


def test_the_report_reads_records_alone(name: str) -> None:
    if name != "06_report":
        return
    found = provenance.closure(provenance.imports(provenance.notebook_code(places.NOTEBOOKS / f"{name}.ipynb")))
    reading = {
        "depthprune_core": {"figures", "intervals", "records"},
        "depthprune_study": {
            "claims",
            "evidence",
            "failures",
            "sections",
            "story",
            "tables",
            "places",
            "settings",
            "verdict_rules",
            "yaml_files",
        },
    }
    assert found <= {f"{package}.{module}" for package, modules in reading.items() for module in modules}


def test_every_figure_is_followed_by_how_to_read_it(name: str) -> None:
    if name in COMPUTING:
        assert "*How to read it.*" in prose_of(name)


def test_every_cell_of_text_ends_its_sentences(name: str) -> None:
    for cell in cells_of(name)[1:]:
        if cell.cell_type == "markdown" and not cell.source.startswith("## "):
            assert cell.source.rstrip().endswith((".", "?", ")", ":")), cell.source
