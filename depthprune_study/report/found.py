"""Every finding of a study with the figure that shows it, in the order of the notebooks."""

from __future__ import annotations

from collections.abc import Callable

from depthprune_study.report import findings
from depthprune_study.report.evidence import Evidence, called, remembered
from depthprune_study.report.wording import Finding
from depthprune_study.results import statistics

Entry = tuple[str, str, Finding]  # notebook, figure, what was found


@remembered
def found(evidence: Evidence) -> list[Entry]:
    """The findings of the study's records; figures that were not run are left out."""
    made = [(notebook, figure, make(evidence, notebook)) for notebook, figure, make in TABLE]
    return [entry for entry in made if entry[2]]


def _of(make: Callable[..., Finding], *names: str) -> Callable[[Evidence, str], Finding | None]:
    """A finding made from these records of a notebook; None if one is missing."""

    def made(evidence: Evidence, notebook: str) -> Finding | None:
        records = [evidence.get(notebook, name) for name in names]
        return make(*records) if all(records) else None

    return made


def _rules(evidence: Evidence, notebook: str) -> Finding | None:
    scores = evidence.get(notebook, "validation")
    return findings.rules(scores, 2) if any(name.endswith("-2") for name in scores) else None


def _elsewhere(evidence: Evidence, notebook: str) -> Finding | None:
    scores = evidence.get(notebook, "elsewhere")
    text = str(evidence.parameters(notebook).get("elsewhere", "")) or "another text"
    return findings.elsewhere(scores, text) if scores else None


def _transfer(evidence: Evidence, notebook: str) -> Finding | None:
    scores, first = evidence.get(notebook, "test"), evidence.get("03_recovery", "test")
    models = called(evidence.model("03_recovery")), called(evidence.model(notebook))
    return findings.transfer(scores, first, models=models) if scores and first else None


def _seeds(evidence: Evidence, notebook: str) -> Finding | None:
    second = str(evidence.parameters(notebook).get("other_model", ""))
    runs = {
        evidence.model(notebook): evidence.get(notebook, "test"),
        second: evidence.get(notebook, "other"),
    }
    runs = {model: scores for model, scores in runs.items() if scores}
    return findings.seeds(runs) if runs else None


def _choice(evidence: Evidence, notebook: str) -> Finding | None:
    before, after = (evidence.get(notebook, name) for name in ("before", "after"))
    if not after:
        return None
    cheap = evidence.parameters(notebook)["cheap_layers"]
    tail = statistics.cheap_pairs(len(before) - 1, cheap)
    return findings.choice(before, after, tail=tail)


TABLE: tuple[tuple[str, str, Callable[[Evidence, str], Finding | None]], ...] = (
    ("01_sensitivity", "profile", _of(findings.profile, "profile")),
    ("01_sensitivity", "criteria", _of(findings.criteria, "profile")),
    ("01_sensitivity", "pairs", _of(findings.pairs, "pairs")),
    ("02_prune", "rules-2", _rules),
    ("02_prune", "speed", _of(findings.speed, "timing")),
    ("02_prune", "speed-shapes", _of(findings.speed, "shape_timing")),
    ("03_recovery", "path", _of(findings.path, "test")),
    ("03_recovery", "control", _of(findings.control, "test")),
    ("03_recovery", "elsewhere", _elsewhere),
    ("03_recovery", "divergences", _of(findings.divergences, "divergences")),
    ("03_recovery", "probes", _of(findings.probes, "probes")),
    ("04_transfer", "path", _transfer),
    ("04_transfer", "control", _of(findings.control, "test")),
    ("04_transfer", "staged", _of(findings.staged, "test")),
    ("05_seed_stability", "seeds", _seeds),
    ("06_controls", "width", _of(findings.width, "test")),
    ("06_controls", "bytes", _of(findings.rounding, "test", "bytes")),
    ("06_controls", "adapters", _of(findings.adapters, "test")),
    ("06_controls", "rivals", _of(findings.rivals, "rivals")),
    ("07_choice", "choice", _choice),
    ("07_choice", "winners", _of(findings.winner, "before", "after", "healed")),
    ("08_limits", "depth", _of(findings.depth, "depth", "sizes")),
    ("08_limits", "budget", _of(findings.budget, "budget")),
    ("08_limits", "probes", _of(findings.probes, "probes")),
    ("09_recipe", "factors", _of(findings.recipe, "trials", "kept")),
)
MINOR = {  # folded in the report; the notebooks show them
    ("01_sensitivity", "pairs"),
    ("02_prune", "speed-shapes"),
    ("03_recovery", "divergences"),
    ("06_controls", "adapters"),
    ("08_limits", "probes"),
}
