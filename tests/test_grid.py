"""A sweep: a cell that fails stops no other, what is done stays done, each cell has a GPU of its own."""

from __future__ import annotations

import datetime
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import handmade
import pytest
import yaml
from typer.testing import CliRunner

from depthprune_core import distillation, evaluation, figures, intervals, records
from depthprune_study import bench, cli, grid, live, places, preparation, provenance, run, settings
from depthprune_study.settings import StudyError

SAME = {
    "text": "wikipedia-excerpt",
    "max_documents": 2,
    "seq_len": 32,
    "score_tokens": 32,
    "calibration_tokens": 32,
    "tokens": 128,
    "lr": 1e-3,
    "batch_tokens": 64,
    "refit_tokens": 64,
    "precision": "float32",
    "device": "cpu",
}
GRID = {"name": "try", "models": ["llama-tiny"], "rules": ["last_k", "evenly_spaced"], "drop_counts": [1, 2], "seeds": [0]}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEPTHPRUNE_RUNS", str(tmp_path / "runs"))


def sweep(**changes: Any) -> settings.Sweep:
    return settings.Sweep.model_validate({**GRID, "same": SAME, **changes})


def written(path: Path, **changes: Any) -> Path:
    path.write_text(yaml.safe_dump({**GRID, "same": SAME, **changes}), encoding="utf-8")
    return path


# ---------------------------------------------------------------- the cells


def test_a_sweep_has_every_combination_once_each_in_a_folder_of_its_own() -> None:
    found = grid.cells(sweep(seeds=[0, 1]))
    assert len(found) == len({cell.folder for cell in found}) == 2 * 2 * 2
    assert {(c.parameters.rule, c.parameters.drop_count, c.parameters.seed) for c in found} == {
        (rule, count, seed) for rule in ("last_k", "evenly_spaced") for count in (1, 2) for seed in (0, 1)
    }


def test_a_cell_keeps_its_folder_when_the_grid_grows_and_changes_it_with_a_parameter() -> None:
    before = {cell.folder for cell in grid.cells(sweep())}
    assert before < {cell.folder for cell in grid.cells(sweep(seeds=[0, 1]))}
    assert not before & {cell.folder for cell in grid.cells(sweep(same=SAME | {"tokens": 256}))}


def test_every_committed_sweep_can_be_read() -> None:
    for path in sorted((places.PARAMS / "sweeps").glob("*.yaml")):
        assert grid.cells(settings.read_sweep(path))


@pytest.mark.parametrize("site", sorted((places.PARAMS / "sites").glob("*.py")), ids=lambda path: path.stem)
def test_every_committed_site_gives_a_config(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parsl = pytest.importorskip("parsl")
    namespace: dict[str, Any] = {}
    from parsl.providers.kubernetes import kube

    monkeypatch.setattr(kube, "_kubernetes_enabled", True)  # no cluster is there, and its package need not be
    for name in ("client", "config"):
        monkeypatch.setattr(kube, name, MagicMock(), raising=False)
    exec(compile(site.read_text(encoding="utf-8"), site.name, "exec"), namespace)
    config = namespace["config"]()
    assert isinstance(config, parsl.Config)
    (workers,) = config.executors
    assert len(workers.available_accelerators) == {"kubernetes": 1, "slurm": 4, "two_workers": 2}[site.stem]  # one a worker
    if site.stem == "kubernetes":
        assert workers.provider.extra_limits == {"nvidia.com/gpu": "1"}
    if site.stem == "slurm":
        assert "--gpus-per-node=4" in workers.provider.scheduler_options


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"rules": ["best"]}, "rules.0='best': Input should be 'least_sensitive'"),
        ({"seeds": [0, 0]}, r"seeds=\[0, 0\]: each can be named once"),
        ({"drop_counts": []}, r"drop_counts=\[\]: List should have at least 1 item"),
        ({"name": "a b"}, "name='a b'"),
        ({"more": 1}, "more is not a parameter; known are name, models, rules, drop_counts, seeds, same"),
        ({"same": SAME | {"lr": "1e-4"}}, r"lr='1e-4': Input should be a valid number \(YAML reads 1e-4 as text"),
        ({"same": SAME | {"rule": "greedy"}}, r"same\.rule is given by the sweep itself"),
        ({"same": SAME | {"study": "quick"}}, r"same\.study is given by the sweep itself"),
        ({"same": SAME | {"text": datetime.date(2024, 1, 1)}}, "text=datetime.date.*: Input should be a valid string"),
        ({"same": SAME | {"batch_tokens": 33}}, "batch_tokens=33: must be a multiple of seq_len 32"),
    ],
)
def test_a_bad_sweep_is_refused_before_any_cell_runs(changes: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=sentence):
        grid.cells(settings.read_sweep(written(tmp_path / "sweep.yaml", **changes)))


