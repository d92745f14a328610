from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import handmade
import pytest
import yaml
from handmade import evidence, profile, score, timing

from depthprune_core import figures, models
from depthprune_core.intervals import Interval
from depthprune_core.records import Facts, Score
from depthprune_study import claims, places, sections, settings, story
from depthprune_study.claims import INCONCLUSIVE, NOT_REPRODUCED, REPRODUCED, at_least, at_most, judge, probability, within
from depthprune_study.evidence import RANDOM_WEIGHTS
from depthprune_study.settings import StudyError

CLAIMS = tuple(f"C{i}" for i in range(1, 15))
SOURCE = {"first": "gpt2", "second": "tinyllama-1.1b"}
RULES = yaml.safe_load((places.PARAMS / "claims.yaml").read_text(encoding="utf-8"))
TARGET = RULES.pop("target")


def between(low: float, high: float) -> Interval:
    return Interval((low + high) / 2, low, high, 8, 8.0)


# ---------------------------------------------------------------- rules


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.9, 1.13, REPRODUCED),  # touches the threshold from below
        (0.9, 1.1300001, INCONCLUSIVE),
        (1.13, 1.2, INCONCLUSIVE),  # touches it from above
        (1.1300001, 1.2, NOT_REPRODUCED),
        (-math.inf, math.inf, INCONCLUSIVE),  # one document alone
    ],
)
def test_at_most_asks_for_the_whole_interval(low: float, high: float, verdict: str) -> None:
    assert at_most(between(low, high), 1.13) == verdict


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(0.0, 0.1, REPRODUCED), (-1e-9, 0.1, INCONCLUSIVE), (-0.1, 0.0, INCONCLUSIVE), (-0.1, -1e-9, NOT_REPRODUCED)],
)
def test_at_least_is_the_mirror_image(low: float, high: float, verdict: str) -> None:
    assert at_least(between(low, high), 0.0) == verdict
    assert at_most(between(-high, -low), 0.0) == verdict


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (1.1, 1.3, REPRODUCED),
        (1.2, 1.31, INCONCLUSIVE),
        (1.0, 1.1, INCONCLUSIVE),
        (1.0, 1.4, INCONCLUSIVE),
        (1.3, 1.4, INCONCLUSIVE),
        (1.0, 1.09, NOT_REPRODUCED),
        (1.31, 1.4, NOT_REPRODUCED),
    ],
)
def test_within_asks_for_the_whole_interval_on_one_side(low: float, high: float, verdict: str) -> None:
    assert within(between(low, high), 1.1, 1.3) == verdict


@pytest.mark.parametrize(
    ("value", "verdict"),
    [
        (1.0, REPRODUCED),
        (0.95, REPRODUCED),
        (0.949, INCONCLUSIVE),
        (0.051, INCONCLUSIVE),
        (0.05, NOT_REPRODUCED),
        (0.0, NOT_REPRODUCED),
    ],
)
def test_probability_has_two_thresholds(value: float, verdict: str) -> None:
    assert probability(value, 0.95, 0.05) == verdict


def test_two_models_that_disagree_decide_nothing() -> None:
    assert claims._together([REPRODUCED, REPRODUCED]) == REPRODUCED
    assert claims._together([REPRODUCED, NOT_REPRODUCED]) == INCONCLUSIVE


# ---------------------------------------------------------------- the table of claims


def test_every_claim_has_a_rule_and_a_measure() -> None:
    assert tuple(RULES) == tuple(claims._MEASURES) == CLAIMS
    assert {notebook for _, notebook in claims._MEASURES.values()} <= set(settings.SCHEMAS)


@pytest.mark.parametrize("claim", CLAIMS)
def test_every_claim_is_stated_with_its_source_and_a_rule_in_numbers(claim: str) -> None:
    entry = RULES[claim]
    assert entry["claim"]
    assert entry["source"]
    numbers = [value for value in entry["rule"].values() if not isinstance(value, str)]
    assert numbers


def test_every_claim_gets_one_verdict_in_order(tmp_path: Path) -> None:
    assert tuple(verdict.id for verdict in judge(evidence(tmp_path))) == CLAIMS


