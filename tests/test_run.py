"""The runner, on two notebooks of a few lines."""

from __future__ import annotations

import errno
import fcntl
import io
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbformat
import psutil
import pytest
import yaml
from pydantic import create_model
from safetensors.torch import load_file, save_file
from tiny import tiny, tiny_tokenizer

from depthprune_core import records, text
from depthprune_core.records import Facts, write_atomically
from depthprune_study import places, preparation, provenance, run, settings
from depthprune_study.settings import Common, StudyError

ROOT = places.ROOT
CLAIMS = ROOT / "params" / "claims.yaml"


class One(Common):
    number: int


FIRST = [
    "from depthprune_core.records import write_atomically",
    "import json, os, sys, warnings\nfrom pathlib import Path\n"
    "folder = Path(os.environ['DEPTHPRUNE_RUNS'], study)\n"
    "write_atomically(folder / 'records' / '01_one' / 'number.json', str(number))\n"
    "write_atomically(folder / 'ran' / f'01_one-{os.getpid()}', '')",
    "for i in range(50):\n    print('line', i)\nprint('to the log', file=sys.stderr)\nwarnings.warn('from ' + os.getcwd())\nnumber",
]
LAST = [
    "import os\nfrom pathlib import Path\nfolder = Path(os.environ['DEPTHPRUNE_RUNS'], study)\n"
    "(folder / 'ran' / f'06_report-{os.getpid()}').write_text('')\n"
    "int((folder / 'records' / '01_one' / 'number.json').read_text()) * 2",
]


def a_notebook(name: str, parameters: str, cells: list[str]) -> None:
    notebook = nbformat.v4.new_notebook(
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    )
    notebook.cells = [
        nbformat.v4.new_markdown_cell("# Title"),
        nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}),
    ]
    notebook.cells += [nbformat.v4.new_code_cell(cell) for cell in cells]
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"
    nbformat.write(notebook, places.NOTEBOOKS / f"{name}.ipynb")


def parameters(number: int = 21) -> None:
    (places.PARAMS / "small" / "01_one.yaml").write_text(yaml.safe_dump({"study": "small", "number": number}))


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Two notebooks in place of the six; each test starts with them as they are written here."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("study")
        patch.setattr(places, "NOTEBOOKS", folder / "notebooks")
        patch.setattr(places, "PARAMS", folder / "params")
        patch.setattr(settings, "SCHEMAS", {"01_one": One, "06_report": Common})
        patch.setattr(run, "READS", {"01_one": (), "06_report": ("01_one",)})
        patch.setenv("DEPTHPRUNE_RUNS", str(folder / "runs"))
        patch.setenv("PYTHONPATH", str(ROOT))
        (folder / "params" / "small").mkdir(parents=True)
        (folder / "notebooks").mkdir()
        write_study()
        shutil.copy(CLAIMS, folder / "params")
        yield folder


def write_study() -> None:
    parameters()
    (places.PARAMS / "small" / "06_report.yaml").write_text("study: small\n")
    a_notebook("01_one", 'study: str = "none"  # folder\nnumber: int = 1  # any', FIRST)
    a_notebook("06_report", 'study: str = "none"  # folder', LAST)


@pytest.fixture(scope="module")
def finished(workplace: Path) -> Path:
    """What a whole run leaves, to be copied."""
    said: list[str] = []
    run.run("small", say=said.append, terminal=io.StringIO())
    assert [line.split(":")[0] for line in said] == ["01_one", "01_one", "06_report", "06_report"]
    shutil.copytree(workplace / "runs", workplace / "finished")
    return workplace / "finished"


@pytest.fixture
def done(workplace: Path, finished: Path) -> Iterator[Path]:
    """runs/small/ of a finished study, which a test may spoil."""
    shutil.rmtree(workplace / "runs", ignore_errors=True)
    shutil.copytree(finished, workplace / "runs")
    yield workplace / "runs" / "small"
    write_study()
    shutil.copy(CLAIMS, places.PARAMS)


@pytest.fixture
def fresh(workplace: Path) -> Iterator[Path]:
    """runs/small/ of a study that was never run."""
    shutil.rmtree(workplace / "runs", ignore_errors=True)
    yield workplace / "runs" / "small"
    write_study()


def ran_by(study: str) -> list[str]:
    """The notebooks that a run executes."""
    said: list[str] = []
    run.run(study, say=said.append, terminal=io.StringIO())
    return [line.split(":")[0] for line in said if ": running" in line]


def state() -> dict[str, bool]:
    return {step.notebook: step.done for step in run.plan("small")}


# ---------------------------------------------------------------- a run that ends well


