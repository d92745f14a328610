"""Records -> the figures of the report's page, section by section, with their captions and tables, as escaped HTML."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from depthprune_core import figures, intervals
from depthprune_core.intervals import Interval
from depthprune_core.records import Curve, Timing
from depthprune_study import tables
from depthprune_study.claims import SHAPES
from depthprune_study.evidence import CONTROL, Evidence
from depthprune_study.story import figure_html

OFF_THE_CHART = 2.0  # PPL ratio above which an arm would squeeze all others of a frontier together


def frontier_figures(evidence: Evidence) -> list[str]:
    """What is kept against decode speed, and against bytes."""
    return [_quality_against_speed(evidence), _quality_against_size(evidence)]


def _quality_against_speed(evidence: Evidence) -> str:
    """What the headline model's cuts lose against how many times faster they decode."""
    timed = "02_prune_gpt2" if evidence.first_leads else evidence.lead
    points: dict[str, tuple[Interval, Interval]] = {}
    for notebook, arms, fewer in (
        (evidence.lead, ("unrecovered", "recovered"), evidence.lead_fewer),
        (evidence.staging, ("one_shot", "staged"), evidence.lead_fewer + 1),
    ):
        if evidence.has(timed, f"timing-{fewer}"):
            gain = evidence.decode_gain(timed, fewer)
            points |= {f"{arm} ({fewer} fewer)": (gain, evidence.ratio(notebook, arm)) for arm in arms}
    if evidence.first_leads and evidence.has("03b_controls", "timing-width"):
        gain = intervals.decode_gain(evidence.record("03b_controls", "timing-width"))
        points["width (as small)"] = (gain, evidence.ratio("03b_controls", "width"))
    if not points:
        return ""
    alt = "; ".join(f"{name}: {gain.point:.2f} times as fast, PPL ratio {ratio}" for name, (gain, ratio) in points.items())
    gains = {name.partition("(")[2].rstrip(")") or name: gain for name, (gain, _) in points.items()}
    speeds = ", ".join(f"{what} {gain}" for what, gain in gains.items())
    n, rounds = len(evidence.test(evidence.lead)["teacher"].documents), next(iter(gains.values())).n
    caption = (
        f"{evidence.lead_model}: perplexity (n = {n} test articles) against measured decode speed: {speeds} (n = {rounds} rounds; not drawn as "
        "intervals). Rounding to few bits is not timed here: without kernels for it, it saves bytes alone."
    )
    drawn = {name: (gain.point, ratio) for name, (gain, ratio) in points.items()}
    return figure_html(figures.frontier(drawn, xlabel="decode, times as fast as the teacher"), alt, caption)


def _quality_against_size(evidence: Evidence) -> str:
    scores, n_bytes = evidence.test("03b_controls"), evidence.record("03b_controls", "bytes").values
    fewer = {"recovered": evidence.fewer, "one_shot": evidence.fewer + 1, "staged": evidence.fewer + 1}
    points = {
        f"{name} ({fewer[name]} fewer)" if name in fewer else name: (n / n_bytes["teacher"], _to_teacher(scores, name))
        for name, n in n_bytes.items()
        if name in scores and name != "teacher"
    }
    drawn = {name: point for name, point in points.items() if not point[1].point > OFF_THE_CHART}
    left_out = [f"{name}, {x:.2f} of the bytes at {ratio}" for name, (x, ratio) in points.items() if name not in drawn]
    caption = f"{evidence.first_model}: perplexity against size. {_articles(evidence, '03b_controls')}"
    caption += f" Too far up to be drawn: {'; '.join(left_out)}." if left_out else ""
    alt = "; ".join(f"{name}: {x:.2f} of the bytes, PPL ratio {ratio}" for name, (x, ratio) in points.items())
    return figure_html(figures.frontier(drawn, xlabel="bytes of weights, relative to the teacher at 16 bits"), alt, caption)


def layer_figures(evidence: Evidence) -> list[str]:
    """Profiles of both families."""
    families = [
        (evidence.first_model, evidence.record("01_sensitivity", "profile"), evidence.cut("03_recovery")),
        (evidence.second_model, evidence.record("04_transfer_tinyllama", "profile"), evidence.cut("04_transfer_tinyllama")),
    ]
    return [
        figure_html(
            figures.profile_bars(profile, dropped=plan.dropped),
            f"Rise in NLL when one layer of {model} is dropped: {_per_layer(profile.drop_one)}",
            f"{model}: what each layer is worth. The marked layers go. {_n(profile)}",
        )
        for model, profile, plan in (families if evidence.first_leads else reversed(families))
    ]


