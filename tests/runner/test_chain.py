"""Finished work is not repeated, changed work is; failures are explained."""

from __future__ import annotations

import io
import os
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import toy

from depthprune_core import storage
from depthprune_study import paths, provenance
from depthprune_study.errors import StudyError
from depthprune_study.runner import chain, execute, marks, prepare

ONE = {"01_sensitivity": {"study": "toy", "tokens": 8}}  # a study of one notebook


def run(given: dict[str, dict] | None = None) -> list[str]:
    said: list[str] = []
    chain.run("toy", given=given, say=said.append, terminal=io.StringIO())
    return said


def waiting() -> list[str]:
    return [step.notebook for step in chain.plan("toy") if not step.done]


def facts(name: str) -> dict:
    return storage.read(paths.runs("toy") / "records" / name / "facts.json").values


def test_a_finished_study_has_its_records_and_costs_and_runs_nothing_again(done: Path) -> None:
    assert waiting() == []
    assert run() == [f"{name}: done already" for name in toy.WORK]
    assert [facts(name)["n"] for name in toy.WORK] == [16, 32, 33]  # parameters and records arrive
    for cost in marks.costs(paths.runs("toy")).values():
        assert cost["seconds"] > 0 and cost["peak_bytes"] > 2**24 and cost["disk_bytes"] > 0


def test_an_executed_notebook_contains_no_times_and_no_machine(done: Path) -> None:
    text = marks.executed("toy", "02_prune").read_text()
    assert "papermill" not in text and str(done) not in text and "kept 32" in text
    assert "injected-parameters" in text


def test_the_time_of_a_resumed_run_is_shown_as_more_than() -> None:
    assert marks.minutes({"seconds": 240}) == "about 4 min"
    assert marks.minutes({"seconds": 7_200, "resumed": True}) == "more than 2.0 h"


def test_a_resumed_run_keeps_the_time_of_the_last_complete_one(done: Path) -> None:
    step = chain.plan("toy")[0]
    marks.remember_cost(step, 900, 2**30, goes_on=False)
    changed = replace(step, key="another")
    marks.remember_cost(changed, 3, 2**20, goes_on=True)
    cost = marks.costs(paths.runs("toy"))[step.notebook]
    assert cost["seconds"] == 900 and "resumed" not in cost
    marks.remember_cost(step, 3, 2**20, goes_on=False)
    assert marks.costs(paths.runs("toy"))[step.notebook]["seconds"] == 3


def test_a_changed_cell_or_parameter_reruns_the_notebook_and_its_readers(done: Path) -> None:
    (done / "params/toy/02_prune.yaml").write_text("study: toy\ntokens: 32\n")
    assert waiting() == ["02_prune", "10_report"]
    save = toy.SAVE.replace("{name}", "01_sensitivity")
    toy.write(done, "01_sensitivity", save, "n = 1", toy.KEEP)
    assert waiting() == list(toy.WORK)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("recipe.yaml", "lr: 1.0e-04\nbatch_tokens: 8\nseq_len: 8\n"),
        ("claims.yaml", "C1: {other: true}\n"),
    ],
)
def test_a_changed_recipe_or_claim_reruns_later_notebooks(
    done: Path, name: str, content: str
) -> None:
    (done / "params" / name).write_text(content)
    assert waiting() == ["10_report"]


def test_changed_code_reruns_notebooks_that_import_it(
    done: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provenance, "code_hash", lambda *modules: "other")
    assert waiting() == list(toy.WORK)