@pytest.mark.parametrize("claim", CLAIMS)
def test_a_stand_in_decides_nothing_about_the_sources_models(tmp_path: Path, claim: str) -> None:
    (verdict,) = (v for v in judge(evidence(tmp_path)) if v.id == claim)
    if claim == "C1":  # follows from shapes, whatever was run
        assert verdict.verdict == REPRODUCED
        assert verdict.stand_ins == ()
        assert verdict.figure == "GPT-2 124M's shape: 11.39 % / 17.09 %"
    else:
        assert verdict.verdict == "not testable in this study"
        assert verdict.why
    if claim != "C1":
        assert {item.model for item in verdict.stand_ins} <= {"gpt2-mini", "smollm2-135m"}
        assert {item.verdict for item in verdict.stand_ins} == {REPRODUCED}


@pytest.mark.parametrize("claim", CLAIMS)
def test_the_sources_own_models_decide(tmp_path: Path, claim: str) -> None:
    (verdict,) = (v for v in judge(evidence(tmp_path, **SOURCE)) if v.id == claim)
    assert (verdict.verdict, verdict.why, verdict.stand_ins) == (REPRODUCED, "", ())
    assert verdict.figure


def test_one_of_the_sources_models_beside_a_stand_in_decides_alone(tmp_path: Path) -> None:
    (verdict,) = (v for v in judge(evidence(tmp_path, first="gpt2")) if v.id == "C8")
    assert verdict.verdict == REPRODUCED
    assert [item.model for item in verdict.stand_ins] == ["smollm2-135m"]


@pytest.mark.parametrize(
    ("claim", "expected"),
    [
        ("C3", "GPT-2 124M's shape at 10 / 9 layers: 1.20x / 1.33x expected by layers, 1.13x / 1.21x by bytes of weights"),
        ("C6", "TinyLlama 1.1B's shape at 20 / 19 layers: 1.10x / 1.16x expected by layers, 1.09x / 1.15x by bytes of weights"),
    ],
)
def test_the_expected_speed_follows_from_the_shape(tmp_path: Path, claim: str, expected: str) -> None:
    (verdict,) = (v for v in judge(evidence(tmp_path)) if v.id == claim)
    assert verdict.figure == expected


@pytest.mark.parametrize(
    ("claim", "name", "gains", "decided"),
    [
        ("C3", "gpt2-shape", {"10": 1.15, "9": 1.2}, REPRODUCED),
        ("C3", "gpt2-shape", {"10": 1.05, "9": 1.2}, NOT_REPRODUCED),
        ("C6", "tinyllama-1.1b-shape", {"20": 1.09, "19": 1.09}, REPRODUCED),
        ("C6", "tinyllama-1.1b-shape", {"20": 1.09, "19": 1.15}, NOT_REPRODUCED),
    ],
)
def test_a_claim_of_speed_is_decided_on_the_sources_shape(
    tmp_path: Path, claim: str, name: str, gains: dict[str, float], decided: str
) -> None:
    promised = {"10": 1.2, "9": 1.33, "20": 1.1, "19": 1.16}
    timings = {depth: timing(gain, by_layer_count=promised[depth]) for depth, gain in gains.items()}
    timed = {("02_prune_gpt2", f"timing-{name}"): timings}
    (verdict,) = (v for v in judge(evidence(tmp_path, changes=timed)) if v.id == claim)
    assert (verdict.verdict, verdict.why) == (decided, "")
    assert "shape: decode " in verdict.figure
    assert len(verdict.stand_ins) == 1  # the model that ran keeps its own column


@pytest.mark.parametrize(
    ("two", "three", "verdict"),
    [
        (between(1.09, 1.11), between(1.08, 1.12), REPRODUCED),
        (between(1.09, 1.11), between(1.13, 1.15), NOT_REPRODUCED),
        (between(1.01, 1.11), between(1.10, 1.15), INCONCLUSIVE),  # not clean
        (between(1.04, 1.17), between(1.04, 1.17), INCONCLUSIVE),  # a step from 1.10 to 1.16 would not show
    ],
)
def test_three_layers_are_mixed_only_where_a_step_would_show(two: Interval, three: Interval, verdict: str) -> None:
    assert claims._clean_then_mixed(two, three, clean=1.03, promised=1.16 / 1.10) == verdict


