"""From a claim, a figure or a record of a published report back to records, recovered students, parameters, code and inputs."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from depthprune_core import records
from depthprune_study import claims, drawn, executed_notebooks, pieces, places, provenance, report, run, sections, story
from depthprune_study.evidence import Evidence
from depthprune_study.settings import StudyError

# Sections of a report's page -> their HTML, as notebook 06 shows it.
SECTIONS: dict[str, Callable[[Evidence], list[str]]] = {
    "answer": lambda e: [story.answer_html(e), story.answer_figure_html(e)],
    "verdicts": lambda e: [story.tally_html(claims.judge(e))],
    "frontier": sections.frontier_figures,
    "layers": sections.layer_figures,
    "recovery": sections.recovery_figures,
    "controls": sections.control_figures,
    "choice": sections.choice_figures,
    "speed": sections.speed_figures,
    "seeds": sections.seed_figures,
    "details": sections.detail_figures,
    "continuations": lambda e: [story.continuations_html(e)],
    "failures": lambda e: [story.failures_html(e, claims.judge(e))],
    "provenance": lambda e: [story.provenance_html(e)],
}
# What an arm (a recovered or a refitted student) is stamped with, in the order of `bench.recover` and `bench.refitted`.
INPUTS_OF_AN_ARM = ("teacher", "cut", "recovery text", "start", "validation text", "recipe")
NOTHING = hashlib.sha256(b"null").hexdigest()[:16]


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
    """What a thing on a report's page was made from, as lines of text: records, then the arms that these were measured on.

    thing: a claim (`C4`), a section of the page (`recovery`), a figure's file (`03_recovery-curves`) or a record
    (`03_recovery/curves`). Raises StudyError where the folder is no report, or has no such thing.
    """
    evidence = Traced(folder.name, report.records_of(folder))
    for path in sorted([*evidence.folder.rglob("*.json"), *(folder / "arms").rglob("*.json")]):
        if sentence := misplaced(path, folder):
            raise StudyError(sentence)
    lines, sources = _sources(evidence, folder, thing)
    for notebook, name in sources:
        lines += _of_record(evidence, notebook, name)
    arms = _arms(folder)
    reached = [
        arm for notebook, name in sources if evidence.has(notebook, name) for arm in _reached(evidence, notebook, name, arms)
    ]
    for path in _with_what_they_began_from(reached, arms, evidence):
        lines += _of_arm(path.relative_to(folder / "arms"), records.read_stamp(path), arms[path])
    return lines


def misplaced(path: Path, folder: Path) -> str:
    """A sentence where a file of a report holds another record than belongs there, else empty. Raises ValueError for a damaged one."""
    root, step = report.records_of(folder), records.read_stamp(path).step
    in_records = path.is_relative_to(root)
    belongs = path.relative_to(root).with_suffix("").as_posix() if in_records else f"any/arm/{path.parent.name}"
    return "" if step == belongs else f"{path.relative_to(folder)} is another record than its name says: it was made as {step}"


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
        if behind := _drawn_from(evidence, folder / "notebooks" / f"{notebook}.ipynb", stem.removeprefix(f"{notebook}-")):
            return [f"{stem}.png: drawn in notebooks/{notebook}.ipynb from"], behind
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


def _drawn_from(evidence: Evidence, path: Path, figure: str) -> list[tuple[str, str]]:
    """The records behind a figure of an executed notebook, as far as its cells tell; none where they do not."""
    cells = executed_notebooks.cells_of(path)
    asked = [] if cells is None else drawn.records_of(path, figure, executed_notebooks.injected(cells) or {})
    found: dict[tuple[str, str], None] = {}
    for notebook, pattern in asked:
        root = evidence.folder / notebook
        names = sorted(record.relative_to(root).with_suffix("").as_posix() for record in root.rglob("*.json"))
        found |= {(notebook, name): None for name in names if re.fullmatch(pattern, name)}
    return list(found)


def _of_record(evidence: Evidence, notebook: str, name: str) -> list[str]:
    if not evidence.has(notebook, name):
        return [f"record {notebook}/{name}: was looked for and is not there"]
    path = evidence.folder / notebook / f"{name}.json"
    stamp = records.read_stamp(path)
    made_from = {result: piece for result, piece in pieces.of(path).items() if piece is not None}
    elsewhere = (
        "those of its pieces" if made_from else f"none of its own: worked out in notebook {notebook} from its other records"
    )
    if name == "curves":
        told = [f"  {result}: arm {arm.parent.name}/{arm.stem}" for result, arm in made_from.items()]
    else:
        told = [
            f"  from {piece.parent.name}/{piece.stem}: inputs {_inputs(records.read_stamp(piece))}"
            for piece in dict.fromkeys(made_from.values())
        ]
    return [
        f"record {notebook}/{name} (content {records.data_hash(path)[:16]})",
        f"  made by {stamp.step} at commit {stamp.commit}, code {stamp.code_hash}, notebook {stamp.notebook_hash} {_as_now(stamp)}",
        f"  {_on(stamp)}",
        f"  inputs by content: {_inputs(stamp) if stamp.inputs else elsewhere}",
        f"  parameters: params/{stamp.study}/{notebook}.yaml: {', '.join(f'{key}={value}' for key, value in stamp.parameters.items())}",
        *told,
    ]


def _on(stamp: records.Stamp) -> str:
    versions = ", ".join(f"{library} {version}" for library, version in stamp.versions.items())
    return f"with {versions}; on {stamp.device} in {stamp.dtype}, seed {stamp.seed}"


def _inputs(stamp: records.Stamp) -> str:
    return ", ".join(f"{key} {value}" for key, value in stamp.inputs.items()) or "none"


# ---------------------------------------------------------------- recovered students


def _arms(folder: Path) -> dict[Path, dict[str, Any]]:
    """File -> recipe of every arm of a report, with the hash of its weights."""
    contents = {path: records.read(path) for path in sorted((folder / "arms").rglob("*.json"))}
    return {path: content["arm"].recipe if isinstance(content, dict) else content.values for path, content in contents.items()}


def _reached(evidence: Evidence, notebook: str, name: str, arms: dict[Path, dict[str, Any]]) -> Iterator[Path]:
    """The arms that a record was measured on: itself, in its pieces, or in any record of a notebook that has worked it out."""
    path = evidence.folder / notebook / f"{name}.json"
    made_from = [piece for piece in pieces.of(path).values() if piece is not None]
    is_worked_out = not made_from and not records.read_stamp(path).inputs
    for source in sorted(path.parent.rglob("*.json")) if is_worked_out else [path, *made_from]:
        yield from [source] if source in arms else _of_weights(records.read_stamp(source).inputs.values(), arms)


def _of_weights(inputs: Iterable[str], arms: dict[Path, dict[str, Any]]) -> list[Path]:
    hashes = set(inputs)
    return [path for path, told in arms.items() if told["weights"] in hashes]


def _with_what_they_began_from(reached: Iterable[Path], arms: dict[Path, dict[str, Any]], evidence: Evidence) -> Iterator[Path]:
    """These arms, each followed by those that it began from, once."""
    chosen = [records.read(path) for path in sorted(evidence.folder.glob("*/chosen-*.json"))]
    cut_again = {_without(told["weights"], plan.dropped): told["weights"] for told in arms.values() for plan in chosen}
    waiting, seen = list(reversed(list(reached))), set()
    while waiting:
        path = waiting.pop()
        if path not in seen:
            seen.add(path)
            yield path
            began = set(records.read_stamp(path).inputs.values())
            waiting += _of_weights(began | {cut_again[model] for model in began if model in cut_again}, arms)


def _without(weights: str, dropped: tuple[int, ...]) -> str:
    """What `Arm.without` calls a student that was cut again."""
    return hashlib.sha256(f"{weights} without {dropped}".encode()).hexdigest()[:16]


def _of_arm(name: Path, stamp: records.Stamp, told: dict[str, Any]) -> list[str]:
    known = (*INPUTS_OF_AN_ARM, *["library"] * len(stamp.inputs))
    inputs = ", ".join(
        f"{key} ({what}) {'none' if value == NOTHING else value}"
        for what, (key, value) in zip(known, stamp.inputs.items(), strict=False)
    )
    return [
        f"arm {name.with_suffix('').as_posix()} (weights {told['weights']})",
        f"  made at commit {stamp.commit}, code {stamp.code_hash}",
        f"  {_on(stamp)}",
        f"  inputs by content: {inputs}",
        f"  recipe: {', '.join(f'{key}={value}' for key, value in told.items() if key != 'weights') or 'none'}",
    ]


def _as_now(stamp: records.Stamp) -> str:
    notebook = stamp.step.split("/")[0]
    path = places.NOTEBOOKS / f"{notebook}.ipynb"
    same = path.exists() and provenance.notebook_hash(path) == stamp.notebook_hash
    return "(the notebook as it is here)" if same else "(not the notebook as it is here)"
