"""Records -> the pieces of the report's page: sentences, tables, figures, all as escaped HTML."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from typing import Any

from depthprune_core import figures, intervals
from depthprune_core.records import Timing
from depthprune_study import failures, tables
from depthprune_study.claims import SHAPES, Verdict
from depthprune_study.evidence import CONTROL, RANDOM_WEIGHTS, Evidence
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


def claims_html(verdicts: Sequence[Verdict]) -> str:
    """The claims table; the words say what the colours say."""
    head = ["", "claim", "source", "verdict on the source's models", "what the stand-ins show", "notebook"]
    return tables.table(head, [claim_cells(verdict) for verdict in verdicts])


def claim_cells(verdict: Verdict) -> list[str]:
    """A verdict's row of that table."""
    stand_ins = "<br>".join(
        f"<b>{escape(item.model)}</b>: {escape(item.figure)} {_word(item.verdict)}" for item in verdict.stand_ins
    )
    return [
        f"<b>{verdict.id}</b>",
        f"{escape(verdict.claim)}<br><small>rule: {escape(verdict.rule)}</small>",
        escape(verdict.source),
        f"{_word(verdict.verdict)} {escape(verdict.figure)}<br><small>{escape(verdict.why)}</small>",
        stand_ins,
        f"<a href='{verdict.notebook}.html'>{verdict.notebook.split('_')[0]}</a>",
    ]


def layer_figures(evidence: Evidence) -> list[str]:
    """Profiles of both families, pairs, agreement of the criteria."""
    families = [
        (evidence.first_model, evidence.record("01_sensitivity", "profile"), evidence.cut("03_recovery")),
        (evidence.second_model, evidence.record("04_transfer_tinyllama", "profile"), evidence.cut("04_transfer_tinyllama")),
    ]
    shown = [
        figure_html(
            figures.profile_bars(profile, dropped=plan.dropped),
            f"Rise in NLL when one layer of {model} is dropped: {_per_layer(profile.drop_one)}",
            f"{model}: what each layer is worth. The marked layers go. {_n(profile)}",
        )
        for model, profile, plan in (families if evidence.first_leads else reversed(families))
    ]
    if evidence.has("01_sensitivity", "pairs"):
        pairs = evidence.record("01_sensitivity", "pairs")
        worst = max(pairs.pair, key=lambda key: pairs.interaction(*map(int, key.split(","))))
        shown.append(
            figure_html(
                figures.pair_heatmap(pairs),
                f"Cost of every pair of layers; the pair {worst} costs most above the sum of its two single costs",
                f"{evidence.first_model}: every pair, and how far it differs from the sum of its two layers.",
            )
        )
    shown.append(
        figure_html(
            figures.criteria_agreement(evidence.record("01_sensitivity", "criteria").values["spearman"]),
            "Spearman correlations between the criteria over the layers",
            f"{evidence.first_model}: do cheaper criteria rank the layers as the reference (drop_nll_nats) does?",
        )
    )
    return shown