@pytest.mark.parametrize("claim", ["C4", "C5"])
def test_the_share_of_parameters_follows_from_the_shape(tmp_path: Path, claim: str) -> None:
    (verdict,) = (v for v in judge(evidence(tmp_path)) if v.id == claim)
    assert verdict.figure == f"TinyLlama's shape: -{'8.01' if claim == 'C4' else '12.01'} % parameters"


def test_what_a_verdict_rests_on_that_is_missing_is_told(tmp_path: Path) -> None:
    with pytest.raises(
        StudyError, match="record 05_seed_stability/seeds of study by-hand is not there: run the notebook first"
    ):
        judge(evidence(tmp_path, changes={("05_seed_stability", "seeds"): None}))


# ---------------------------------------------------------------- each rule can fail


def flat(value: float) -> Any:
    return profile((value,) * 12)


WITHOUT_ENDS = tuple(reversed(handmade.EDGY[1:-1]))
THIRD, FOURTH = (handmade.contents()[notebook]["test_scores"] for notebook in ("03_recovery", "04_transfer_tinyllama"))
CONTROLS, CHOICE = (handmade.contents()[notebook]["test_scores"] for notebook in ("03b_controls", "03c_choice"))
SETS = handmade.contents()["03c_choice"]["sets"].values
FIFTH = handmade.contents()["05_seed_stability"]["test_scores"]


@pytest.mark.parametrize(
    ("claim", "notebook", "name", "record"),
    [
        (
            "C1",
            "02_prune_gpt2",
            "published_sizes",
            Facts({"gpt2-shape": {"12": 100, "10": 80, "9": 70}, "tinyllama-1.1b-shape": {"22": 22, "20": 20, "19": 19}}),
        ),
        ("C2", "03_recovery", "test_scores", THIRD | {"recovered": score(3.2)}),
        ("C3", "02_prune_gpt2", "timing-2", timing(1.0)),
        ("C3", "02_prune_gpt2", "timing-2", timing(1.4)),
        ("C4", "04_transfer_tinyllama", "test_scores", FOURTH | {"recovered": score(3.1)}),
        ("C5", "04_transfer_tinyllama", "test_scores", FOURTH | {"staged": score(3.1)}),
        ("C6", "04_transfer_tinyllama", "timing-2", timing(1.0)),
        ("C6", "04_transfer_tinyllama", "timing-3", timing(1.5)),
        ("C7", "05_seed_stability", "test_scores", FIFTH | {"seed 1": score(3.08)}),
        ("C7", "05_seed_stability", "test_scores", FIFTH | {"seed 1": score(800.0)}),
        ("C8", "01_sensitivity", "profile", profile((0.1, *WITHOUT_ENDS, 0.1))),
        ("C9", "03c_choice", "sets", Facts(SETS | {"new": "2,3"})),
        ("C9", "03c_choice", "test_scores", CHOICE | {f"4,5 (seed {seed})": score(3.09) for seed in (0, 1)}),
        ("C11", "03b_controls", "test_scores", CONTROLS | {"width": score(3.01)}),
        ("C12", "03c_choice", "test_scores", CHOICE | {"most_sensitive": score(3.0)}),
        ("C10", "04_transfer_tinyllama", "test_scores", FOURTH | {"recovered": score(3.3)}),
        (
            "C12",
            "02_prune_gpt2",
            "test_scores",
            {"teacher": score(3.0), "least_sensitive-2": score(3.5), "most_sensitive-2": score(3.1)},
        ),
        ("C13", "01_sensitivity", "profile", profile((0.1,) * 3 + (0.5,) * 6 + (0.1,) * 3)),
        ("C13", "03b_controls", "test_scores", CONTROLS | {"width, unrecovered": score(3.1)}),
        ("C14", "03_recovery", "test_scores", THIRD | {"recovered": score(4.0)}),
    ],
)
def test_a_claim_that_does_not_hold_is_not_reproduced(
    tmp_path: Path, claim: str, notebook: str, name: str, record: Any
) -> None:
    (verdict,) = (v for v in judge(evidence(tmp_path, changes={(notebook, name): record})) if v.id == claim)
    verdicts = [item.verdict for item in verdict.stand_ins] or [verdict.verdict]
    last = notebook == "04_transfer_tinyllama" or (claim, notebook) == ("C12", "03c_choice")
    assert verdicts[-1 if last else 0] == NOT_REPRODUCED


