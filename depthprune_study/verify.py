"""Does a published report say what its records say, and do its cheap numbers come out again?"""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from depthprune_core import records
from depthprune_core.records import Score
from depthprune_study import claims, pieces, report, story, tables
from depthprune_study.evidence import read_evidence
from depthprune_study.executed_notebooks import cells_of, of_other_notebooks
from depthprune_study.settings import SCHEMAS
from depthprune_study.why import SECTIONS, misplaced

# Sums in another order move a mean NLL by far less; another text, another cut or a damaged weight by far more.
TOLERANCE_NATS = 1e-4


def differences(folder: Path) -> list[str]:
    """What in a report does not fit together, a sentence each: records, executed notebooks, figures, pages, verdicts.

    Later checks read what earlier ones found whole, so they come only where those found nothing. Before the verdicts, all files must
    be there; what there is of an unfinished report is looked at until then.
    """
    root = report.records_of(folder)
    for check in (_damaged, of_other_notebooks, _pieces, _figures, _pages, _missing, _verdicts):
        if found := list(check(folder, root)):
            return found
    return []


def recomputed(folder: Path) -> Iterator[tuple[str, float]]:
    """The whole models and one cut model scored anew on the test articles: what, and how far it is from the record.

    In nats per token, for each notebook that cut a model before any recovery; a few seconds for a small model.
    """
    from transformers.utils import logging

    from depthprune_core import evaluation, models, pruning, text
    from depthprune_study import places

    logging.disable_progress_bar()
    evidence = read_evidence(folder.name, report.records_of(folder))
    for notebook in ("02_prune_gpt2", "04_transfer_tinyllama"):
        if not evidence.has(notebook, "test_scores"):
            continue
        parameters = evidence.stamp(notebook, "test_scores").parameters
        model, tokenizer = models.load(
            parameters["model"], cache=places.cache(), assets=places.assets(), device="cpu", seed=parameters["seed"]
        )
        documents = text.split_named(parameters["text"], cache=places.cache(), assets=places.assets())["test"]
        windows = text.windows(
            documents[: parameters["max_documents"] or None],
            tokenizer,
            seq_len=parameters["seq_len"],
            tokens_per_document=parameters["score_tokens"],
        )
        if notebook == "02_prune_gpt2":
            name = planned = f"least_sensitive-{parameters['drop_counts'][0]}"
        else:
            name, planned = "unrecovered", "recovered"
        cut = pruning.drop_layers(model, evidence.record(notebook, "plans")[planned], share=True)
        for what, of in (("teacher", model), (name, cut)):
            was, now = evidence.test(notebook)[what], evaluation.score(of, windows)
            yield f"{parameters['model']}, {what}", _distance(was, now)


def _distance(was: Score, now: Score) -> float:
    """Infinite where they are not of the same text, or are no numbers."""
    if was.documents != now.documents or was.n_tokens != now.n_tokens:
        return float("inf")
    distances = [abs(a - b) / n for a, b, n in zip(was.nll_nats, now.nll_nats, was.n_tokens, strict=True)]
    return max(distances) if all(map(math.isfinite, distances)) else float("inf")  # `max` may pass over NaN


def _damaged(folder: Path, root: Path) -> Iterator[str]:
    for path in sorted([*root.rglob("*.json"), *(folder / "arms").rglob("*.json")]):
        try:
            records.read(path)
            records.read_stamp(path)
        except ValueError:
            yield f"{path.relative_to(folder)} is damaged: its content is not what its checksum says"
        else:
            if sentence := misplaced(path, folder):
                yield sentence
    for path in sorted((folder / "notebooks").glob("*.ipynb")):
        if cells_of(path) is None:
            yield f"notebooks/{path.name} is damaged"
    for path in sorted(folder.glob("*.html")):
        if not _text(path).endswith("</html>\n"):
            yield f"{path.name} is damaged"


def _pieces(folder: Path, root: Path) -> Iterator[str]:
    """Records that were put together of others, and say something else than these."""
    for path in sorted(root.glob("*/*.json")):
        for result, piece in pieces.of(path).items():
            if piece is None:
                yield f"what {path.relative_to(folder)} says of {result} is not what was measured: no record of its own says it"