def recovery_figures(evidence: Evidence) -> list[str]:
    """Rules before recovery, the sweep, controls, curves."""
    scores = evidence.test("02_prune_gpt2")
    size = f"-{evidence.fewer}"
    ratios = {
        name.removesuffix(size): intervals.ppl_ratio(s, scores["teacher"]) for name, s in scores.items() if name.endswith(size)
    }
    shown = ("unrecovered", "refitted", "recovered", "mixed", "ce", CONTROL, "teacher + same text (mixed)")
    scored = evidence.test("03_recovery")
    controls = {name: evidence.ratio("03_recovery", name) for name in shown if name in scored}
    validation = evidence.record(evidence.lead, "validation_scores")
    drawn = ("recovered", "one_shot", "mixed", "ce")
    curves = {k: v for k, v in evidence.record(evidence.lead, "curves").items() if k in drawn}
    whole = evidence.record("03_recovery", "validation_scores")["teacher"]
    tried, choices = evidence.record("03_recovery", "sweep"), evidence.record("03_recovery", "recipe").values
    in_order = choices["trials"]
    trials = {name: intervals.ppl_ratio(tried[name], whole) for name in in_order}
    return [
        tables.scored_table(evidence)
        + tables.both_teachers_table(evidence)
        + figure_html(
            figures.curves(curves, teacher_nll_nats=validation["teacher"].mean_nll_nats),
            "Validation perplexity ratio against recovery tokens: "
            + "; ".join(
                f"{name} {'diverged' if c.recipe.get('diverged') else 'ends'} {c.validation_nll_nats[-1] - validation['teacher'].mean_nll_nats:.3f} nats above"
                for name, c in curves.items()
                if c.validation_nll_nats
            ),
            f"{evidence.lead_model}: recovery as it went, on validation.",
        ),
        figure_html(
            figures.controls(controls),
            _as_text(controls),
            f"{evidence.first_model}: losses and controls on the test articles. {_articles(evidence, '03_recovery')}",
        ),
        figure_html(
            figures.sweep(trials, n_tokens=choices["pilot_tokens"]),
            _as_text(trials),
            f"{evidence.first_model}: how the recipe was chosen, on {len(whole.documents)} validation articles. Filled: the level that was kept.",
        )
        + tables.sweep_table(evidence),
        figure_html(
            figures.arms(ratios, title=f"{evidence.fewer} layers fewer, before recovery"),
            _as_text(ratios),
            f"{evidence.first_model}: every rule, {evidence.fewer} layers fewer, before recovery, on the test articles. {_articles(evidence, '02_prune_gpt2')}",
        ),
        tables.rules_table(
            {name.removesuffix(size): s for name, s in scores.items() if name.endswith(size)},
            _cuts(evidence),
            "before recovery",
        ),
    ]


def control_figures(evidence: Evidence) -> list[str]:
    """Width against depth, stages, plainer training, fewer bits; and the same arms on another kind of text."""
    scores = evidence.test("03b_controls") | evidence.record("03b_controls", "timed_test_scores")
    ratios = {name: intervals.ppl_ratio(s, scores["teacher"]) for name, s in scores.items() if name != "teacher"}
    n_bytes = evidence.record("03b_controls", "bytes").values
    points = {name: (n / n_bytes["teacher"], ratios[name]) for name, n in n_bytes.items() if name in ratios}
    away = evidence.elsewhere()
    far = {name: intervals.ppl_ratio(s, away["teacher"]) for name, s in away.items() if name != "teacher"}
    elsewhere = evidence.parameter("03b_controls", "elsewhere")
    model = evidence.first_model
    return [
        figure_html(
            figures.controls(ratios),
            _as_text(ratios),
            f"{model}: as small by narrower MLPs, in stages, by plainer training, by fewer bits. {_articles(evidence, '03b_controls')}",
        ),
        figure_html(
            figures.frontier(points, xlabel="bytes of weights, relative to the teacher at 16 bits"),
            "; ".join(f"{name}: {x:.2f} of the bytes, PPL ratio {ratio}" for name, (x, ratio) in points.items()),
            f"{model}: perplexity against size. {_articles(evidence, '03b_controls')}",
        ),
        figure_html(
            figures.controls(far),
            _as_text(far),
            f"{model} on {elsewhere}, which no run was trained on or chosen by. n = {len(away['teacher'].documents)} documents.",
        ),
        tables.divergence_table(evidence),
        tables.tasks_table(evidence),
    ]


