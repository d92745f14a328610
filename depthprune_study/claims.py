"""Verdicts on the source's claims: rules read from params/claims.yaml, applied to records."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from depthprune_core import intervals
from depthprune_core.intervals import Interval
from depthprune_study import verdict_rules
from depthprune_study.evidence import CONTROL, RANDOM_WEIGHTS, Evidence

REPRODUCED, NOT_REPRODUCED, INCONCLUSIVE = "reproduced", "not reproduced", "inconclusive"
NOT_TESTABLE = "not testable in this study"
OF_SPEED = ("C3", "C6")
SHAPES = {"gpt2-shape": "GPT-2 124M's shape", "tinyllama-1.1b-shape": "TinyLlama 1.1B's shape"}
SOURCE_MODELS = {"gpt2", "tinyllama-1.1b", *SHAPES.values()}  # sizes and speed follow from the shape alone


@dataclass(frozen=True)
class Measured:
    """What one model shows of a claim."""

    model: str
    figure: str
    verdict: str


@dataclass(frozen=True)
class Verdict:
    """One row of the claims table."""

    id: str
    claim: str
    source: str
    rule: str
    verdict: str  # on the claim itself
    why: str
    figure: str  # on the source's own models; empty where they were not run
    stand_ins: tuple[Measured, ...]
    notebook: str  # where it is measured

    @property
    def stable(self) -> bool:
        """Whether the verdict is the same on every machine (it follows from shapes)."""
        return self.id == "C1"


def judge(evidence: Evidence) -> list[Verdict]:
    """A verdict a claim. A stand-in's figure never decides a claim about GPT-2 124M or TinyLlama."""
    return [judge_one(name, evidence) for name in names()]


def names() -> list[str]:
    """The claims, in order."""
    return list(_entries())


def judge_one(name: str, evidence: Evidence) -> Verdict:
    """The verdict on one claim."""
    entry = _entries()[name]
    measure, notebook = _MEASURES[name]
    measured = measure(evidence, entry["rule"])
    own = [item for item in measured if item.model in SOURCE_MODELS]
    stand_ins = tuple(_of_a_stand_in(name, item) for item in measured if item not in own)
    if own:
        verdict, why, figure = (
            _together([item.verdict for item in own]),
            "",
            "; ".join(f"{item.model}: {item.figure}" for item in own),
        )
    else:
        verdict, figure = NOT_TESTABLE, ""
        why = "the source's model was not run"
    if name in _EXPECTATIONS:
        figure = "; ".join(filter(None, [_EXPECTATIONS[name](evidence), figure]))
    return Verdict(
        name,
        entry["claim"],
        entry["source"],
        _in_words(name, entry["rule"]),
        verdict,
        why,
        figure,
        stand_ins,
        notebook,
    )


def _of_a_stand_in(name: str, item: Measured) -> Measured:
    """Of random weights, speed decides something and nothing else."""
    return replace(item, verdict=NOT_TESTABLE) if item.model in RANDOM_WEIGHTS and name not in OF_SPEED else item


def _entries() -> dict[str, dict[str, Any]]:
    return verdict_rules.read().model_dump(exclude={"target"})


def _together(verdicts: list[str]) -> str:
    return verdicts[0] if len(set(verdicts)) == 1 else INCONCLUSIVE


_RULES = {
    "equal": "each figure within {tolerance} points of {values}",
    "at_most": "the whole interval at or below {threshold}",
    "at_most_cut": "the whole interval at or below {threshold}, by a cut of about {removed:.0%} of the parameters",
    "both_at_most": "the whole interval of both figures at or below {threshold}",
    "at_least": "the whole interval at or above {threshold}",
    "within": "the whole interval inside {low} to {high}",
    "clean_then_mixed": (
        "two fewer: the whole interval above {clean}; three fewer: not clear of two, by intervals that would show the step that "
        "layer counts promise"
    ),
    "spread": "largest minus smallest, over the mean: at most {reproduced}; not if above {not_reproduced}",
    "probability": (
        "in at least {holds:.0%} of resampled calibration sets both ends are among the {critical_share:.0%} most sensitive "
        "layers and the easiest layer lies in the first two thirds; not if in at most {fails:.0%}"
    ),
    "winner_changes": "{pairs} sets recovered with {seeds} seeds: the winner after recovery beats the winner before it, and by more than before recovery",
}


