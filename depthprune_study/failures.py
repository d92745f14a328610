"""What did not hold or did not pay, as sentences that are made from verdicts, scores and parameters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from depthprune_core import intervals
from depthprune_core.intervals import Interval
from depthprune_core.records import Divergence, Score
from depthprune_study import verdict_rules
from depthprune_study.claims import INCONCLUSIVE, NOT_REPRODUCED, Verdict
from depthprune_study.evidence import CONTROL, Evidence

LITTLE = 1.05  # a PPL ratio below which a cut leaves little to win back


def lines(evidence: Evidence, verdicts: Sequence[Verdict]) -> list[str]:
    """What failed, what lost to something plainer, and the limits of the study."""
    failed = [(v, item) for v in verdicts for item in v.stand_ins if item.verdict == NOT_REPRODUCED]
    open_ = [(v, item) for v in verdicts for item in v.stand_ins if item.verdict == INCONCLUSIVE]
    found = [
        f"{v.id} is not reproduced on {item.model}: {item.figure}. The source: {v.claim}: {v.source}." for v, item in failed
    ]
    found += [f"{v.id} is inconclusive on {item.model}: {item.figure}." for v, item in open_]
    found += target_missed(evidence)
    found += diverged(evidence)
    found += against_the_trained_teacher(evidence)
    found += plainer_training_that_wins(evidence)
    found += fewer_bits_that_win(evidence)
    found += stages_that_lose(evidence)
    found += at_an_edge(evidence)
    found += little_to_win_back(evidence)
    return found + limits(evidence)


def paragraph(evidence: Evidence, verdicts: Sequence[Verdict]) -> str:
    """The same in a few words, worst first: the target, what lost to something plainer, the claims."""
    parts = []
    if any(target_missed(evidence)):
        target, ratio = verdict_rules.read().target, evidence.ratio(evidence.lead, "recovered")
        parts.append(
            f"The study's own target, a PPL ratio of at most {target.threshold}, is not reached: {ratio} (n = {ratio.n} articles)."
        )
    if plainer := [f"{arm} at {gap}" for arm, gap in _plainer_that_wins(evidence)]:
        n = len(evidence.test("03b_controls")["teacher"].documents)
        parts.append(
            f"Plainer training of the same cut of {evidence.first_model} ends below the recipe, in times its perplexity: {'; '.join(plainer)} "
            f"(n = {n} articles)."
        )
    if rounded := _rounded_that_win(evidence):
        parts.append(f"Rounding keeps more in fewer bytes: {'; '.join(rounded)}.")
    for word in (NOT_REPRODUCED, INCONCLUSIVE):
        ids: dict[str, list[str]] = {}
        for verdict in verdicts:
            for item in verdict.stand_ins:
                if item.verdict == word and verdict.id not in ids.get(item.model, []):
                    ids.setdefault(item.model, []).append(verdict.id)
        if ids:
            of_each = [f"{', '.join(of)} on {model}" for model, of in ids.items()]
            parts.append(f"{word.capitalize()}: {'; '.join(of_each)}.")
    return " ".join(parts)


def target_missed(evidence: Evidence) -> Iterator[str]:
    """Where the study's own target (params/claims.yaml) is for the model and the cut that it leads with, and is not reached."""
    target, notebook = verdict_rules.read().target, evidence.lead
    plan, tokens = evidence.cut(notebook), evidence.recovery_tokens(notebook)
    if evidence.lead_model != target.model or len(plan.dropped) != target.fewer or tokens > target.tokens:
        return
    ratio = evidence.ratio(notebook, "recovered")
    if ratio.high > target.threshold:
        missed = "missed" if ratio.low > target.threshold else "not shown to be reached: the interval straddles it"
        yield (
            f"This study's own target is {missed}: at most {target.threshold} on the test articles, {target.model} less {target.fewer} layers, "
            f"within {target.tokens:,} tokens and without the text itself as a target. It stands at {ratio} after {tokens:,} tokens "
            f"(n = {ratio.n} articles)."
        )