def _figures(folder: Path, root: Path) -> Iterator[str]:
    """Figure files that no executed notebook shows, and figures of notebooks that are no file."""
    shown: dict[bytes, str] = {}
    for executed in sorted((folder / "notebooks").glob("*.ipynb")):
        for image in _images(executed):
            try:
                shown.setdefault(base64.b64decode(image, validate=True), executed.name)
            except ValueError:
                yield f"notebooks/{executed.name} is damaged: it holds an image that cannot be decoded"
    kept = {path: path.read_bytes() for path in sorted((folder / "figures").glob("*.png"))}
    for path, content in kept.items():
        notebook = report.REPORT if path.stem == "answer" else path.stem.partition("-")[0]
        is_missing = notebook in SCHEMAS and not (folder / "notebooks" / f"{notebook}.ipynb").exists()
        if content not in shown and not is_missing:
            yield f"figures/{path.name} is not the figure that its notebook shows"
    for content, name in shown.items():
        if content not in kept.values() and name != f"{report.REPORT}.ipynb":  # its own are drawn for the page alone
            yield f"notebooks/{name} shows a figure that is not in figures/"


def _pages(folder: Path, root: Path) -> Iterator[str]:
    """Pages that do not show what their executed notebooks show; what the report's notebook says is compared with the records later."""
    for executed in sorted((folder / "notebooks").glob("*.ipynb")):
        page = folder / report.file_name(executed.stem)
        if not page.exists():
            continue
        made_anew = report.page(executed, folder.name, with_code=executed != _of_report(folder))
        if _shown(_text(page)) != _shown(made_anew):
            yield f"{page.name} does not show what notebooks/{executed.name} shows"


class _Shown(HTMLParser):
    """Words, images with their texts, and colours of verdicts; not how a version of nbconvert marks up the rest."""

    def __init__(self) -> None:
        super().__init__()
        self.found = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        told = dict(attrs)
        if tag == "img" or (told.get("class") or "").startswith("verdict"):
            self.found += f"<{tag} {told.get('class')} {told.get('src')} {told.get('alt')}>"

    def handle_data(self, data: str) -> None:
        self.found += "".join(data.split())  # spaces apart: of some, the markup decides


def _shown(page: str) -> str:
    """What a reader sees of a page, its navigation apart: that tells which other pages there are."""
    parser = _Shown()
    parser.feed(page.partition("</nav>")[2])
    parser.close()
    return parser.found


def _missing(folder: Path, root: Path) -> Iterator[str]:
    """What every finished report has."""
    names = [f"notebooks/{notebook}.ipynb" for notebook in SCHEMAS] + [report.file_name(notebook) for notebook in SCHEMAS]
    for name in [*names, "figures/answer.png", "costs.json", "made-from.json"]:
        if not (folder / name).is_file():
            yield f"{name} is missing"
    for notebook in SCHEMAS:
        if notebook != report.REPORT and not any((root / notebook).glob("*.json")):
            yield f"records/{notebook} holds no records"


def _verdicts(folder: Path, root: Path) -> Iterator[str]:
    """The answer, the verdicts and all else on the report, made anew from the records, against what its notebook says."""
    evidence = read_evidence(folder.name, root)
    said = "".join(output.get("data", {}).get("text/html", "") for output in _outputs(_of_report(folder)))
    for verdict in claims.judge(evidence):
        if tables.table_row(story.claim_cells(verdict)) not in said:
            yield f"what notebooks/06_report.ipynb says of {verdict.id} is not what records and params/claims.yaml say"
    for section, drawn in SECTIONS.items():
        if not all(_without_images(piece) in _without_images(said) for piece in drawn(evidence)):
            yield f"what notebooks/06_report.ipynb says of {section} is not what the records say"


def _without_images(html: str) -> str:
    """What stands in figures depends on the version of matplotlib; their texts do not."""
    return re.sub(r"data:image/png;base64,[^']*", "", html)


def _of_report(folder: Path) -> Path:
    return folder / "notebooks" / f"{report.REPORT}.ipynb"


def _outputs(path: Path) -> list[dict[str, Any]]:
    return [output for cell in cells_of(path) or [] for output in cell.get("outputs", [])]


def _images(path: Path) -> list[str]:
    """The PNGs that a notebook shows, in base64: its own outputs and those inside its HTML."""
    found = []
    for output in _outputs(path):
        data = output.get("data", {})
        found += [data["image/png"].strip()] if "image/png" in data else []
        found += re.findall(r"data:image/png;base64,([^'\"]*)", data.get("text/html", ""))
    return found


def _text(path: Path) -> str:
    """A page; empty where it is no text."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return ""