def test_speed_that_layer_counts_do_not_allow_decides_nothing(tmp_path: Path) -> None:
    small_share = timing(1.05, by_layer_count=30 / 28)
    changes = {("02_prune_gpt2", "timing-2"): small_share}
    (verdict,) = (
        v for v in judge(evidence(tmp_path, changes=changes, first="smollm2-135m", second="gpt2-mini")) if v.id == "C3"
    )
    (item,) = verdict.stand_ins
    assert item.verdict == claims.NOT_TESTABLE
    assert item.figure.endswith("x (n = 5 rounds); its layer counts allow 1.07x at most")


def test_where_the_first_family_leads_c6_is_asked_of_it_too(tmp_path: Path) -> None:
    timings = {("02_prune_gpt2", f"timing-{k}"): timing(1.1) for k in (2, 3)}
    (verdict,) = (
        v for v in judge(evidence(tmp_path, changes=timings, first="smollm2-135m", second="gpt2-mini")) if v.id == "C6"
    )
    assert [item.model for item in verdict.stand_ins] == ["smollm2-135m", "gpt2-mini"]


def test_a_new_winner_that_is_not_clear_of_the_old_one_leaves_c9_open(tmp_path: Path) -> None:
    close = CHOICE | {f"4,5 (seed {seed})": score(3.07, spread=0.5) for seed in (0, 1)}
    (verdict,) = (v for v in judge(evidence(tmp_path, changes={("03c_choice", "test_scores"): close})) if v.id == "C9")
    assert [item.verdict for item in verdict.stand_ins] == [INCONCLUSIVE]


def test_a_winner_that_was_better_before_recovery_too_leaves_c9_open(tmp_path: Path) -> None:
    known = CHOICE | {"4,5, unrecovered": score(3.0), "2,3, unrecovered": score(3.2)}
    (verdict,) = (v for v in judge(evidence(tmp_path, changes={("03c_choice", "test_scores"): known})) if v.id == "C9")
    assert [item.verdict for item in verdict.stand_ins] == [INCONCLUSIVE]


def test_fewer_sets_than_the_rule_asks_for_leave_c9_open(tmp_path: Path) -> None:
    few = Facts(SETS | {"costs": {name: SETS["costs"][name] for name in ("2,3", "4,5")}})
    (verdict,) = (v for v in judge(evidence(tmp_path, changes={("03c_choice", "sets"): few})) if v.id == "C9")
    assert [item.verdict for item in verdict.stand_ins] == [INCONCLUSIVE]


def test_where_the_second_family_is_a_stand_in_the_first_one_leads(tmp_path: Path) -> None:
    found = evidence(tmp_path, first="smollm2-135m", second="gpt2-mini")
    verdicts = {verdict.id: verdict for verdict in judge(found)}
    assert [item.model for item in verdicts["C5"].stand_ins] == ["smollm2-135m", "gpt2-mini"]
    lines = found.answer_lines()
    assert lines[0].startswith("smollm2-135m: layers 2 + 3 of 12 dropped; PPL ratio to the whole model 1.221")
    assert "narrower MLPs instead: 1.284 [" in lines[1] and "] before the same recovery, 1.105 [" in lines[1]
    assert "staged (2 + 3 + 6)" in lines[2]
    assert lines[3].startswith("gpt2-mini (a stand-in): layers 2 + 4 of 12 dropped")
    shown = {"unrecovered", "recovered", "ce", "width, as small", "one_shot, 3 fewer", "staged, 3 fewer"}
    assert set(found.answer_ratios()) == {*shown, "teacher + same text (ce)"}


def test_the_answer_tells_what_the_text_itself_does_for_the_same_cut_here_and_elsewhere(tmp_path: Path) -> None:
    third = handmade.contents()["03b_controls"]
    changes = {
        ("03b_controls", "test_scores"): third["test_scores"] | {"ce": score(2.9), "ce, lora": score(2.8)},
        ("03b_controls", "elsewhere_scores"): third["elsewhere_scores"] | {"ce": score(4.1), "ce, lora": score(4.0)},
    }
    found = evidence(tmp_path, first="smollm2-135m", second="gpt2-mini", changes=changes)
    (line,) = [line for line in found.answer_lines() if "the text itself" in line]
    here = ", ".join(
        f"{found.ratio('03b_controls', arm)} ({how})" for arm, how in (("ce", "all weights"), ("ce, lora", "adapters alone"))
    )
    assert f"on as many tokens: {here}; n = 8. On news-excerpt, which nothing was trained on: 1.105 [" in line
    assert line.endswith("recovered as above 1.221 [1.221, 1.221]; n = 8.")