def diverged(evidence: Evidence) -> list[str]:
    """Arms, sets and trials whose recovery was stopped, by each name that they are shown under."""
    pilots = [(notebook, name) for notebook in ("03b_controls", "04_transfer_tinyllama") for name in evidence.pilots(notebook)]
    found = {}
    for notebook, name in (
        ("03_recovery", "sweep"),
        ("03_recovery", "trials_with_text"),
        ("03_recovery", "test_scores"),
        ("03b_controls", "test_scores"),
        ("03b_controls", "timed_test_scores"),
        ("03c_choice", "set_scores"),
        ("03c_choice", "test_scores"),
        ("04_transfer_tinyllama", "test_scores"),
        ("05_seed_stability", "test_scores"),
        *pilots,
    ):
        scores = evidence.record(notebook, name) if evidence.has(notebook, name) else {}
        found |= {
            f"{arm}: {score.diverged}": f"{arm} (notebook {notebook}) diverged: {score.diverged}. "
            "What such a run began from stands in its place."
            for arm, score in (scores if isinstance(scores, dict) else {name.split("/")[1]: scores}).items()
            if score.diverged
        }
    return list(found.values())


def against_the_trained_teacher(evidence: Evidence) -> Iterator[str]:
    """What the fair control takes away: the text alone may improve the whole model more than recovery improves the cut one."""
    for model, notebook in ((evidence.first_model, "03_recovery"), (evidence.second_model, "04_transfer_tinyllama")):
        scores = evidence.test(notebook)
        control = evidence.ratio(notebook, CONTROL)
        if control.high < 1:
            behind = intervals.ppl_ratio(scores["recovered"], scores[CONTROL])
            yield (
                f"Training on the recovery text alone brings the whole {model} to {control}; measured against that model, "
                f"the recovered student stands at {behind} (n = {behind.n} articles)."
            )


def plainer_training_that_wins(evidence: Evidence) -> Iterator[str]:
    """Rivals whose student ends clearly below the recipe's on the test articles, and what the other kind of text says of each."""
    far, elsewhere = evidence.elsewhere(), evidence.parameter("03b_controls", "elsewhere")
    divergences: dict[str, Divergence] = {}
    for notebook in ("03b_controls", "03_recovery"):
        divergences |= evidence.record(notebook, "divergences") if evidence.has(notebook, "divergences") else {}
    for arm, gap in _plainer_that_wins(evidence):
        told = (
            f"{evidence.first_model}: plainer training with the text itself ({arm}) ends lower than the recipe, at {gap} of its perplexity on the "
            f"test articles (n = {gap.n})"
        )
        if arm in far:
            there = intervals.ppl_ratio(far[arm], far["recovered"])
            told += f"; on {elsewhere} at {there} (n = {there.n})"
        if arm in far and CONTROL in far:
            told += f", where it stands at {_ratio(far, arm)} of the whole model, and the whole model trained on the same text at {_ratio(far, CONTROL)}"
        if arm in divergences and divergences[arm].mean_kl_nats > divergences["recovered"].mean_kl_nats:
            its_own, ours = divergences[arm], divergences["recovered"]
            told += (
                f". It ends further from the whole model's own predictions: KL {its_own.mean_kl_nats:.3f} against {ours.mean_kl_nats:.3f} nats per "
                f"token, the same first choice {its_own.agreement:.1%} against {ours.agreement:.1%} of the time "
                f"(n = {len(ours.documents)} validation articles)"
            )
        yield f"{told}."


def _plainer_that_wins(evidence: Evidence) -> Iterator[tuple[str, Interval]]:
    """Arms trained on the text itself, and their perplexity over the recovered student's, where it is clearly lower."""
    near = evidence.test("03b_controls") | evidence.record("03b_controls", "timed_test_scores")
    for arm in (name for name in near if name.startswith("ce")):
        gap = intervals.ppl_ratio(near[arm], near["recovered"])
        if gap.high < 1 and not gap.note:
            yield arm, gap


def fewer_bits_that_win(evidence: Evidence) -> Iterator[str]:
    """Whole models rounded to fewer bits that take fewer bytes than the cut one and lose clearly less."""
    scores, n_bytes = evidence.test("03b_controls"), evidence.record("03b_controls", "bytes").values
    for arm in _rounded_that_win(evidence):
        share, of_cut = (n_bytes[name] / n_bytes["teacher"] for name in (arm, "recovered"))
        yield (
            f"As a way to save bytes, dropping layers of {evidence.first_model} loses to rounding: {arm} takes {share:.2f} of the bytes at a "
            f"PPL ratio of {_ratio(scores, arm)}, the recovered student {of_cut:.2f} at {_ratio(scores, 'recovered')} "
            f"(n = {len(scores[arm].documents)} articles). Where a model's weights came out of a format of few bits, rounding to as many is nearly free."
        )


