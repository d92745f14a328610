"""Publishes a run to reports/<study>/: pages, notebooks, records, figures; one atomic swap."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from depthprune_core import storage
from depthprune_study import paths
from depthprune_study.errors import StudyError
from depthprune_study.report import pages
from depthprune_study.report.evidence import Evidence
from depthprune_study.report.html_page import html_page
from depthprune_study.report.markdown import safe

ABOUT = {  # in this order; studies in A_LINE get one line each
    "overnight": "SmolLM2 135M, every notebook at full length: the answer",
    "quick": "the main job on any machine: a stand-in, then SmolLM2 135M",
    "full": "the source's own models: GPT-2 124M, then TinyLlama 1.1B",
    "full-t4": "the same on a GPU with 15 GiB",
    "rehearsal": "the shapes of `full` with random weights: tests that it runs, and how fast",
    "ci": "a few documents: tests that the pipeline runs; its numbers mean nothing",
}
A_LINE = ("rehearsal", "ci")
MADE_FROM = "made-from.json"
CURRENT = "current"


def publish(
    study: str, *, keys: dict[str, str], costs: dict[str, Any], unfinished: bool = False
) -> Path:
    """Build the report beside the old one and swap them; returns its folder.

    `keys`: notebook -> the key of its finished step. `unfinished`: some notebooks have not run.
    """
    runs, target = paths.runs(study), paths.reports(study)
    missing = [n for n in keys if not (runs / "notebooks" / f"{n}.ipynb").is_file()]
    if missing or not keys:
        raise StudyError(f"study {study} has no finished notebook {', '.join(missing) or 'at all'}")
    building, old = (target.with_name(f".{target.name}.{end}") for end in ("new", "old"))
    if old.exists() and not target.exists():
        os.replace(old, target)  # an earlier swap was interrupted
    shutil.rmtree(building, ignore_errors=True)
    if unfinished:  # lets another machine resume the run
        for kind in ("measured", "students"):
            for path in sorted(runs.glob(f"{kind}/[!.]*.json")):
                _copy(runs, building, path.relative_to(runs).as_posix())
    for notebook in keys:
        _copy(runs, building, f"notebooks/{notebook}.ipynb")
        records = f"records/{notebook}/**/[!.]*.json"
        for pattern in (records, f"figures/{notebook}-*", f"done/{notebook}.json"):
            for path in sorted(runs.glob(pattern)):
                _copy(runs, building, path.relative_to(runs).as_posix())
    storage.write_atomically(
        building / "costs.json", json.dumps({n: costs[n] for n in keys if n in costs}, indent=1)
    )
    for name, text in made(study, building, unfinished).items():
        storage.write_atomically(building / name, text)
    about = {"keys": keys, "unfinished": unfinished, "files": hashes(building)}
    storage.write_atomically(building / MADE_FROM, json.dumps(about, indent=1) + "\n")
    _swap(building, target, old)
    storage.write_atomically(target.parent / "README.md", index(target.parent))
    return target


def made(study: str, folder: Path, unfinished: bool) -> dict[str, str]:
    """The pages of a report, made from the files in its folder."""
    markdown = pages.page(Evidence(study, folder), unfinished=unfinished)
    html = html_page(markdown, folder / "figures", title=f"depthprune, study {study}")
    return {"README.md": markdown, "report.html": html}


def states(study: str, keys: dict[str, str]) -> dict[str, str]:
    """Notebook -> CURRENT if the report was made by this code and parameters; or why not."""
    made_from = read_made_from(paths.reports(study)).get("keys", {})
    found = dict.fromkeys(keys, "missing")
    for notebook in keys.keys() & made_from.keys():
        found[notebook] = CURRENT if made_from[notebook] == keys[notebook] else "outdated"
    return found


def read_made_from(folder: Path) -> dict[str, Any]:
    """What a report was made from; empty if the file is missing or damaged."""
    try:
        return json.loads((folder / MADE_FROM).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def hashes(folder: Path) -> dict[str, str]:
    """File of a report (except MADE_FROM) -> SHA-256 of its content."""
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.name != MADE_FROM]
    return {
        p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files
    }


def index(reports: Path) -> str:
    """reports/README.md: every published study, `overnight` first with its answer."""
    found = {path.parent.name: path.parent for path in reports.glob("[!.]*/" + MADE_FROM)}
    lines = ["# Reports\n"]
    for study in [*(name for name in ABOUT if name in found), *sorted(set(found) - set(ABOUT))]:
        links = f"[report]({study}/README.md) · [one offline file]({study}/report.html)"
        about = ABOUT.get(study, "your own study")
        if study in A_LINE:
            lines.append(f"- **{study}**: {about}. {links}\n")
            continue
        evidence = Evidence(study, found[study])
        part = f"{pages.UNFINISHED} " if read_made_from(found[study]).get("unfinished") else ""
        lines.append(f"## {study}\n\n{about[:1].upper()}{about[1:]}. {part}{links}\n")
        said = [safe(line) for line in pages.answer_lines(evidence)] if evidence.lead else []
        lines.append("\n\n".join(said if study == "overnight" else said[-1:]) + "\n")
    return "\n".join(lines)


def _copy(source: Path, target: Path, name: str) -> None:
    (target / name).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source / name, target / name)


def _swap(building: Path, target: Path, old: Path) -> None:
    """Replaces the old folder by the new one; after an error the old one stays."""
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