# Of what the rule speaks.
_SUBJECTS = {
    "C2": "PPL ratio after recovery",
    "C3": "decode, times as fast",
    "C4": "PPL ratio after recovery",
    "C5": "PPL ratio after recovery, staged",
    "C6": "decode, times as fast",
    "C7": "PPL ratios of the seeds",
    "C10": "change of NLL in recovery by the first family's recipe",
    "C11": "NLL of fewer layers minus NLL of narrower MLPs, after recovery",
    "C12": "NLL without the most sensitive layers minus NLL without the least sensitive ones",
    "C13": "NLL of fewer layers minus NLL of narrower MLPs, before recovery; rise in NLL of middle layers minus that of outer ones",
    "C14": "what recovery gains in NLL, with CE beyond what the whole model gains",
}


def _in_words(name: str, rule: dict[str, Any]) -> str:
    subject = f"{_SUBJECTS[name]}: " if name in _SUBJECTS else ""
    return subject + _RULES[rule["kind"]].format(**rule)


def tally(verdicts: Sequence[Verdict]) -> list[str]:
    """How many claims have which verdict, a sentence: on the source's own models or their shapes, then on each stand-in."""
    by_model: dict[str, dict[str, list[str]]] = {}
    for verdict in verdicts:
        by_model.setdefault("the source's own models", {})[verdict.id] = [verdict.verdict]
        for item in verdict.stand_ins:
            by_model.setdefault(item.model, {}).setdefault(verdict.id, []).append(item.verdict)
    lines = []
    for model, of in by_model.items():
        together = [_together(found) for found in of.values()]
        counts = [f"{together.count(word)} {word}" for word in (REPRODUCED, NOT_REPRODUCED, INCONCLUSIVE) if word in together]
        untested = together.count(NOT_TESTABLE)
        counts += [f"{untested} not testable"] if untested else []
        lines.append(f"Of {len(together)} claims on {model}: {', '.join(counts)}.")
    return lines


# ---------------------------------------------------------------- rules


def at_most(value: Interval, threshold: float) -> str:
    """Reproduced if the whole interval is at or below the threshold, not if all of it is above, else inconclusive.

    So it is where a run diverged that the interval rests on; here and in the other rules.
    """
    if value.note:
        return INCONCLUSIVE
    if value.high <= threshold:
        return REPRODUCED
    return NOT_REPRODUCED if value.low > threshold else INCONCLUSIVE


def at_least(value: Interval, threshold: float) -> str:
    """The mirror image of `at_most`."""
    if value.note:
        return INCONCLUSIVE
    if value.low >= threshold:
        return REPRODUCED
    return NOT_REPRODUCED if value.high < threshold else INCONCLUSIVE


def within(value: Interval, low: float, high: float) -> str:
    """Reproduced if the interval lies inside low..high, not if it lies outside, else inconclusive."""
    if value.note:
        return INCONCLUSIVE
    if low <= value.low and value.high <= high:
        return REPRODUCED
    return NOT_REPRODUCED if value.high < low or value.low > high else INCONCLUSIVE


def probability(value: float, holds: float, fails: float) -> str:
    """Reproduced if the probability is at least `holds`, not if at most `fails`, else inconclusive."""
    if value >= holds:
        return REPRODUCED
    return NOT_REPRODUCED if value <= fails else INCONCLUSIVE


# ---------------------------------------------------------------- what each claim measures


def _with_n(value: Interval, of: str = "articles", *, unit: str = "") -> str:
    return f"{value}{unit} (n = {value.n} {of})"


def _sizes(evidence: Evidence, rule: dict[str, Any]) -> list[Measured]:
    counts = evidence.record("02_prune_gpt2", "published_sizes").values["gpt2-shape"]
    shares = [100 * (1 - counts[n] / counts["12"]) for n in ("10", "9")]
    close = all(abs(share - value) <= rule["tolerance"] for share, value in zip(shares, rule["values"], strict=True))
    figure = " / ".join(f"{share:.2f} %" for share in shares)
    return [Measured(SHAPES["gpt2-shape"], figure, REPRODUCED if close else NOT_REPRODUCED)]


