"""Records -> the tables of the report's page, as escaped HTML."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape

from depthprune_core import intervals
from depthprune_core.records import Score
from depthprune_study.evidence import CONTROL, Evidence, before_recovery


def scored_table(evidence: Evidence) -> str:
    """The whole models on the test articles: what every ratio is a ratio to."""
    rows = []
    for model, notebook in ((evidence.first_model, "03_recovery"), (evidence.second_model, "04_transfer_tinyllama")):
        whole, windows = evidence.test(notebook)["teacher"], evidence.parameter(notebook, "seq_len")
        n, tokens = len(whole.documents), evidence.parameter(notebook, "score_tokens")
        worth = intervals.nll_rise(whole, whole).effective_n
        cells = [str(n), f"{worth:.1f}", f"{tokens:,}", f"{windows:,}", f"{whole.ppl:.2f}", f"{whole.bits_per_byte:.3f}"]
        rows.append([escape(model), *cells])
    caption = (
        "<p>The whole models on the test articles, to which every ratio below is one. An article is scored by itself, on its first tokens, in "
        "windows that do not overlap; each begins with BOS, or EOS where a tokenizer has no BOS. What n articles are worth beside as many of "
        "one length is (sum of tokens)^2 / sum of tokens^2:</p>"
    )
    head = ["model", "articles", "worth", "tokens of each, at most", "tokens a window", "perplexity per token", "bits per byte"]
    return caption + table(head, rows)


def both_teachers_table(evidence: Evidence) -> str:
    """Every arm against the whole model, the whole model trained on the same text, and the student before recovery."""
    rows = []
    for model, notebooks in (
        (evidence.first_model, ("03_recovery", "03b_controls")),
        (evidence.second_model, ("04_transfer_tinyllama",)),
    ):
        found: dict[str, tuple[float, list[str]]] = {}
        for notebook in notebooks:
            scores = evidence.test(notebook)
            trained = scores.get(CONTROL, evidence.test(notebooks[0])[CONTROL])
            if evidence.has(notebook, "timed_test_scores"):
                scores = scores | evidence.record(notebook, "timed_test_scores")
            for name, score in scores.items():
                others = (scores["teacher"], trained, before_recovery(name, scores))
                cells = [_beside(score, other) if other is not None and other is not score else "" for other in others]
                if name != "teacher":
                    found.setdefault(name, (intervals.ppl_ratio(score, scores["teacher"]).point, [model, name, *cells]))
        rows += [[escape(cell) for cell in cells] for _, cells in sorted(found.values(), key=lambda row: row[0])]
    n = len(trained.documents)
    caption = (
        "<p>Every arm, three times: its perplexity over that of the whole model as it is (the teacher), over that of the whole model trained on "
        "the same text (its own best rate, CE), and over its own before any recovery, where it was cut. Test articles, "
        f"n = {n}. <b>recovered</b>: distilled from the whole model (KL alone). <b>refitted</b>: the maps before the cuts solved for, nothing "
        "trained; recovery begins there, if the recipe says so. <b>ce</b>: the same cut trained on the text itself; <b>mixed</b>: on both; "
        "<b>lora</b>: by adapters alone. <b>(timed)</b>: for as long as the recovered one took, not on as many tokens; it saw more text than the "
        "trained whole model. <b>one_shot</b>, <b>staged</b>: one layer more, at once or in two stages. <b>width</b>: all layers, narrower MLPs, "
        "as small as the cut model. <b>quantised</b>: the whole model, rounded.</p>"
    )
    return caption + table(["model", "arm", "to the frozen one", "to the trained one", "to its own before recovery"], rows)


def _beside(score: Score, other: Score) -> str:
    """Their PPL ratio, where notebooks have scored the same tokens."""
    same = (score.documents, score.n_tokens) == (other.documents, other.n_tokens)
    return str(intervals.ppl_ratio(score, other)) if same else "scored on other tokens"


def divergence_table(evidence: Evidence) -> str:
    """How far recovered students are from the whole model itself; nothing where that was not measured."""
    rows = {}
    for notebook in ("03_recovery", "03b_controls"):
        found = evidence.record(notebook, "divergences") if evidence.has(notebook, "divergences") else {}
        for name, value in found.items():
            kl = intervals.mean_per_token(value.kl_nats, value.n_tokens)
            cells = [escape(name), str(kl), f"{value.agreement:.1%}", str(len(value.documents))]
            rows.setdefault(name, (value.mean_kl_nats, cells))
    if not rows:
        return ""
    caption = (
        f"<p>{escape(evidence.first_model)}: how far each student is from the whole model itself, whatever its perplexity. KL of its predictions from "
        "the whole model's, nats per token, and how often both have the same first choice. Validation articles:</p>"
    )
    return caption + table(["arm", "KL", "same first choice", "n"], [cells for _, cells in sorted(rows.values())])


def sweep_table(evidence: Evidence) -> str:
    """What each level of each factor brought, on the same articles as the level that was kept."""
    tried = evidence.record("03_recovery", "sweep")
    whole = evidence.record("03_recovery", "validation_scores")["teacher"]
    recipe = evidence.record("03_recovery", "recipe").values
    factors: dict[str, dict[str, Score]] = {}
    for name in recipe["trials"]:
        factor, level = name.split(": ", 1)
        factors.setdefault(factor, {})[level] = tried[name]
    rows = []
    for factor, levels in factors.items():
        kept = min((level for level in levels if not levels[level].diverged), key=lambda level: levels[level].mean_nll_nats)
        for level, score in levels.items():
            beside = "kept" if level == kept else str(intervals.ppl_ratio(score, levels[kept]))
            rows.append([escape(cell) for cell in (factor, level, str(intervals.ppl_ratio(score, whole)), beside)])
    has_text = evidence.has("03_recovery", "trials_with_text")
    with_text = evidence.record("03_recovery", "trials_with_text") if has_text else {}
    rows += [["with the text itself", escape(name), str(intervals.ppl_ratio(s, whole)), ""] for name, s in with_text.items()]
    caption = (
        f"<p>{escape(evidence.first_model)}: every trial of the recipe ({recipe['pilot_tokens']:,} tokens; of rates and with the text itself "
        f"{recipe['rate_tokens']:,}), n = {len(whole.documents)} validation articles. Beside each level its perplexity over that of the level kept; "
        "where that interval holds 1, the two cannot be told apart:</p>"
    )
    return caption + table(["factor", "level", "to the whole model", "to the level kept"], rows)


def tasks_table(evidence: Evidence) -> str:
    """Zero-shot accuracy of each arm; nothing where no task was asked."""
    if not evidence.has("03b_controls", "zero_shot"):
        return ""
    told = evidence.record("03b_controls", "zero_shot")
    arms = {name: name.split(": ")[0] for name in told}
    p = {name: intervals.mcnemar(a, told[f"teacher: {a.task}"]) for name, a in told.items() if arms[name] != "teacher"}
    adjusted = intervals.holm(p)
    rows = []
    for name, answers in sorted(told.items(), key=lambda item: arms[item[0]] != "teacher"):
        others = arms[name] not in ("teacher", "unrecovered")
        healed = f"{intervals.mcnemar(answers, told[f'unrecovered: {answers.task}']):.3f}" if others else ""
        against = f"{adjusted[name]:.3f}" if name in p else ""
        cells = [arms[name], answers.task, str(intervals.proportion(answers)), str(len(answers.right)), against, healed]
        rows.append([escape(cell) for cell in cells])
    caption = (
        f"<p>{escape(evidence.first_model)}: share of items that are right, with Wilson's interval. p by McNemar's test: against the whole model "
        "(Holm-corrected over this table), and against the unrecovered student (not corrected). Items of one article count as independent here, which they are "
        "not quite. Two tasks are made of the test articles: depthprune_cloze asks for the last word of a passage, depthprune_choice which of "
        "four continuations is the true one (by chance, a quarter):</p>"
    )
    return caption + table(["arm", "task", "right", "n", "p, whole model", "p, unrecovered, uncorrected"], rows)


def rules_table(scores: Mapping[str, Score], cuts: Mapping[str, str], when: str) -> str:
    """Each rule against the least sensitive one, with Holm's correction over the rules. cuts: the layers that each one drops."""
    reference = scores["least_sensitive"]
    distinct = {
        s.nll_nats: s for s in scores.values() if s.nll_nats != reference.nll_nats
    }  # rules that pick the same layers are one test
    p = {
        nll: intervals.bootstrap_p([a - b for a, b in zip(nll, reference.nll_nats, strict=True)], s.n_tokens)
        for nll, s in distinct.items()
    }
    adjusted = intervals.holm(p)
    alike: dict[tuple[float, ...], list[str]] = {}
    for name, s in sorted(scores.items(), key=lambda item: item[1].mean_nll_nats):
        alike.setdefault(s.nll_nats, []).append(name)
    least = 2 / (intervals.RESAMPLES + 1)  # what the bootstrap can give
    rows = []
    for nll, names in alike.items():
        difference, told = "-", ""
        if nll in distinct:
            difference = str(intervals.nll_rise(distinct[nll], reference))
            told = f"{'at most ' if p[nll] <= least else ''}{adjusted[nll]:.2g}"
        rows.append([escape(", ".join(names)), cuts.get(names[0], ""), difference, told])
    caption = (
        f"<p>Each rule minus least_sensitive, nats per token, {when} (n = {len(reference.documents)} articles; p by bootstrap, Holm-corrected over "
        "the sets of layers; rules that drop the same layers stand in one row):</p>"
    )
    return caption + table(["rule", "drops", "difference", "p"], rows)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """An HTML table. Cells are HTML already: escape what comes from data."""
    top = "".join(f"<th scope='col'>{cell}</th>" for cell in head)
    body = "".join(f"<tr>{table_row(row)}</tr>" for row in rows)
    return f"<div class='wide'><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"


def table_row(cells: Iterable[str]) -> str:
    return "".join(f"<td>{cell}</td>" for cell in cells)
