"""Findings about other repairs, fewer bits, deeper cuts, more tokens, and the recipe."""

from __future__ import annotations

import re
from collections.abc import Mapping

from depthprune_core.records import Facts, Recipe, Score, Size
from depthprune_study.report import wording as w
from depthprune_study.report.findings.healing import ADAPTATION
from depthprune_study.report.wording import Finding
from depthprune_study.results import statistics

CHEAP = 1.1  # a perplexity ratio up to which a cut is called cheap


def rivals(scores: Mapping[str, Score]) -> Finding:
    """Our refit against the training-free rivals of the literature, at each number of layers."""
    sides, told = {}, []
    for k in w.counts(scores):
        end = f", {k} fewer"
        of = {name.removesuffix(end): s for name, s in scores.items() if name.endswith(end)}
        others = {name: score for name, score in of.items() if name not in ("refitted", "cut")}
        if not others or "refitted" not in of:
            continue
        rival = w.best(others)
        gap = statistics.ppl_ratio(of["refitted"], of[rival])
        sides[k] = w.side(gap, 1)
        ours, theirs = (
            statistics.ppl_ratio(of[name], scores["whole"]) for name in ("refitted", rival)
        )
        told.append(
            f"{k} fewer: our refit {w.interval(ours)}, the best rival {w.name(rival)}"
            f" {w.interval(theirs)}, ours over theirs {w.paired(gap)}"
        )
    text = "Nothing is trained here. " + "; ".join(told) + "."
    if not sides:
        return Finding(
            "No training-free rival was scored",
            "No training-free rival was scored beside our refit.",
        )
    won, lost = ([k for k, found in sides.items() if found == want] for want in (w.BELOW, w.ABOVE))
    if len(won) == len(sides):
        return Finding(f"Our refit beats every training-free rival at {w.listed(won)} fewer", text)
    if lost:
        title = f"A training-free rival beats our refit at {w.listed(lost)} fewer"
        return Finding(title, text, True)
    if won:
        return Finding(
            f"Our refit beats every rival at {w.listed(won)} fewer; the rest is open", text
        )
    return Finding("Our refit and the best training-free rival cannot be told apart", text, True)


def rounding(scores: Mapping[str, Score], n_bytes: Facts | Mapping[str, int]) -> Finding:
    """Dropping layers against rounding the weights, as ways to save bytes."""
    n = w.plain(n_bytes)
    formats = [
        name
        for name in w.natural(n)
        if name in scores and name not in ("whole", "healed", "cut") and re.match(r"[A-Z]+\d", name)
    ]
    if not formats or "healed" not in n:
        return Finding(
            "No rounded model was scored", "No rounded model was scored beside the healed one."
        )
    told, better, worse = [], [], []
    for name in formats:
        gap = w.ratio(scores, name, "healed")
        smaller = n[name] < n["healed"]
        better += [name] if smaller and w.side(gap, 1) == w.BELOW else []
        worse += [name] if w.side(gap, 1) == w.ABOVE else []
        told.append(
            f"{name} takes {n[name] / n['whole']:.2f} of the bytes at"
            f" {w.interval(w.ratio(scores, name))}"
        )
    healed = w.ratio(scores, "healed")
    text = (
        f"{'; '.join(told)}; the healed student takes {n['healed'] / n['whole']:.2f} at"
        f" {w.paired(healed)}. Rounding and dropping layers can be done together."
    )
    if better:
        title = f"Rounding to {w.listed(better)} costs less, in fewer bytes, than fewer layers"
        return Finding(title, text, True)
    if len(worse) == len(formats):
        return Finding("Rounding costs more perplexity than dropping layers and healing", text)
    return Finding("Rounding is not shown to cost less than dropping layers", text)


def share_removed(sizes: Mapping[str, Size], k: int) -> float:
    """The share of the parameters that k layers are."""
    return 1 - sizes[f"{k} fewer"].n_parameters / sizes["0 fewer"].n_parameters


def depth(scores: Mapping[str, Score], sizes: Mapping[str, Size]) -> Finding:
    """What each depth costs, healed; the mean over seeds where there are any."""
    found = {k: w.average(scores, f"{k} fewer, healed") for k in w.counts(scores)}
    ratios = {
        k: statistics.ppl_ratio(score, scores["whole"]) for k, score in found.items() if score
    }
    if not ratios:
        return Finding("No depth was healed", "No depth was healed.")
    told = ", ".join(
        f"{k} fewer"
        + (
            f" ({w.percent(share_removed(sizes, k))} of the parameters)"
            if f"{k} fewer" in sizes and "0 fewer" in sizes
            else ""
        )
        + f" {w.interval(value)}"
        for k, value in ratios.items()
    )
    text = (
        f"Healed, times the frozen whole model's perplexity: {told} (n ="
        f" {next(iter(ratios.values())).n} test articles)."
    )
    if matched := statistics.matched(scores):
        told = ", ".join(
            f"{name.removesuffix(', matched')} {w.interval(value)}"
            for name, value in matched.items()
        )
        text += f" Both trained on the text, times the whole model trained alike: {told}."
    text += (
        f" Note: {ADAPTATION}."
        if any(w.side(value, 1) == w.BELOW for value in ratios.values())
        else ""
    )
    cheap = [k for k, value in ratios.items() if w.side(value, CHEAP) == w.BELOW]
    if len(cheap) == len(ratios):
        return Finding(
            f"Every depth up to {max(ratios)} fewer stays below {CHEAP:g} times the perplexity",
            text,
        )
    if cheap:
        k = max(cheap)
        return Finding(
            f"Up to {w.plural(k, 'layer')} fewer is cheap: {w.short(ratios[k])} times the"
            " perplexity",
            text,
        )
    return Finding(f"No depth is shown to stay below {CHEAP:g} times the perplexity", text)