def test_a_gain_of_speed_that_is_not_shown_is_told_as_such(tmp_path: Path) -> None:
    for gain, told in ((1.0, "times as fast (n = 5 rounds): no gain is shown."), (1.2, "times as fast (n = 5 rounds).")):
        found = evidence(tmp_path / str(gain), changes={("02_prune_gpt2", "timing-2"): handmade.timing(gain)})
        assert found.answer_lines()[-1].endswith(told)


def test_a_ce_student_that_gains_less_than_the_whole_model_from_the_same_text_does_no_real_work(tmp_path: Path) -> None:
    changed = THIRD | {"teacher + same text (ce)": score(2.0)}
    (verdict,) = (v for v in judge(evidence(tmp_path, changes={("03_recovery", "test_scores"): changed})) if v.id == "C14")
    assert [item.verdict for item in verdict.stand_ins] == [REPRODUCED, REPRODUCED, NOT_REPRODUCED]


def test_a_layer_that_is_sensitive_on_few_articles_leaves_c8_open(tmp_path: Path) -> None:
    plain = profile(handmade.EDGY)
    rows = [list(row) for row in plain.by_document["drop_nll_nats"]]
    rows[-1] = [-1_000.0 if i % 2 else 1_500.0 for i in range(len(rows[-1]))]  # the last layer: now critical, now not
    mixed = type(plain)(12, plain.teacher, {"drop_nll_nats": tuple(map(tuple, rows))}, plain.by_layer, plain.angular_distance)
    (verdict,) = (v for v in judge(evidence(tmp_path, changes={("01_sensitivity", "profile"): mixed})) if v.id == "C8")
    assert verdict.stand_ins[0].verdict == INCONCLUSIVE


@pytest.mark.parametrize(
    ("removed", "nats", "verdict"),
    [
        (0.11, 3.05, REPRODUCED),
        (0.11, 3.2, NOT_REPRODUCED),
        (0.05, 3.05, claims.NOT_TESTABLE),  # two of thirty layers that stay within say nothing of two of twelve
        (0.05, 3.2, NOT_REPRODUCED),
        (0.2, 3.05, REPRODUCED),
        (0.2, 3.2, claims.NOT_TESTABLE),
    ],
)
def test_a_cut_of_another_share_tells_only_what_holds_all_the_more(
    tmp_path: Path, removed: float, nats: float, verdict: str
) -> None:
    n_bytes = Facts({"teacher": 100, **dict.fromkeys(("recovered", "width", "one_shot", "staged"), 100 * (1 - removed))})
    changes = {
        ("03b_controls", "bytes"): n_bytes,
        ("03_recovery", "test_scores"): THIRD | {"recovered": score(nats)},
    }
    (item,) = claims._first_recovered(evidence(tmp_path, changes=changes), RULES["C2"]["rule"])
    assert item.verdict == verdict
    assert item.figure.endswith(f"] before recovery; {removed:.1%} of the parameters are gone, in the source 11%")


def test_a_cut_that_needs_no_recovery_to_be_within_is_told_to_be_so(tmp_path: Path) -> None:
    for unrecovered, needs_none in ((3.05, True), (3.2, False)):
        changes = {("03_recovery", "test_scores"): THIRD | {"unrecovered": score(unrecovered)}}
        (item,) = claims._first_recovered(evidence(tmp_path / str(needs_none), changes=changes), RULES["C2"]["rule"])
        assert ("before recovery, which is within it already;" in item.figure) == needs_none


def test_verdicts_are_counted_by_model_and_claim(tmp_path: Path) -> None:
    own, first, second = claims.tally(judge(evidence(tmp_path)))
    assert own == "Of 14 claims on the source's own models: 1 reproduced, 13 not testable."
    assert first.startswith("Of 9 claims on gpt2-mini: ") and second.startswith("Of 6 claims on smollm2-135m: ")
    both = [claims.Measured("m", "", REPRODUCED), claims.Measured("m", "", NOT_REPRODUCED)]
    (verdict,) = (v for v in judge(evidence(tmp_path / "more")) if v.id == "C14")
    assert claims.tally([replace(verdict, stand_ins=tuple(both))])[1] == "Of 1 claims on m: 1 inconclusive."


