"""The source's claims beside our results, as a table; README shows the same rows."""

from __future__ import annotations

from collections.abc import Sequence

from depthprune_study.report import verdicts
from depthprune_study.report.claims import judge
from depthprune_study.report.evidence import SOURCE, Evidence, kind
from depthprune_study.report.markdown import folded, notebook_link, safe, table
from depthprune_study.report.rules import claims as claims_of

HEAD = ("", "the source says", "its figure", "ours", "verdict")
CHANGED = "\\* The rule or the number of rounds changed after figures were seen"


def claims(evidence: Evidence, *, root: str = "../") -> str:
    """The claims as a table; folded below it, each rule with notes on the number."""
    judged, ran = judge(evidence), set(evidence.notebooks)
    rows = rows_of(judged, evidence)
    for row, v in zip(rows, judged, strict=True):
        row[-1] = f"**{row[-1]}**"
        row.append(notebook_link(v.notebook, root) if v.notebook in ran else "–")
    matrix = table([*HEAD, "made in"], rows)
    rules_of = "\n".join(f"- **{v.id}** {_told(v)}" for v in judged)
    rules = folded("Each rule, its changes, and notes on the number", rules_of)
    return f"{measured_on(evidence)}\n{matrix}\n{CHANGED}: see below.\n\n{rules}"


def rows_of(judged: Sequence[verdicts.Verdict], evidence: Evidence) -> list[list[str]]:
    """A row a claim, the verdict last; it names a model that is not the one of the answer."""
    rows, lead = [], evidence.model(evidence.lead) if evidence.lead else ""
    for v in judged:
        entry = claims_of()[v.id]
        other = v.figure and v.model != lead and v.word != verdicts.BY_ARITHMETIC
        figure = f"{v.figure} ({v.model})" if other else v.figure or "–"
        mark = " \\*" if entry.changed else ""
        rows.append([v.id, safe(entry.claim) + mark, safe(entry.source), safe(figure), v.word])
    return rows


def measured_on(evidence: Evidence) -> str:
    """On which model, in a sentence above the claims; empty without an answer."""
    if not evidence.lead:
        return ""
    model = evidence.model(evidence.lead)
    own = "" if kind(model) == SOURCE else " (not the source's)"
    return f"Measured on {safe(model)}{own} where a cell names no other.\n"


def _told(v: verdicts.Verdict) -> str:
    entry = claims_of()[v.id]
    parts = {
        "Rule": entry.in_words,
        "Changed": entry.changed.rstrip("."),
        "Notes": "; ".join(v.notes),
    }
    return safe(" ".join(f"{name}: {text}." for name, text in parts.items() if text))
