"""What failed, from verdicts, targets and findings: at most seven lines."""

from __future__ import annotations

from depthprune_core.records import Score
from depthprune_study.report import verdicts
from depthprune_study.report import wording as w
from depthprune_study.report.claims import judge
from depthprune_study.report.evidence import STAND_IN, Evidence, kind
from depthprune_study.report.rules import targets
from depthprune_study.results import statistics

MOST = 7


def lines(evidence: Evidence) -> list[str]:
    """Missed targets, claims that fail or are open, findings against the recipe, limits."""
    judged = judge(evidence)
    bullets = [f"This study's target: {line}" for line in missed(evidence)][:2]
    for word, which in ((verdicts.FAILS, "fail"), (verdicts.OPEN, "are open")):
        named = [f"{v.id} ({v.figure}, on {v.model})" for v in judged if v.word == word]
        bullets += [f"Claims that {which}: {'; '.join(named)}."] if named else []
    against = [
        f"{told.finding.title} (notebook {told.notebook[:2]})"
        for told in evidence.told
        if told.finding.against and kind(evidence.model(told.notebook)) != STAND_IN
    ]
    bullets += [f"Findings against the recipe: {'; '.join(against)}."] if against else []
    stopped = diverged(evidence)
    bullets += [f"Stopped because they diverged: {w.listed(stopped)}."] if stopped else []
    return [*bullets[: MOST - 1], limits(evidence)] if evidence.lead else []


def missed(evidence: Evidence) -> list[str]:
    """Targets of params/claims.yaml that this study tried and did not reach."""
    bullets = []
    for target in targets():
        score, tokens = _healed(evidence, target["fewer"])
        if score is None or evidence.model("08_limits") != target["model"]:
            continue
        value = statistics.ppl_ratio(score, evidence.record("08_limits", "depth")["whole"])
        found = w.side(value, target["threshold"])
        if found != w.BELOW:
            how = "is not reached" if found == w.ABOVE else "is not shown to be reached"
            bullets.append(
                f"at most {target['threshold']} with {target['fewer']} layers fewer {how} with"
                f" {tokens:,} of the {target['tokens']:,} tokens allowed: {w.paired(value)}."
            )
    return bullets


def _healed(evidence: Evidence, fewer: int) -> tuple[Score | None, int]:
    """The student with this many layers fewer that was healed on most articles; its tokens."""
    given = evidence.parameters("08_limits")
    counts = given.get("drop_counts", [])
    if fewer in counts[:2][-1:]:  # the depth at which the budgets are tried
        budget = w.natural(evidence.get("08_limits", "budget"))
        if longest := [name for name in budget if name.startswith("articles, ")]:
            tokens = int(longest[-1].split()[1])
            return evidence.get("08_limits", "budget")[longest[-1]], tokens
    score = statistics.average(evidence.get("08_limits", "depth"), f"{fewer} fewer, healed")
    return score, given.get("tokens", 0)


def diverged(evidence: Evidence) -> list[str]:
    """Students whose training was stopped, by notebook."""
    names = ("test", "depth", "budget", "after", "healed", "trials", "other")
    return [
        f"{student} (notebook {notebook.split('_')[0]})"
        for notebook in evidence.notebooks
        for name in names
        for student, score in evidence.get(notebook, name).items()
        if isinstance(score, Score) and score.diverged
    ]


def limits(evidence: Evidence) -> str:
    """How small the evidence is."""
    notebook = evidence.lead
    n = len(evidence.record(notebook, "test")["whole"].documents)
    recipe, text = evidence.get(notebook, "recipe"), evidence.parameters(notebook).get("text", "")
    tokens = f", healed on {recipe.tokens:,} tokens" if recipe else ""
    return (
        f"Limits: {evidence.model(notebook)}{tokens} of {text}, judged on"
        f" {w.plural(n, 'test article')}; perplexity and small probes do not cover all abilities"
        " of a model."
    )