def recovery_figures(evidence: Evidence) -> list[str]:
    """Curves, losses and controls, and every arm beside both teachers."""
    shown = ("unrecovered", "refitted", "recovered", "mixed", "ce", CONTROL, "teacher + same text (mixed)")
    scored = evidence.test("03_recovery")
    controls = {name: evidence.ratio("03_recovery", name) for name in shown if name in scored}
    validation = evidence.record(evidence.lead, "validation_scores")["teacher"]
    drawn = {"control": CONTROL}  # as notebook 04 calls it
    curves = {drawn.get(name, name): curve for name, curve in evidence.record(evidence.lead, "curves").items()}
    curves = {name: curves[name] for name in ("recovered", "one_shot", "mixed", "ce", CONTROL) if name in curves}
    refit = evidence.record("03_recovery", "recipe").values["recipe"].get("refit_tokens", 0)
    begins = f" The recovered one begins below its cut, since it was refitted on {refit:,} tokens before." if refit else ""
    model, at_end = evidence.lead_model, evidence.ratio(evidence.lead, "recovered")
    return [
        figure_html(
            figures.curves(curves, teacher_nll_nats=validation.mean_nll_nats),
            "Validation perplexity over the whole model's at the end of recovery: "
            + "; ".join(f"{name} {_end(curve, validation.mean_nll_nats)}" for name, curve in curves.items()),
            f"{model}: recovery as it went, on n = {len(validation.documents)} validation articles, one seed.{begins} On the test articles, which are "
            f"others, the recovered one ends at {at_end} (n = {at_end.n}).",
        ),
        figure_html(
            figures.controls(controls, title="Losses and their controls"),
            _as_text(controls),
            f"{evidence.first_model}: losses and controls on the test articles. {_articles(evidence, '03_recovery')}",
        ),
        tables.both_teachers_table(evidence),
    ]


def control_figures(evidence: Evidence) -> list[str]:
    """Width against depth; stages and plainer training; the same arms on another kind of text, in KL and in tasks."""
    scores = evidence.test("03b_controls") | evidence.record("03b_controls", "timed_test_scores")
    model, depth, width = evidence.first_model, f"recovered ({evidence.fewer} fewer)", "width (narrower MLPs)"
    before = {depth: _to_teacher(scores, "unrecovered"), width: _to_teacher(scores, "width, unrecovered")}
    after = {depth: _to_teacher(scores, "recovered"), width: _to_teacher(scores, "width")}
    gap_before = intervals.nll_rise(scores["unrecovered"], scores["width, unrecovered"])
    gap_after = intervals.nll_rise(scores["recovered"], scores["width"])
    apart = ("teacher", "width", "width, unrecovered", "quantised")
    rest = {name: _to_teacher(scores, name) for name in scores if not name.startswith(apart) or name == CONTROL}
    away = evidence.elsewhere()
    far = {name: _to_teacher(away, name) for name in away if name != "teacher"}
    elsewhere = evidence.parameter("03b_controls", "elsewhere")
    return [
        figure_html(
            figures.arms(before, after=after, title="As small either way: fewer layers, or narrower MLPs"),
            f"Before recovery: {_as_text(before)}. After it: {_as_text(after)}",
            f"{model}: fewer layers minus narrower MLPs is {gap_before} nats per token before recovery (C13) and {gap_after} after it (C11). "
            f"{_articles(evidence, '03b_controls')}",
        ),
        figure_html(
            figures.arms(rest, title="The recipe, one layer more, and plainer training"),
            _as_text(rest),
            f"{model}: one layer more at once and in stages, and training on the text itself. {_articles(evidence, '03b_controls')}",
        ),
        figure_html(
            figures.arms(far, title=f"The same arms on {elsewhere}"),
            _as_text(far),
            f"{model} on {elsewhere}, which no run was trained on or chosen by. n = {len(away['teacher'].documents)} documents.",
        ),
        tables.divergence_table(evidence),
        tables.tasks_table(evidence),
    ]


def choice_figures(evidence: Evidence) -> list[str]:
    """The rules before and after the same recovery; sets of layers before and after."""
    before, after = evidence.test("02_prune_gpt2"), evidence.test("03c_choice")
    size, whole = f"-{evidence.fewer}", before["teacher"]
    rules = [name.removesuffix(size) for name in before if name.endswith(size)]
    hollow = {name: intervals.ppl_ratio(before[f"{name}{size}"], whole) for name in rules}
    filled = {name: intervals.ppl_ratio(after[name], whole) for name in rules}
    facts = evidence.record("03c_choice", "sets").values
    costs = {name: tuple(pair) for name, pair in facts["costs"].items()}
    n_tokens, n_short = evidence.parameter("03c_choice", "arm_tokens"), evidence.parameter("03c_choice", "set_tokens")
    n_before = len(evidence.record("01_sensitivity", "profile").teacher.documents)
    n_after = len(evidence.record("03_recovery", "validation_scores")["teacher"].documents)
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
            f"{evidence.first_model}: {len(costs)} sets of layers, before recovery on n = {n_before} calibration articles, after it on n = {n_after} "
            f"validation articles, mean of {len(facts['seeds'])} recoveries of {n_short:,} tokens each.",
        ),
    ]


