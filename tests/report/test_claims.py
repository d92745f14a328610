"""Verdicts: each claim with each word; stand-ins do not decide; ranges are two-sided."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import handmade as h
import pytest

from depthprune_core.records import Facts
from depthprune_study.errors import StudyError
from depthprune_study.report import rules, verdicts
from depthprune_study.report.claims import judge, judge_one
from depthprune_study.report.evidence import Evidence
from depthprune_study.results.statistics import Interval

Study = dict[str, dict[str, Any]]


def study(**changes: Any) -> Study:
    """The hand-made study with records changed: `_08__depth={...}` adds to or replaces one."""
    made = h.study()
    for key, record in changes.items():
        number, name = key[1:].split("__")
        notebook = next(n for n in made if n.startswith(number))
        old = made[notebook].get(name)
        both = isinstance(old, dict) and isinstance(record, dict)
        made[notebook][name] = {**old, **record} if both else record
    return made


def depth(k: int, ratio: float) -> Study:
    names = (f"{k} fewer, healed", f"{k} fewer, healed, seed 1")
    return study(_08__depth=h.scores(**dict.fromkeys(names, ratio)))


def doubtful(k: int, ratio: float) -> Study:
    made = depth(k, ratio)["08_limits"]["depth"] | h.scores(near=ratio)
    for name in (f"{k} fewer, healed", f"{k} fewer, healed, seed 1"):
        made = h.open_scores(made, name, "near")
    return study(_08__depth=made)


def shapes(ten: float, two: float, three: float, noise: float = 0.005) -> Study:
    pairs = (("20", two, 1.1), ("19", three, 1.16))
    timed = {
        f"tinyllama-1.1b-shape, {n} layers": h.timing(gain, allowed=allowed, noise=noise)
        for n, gain, allowed in pairs
    }
    timed["gpt2-shape, 10 layers"] = h.timing(ten, noise=noise)
    return study(_02__shape_timing=timed)


def seeds(*ratios: float) -> Study:
    return study(
        _05__test=h.scores(**{f"healed, seed {s}": ratio for s, ratio in enumerate(ratios)})
    )


def controls(**ratios: float) -> Study:
    return study(_06__test=h.scores(**ratios))


def vague(notebook: str, name: str, like: str) -> Study:
    made = h.study()[notebook]["test"]
    return study(**{f"_{notebook[:2]}__test": h.open_scores(made, name, like)})


def profiled(*, first: float = 7.0, noise: float = 0.01, middle: float = 0.1) -> Study:
    costs = [0.4, *[0.4] * 6, *[middle] * 15, *[0.4] * 7, 2.5]
    costs[0], costs[8] = first, min(0.05, middle)
    return study(_01__profile=h.profile(costs, noise=noise))


def winners(old: float, new: float) -> Study:
    named = {"0,1": old, "4,5": new}
    return study(
        _07__healed=h.scores(**{f"{n}, seed {s}": r for n, r in named.items() for s in (0, 1)})
    )


def text(ce: float, control: float) -> Study:
    return study(_03__test=h.scores(ce=ce, **{"whole, same text": control}))


SMALL = Facts({f"gpt2, {n} layers": {"n_parameters": n} for n in (12, 10, 9)})
CASES: list[tuple[str, Callable[[], Study], str]] = [
    ("C1", study, "by arithmetic"),
    ("C1", lambda: study(_02__published=SMALL), "fails"),
    ("C2", lambda: depth(4, 1.11), "holds"),
    ("C2", lambda: depth(4, 1.2), "fails"),
    ("C2", lambda: depth(4, 1.01), "fails"),
    ("C2", lambda: doubtful(4, 1.13), "open"),
    ("C3", lambda: shapes(1.2, 1.1, 1.1), "holds"),
    ("C3", lambda: shapes(1.0, 1.1, 1.1), "fails"),
    ("C3", lambda: shapes(1.11, 1.1, 1.1, noise=0.1), "open"),
    ("C4", lambda: depth(3, 1.05), "holds"),
    ("C4", lambda: depth(3, 1.08), "fails"),
    ("C4", lambda: doubtful(3, 1.058), "open"),
    ("C5", lambda: depth(5, 1.07), "holds"),
    ("C5", lambda: depth(5, 1.1), "fails"),
    ("C5", lambda: doubtful(5, 1.081), "open"),
    ("C6", lambda: shapes(1.2, 1.1, 1.1), "holds"),
    ("C6", lambda: shapes(1.2, 1.1, 1.16), "fails"),
    ("C6", lambda: shapes(1.2, 1.1, 1.1, noise=0.2), "open"),
    ("C7", lambda: seeds(1.05, 1.051, 1.052), "holds"),
    ("C7", lambda: seeds(1.05, 1.07, 1.09), "fails"),
    ("C7", lambda: seeds(1.05, 1.055, 1.058), "open"),
    ("C8", profiled, "holds"),
    ("C8", lambda: profiled(first=0.3), "fails"),
    ("C8", lambda: profiled(first=0.4, noise=0.2), "open"),
    ("C9", lambda: winners(1.05, 1.04), "holds"),
    ("C9", lambda: winners(1.04, 1.05), "fails"),
    ("C9", lambda: winners(1.05, 1.05), "open"),
    ("C10", study, "not tested here"),
    ("C11", lambda: controls(**{"narrower, healed": 1.1}), "holds"),
    ("C11", lambda: controls(**{"narrower, healed": 1.01}), "fails"),
    ("C11", lambda: vague("06_controls", "narrower, healed", "healed"), "open"),
    ("C12", study, "holds"),
    ("C12", lambda: study(_02__test=h.scores(**{"most_sensitive-2": 1.1})), "fails"),
    ("C12", lambda: vague("02_prune", "most_sensitive-2", "least_sensitive-2"), "open"),
    ("C13", profiled, "holds"),
    ("C13", lambda: profiled(middle=1.0), "fails"),
    ("C13", lambda: profiled(middle=0.4, noise=0.3), "open"),
    ("C13", lambda: study(_01__profile=h.profile([7.0, 0.1, 0.1, 2.5])), "open"),
    ("C14", study, "holds"),
    ("C14", lambda: text(ce=1.2, control=0.9), "fails"),
    ("C14", lambda: vague("03_recovery", "healed", "cut"), "open"),
]


def verdict(name: str, made: Study, folder: Path, **models: Any) -> verdicts.Verdict:
    return judge_one(name, Evidence("overnight", h.write(folder, made, **models)))


@pytest.mark.parametrize(("name", "make", "word"), CASES, ids=[f"{n}-{w}" for n, _, w in CASES])
def test_each_claim_can_get_each_verdict(
    name: str, make: Callable, word: str, tmp_path: Path
) -> None:
    assert verdict(name, make(), tmp_path).word == word


def test_without_records_nothing_is_tested(tmp_path: Path) -> None:
    judged = judge(Evidence("quick", tmp_path))
    assert [v.id for v in judged] == [f"C{n}" for n in range(1, 15)]
    assert {v.word for v in judged} == {"not tested here"}


@pytest.mark.parametrize("model", ["gpt2-mini", "llama-tiny", "gpt2-shape"])
def test_a_stand_in_decides_only_arithmetic_and_speed(model: str, tmp_path: Path) -> None:
    evidence = Evidence("ci", h.write(tmp_path, h.study(), model=model))
    decided = {v.id for v in judge(evidence) if v.word in ("holds", "fails", "open")}
    assert decided <= {"C3", "C6"}


def test_the_sources_own_models_come_before_others(tmp_path: Path) -> None:
    models = {"03_recovery": "gpt2", "04_transfer": "tinyllama-1.1b"}
    own = verdict("C14", h.study(), tmp_path, models=models)
    assert own.model == "gpt2 and tinyllama-1.1b"
    assert not any("not the source's model" in note for note in own.notes)


def test_a_row_names_the_model_and_gives_both_costs(tmp_path: Path) -> None:
    row = verdict("C4", h.study(), tmp_path)
    assert "smollm2-135m: real weights, not the source's model" in row.notes
    assert "repair cost 1.060" in row.notes[1]
    assert "matched cost 1.056 [1.05" in row.notes[1]
    assert "at 2 fewer" in row.notes[1], "none was trained on the text at this depth"


def test_better_than_a_range_is_not_a_reproduction_and_the_row_says_so(tmp_path: Path) -> None:
    assert "better than claimed" in verdict("C2", depth(4, 1.01), tmp_path).figure


def test_a_cut_of_another_share_does_not_test_the_claim(tmp_path: Path) -> None:
    made = h.study()
    for name in ("2 fewer", "3 fewer", "4 fewer", "5 fewer"):
        made["08_limits"]["sizes"].pop(name, None)
    made["08_limits"]["depth"] = {
        name: s for name, s in made["08_limits"]["depth"].items() if name[0] in "w1"
    }
    assert verdict("C5", made, tmp_path).word == "not tested here"


def test_c5_uses_staged_runs_of_the_same_depth(tmp_path: Path) -> None:
    made = h.study()
    sizes = {"0 fewer": 1_100_048_384, "2 fewer": 1_011_959_808, "3 fewer": 967_915_520}
    of_one = h.sizes()["0 fewer"]
    made["04_transfer"]["sizes"] = {
        name: type(of_one)(22 - int(name[0]), n, 4 * n) for name, n in sizes.items()
    }
    row = verdict("C5", made, tmp_path, models={"04_transfer": "tinyllama-1.1b"})
    assert (row.model, row.notebook, row.word) == ("tinyllama-1.1b", "04_transfer", "fails")
    assert row.figure.startswith("1.150") and "1.160" in row.figure
    assert "staged over at once" in " ".join(row.notes)


def test_c10_is_open_if_the_recipe_differs(tmp_path: Path) -> None:
    models = {"04_transfer": "tinyllama-1.1b", "03_recovery": "gpt2"}
    assert verdict("C10", h.study(), tmp_path / "a", models=models).word == "holds"
    changed = study(_04__recipe=h.RECIPE.but(lr=1e-4, tokens=40_960))
    row = verdict("C10", changed, tmp_path / "b", models=models)
    assert row.word == "open"
    assert "the recipe differs in lr" in row.notes[0]


def test_c10_needs_two_families_of_real_weights(tmp_path: Path) -> None:
    models = {"04_transfer": "smollm2-135m", "03_recovery": "gpt2-mini"}
    assert verdict("C10", h.study(), tmp_path, models=models).word == "not tested here"


def test_c14_also_reports_the_first_version_of_its_rule(tmp_path: Path) -> None:
    row = verdict("C14", text(ce=0.9, control=0.7), tmp_path)
    assert "By the first version of the rule" in row.notes[1]
    assert row.notes[1].endswith("it fails")


def test_the_tally_has_one_denominator(tmp_path: Path) -> None:
    judged = judge(Evidence("overnight", h.write(tmp_path, h.study())))
    assert verdicts.tally(judged).startswith("Of 12 decided claims, 8 hold. Of all 14, ")
    words = [v.word for v in judged]
    assert words.count("holds") == 8 and words.count("by arithmetic") == 1


def test_a_rule_that_was_changed_after_figures_says_so() -> None:
    changed = {name for name, claim in rules.claims().items() if claim.changed}
    assert changed >= {"C2", "C4", "C5", "C6", "C13", "C14"}


def test_a_speed_from_too_few_rounds_is_open(tmp_path: Path) -> None:
    made = shapes(1.2, 1.1, 1.1)
    few = {
        name: replace(
            timing,
            teacher_decode_ms_per_token=timing.teacher_decode_ms_per_token[:5],
            student_decode_ms_per_token=timing.student_decode_ms_per_token[:5],
        )
        for name, timing in made["02_prune"]["shape_timing"].items()
    }
    made["02_prune"]["shape_timing"] = few
    assert verdict("C3", made, tmp_path).word == "open"


def test_at_the_threshold_itself_a_claim_holds() -> None:
    assert verdicts.at_most(Interval(1, 1, 1, 30), 1.0) == "holds"
    assert verdicts.at_least(Interval(1, 1, 1, 30), 1.0) == "holds"
    assert verdicts.at_most(Interval(1, 0.9, 1.1, 30), 1.0) == "open"


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    h.write(tmp_path, h.study())
    path = tmp_path / "records" / "05_seed_stability" / "test.json"
    path.write_text(path.read_text().replace("0", "1", 1), encoding="utf-8")
    with pytest.raises(StudyError, match=r"05_seed_stability/test\.json is damaged"):
        judge_one("C7", Evidence("overnight", tmp_path))
