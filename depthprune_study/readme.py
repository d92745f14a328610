"""The four marked blocks of README.md, filled from the published reports: `python -m depthprune_study.readme`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from depthprune_core.records import write_atomically
from depthprune_study import estimate, places, run
from depthprune_study.evidence import Evidence, read_evidence
from depthprune_study.settings import StudyError

README = places.ROOT / "README.md"
TIMED = ("quick", "ci")


def fill() -> str:
    """README.md as it reads with its blocks filled. Raises StudyError where a report or a marker is missing."""
    folder = places.reports("quick")
    if not (folder / "records").exists():
        raise StudyError("the report of study quick is not there: `make study` writes it")
    page = README.read_text(encoding="utf-8")
    page = replace(page, "answer", answer(read_evidence("quick", folder / "records")))
    night = places.reports("smollm2")
    if (night / "report.html").exists():
        page = replace(page, "night", answer(read_evidence("smollm2", night / "records")))
    page = replace(page, "minutes", minutes({study: run.read_costs(places.reports(study)) for study in TIMED}))
    return replace(page, "where", estimate.where())


def answer(evidence: Evidence) -> str:
    """The study's answer as a list."""
    return "\n".join(f"- {line}" for line in evidence.answer_lines())


def minutes(costs: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """Seconds of each notebook, one column a study that was timed, each study's sum in minutes, and its peak memory."""
    timed = {study: by_notebook for study, by_notebook in costs.items() if by_notebook}
    if not timed:
        raise StudyError("no report has a costs.json: `make study` writes one")
    rows = [["notebook", *(f"`{study}`" for study in timed)], ["---", *("---:" for _ in timed)]]
    for notebook in run.READS:
        rows.append([notebook, *(_seconds(times[notebook]) if notebook in times else "" for times in timed.values())])
    rows.append(["in all", *(_minutes(times) for times in timed.values())])
    rows.append(
        ["peak memory", *(f"{max(cost['peak_bytes'] for cost in times.values()) / 2**30:.1f} GiB" for times in timed.values())]
    )
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _seconds(cost: Mapping[str, Any]) -> str:
    return f"{run.at_least(cost)}{cost['seconds']:.0f} s"


def _minutes(costs: Mapping[str, Mapping[str, Any]]) -> str:
    return f"{run.at_least(*costs.values())}{sum(cost['seconds'] for cost in costs.values()) / 60:.1f} min"


def replace(page: str, name: str, content: str) -> str:
    """The page with `content` between the markers of that name. Raises StudyError unless each marker is there once."""
    opening, closing = f"<!-- {name} -->", f"<!-- /{name} -->"
    if page.count(opening) != 1 or page.count(closing) != 1 or page.index(opening) > page.index(closing):
        raise StudyError(f"README.md should hold the lines {opening} and {closing} once each, in this order")
    before, rest = page.split(opening)
    return f"{before}{opening}\n{content}\n{closing}{rest.split(closing)[1]}"


def main() -> None:
    """Write README.md anew; what is wrong is told in a sentence."""
    try:
        write_atomically(README, fill())
    except (ValueError, OSError) as error:  # StudyError too, and what a damaged record is told by
        sys.exit(str(error))


if __name__ == "__main__":
    main()