def speed_figures(evidence: Evidence) -> list[str]:
    """Measured gains with both expectations: one figure a family, and one of the published shapes where they were timed."""
    shown = []
    families = [("04_transfer_tinyllama", evidence.second_model), ("02_prune_gpt2", evidence.first_model)]
    for notebook, model in reversed(families) if evidence.first_leads else families:
        depths = [k for k in (evidence.fewer, evidence.fewer + 1) if evidence.has(notebook, f"timing-{k}")]
        shown.append(_speed_figure(model, {f"{k} fewer": evidence.record(notebook, f"timing-{k}") for k in depths}))
    shapes = {}
    for name in (name for name in SHAPES if evidence.has("02_prune_gpt2", f"timing-{name}")):
        timings = evidence.record("02_prune_gpt2", f"timing-{name}")
        shapes |= {f"{name}, {depth} layers": timings[depth] for depth in sorted(timings, key=int, reverse=True)}
    if shapes:
        shown.append(_speed_figure("The source's own shapes with random weights", shapes))
    return shown


def _speed_figure(model: str, timings: dict[str, Timing]) -> str:
    one = next(iter(timings.values()))
    caches = "; ".join(
        f"{name}: {t.teacher_kv_bytes_per_token:,} to {t.student_kv_bytes_per_token:,}" for name, t in timings.items()
    )
    caption = (
        f"{model} on {one.device}, {one.dtype}, {one.n_threads} threads, batch {one.batch_size}, {one.context} tokens of context, "
        f"n = {len(one.student_decode_ms_per_token)} rounds. Bar: what the layer count lets expect of decode; diamond: what the bytes of weights do. "
        f"KV cache, bytes a token: {caches}."
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
    caption = f"{model}: {alt}; n = {noise.n} articles. All seeds draw their windows from one pool of recovery articles."
    return [figure_html(figure, alt, caption)]


def detail_figures(evidence: Evidence) -> list[str]:
    """What the ratios are ratios to, pairs, cheaper criteria, the sweep, and every rule before recovery."""
    scores, size = evidence.test("02_prune_gpt2"), f"-{evidence.fewer}"
    of_rules = {name.removesuffix(size): score for name, score in scores.items() if name.endswith(size)}
    whole = evidence.record("03_recovery", "validation_scores")["teacher"]
    tried, choices = evidence.record("03_recovery", "sweep"), evidence.record("03_recovery", "recipe").values
    trials = {name: intervals.ppl_ratio(tried[name], whole) for name in choices["trials"]}
    model, profile = evidence.first_model, evidence.record("01_sensitivity", "profile")
    return [
        tables.scored_table(evidence),
        _pairs(evidence),
        figure_html(
            figures.criteria_agreement(evidence.record("01_sensitivity", "criteria").values["spearman"]),
            "Spearman correlations between the criteria over the layers",
            f"{model}: do cheaper criteria rank the layers as the reference (drop_nll_nats) does? {_n(profile)}",
        ),
        figure_html(
            figures.sweep(trials, n_tokens=choices["pilot_tokens"]),
            _as_text(trials),
            f"{model}: how the recipe was chosen, on n = {len(whole.documents)} validation articles. Filled: the level that was kept.",
        )
        + tables.sweep_table(evidence),
        tables.rules_table(of_rules, _cuts(evidence), "before recovery"),
    ]


def _pairs(evidence: Evidence) -> str:
    """Every pair of layers; nothing where they were not measured."""
    if not evidence.has("01_sensitivity", "pairs"):
        return ""
    pairs, plan = evidence.record("01_sensitivity", "pairs"), evidence.cut("03_recovery")
    worst = max(pairs.pair, key=lambda key: pairs.interaction(*map(int, key.split(","))))
    return figure_html(
        figures.pair_heatmap(pairs, chosen=plan.dropped),
        f"Cost of every pair of layers; the pair {worst} costs most above the sum of its two single costs",
        f"{evidence.first_model}: every pair, and how far it differs from the sum of its two layers. Outlined: the cut. "
        f"{_n(evidence.record('01_sensitivity', 'profile'))}",
    )


def _cuts(evidence: Evidence) -> dict[str, str]:
    """Rule -> the layers that it drops, in words."""
    size, plans = f"-{evidence.fewer}", evidence.record("02_prune_gpt2", "plans")
    return {name.removesuffix(size): " + ".join(map(str, plan.dropped)) for name, plan in plans.items() if name.endswith(size)}


def _to_teacher(scores: dict[str, Any], name: str) -> Interval:
    return intervals.ppl_ratio(scores[name], scores["teacher"])


def _end(curve: Curve, teacher_nll_nats: float) -> str:
    """Where a run ended on validation, in words."""
    if curve.recipe.get("diverged"):
        return "diverged"
    if not curve.validation_nll_nats:
        return "was not watched"
    return f"{math.exp(min(700, curve.validation_nll_nats[-1] - teacher_nll_nats)):.3f}"


def _per_layer(values: Sequence[float]) -> str:
    return ", ".join(f"{layer}: {value:.3f}" for layer, value in enumerate(values))


def _as_text(ratios: dict[str, Interval]) -> str:
    return "PPL ratio to the whole model: " + "; ".join(f"{name} {ratio}" for name, ratio in ratios.items())


def _n(profile: Any) -> str:
    return f"n = {len(profile.teacher.documents)} calibration articles, {sum(profile.teacher.n_tokens):,} tokens."


def _articles(evidence: Evidence, notebook: str) -> str:
    return f"n = {len(evidence.test(notebook)['teacher'].documents)} articles."