def test_c13_needs_both_of_its_halves(tmp_path: Path) -> None:
    (item,) = claims._middle(evidence(tmp_path / "both"), RULES["C13"]["rule"])
    assert item.verdict == REPRODUCED
    six = profile((9.0, 0.1, 0.1, 0.1, 0.1, 9.0))
    (item,) = claims._middle(evidence(tmp_path / "six", changes={("01_sensitivity", "profile"): six}), RULES["C13"]["rule"])
    assert item.verdict == INCONCLUSIVE and "middle" not in item.figure  # but for its ends, all are middle layers


def test_the_end_layers_alone_do_not_decide_what_the_middle_is_worth(tmp_path: Path) -> None:
    flat_inside = profile((9.0, *[0.3] * 10, 9.0))
    (item,) = claims._middle(evidence(tmp_path, changes={("01_sensitivity", "profile"): flat_inside}), RULES["C13"]["rule"])
    assert "the ends apart, 0.000 [0.000, 0.000]" in item.figure


@pytest.mark.parametrize("n", [8, 12, 22, 30])
def test_the_middle_half_is_the_layers_between_the_outer_quarters(tmp_path: Path, n: int) -> None:
    quarter = n // 4
    rises = tuple(0.0 if quarter <= layer < n - quarter else 1.0 for layer in range(n))
    changed = evidence(tmp_path, changes={("01_sensitivity", "profile"): profile(rises)})
    measured = claims._middle(changed, RULES["C13"]["rule"])
    assert "; middle half minus outer layers, the ends apart, -1.000 [-1.000, -1.000]" in measured[0].figure


# ---------------------------------------------------------------- runs that diverged

RESTS_ON = {
    "C2": ("03_recovery", "recovered"),
    "C4": ("04_transfer_tinyllama", "recovered"),
    "C5": ("04_transfer_tinyllama", "staged"),
    "C7": ("05_seed_stability", "seed 1"),
    "C9": ("03c_choice", "4,5 (seed 1)"),
    "C10": ("04_transfer_tinyllama", "recovered"),
    "C11": ("03b_controls", "width"),
    "C12": ("03c_choice", "least_sensitive"),
    "C14": ("03_recovery", "ce"),
}


@pytest.mark.parametrize("name", RESTS_ON)
def test_a_run_that_diverged_decides_nothing(name: str, tmp_path: Path) -> None:
    notebook, arm = RESTS_ON[name]
    honest = claims.judge_one(name, evidence(tmp_path / "honest", **SOURCE))
    assert honest.verdict == REPRODUCED
    scores = handmade.contents()[notebook]["test_scores"]
    stopped = {**scores, arm: replace(scores[arm], diverged="the kl loss is nan at step 3")}
    found = claims.judge_one(name, evidence(tmp_path / "stopped", **SOURCE, changes={(notebook, "test_scores"): stopped}))
    assert found.verdict == INCONCLUSIVE and "diverged" in found.figure


def compared_sets(scores: dict[str, Score]) -> tuple[dict[str, Any], set[str]]:
    """What notebook 03c keeps of sets with these scores (two seeds each), and what its figure shows."""
    cells = json.loads((places.NOTEBOOKS / "03c_choice.ipynb").read_text(encoding="utf-8"))["cells"]
    (cell,) = ["".join(cell["source"]) for cell in cells if "before_after_scatter" in "".join(cell["source"])]
    names = list(dict.fromkeys(name.split(" ")[0] for name in scores))
    kept: dict[str, Any] = {}
    bench = SimpleNamespace(
        save=lambda name, facts: kept.update(facts.values), show=lambda name, figure: kept.update(figure=figure)
    )
    table = {name: 0.1 * rank for rank, name in enumerate(names, start=1)}
    known = {"scores": scores, "sets": table, "table": table, "candidates": names, "set_seeds": [0, 1], "whole": score(3.0)}
    exec(cell, known | {"bench": bench, "Facts": Facts, "figures": figures})
    shown = {text.get_text() for text in kept.pop("figure").axes[0].texts}
    return kept, shown


