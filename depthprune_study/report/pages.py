"""The report's sections as Markdown, made only from records. `root`: path to the report."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from depthprune_core.records import Curve, Size
from depthprune_study.report import failing, matrix, verdicts
from depthprune_study.report import findings as of
from depthprune_study.report import wording as w
from depthprune_study.report.claims import judge
from depthprune_study.report.evidence import STAND_IN, Evidence, Told, kind
from depthprune_study.report.markdown import anchor, folded, notebook_link, safe, table
from depthprune_study.results import statistics

UNFINISHED = "**Unfinished: only some notebooks have run.**"
NOT_RUN = "Not run in this study.\n"
FINDING = "<!-- finding -->"  # marks the beginning of a finding for the HTML page
QUESTIONS = {
    "01_sensitivity": "What is each layer worth?",
    "02_prune": "Which layers go, and what is saved?",
    "03_recovery": "How much comes back?",
    "04_transfer": "Does the recipe carry over?",
    "05_seed_stability": "Is it luck?",
    "06_controls": "Is it the depth?",
    "07_choice": "Does the choice survive healing?",
    "08_limits": "How far can it go?",
    "09_recipe": "Why this recipe?",
    "10_report": "What holds?",
}


# ---------------------------------------------------------------- pieces


def answer(evidence: Evidence, *, root: str = "../") -> str:
    """The study's answer: the headline cut, the matched control, speed, the claims tally."""
    lead = evidence.lead
    if not lead:
        return NOT_RUN
    found = answers(evidence)
    lines = [f"**{safe(one.title)}.** {safe(one.text)}" for one in found]
    image = _image(evidence, lead, "path", found[0].title, root)
    return "\n\n".join([*lines, f"**{safe(verdicts.tally(judge(evidence)))}**", image])


def answer_lines(evidence: Evidence) -> list[str]:
    """The answer as plain text with the claims tally last; for the terminal and the index."""
    lines = [f"{one.title}. {one.text}" for one in answers(evidence)]
    return [*lines, verdicts.tally(judge(evidence))]


def answers(evidence: Evidence) -> list[w.Finding]:
    """The findings that are the answer: the headline cut, the matched control, speed."""
    lead, model = evidence.lead, evidence.model(evidence.lead)
    found = [t.finding for name in ("path", "control") for t in _found(evidence, lead, name)]
    plan = evidence.get(lead, "plan") or evidence.get(lead, "plans").get("main")
    about = ""
    if kind(model) == STAND_IN:
        about = f"{model} is a stand-in: it only shows that the pipeline runs. "
    if plan:
        about += f"{model} loses layers {w.listed(plan.dropped)} of {plan.n_layers}"
        about += _share(evidence.get(lead, "sizes"), len(plan.dropped))
        about += f"{_treatment(evidence.get(lead, 'curves').get('healed'))}. "
    found[0] = replace(found[0], text=about + found[0].text)
    for notebook in (lead, "02_prune"):
        timing = evidence.get(notebook, "timing")
        if timing and evidence.model(notebook) == model:
            name = next(name for name in w.natural(timing) if not name.startswith("0 "))
            speed = of.speed({name: timing[name]})
            more = " C3 and C6 are about the source's shapes."
            shapes = evidence.get("02_prune", "shape_timing")
            return [*found, replace(speed, text=speed.text + more) if shapes else speed]
    return found


def _treatment(healed: Curve | None) -> str:
    """The tokens of the refit and of healing, to go on a sentence; empty without a curve."""
    if healed is None:
        return ""
    healing = f"healed on {healed.tokens[-1]:,}"
    fitted = healed.recipe.refit_tokens
    if not fitted:
        return f", and is {healing} tokens"
    return f", is refitted on {fitted:,} tokens and {healing} others"


def _share(sizes: Mapping[str, Size], k: int) -> str:
    """The share of the parameters in k layers, in parentheses; empty if it was not recorded."""
    if not {"0 fewer", f"{k} fewer"} <= set(sizes):
        return ""
    return f" ({w.percent(statistics.share_removed(sizes, k))} of its parameters)"


def _found(evidence: Evidence, notebook: str, name: str) -> list[Told]:
    """The finding of this name, if the notebook told it."""
    return [told for told in evidence.told if told[:2] == (notebook, name)]


