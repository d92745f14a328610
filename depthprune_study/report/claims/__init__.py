"""The source's claims: how each is measured from the records, and its verdict."""

from __future__ import annotations

from depthprune_study.report import wording as w
from depthprune_study.report.claims import costs, layers, speed
from depthprune_study.report.evidence import REAL, SOURCE, STAND_IN, Evidence, kind, remembered
from depthprune_study.report.rules import claims
from depthprune_study.report.verdicts import BY_ARITHMETIC, MEASURES, NOT_TESTED, Verdict, together

OF_SPEED = ("C3", "C6")


@remembered
def judge(evidence: Evidence) -> list[Verdict]:
    """A verdict for every claim. A stand-in never decides a claim about real weights."""
    return [judge_one(name, evidence) for name in claims()]


def judge_one(name: str, evidence: Evidence) -> Verdict:
    """Readings of the source's models decide; without them, readings of other real weights."""
    notebook, measure = MEASURES[name]
    readings = list(measure(evidence, claims()[name].numbers))
    kinds = {id(r): kind(r.model, speed=name in OF_SPEED) for r in readings}
    tested = [r for r in readings if r.word != NOT_TESTED]
    best = min((kinds[id(r)] for r in tested), default=STAND_IN)
    deciding = [r for r in tested if kinds[id(r)] == best < STAND_IN]
    if any(r.word == BY_ARITHMETIC for r in readings):
        deciding, best = readings, SOURCE
    if not deciding:
        why = ("only stand-ins were measured",) if tested else ()
        return Verdict(name, NOT_TESTED, "", "", notebook, why)
    notes = [f"{r.model}: {r.detail}" if len(deciding) > 1 else r.detail for r in deciding]
    models = list(dict.fromkeys(r.model for r in deciding))
    if best == REAL:
        notes.insert(0, f"{w.listed(models)}: real weights, not the source's model")
    return Verdict(
        name,
        together([r.word for r in deciding]),
        "; ".join(r.figure for r in deciding),
        w.listed(models),
        deciding[0].notebook,
        tuple(filter(None, notes)),
    )
