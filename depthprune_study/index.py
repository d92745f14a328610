"""reports/index.html: every published study with its answer, the way into all other pages."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from html import escape
from pathlib import Path

from depthprune_core.records import read_stamp, write_atomically
from depthprune_study import run, story
from depthprune_study.evidence import read_evidence
from depthprune_study.page import page

ABOUT = {  # in this order
    "quick": "the main job on any machine: a stand-in, then SmolLM2 135M, on a small excerpt of Wikipedia",
    "smollm2": "the whole protocol on real pretrained weights: SmolLM2 135M, controls and rivals at full length",
    "full": "the source's own models: GPT-2 124M, then TinyLlama 1.1B",
    "full-t4": "the same, with TinyLlama recovered by adapters, which a GPU of 15 GiB holds",
    "rehearsal": "the shapes of the study full with random weights: shows that its notebooks run, and how long they take",
    "ci": "shows that the whole chain runs; its numbers mean nothing",
}
REPORT = "report.html"
MORE = ("estimate",)  # pages of no notebook


def write(reports: Path) -> Path:
    """Write the index of a folder of reports anew; returns its path."""
    path = reports / "index.html"
    write_atomically(path, index(reports))
    return path


def index(reports: Path) -> str:
    """The index of a folder of reports as a page: a finished study with its answer, another with the pages it has so far."""
    found = {
        folder.parent.name: folder.parent for folder in reports.glob("*/records") if not folder.parent.name.startswith(".")
    }
    named = [*(name for name in ABOUT if name in found), *sorted(set(found) - set(ABOUT))]
    body = (
        "".join(_study(name, found[name], _code(found[named[0]])) for name in named)
        or "<p>No study has been published yet.</p>"
    )
    links = " ".join(f"<a href='#{escape(name)}'>{escape(name)}</a>" for name in named)
    intro = (
        "<h1>Depth pruning of causal language models</h1><p>Which whole layers can a pretrained model lose, and how much of the loss does "
        "a short distillation win back? A perplexity ratio of 1 is the whole model's; intervals are 95 %, over the test articles.</p>"
    )
    return page("depthprune: the studies", navigation=f"<b>depthprune</b> {links}", main=intro + body)


def _study(name: str, folder: Path, code_of_first: str) -> str:
    """`code_of_first`: what made the study that stands first."""
    about = f"<p>{escape(ABOUT[name])}</p>" if name in ABOUT else ""
    if _code(folder) not in ("", code_of_first):
        about += f"<p>Made by other code than the study at the top of this page: <code>depthprune status {escape(name)}</code> says more.</p>"
    finished = (folder / REPORT).exists()
    try:
        body = (_answer if finished else _so_far)(name, folder)
    except (ValueError, KeyError) as error:  # one damaged study keeps no other from being shown
        body = f"<p class='warning'>The records of this study cannot be read: {escape(str(error))}</p>"
    return f"<section id='{escape(name)}'><h2>{escape(name)}</h2>{about}{body}</section>"


def _code(folder: Path) -> str:
    """The hash of the code that made a study's test scores; empty where there are none."""
    with suppress(OSError, ValueError):
        return read_stamp(folder / "records" / "03_recovery" / "test_scores.json").code_hash
    return ""


def _answer(name: str, folder: Path) -> str:
    evidence = read_evidence(name, folder / "records")
    return (
        f"{story.answer_html(evidence)}{story.answer_figure_html(evidence)}"
        f"<p><a href='{escape(name)}/{REPORT}'>The report of {escape(name)}</a>, claim by claim. Notebooks: {_links(name, folder)}</p>"
    )


def _so_far(name: str, folder: Path) -> str:
    pages = list(_pages(folder))
    return (
        f"<p>Not finished: {len(pages)} of {len(run.READS)} notebooks so far. {_links(name, folder)}</p>"
        if pages
        else "<p>Not finished: no notebook so far.</p>"
    )


def _links(name: str, folder: Path) -> str:
    pages = [*_pages(folder), *(page for page in MORE if (folder / f"{page}.html").exists())]
    return " · ".join(f"<a href='{escape(name)}/{page}.html'>{escape(page.replace('_', ' '))}</a>" for page in pages)


def _pages(folder: Path) -> Iterable[str]:
    return (notebook for notebook in run.READS if (folder / f"{notebook}.html").exists())