def test_a_parameter_that_stands_twice_is_refused_also_among_what_is_shared(tmp_path: Path) -> None:
    path = written(tmp_path / "sweep.yaml")
    path.write_text(path.read_text(encoding="utf-8").replace("  tokens: 128", "  tokens: 128\n  tokens: 256"), encoding="utf-8")
    with pytest.raises(StudyError, match="tokens is given more than once"):
        settings.read_sweep(path)


def test_a_sweep_or_a_site_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"nowhere\.yaml is not there"):
        settings.read_sweep(tmp_path / "nowhere.yaml")
    pytest.importorskip("parsl")
    with pytest.raises(StudyError, match=r"nowhere\.py is not there"):
        grid.parsl_pool(tmp_path / "nowhere.py")
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(StudyError, match=r"has no function config\(\)"):
        grid.parsl_pool(tmp_path / "empty.py")
    (tmp_path / "broken.py").write_text("import nothing_of_the_kind")
    with pytest.raises(
        StudyError, match=r"broken\.py gives no parsl\.Config \(ModuleNotFoundError\): No module named 'nothing_"
    ):
        grid.parsl_pool(tmp_path / "broken.py")


def test_a_site_whose_package_is_not_installed_says_so_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("parsl")
    from parsl.providers.kubernetes import kube

    monkeypatch.setattr(kube, "_kubernetes_enabled", False)
    with pytest.raises(StudyError, match=r"kubernetes\.py gives no parsl\.Config \(OptionalModuleMissing\): .*'kubernetes'"):
        grid.parsl_pool(places.PARAMS / "sites" / "kubernetes.py")


# ---------------------------------------------------------------- running them


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], set[str]]:
    """Cells that only note that they ran; the rules in the set fail."""
    ran: list[str] = []
    broken: set[str] = set()
    done: set[str] = set()

    def run_cell(folder: str, parameters: dict[str, Any], moved: dict[str, str], asked: dict[str, str]) -> None:
        ran.append(folder)
        if parameters["rule"] in broken:
            raise RuntimeError("it broke\nwith a traceback")
        done.add(folder)

    monkeypatch.setattr(grid, "run_cell", run_cell)
    monkeypatch.setattr(preparation, "fetch", lambda steps, say: None)
    monkeypatch.setattr(grid.Cell, "done", property(lambda cell: cell.folder in done))
    return ran, broken


def test_sweeps_run_one_after_the_other_and_none_before_all_are_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []
    monkeypatch.setattr(grid, "local_pool", lambda workers: nullcontext())
    monkeypatch.setattr(grid, "stopped_at_once", lambda pool: pool)
    monkeypatch.setattr(grid, "run_sweep", lambda sweep, pool, say: ran.append(sweep.name) or [f"{sweep.name} broke"])
    first, second = (written(tmp_path / f"{name}.yaml", name=name) for name in ("one", "two"))
    bad = written(tmp_path / "bad.yaml", seeds=[0, 0])
    code, said = depthprune("sweep", first, bad)
    assert (code, ran) == (1, []) and "seeds=[0, 0]" in said
    code, said = depthprune("sweep", first, second)
    assert (code, ran) == (1, ["one", "two"]) and "one broke\ntwo broke" in said


def test_a_cell_that_fails_stops_no_other_and_alone_runs_again(stand_in: tuple[list[str], set[str]]) -> None:
    ran, broken = stand_in
    broken.add("last_k")
    said: list[str] = []
    with ThreadPoolExecutor(2) as pool:
        failed = grid.run_sweep(sweep(), pool, say=said.append)
    assert len(ran) == 4
    assert sorted(failed) == [f"llama-tiny, {count} fewer by last_k, seed 0: it broke" for count in (1, 2)]
    assert said[0] == "sweep try: 4 cells, 4 to run" and len(said) == 5
    broken.clear()
    ran.clear()
    with ThreadPoolExecutor(2) as pool:
        assert grid.run_sweep(sweep(), pool, say=said.append) == []
    assert len(ran) == 2
    with ThreadPoolExecutor(2) as pool:
        assert grid.run_sweep(sweep(), pool, say=said.append) == []
    assert len(ran) == 2


