"""Findings about other repairs, fewer bits, deeper cuts, more tokens, and the recipe."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping

from depthprune_core.records import Divergence, Facts, Plan, Recipe, Score, Size
from depthprune_study.report import wording as w
from depthprune_study.report.wording import Finding
from depthprune_study.results import statistics

CHEAP = 1.1  # largest perplexity ratio at which a cut is called cheap


def rivals(scores: Mapping[str, Score], plans: Mapping[str, Plan]) -> Finding:
    """Our refit against training-free rivals, at each number of layers. plans: `2 fewer` ..."""
    parts, won, lost = [], [], []
    table = statistics.by_depth(scores)
    methods = [name for name in table if name not in ("refitted", "cut")]
    if not methods:
        return Finding("No training-free rival was scored", "Our refit has no rival here.")
    for k, refitted in sorted(table["refitted"].items()):
        gaps = {name: statistics.ppl_ratio(refitted, table[name][k]) for name in methods}
        sides = {w.side(gap, 1) for gap in gaps.values()}
        won += [k] if sides == {w.BELOW} else []
        lost += [k] if w.ABOVE in sides else []
        rival = w.best({name: table[name][k] for name in methods})
        ours, theirs = (w.over(scores, f"{name}, {k} fewer") for name in ("refitted", rival))
        parts.append(
            f"{k} fewer ({w.listed(plans[f'{k} fewer'].dropped)}): our refit {ours}, the best rival"
            f" {w.words(rival)} {theirs}, ratio of ours to theirs {w.paired(gaps[rival])}"
        )
    text = f"Nothing is trained here. {'; '.join(parts)}."
    if len(won) == len(parts):
        n = w.plural(len(methods), "training-free rival")
        return Finding(f"Our refit beats the {n} tried, at {w.listed(won)} fewer", text)
    if lost:
        title = f"A training-free rival beats our refit at {w.listed(lost)} fewer"
        return Finding(title, text, True)
    if won:
        title = f"Our refit beats the rivals tried at {w.listed(won)} fewer; the rest is open"
        return Finding(title, text)
    return Finding(
        "Our refit is not clearly better than every training-free rival tried", text, True
    )


def rounding(scores: Mapping[str, Score], n_bytes: Facts) -> Finding:
    """Compares dropping layers with rounding the weights, as methods to save bytes."""
    n = n_bytes.values
    formats = [name for name in w.natural(n) if name in scores and re.match(r"[A-Z]+\d", name)]
    parts, better, larger, worse = [], [], [], []
    for name in formats:
        side = w.side(w.ratio(scores, name, "healed"), 1)
        if side == w.BELOW:
            (better if n[name] < n["healed"] else larger).append(name)
        worse += [name] if side == w.ABOVE else []
        share = n[name] / n["whole"]
        parts.append(f"{name} takes {share:.2f} of the bytes at {w.over(scores, name)}")
    healed = w.paired(w.ratio(scores, "healed"))
    text = (
        f"{'; '.join(parts)}; the healed student takes {n['healed'] / n['whole']:.2f} at {healed}."
        " Weights that are not rounded count as 16 bits each. Rounding and dropping layers can be"
        " combined. Weights that come from a 4-bit file, as smollm2-135m's do, are rounded to Q8_0"
        " at almost no cost, by construction."
    )
    if better:
        title = f"Rounding to {w.listed(better)} costs less and saves more than fewer layers"
        return Finding(title, text, True)
    if larger:
        return Finding(f"{w.listed(larger)}: more bytes than fewer layers, at a lower cost", text)
    if worse and worse == formats:
        return Finding("Rounding costs more perplexity than dropping layers and healing", text)
    return Finding("Rounding is not shown to cost less than dropping layers", text)


def depth(scores: Mapping[str, Score], sizes: Mapping[str, Size]) -> Finding:
    """What each depth costs after healing; the mean over seeds if there are several."""
    ratios, parts = {}, []
    for k in w.counts(scores):
        healed = statistics.average(scores, f"{k} fewer, healed")
        ratios[k] = statistics.ppl_ratio(healed, scores["whole"])
        share = w.percent(statistics.share_removed(sizes, k))
        parts.append(f"{k} fewer ({share} of the parameters) {w.interval(ratios[k])}")
    text = (
        f"After healing, perplexity ÷ the frozen whole model's: {', '.join(parts)} (n ="
        f" {len(scores['whole'].documents)} test articles).{_seeds(scores)}"
        f"{w.adaptation(*ratios.values())}"
    )
    sides = {k: w.side(ratio, CHEAP) for k, ratio in ratios.items()}  # in ascending order
    cheap = list(itertools.takewhile(lambda k: sides[k] == w.BELOW, sides))
    if not cheap:
        return Finding(f"No depth is shown to stay below {CHEAP:g} times the perplexity", text)
    k = max(cheap)
    if len(cheap) == len(ratios):
        title = f"Every depth up to {k} fewer stays below {CHEAP:g} times the perplexity"
        return Finding(title, text)
    many = w.plural(k, "layer")
    return Finding(f"Dropping up to {many} is cheap: ratio {w.short(ratios[k])}", text)


def _seeds(scores: Mapping[str, Score]) -> str:
    """Which depths are means over seeds."""
    counts = w.counts(name for name in scores if ", healed, seed " in name)
    return f" At {w.listed(counts)} fewer this is the mean over seeds." if counts else ""


def budget(scores: Mapping[str, Score], elsewhere: str = "") -> Finding:
    """The gain from more tokens, and whether sampled text heals as well as articles.

    elsewhere: the text that is scored, if it is not the one of the articles.
    """
    lines = statistics.by_budget(statistics.ratios(scores))
    parts = []
    for source, line in sorted(lines.items()):
        most = max(line)
        healed = f"{w.interval(line[most])} healed on {most:,} tokens"
        parts.append(f"{source}: {w.interval(line[0])} refitted only, {healed}")
    text = (
        f"{f'On {elsewhere}, perplexity' if elsewhere else 'Perplexity'} ÷ the frozen whole"
        f" model's: {'; '.join(parts)} (n = {len(scores['whole'].documents)} test"
        f" {'documents' if elsewhere else 'articles'}). One run each."
    )
    text += w.adaptation(*(ratio for line in lines.values() for ratio in line.values()))
    least, *_, most = (n for n in lines["articles"] if n)
    more = w.ratio(scores, f"articles, {most} tokens", f"articles, {least} tokens")
    text += f" Articles, {most:,} tokens ÷ {least:,}: {w.interval(more)}."
    n = max(lines["own words"])
    gap = w.ratio(scores, f"own words, {n} tokens", f"articles, {n} tokens")
    text += f" With {n:,} tokens, own words ÷ articles: {w.interval(gap)}."
    if not elsewhere:
        text += " The test articles are like the articles, which favours them."
    on, times = f" for {elsewhere}" if elsewhere else "", w.number(gap.point)
    return w.outcome(
        gap,
        1,
        text,
        below=f"Text sampled from the whole model heals better{on} than articles",
        above=f"Articles heal better{on}: sampled text ends {times} times as high",
        against=w.BELOW,
        open=f"Sampled text and articles are not clearly different{on}",
    )


def recipe(
    distances: Mapping[str, Divergence], kept: Recipe, trials: Mapping[str, Score]
) -> Finding:
    """Which factors of the recipe matter: the KL of each level compared with the kept level."""
    chosen, parts, clear, alike = statistics.kept_levels(distances, kept), [], {}, []
    diverged = [name for name, score in trials.items() if score.diverged]
    for factor, levels in sorted(statistics.by_factor(distances, kept).items()):
        worse = {level: gap for level, gap in levels.items() if w.side(gap, 1) == w.ABOVE}
        if worse:
            level = max(worse, key=lambda name: worse[name].point)
            clear[factor] = worse[level].point
            versus = f"{level} instead of {chosen[factor]} (kept)"
            parts.append(f"{w.factor(factor)} {versus}: {w.interval(worse[level])}")
        elif len(levels) > 1 and not any(name.startswith(f"{factor}: ") for name in diverged):
            alike.append(w.factor(factor))
    text = "No level is clearly worse than the kept one"
    if parts:
        text = f"KL to the whole model ÷ that of the kept level: {'; '.join(parts)}"
    text += f" (n = {len(next(iter(distances.values())).documents)} validation articles)."
    text += f" No clear difference between the levels of {w.listed(alike)}." if alike else ""
    text += f" Diverged: {w.listed(map(_trial, diverged))}." if diverged else ""
    text += _by_perplexity(chosen, trials)
    clear |= {name.partition(": ")[0]: math.inf for name in diverged}
    if not clear:
        return Finding("No factor of the recipe is shown to matter", text)
    most = w.factor(max(clear, key=lambda factor: clear[factor]))
    return Finding(f"The most important factor of the recipe: {most}", text)


def _by_perplexity(chosen: Mapping[str, str], trials: Mapping[str, Score]) -> str:
    """The levels with a lower perplexity than the kept level of their factor."""
    lower = []
    for factor, level in chosen.items():
        of_it = {name: s for name, s in trials.items() if name.startswith(f"{factor}: ")}
        lowest = statistics.ranked(of_it)[0]
        if trials[lowest].mean_nll_nats < trials[f"{factor}: {level}"].mean_nll_nats:
            lower.append(_trial(lowest))
    return f" The lowest perplexity is at another level: {w.listed(lower)}." if lower else ""


def _trial(name: str) -> str:
    factor, _, level = name.partition(": ")
    return f"{w.factor(factor)} {level}"
