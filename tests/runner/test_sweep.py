"""A sweep: each point of the grid once, in its own folder; a failure does not stop others."""

from __future__ import annotations

import csv
import os
import runpy
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import toy

from depthprune_study import paths
from depthprune_study.errors import StudyError
from depthprune_study.runner import sweep

GRID = """\
name: grid
notebook: cell
vary: {tokens: [8, 16], word: [a, b]}
same: {seed: 3}
"""
CELL = toy.PARAMETERS + 'word: str = "a"  # a word\nseed: int = 0  # s\n'
WORK = """\
from pathlib import Path
from depthprune_core import storage
from depthprune_core.records import Facts
from depthprune_study import paths, provenance
hashed = provenance.notebook_hash(Path("cell.ipynb"))
given = {"study": study, "tokens": tokens, "word": word, "seed": seed}
stamp = storage.Stamp(study=study, step="cell/cell", code_hash="", notebook_hash=hashed,
    parameters=given, inputs={}, versions={}, device="cpu", dtype="float32", seed=seed, commit="")
if word == "b" and tokens == 16 and not (paths.home() / "mended").exists():
    raise ValueError("the word is b")
storage.write(paths.runs(study) / "records/cell/cell.json", Facts({"twice": 2 * tokens}), stamp)
"""


@pytest.fixture
def grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A separate checkout, because cells run in separate processes."""
    folder = toy.checkout(tmp_path / "toy")
    toy.write(folder, "cell", WORK, parameters=CELL)
    (folder / "grid.yaml").write_text(GRID)
    monkeypatch.setattr(paths, "CODE", folder)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("DEPTHPRUNE_HOME", str(folder))
    monkeypatch.setenv("PYTHONPATH", str(folder))
    return folder / "grid.yaml"


def test_every_point_runs_once_and_keeps_its_folder_when_the_grid_grows(grid: Path) -> None:
    cells = sweep.read(grid).cells
    assert [cell.words for cell in cells][:2] == ["tokens=8, word=a", "tokens=8, word=b"]
    assert len({cell.study for cell in cells}) == 4 and cells[0].values["seed"] == 3
    grid.write_text(GRID.replace("[8, 16]", "[8, 16, 32]"))
    assert {cell.study for cell in cells} < {cell.study for cell in sweep.read(grid).cells}


@pytest.mark.parametrize(
    ("before", "after", "sentence"),
    [
        ("tokens: [8, 16]", "tokens: 8", "vary.tokens must be a list"),
        ("seed: 3", "tokens: 3", "tokens must be in vary or in same, not in both"),
        ("name: grid\n", "", "name is missing"),
        ("[8, 16]", "[8, x]", "tokens must be a whole number, not 'x'"),
        ("seed: 3", "sed: 3", "sed is not a parameter"),
        ("notebook: cell", "notebook: no", "notebook is missing"),
        ("[8, 16]", "[]", "vary.tokens must be a list of values"),
        ("tokens: [8, 16]", "5: [8]", "5 is no parameter's name"),
        ("notebook: cell", "notebook: none", "none.ipynb cannot be read"),
    ],
)
def test_a_bad_grid_is_refused_before_any_cell_runs(
    grid: Path, before: str, after: str, sentence: str
) -> None:
    grid.write_text(GRID.replace(before, after))
    with pytest.raises(StudyError, match=sentence):
        sweep.read(grid)


def test_a_failed_cell_does_not_stop_others_and_only_it_runs_again(grid: Path) -> None:
    said: list[str] = []
    found = sweep.read(grid)
    failed = sweep.run(found, ThreadPoolExecutor(1), say=said.append)
    assert len(failed) == 1 and "tokens=16, word=b" in failed[0] and "the word is b" in failed[0]
    (grid.parent / "mended").touch()
    said.clear()
    assert sweep.run(found, ThreadPoolExecutor(1), say=said.append) == []
    assert said[0] == "sweep grid: 4 cells, 1 to run"
    with open(sweep.gather(found), encoding="utf-8") as table:
        rows = list(csv.DictReader(table))
    assert [(row["tokens"], row["word"], row["twice"]) for row in rows] == [
        *(("8", "a", "16"), ("8", "b", "16")),
        *(("16", "a", "32"), ("16", "b", "32")),
    ]


def test_a_cell_without_results_here_has_failed(
    grid: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "run_cell", lambda *given: None)
    failed = sweep.run(sweep.read(grid), ThreadPoolExecutor(2), say=lambda line: None)
    assert len(failed) == 4 and "workers must share runs/, code, versions" in failed[0]


def test_parallel_cells_have_one_gpu_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    seen: set[str] = set()
    with sweep.pool(2) as pool:
        for _ in pool.map(time.sleep, [0.1] * 8):  # both workers have started
            pass
        for _ in range(100):
            asked = [pool.submit(os.getenv, "CUDA_VISIBLE_DEVICES") for _ in range(8)]
            seen |= {future.result() for future in asked}
            if len(seen) > 1:
                break
    assert seen == {"3", "5"}


@pytest.mark.parametrize("site", sorted((toy.ROOT / "params/sites").glob("*.py")), ids=str)
def test_a_committed_site_returns_a_config(site: Path) -> None:
    parsl = pytest.importorskip("parsl")
    assert isinstance(runpy.run_path(str(site))["config"](), parsl.Config)


def test_a_site_without_a_config_is_refused_in_a_sentence(tmp_path: Path) -> None:
    site = tmp_path / "site.py"
    site.write_text("import a_cluster_that_is_not_there")
    with pytest.raises(StudyError, match=r"must return a parsl.Config \(ModuleNotFoundError"):
        sweep.pool(site=site)


def test_every_committed_sweep_can_be_read() -> None:
    for path in (toy.ROOT / "params/sweeps").glob("*.yaml"):
        assert len(sweep.read(path).cells) >= 2


@pytest.mark.slow
def test_cells_run_on_the_workers_of_a_site(grid: Path) -> None:
    pytest.importorskip("parsl")
    (grid.parent / "mended").touch()
    found = sweep.read(grid)
    pool = sweep.pool(site=toy.ROOT / "params/sites/two_workers.py")
    assert sweep.run(found, pool, say=lambda line: None) == []
    assert all(cell.done for cell in found.cells)
    assert paths.runs(".parsl").is_dir() and not Path("runinfo").exists()
