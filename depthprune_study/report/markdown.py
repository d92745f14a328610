"""Markdown: escaped text, anchors, tables."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence


def anchor(heading: str) -> str:
    """The anchor that GitHub makes for a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def safe(text: str) -> str:
    """Text escaped so that Markdown shows it literally."""
    text = html.escape(" ".join(text.split()), quote=False)
    return re.sub(r"([\\`*_\[\]|~#])", r"\\\1", text).replace("$", "&#36;")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; the cells are escaped already."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def notebook_link(notebook: str, root: str) -> str:
    """A link to an executed notebook of the report at `root`."""
    return f"[{notebook.split('_')[0]}]({root}notebooks/{notebook}.ipynb)"


def folded(title: str, text: str) -> str:
    """Text that a click unfolds."""
    return f"<details><summary>{html.escape(title)}</summary>\n\n{text}\n\n</details>\n"