def budget(scores: Mapping[str, Score]) -> Finding:
    """What more tokens bring, and whether the whole model's own words do as well as articles."""
    runs: dict[str, dict[int, str]] = {}
    for name in scores:
        if match := re.fullmatch(r"(.+), ([\d,]+) tokens", name):
            runs.setdefault(match[1], {})[int(match[2].replace(",", ""))] = name
    if not runs:
        return Finding("No budget was tried", "No budget of tokens was tried.")
    told = "; ".join(
        f"{source}: "
        + ", ".join(f"{w.interval(w.ratio(scores, of[n]))} with {n:,} tokens" for n in sorted(of))
        for source, of in sorted(runs.items())
    )
    start = (
        f"refit alone {w.interval(w.ratio(scores, 'refitted'))}; " if "refitted" in scores else ""
    )
    text = (
        f"Times the frozen whole model's perplexity: {start}{told} (n ="
        f" {len(scores['whole'].documents)} test articles)."
    )
    if any(
        w.side(w.ratio(scores, name), 1) == w.BELOW for of in runs.values() for name in of.values()
    ):
        text += f" Note: {ADAPTATION}."
    common = sorted(set(runs.get("articles", {})) & set(runs.get("own words", {})))
    if common:
        gap = w.ratio(scores, runs["own words"][common[-1]], runs["articles"][common[-1]])
        text += f" With {common[-1]:,} tokens, own words over articles: {w.interval(gap)}."
        return w.outcome(
            w.side(gap, 1),
            text,
            below="The whole model's own words heal better than articles",
            above=f"Healing wants real text: own words end {w.short(gap)} times as high",
            against=w.BELOW,
            open="Own words and articles cannot be told apart as text to heal on",
        )
    of = max(runs.values(), key=len)
    few, many = (of[n] for n in (min(of), max(of)))
    return w.outcome(
        w.side(w.ratio(scores, many, few), 1),
        text,
        below="More tokens heal better",
        above="More tokens heal worse",
        open="More tokens are not shown to help",
    )


def recipe(trials: Mapping[str, Score], kept: Recipe) -> Finding:
    """Which factors of the recipe matter: each level beside the one that was kept."""
    factors: dict[str, dict[str, Score]] = {}
    for name, score in trials.items():
        factor, _, level = name.partition(": ")
        factors.setdefault(factor, {})[level] = score
    told, clear = [], {}
    for factor, levels in sorted(factors.items()):
        chosen = _kept_level(levels, getattr(kept, factor, None))
        gaps = {
            level: statistics.ppl_ratio(score, levels[chosen])
            for level, score in levels.items()
            if level != chosen
        }
        worse = {level: gap for level, gap in gaps.items() if w.side(gap, 1) == w.ABOVE}
        if worse:
            level = max(worse, key=lambda name: worse[name].point)
            clear[factor] = worse[level].point
            told.append(
                f"{w.factor(factor)} {chosen} (kept) against {level}: {w.interval(worse[level])}"
            )
    n = len(next(iter(trials.values())).documents) if trials else 0
    open_ = [
        factor for factor in sorted(factors) if factor not in clear and len(factors[factor]) > 1
    ]
    text = (
        f"Times the kept level's perplexity: {'; '.join(told)}"
        if told
        else "No level is clearly worse than the kept one"
    )
    text += f" (n = {n} validation articles)." + (
        f" Not told apart: the levels of {w.listed(map(w.factor, open_))}." if open_ else ""
    )
    if not clear:
        return Finding("No factor of the recipe is shown to matter", text)
    return Finding(
        f"What matters most in the recipe: {w.factor(max(clear, key=lambda f: clear[f]))}", text
    )


def _kept_level(levels: Mapping[str, Score], kept: object) -> str:
    """The level that the kept recipe has; where none is (it is no field), the best one."""
    for level in levels:
        try:
            if level == str(kept) or (
                isinstance(kept, int | float) and float(level.replace(",", "")) == kept
            ):
                return level
        except ValueError:
            continue
    return min(levels, key=lambda level: levels[level].mean_nll_nats)
