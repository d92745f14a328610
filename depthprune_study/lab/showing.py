"""The visible parts of a notebook: the box at the top, figures with sources, findings below them.

Displays raw MIME data, which works on IPython 7.34 (Colab) and 9.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from IPython.display import display, update_display

from depthprune_core import speed, storage
from depthprune_core.records import Facts
from depthprune_study.errors import StudyError
from depthprune_study.results import charts

BOX = "depthprune-box"  # the same in every run, so that executed notebooks can be compared
MOST_FINDINGS = 3


class Page:
    """The displayed notebook. It stores the file of each record, so that figures name sources."""

    notebook: str
    model: str
    device: str
    folder: Path  # runs/<study>/

    def __init__(self) -> None:
        self._files: dict[int, tuple[Any, Path]] = {}  # id -> the record, kept alive, and its file
        self._told: list[dict[str, Any]] = []  # every finding, as its record holds it
        self._boxed = False

    def save(self, name: str, record: Any) -> Any:
        """Save record(s) of this notebook; returns them."""
        raise NotImplementedError

    def box(self) -> None:
        """Display a box with model, device, and the findings marked `lead`."""
        self._boxed = True
        display(_markdown(self._box_text()), raw=True, display_id=BOX)

    def show(
        self, name: str, figure: Any, found: Any, *, of: Iterable[Any], lead: bool = False
    ) -> None:
        """Display a figure drawn from records `of`, and its finding; `lead`: also in the box."""
        sources = self.sources_of(of, name)
        png, svg = charts.png(figure, sources=sources), charts.svg(figure)
        path = self.folder / "figures" / f"{self.notebook}-{name}.png"
        storage.write_atomically(path, png)
        storage.write_atomically(path.with_suffix(".svg"), svg)
        alt = figure.get_label() or found.title
        width = int.from_bytes(png[16:20], "big") // 2  # the PNG has twice the displayed size
        image = base64.b64encode(png).decode("ascii")
        about = {"name": path.name, "alt": alt, "sources": sources}
        display(
            {"image/png": image, "text/plain": f"[figure: {alt}]"},
            metadata={"image/png": {"alt": alt, "width": width}, "depthprune": about},
            raw=True,
        )
        self.found(name, found, lead=lead)

    def found(self, name: str, found: Any, *, of: Iterable[Any] = (), lead: bool = False) -> None:
        """Display a finding without a figure; it is kept for the report, record `findings`.

        found: has `title`, `text` and `against`. lead: also in the box, and unfolded in the report.
        """
        sources = self.sources_of(of, name)
        about = {"metadata": {"depthprune": {"sources": sources}}} if sources else {}
        display(_markdown(f"**Found.** {found.text}"), raw=True, **about)
        self._told.append({"name": name, **vars(found), "lead": lead})
        self.save("findings", Facts({"told": self._told}))
        if sum(told["lead"] for told in self._told) > MOST_FINDINGS:
            raise StudyError(f"the box holds at most {MOST_FINDINGS} findings: {found.title!r}")
        if lead and self._boxed:
            update_display(_markdown(self._box_text()), raw=True, display_id=BOX)

    def table(self, facts: Facts) -> None:
        """Display continuations as a table: one block per prompt, one row per student."""
        rows = ["| | |", "|---|---|"]
        for number, prompt in enumerate(facts.values["prompts"]):
            rows.append(f"| **prompt** | **{_cell(prompt)}** |")
            samples = facts.values["samples"].items()
            rows += [f"| {_cell(name)} | {_cell(texts[number])} |" for name, texts in samples]
        display(_markdown("\n".join(rows)), raw=True)

    def note(self, record: Any, path: Path) -> Any:
        """Remember the file of a record, or of a dict of records; returns the record."""
        for part in (record, *(record.values() if isinstance(record, Mapping) else ())):
            self._files[id(part)] = (part, path)
        return record

    def sources_of(self, records: Iterable[Any], figure: str) -> dict[str, str]:
        """File below runs/<study>/ -> hash of its content. Raises StudyError if unsaved."""
        files: set[Path] = set()
        for record in records:
            known = id(record) in self._files
            parts = [record] if known or not isinstance(record, Mapping) else record.values()
            if not all(id(part) in self._files for part in parts):
                raise StudyError(
                    f"figure {figure} uses an unsaved {type(record).__name__}: "
                    "call lab.save first, so that the figure can name its source"
                )
            files |= {self._files[id(part)][1] for part in parts}
        hashes = {path.relative_to(self.folder).as_posix(): path for path in files}
        return {name: storage.data_hash(hashes[name]) for name in sorted(hashes)}

    def _box_text(self) -> str:
        device = speed.device_name(torch.device(self.device))
        where = f"**{self.model}** · {device}"
        found = (told["text"] for told in self._told if told["lead"])
        lines = [*(f"**Found.** {text}" for text in found), where]
        return "\n>\n".join(f"> {line}" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _markdown(text: str) -> dict[str, str]:
    return {"text/markdown": text, "text/plain": text}