def choice_figures(evidence: Evidence) -> list[str]:
    """The rules before and after the same recovery; sets of layers before and after."""
    before, after = evidence.test("02_prune_gpt2"), evidence.test("03c_choice")
    size = f"-{evidence.fewer}"
    rules = [name.removesuffix(size) for name in before if name.endswith(size)]
    whole = before["teacher"]
    hollow = {name: intervals.ppl_ratio(before[f"{name}{size}"], whole) for name in rules}
    filled = {name: intervals.ppl_ratio(after[name], whole) for name in rules}
    facts = evidence.record("03c_choice", "sets").values
    costs = {name: tuple(pair) for name, pair in facts["costs"].items()}
    n_tokens = evidence.parameter("03c_choice", "arm_tokens")
    n_short = evidence.parameter("03c_choice", "set_tokens")
    return [
        figure_html(
            figures.arms(hollow, after=filled, title=f"{evidence.fewer} layers fewer, before and after {n_tokens:,} tokens"),
            _as_text(filled),
            f"{evidence.first_model}: every rule before and after the same short recovery. {_articles(evidence, '03c_choice')}",
        ),
        tables.rules_table({name: after[name] for name in rules}, _cuts(evidence), "after the same short recovery"),
        figure_html(
            figures.before_after_scatter(costs, old=facts["old"], new=facts["new"]),
            "; ".join(f"{name}: {x:.3f} before, {y:.3f} after" for name, (x, y) in costs.items()),
            f"{evidence.first_model}: {len(costs)} sets of layers, {len(facts['seeds'])} recoveries of {n_short:,} tokens each.",
        ),
    ]


def _cuts(evidence: Evidence) -> dict[str, str]:
    """Rule -> the layers that it drops, in words."""
    size, plans = f"-{evidence.fewer}", evidence.record("02_prune_gpt2", "plans")
    return {name.removesuffix(size): " + ".join(map(str, plan.dropped)) for name, plan in plans.items() if name.endswith(size)}


def speed_figures(evidence: Evidence) -> list[str]:
    """Measured gains with both expectations: one figure a family, and one of the published shapes where they were timed."""
    shown = []
    families = [("04_transfer_tinyllama", evidence.second_model), ("02_prune_gpt2", evidence.first_model)]
    for notebook, model in reversed(families) if evidence.first_leads else families:
        depths = [k for k in (evidence.fewer, evidence.fewer + 1) if evidence.has(notebook, f"timing-{k}")]
        shown.append(_speed_figure(model, {f"{k} fewer": evidence.record(notebook, f"timing-{k}") for k in depths}))
    shapes = {
        f"{name}, {depth} layers": timing
        for name in SHAPES
        if evidence.has("02_prune_gpt2", f"timing-{name}")
        for depth, timing in evidence.record("02_prune_gpt2", f"timing-{name}").items()
    }
    if shapes:
        shown.append(_speed_figure("The source's own shapes with random weights", shapes))
    return [*shown, _quality_against_speed(evidence)]


def _quality_against_speed(evidence: Evidence) -> str:
    """What the headline model's cuts lose against how many times faster they decode."""
    timed = "02_prune_gpt2" if evidence.first_leads else evidence.lead
    points = {}
    for notebook, arms, fewer in (
        (evidence.lead, ("unrecovered", "recovered"), evidence.lead_fewer),
        (evidence.staging, ("one_shot", "staged"), evidence.lead_fewer + 1),
    ):
        if evidence.has(timed, f"timing-{fewer}"):
            gain = evidence.decode_gain(timed, fewer)
            points |= {arm: (gain.point, evidence.ratio(notebook, arm)) for arm in arms}
    if evidence.first_leads and evidence.has("03b_controls", "timing-width"):
        points["width"] = (
            intervals.decode_gain(evidence.record("03b_controls", "timing-width")).point,
            evidence.ratio("03b_controls", "width"),
        )
    if not points:
        return ""
    ratios = "; ".join(f"{name}: {x:.2f} times as fast, PPL ratio {ratio}" for name, (x, ratio) in points.items())
    n = len(evidence.test(evidence.lead)["teacher"].documents)
    return figure_html(
        figures.frontier(points, xlabel="decode, times as fast as the teacher"),
        ratios,
        f"{evidence.lead_model}: perplexity against measured decode speed; n = {n} test articles. Rounding to few bits is not timed here: without "
        "kernels for it, it saves bytes alone.",
    )


