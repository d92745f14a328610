"""Fills the marked blocks of the top README from a report: python -m ...report.readme"""

from __future__ import annotations

import re
from pathlib import Path

from depthprune_study import paths
from depthprune_study.report import matrix, pages, wording
from depthprune_study.report.claims import judge
from depthprune_study.report.evidence import Evidence
from depthprune_study.report.markdown import safe, table

STUDY, SHORT = "overnight", "quick"  # SHORT is shown until STUDY has an answer
NOT_EXECUTED = f"The study `{STUDY}` is not executed yet: no numbers here.\n"
FROM_SHORT = (
    f"*These numbers are from `{SHORT}`, the short study. `{STUDY}` has no answer yet in this"
    " edition.*\n\n"
)
FROM_PART = "*These numbers are from `{}`. Not run in this edition yet: notebook {}.*\n\n"
BLOCKS = ("answer", "claims", "notebooks", "surprises", "minutes")
MOST_SURPRISES = 4


def filled(text: str, root: Path) -> str:
    """The README with new blocks; `root` contains README.md and reports/."""
    published = [Evidence(study, root / "reports" / study) for study in (STUDY, SHORT)]
    evidence = next((one for one in published if one.lead), published[0])
    for block in BLOCKS:
        made = globals()[f"_{block}"](evidence, root)
        pattern = rf"(<!-- {block} -->\n).*?(<!-- /{block} -->)"
        text = re.sub(pattern, lambda m, made=made: f"{m[1]}{made}{m[2]}", text, flags=re.DOTALL)
    return text


def _answer(evidence: Evidence, root: Path) -> str:
    if not evidence.lead:
        return NOT_EXECUTED
    where = f"reports/{evidence.study}/"
    note = FROM_SHORT if evidence.study == SHORT else _missing(evidence)
    more = f"[The whole report]({where}README.md).\n"
    return f"{note}{pages.answer(evidence, root=where)}\n{more}"


def _missing(evidence: Evidence) -> str:
    """A note on the notebooks that left no records; empty if all did."""
    ran = {*evidence.notebooks, "10_report"}  # 10 shows the others' records
    missing = [name[:2] for name in pages.QUESTIONS if name not in ran]
    return FROM_PART.format(evidence.study, wording.listed(missing)) if missing else ""


def _claims(evidence: Evidence, root: Path) -> str:
    if not evidence.lead:
        return NOT_EXECUTED
    made = table(matrix.HEAD, matrix.rows_of(judge(evidence), evidence))
    report = f"[the report](reports/{evidence.study}/README.md#claims)"
    return f"{matrix.measured_on(evidence)}\n{made}\n{matrix.CHANGED}: see {report}.\n"


def _notebooks(evidence: Evidence, root: Path) -> str:
    """One row per notebook: its question, its finding in one line, its Colab badge."""
    start = f"Start with {evidence.lead[:2]}.\n\n" if evidence.lead else ""
    first = {"10_report": "every claim, judged"} if evidence.lead else {}
    for told in sorted(evidence.told, key=lambda told: not told.lead):  # a main finding first
        model, title = evidence.model(told.notebook), told.finding.title
        named = "a stand-in" if model in title else f"{model}, a stand-in"
        whose = f" ({named})" if pages.kind(model) == pages.STAND_IN else ""
        first.setdefault(told.notebook, f"{title}{whose}")
    rows, site = [], f"github/{paths.REPOSITORY}/blob/{paths.BRANCH}"
    for notebook, question in pages.QUESTIONS.items():
        executed = f"reports/{evidence.study}/notebooks/{notebook}.ipynb"
        path = executed if (root / executed).is_file() else f"notebooks/{notebook}.ipynb"
        colab = f"https://colab.research.google.com/{site}/notebooks/{notebook}.ipynb"
        title = safe(first.get(notebook, "–"))
        rows.append([notebook[:2], f"[{question}]({path})", title, f"[![Colab][badge]]({colab})"])
    badge = "[badge]: https://colab.research.google.com/assets/colab-badge.svg\n"
    viewer = (
        "The same on [nbviewer](https://nbviewer.org/github/"
        f"{paths.REPOSITORY}/tree/{paths.BRANCH}/reports/{evidence.study}/notebooks/).\n"
    )
    made = table(["", "question", "what was found", ""], rows)
    return f"{start}{made}\n{viewer if evidence.lead else ''}\n{badge}"


def _surprises(evidence: Evidence, root: Path) -> str:
    """Findings against the recipe or for a simpler method that the answer does not tell."""
    lines = [
        f"- {safe(told.finding.title)} ({told.notebook[:2]}).\n"
        for told in evidence.told
        if told.finding.against
        and (told.notebook, told.name) != (evidence.lead, "control")
        and pages.kind(evidence.model(told.notebook)) != pages.STAND_IN
    ]
    return "".join(lines[:MOST_SURPRISES]) or ("None.\n" if evidence.lead else NOT_EXECUTED)


def _minutes(evidence: Evidence, root: Path) -> str:
    """Measured minutes and memory of the published studies."""
    rows = []
    for study in (SHORT, STUDY):
        costs = Evidence(study, root / "reports" / study).costs.values()
        if costs:
            most = max(cost.get("peak_bytes", 0) for cost in costs) / 2**30
            least = "more than " if any(cost.get("resumed") for cost in costs) else ""
            rows.append([f"`{study}`", pages.total(costs), f"{least}{most:.1f}"])
    head = ["study", "minutes, measured", "memory, GiB"]
    return table(head, rows) if rows else NOT_EXECUTED


def main() -> None:
    """Update README.md."""
    path = paths.home() / "README.md"
    path.write_text(filled(path.read_text(encoding="utf-8"), paths.home()), encoding="utf-8")


if __name__ == "__main__":
    main()