def _rounded_that_win(evidence: Evidence) -> list[str]:
    scores, n_bytes = evidence.test("03b_controls"), evidence.record("03b_controls", "bytes").values
    return [
        arm
        for arm in scores
        if arm.startswith("quantised")
        and intervals.ppl_ratio(scores[arm], scores["recovered"]).high < 1
        and n_bytes[arm] < n_bytes["recovered"]
    ]


def little_to_win_back(evidence: Evidence) -> Iterator[str]:
    """Families whose cut costs so little that recovery has little to show."""
    for model, notebook in ((evidence.first_model, "03_recovery"), (evidence.second_model, "04_transfer_tinyllama")):
        unrecovered, fewer = evidence.ratio(notebook, "unrecovered"), len(evidence.cut(notebook).dropped)
        if unrecovered.point < LITTLE:
            yield f"Dropping {fewer} layers of {model} costs only {unrecovered} (n = {unrecovered.n} articles): there is little to win back."


def stages_that_lose(evidence: Evidence) -> Iterator[str]:
    """Staged arms that end clearly above one shot at equal tokens."""
    families = ((evidence.first_model, "03b_controls"), (evidence.second_model, "04_transfer_tinyllama"))
    for model, notebook in families:
        scores = evidence.test(notebook)
        gap = intervals.ppl_ratio(scores["staged"], scores["one_shot"])
        if gap.low > 1 and not gap.note:
            yield (
                f"{model}: in two stages one layer more ends higher than all at once on equal tokens: {gap} of its perplexity "
                f"(n = {gap.n} articles)."
            )


def at_an_edge(evidence: Evidence) -> Iterator[str]:
    """Learning rates that were kept at an edge of what was tried: a better one may lie beyond."""
    first, second = evidence.first_model, evidence.second_model
    chosen = evidence.record("03_recovery", "recipe").values
    there = evidence.record("04_transfer_tinyllama", "choice").values
    curves = evidence.record("03b_controls", "curves")
    parameters = evidence.stamp("03b_controls", "curves").parameters
    rates = chosen["lr_grid"]
    of_control = chosen.get(
        "control_lr_grid", rates
    )  # records of older code lack this one, and the others that are asked for by `get`
    kept = [
        (f"{first}, recovered", chosen["recipe"]["lr"], rates),
        (f"{first}, ce", chosen["ce"]["lr"], of_control),
        (f"{first}, {CONTROL}", chosen["control"]["lr"], of_control),
        (f"{first}, width", curves["width"].recipe["lr"], parameters.get("width_lr_grid") or rates),
        (f"{first}, ce, lora", curves["ce, lora"].recipe["lr"], parameters["lora_lr_grid"]),
        (f"{second}, recovered", there["lr"], there["unchanged"]["lr_grid"]),
        (f"{second}, {CONTROL}", there.get("control_lr"), there.get("control_lr_grid", [])),
    ]
    edges = [
        f"{arm}: {rate:g} of {', '.join(f'{lr:g}' for lr in sorted(grid))}"
        for arm, rate, grid in kept
        if len(grid) > 1 and rate in (min(grid), max(grid))
    ]
    if edges:
        yield f"Learning rates that were kept at an edge of what was tried, so that a better one may lie beyond: {'; '.join(edges)}."


def limits(evidence: Evidence) -> list[str]:
    """What the study is too short or too small to show, from its parameters and the notes that its notebooks left."""
    first, second = (evidence.recovery_tokens(notebook) for notebook in ("03_recovery", "04_transfer_tinyllama"))
    scored = [f"{evidence.parameter(n, 'score_tokens'):,}" for n in ("03_recovery", "04_transfer_tinyllama")]
    notes = evidence.record("04_transfer_tinyllama", "choice").values["notes"]
    return [
        f"Recovery is short on purpose ({first:,} tokens on {evidence.first_model}, {second:,} on {evidence.second_model}); "
        f"articles are scored on their first {' and '.join(dict.fromkeys(scored))} tokens.",
        *(f"{name}: {note}." for name, note in sorted(notes.items())),
    ]


def _ratio(scores: dict[str, Score], arm: str) -> intervals.Interval:
    return intervals.ppl_ratio(scores[arm], scores["teacher"])