@pytest.mark.parametrize("name", ["2,3", "4,5", "6,7"])
def test_a_set_with_a_run_that_diverged_has_no_cost_after_recovery(name: str, tmp_path: Path) -> None:
    scores = {f"{of} (seed {seed})": score(3.05 + 0.01 * int(of[0])) for of in ("2,3", "4,5", "6,7") for seed in (0, 1)}
    scores[f"{name} (seed 1)"] = replace(scores[f"{name} (seed 1)"], diverged="the kl loss is nan at step 3")
    facts, shown = compared_sets(scores)
    left = {"2,3", "4,5", "6,7"} - {name}
    assert facts["costs"].keys() == left and facts["new"] == min(left) and facts["old"] == "2,3"
    assert {text.replace(" + ", ",") for text in shown} == left


def test_c9_counts_only_sets_whose_runs_were_all_finished(tmp_path: Path) -> None:
    facts = handmade.contents()["03c_choice"]["sets"].values
    costs = dict(list(facts["costs"].items())[:-1])  # of twelve, one was stopped
    for n, new in ((12, "4,5"), (12, "2,3"), (11, "4,5"), (11, "2,3")):
        some = {**facts, "costs": facts["costs"] if n == 12 else costs, "new": new}
        changes = {("03c_choice", "sets"): Facts(some)}
        found = claims.judge_one("C9", evidence(tmp_path / f"{n} {new}", **SOURCE, changes=changes))
        assert (found.verdict == INCONCLUSIVE) == (n == 11) and f"({n} sets x 2 seeds)" in found.figure


def test_where_every_set_diverged_nothing_is_shown_and_nothing_decided(tmp_path: Path) -> None:
    stopped = replace(score(3.1), diverged="the kl loss is nan at step 3")
    facts, shown = compared_sets({f"{name} (seed {seed})": stopped for name in ("2,3", "4,5") for seed in (0, 1)})
    assert facts["costs"] == {} and shown == set()
    changed = evidence(tmp_path, **SOURCE, changes={("03c_choice", "sets"): Facts(facts)})
    assert claims.judge_one("C9", changed).verdict == INCONCLUSIVE
    assert "0 sets of layers" in "".join(sections.choice_figures(changed))


def test_another_recipe_than_the_first_family_s_decides_nothing_of_c10(tmp_path: Path) -> None:
    choice = Facts({"notes": {}, "lr": 1e-4, "changed": {"trained": "lora"}})
    found = claims.judge_one("C10", evidence(tmp_path, **SOURCE, changes={("04_transfer_tinyllama", "choice"): choice}))
    assert found.verdict == INCONCLUSIVE and "not the same recipe: trained" in found.figure


def test_what_the_second_family_s_limits_change_is_told_beside_the_verdict(tmp_path: Path) -> None:
    changes = {
        ("03_recovery", "recipe"): Facts({"rule": "least_sensitive", "drop_count": 2, "recipe": {"seq_len": 512, "lr": 1e-4}}),
        ("04_transfer_tinyllama", "choice"): Facts(
            {"notes": {}, "lr": 1e-4, "changed": {}, "unchanged": {"seq_len": 256, "trained": "all"}}
        ),
    }
    found = claims.judge_one("C10", evidence(tmp_path, **SOURCE, changes=changes))
    assert found.verdict == REPRODUCED and "seq_len 256 in place of 512, as this model allows no more" in found.figure


def test_random_weights_decide_nothing_but_speed(tmp_path: Path) -> None:
    found = evidence(tmp_path, first="gpt2-shape", second="llama-tiny")
    for verdict in judge(found):
        said = {item.verdict for item in verdict.stand_ins}
        assert (said == {claims.NOT_TESTABLE}) == (verdict.id not in claims.OF_SPEED) or not said, verdict.id
    assert any(verdict.stand_ins for verdict in judge(found))
    assert "Random weights: of gpt2-shape and llama-tiny, sizes" in story.answer_html(found)
    assert "gpt2-shape (random weights): layers" in "".join(found.answer_lines())


def test_the_models_of_random_weights_are_those_that_a_config_alone_makes() -> None:
    assert {name for name, source in models.SOURCES.items() if source.kind == "config"} == RANDOM_WEIGHTS
