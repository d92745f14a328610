"""Records -> what the report's page says: the answer, the claims, what failed, continuations, where it comes from; as escaped HTML."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from typing import Any

from depthprune_core import figures
from depthprune_study import claims, failures, tables
from depthprune_study.claims import NOT_TESTABLE, Verdict
from depthprune_study.evidence import RANDOM_WEIGHTS, Evidence
from depthprune_study.settings import SCHEMAS

NOTEBOOKS = tuple(SCHEMAS)


def answer_html(evidence: Evidence) -> str:
    """The answer in a few sentences; before it, warnings where records do not belong together or weights are random."""
    warnings = []
    if mixed := evidence.mixed_notebooks():
        warnings.append(f"These figures mix records of different code, notebooks or parameters: {', '.join(mixed)}.")
    if random := [model for model in (evidence.first_model, evidence.second_model) if model in RANDOM_WEIGHTS]:
        warnings.append(
            f"Random weights: of {' and '.join(random)}, sizes, times and memory mean something, and no other figure does."
        )
    return "".join(
        f"<p class='{kind}'>{escape(line)}</p>"
        for kind, said in (("warning", warnings), ("answer", evidence.answer_lines()))
        for line in said
    )


def tally_html(verdicts: Sequence[Verdict]) -> str:
    """How many claims have which verdict."""
    return f"<p class='answer'>{escape(' '.join(claims.tally(verdicts)))}</p>"


def answer_figure(evidence: Evidence) -> Any:
    """The answer as one matplotlib figure."""
    return figures.controls(evidence.answer_ratios(), title=evidence.answer_title().replace("$", r"\$"))


def answer_figure_html(evidence: Evidence) -> str:
    """The same, with its text and caption."""
    n = len(evidence.test(evidence.lead)["teacher"].documents)
    caption = f"{evidence.lead_model}, n = {n} test articles. Left of 1: a lower perplexity than the whole model's."
    return figure_html(answer_figure(evidence), evidence.answer_alt(), caption)


def claims_html(verdicts: Sequence[Verdict]) -> str:
    """The claims table; the words say what the colours say."""
    head = ["", "claim", "source", "verdict on the source's models", "what the stand-ins show", "notebook"]
    return tables.table(head, [claim_cells(verdict) for verdict in verdicts])


def claim_cells(verdict: Verdict) -> list[str]:
    """A verdict's row of that table."""
    stand_ins = "".join(
        f"<p>{_word(item.verdict)} · <b>{escape(item.model)}</b>: {escape(item.figure)}</p>" for item in verdict.stand_ins
    )
    why = f"<br><small>{escape(verdict.why)}</small>" if verdict.why else ""
    return [
        f"<b>{verdict.id}</b>",
        f"{escape(verdict.claim)}<br><small>rule: {escape(verdict.rule)}</small>",
        escape(verdict.source),
        f"{_word(verdict.verdict)} {escape(verdict.figure)}{why}",
        stand_ins,
        f"<a href='{verdict.notebook}.html'>{verdict.notebook.split('_')[0]}</a>",
    ]


def failures_html(evidence: Evidence, verdicts: Sequence[Verdict]) -> str:
    """What did not hold or did not pay, and the limits of the study: a paragraph, then one by one."""
    lines = "".join(f"<li>{escape(line)}</li>" for line in failures.lines(evidence, verdicts))
    return f"<p>{escape(failures.paragraph(evidence, verdicts))}</p><ul>{lines}</ul>"


def continuations_html(evidence: Evidence) -> str:
    """What the models say, before and after."""
    facts = evidence.record(evidence.lead, "continuations").values
    rows = []
    for i, prompt in enumerate(facts["prompts"]):
        for name in ("teacher", "unrecovered", "recovered"):
            said = f"<span class='said'>{escape(facts['samples'][name][i])}</span>"
            rows.append([escape(prompt) if name == "teacher" else "", name, said])
    n = len(facts["prompts"])
    return (
        f"<p>{escape(evidence.lead_model)}, greedy, cut off after as many tokens each; {n} of them prove nothing:</p>"
        + tables.table(["prompt", "model", "continuation"], rows)
    )


def provenance_html(evidence: Evidence) -> str:
    """Code, versions, device and seed of every notebook's test scores or profile."""
    stamps = {
        notebook: evidence.stamp(notebook, "profile" if notebook == "01_sensitivity" else "test_scores")
        for notebook in NOTEBOOKS[:-1]
    }
    versions = {
        notebook: ", ".join(f"{library} {version}" for library, version in stamp.versions.items())
        for notebook, stamp in stamps.items()
    }
    alike = len(set(versions.values())) == 1
    rows = []
    for notebook, stamp in stamps.items():
        told = [stamp.commit, stamp.code_hash, stamp.device, str(stamp.seed), *([] if alike else [versions[notebook]])]
        rows.append([f"<a href='{notebook}.html'>{notebook}</a>", *map(escape, told)])
    said = f"<p>All with {escape(next(iter(versions.values())))}.</p>" if alike else ""
    return said + tables.table(["notebook", "commit", "code", "device", "seed", *([] if alike else ["versions"])], rows)


def figure_html(figure: Any, alt: str, caption: str = "") -> str:
    """The figure inline, with its alternative text."""
    data = base64.b64encode(figures.png(figure)).decode()
    image = f"<img src='data:image/png;base64,{data}' alt='{escape(alt, quote=True)}'>"
    return f"<figure>{image}<figcaption>{escape(caption)}</figcaption></figure>"


def _word(verdict: str) -> str:
    """A verdict in its colour; the one that says nothing, in as few words as the column allows."""
    shown = "not testable here" if verdict == NOT_TESTABLE else verdict
    return f"<span class='verdict {verdict.split(' in ')[0].replace(' ', '-')}'>{escape(shown)}</span>"
