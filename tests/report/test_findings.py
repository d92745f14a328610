"""Findings: a true sentence for every outcome, and only numbers from records."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import handmade as h
import pytest

from depthprune_core.records import Answers, Facts, SetCosts
from depthprune_study.report import findings as f
from depthprune_study.report import wording as w
from depthprune_study.report.wording import Finding
from depthprune_study.results.charts import wording

MORE = {"whole, same text": 0.9, "narrower, cut": 1.3}
PATH = h.scores(cut=1.25, refitted=1.12, healed=1.05, ce=1.0, **MORE)
FLAT = [0.2] * h.N_LAYERS
ENDS = [7.0, *FLAT[1:-1], 2.5]
CHEAP = SetCosts(3, {"0": 3.0, "1": 0.1, "2": 0.2, "0,1": 3.5, "0,2": 3.5, "1,2": 0.4})
OTHER = SetCosts(3, {"0": 0.3, "1": 0.1, "2": 0.2, "0,1": 0.4, "0,2": 0.7, "1,2": 0.9})
BEFORE = {f"{i},{i + 1}": 1.1 + i / 50 for i in range(24)}
SAME = {name: value - 0.05 for name, value in BEFORE.items()}
UPSIDE = dict(zip(BEFORE, reversed(SAME.values()), strict=True))
TAIL = {name: 1.25 - i / 100 if i < 8 else v for i, (name, v) in enumerate(BEFORE.items())}
SHUFFLED = {name: 1.05 + (7 * i % 24) / 1000 for i, name in enumerate(BEFORE)}


def more(**ratios: float) -> dict:
    return PATH | h.scores(**ratios)


def tried(*kl: float, ppl: tuple[float, float] = (1.0, 1.1)) -> Finding:
    """Two rates, of which the recipe keeps the first."""
    names = ("lr: 0.0002", "lr: 0.0004")
    distances = {name: h.divergence(value) for name, value in zip(names, kl, strict=True)}
    trials = h.scores(**dict(zip(names, ppl, strict=True)))
    return f.recipe(distances, h.RECIPE, {name: trials[name] for name in names})


def by_depth(*ratios: float) -> dict:
    return h.scores(**{f"{k} fewer, healed": ratio for k, ratio in enumerate(ratios, start=1)})


def rival(ours: float, theirs: float, *, k: int = 2) -> dict:
    return h.scores(**{f"refitted, {k} fewer": ours, f"replaceme, {k} fewer": theirs})


def open_stages() -> dict:
    """Both stages score like at once, with wide intervals."""
    made = staged(1.1, 1.1)
    for name in w.staged(made):
        made = h.open_scores(made, name, "at once, healed")
    return made


def rivals(scores: dict) -> Finding:
    return f.rivals(scores, h.PLANS)


def staged(pair: float, single: float) -> dict:
    names = ("at once, healed", "staged, pair first, healed", "staged, single first, healed")
    return h.scores(**dict(zip(names, (1.1, pair, single), strict=True)))


def transfer(scores: dict) -> Finding:
    return f.transfer(scores, "tinyllama")


def budget(articles: float, words: float) -> dict:
    named = {f"{source}, 0 tokens": 1.2 for source in ("articles", "own words")}
    named |= {"articles, 1000 tokens": 1.1, "articles, 2000 tokens": articles}
    return h.scores(**named, **{"own words, 2000 tokens": words})


def seeds(*ratios: float) -> dict:
    return {"small": h.scores(**{f"healed, seed {s}": r for s, r in enumerate(ratios)})}


CLOSE = {name: h.divergence(kl) for name, kl in (("cut", 0.3), ("refitted", 0.08), ("ce", 0.1))}
CLOSE["healed"] = h.divergence(0.05)
FAR = CLOSE | {"healed": h.divergence(0.2)}
BYTES = Facts({"whole": 270, "healed": 255, "Q8_0": 143})
LARGE = Facts({"whole": 270, "healed": 120, "Q8_0": 143})
OPEN_RIVAL = {"linear_patch, 2 fewer": 1.1}  # no worse than our refit
RULES = {"whole": 1.0, "greedy-2": 1.2, "last_k-2": 1.5, "random_0-2": 1.4}

OUTCOMES: list[tuple[Callable[[], Finding], str]] = [
    (lambda: f.profile(h.profile()), "Both end layers are costly; so is 11 in the middle"),
    (lambda: f.profile(h.profile(ENDS)), "no middle layer is"),
    (lambda: f.profile(h.profile([*FLAT[:-1], 3.0])), "Of the two ends, only layer 29"),
    (lambda: f.profile(h.profile(FLAT[:14] + [3.0] * 8 + FLAT[22:], noise=0.0001)), "Neither end"),
    (lambda: f.criteria(h.profile()), "Costly middle layers that some criteria miss: 11"),
    (lambda: f.criteria(h.profile(ENDS)), "ranks the layers best"),
    (lambda: f.pairs(CHEAP), "The two cheapest layers, 1 and 2, are also"),
    (lambda: f.pairs(OTHER), "The cheapest pair is 0 and 1, not"),
    (lambda: f.rules(h.scores(**RULES), 2), "2 layers fewer: greedy"),
    (
        lambda: f.rules(h.scores(**RULES, **{"pairwise-2": 1.2}), 2),
        "and pairwise choose best",
    ),
    (
        lambda: f.rules(h.scores(**RULES, **{"pairwise-2": 1.2, "exhaustive-2": 1.2}), 2),
        "2 layers fewer: 3 rules agree on the best layers",
    ),
    (
        lambda: f.rules(h.open_scores(h.scores(**RULES), "pairwise-2", "greedy-2"), 2),
        "2 choices of layers are tied as the best",
    ),
    (lambda: f.rules(h.scores(**{**RULES, "random_0-2": 1.2}), 2), "no rule is shown to beat"),
    (lambda: f.rules(h.scores(**{**RULES, "random_0-2": 1.1}), 2), "no rule is shown to beat"),
    (lambda: f.sizes(h.sizes(2, 3)), "Dropping 2 layers saves 5.3 % of the parameters"),
    (lambda: f.speed({"2 fewer": h.timing(1.1)}), "Decoding is faster: up to 1.10 times"),
    (lambda: f.speed({"2 fewer": h.timing(0.9)}), "Decoding is slower"),
    (lambda: f.speed({"2 fewer": h.timing(1.0, noise=0.1)}), "No gain in decoding speed is shown"),
    (lambda: f.path(PATH), "Refit and healing lower the perplexity ratio from 1.25"),
    (lambda: f.path(more(healed=1.3)), "the cut worse: ratio 1.25 before, 1.30 after"),
    (lambda: f.path(h.open_scores(PATH, "healed", "cut")), "are not shown to help: ratio"),
    (lambda: f.control(PATH), "the student is worse than the whole: ratio 1.11"),
    (lambda: f.control(more(ce=0.85)), "the student is better than the whole"),
    (lambda: f.control(h.open_scores(PATH, "ce", "whole, same text")), "are not clearly different"),
    (lambda: f.elsewhere(PATH, "news"), "Healing helps on other text too: ratio 1.05"),
    (lambda: f.elsewhere(more(healed=1.4), "news"), "Healing does harm on other text"),
    (lambda: f.elsewhere(h.open_scores(PATH, "healed", "cut"), "news"), "is not shown to help"),
    (lambda: f.divergences(CLOSE), "closer to the whole model's: KL 0.080 to 0.050"),
    (lambda: f.divergences(FAR), "away from the whole model's: KL 0.080 to 0.200"),
    (lambda: f.divergences(CLOSE | {"healed": CLOSE["refitted"]}), "is not shown to change"),
    (lambda: f.probes(h.answers(whole=0.9, cut=0.6, healed=0.9)), "after healing no loss is shown"),
    (lambda: f.probes(h.answers(whole=0.9, cut=0.6, healed=0.6)), "brings nothing clear back"),
    (
        lambda: f.probes(h.answers(whole=0.9, cut=0.6, healed=0.5)),
        "Healing makes agreement worse: from 30 to 40 points of accuracy lost",
    ),
    (lambda: f.probes(h.answers(whole=0.9, cut=0.6, healed=0.7)), "back part of agreement and"),
    (lambda: f.probes(h.answers(whole=0.9, cut=0.9, healed=0.9)), "No loss of ability is shown"),
    (lambda: f.probes(h.answers(**{"whole": 0.9, "2 fewer": 0.8, "5 fewer": 0.5})), "most with 5"),
    (
        lambda: f.curves({"healed": h.curve(3.2, 3.1, 3.0)}),
        "Every curve still falls at its end",
    ),
    (
        lambda: f.curves({"healed": h.curve(3.2, 3.0, 3.1)}),
        "No curve still falls at its end",
    ),
    (lambda: f.curves({"healed": h.curve(3.2, 3.0, 2.9995)}), "No curve still falls at its end"),
    (
        lambda: f.curves({"ce": h.curve(3.0, 2.0), "healed": h.curve(3.0)}),
        "Still falling at the end: cut, trained on the text",
    ),
    (lambda: f.curves({"healed": h.curve(3.0, diverged="loss 9")}), "Training diverged:"),
    (lambda: transfer(PATH), "The recipe of notebook 03 heals tinyllama too"),
    (lambda: transfer(more(healed=1.4)), "The recipe of notebook 03 harms tinyllama"),
    (lambda: transfer(h.open_scores(PATH, "healed", "cut")), "not shown to heal tinyllama"),
    (lambda: f.staged(staged(1.05, 1.06)), "stages are better than at once"),
    (lambda: f.staged(staged(1.2, 1.3)), "at once is better than stages"),
    (lambda: f.staged(staged(1.05, 1.3)), "depends on which layers go first"),
    (lambda: f.staged(staged(1.1, 1.1)), "stages and at once differ by 0.00 % at most"),
    (lambda: f.staged(staged(1.102, 1.101)), "stages and at once differ by 0.18 % at most"),
    (lambda: f.staged(open_stages()), "are not clearly different"),
    (lambda: f.staged(staged(1.1, 1.2)), "Staged, single first, is worse than at once; the other"),
    (lambda: f.staged(staged(1.0, 1.1)), "Staged, pair first, is better than at once; the other"),
    (lambda: f.seeds(seeds(1.05, 1.051)), "small: seeds hardly differ"),
    (lambda: f.seeds(seeds(1.05, 1.08)), "small: seeds differ by up to"),
    (lambda: f.seeds(seeds(1.05, 1.058)), "between the limits"),
    (lambda: f.seeds(seeds(1.05)), "small: it is open how much seeds differ"),
    (lambda: f.seeds(seeds(1.05, 1.051) | {"b": seeds(1, 2)["small"]}), "small: seeds hardly"),
    (lambda: f.width(more(**{"narrower, healed": 1.1}), {}), "Fewer layers beat narrower MLPs"),
    (lambda: f.width(more(**{"narrower, healed": 1.01}), {}), "Narrower MLPs beat fewer layers"),
    (lambda: f.width(h.open_scores(PATH, "narrower, healed", "healed"), {}), "not clearly"),
    (lambda: rivals(rival(1.1, 1.2)), "Our refit beats the 1 training-free rival tried, at 2"),
    (lambda: rivals(rival(1.3, 1.2)), "A training-free rival beats our refit at 2 fewer"),
    (lambda: rivals(rival(1.1, 1.2) | rival(1.3, 1.3, k=3)), "beats the rivals tried at 2 fewer;"),
    (lambda: rivals(rival(1.2, 1.2)), "is not clearly better than every training-free rival"),
    (lambda: rivals(rival(1.1, 1.2) | h.scores(**OPEN_RIVAL)), "is not clearly better than every"),
    (lambda: rivals(h.scores(cut=1.2)), "No training-free rival was scored"),
    (lambda: f.rounding(more(Q8_0=1.001), BYTES), "Rounding to Q8_0 costs less and saves more"),
    (lambda: f.rounding(more(Q8_0=1.2), BYTES), "Rounding costs more perplexity"),
    (lambda: f.rounding(more(Q8_0=1.001), LARGE), "Q8_0: more bytes than fewer layers, at a lower"),
    (lambda: f.rounding(h.open_scores(PATH, "Q8_0", "healed"), BYTES), "is not shown to cost less"),
    (lambda: f.adapters(more(adapters=1.02), {}), "only adapters is better"),
    (lambda: f.adapters(more(adapters=1.09), {}), "only adapters is worse"),
    (lambda: f.adapters(h.open_scores(PATH, "adapters", "healed"), {}), "not clearly different"),
    (
        lambda: f.choice(h.scores(**BEFORE), h.scores(**SAME), tail=8),
        "Cheap sets: costs before and after healing are related, rho 1.00",
    ),
    (
        lambda: f.choice(h.scores(**BEFORE), h.scores(**TAIL), tail=8),
        "the order of cheap ones reverses",
    ),
    (
        lambda: f.choice(h.scores(**BEFORE), h.scores(**UPSIDE), tail=8),
        "Sets that are cheap before healing",
    ),
    (
        lambda: f.choice(h.scores(**BEFORE), h.scores(**SHUFFLED), tail=8),
        "It is open whether the ranking",
    ),
    (
        lambda: f.winner(h.scores(a=1.1, b=1.2), h.scores(a=1.1, b=1.2), {}),
        "The best set stays the best; its rival was not healed in full",
    ),
    (
        lambda: f.winner(h.scores(a=1.1, b=1.2), h.scores(a=1.2, b=1.1), {}),
        "The best set changes; its rival was not healed in full",
    ),
    (
        lambda: f.regret(h.scores(a=1.1, b=1.2), {"greedy": "a"}),
        "no rule's choice is clearly worse",
    ),
    (lambda: f.regret(h.scores(a=1.1, b=1.2), {"greedy": "b"}), "every rule's choice is worse"),
    (
        lambda: f.regret(h.scores(a=1.1, b=1.2), {"greedy": "b", "last_k": "a"}),
        "1 of the rules' 2 choices",
    ),
    (lambda: f.regret(h.scores(a=1.1), {"greedy": "z"}), "No rule's choice was healed"),
    (
        lambda: f.depth(by_depth(1.01, 1.05, 1.2), h.sizes(1, 2, 3)),
        "Dropping up to 2 layers is cheap",
    ),
    (lambda: f.depth(by_depth(1.01, 1.05), h.sizes(1, 2)), "Every depth up to 2 fewer stays"),
    (
        lambda: f.depth(by_depth(1.01, 1.2, 1.05), h.sizes(1, 2, 3)),
        "Dropping up to 1 layer is cheap",
    ),
    (lambda: f.path(h.scores(cut=1.25)), "Cut, not healed: perplexity ratio 1.25"),
    (lambda: f.conventional({"whole": h.score(1.0)}, "x"), "x: perplexity"),
    (lambda: f.depth(by_depth(1.2, 1.3), h.sizes(1, 2)), "No depth is shown to stay below"),
    (lambda: f.budget(budget(1.05, 1.07)), "Articles heal better: sampled text ends 1.019"),
    (lambda: f.budget(budget(1.05, 1.07), "news"), "Articles heal better for news: sampled text"),
    (lambda: f.budget(budget(1.05, 1.02)), "Text sampled from the whole model heals better"),
    (lambda: f.budget(budget(1.05, 1.05)), "Sampled text and articles are not clearly different"),
    (lambda: tried(0.05, 0.1), "learning rate"),
    (lambda: tried(0.05, 0.05), "No factor"),
]


def test_a_rate_with_a_lower_perplexity_is_named() -> None:
    text = " The lowest perplexity is at another level: learning rate 0.0004."
    assert text in tried(0.05, 0.1, ppl=(1.1, 1.05)).text
    assert "perplexity" not in tried(0.05, 0.1).text


def test_a_diverged_rate_matters_most() -> None:
    distances = {"lr: 0.0002": h.divergence(0.05)}
    trials = {"lr: 0.0002": h.score(1.1), "lr: 0.1": replace(h.score(1.2), diverged="nan")}
    found = f.recipe(distances, h.RECIPE, trials)
    assert found.title == "The most important factor of the recipe: learning rate"
    assert "Diverged: learning rate 0.1." in found.text


def test_probes_say_how_small_a_difference_their_items_could_show() -> None:
    answers = h.answers(whole=0.9, cut=0.9, healed=0.9)
    few = {name: Answers(of.task, of.right[:20]) for name, of in answers.items()}
    reaches = [
        re.search(r"widest interval is ± ([0-9.]+):", f.probes(of).text) for of in (answers, few)
    ]
    many_items, few_items = (float(found[1]) for found in reaches if found)
    assert few_items > many_items


@pytest.mark.parametrize(("make", "title"), OUTCOMES, ids=[title for _, title in OUTCOMES])
def test_a_finding_has_a_sentence_for_every_outcome(make: Callable, title: str) -> None:
    finding = make()
    assert title in finding.title
    assert len(finding.title) <= w.LONGEST_TITLE
    assert "…" not in finding.title, "cut off"
    assert finding.text.endswith(".")
    assert not re.search(r"\bce\b|\barm\b|nan|None|\{|\}", finding.text)


@pytest.mark.parametrize(
    ("healed", "title"),
    [
        ({"a": 1.05, "b": 1.04}, "The best set changes with healing: b beats a"),
        ({"a": 1.04, "b": 1.05}, "The set that was best before healing stays better: a"),
        ({"a": 1.05, "b": 1.05}, "Healed in full, b and a are not clearly different"),
    ],
)
def test_the_winner_is_judged_by_the_mean_over_seeds(healed: dict, title: str) -> None:
    full = h.scores(
        **{f"{name}, seed {s}": ratio for name, ratio in healed.items() for s in (0, 1)}
    )
    finding = f.winner(h.scores(a=1.1, b=1.2), h.scores(a=1.2, b=1.1), full)
    assert finding.title == title
    assert finding.against == ("changes" in title)  # then the cost before healing misleads


def test_seeds_that_disagree_name_no_winner() -> None:
    full = h.scores(**{"a, seed 0": 1.04, "a, seed 1": 1.06, "b, seed 0": 1.05, "b, seed 1": 1.03})
    finding = f.winner(h.scores(a=1.1, b=1.2), h.scores(a=1.2, b=1.1), full)
    assert finding.title == "Seeds disagree whether b or a is better healed in full"


def test_a_diverged_set_has_no_rank_and_no_regret() -> None:
    before, after = h.scores(**BEFORE), h.scores(**SAME)
    first = next(iter(BEFORE))
    stopped = after | {first: replace(after[first], diverged="nan")}
    assert f"over all {len(BEFORE) - 1}" in f.choice(before, stopped, tail=8).text
    assert f.regret(stopped, {"greedy": first}).title == "No rule's choice was healed"


def test_the_kept_rate_is_told_and_an_end_of_the_rates_tried_named() -> None:
    kl = {"fewer layers, lr 5e-05": 0.1, "fewer layers, lr 0.0001": 0.09}
    kl |= {
        "narrower MLPs, lr 5e-05": 0.2,
        "narrower MLPs, lr 0.0001": 0.15,
        "narrower MLPs, lr 0.0002": 0.16,
    }
    distances = {name: h.divergence(value) for name, value in kl.items()}
    text = f.width(more(**{"narrower, healed": 1.1}), distances).text
    assert "Learning rate kept for fewer layers: 0.0001, the highest of 2 tried." in text
    assert "Learning rate kept for narrower MLPs: 0.0001, of 3 tried." in text


def test_a_ratio_below_one_is_called_adaptation_not_repair() -> None:
    for finding in (
        f.path(more(healed=0.95)),
        f.control(more(ce=0.95)),
        f.budget(budget(0.97, 1.05)),
    ):
        assert "adaptation to the text, not repair" in finding.text
    assert "adaptation" not in f.path(PATH).text


def test_a_diverged_run_is_open_and_says_so() -> None:
    stopped = PATH | {"healed": h.score(1.05, diverged="the loss is not finite")}
    assert "not shown to help" in f.path(stopped).title
    assert "diverged" in f.path(stopped).text
    apart = stopped | h.scores(**{"narrower, healed": 1.1})
    assert f.width(apart, {}).title == "A run diverged, so this is not decided"


def test_a_gain_above_the_layer_limit_is_suspect() -> None:
    assert "suspect" in f.speed({"2 fewer": h.timing(1.3, allowed=1.1)}).text
    assert "suspect" not in f.speed({"2 fewer": h.timing(1.05, allowed=1.1)}).text


def test_numbers_of_a_sentence_are_those_of_the_records(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sentence has only numbers formatted by `wording`, besides counts and record names."""
    formatted: set[str] = set()
    plain = w.number

    def noted(value: float) -> str:
        formatted.add(plain(value))
        return plain(value)

    monkeypatch.setattr(wording, "number", noted)
    study: dict[str, Any] = h.study()
    for finding in (
        f.path(study["03_recovery"]["test"]),
        f.elsewhere(study["03_recovery"]["elsewhere"], "news"),
        f.staged(study["04_transfer"]["test"]),
        rivals(study["06_controls"]["rivals"]),
    ):
        numbers = set(re.findall(r"-?\d+\.\d{3}\b", finding.text))
        assert numbers and numbers <= formatted