def _published_share(whole: str, depth: str) -> Callable[[Evidence], str]:
    def in_words(evidence: Evidence) -> str:
        counts = evidence.record("02_prune_gpt2", "published_sizes").values["tinyllama-1.1b-shape"]
        return f"TinyLlama's shape: -{100 * (1 - counts[depth] / counts[whole]):.2f} % parameters"

    return in_words


def _expected_speed(name: str, whole: str, *depths: str) -> Callable[[Evidence], str]:
    def in_words(evidence: Evidence) -> str:
        read = evidence.record("02_prune_gpt2", "published_weight_bytes").values[name]
        by_layers = " / ".join(f"{int(whole) / int(depth):.2f}x" for depth in depths)
        by_bytes = " / ".join(f"{read[whole] / read[depth]:.2f}x" for depth in depths)
        return f"{SHAPES[name]} at {' / '.join(depths)} layers: {by_layers} expected by layers, {by_bytes} by bytes of weights"

    return in_words


def _first_recovered(evidence: Evidence, rule: dict[str, Any]) -> list[Measured]:
    """The first family's main cut; where it leads, the second one is a small GPT-2, and asked as well."""
    found = [_cut(evidence, rule, evidence.first_model, "03_recovery", "recovered")]
    if evidence.first_leads:
        found.append(_cut(evidence, rule, evidence.second_model, "04_transfer_tinyllama", "recovered"))
    return found


def _cut(evidence: Evidence, rule: dict[str, Any], model: str, notebook: str, arm: str) -> Measured:
    """A recovered cut against the source's figure: of another share of the model, it can only tell what holds all the more."""
    ratio, share = evidence.ratio(notebook, arm), evidence.removed(notebook, arm)
    verdict = at_most(ratio, rule["threshold"])
    lighter, heavier = (rule["removed"] * (1 + sign * rule["tolerance"]) for sign in (-1, 1))
    if (share < lighter and verdict == REPRODUCED) or (share > heavier and verdict == NOT_REPRODUCED):
        verdict = NOT_TESTABLE
    before = evidence.before(notebook, arm)
    cost = f"; {before} before recovery" if before is not None else ""
    if before is not None and before.high <= rule["threshold"]:
        cost += ", which is within it already"
    figure = f"PPL ratio {_with_n(ratio)}{cost}; {share:.1%} of the parameters are gone, in the source {rule['removed']:.0%}"
    return Measured(model, figure, verdict)


def _first_speed(evidence: Evidence, rule: dict[str, Any]) -> list[Measured]:
    timed = {evidence.first_model: (evidence.record("02_prune_gpt2", "timing-2"), "")}
    if evidence.has("02_prune_gpt2", "timing-gpt2-shape"):
        shape = evidence.record("02_prune_gpt2", "timing-gpt2-shape")
        beside = f" at 10 layers, which are judged; {intervals.decode_gain(shape['9'])}x at 9" if "9" in shape else ""
        timed[SHAPES["gpt2-shape"]] = shape["10"], beside
    measured = []
    for model, (timing, beside) in timed.items():
        gain = intervals.decode_gain(timing)
        figure, verdict = f"decode {_with_n(gain, 'rounds', unit='x')}{beside}", within(gain, rule["low"], rule["high"])
        if timing.by_layer_count < rule["low"]:  # two layers are too small a share of this model
            figure, verdict = f"{figure}; its layer counts allow {timing.by_layer_count:.2f}x at most", NOT_TESTABLE
        measured.append(Measured(model, figure, verdict))
    return measured


def _second_arm(arm: str, first: str) -> Callable[[Evidence, dict[str, Any]], list[Measured]]:
    """The second family's arm; where the first family leads (SmolLM2 is a Llama too), its own from notebook `first` as well."""

    def measure(evidence: Evidence, rule: dict[str, Any]) -> list[Measured]:
        asked = [(evidence.first_model, first)] if evidence.first_leads else []
        asked.append((evidence.second_model, "04_transfer_tinyllama"))
        return [_cut(evidence, rule, model, notebook, arm) for model, notebook in asked]

    return measure


