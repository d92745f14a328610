"""What a reader sees: the box at the top, figures with their sources, findings beneath them.

Works on IPython 7.34 (Colab) and 9: plain MIME data, raw.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from IPython.display import display, update_display

from depthprune_core import speed, storage
from depthprune_core.records import Facts
from depthprune_study.errors import StudyError
from depthprune_study.results import charts

if TYPE_CHECKING:
    from depthprune_study.lab.workspace import Workspace

BOX = "depthprune-box"  # the same in every run, so that executed notebooks compare
MOST_FINDINGS = 3


class Sources:
    """Which file each record of this session lies in, so that a figure can name its sources."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[int, tuple[Any, Path]] = {}  # id -> the record, kept alive, and its file

    def note(self, record: Any, path: Path) -> Any:
        """Remember where a record (or a dict of records, and each of them) lies; returns it."""
        for part in (record, *(record.values() if isinstance(record, Mapping) else ())):
            self._files[id(part)] = (part, path)
        return record

    def of(self, records: Iterable[Any], figure: str) -> dict[str, str]:
        """File below runs/<study>/ -> hash of its content. Raises StudyError if unsaved."""
        files: set[Path] = set()
        for record in records:
            if id(record) in self._files:
                files.add(self._files[id(record)][1])
            elif isinstance(record, Mapping) and all(id(r) in self._files for r in record.values()):
                files |= {self._files[id(r)][1] for r in record.values()}
            else:
                raise StudyError(
                    f"figure {figure} is of a {type(record).__name__} that is not saved: "
                    "lab.save it first, so that the figure can name its source"
                )
        hashes = {p.relative_to(self._folder).as_posix(): storage.data_hash(p) for p in files}
        return dict(sorted(hashes.items()))


class Box:
    """At the top of a notebook: model, device, minutes so far, and what was found."""

    def __init__(self) -> None:
        self.findings: list[Any] = []
        self.shown, self.began = False, time.monotonic()

    def add(self, lab: Workspace, found: Any) -> None:
        if len(self.findings) == MOST_FINDINGS:
            raise StudyError(f"the box holds at most {MOST_FINDINGS} findings: {found.title!r}")
        self.findings.append(found)
        self.draw(lab)

    def draw(self, lab: Workspace) -> None:
        """Fill the box, where it is on the page."""
        if self.shown:
            update_display(_markdown(self.text(lab)), raw=True, display_id=BOX)

    def text(self, lab: Workspace) -> str:
        minutes = (time.monotonic() - self.began) / 60
        device = speed.device_name(torch.device(lab.device))
        where = f"**{lab.model}** · {device} · {minutes:.1f} minutes so far"
        return "\n>\n".join(
            f"> {line}" for line in [*(f"**Found.** {f.text}" for f in self.findings), where]
        )


def show_box(lab: Workspace) -> None:
    """The empty box; findings marked `lead` fill it while the notebook runs."""
    lab.box_state.shown = True
    display(_markdown(lab.box_state.text(lab)), raw=True, display_id=BOX)


def show(
    lab: Workspace, name: str, figure: Any, found: Any, *, of: Iterable[Any], lead: bool = False
) -> None:
    """Display a figure and its finding; keep it as PNG and SVG, its sources noted in both."""
    sources = lab.sources.of(of, name)
    png, svg = charts.png(figure, sources=sources), charts.svg(figure)
    path = lab.folder / "figures" / f"{lab.notebook}-{name}.png"
    storage.write_atomically(path, png)
    storage.write_atomically(path.with_suffix(".svg"), svg)
    alt = figure.get_label() or found.title
    width = int.from_bytes(png[16:20], "big") // 2  # drawn at twice its size on the page
    data = {"image/png": base64.b64encode(png).decode("ascii"), "text/plain": f"[figure: {alt}]"}
    about = {"name": path.name, "alt": alt, "sources": sources}
    display(
        data, metadata={"image/png": {"alt": alt, "width": width}, "depthprune": about}, raw=True
    )
    tell(lab, found, lead=lead)


def tell(lab: Workspace, found: Any, *, of: Iterable[Any] = (), lead: bool = False) -> None:
    """The finding (anything with `title` and `text`) as Markdown; `lead`: in the box as well."""
    sources = lab.sources.of(of, found.title)
    about = {"metadata": {"depthprune": {"sources": sources}}} if sources else {}
    display(_markdown(f"**Found.** {found.text}"), raw=True, **about)
    if lead:
        lab.box_state.add(lab, found)
    else:
        lab.box_state.draw(lab)  # the minutes


def table(facts: Facts) -> None:
    """Continuations as a Markdown table: a row a student, a block a prompt."""
    rows = ["| | |", "|---|---|"]
    for number, prompt in enumerate(facts.values["prompts"]):
        rows.append(f"| **prompt** | **{_cell(prompt)}** |")
        samples = facts.values["samples"].items()
        rows += [f"| {_cell(name)} | {_cell(texts[number])} |" for name, texts in samples]
    display(_markdown("\n".join(rows)), raw=True)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _markdown(text: str) -> dict[str, str]:
    return {"text/markdown": text, "text/plain": text}