def findings(evidence: Evidence, *, root: str = "../") -> str:
    """The main findings with their figures, by the notebooks' questions; the others are folded."""
    entries, parts = evidence.told, []
    for notebook, question in QUESTIONS.items():
        of_it = [told for told in entries if told.notebook == notebook]
        if not of_it:
            continue
        model, link = safe(evidence.model(notebook)), notebook_link(notebook, root)
        parts.append(f"### {question}\n\n*{model}*, notebook {link}\n")
        if notebook == evidence.lead:  # the answer shows these
            of_it = [told for told in of_it if told.name not in ("path", "control")]
        for _, figure, finding, _ in (told for told in of_it if told.lead):
            image = _image(evidence, notebook, figure, finding.title, root)
            title = "" if image else f"**{safe(finding.title)}.** "  # a figure shows its title
            parts.append(f"{FINDING}\n\n{image}{title}{safe(finding.text)}\n")
        if more := [told.finding for told in of_it if not told.lead]:
            lines = "\n".join(f"- **{safe(f.title)}.** {safe(f.text)}" for f in more)
            parts.append(folded("More of this notebook", lines))
    missing = [n for n in QUESTIONS if n not in evidence.notebooks and n != "10_report"]
    if missing:
        parts.append(f"Not run in this study: {w.listed(n.split('_')[0] for n in missing)}.\n")
    return "\n".join(parts)


def failures(evidence: Evidence, *, root: str = "../") -> str:
    """What failed, in at most seven bullets."""
    lines = failing.lines(evidence)
    return "".join(f"- {safe(line)}\n" for line in lines) or NOT_RUN


def costs(evidence: Evidence, *, root: str = "../") -> str:
    """Minutes and memory of every notebook; folded below, the origin of the records."""
    known = {name: cost for name, cost in evidence.costs.items() if name in QUESTIONS}
    if not known:
        return NOT_RUN
    rows = []
    for notebook, cost in sorted(known.items()):
        n_bytes = cost.get("peak_bytes", 0)
        spent = minutes(cost["seconds"], bool(cost.get("resumed")))
        memory = f"{n_bytes / 2**30:.1f}" if n_bytes else "–"
        rows.append([notebook_link(notebook, root), spent, memory])
    rows.append(["**all**", f"**{total(known.values())}**", ""])
    spent = table(["notebook", "minutes", "memory, GiB"], rows)
    return f"{spent}\n{folded('Where the records come from', _origins(evidence))}"


def total(costs: Collection[Mapping[str, Any]]) -> str:
    """The minutes of these notebooks together."""
    resumed = any(cost.get("resumed") for cost in costs)
    return minutes(sum(cost["seconds"] for cost in costs), resumed)


def minutes(seconds: float, resumed: bool = False) -> str:
    """Minutes as text; of a resumed run, a lower bound."""
    return f"{'more than ' if resumed else ''}{seconds / 60:,.1f}"


def _origins(evidence: Evidence) -> str:
    rows = []
    for notebook in evidence.notebooks:
        stamp = evidence.stamp(notebook)
        if stamp:
            versions = ", ".join(f"{name} {version}" for name, version in stamp.versions.items())
            cells = (
                notebook,
                stamp.commit,
                stamp.code_hash,
                stamp.device,
                stamp.seed,
                versions,
            )
            rows.append([safe(str(item)) for item in cells])
    return table(["notebook", "commit", "code", "device", "seed", "versions"], rows)


# ---------------------------------------------------------------- the whole page


def page(evidence: Evidence, *, unfinished: bool = False) -> str:
    """The report of a study as one Markdown page, for reports/<study>/README.md."""
    parts = {
        "Answer": answer(evidence, root=""),
        "Claims": matrix.claims(evidence, root=""),
        "Findings": findings(evidence, root=""),
        "What failed": failures(evidence, root=""),
        "What it took": costs(evidence, root=""),
    }
    links = " · ".join(f"[{name}](#{anchor(name)})" for name in parts)
    warning = f"{UNFINISHED}\n\n" if unfinished else ""
    how = (
        "A ratio is a model's perplexity divided by the whole model's on the same articles: above"
        " 1 is worse. Brackets are 95 % intervals, from resampling whole articles. *Repair*"
        " compares the healed model with the frozen whole model; *matched* compares the cut model,"
        " refitted and trained on the text, with the whole model trained on the same text.\n"
    )
    body = "\n".join(f"## {name}\n\n{text}" for name, text in parts.items())
    return f"# depthprune, study {safe(evidence.study)}\n\n{links}\n\n{warning}{how}\n{body}"


def _image(evidence: Evidence, notebook: str, figure: str, alt: str, root: str) -> str:
    """A figure of the study as Markdown; empty if it is missing."""
    path = evidence.figure(notebook, figure)
    return f"![{safe(alt)}]({root}figures/{path.name})\n\n" if path else ""