def _second_speed(evidence: Evidence, rule: dict[str, Any]) -> list[Measured]:
    timed = {}
    if evidence.first_leads and evidence.has("02_prune_gpt2", "timing-3"):  # SmolLM2 is a Llama too
        timed[evidence.first_model] = [evidence.record("02_prune_gpt2", f"timing-{fewer}") for fewer in (2, 3)]
    timed[evidence.second_model] = [evidence.record("04_transfer_tinyllama", f"timing-{fewer}") for fewer in (2, 3)]
    if evidence.has("02_prune_gpt2", "timing-tinyllama-1.1b-shape"):
        shape = evidence.record("02_prune_gpt2", "timing-tinyllama-1.1b-shape")
        timed[SHAPES["tinyllama-1.1b-shape"]] = [shape["20"], shape["19"]]
    measured = []
    for model, timings in timed.items():
        two, three = map(intervals.decode_gain, timings)
        promised = timings[1].by_layer_count / timings[0].by_layer_count
        verdict = _clean_then_mixed(two, three, clean=rule["clean"], promised=promised)
        figure = f"decode {two}x / {_with_n(three, 'rounds', unit='x')}"
        if two.low <= rule["clean"]:
            figure += f"; two fewer are not shown to be above {rule['clean']}x"
        elif verdict == NOT_REPRODUCED:
            figure += "; three fewer are clearly faster than two, so nothing is mixed about them"
        elif verdict == INCONCLUSIVE:
            figure += "; the intervals are too wide to show the step between them"
        measured.append(Measured(model, figure, verdict))
    return measured


def _clean_then_mixed(two: Interval, three: Interval, *, clean: float, promised: float) -> str:
    """`promised`: how many times faster three fewer should be than two, by layer count."""
    resolved = (two.high - two.low + three.high - three.low) / 2 < two.point * (promised - 1)
    if two.low > clean and three.low <= two.high and resolved:
        return REPRODUCED
    if two.high < clean or (two.low > clean and three.low > two.high):
        return NOT_REPRODUCED
    return INCONCLUSIVE


def _seeds(evidence: Evidence, rule: dict[str, Any]) -> list[Measured]:
    of_seeds = evidence.seed_ratios()
    ratios, n = [ratio.point for ratio in of_seeds], of_seeds[0].n
    finite = [ratio for ratio in ratios if math.isfinite(ratio)]
    if finite == ratios:
        spread = (max(ratios) - min(ratios)) / (math.fsum(ratios) / len(ratios))
        figure = f"spread {spread:.2%} over {len(ratios)} seeds, on n = {n} articles"
        close, far = spread <= rule["reproduced"], spread > rule["not_reproduced"]
    else:
        figure = f"the ratios of {len(ratios) - len(finite)} of {len(ratios)} seeds overflow"
        close, far = False, bool(finite)
    verdict = REPRODUCED if close else NOT_REPRODUCED if far else INCONCLUSIVE
    if diverged := [name for name, score in evidence.test("05_seed_stability").items() if score.diverged]:
        verdict, figure = INCONCLUSIVE, f"{figure} (diverged: {', '.join(diverged)})"
    return [Measured(evidence.parameter("05_seed_stability", "model"), figure, verdict)]


def _ends_are_critical(evidence: Evidence, rule: dict[str, Any]) -> list[Measured]:
    measured = []
    for model, profile in _profiles(evidence).items():
        ranks = intervals.rank_draws(profile)
        critical = math.ceil(rule["critical_share"] * profile.n_layers)
        ends = (ranks[:, [0, -1]] >= profile.n_layers - critical).all(axis=1)
        easiest = np.argmin(ranks, axis=1)
        inner = (easiest > 0) & (easiest < 2 * profile.n_layers / 3)
        share = float((ends & inner).mean())
        verdict = probability(share, rule["holds"], rule["fails"])
        places_of_ends = f"layer 0 {_rank_in_words(ranks, 0)}, the last {_rank_in_words(ranks, -1)}"
        n = len(profile.teacher.documents)
        figure = f"holds in {share:.0%} of resampled calibration sets ({places_of_ends}; n = {n} articles)"
        measured.append(Measured(model, figure, verdict))
    return measured


def _rank_in_words(ranks: np.ndarray, layer: int) -> str:
    """A layer's usual place in the ranking, 1 = the most sensitive."""
    return f"ranks {ranks.shape[1] - int(np.median(ranks[:, layer]))} of {ranks.shape[1]}"