@pytest.mark.parametrize(("variable", "place"), [("DEPTHPRUNE_RUNS", places.runs), ("DEPTHPRUNE_REPORTS", places.reports)])
def test_a_folder_is_the_same_for_a_command_and_its_notebooks(
    variable: str, place: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for named in ("elsewhere", str(tmp_path)):
        monkeypatch.setenv(variable, named)
        for folder in (places.ROOT, places.NOTEBOOKS):
            monkeypatch.chdir(folder)
            found.append(place("ci").resolve())
    assert found == [places.ROOT / "elsewhere" / "ci"] * 2 + [tmp_path / "ci"] * 2


def test_a_finished_study_is_done(done: Path) -> None:
    assert state() == {"01_one": True, "06_report": True}


def test_a_finished_notebook_is_not_run_again(done: Path) -> None:
    before = sorted(path.name for path in (done / "ran").iterdir())
    said: list[str] = []
    run.run("small", say=said.append, terminal=io.StringIO())
    assert said == ["01_one: done already", "06_report: done already"]
    assert sorted(path.name for path in (done / "ran").iterdir()) == before


def test_each_notebook_has_a_kernel_of_its_own(done: Path) -> None:
    assert len({path.name.split("-")[1] for path in (done / "ran").iterdir()}) == 2


def test_parameters_reach_the_notebook(done: Path) -> None:
    cells = nbformat.read(run.executed("small", "06_report"), as_version=4).cells
    assert cells[-1].outputs[0]["data"]["text/plain"] == "42"


def test_an_executed_notebook_says_nothing_of_the_machine_or_the_clock(workplace: Path, done: Path) -> None:
    for notebook in run.READS:
        content = run.executed("small", notebook).read_text(encoding="utf-8")
        assert str(workplace) not in content
        assert str(ROOT) not in content
        parsed = json.loads(content)
        assert set(parsed["metadata"]) <= {"kernelspec", "language_info"}
        assert all(set(cell["metadata"]) <= {"tags"} for cell in parsed["cells"])


def test_what_a_cell_prints_is_one_output(done: Path) -> None:
    cells = nbformat.read(run.executed("small", "01_one"), as_version=4).cells
    assert [output.output_type for output in cells[-1].outputs] == ["stream", "execute_result"]


def test_two_runs_leave_the_same_executed_notebook(done: Path) -> None:
    before = {notebook: run.executed("small", notebook).read_bytes() for notebook in run.READS}
    shutil.rmtree(done)
    run.run("small", say=lambda line: None, terminal=io.StringIO())
    assert {notebook: run.executed("small", notebook).read_bytes() for notebook in run.READS} == before


def test_what_goes_to_stderr_is_in_the_log(done: Path) -> None:
    assert "to the log" in (done / "logs" / "01_one.log").read_text()


def test_a_run_leaves_nothing_among_the_notebooks(done: Path) -> None:
    assert sorted(path.name for path in places.NOTEBOOKS.iterdir()) == ["01_one.ipynb", "06_report.ipynb"]


def test_the_cost_of_every_notebook_is_kept(done: Path) -> None:
    assert sorted(run.read_costs(done)) == ["01_one", "06_report"]


@pytest.mark.parametrize("content", ["", "[1]", "null", "not json"])
def test_damaged_costs_are_no_reason_to_stop(done: Path, content: str) -> None:
    (done / "costs.json").write_text(content)
    assert run.read_costs(done) == {}


DAMAGED_COSTS = (
    {},
    [],
    None,
    5,
    {"seconds": 5},
    {"seconds": "5", "peak_bytes": 1, "peak_gpu_bytes": 0},
    {"seconds": True, "peak_bytes": 1, "peak_gpu_bytes": 0},
    {"seconds": 5, "peak_bytes": None, "peak_gpu_bytes": 0},
    {"seconds": float("nan"), "peak_bytes": 1, "peak_gpu_bytes": 0},
    {"seconds": 5, "peak_bytes": float("inf"), "peak_gpu_bytes": 0},
    {"seconds": -5, "peak_bytes": 1, "peak_gpu_bytes": 0},
)


@pytest.mark.parametrize("cost", DAMAGED_COSTS, ids=str)
def test_a_damaged_entry_of_the_costs_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cost: object) -> None:
    monkeypatch.setenv("DEPTHPRUNE_RUNS", str(tmp_path))
    path, whole = places.runs("small") / "costs.json", {"seconds": 5.5, "peak_bytes": 7, "peak_gpu_bytes": 0}
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"01_one": cost, "06_report": whole}))
    assert run.read_costs(path.parent) == {"06_report": whole}
    run._remember_cost("small", a_step(), 3.0)
    measured = {"seconds": 3.0, "peak_bytes": 0, "peak_gpu_bytes": 0, "key": "as now"}
    assert run.read_costs(path.parent) == {"01_one": measured, "06_report": whole}


