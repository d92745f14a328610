"""`depthprune prune`: one run of the notebook your_model, for one folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from filelock import FileLock
from transformers import AutoModelForCausalLM

from depthprune_study import paths
from depthprune_study.errors import StudyError
from depthprune_study.runner import own

QUICK = {"drop": "2", "recover_tokens": 0, "seq_len": 128, "score_tokens": 128}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DEPTHPRUNE_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def prune(out: str, **options: object) -> tuple[str, list[str]]:
    lines: list[str] = []
    said = own.prune("gpt2-mini", out=Path(out), say=lines.append, **{**QUICK, **options})
    return said, lines


def test_the_folder_holds_the_model_and_the_executed_notebook(home: Path) -> None:
    (home / "text.txt").write_text(
        "\n\n".join(f"A passage about the number {n}. " * 80 for n in range(60))
    )
    said, _ = prune("smaller", text="text.txt")  # a path from where the user stands
    assert said.startswith("smaller: dropped layers ") and "perplexity ratio" in said
    assert AutoModelForCausalLM.from_pretrained(home / "smaller").config.n_layer == 10
    notebook = json.loads((home / "smaller" / "your_model.ipynb").read_text())
    printed = [output.get("text", "") for c in notebook["cells"] for output in c.get("outputs", [])]
    assert said in "".join(map("".join, printed))
    assert not list(paths.runs("").iterdir())


def test_a_failed_run_says_why_and_keeps_its_work(home: Path) -> None:
    (home / "smaller").mkdir()
    (home / "smaller" / "mine.txt").write_text("mine")
    with pytest.raises(StudyError, match="smaller exists already and is not overwritten"):
        prune("smaller")
    assert [path.name for path in (home / "smaller").iterdir()] == ["mine.txt"]
    (work,) = paths.runs("").iterdir()
    with FileLock(work / ".lock"), pytest.raises(StudyError, match="another process is writing"):
        prune("smaller")


def test_bad_options_start_no_notebook(home: Path) -> None:
    with pytest.raises(StudyError, match="trained must be one of recipe, all, lora, not 'some'"):
        prune("smaller", trained="some")
    assert not paths.runs("").exists()
