"""What an earlier version of a notebook has left behind does not reach the report."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from depthprune_core import records
from depthprune_core.records import Facts, Stamp
from depthprune_study import places, provenance, run


def test_records_of_another_notebook_text_or_other_parameters_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEPTHPRUNE_RUNS", str(tmp_path))
    now = provenance.notebook_hash(places.NOTEBOOKS / "01_sensitivity.ipynb")
    folder = places.runs("ci") / "records" / "01_sensitivity"
    stamps = {"kept": (now, {"seed": 0}), "other_code": ("0", {"seed": 0}), "other_parameters": (now, {"seed": 1})}
    for name, (notebook_hash, parameters) in stamps.items():
        stamp = Stamp("ci", name, "", notebook_hash, parameters, {}, {}, "cpu", "float32", 0, "no-git")
        records.write(folder / f"{name}.json", Facts({}), stamp)
    (folder / "no_record.json").write_text("{}")
    executed = run.executed("ci", "01_sensitivity")
    executed.parent.mkdir()
    shutil.copy(places.NOTEBOOKS / "01_sensitivity.ipynb", executed)
    run._drop_stale("ci", run.Step("01_sensitivity", {"seed": 0}, "key", False, 0))
    assert sorted(path.stem for path in folder.iterdir()) == ["kept", "no_record"]