def _transfers(evidence: Evidence, rule: dict[str, Any]) -> list[Measured]:
    scores = evidence.test("04_transfer_tinyllama")
    change = intervals.nll_rise(scores["recovered"], scores["unrecovered"])
    figure, verdict = (
        f"NLL changes by {change} nats per token in recovery (n = {change.n} articles)",
        at_most(change, rule["threshold"]),
    )
    choice = evidence.record("04_transfer_tinyllama", "choice").values
    figure += f"; from {evidence.first_model} to {evidence.second_model}, the rate picked anew: {choice['lr']:g}"
    given, taken = evidence.record("03_recovery", "recipe").values["recipe"], choice.get("unchanged", {})
    for name in ("seq_len", "refit_tokens"):
        if name in taken and taken[name] != given.get(name):
            figure += f"; {name} {taken[name]:,} in place of {given[name]:,}, as this model allows no more"
    if changed := choice.get("changed"):
        verdict, figure = INCONCLUSIVE, f"{figure}; not the same recipe: {', '.join(changed)}"
    return [Measured(evidence.second_model, figure, verdict)]


def _winner_changes(evidence: Evidence, rule: dict[str, Any]) -> list[Measured]:
    """The set that is best after recovery against the one that was best before it, on articles that had no part in the choice.

    It has to be better, and by more than it was before recovery: else the ranking before it was only a noisy one.
    """
    facts = evidence.record("03c_choice", "sets").values
    scores, old, new, seeds = evidence.test("03c_choice"), facts["old"], facts["new"], facts["seeds"]
    compared = f"{len(facts['costs'])} sets x {len(seeds)} seeds"
    if old == new:
        verdict = NOT_REPRODUCED if len(facts["costs"]) >= rule["pairs"] else INCONCLUSIVE
        return [Measured(evidence.first_model, f"layers {old} are best before and after ({compared})", verdict)]
    after = {name: intervals.mean_score([scores[f"{name} (seed {seed})"] for seed in seeds]) for name in (old, new)}
    before = {name: scores[f"{name}, unrecovered"] for name in (old, new)}
    gap = intervals.nll_rise(after[new], after[old])
    more = intervals.gain_difference(before[new], after[new], before[old], after[old])
    enough = len(facts["costs"]) >= rule["pairs"] and len(seeds) >= rule["seeds"]
    clear = REPRODUCED if gap.high < 0 and more.low > 0 else NOT_REPRODUCED if gap.low > 0 else INCONCLUSIVE
    figure = (
        f"best before: {old}, after: {new}; new minus old {gap} nats per token; in recovery the new one gained {more} more ({compared}), "
        f"n = {gap.n} articles"
    )
    return [Measured(evidence.first_model, figure, clear if enough and not (gap.note or more.note) else INCONCLUSIVE)]


def _depth_or_width(evidence: Evidence, rule: dict[str, Any]) -> list[Measured]:
    scores = evidence.test("03b_controls")
    gap = intervals.nll_rise(scores["recovered"], scores["width"])
    figure = (
        f"fewer layers minus narrower MLPs {gap} nats per token, same parameters, same recovery, each at its own rate (attention keeps its width; "
        f"n = {gap.n} articles)"
    )
    return [Measured(evidence.first_model, figure, at_most(gap, rule["threshold"]))]


def _which_end(evidence: Evidence, rule: dict[str, Any]) -> list[Measured]:
    before, after = evidence.test("02_prune_gpt2"), evidence.test("03c_choice")
    rises = {
        "before recovery": intervals.nll_rise(
            before[f"most_sensitive-{evidence.fewer}"], before[f"least_sensitive-{evidence.fewer}"]
        ),
        "after the same short recovery": intervals.nll_rise(after["most_sensitive"], after["least_sensitive"]),
    }
    return [
        Measured(
            evidence.first_model,
            f"most minus least sensitive {rise} nats per token, {when} (n = {rise.n} articles)",
            at_least(rise, rule["threshold"]),
        )
        for when, rise in rises.items()
    ]