def _speed_figure(model: str, timings: dict[str, Timing]) -> str:
    one = next(iter(timings.values()))
    caption = (
        f"{model} on {one.device}, {one.dtype}, {one.n_threads} threads, batch {one.batch_size}, {one.context} tokens of context, "
        f"{len(one.student_decode_ms_per_token)} rounds; the two marks are the expectations by layer count and by bytes of weights."
    )
    gains = {name: intervals.decode_gain(timing) for name, timing in timings.items()}
    alt = "; ".join(f"{name}: decode {gain}x" for name, gain in gains.items())
    suspect = [name for name, gain in gains.items() if gain.low > timings[name].by_layer_count]
    if suspect:
        caption += f" Suspect: {' and '.join(suspect)} decodes faster than fewer layers alone can explain."
    return figure_html(figures.speed(timings), f"{model}: {alt}", caption)


def seed_figures(evidence: Evidence) -> list[str]:
    """Seeds as points, beside the test set's own noise."""
    ratios = evidence.seed_ratios()
    points, noise = [ratio.point for ratio in ratios], ratios[0]
    over = intervals.over_seeds(points)
    model = evidence.parameter("05_seed_stability", "model")
    figure = figures.seeds({"recovered": points}, {"recovered": over}, noise=noise)
    alt = f"PPL ratios of {len(points)} seeds, mean {over}; bootstrap interval over the test articles {noise}"
    n = ratios[0].n
    return [
        figure_html(
            figure, alt, f"{model}: {alt}; n = {n} articles. All seeds draw their windows from one pool of recovery articles."
        )
    ]


def continuations_html(evidence: Evidence) -> str:
    """What the models say, before and after."""
    facts = evidence.record(evidence.lead, "continuations").values
    rows = []
    for i, prompt in enumerate(facts["prompts"]):
        for name in ("teacher", "unrecovered", "recovered"):
            rows.append([escape(prompt) if name == "teacher" else "", name, escape(facts["samples"][name][i])])
    return f"<p>{escape(evidence.lead_model)}, greedy:</p>" + tables.table(["prompt", "model", "continuation"], rows)


def failures_html(evidence: Evidence, verdicts: Sequence[Verdict]) -> str:
    """What did not hold or did not pay, and the limits of the study."""
    return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in failures.lines(evidence, verdicts)) + "</ul>"


def provenance_html(evidence: Evidence) -> str:
    """Code, versions, device, of every notebook's test scores or profile."""
    rows = []
    for notebook in NOTEBOOKS[:-1]:
        name = "profile" if notebook == "01_sensitivity" else "test_scores"
        stamp = evidence.stamp(notebook, name)
        versions = ", ".join(f"{library} {version}" for library, version in stamp.versions.items())
        told = map(escape, (stamp.commit, stamp.code_hash, stamp.device, versions))
        rows.append([f"<a href='{notebook}.html'>{notebook}</a>", *told])
    return tables.table(["notebook", "commit", "code", "device", "versions"], rows)


def figure_html(figure: Any, alt: str, caption: str = "") -> str:
    """The figure inline, with its alternative text."""
    data = base64.b64encode(figures.png(figure)).decode()
    image = f"<img src='data:image/png;base64,{data}' alt='{escape(alt, quote=True)}'>"
    return f"<figure>{image}<figcaption>{escape(caption)}</figcaption></figure>"


def _word(verdict: str) -> str:
    return f"<span class='verdict {verdict.split(' in ')[0].replace(' ', '-')}'>{escape(verdict)}</span>"


def _per_layer(values: Sequence[float]) -> str:
    return ", ".join(f"{layer}: {value:.3f}" for layer, value in enumerate(values))


def _as_text(ratios: dict[str, intervals.Interval]) -> str:
    return "PPL ratio to the whole model: " + "; ".join(f"{name} {ratio}" for name, ratio in ratios.items())


def _n(profile: Any) -> str:
    return f"{len(profile.teacher.documents)} calibration articles, {sum(profile.teacher.n_tokens):,} tokens."


def _articles(evidence: Evidence, notebook: str) -> str:
    return f"n = {len(evidence.test(notebook)['teacher'].documents)} articles."