@pytest.mark.parametrize("kind", [StudyError, OSError, ImportError])
def test_a_model_that_cannot_be_fetched_fails_its_own_cells_alone(
    stand_in: tuple[list[str], set[str]], monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
) -> None:
    ran, _ = stand_in

    def fetch(steps: list[run.Step], say: Any) -> None:
        if any(step.parameters.get("model") == "gpt2" for step in steps):
            raise kind("could not fetch\n model gpt2")

    monkeypatch.setattr(preparation, "fetch", fetch)
    with ThreadPoolExecutor(1) as pool:
        failed = grid.run_sweep(sweep(models=["gpt2", "llama-tiny"], drop_counts=[1]), pool, say=lambda line: None)
    assert len(ran) == 2
    assert failed == [f"gpt2, 1 fewer by {rule}, seed 0: could not fetch model gpt2" for rule in ("last_k", "evenly_spaced")]


def test_a_sweep_none_of_whose_cells_is_done_ends_in_the_reasons(tmp_path: Path) -> None:
    code, said = depthprune("sweep", written(tmp_path / "sweep.yaml", models=["gpt2"], drop_counts=[1]))  # the hub is not there
    assert code == 1
    assert "2 cells failed; the same command runs them again:" in said and "could not fetch model gpt2" in said
    assert "nothing to show" not in said and "Traceback" not in said


@pytest.mark.parametrize(("visible", "wanted"), [("", ["0", "1", "2"]), ("5,2,7", ["2", "5", "7"])])
def test_cells_that_run_at_once_have_a_gpu_of_their_own(
    visible: str, wanted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    together, seen = threading.Barrier(3), []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)

    def process(command: list[str], *, env: dict[str, str], **options: Any) -> Any:
        seen.append(env["CUDA_VISIBLE_DEVICES"])
        together.wait(timeout=30)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", process)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    with grid.local_pool() as pool:
        for _ in range(2):
            list(pool.map(lambda cell: grid.run_cell(cell, {}, {}, {}), ["a", "b", "c"]))
    assert sorted(seen[:3]) == sorted(seen[3:]) == wanted


def test_without_a_gpu_a_cell_sees_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with grid.local_pool(2), grid._a_gpu_of_its_own() as visible:
        assert visible == {}


def test_a_cell_whose_process_dies_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(RuntimeError, match=r"^its process ended with code 1 \(and said nothing\)$"):
        grid.run_cell("sweep-try-0", {}, {}, {})


def test_a_cell_that_stops_gives_its_reason_and_not_what_libraries_said_before(monkeypatch: pytest.MonkeyPatch) -> None:
    said = f"a warning\n{grid.STOPPED}layers are missing\nthe partial notebook: here\n"
    monkeypatch.setattr(subprocess, "run", lambda command, **options: subprocess.CompletedProcess(command, 1, "", said))
    with pytest.raises(RuntimeError, match=r"^layers are missing\n"):
        grid.run_cell("sweep-try-0", {}, {}, {})


def test_a_cell_whose_results_are_elsewhere_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grid, "run_cell", lambda *arguments: None)
    monkeypatch.setattr(preparation, "fetch", lambda steps, say: None)
    with ThreadPoolExecutor(1) as pool:
        failed = grid.run_sweep(sweep(), pool, say=lambda line: None)
    assert len(failed) == 4 and all("must share the folder runs/" in sentence for sentence in failed)


