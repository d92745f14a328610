"""The report as one offline HTML file, made from its Markdown: no script, figures inline."""

from __future__ import annotations

import base64
import re
from html import escape
from pathlib import Path

import mistune

from depthprune_study.report import pages, verdicts
from depthprune_study.report.markdown import anchor

STYLE = Path(__file__).with_name("page.css").read_text(encoding="utf-8")


def html_page(markdown: str, figures: Path, *, title: str) -> str:
    """The whole document. `figures`: the folder with the SVG files that replace the PNG files."""
    body = str(mistune.create_markdown(escape=False, plugins=["table"])(markdown))
    head, *sections = re.split(r"(?=<h2>)", body)
    heads = [re.match(r"<h2>(.*?)</h2>", section)[1] for section in sections]
    links = "".join(f"<a href='#{anchor(h)}'>{h}</a>" for h in heads)
    head = re.sub(r"<p><a href=\"#.*?</p>", "", head, count=1, flags=re.DOTALL)  # the bar has it
    main = head + "".join(_section(h, s) for h, s in zip(heads, sections, strict=True))
    return (
        "<!DOCTYPE html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>"
        f"<nav>{links}</nav><main>{_inline(_marked(main), figures)}</main></body></html>\n"
    )


def _section(heading: str, section: str) -> str:
    """A section with its anchor; the findings of a notebook in columns."""
    start, *groups = re.split(r"(?=<h3>)", section)
    for group in groups:
        shown, fold, rest = group.partition("<details>")
        head, *articles = shown.split(pages.FINDING)
        columns = "".join(f"<article>{article}</article>" for article in articles)
        start += f"{head}<div class='columns'>{columns}</div>{fold}{rest}"
    return f"<section id='{anchor(heading)}'>{start}</section>"


def _marked(main: str) -> str:
    """Shows verdict words as chips."""
    for word in verdicts.WORDS:
        chip = f"<b class='chip {word.split()[0]}'>{word}</b>"
        main = main.replace(f"<td><strong>{word}</strong></td>", f"<td>{chip}</td>")
    return main


def _inline(main: str, figures: Path) -> str:
    def image(match: re.Match[str]) -> str:
        path = figures / match[1]
        svg = path.with_suffix(".svg")
        file, kind = (svg, "svg+xml") if svg.is_file() else (path, "png")
        data = base64.b64encode(file.read_bytes()).decode()
        return f'<img src="data:image/{kind};base64,{data}"'

    return re.sub(r'<img src="figures/([^"/]+)"', image, main)
