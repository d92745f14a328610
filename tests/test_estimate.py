"""What the full study would take: measured, scaled, by arithmetic, and each said to be so."""

from __future__ import annotations

import json
import re
from pathlib import Path

import handmade
import pytest

from depthprune_core.records import Facts
from depthprune_study import budget, estimate, places, run, settings
from depthprune_study.evidence import read_evidence

ROOT = places.ROOT
PACE = {("03b_controls", "pace"): Facts({"recovered": 30.0, "ce": 40.0, "peak_tflops": 0.3})}
MACHINE = estimate.Machine("cpu", 40.0, 0.03, 0.3)
COSTS = {notebook: {"seconds": 60.0, "peak_bytes": 2**30} for notebook in run.READS}


def test_what_a_machine_reaches_by_hand(tmp_path: Path) -> None:
    evidence = handmade.evidence(tmp_path, first="gpt2-shape", changes=PACE)
    found = estimate.machine(evidence)
    read = 124_439_808 - 1_024 * 768 - 2 * 7_087_872  # of the student: two layers fewer, no positions
    assert found.achieved_tflops == pytest.approx(3 * 2 * read * 40 / 1e12)
    assert found.share == pytest.approx(found.achieved_tflops / 0.3)


def test_hours_are_the_arithmetic_at_that_share() -> None:
    seconds = [cost.training_teraflops / 65 + (cost.teraflops - cost.training_teraflops) / 8.1 for cost in budget.costs("full")]
    assert sum(estimate.hours(0.1)["T4"].values()) == pytest.approx(sum(seconds) / 0.1 / 3_600)
    assert set(estimate.hours(0.1)["H100"]) == set(budget.ITEMS)
    assert estimate.lines(MACHINE)[0].startswith("  hours, scaled from the rehearsal (cpu, 10% of its peak): T4 ")


def test_the_page_says_of_each_figure_what_it_is() -> None:
    page = estimate.html(MACHINE, COSTS)
    for said in (
        "rehearsal, measured",
        "T4, scaled",
        "H100, scaled",
        "arithmetic",
        "8.0 min",
        "an estimate",
        "T4 (14.5 GiB): all but ",
    ):
        assert said in page
    assert "<script" not in page and "alt='T4: " in page


def test_memory_that_was_not_measured_is_an_empty_cell() -> None:
    page = estimate.html(MACHINE, COSTS | {"06_report": {"seconds": 6.0, "peak_bytes": 0}})
    assert "6 s</td><td></td>" in page and "0.0 GiB" not in page


def test_a_published_rehearsal_tells_what_its_machine_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEPTHPRUNE_REPORTS", str(tmp_path))
    assert estimate.published() is None
    handmade.evidence(tmp_path / "rehearsal" / "records", first="gpt2-shape", changes=PACE)
    found = estimate.published()
    assert found is not None and (found.device, found.tokens_per_second, found.peak_tflops) == ("cpu", 40.0, 0.3)


def test_where_each_study_runs_says_of_each_cell_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEPTHPRUNE_REPORTS", str(tmp_path))
    with pytest.raises(settings.StudyError, match="study rehearsal is not there"):
        estimate.where()
    for study, costs in {
        "rehearsal": COSTS,
        "smollm2": COSTS | {"05_seed_stability": {"seconds": 9.0, "peak_bytes": 0}},
    }.items():
        handmade.evidence(tmp_path / study / "records", first="gpt2-shape", changes=PACE)
        (tmp_path / study / "costs.json").write_text(json.dumps(costs), encoding="utf-8")
    head, _, rehearsed, resumed, full, on_a_t4 = estimate.where(("rehearsal", "smollm2", "full", "full-t4")).split("\n")
    assert head == "| study | CPU, two cores | T4 | A100 | H100 | GPU memory at most |"
    assert rehearsed.startswith("| `rehearsal` | 8 min, 1.0 GiB, measured | ")
    assert resumed.startswith("| `smollm2` | more than 7 min, 1.0 GiB, measured | ")
    days = sum(cost.teraflops for cost in budget.costs("full")) / MACHINE.achieved_tflops / 86_400
    found = estimate.published()
    assert found is not None and found.achieved_tflops != MACHINE.achieved_tflops and days > 2
    assert f"{days * MACHINE.achieved_tflops / found.achieved_tflops:.0f} days, scaled; " in full
    assert full.count("does not fit, by arithmetic") == 1 and full.endswith(" GiB, arithmetic |")
    assert full.index("does not fit") < full.index(" h, scaled") and "does not fit" not in on_a_t4


