"""A finished run -> reports/<study>/: executed notebooks, records, figures, pages that open offline."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path

from depthprune_core import figures
from depthprune_study import index, places, run, story
from depthprune_study.evidence import read_evidence
from depthprune_study.executed_notebooks import of_other_notebooks
from depthprune_study.page import page as in_page
from depthprune_study.settings import StudyError

REPORT = "06_report"
REHEARSAL, ESTIMATE = "rehearsal", "estimate"  # the study whose report has one more page


def publish(study: str, *, unfinished: bool = False, say: Callable[[str], None] = lambda line: None) -> Path:
    """Build the report next to the old one and swap them; returns the path of its page.

    unfinished: of a run that is not done: its records and arms so far and the notebooks that are done; returns the folder.
    Raises StudyError where another process runs or publishes the study.
    """
    with run.alone(places.runs(study), say):
        return _publish(study, unfinished)


def _publish(study: str, unfinished: bool) -> Path:
    target, runs = places.reports(study), places.runs(study)
    building = target.with_name(f".{target.name}.new")
    shutil.rmtree(building, ignore_errors=True)
    (building / "notebooks").mkdir(parents=True)
    keys = {step.notebook: step.key for step in run.plan(study) if step.done}  # else the code was changed under the run
    shown = [notebook for notebook in keys if notebook != REPORT] if unfinished else list(run.READS)
    evidence = read_evidence(study)
    shutil.copytree(evidence.folder, building / "records", ignore=shutil.ignore_patterns(".*"))
    if (runs / "arms").exists():  # without their weights: enough to go on from
        shutil.copytree(runs / "arms", building / "arms", ignore=shutil.ignore_patterns("*.safetensors", "*.ckpt", ".*"))
    for figure in (runs / "figures").glob("*.png"):
        if figure.name.startswith(tuple(f"{notebook}-" for notebook in shown)):
            (building / "figures").mkdir(exist_ok=True)
            shutil.copy(figure, building / "figures")
    if not unfinished:
        (building / "figures").mkdir(exist_ok=True)
        (building / "figures" / "answer.png").write_bytes(figures.png(story.answer_figure(evidence)))
    for notebook in shown:
        shutil.copy(run.executed(study, notebook), building / "notebooks" / f"{notebook}.ipynb")
    warnings = _mismatches(building)
    for notebook in shown:
        page_of = page(
            building / "notebooks" / f"{notebook}.ipynb",
            study,
            with_code=notebook != REPORT,
            among=shown,
            warnings=warnings if notebook == REPORT else (),
        )
        (building / file_name(notebook)).write_text(page_of, encoding="utf-8")
    (building / "costs.json").write_text(json.dumps(run.read_costs(runs), indent=1) + "\n", encoding="utf-8")
    (building / "made-from.json").write_text(json.dumps(keys, indent=1) + "\n", encoding="utf-8")
    if study == REHEARSAL and not unfinished:
        from depthprune_study import estimate

        body = estimate.html(estimate.machine(evidence), run.read_costs(runs))
        (building / f"{ESTIMATE}.html").write_text(
            in_page(
                f"depthprune {study}: what the full study would take", navigation=_navigation(study, ESTIMATE, shown), main=body
            ),
            encoding="utf-8",
        )
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        os.replace(target, old)
    try:
        os.replace(building, target)
    except OSError:
        if old.exists():
            os.replace(old, target)
        raise
    shutil.rmtree(old, ignore_errors=True)
    index.write(target.parent)
    return target if unfinished else target / "report.html"


def _mismatches(folder: Path) -> list[str]:
    """One sentence where records are not of the notebooks beside them, however many; else none."""
    found = list(of_other_notebooks(folder, folder / "records"))
    return (
        [f"Not all records are of the notebooks beside them: {len(found)} are not, such as this one: {found[0]}."]
        if found
        else []
    )


def records_of(folder: Path) -> Path:
    """Where a published report keeps its records. Raises StudyError for a folder that is no report."""
    if not (folder / "records").is_dir():
        raise StudyError(f"{folder} is no report: it has no records/")
    return folder / "records"


def is_current(study: str) -> dict[str, bool]:
    """Notebook -> whether the published report was made by the code and parameters as they are now."""
    made_from = run.read_named(places.reports(study) / "made-from.json")
    return {step.notebook: made_from.get(step.notebook) == step.key for step in run.plan(study)}


def page(
    notebook: Path, study: str, *, with_code: bool, among: Sequence[str] = tuple(run.READS), warnings: Sequence[str] = ()
) -> str:
    """One executed notebook as a page of its own: no script, nothing fetched, readable on a phone and on paper. Warnings stand first."""
    import nbformat
    from nbconvert import HTMLExporter

    exporter = HTMLExporter(
        template_name="basic", exclude_input=not with_code, exclude_input_prompt=True, exclude_output_prompt=True
    )
    content = nbformat.read(notebook, as_version=4)
    content.cells = [cell for cell in content.cells if not _is_plumbing(cell, with_code)]
    if content.cells and content.cells[0].cell_type == "markdown":
        content.cells[0].source = "\n".join(
            line for line in content.cells[0].source.split("\n") if not line.startswith("[![Open in Colab]")
        )
    body, _ = exporter.from_notebook_node(content)
    body = re.sub(r"<script.*?</script>", "", body, flags=re.DOTALL)
    body = re.sub(r'<a class="anchor-link".*?</a>', "", body)
    title = content.cells[0].source.split("\n")[0].lstrip("# ") if content.cells else notebook.stem
    told = "".join(f"<p class='warning'>{escape(warning)}</p>" for warning in warnings)
    return in_page(f"depthprune {study}: {title}", navigation=_navigation(study, notebook.stem, among), main=told + body)


def _is_plumbing(cell: dict, with_code: bool) -> bool:
    tags = cell.metadata.get("tags", [])
    return "setup" in tags or (not with_code and ("facts" in tags or "parameters" in tags or "injected-parameters" in tags))


def file_name(notebook: str) -> str:
    """The page of a notebook, in a report's folder."""
    return "report.html" if notebook == REPORT else f"{notebook}.html"


def _navigation(study: str, current: str, among: Sequence[str]) -> str:
    """Links to the pages that there are, the report first."""
    links = []
    more = [ESTIMATE] if study == REHEARSAL and REPORT in among else []
    for notebook in [*sorted(among, key=lambda name: name != REPORT), *more]:
        label = "report" if notebook == REPORT else notebook.replace("_", " ")
        here = " aria-current='page'" if notebook == current else ""
        links.append(f"<a href='{file_name(notebook)}'{here}>{escape(label)}</a>")
    return f"<b><a href='../index.html'>depthprune</a> · {escape(study)}</b> " + " ".join(links)
