"""A page of its own: no script, nothing fetched, readable on a phone and on paper."""

from __future__ import annotations

from html import escape
from pathlib import Path

STYLE = (Path(__file__).with_name("page.css")).read_text(encoding="utf-8")


def page(title: str, *, navigation: str, main: str) -> str:
    """The whole document. `title` is text; `navigation` and `main` are HTML already."""
    return (
        "<!DOCTYPE html>\n<html lang='en'><head><meta charset='utf-8'><meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>"
        f"<nav>{navigation}</nav><main>{main}</main></body></html>\n"
    )
