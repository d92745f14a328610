from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import tiny, tiny_tokenizer

from benchmarks import rows
from depthprune_core import distillation, models, pruning, text
from depthprune_core.records import Plan
from depthprune_study import budget, places, run, settings
from depthprune_study.settings import StudyError

ADAPTED = {"trained": "lora"}
BEHIND = {"trained": "after_first_cut", "optimiser": "adamw_8bit", "checkpoint_activations": True}


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
    trained, rest = (2 * read * done / 1e12 for done in (4 * seeds.tokens, scored.tokens))
    assert cost.training_teraflops == pytest.approx(trained)
    assert cost.hours("T4") == pytest.approx((trained / 65 + rest / 8.1) / 0.25 / 3_600)  # what is scored is scored in float32
    assert 4 * 124_439_808 + 16 * 110_264_064 < cost.peak_bytes < 4 * 124_439_808 + 16 * 110_264_064 + 8e9


def test_a_notebook_that_trains_nothing_needs_no_memory_of_a_recovery_and_computes_in_float32() -> None:
    profile = next(cost for cost in budget.costs("full") if cost.notebook == "01_sensitivity")
    assert (profile.training_teraflops, profile.peak_bytes) == (0, 0)
    assert profile.hours("A100", 1.0) == pytest.approx(profile.teraflops / 19.5 / 3_600)


def test_layers_that_are_computed_anew_cost_a_forward_pass_more() -> None:
    own = {name: parameters.model_dump() for name, parameters in settings.read_study("full").items()}
    kept, anew = (
        budget._cost(
            "04_transfer_tinyllama",
            own | {"04_transfer_tinyllama": own["04_transfer_tinyllama"] | {"checkpoint_activations": on}},
        )
        for on in (False, True)
    )
    assert [b.forwards - a.forwards for a, b in zip(kept.items, anew.items, strict=True)] == [0, 1, 1, 1, 1, 0]


def test_tinyllama_with_all_weights_trained_needs_more_than_a_t4_has() -> None:
    cost = next(cost for cost in budget.costs("full") if cost.notebook == "04_transfer_tinyllama")
    whole, cut = 1_100_048_384, 1_011_959_808
    assert 4 * whole + 16 * cut < cost.peak_bytes < 4 * whole + 16 * cut + 20e9
    assert cost.peak_bytes > 15 * 2**30


def of_notebook_04(first_cut: int = 0, **changes: object) -> float:
    """GiB of its largest recovery, with the parameters of `full` and these changes."""
    own = {name: parameters.model_dump() for name, parameters in settings.read_study("full").items()}
    changed = settings.check("04_transfer_tinyllama", {**own["04_transfer_tinyllama"], **changes}).model_dump()
    return budget._largest_recovery(changed, own["03_recovery"], first_cut=first_cut) / 2**30


def test_tinyllama_fits_a_t4_by_adapters_or_behind_the_first_cut() -> None:
    room = budget.GPU_GIB["T4"]
    assert of_notebook_04(windows_at_once=1, **ADAPTED) < room
    assert of_notebook_04(first_cut=4, windows_at_once=1, **BEHIND) < room
    assert of_notebook_04(windows_at_once=1) > room


def test_every_notebook_of_the_study_for_a_t4_fits_one() -> None:
    needed = {cost.notebook: cost.peak_bytes / 2**30 for cost in budget.costs("full-t4")}
    assert all(gib < budget.GPU_GIB["T4"] for gib in needed.values())
    assert needed["04_transfer_tinyllama"] > of_notebook_04(windows_at_once=1, **ADAPTED)  # its stages take more than training


def test_memory_between_two_stages_by_hand() -> None:
    whole, layer = 1_100_048_384, 44_044_288
    found = budget._between_stages(models.shape("tinyllama-1.1b"), 2)
    assert found == pytest.approx(4 * (whole + (whole - 2 * layer) + (whole - 3 * layer)), rel=1e-5)


