"""From a claim, a figure or a record of a published report back to records, parameters, code, versions, device, seed and inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from depthprune_core import records
from depthprune_study import claims, places, provenance, report, run, story
from depthprune_study.evidence import Evidence
from depthprune_study.settings import StudyError

SECTIONS: dict[str, Callable[[Evidence], Any]] = {
    "answer": lambda e: (e.answer_lines(), e.answer_ratios()),
    "layers": story.layer_figures,
    "recovery": story.recovery_figures,
    "controls": story.control_figures,
    "choice": story.choice_figures,
    "speed": story.speed_figures,
    "seeds": story.seed_figures,
    "continuations": story.continuations_html,
    "failures": lambda e: story.failures_html(e, claims.judge(e)),
}


@dataclass(frozen=True)
class Traced(Evidence):
    """Evidence that notes which records are read."""

    read: dict[tuple[str, str], None] = field(default_factory=dict)  # in the order of the first reading

    def record(self, notebook: str, name: str) -> Any:
        self.read[notebook, name] = None
        return super().record(notebook, name)

    def stamp(self, notebook: str, name: str) -> records.Stamp:
        self.read[notebook, name] = None
        return super().stamp(notebook, name)


def explain(folder: Path, thing: str) -> list[str]:
    """What a thing on a report's page was made from, as lines of text.

    thing: a claim (`C4`), a section of the page (`recovery`), a figure's file (`03_recovery-curves`) or a record
    (`03_recovery/curves`). Raises StudyError where the folder is no report, or has no such thing.
    """
    evidence = Traced(folder.name, report.records_of(folder))
    lines, sources = _sources(evidence, folder, thing)
    for notebook, name in sources:
        lines += _of_record(evidence, notebook, name)
    return lines


def _sources(evidence: Traced, folder: Path, thing: str) -> tuple[list[str], list[tuple[str, str]]]:
    """What is to be said first, and the records."""
    if thing in claims.names():
        verdict = claims.judge_one(thing, evidence)
        said = [f"{verdict.id}: {verdict.claim} (source: {verdict.source})", f"  rule: {verdict.rule}"]
        said += [f"  the source's models: {verdict.verdict} {verdict.figure}".rstrip()]
        said += [f"  {item.model}: {item.figure}: {item.verdict}" for item in verdict.stand_ins]
        return [*said, f"  the rule's numbers: params/claims.yaml; measured in {verdict.notebook}"], list(evidence.read)
    if thing in SECTIONS:
        SECTIONS[thing](evidence)
        return [f"{thing}: a section of report.html, drawn from"], list(evidence.read)
    stem = Path(thing).stem
    if (folder / "figures" / f"{stem}.png").exists():
        if stem == "answer":
            return _sources(evidence, folder, "answer")
        notebook = next((name for name in run.READS if stem.startswith(f"{name}-")), "")
        # Its pieces lie in folders of their own.
        names = sorted(path.stem for path in (evidence.folder / notebook).glob("*.json"))
        return [f"{stem}.png: drawn in notebooks/{notebook}.ipynb, whose records are"], [(notebook, name) for name in names]
    notebook, _, name = thing.removesuffix(".json").partition("/")
    if name and evidence.has(notebook, name):
        return [], [(notebook, name)]
    figures = sorted(path.stem for path in (folder / "figures").glob("*.png"))
    raise StudyError(
        f"{thing!r} is nothing of {folder}: name a claim ({', '.join(claims.names())}), a section ({', '.join(SECTIONS)}), "
        f"a figure ({', '.join(figures)}) or a record (NOTEBOOK/NAME)"
    )


def _of_record(evidence: Evidence, notebook: str, name: str) -> list[str]:
    if not evidence.has(notebook, name):
        return [f"record {notebook}/{name}: was looked for and is not there"]
    path = evidence.folder / notebook / f"{name}.json"
    stamp = records.read_stamp(path)
    pieces = sorted((evidence.folder / notebook / name.removesuffix("_scores")).glob("*.json"))
    versions = ", ".join(f"{library} {version}" for library, version in stamp.versions.items())
    return [
        f"record {notebook}/{name} (content {records.data_hash(path)[:16]})",
        f"  made by {stamp.step} at commit {stamp.commit}, code {stamp.code_hash}, notebook {stamp.notebook_hash} {_as_now(stamp)}",
        f"  with {versions}; on {stamp.device} in {stamp.dtype}, seed {stamp.seed}",
        f"  inputs by content: {_inputs(stamp)}",
        f"  parameters: params/{stamp.study}/{notebook}.yaml: {', '.join(f'{key}={value}' for key, value in stamp.parameters.items())}",
        *(f"  from {piece.parent.name}/{piece.stem}: inputs {_inputs(records.read_stamp(piece))}" for piece in pieces),
    ]


def _inputs(stamp: records.Stamp) -> str:
    return ", ".join(f"{key} {value}" for key, value in stamp.inputs.items()) or "none"


def _as_now(stamp: records.Stamp) -> str:
    notebook = stamp.step.split("/")[0]
    path = places.NOTEBOOKS / f"{notebook}.ipynb"
    same = path.exists() and provenance.notebook_hash(path) == stamp.notebook_hash
    return "(the notebook as it is here)" if same else "(not the notebook as it is here)"