def test_the_committed_rehearsal_took_an_hour_and_24_gib_at_most_and_its_page_says_what_it_measured() -> None:
    folder = ROOT / "reports" / "rehearsal"
    costs = run.read_costs(folder)
    assert list(costs) == list(run.READS)
    assert sum(cost["seconds"] for cost in costs.values()) <= 3_600
    assert max(cost["peak_bytes"] for cost in costs.values()) <= 24 * 2**30
    assert not any(cost.get("resumed") for cost in costs.values())
    body = estimate.html(estimate.machine(read_evidence("rehearsal", folder / "records")), costs)
    committed = (folder / "estimate.html").read_text(encoding="utf-8")
    assert without_figures(body) in without_figures(committed)


def test_what_was_not_timed_is_left_open_and_no_sum_hides_it() -> None:
    none = estimate.html(MACHINE, {})
    assert "<td>in all</td><td>more than 0.0 min</td>" in none and "<td>01_sensitivity</td><td></td><td></td>" in none
    cost = {"seconds": 60.0, "peak_bytes": 2**30}
    whole = estimate.html(MACHINE, dict.fromkeys(run.READS, cost))
    assert "<td>in all</td><td>8.0 min</td>" in whole
    went_on = estimate.html(MACHINE, {**dict.fromkeys(run.READS, cost), "03_recovery": {**cost, "resumed": True}})
    assert "<td>03_recovery</td><td>more than 60 s</td>" in went_on and "<td>in all</td><td>more than 8.0 min</td>" in went_on


def without_figures(page: str) -> str:
    """Another version of the plotting library draws other pixels."""
    return re.sub(r"base64,[^']*'", "'", page)


def test_the_study_for_a_t4_differs_from_the_full_one_in_how_tinyllama_is_recovered() -> None:
    full, smaller = settings.read_study("full"), settings.read_study("full-t4")
    for notebook, parameters in full.items():
        changed = {name for name, value in parameters.model_dump().items() if getattr(smaller[notebook], name) != value}
        own = {"trained", "lr_grid", "windows_at_once"} if notebook == "04_transfer_tinyllama" else set()
        assert changed == own | {"study"}
    rehearsed = settings.read_study("rehearsal")["04_transfer_tinyllama"]
    assert smaller["04_transfer_tinyllama"].trained == rehearsed.trained == "lora"


def test_a_rehearsal_has_the_shapes_windows_and_recipe_of_the_full_study() -> None:
    full, rehearsal = settings.read_study("full"), settings.read_study("rehearsal")
    shapes = {"gpt2": "gpt2-shape", "tinyllama-1.1b": "tinyllama-1.1b-shape"}
    smaller = {
        "text",
        "max_documents",
        "score_tokens",
        "calibration_tokens",
        "tokens",
        "pilot_tokens",
        "rate_tokens",
        "batch_tokens",
    }
    smaller |= {
        "refit_tokens",
        "arm_tokens",
        "set_tokens",
        "n_sets",
        "set_seeds",
        "exhaustive_to",
        "race_tokens",
        "random_draws",
        "seeds",
    }
    smaller |= {
        "timed_new_tokens",
        "timed_rounds",
        "shape_rounds",
        "paced_windows",
        "zero_shot_tasks",
        "second_choice_tokens",
        "study",
    }
    in_memory = {"trained", "lr_grid"}  # notebook 04: all weights of TinyLlama would not fit
    for notebook, parameters in full.items():
        ours = rehearsal[notebook].model_dump()
        for name, value in parameters.model_dump().items():
            if name in ("model", "first_model"):
                assert ours[name] == shapes[value]
            elif name not in smaller and not (notebook.startswith("04") and name in in_memory):
                assert ours[name] == value, (notebook, name)