def test_a_notebook_that_only_went_on_is_known_to_have_taken_longer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEPTHPRUNE_RUNS", str(tmp_path))
    places.runs("small").mkdir(parents=True)

    def told(seconds: float, goes_on: bool, key: str = "as now") -> tuple[float, bool]:
        run._remember_cost("small", a_step(key), seconds, goes_on=goes_on)
        cost = run.read_costs(places.runs("small"))["01_one"]
        return cost["seconds"], cost.get("resumed", False)

    assert told(3.0, goes_on=True) == (3.0, True)  # after a kill: nobody knows how long the first part took
    assert told(2.0, goes_on=True) == (3.0, True)
    assert told(9.0, goes_on=False) == (9.0, False)
    assert told(1.0, goes_on=True) == (9.0, False)  # the whole run was timed before
    assert told(4.0, goes_on=False, key="faster code") == (4.0, False)  # what older code took says nothing of it
    assert told(2.0, goes_on=True, key="other parameters") == (2.0, True)


def a_step(key: str = "as now") -> run.Step:
    return run.Step("01_one", {}, key, False, 0)


def test_a_run_that_was_killed_in_a_notebook_and_goes_on_says_so_in_its_costs(done: Path) -> None:
    assert not any(cost.get("resumed") for cost in run.read_costs(done).values())
    (done / "costs.json").unlink()
    run._mark("small", "01_one").unlink()
    run.run("small", say=print)
    assert run.read_costs(done)["01_one"]["resumed"]


def test_so_does_one_that_was_stopped_before_its_first_record(fresh: Path) -> None:
    a_notebook("01_one", 'study: str = "none"  # folder\nnumber: int = 1  # any', ["raise ValueError('stopped')"])
    stopped()
    write_study()
    run.run("small", say=print)
    costs = run.read_costs(fresh)
    assert costs["01_one"]["resumed"] and not costs["06_report"].get("resumed")