def test_another_library_version_reruns_everything_but_another_build_does_not(
    done: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = provenance.version
    monkeypatch.setattr(provenance, "version", lambda name: real(name).split("+")[0] + "+cu999")
    assert waiting() == []
    monkeypatch.setattr(provenance, "version", lambda name: "0")
    assert waiting() == list(toy.WORK)


def test_changed_files_are_made_again(done: Path) -> None:
    record = paths.runs("toy") / "records/01_sensitivity/facts.json"
    notebook = marks.executed("toy", "02_prune")
    record.unlink()
    notebook.write_bytes(notebook.read_bytes()[:-9])
    (paths.runs("toy") / "costs.json").write_text("")
    run()
    assert waiting() == [] and facts("10_report")["n"] == 33


def test_a_damaged_mark_counts_as_not_done(done: Path) -> None:
    (paths.runs("toy") / "done" / "02_prune.json").write_text('{"key": "x", "files": {}')
    assert waiting() == ["02_prune"]


def test_records_of_an_earlier_version_of_the_notebook_are_dropped(done: Path) -> None:
    old = paths.runs("toy") / "records" / "02_prune" / "old.json"
    stamp = storage.read_stamp(old.with_name("facts.json"))
    values = {**asdict(stamp), "notebook_hash": "of another"}
    storage.write(old, storage.read(old.with_name("facts.json")), storage.Stamp(**values))
    run()
    assert not old.exists()


def test_a_failing_cell_stops_the_study_with_its_message_and_keeps_results(
    fresh: Path,
) -> None:
    toy.write(fresh, "02_prune", 'raise ValueError("layer 9 is not there")')
    with pytest.raises(StudyError, match=r"02_prune of study toy stopped: layer 9 is not there\n"):
        run()
    assert waiting() == ["02_prune", "10_report"]
    assert execute.partial(marks.executed("toy", "02_prune")).exists()
    assert chain.kept("toy").startswith("01_sensitivity done; partial results")


@pytest.mark.parametrize(
    ("cell", "sentence"),
    [
        ("import os\nos._exit(1)", "Kernel died .often because memory ran out"),
        ("raise MemoryError('1 TB')", "memory ran out"),
        ("raise OSError(28, 'No space left on device')", "the disk is full"),
    ],
)
def test_every_failure_of_a_notebook_is_explained(fresh: Path, cell: str, sentence: str) -> None:
    toy.write(fresh, "01_sensitivity", cell)
    with pytest.raises(StudyError, match=sentence):
        run()
    assert waiting() == list(toy.WORK)


def test_a_kernel_has_its_variables_and_its_progress_leaves_no_trace_in_the_notebook(
    fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A_VARIABLE", "a")
    bar = (
        "import os, sys\nprint('\\r 1 of 2', file=sys.stderr)\n"
        "print(os.environ['A_VARIABLE'], os.environ['DEPTHPRUNE_HOME'], os.getcwd())"
    )
    toy.write(fresh, "01_sensitivity", bar)
    run(ONE)
    assert "1 of 2" in (paths.runs("toy") / "logs/01_sensitivity.log").read_text()
    cells = provenance.read_cells(marks.executed("toy", "01_sensitivity"))
    (output,) = [output for cell in cells for output in cell["outputs"]]
    assert "".join(output["text"]).split() == ["a", str(fresh), str(fresh / "notebooks")]


def test_a_kernel_draws_in_the_notebook_and_may_start_processes(fresh: Path) -> None:
    cell = (
        "import matplotlib.pyplot as plt, multiprocessing as m\nplt.plot([1])\n"
        "with m.get_context('fork').Pool(1) as pool:\n    print(pool.apply(abs, (-3,)))"
    )
    toy.write(fresh, "01_sensitivity", cell)
    run(ONE)
    cells = provenance.read_cells(marks.executed("toy", "01_sensitivity"))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert any("3" in "".join(output.get("text", ())) for output in outputs)


def test_a_run_leaves_the_environment_as_it_was(
    fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DEPTHPRUNE_BARS", raising=False)
    before = os.environ["DEPTHPRUNE_HOME"]
    run(ONE)
    assert os.environ["DEPTHPRUNE_HOME"] == before and "DEPTHPRUNE_BARS" not in os.environ


def test_a_second_run_at_once_is_refused_in_a_sentence(fresh: Path) -> None:
    with (
        chain.alone("toy"),
        pytest.raises(StudyError, match="another process is running"),
    ):
        run()


def test_a_folder_without_locks_is_used_with_a_warning(
    done: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: object) -> None:
        raise NotImplementedError("no flock")

    monkeypatch.setattr("filelock.FileLock.acquire", refuse)
    assert "cannot be locked" in run()[0]


def test_bad_parameters_stop_the_study_before_any_work(fresh: Path) -> None:
    (fresh / "params/toy/10_report.yaml").write_text("study: toy\ntokens: -1\n")
    with pytest.raises(StudyError, match=r"tokens must be 0 to .* \(params/toy/10_report.yaml\)"):
        run()
    assert not paths.runs("toy").exists()


def test_a_library_outside_its_range_stops_the_study_before_any_work(
    fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.metadata.requires", lambda name: ["numpy>=99", "x>=1"])
    with pytest.raises(
        StudyError, match=r"numpy>=99 is needed, not numpy .*: pip install 'numpy>=99'"
    ):
        run()


def test_a_restored_report_counts_as_done_and_an_unfinished_one_resumes(done: Path) -> None:
    runs, report = paths.runs("toy"), done / "reports" / "toy"
    pieces = [runs / kind / "1234.json" for kind in ("measured", "students")]
    for piece in pieces:
        storage.write_atomically(piece, "{}")
    shutil.copytree(runs, report)
    shutil.rmtree(runs)
    assert waiting() == list(toy.WORK)
    (report / "done" / "10_report.json").unlink()
    assert chain.restore("toy", report) > 6
    assert waiting() == ["10_report"] and all(piece.is_file() for piece in pieces)
    (runs / "costs.json").write_text("kept")
    assert chain.restore("toy", report) == 0 and (runs / "costs.json").read_text() == "kept"
    with pytest.raises(StudyError, match="contains no records of a study"):
        chain.restore("toy", done / "nowhere")


def test_a_restored_file_that_is_damaged_is_made_again(done: Path) -> None:
    runs, report = paths.runs("toy"), done / "reports" / "toy"
    shutil.copytree(runs, report)
    shutil.rmtree(runs)
    (report / "records" / "02_prune" / "facts.json").write_text("{}")
    chain.restore("toy", report)
    assert waiting() == ["02_prune", "10_report"]


def test_a_local_text_is_identified_by_content_in_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "mine.jsonl"
    file.write_text('{"body": "One."}')
    given = prepare.absolute({"text": "mine.jsonl:body", "elsewhere": "ORG/NAME:body"})
    assert given == {"text": f"{file}:body", "elsewhere": "ORG/NAME:body"}
    before = prepare.contents(given)
    file.write_text('{"body": "Another."}')
    assert str(file) in before and prepare.contents(given)[str(file)] != before[str(file)]


def test_impossible_parameters_are_refused_before_any_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cut = {"03_recovery": {"model": "gpt2-mini", "drop_count": 12}}
    with pytest.raises(StudyError, match="03_recovery: drop_count must be at most 11, not 12"):
        prepare.fetch(cut, print)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(StudyError, match=r"tasks=\['piqa'\] need lm-eval: pip install"):
        prepare.fetch({"03_recovery": {"tasks": ["piqa"]}}, print)


def test_without_a_terminal_progress_is_an_occasional_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(execute, "EVERY_SECONDS", -1)
    log, terminal = io.StringIO(), io.StringIO()
    execute.Screen(log, terminal).write("\r 1%\r 2%")
    assert (log.getvalue(), terminal.getvalue()) == ("\r 1%\r 2%", "  2%\n")
