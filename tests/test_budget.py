from __future__ import annotations

import json

import pytest

from benchmarks import rows
from depthprune_core import models, text
from depthprune_study import budget, run, settings
from depthprune_study.settings import StudyError


@pytest.mark.parametrize(("n", "k"), [(5, 1), (5, 2), (5, 3), (12, 3), (22, 2)])
def test_tree_passes_are_those_that_the_benchmarks_count(n: int, k: int) -> None:
    assert budget.tree_passes(n, k) == rows.passes(n, k, 0, tree=True)


def test_the_design_s_example_of_tree_passes() -> None:
    assert budget.tree_passes(22, 2) == 1_793


def test_documents_of_the_excerpt_are_those_of_its_splits() -> None:
    splits = json.loads(text.SPLITS_FILE.read_text(encoding="utf-8"))
    assert budget.DOCUMENTS["wikipedia-excerpt"] == {
        split: len(splits[split]) for split in ("calibration", "validation", "test")
    }


def test_a_recovery_s_work_by_hand() -> None:
    cost = next(cost for cost in budget.costs("full") if cost.notebook == "05_seed_stability")
    seeds, scored = cost.items
    own = settings.read_study("full")
    n_others = len(own["05_seed_stability"].seeds) - 1
    assert (seeds.tokens, seeds.forwards) == (n_others * own["03_recovery"].tokens, 4)
    assert scored.tokens == (n_others + 3) * (60 + 62) * own["05_seed_stability"].score_tokens
    read = 124_439_808 - 1_024 * 768  # all but the positions: the embedding is the head
    assert cost.teraflops == pytest.approx(2 * read * (4 * seeds.tokens + scored.tokens) / 1e12)
    assert cost.hours("T4") == pytest.approx(cost.teraflops / (65 * 0.25) / 3_600)
    assert 4 * 124_439_808 + 16 * 110_264_064 < cost.training_bytes < 4 * 124_439_808 + 16 * 110_264_064 + 8e9


def test_tinyllama_with_all_weights_trained_needs_more_than_a_t4_has() -> None:
    cost = next(cost for cost in budget.costs("full") if cost.notebook == "04_transfer_tinyllama")
    whole, cut = 1_100_048_384, 1_011_959_808
    assert 4 * whole + 16 * cut < cost.training_bytes < 4 * whole + 16 * cut + 20e9
    assert cost.training_bytes > 15 * 2**30


def test_every_notebook_that_computes_has_a_cost() -> None:
    assert list(budget.ITEMS) == list(run.READS)[:-1]
    found = budget.costs("full")
    assert [cost.notebook for cost in found] == list(budget.ITEMS)
    assert all(item.tokens > 0 and item.forwards > 0 for cost in found for item in cost.items)


def test_the_lines_tell_hours_and_memory_and_say_that_they_are_no_measurement() -> None:
    told = "\n".join(budget.lines("full"))
    assert "by arithmetic at 25% of each GPU's peak: T4 " in told and "H100" in told
    assert "GPU memory, by arithmetic:" in told
    assert "5,000,000 tokens" in told


def test_what_is_not_known_is_not_made_up() -> None:
    with pytest.raises(StudyError, match="its size is not known before it is read"):
        budget.costs("smollm2")
    assert set(budget.SHAPES.values()) <= set(models.SOURCES)