def test_a_damaged_record_is_named_when_its_notebook_runs_again(done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(done)
    path = done / "records" / "01_one" / "facts.json"
    records.write(path, Facts({"a": 1}), records.Stamp("small", "01_one", "", "", {}, {}, {}, "cpu", "", 0, ""))
    assert run.damaged(done / "records") == [
        done / "records" / "01_one" / "number.json"
    ]  # of this study, which writes no records
    path.write_text(path.read_text(encoding="utf-8").replace("1", "2", 1), encoding="utf-8")
    said: list[str] = []
    run.run("small", say=said.append, terminal=io.StringIO())
    assert "records/01_one/facts.json is damaged: what it held is made again" in said


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("how", ["is not as it was", "is gone"])
@pytest.mark.parametrize("name", ["notebooks/01_one.ipynb", "records/01_one/number.json", "figures/01_one-plot.png"])
def test_a_file_that_a_finished_notebook_left_is_named_when_it_is_made_again(
    done: Path, monkeypatch: pytest.MonkeyPatch, name: str, how: str
) -> None:
    monkeypatch.chdir(done)
    if name.startswith("figures"):
        write_atomically(done / name, "a figure")
        run._leave_mark("small", run.plan("small")[0])
    monkeypatch.setattr(run, "damaged", lambda folder: [])  # this study writes no records
    Path(name).unlink() if how == "is gone" else flipped(Path(name))
    said: list[str] = []
    run.run("small", say=said.append, terminal=io.StringIO())
    assert said[:3] == [f"{name} {how}: 01_one is run again", "01_one: running", said[2]]
    assert "06_report: done already" in said  # what it reads came out the same


@pytest.mark.parametrize("place", range(10))
def test_a_mark_in_which_a_bit_flipped_is_named(done: Path, monkeypatch: pytest.MonkeyPatch, place: int) -> None:
    monkeypatch.chdir(done)
    mark = run._mark("small", "01_one")
    content = bytearray(mark.read_bytes())
    content[len(content) * place // 10] ^= 1
    mark.write_bytes(content)
    told = run.spoilt("small", run.plan("small")[0])
    assert told[-1:] in (["done/01_one.json is damaged: 01_one is run again"], [])
    assert bool(told[-1:]) or state()["01_one"]  # such as a space that became a tab


def test_weights_that_are_made_again_are_named_by_the_run(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arms = fresh / "arms" / "recovered"
    arms.mkdir(parents=True)
    for name in ("abc.safetensors", "abc.ckpt", "kept.safetensors"):
        (arms / name).write_text("damaged")
    makes = "".join(
        f"records.write_atomically(Path({str(arms / name)!r}), 'whole')\n" for name in ("abc.safetensors", "abc.ckpt")
    )
    cell = f"from pathlib import Path\nfrom depthprune_core import records\n{makes}"
    a_notebook("01_one", 'study: str = "none"  # folder\nnumber: int = 1  # any', [*FIRST, cell])
    monkeypatch.chdir(fresh)
    said: list[str] = []
    run.run("small", say=said.append, terminal=io.StringIO())
    assert [line for line in said if "made again" in line] == [
        "arms/recovered/abc.safetensors was not what it should be: it was made again"
    ]


def test_what_was_replaced_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    for name in ("text.json", "kept.json", "model/config.json", "model/run.ckpt", ".hidden"):
        (tmp_path / name).write_text("damaged")
    said: list[str] = []
    with run.told_of_replaced([tmp_path, tmp_path / "nowhere"], said.append):
        for name in ("text.json", "model/config.json", "model/run.ckpt", "new.json", ".hidden"):
            write_atomically(tmp_path / name, "whole")
    assert said == [f"{name} was not what it should be: it was made again" for name in ("model/config.json", "text.json")]


def test_a_damaged_file_of_the_cache_is_named_by_the_run(fresh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEPTHPRUNE_CACHE", str(tmp_path))
    monkeypatch.setattr(preparation, "fetch", lambda steps, say: write_atomically(tmp_path / "text.json", "whole"))
    (tmp_path / "text.json").write_text("damaged")
    said: list[str] = []
    run.run("small", say=said.append, terminal=io.StringIO())
    assert f"{os.path.relpath(tmp_path / 'text.json')} was not what it should be: it was made again" in said


@pytest.mark.parametrize(
    ("victim", "notebook"), [("kernel", "01_one"), ("runner", "01_one"), ("runner", "06_report"), ("both", "06_report")]
)
def test_a_study_whose_kernel_or_runner_is_killed_goes_on_where_it_was(
    fresh: Path, finished: Path, victim: str, notebook: str
) -> None:
    waits = (
        "waits = Path(os.environ['DEPTHPRUNE_RUNS'], 'waits')\nif not waits.exists():\n    waits.touch()\n    time.sleep(60)"
    )
    number = "\nnumber: int = 1  # any" if notebook == "01_one" else ""
    cells = FIRST if notebook == "01_one" else LAST
    a_notebook(
        notebook, f'study: str = "none"  # folder{number}', [*cells, f"import os, time\nfrom pathlib import Path\n{waits}"]
    )
    runner = multiprocessing.get_context("fork").Process(target=ran_by, args=("small",))
    runner.start()
    until = time.monotonic() + 60
    while not (fresh.parent / "waits").exists():
        assert runner.is_alive() and time.monotonic() < until
        time.sleep(0.05)
    kernels = [
        child for child in psutil.Process(runner.pid).children(recursive=True) if "ipykernel" in " ".join(child.cmdline())
    ]
    assert len(kernels) == 1
    for process in {"kernel": kernels, "runner": [runner], "both": [runner, *kernels]}[victim]:
        process.kill()
    runner.join(60)
    assert not psutil.wait_procs(kernels, 30)[1]  # one that has lost its runner goes by itself
    assert runner.exitcode == (1 if victim == "kernel" else -signal.SIGKILL)
    kept = run.executed("small", "01_one").read_bytes() if notebook == "06_report" else b""
    assert ran_by("small") == (["06_report"] if kept else ["01_one", "06_report"])
    assert state() == {"01_one": True, "06_report": True}
    assert not kept or run.executed("small", "01_one").read_bytes() == kept
    ours, theirs = (
        {path.relative_to(root): path.read_bytes() for path in (root / "records").rglob("*.json")}
        for root in (fresh, finished / "small")
    )
    assert ours == theirs and ours


# ---------------------------------------------------------------- what makes a notebook run again


def test_another_parameter_makes_it_and_what_reads_it_run_again(done: Path) -> None:
    parameters(number=22)
    assert state() == {"01_one": False, "06_report": False}


def test_another_code_cell_makes_it_and_what_reads_it_run_again(done: Path) -> None:
    a_notebook("01_one", 'study: str = "none"  # folder\nnumber: int = 1  # any', [*FIRST, "1 + 1"])
    assert state() == {"01_one": False, "06_report": False}


def test_another_code_cell_leaves_what_was_before_it_done(done: Path) -> None:
    a_notebook("06_report", 'study: str = "none"  # folder', [*LAST, "1 + 1"])
    assert state() == {"01_one": True, "06_report": False}


def test_other_code_of_ours_makes_what_imports_it_run_again(done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = provenance.code_hash
    monkeypatch.setattr(
        provenance, "code_hash", lambda *modules: plain(*modules) + ("+edit" if "depthprune_core.records" in modules else "")
    )
    assert state() == {"01_one": False, "06_report": False}


def test_another_library_makes_everything_run_again(done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "versions", lambda: {"torch": "1.0"})
    assert state() == {"01_one": False, "06_report": False}


def test_other_rules_make_the_report_run_again(done: Path) -> None:
    (places.PARAMS / "claims.yaml").write_text(CLAIMS.read_text().replace("threshold: 1.13", "threshold: 1.14"))
    assert state() == {"01_one": True, "06_report": False}


def test_a_record_that_was_changed_is_noticed(done: Path) -> None:
    (done / "records" / "01_one" / "number.json").write_text("3")
    assert state() == {"01_one": False, "06_report": False}


def test_a_record_that_was_removed_is_noticed(done: Path) -> None:
    (done / "records" / "01_one" / "number.json").unlink()
    assert state() == {"01_one": False, "06_report": False}


@pytest.mark.parametrize("damage", ["edited", "emptied", "removed"])
def test_an_executed_notebook_that_was_changed_is_noticed(done: Path, damage: str) -> None:
    path = run.executed("small", "06_report")
    content = path.read_text(encoding="utf-8")
    path.unlink() if damage == "removed" else path.write_text(content.replace('"42"', '"43"') if damage == "edited" else "")
    assert state() == {"01_one": True, "06_report": False}


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"key": 1}', "\x00"])
def test_a_damaged_mark_counts_as_not_done(done: Path, content: str) -> None:
    (done / "done" / "06_report.json").write_text(content)
    assert state() == {"01_one": True, "06_report": False}


def test_a_record_that_was_removed_is_made_again(done: Path) -> None:
    (done / "records" / "01_one" / "number.json").unlink()
    assert "01_one" in ran_by("small")
    assert (done / "records" / "01_one" / "number.json").read_text() == "21"


def test_a_notebook_that_leaves_the_same_records_leaves_what_reads_it_done(done: Path) -> None:
    run.executed("small", "01_one").unlink()
    assert ran_by("small") == ["01_one"]


def test_a_record_that_differs_from_run_to_run_makes_what_reads_it_run_again(done: Path) -> None:
    a_notebook(
        "01_one",
        'study: str = "none"  # folder\nnumber: int = 1  # any',
        [*FIRST, "import time; number = time.time_ns()", *FIRST],
    )
    assert ran_by("small") == ["01_one", "06_report"]
    run.executed("small", "01_one").unlink()
    assert state() == {"01_one": False, "06_report": True}
    assert ran_by("small") == ["01_one", "06_report"]


# ---------------------------------------------------------------- what the parameters name


def names(monkeypatch: pytest.MonkeyPatch, **values: Any) -> None:
    """The first notebook takes these parameters too."""
    monkeypatch.setitem(settings.SCHEMAS, "01_one", create_model("Named", __base__=One, **dict.fromkeys(values, (Any, ...))))
    (places.PARAMS / "small" / "01_one.yaml").write_text(yaml.safe_dump({"study": "small", "number": 21, **values}))


def first() -> run.Step:
    return run.plan("small")[0]


@pytest.fixture
def local(tmp_path: Path) -> Path:
    """A folder that stands for a model or a text, and where the user stands."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "model.safetensors").write_bytes(b"weights")
    return tmp_path / "mine"


@pytest.mark.parametrize("parameter", run.NAMED)
def test_other_content_of_a_local_folder_makes_everything_run_again(
    fresh: Path, local: Path, monkeypatch: pytest.MonkeyPatch, parameter: str
) -> None:
    names(monkeypatch, **{parameter: str(local)})
    before = [step.key for step in run.plan("small")]
    assert [step.key for step in run.plan("small")] == before
    (local / "model.safetensors").write_bytes(b"others!")
    assert all(step.key != was for step, was in zip(run.plan("small"), before, strict=True))


def test_other_content_of_a_local_file_makes_it_run_again(fresh: Path, local: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (local / "text.txt").write_text("one")
    names(monkeypatch, text=str(local / "text.txt"))
    before = first().key
    (local / "text.txt").write_text("two and more")
    assert first().key != before


def test_a_model_card_and_a_notebook_beside_a_model_are_not_its_content(
    fresh: Path, local: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names(monkeypatch, model=str(local))
    before = first().key
    (local / "README.md").write_text("a card")
    (local / "train.ipynb").write_text("{}")
    assert first().key == before


@pytest.mark.parametrize("name", ["gpt2-mini", "splits.json"])
def test_what_is_bundled_is_known_by_its_content(fresh: Path, local: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    (bundled,) = [path for path in run.BUNDLED if path.name == name]
    before = first().key
    monkeypatch.setattr(run, "BUNDLED", [local if path == bundled else path for path in run.BUNDLED])
    assert first().key != before


def test_a_large_file_is_hashed_once(fresh: Path, local: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[Path] = []
    monkeypatch.setattr(run, "BUNDLED", ())
    monkeypatch.setattr(run, "sha256_of", lambda path: hashed.append(path) or "hash")
    names(monkeypatch, model=str(local), first_model=str(local))
    assert first().key == first().key
    assert hashed == [local / "model.safetensors"]


def test_a_relative_path_counts_from_where_the_user_stands(fresh: Path, local: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(local.parent)
    names(monkeypatch, model="mine", text=os.path.join("mine", "model.safetensors"), elsewhere="nowhere")
    assert first().parameters["model"] == str(local)
    assert first().parameters["text"] == str(local / "model.safetensors")
    assert first().parameters["elsewhere"] == "nowhere"


@pytest.mark.parametrize(("parameter", "name"), [("model", "gpt2"), ("text", "wikitext-2")])
def test_a_name_stays_a_name_where_a_folder_is_called_the_same(
    fresh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parameter: str, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    names(monkeypatch, **{parameter: name})
    before = first().key
    (tmp_path / name).mkdir()
    (tmp_path / name / "config.json").write_text("{}")
    assert (first().parameters[parameter], first().key) == (name, before)


def test_the_texts_that_have_a_name_are_those_that_can_be_loaded(tmp_path: Path) -> None:
    with pytest.raises(ValueError) as error:
        text.load("nosuch", cache=tmp_path)
    assert str(error.value).endswith(f": name {', '.join(run.TEXTS)}, a text file or a folder of .txt files")


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b"])
def test_a_name_that_can_be_no_path_stays_as_it_is(fresh: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    names(monkeypatch, model=name)
    assert first().parameters["model"] == name


# ---------------------------------------------------------------- a run that does not


def stopped() -> str:
    with pytest.raises(StudyError) as error:
        run.run("small", say=lambda line: None, terminal=io.StringIO())
    return str(error.value)


def test_a_folder_with_spaces_and_other_letters_is_as_good_as_any(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEPTHPRUNE_RUNS", str(fresh.parent / "Läufe von heute, 東京 %s {x}"))
    assert ran_by("small") == ["01_one", "06_report"]
    assert state() == {"01_one": True, "06_report": True}


def test_a_home_that_is_not_there_is_not_needed(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "IPYTHONDIR", "JUPYTER_CONFIG_DIR", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(fresh / "nobody"))
    assert ran_by("small") == ["01_one", "06_report"]


def test_a_folder_that_cannot_be_written_to_stops_the_study_before_any_work(
    fresh: Path, writable: Callable[[Path], Callable[[bool], object]]
) -> None:
    fresh.parent.mkdir()
    made_writable = writable(fresh.parent)
    made_writable(False)
    with pytest.raises(OSError, match=str(fresh)) as error:
        ran_by("small")
    assert error.value.errno == (errno.EROFS if os.geteuid() == 0 else errno.EACCES)
    made_writable(True)
    assert list(fresh.parent.iterdir()) == []
    assert ran_by("small") == ["01_one", "06_report"]


def test_runs_that_became_read_only_stop_the_study_and_lose_nothing(
    done: Path, writable: Callable[[Path], Callable[[bool], object]], tmp_path: Path
) -> None:
    kept = shutil.copytree(done, tmp_path / "kept")
    made_writable = writable(done.parent)
    if not done.exists():  # a disk of its own lies over it
        shutil.copytree(kept, done)
    run._mark("small", "06_report").unlink()
    before = {path: path.read_bytes() for path in done.rglob("*") if path.is_file()}
    made_writable(False)
    with pytest.raises(OSError, match=str(done)):
        ran_by("small")
    made_writable(True)
    assert {path: path.read_bytes() for path in done.rglob("*") if path.is_file()} == before
    assert ran_by("small") == ["06_report"]


def test_a_failing_cell_stops_the_study_and_keeps_what_there_is(fresh: Path) -> None:
    failing = "import sys\nprint('so far', file=sys.stderr)\nraise ValueError('the answer is not 42')"
    a_notebook("06_report", 'study: str = "none"  # folder', [failing, "print('never')"])
    told = stopped().split("\n")
    assert told[0] == "notebook 06_report of study small stopped: the answer is not 42"
    partial, log = (Path(line.split(": ")[1]) for line in told[1:])
    assert "the answer is not 42" in partial.read_text(encoding="utf-8")
    assert "so far" in log.read_text()
    assert state() == {"01_one": True, "06_report": False}
    assert not run.executed("small", "06_report").exists()


def test_an_unforeseen_error_is_told_with_its_name(fresh: Path) -> None:
    a_notebook("01_one", 'study: str = "none"  # folder\nnumber: int = 1  # any', ["{}['key']"])
    assert stopped().split("\n")[0] == "notebook 01_one of study small stopped: KeyError: 'key'"


@pytest.mark.parametrize("cell", ["import torch\ntorch.ones(10**14)", "bytearray(10**17)"])
def test_memory_that_ran_out_is_told_with_what_to_do(fresh: Path, cell: str) -> None:
    a_notebook("01_one", 'study: str = "none"  # folder\nnumber: int = 1  # any', [cell])
    told = stopped().split("\n")[0]
    assert told.startswith("notebook 01_one of study small stopped: memory ran out (")
    assert told.endswith("or take a smaller model, shorter windows or fewer of them at once")


def test_what_onednn_says_without_memory_is_told_with_what_it_often_means(fresh: Path) -> None:
    a_notebook(
        "01_one",
        'study: str = "none"  # folder\nnumber: int = 1  # any',
        ["raise RuntimeError('could not create a primitive')"],
    )
    told = stopped().split("\n")[0]
    assert told.endswith("RuntimeError: could not create a primitive (often because memory ran out)")


def test_a_failure_on_a_full_disk_is_told_as_that(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unforeseen = "raise RuntimeError('[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0')"
    a_notebook("01_one", 'study: str = "none"  # folder\nnumber: int = 1  # any', [unforeseen])
    full = shutil.disk_usage(fresh.parent.parent)._replace(free=4096)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: full)
    told = stopped().split("\n")[0]
    assert told.startswith("notebook 01_one of study small stopped: the disk is full (RuntimeError: [enforce fail")
    assert told.endswith("free some space, then the same command goes on from here")


@pytest.mark.parametrize("room_kib", [4, 8, 16, 24])
def test_a_disk_that_fills_stops_the_study_in_a_sentence_and_room_lets_it_go_on(
    fresh: Path, finished: Path, room_kib: int
) -> None:
    """The runner's own files as well as its kernel's: the lock, logs, the partial notebook, records, marks."""

    def mount(*options: str) -> int:
        return subprocess.run(["mount", "-t", "tmpfs", "-o", *options, fresh.parent], capture_output=True).returncode

    fresh.parent.mkdir()
    if mount(f"size={room_kib}k", "tmpfs"):
        pytest.skip("needs the right to mount a small disk")
    try:
        with pytest.raises((StudyError, OSError), match=r"No space left|disk is full"):
            ran_by("small")
        assert mount("remount,size=8m") == 0
        assert ran_by("small")[-1] == "06_report"
        assert state() == {"01_one": True, "06_report": True}
        number = Path("small", "records", "01_one", "number.json")
        assert (fresh.parent / number).read_bytes() == (finished / number).read_bytes()
    finally:
        subprocess.run(["umount", "-l", fresh.parent], check=True)


@pytest.mark.parametrize("death", ["os._exit(0)", "os._exit(1)", "os.kill(os.getpid(), 9)"])
def test_a_dead_kernel_is_a_failure(fresh: Path, death: str) -> None:
    a_notebook("01_one", 'study: str = "none"  # folder\nnumber: int = 1  # any', [f"import os\n{death}", "print('never')"])
    assert "died" in (told := stopped().split("\n")[0].lower()) and told.endswith("(often because memory ran out)")
    assert state() == {"01_one": False, "06_report": False}


def test_a_kernel_that_dies_in_the_last_cell_is_a_failure(fresh: Path) -> None:
    a_notebook("01_one", 'study: str = "none"  # folder\nnumber: int = 1  # any', ["import os\nos.kill(os.getpid(), 9)"])
    assert "died" in stopped().split("\n")[0].lower()


def test_bad_parameters_stop_the_study_before_any_work(fresh: Path) -> None:
    (places.PARAMS / "small" / "01_one.yaml").write_text("study: small\nnumber: many\n")
    assert stopped() == "small/01_one.yaml: number='many': Input should be a valid integer"
    assert not fresh.exists()


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        ("mine", "model folder {folder} holds no config.json"),
        ("other", "model 'other' is not known: name one of gpt2, "),
    ],
)
def test_a_model_that_cannot_be_loaded_stops_the_study_before_any_work(
    fresh: Path, local: Path, monkeypatch: pytest.MonkeyPatch, model: str, sentence: str
) -> None:
    monkeypatch.chdir(local.parent)
    names(monkeypatch, model=model)
    assert stopped().startswith(sentence.format(folder=local))
    assert not (fresh / "notebooks").exists()


def test_a_notebook_that_would_not_take_its_parameters_stops_the_study_before_any_work(fresh: Path) -> None:
    path = places.NOTEBOOKS / "01_one.ipynb"
    path.write_text(path.read_text(encoding="utf-8").replace('"parameters"', '"paramaters"'), encoding="utf-8")
    assert stopped().startswith(f"notebook {path} has 0 cells tagged `parameters`; one is wanted")
    assert not fresh.exists()


@pytest.mark.parametrize("spoilt", ["a missing tensor", "a tokenizer that does not fit"])
def test_a_local_model_that_is_not_whole_stops_the_study_before_any_work(
    fresh: Path, local: Path, monkeypatch: pytest.MonkeyPatch, spoilt: str
) -> None:
    tiny("llama", **({"vocab_size": 64} if spoilt == "a tokenizer that does not fit" else {})).save_pretrained(local)
    tiny_tokenizer().save_pretrained(local)
    sentence = f"model {local}: its tokenizer has 128 tokens, but the model embeds 64: they do not fit"
    if spoilt == "a missing tensor":
        weights = load_file(local / "model.safetensors")
        weights.pop("model.norm.weight")
        save_file(weights, local / "model.safetensors", metadata={"format": "pt"})
        sentence = f"weights of {local}: missing keys ['model.norm.weight'], so this is another model"
    names(monkeypatch, model=str(local))
    assert stopped() == sentence
    assert not (fresh / "notebooks").exists()


@pytest.mark.parametrize(
    ("parameter", "value", "most"), [("drop_counts", [2, 12], 11), ("race_counts", [12], 11), ("drop_count", 11, 10)]
)
def test_more_layers_to_drop_than_there_are_stop_the_study_before_any_work(
    fresh: Path, monkeypatch: pytest.MonkeyPatch, parameter: str, value: Any, most: int
) -> None:
    names(monkeypatch, model="gpt2-mini", **{parameter: value})
    assert stopped() == f"01_one: {parameter}={value} should be at most {most}: gpt2-mini has 12 layers"
    assert not (fresh / "notebooks").exists()


def test_what_a_machine_falls_short_of_is_told_first(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparation, "shortcomings", lambda steps: [f"short: {step.notebook}" for step in steps])
    said: list[str] = []
    run.run("small", say=said.append, terminal=io.StringIO())
    running = next(at for at, line in enumerate(said) if ": running" in line)
    assert {"short: 01_one", "short: 06_report"} <= set(said[:running])


def test_a_task_that_is_not_known_stops_the_study_before_any_work(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lm_eval")
    names(monkeypatch, zero_shot_tasks=["hellaswag", "hellaswagg"])
    assert stopped() == "01_one: zero_shot_tasks names 'hellaswagg', which is no single task that lm-eval knows"
    assert not (fresh / "notebooks").exists()


# ---------------------------------------------------------------- two at once


HOLD = """
import sys, time
from pathlib import Path
from depthprune_study import run
with run.alone(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_run_at_once_is_refused_in_a_sentence(done: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, str(done)], stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout.readline() == "held\n"
            assert stopped() == "study small is being run or published by another process: wait for it, or stop it"
        finally:
            other.kill()
    run.run("small", say=lambda line: None, terminal=io.StringIO())  # the lock went with the process


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_folder_that_cannot_be_locked_is_run_in_without_a_lock(
    done: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def flock(file: object, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    said: list[str] = []
    run.run("small", say=said.append, terminal=io.StringIO())
    assert said == [
        f"{done} cannot be locked ({os.strerror(number)}): start no second process that works in it beside this one",
        "01_one: done already",
        "06_report: done already",
    ]
    terminal = io.StringIO()
    assert run.run_single("small", first(), terminal=terminal) == 0
    assert terminal.getvalue() == f"{said[0]}\n"


def test_the_committed_notebooks_read_only_what_ran_before_them() -> None:
    real = json.loads(
        subprocess.check_output(
            [sys.executable, "-c", "import json; from depthprune_study import run; print(json.dumps(run.READS))"]
        )
    )
    assert list(real) == sorted(real)
    assert all(earlier < notebook for notebook, reads in real.items() for earlier in reads)


def test_a_notebook_reads_the_records_of_no_other_notebook_than_its_list_says() -> None:
    script = "import json; from depthprune_study import run; print(json.dumps(run.READS))"
    for notebook, reads in json.loads(subprocess.check_output([sys.executable, "-c", script])).items():
        code = provenance.notebook_code(ROOT / "notebooks" / f"{notebook}.ipynb")
        named = {part.split('"')[1] for part in code.split("bench.read(")[1:]}
        assert named <= set(reads), notebook