def test_memory_of_a_recovery_by_hand() -> None:
    shape = models.shape("tinyllama-1.1b")
    whole, layer, words = 1_100_048_384, 44_044_288, 32_000 * 2_048
    step, heads = 51 * 2_048 * 1_024, 2 * 2 * words  # heads and passed layers: copies in 16 bits
    cut = whole - 2 * layer
    assert budget.training_bytes(shape, drop=2, tokens_at_once=1_024) == pytest.approx(
        4 * whole + 16 * cut + 20 * (step + 2 * layer) + heads, rel=1e-4
    )
    behind = budget.training_bytes(shape, drop=2, tokens_at_once=1_024, trained="after_first_cut", first_cut=10)
    assert behind == pytest.approx(
        4 * whole + 4 * cut + 12 * (10 * layer + words) + 20 * step + 10 * 2 * layer + heads, rel=1e-4
    )
    options = {"trained": "after_first_cut", "first_cut": 10, "optimiser": "adamw_8bit", "checkpoint_activations": True}
    spared = budget.training_bytes(shape, drop=2, tokens_at_once=1_024, **options)
    inputs = 20 * 4 * 2_048 * 1_024
    assert spared == pytest.approx(4 * whole + 4 * cut + 6 * (10 * layer + words) + step + inputs + 2 * layer + heads, rel=1e-4)
    per_layer = 8 * (2 * (2_048 + 2_048) + 2 * (2_048 + 256) + 3 * (2_048 + 5_632))
    adapted = budget.training_bytes(shape, drop=2, tokens_at_once=4_096, trained="lora")
    by_step = 16 * 20 * per_layer + 20 * (4 * step + 2 * layer) + heads
    assert adapted == pytest.approx(4 * whole + max(by_step, 4 * cut), rel=1e-4)


READS = """
import resource, sys
from pathlib import Path
import transformers
from depthprune_core import models
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
model, _ = models.load(sys.argv[1], cache=Path("none"))
print((peak() - before) / sum(4 * p.numel() for p in model.parameters()))
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux tells peaks in kilobytes")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_reading_weights_takes_of_main_memory_fits_colab(dtype: torch.dtype, tmp_path: Path) -> None:
    shape = {"hidden_size": 512, "intermediate_size": 2_048, "num_hidden_layers": 14, "vocab_size": 32_000}
    tiny("llama", **shape).to(dtype).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(places.ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", READS, str(tmp_path)], env=environment, check=True, capture_output=True, text=True
    )
    copies = float(done.stdout.split()[-1])  # of the weights in float32; a file in 16 bits is half of one
    assert copies < 1.7
    assert copies * 4 * models.shape("tinyllama-1.1b").num_parameters() < 0.6 * 12.7e9


@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("options", [ADAPTED, BEHIND], ids=["lora", "after_first_cut"])
def test_a_gpu_holds_what_arithmetic_says(options: dict, tmp_path: Path) -> None:
    teacher, _ = models.load("tinyllama-1.1b-shape", cache=tmp_path, device="cuda")
    plan = Plan(22, (4, 11), "by hand")
    ids = torch.randint(3, 32_000, (2, 1_025), generator=torch.Generator().manual_seed(0))
    windows = text.Windows(
        ids[:, :-1], ids[:, 1:], torch.ones(2, 1_024, dtype=torch.bool), torch.zeros(2).long(), ("drawn",), (1,)
    )
    student = pruning.drop_layers(teacher, plan)
    if options["trained"] == "lora":
        student = pruning.share_equal(student, teacher, plan)
    torch.cuda.reset_peak_memory_stats()
    recipe = {"loss": {"kl": 1.0}, "lr": 1e-5, "batch_size": 1, "seed": 0, "precision": "float16"}
    distillation.recover(student, teacher, windows, plan=plan, **recipe, **options)
    expected = budget.training_bytes(teacher, drop=2, tokens_at_once=1_024, first_cut=4, **options)
    assert torch.cuda.max_memory_allocated() < min(1.1 * expected, budget.GPU_GIB["T4"] * 2**30)


def test_every_notebook_that_computes_has_a_cost() -> None:
    assert list(budget.ITEMS) == list(run.READS)[:-1]
    found = budget.costs("full")
    assert [cost.notebook for cost in found] == list(budget.ITEMS)
    assert all(item.tokens > 0 and item.forwards > 0 for cost in found for item in cost.items)


def test_the_lines_tell_hours_and_memory_and_say_that_they_are_no_measurement() -> None:
    told = "\n".join(budget.lines("full"))
    assert "by arithmetic at 25% of each GPU's peaks (16 bits in recovery, 32 elsewhere): T4 " in told and "H100" in told
    assert "GPU memory, by arithmetic:" in told
    assert "5,000,000 tokens" in told
    assert re.search(r"^  04_transfer_tinyllama: \d+\.\d GiB of GPU memory at most$", told, re.MULTILINE)


def test_what_is_not_known_is_not_made_up() -> None:
    with pytest.raises(StudyError, match="model 'a-folder': its size is not known before it is read"):
        budget._model("a-folder")