def _middle(evidence: Evidence, rule: dict[str, Any]) -> list[Measured]:
    """Both halves of the claim, on the family of which both were measured: depth against width, and the middle against the rest."""
    profile, scores = evidence.record("01_sensitivity", "profile"), evidence.test("03b_controls")
    rises, quarter = np.asarray(profile.by_document["drop_nll_nats"]), profile.n_layers // 4
    inner = np.arange(profile.n_layers)[quarter:-quarter]
    outer = np.setdiff1d(np.arange(1, profile.n_layers - 1), inner)
    width = intervals.nll_rise(scores["unrecovered"], scores["width, unrecovered"])
    figure = (
        f"before recovery fewer layers minus narrower MLPs {width} nats per token, same parameters (n = {width.n} articles)"
    )
    verdicts = [at_most(width, rule["threshold"])]
    if len(outer):
        gap = intervals.mean_per_token(rises[inner].mean(axis=0) - rises[outer].mean(axis=0), profile.teacher.n_tokens)
        figure += f"; middle half minus outer layers, the ends apart, {gap} (n = {gap.n} articles)"
        verdicts.append(at_most(gap, rule["threshold"]))
    return [Measured(evidence.first_model, figure, _both(verdicts))]


def _both(verdicts: list[str]) -> str:
    """Of a claim of two halves: it does not hold where one of them does not, and holds where both do."""
    if NOT_REPRODUCED in verdicts:
        return NOT_REPRODUCED
    return REPRODUCED if verdicts == [REPRODUCED, REPRODUCED] else INCONCLUSIVE


def _real_work(evidence: Evidence, rule: dict[str, Any]) -> list[Measured]:
    """Without CE the matched control is the frozen teacher, whose gradient is zero. CE: the teacher trained on the same text."""
    measured = []
    for model, notebook in ((evidence.first_model, "03_recovery"), (evidence.second_model, "04_transfer_tinyllama")):
        scores = evidence.test(notebook)
        gain = intervals.nll_rise(scores["unrecovered"], scores["recovered"])
        beside = intervals.ppl_ratio(scores["recovered"], scores[CONTROL])
        figure = f"without the text itself as a target recovery gains {gain} nats per token on unseen articles (n = {gain.n})"
        if notebook == "03_recovery":
            far = evidence.elsewhere()
            gain_there = intervals.nll_rise(far["unrecovered"], far["recovered"])
            figure += f" and {gain_there} on {evidence.parameter('03b_controls', 'elsewhere')} (n = {gain_there.n}), which no run was trained on"
        figure += (
            "; its matched control, the frozen whole model, cannot move; beside the whole model trained on the same text the student stands "
            f"at a PPL ratio of {beside}"
        )
        measured.append(Measured(model, figure, at_least(gain, rule["threshold"])))
    scores = evidence.test("03_recovery")
    more = intervals.gain_difference(scores["unrecovered"], scores["ce"], scores["teacher"], scores[CONTROL])
    figure = f"with CE, the student gains {more} nats per token more than the whole model does from the same text (n = {more.n} articles)"
    measured.append(Measured(evidence.first_model, figure, at_least(more, rule["threshold"])))
    return measured


def _profiles(evidence: Evidence) -> dict[str, Any]:
    return {
        evidence.first_model: evidence.record("01_sensitivity", "profile"),
        evidence.second_model: evidence.record("04_transfer_tinyllama", "profile"),
    }


# How each claim is measured, and where.
_MEASURES: dict[str, tuple[Callable[[Evidence, dict[str, Any]], list[Measured]], str]] = {
    "C1": (_sizes, "02_prune_gpt2"),
    "C2": (_first_recovered, "03_recovery"),
    "C3": (_first_speed, "02_prune_gpt2"),
    "C4": (_second_arm("recovered", "03_recovery"), "04_transfer_tinyllama"),
    "C5": (_second_arm("staged", "03b_controls"), "04_transfer_tinyllama"),
    "C6": (_second_speed, "04_transfer_tinyllama"),
    "C7": (_seeds, "05_seed_stability"),
    "C8": (_ends_are_critical, "01_sensitivity"),
    "C9": (_winner_changes, "03c_choice"),
    "C10": (_transfers, "04_transfer_tinyllama"),
    "C11": (_depth_or_width, "03b_controls"),
    "C12": (_which_end, "02_prune_gpt2"),
    "C13": (_middle, "01_sensitivity"),
    "C14": (_real_work, "03_recovery"),
}

# What follows from the published shapes alone, whatever was run.
_EXPECTATIONS = {
    "C3": _expected_speed("gpt2-shape", "12", "10", "9"),
    "C4": _published_share("22", "20"),
    "C5": _published_share("22", "19"),
    "C6": _expected_speed("tinyllama-1.1b-shape", "22", "20", "19"),
}