class Elsewhere(Executor):
    """A worker whose libraries have other versions, at once and in this process: its notebook leaves a line and a mark."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, runs: Path | None = None) -> None:
        self.monkeypatch, self.runs = monkeypatch, runs
        self.ran: list[str] = []

    def submit(self, work: Any, *arguments: Any) -> Future:
        future: Future = Future()
        with self.monkeypatch.context() as patch:
            patch.setattr(provenance, "versions", lambda: {"torch": "2.13.0+cu130"})
            patch.setattr(run, "_execute", self.execute)
            patch.setattr(subprocess, "run", self.process)
            if self.runs is not None:
                patch.setenv("DEPTHPRUNE_RUNS", str(self.runs))
            try:
                future.set_result(work(*arguments))
            except RuntimeError as error:
                future.set_exception(error)
        return future

    def process(self, command: list[str], **options: Any) -> Any:
        try:
            grid.main(*command[3:])
        except SystemExit as stop:
            return subprocess.CompletedProcess(command, 1, "", str(stop))
        return subprocess.CompletedProcess(command, 0, "", "")

    def execute(self, study: str, step: run.Step, terminal: Any) -> float:
        self.ran.append(study)
        records.write_atomically(run.executed(study, step.notebook), "executed")
        mark = {"key": step.key, "files": run._files(study, step.notebook)}
        records.write_atomically(run._mark(study, step.notebook), json.dumps(mark))
        return 1.0


def test_a_cell_that_workers_with_another_build_finished_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparation, "fetch", lambda steps, say: None)
    workers = Elsewhere(monkeypatch)
    said: list[str] = []
    assert grid.run_sweep(sweep(), workers, say=said.append) == []
    assert len(workers.ran) == 4
    assert grid.run_sweep(sweep(), workers, say=said.append) == []
    assert len(workers.ran) == 4 and said[-1] == "sweep try: 4 cells, 0 to run"
    (other,) = grid.cells(sweep(rules=["last_k"], drop_counts=[1]))
    run.executed(other.folder, grid.CELL).write_text("changed", encoding="utf-8")
    assert not other.done
    monkeypatch.setattr(provenance, "versions", lambda: {"torch": "2.14.0"})  # the host's own are other ones now
    assert not any(cell.done for cell in grid.cells(sweep()))


def test_workers_that_do_not_share_the_folder_are_told_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparation, "fetch", lambda steps, say: None)
    failed = grid.run_sweep(sweep(), Elsewhere(monkeypatch, tmp_path / "a pod's own"), say=lambda line: None)
    assert len(failed) == 4 and all("must share the folder runs/" in sentence for sentence in failed)


def test_a_worker_with_other_code_runs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparation, "fetch", lambda steps, say: None)
    workers = Elsewhere(monkeypatch)
    honest = grid.run_cell
    monkeypatch.setattr(
        grid,
        "run_cell",
        lambda folder, parameters, moved, asked: honest(folder, parameters, moved, {**asked, "content": "old"}),
    )
    failed = grid.run_sweep(sweep(), workers, say=lambda line: None)
    assert len(failed) == 4 and all("the worker has other code than the host" in sentence for sentence in failed)
    assert workers.ran == []


def test_what_waits_is_not_begun_after_a_stop() -> None:
    begun, gate = [], threading.Event()

    def work(number: int) -> None:
        begun.append(number)
        gate.wait(30)

    with pytest.raises(KeyboardInterrupt), grid.stopped_at_once(ThreadPoolExecutor(1)) as pool:
        futures = [pool.submit(work, number) for number in range(3)]
        while not begun:
            time.sleep(0.01)
        raise KeyboardInterrupt
    gate.set()
    futures[0].result()
    assert begun == [0] and all(future.cancelled() for future in futures[1:])


def test_a_cell_is_known_by_the_content_of_a_local_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    (cell,) = grid.cells(sweep(models=["mine"], rules=["last_k"], drop_counts=[1]))
    assert cell.parameters.model == str(tmp_path / "mine")  # a notebook runs in another folder
    before = cell.step.key
    (tmp_path / "mine" / "config.json").write_text("{ }")
    assert cell.step.key != before


def test_a_sweep_without_results_has_no_table() -> None:
    with pytest.raises(StudyError, match="no cell is done"):
        grid.gather(sweep())


def rows(*, rules: tuple[str, ...] = ("greedy", "last_k"), counts: tuple[int, ...] = (1, 2)) -> list[dict[str, Any]]:
    ends = {
        "before_point": 1.3,
        "before_low": 1.2,
        "before_high": 1.4,
        "after_point": 1.1,
        "after_low": 1.05,
        "after_high": 1.2,
    }
    same = {"n_documents": 5, "diverged": "", **ends}
    return [{"rule": rule, "drop_count": count, **same} for rule in rules for count in counts for _ in (0, 1)]


def test_the_figure_has_a_filled_and_a_hollow_marker_a_cell() -> None:
    (ax,) = figures.grid(rows(), title="a model").axes
    markers = [line for line in ax.lines if line.get_linestyle() == "None"]
    assert len(markers) == 2 * len(rows())
    assert {label.get_text() for label in ax.get_xticklabels()} == {"1", "2"}
    assert "layers" in ax.get_xlabel()
    figures.png(figures.grid(rows(rules=("greedy",), counts=(1,)), title="one"))


@pytest.mark.filterwarnings("error")
def test_a_ratio_that_overflows_is_told_in_words() -> None:
    ends = dict.fromkeys(("before_point", "before_low", "before_high"), math.inf)
    (ax,) = figures.grid([row | ends for row in rows(rules=("greedy",))], title="a model").axes
    assert [text.get_text() for text in ax.texts] == ["greedy: infinite, off the scale"] * 4
    after = dict.fromkeys(("after_point", "after_low", "after_high"), math.inf)
    figures.png(figures.grid([row | ends | after for row in rows(rules=("greedy",))], title="a model"))


@pytest.mark.parametrize("n", [1, 4])
def test_a_cell_that_diverged_has_its_hollow_marker_and_a_word_and_counts_for_no_mean(n: int) -> None:
    stopped = [
        {**row, "diverged": "the kl loss is nan", "after_point": 9.0} if i < n else row
        for i, row in enumerate(rows(rules=("greedy",)))
    ]
    (ax,) = figures.grid(stopped, title="a model").axes
    markers = [line for line in ax.lines if line.get_linestyle() == "None"]
    assert len(markers) == 2 * len(stopped) - n
    assert [text.get_text() for text in ax.texts] == ["diverged"] * n
    means = [line for line in ax.lines if line.get_linestyle() == "-" and len(line.get_xdata()) and line.get_linewidth() == 1]
    assert [value for line in means for value in line.get_ydata()] == pytest.approx([1.1] * (2 if n < 2 else 0))


def test_a_cell_that_diverges_is_in_the_table_and_marked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(live, "display", lambda *shown, **options: None)
    monkeypatch.setattr(bench, "display", lambda *shown, **options: None)
    honest = distillation.recover

    def wild(*arguments: Any, **options: Any) -> Any:
        return honest(*arguments, **{**options, "lr": 1e38 if options["seed"] else options["lr"]})

    monkeypatch.setattr(distillation, "recover", wild)
    wanted = sweep(rules=["last_k"], drop_counts=[1], seeds=[0, 1])
    for cell in grid.cells(wanted):
        handmade.executed(grid.CELL, **cell.parameters.model_dump())
    monkeypatch.setattr(grid.Cell, "done", property(lambda cell: True))
    monkeypatch.setattr(run, "run_single", lambda study, step: None)
    grid.gather(wanted)
    shutil.rmtree(places.runs(grid.cells(wanted)[0].folder))  # the table is all that its notebook reads
    capsys.readouterr()
    rows = handmade.executed(grid.TABLE, study="sweep-try")["rows"]
    assert {row["seed"]: row["diverged"][:11] for row in rows} == {0: "", 1: "the kl loss"}
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "seed 1" in line]
    assert "diverged: the kl loss is nan at step 1" in line and "->" not in line


def test_a_cell_whose_perplexity_overflows_is_in_the_table_as_such(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(live, "display", lambda *shown, **options: None)
    monkeypatch.setattr(bench, "display", lambda *shown, **options: None)
    honest = evaluation.score

    def wild(model: Any, *arguments: Any, **options: Any) -> Any:
        score = honest(model, *arguments, **options)
        cut = model.config.num_hidden_layers < 6
        return replace(score, nll_nats=tuple(800.0 * n for n in score.n_tokens)) if cut else score

    monkeypatch.setattr(evaluation, "score", wild)
    wanted = sweep(rules=["last_k"], drop_counts=[1], seeds=[0])
    for cell in grid.cells(wanted):
        handmade.executed(grid.CELL, **cell.parameters.model_dump())
    assert "ratio to the whole model inf [inf, inf] before recovery, inf [inf, inf] after" in capsys.readouterr().out
    monkeypatch.setattr(grid.Cell, "done", property(lambda cell: True))
    monkeypatch.setattr(run, "run_single", lambda study, step: None)
    grid.gather(wanted)
    (row,) = handmade.executed(grid.TABLE, study="sweep-try")["rows"]
    assert row["before_point"] == row["after_high"] == math.inf
    assert "inf -> inf [inf, inf]" in capsys.readouterr().out


# ---------------------------------------------------------------- real cells


def depthprune(*words: object) -> tuple[int, str]:
    result = CliRunner().invoke(cli.app, [*map(str, words)])
    return result.exit_code, result.output + result.stderr


@pytest.mark.slow
def test_a_sweep_ends_in_a_table_of_its_cells_records(tmp_path: Path) -> None:
    import datasets

    path = written(tmp_path / "sweep.yaml", drop_counts=[1, 6])  # six of six layers cannot go
    code, said = depthprune("sweep", path, "--workers", 2)
    assert code == 1
    assert "2 cells failed; the same command runs them again:" in said and "Traceback" not in said
    table = datasets.Dataset.from_parquet(str(places.runs("sweep-try") / "table.parquet"))
    assert sorted(row["rule"] for row in table) == ["evenly_spaced", "last_k"]
    for cell in grid.cells(settings.read_sweep(path)):
        if cell.done:
            folder = places.runs(cell.folder) / "records" / "sweeps" / "cell"
            kept, scores = records.read(folder / "cell.json").values, records.read(folder / "validation_scores.json")
            (row,) = [row for row in table.to_list() if row["rule"] == kept["rule"]]
            assert kept.items() <= row.items()
            after = intervals.ppl_ratio(scores["recovered"], scores["teacher"])
            assert (row["after_point"], row["after_low"], row["after_high"]) == (after.point, after.low, after.high)
            assert row["before_point"] == intervals.ppl_ratio(scores["unrecovered"], scores["teacher"]).point
    notebook = json.loads(run.executed("sweep-try", grid.TABLE).read_text(encoding="utf-8"))
    assert "2 cells" in json.dumps(notebook) and "image/png" in json.dumps(notebook)
    code, said = depthprune("sweep", written(path), "--workers", 2)
    assert code == 0
    assert "4 cells, 2 to run" in said


@pytest.mark.slow
def test_a_killed_worker_of_a_cluster_loses_nothing_that_is_done(tmp_path: Path) -> None:
    import datasets

    pytest.importorskip("parsl")
    site = places.PARAMS / "sites" / "two_workers.py"
    wanted = sweep()
    said: list[str] = []
    killed: list[str] = []
    here = os.getcwd()
    os.chdir(tmp_path)  # Parsl writes its logs where it is

    def kill_a_worker() -> None:
        """The first Parsl worker that has a cell's process under it, and that process."""
        until = time.monotonic() + 120
        while time.monotonic() < until:
            for stat in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    words = stat.read_text().split("\0")
                    parent = int((stat.parent / "stat").read_text().rsplit(")", 1)[1].split()[1])
                except (OSError, ValueError):
                    continue
                if "depthprune_study.grid" not in words:
                    continue
                environment = (stat.parent / "environ").read_text()
                if str(tmp_path / "runs") in environment:
                    killed.append(environment)
                    os.kill(parent, signal.SIGKILL)
                    os.kill(int(stat.parent.name), signal.SIGKILL)
                    return
            time.sleep(0.2)

    killer = threading.Thread(target=kill_a_worker)
    try:
        with grid.parsl_pool(site) as pool:
            killer.start()
            failed = grid.run_sweep(wanted, pool, say=said.append)
            killer.join()
        done = [cell for cell in grid.cells(wanted) if cell.done]
        assert len(failed) == 1 and len(done) == 3
        (environment,) = killed
        assert re.search(r"CUDA_VISIBLE_DEVICES=[01]\0", environment)  # one GPU a worker
        before = {cell.folder: (places.runs(cell.folder) / "done" / "sweeps" / "cell.json").stat().st_mtime_ns for cell in done}
        code, told = depthprune("sweep", written(tmp_path / "sweep.yaml"), "--site", site)
    finally:
        os.chdir(here)
    assert code == 0 and "sweep try: 4 cells, 1 to run" in told
    assert len(datasets.Dataset.from_parquet(str(places.runs("sweep-try") / "table.parquet"))) == 4
    assert all((places.runs(f) / "done" / "sweeps" / "cell.json").stat().st_mtime_ns == at for f, at in before.items())
    assert all(cell.done for cell in grid.cells(wanted))
