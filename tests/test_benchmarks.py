"""The benchmarks: counts as counted, both sides' numbers alike, and README.md holds what the results say."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch
from tiny import count_layer_passes, plan_of, tiny, tiny_windows

from benchmarks import decode, machine, measure, plain, rows, table
from benchmarks import readme as bench_readme
from depthprune_core import distillation, subsets
from depthprune_core.decoders import decoder
from depthprune_core.pruning import drop_layers
from depthprune_study import readme

PAGE = readme.README.read_text(encoding="utf-8")


def all_sets(n_layers: int, k: int) -> list[tuple[int, ...]]:
    return [dropped for size in range(k + 1) for dropped in itertools.combinations(range(n_layers), size)]


@pytest.mark.parametrize("k", [1, 2, 3])
def test_layer_passes_are_as_many_as_the_layers_that_run(model, windows, k):
    decoder(model)
    counted = count_layer_passes(model)
    plain.nll_sums(model, windows, all_sets(5, k))
    assert len(counted) == rows.passes(5, k, 0, tree=False)
    counted.clear()
    subsets.nll_by_window(model, windows, all_sets(5, k), batch_size=5)
    assert len(counted) == rows.passes(5, k, 0, tree=True)
    assert rows.passes(5, k, 2.5, tree=True) - rows.passes(5, k, 0, tree=True) == 2.5 * len(all_sets(5, k))


def test_greedy_passes_are_as_many_as_the_layers_that_run(model, windows):
    decoder(model)
    counted = count_layer_passes(model)
    plain.nll_sums(model, windows, [(layer,) for layer in range(5)])
    plain.nll_sums(model, windows, [(0, layer) for layer in range(1, 5)])
    assert len(counted) == rows.greedy_passes(5, 2, 0)


def test_the_passes_of_the_design_s_examples():
    assert rows.passes(22, 1, 0, tree=False) == 22 + 22 * 21 and rows.passes(22, 1, 0, tree=True) == 22 * 23 / 2
    assert rows.passes(22, 2, 0, tree=True) == 1_793 and 22 + 231 * 20 + 22 * 21 == 5_104  # all pairs of TinyLlama


def test_both_sides_give_the_same_numbers(model, windows):
    sets = all_sets(5, 2)
    ours = subsets.nll_by_window(model, windows, sets).sum(1).tolist()
    assert plain.nll_sums(model, windows, sets) == pytest.approx(ours, abs=1e-4 * windows.n_tokens)


@pytest.mark.parametrize("checkpoint_activations", [False, True])
def test_the_plain_recovery_is_the_same_training(model, checkpoint_activations):
    # Two steps: warm-up and cosine leave the rate as it is.
    windows = tiny_windows(seed=1, lengths=(60, 29, 31)).take(slice(0, 4))
    plan = plan_of(model, 1, 3)
    ours, theirs = drop_layers(model, plan), drop_layers(model, plan)
    _, curve = distillation.recover(ours, model, windows, plan=plan, loss={"kl": 1.0}, lr=1e-3, seed=0, batch_size=2)
    same = {"lr": 1e-3, "batch_size": 2, "checkpoint_activations": checkpoint_activations}
    assert plain.recover(theirs, model, windows, **same) == pytest.approx(curve.losses["kl"], rel=1e-4)
    assert curve.losses["kl"][0] > 0


def test_sides_take_turns_and_peaks_are_on_top_of_what_was_there():
    turns: list[str] = []
    held = torch.ones(4_000_000)
    row = measure.Row("w", "m", "s")
    results = measure.in_turn(row, lambda r: turns.append("plain"), lambda r: turns.append("ours"), repetitions=3)
    assert turns == ["plain", "ours"] * 3 and len(results) == len(row.plain_seconds) == len(row.our_seconds) == 3
    _, _, peak = measure.timed(lambda: float(torch.ones(8_000_000).sum()))
    if measure.CLEAR.exists():
        assert 30e6 < peak < 60e6  # 32 MB, not the 16 MB that were there before
    assert float(held[0]) == 1


def test_a_row_reads_as_one_line_of_the_table():
    row = measure.Row(
        "profile", "m", "8 tokens", [2.0, 2.0, 2.0], [1.0, 1.0, 1.0], 2_000_000, 1_000_000, 1.5, 1.7, 3e-6, "half a word"
    )
    line = table.line(row)
    assert line.count("|") == table.HEADER[0].count("|") == table.HEADER[1].count("|")
    assert "| **2.00x** [2.00, 2.00] | 1.50x | 1.7x | 2 MB / 1 MB (0.50x) | 3e-06 nats |" in line
    assert table.notes([row, measure.Row("w", "m", "s")]) == ["- profile, m: half a word."]


def test_a_row_without_a_unit_or_a_model_is_written_without_one():
    row = measure.Row("products", "-", "float32", [1.0], [1.0], largest_difference=3e-6, note="half a word", unit="")
    assert table.line(row).endswith("| 3e-06 |") and table.notes([row]) == ["- products: half a word."]


def test_what_autograd_keeps_of_the_layers_grows_with_the_tokens_and_leaves_weights_out(model):
    windows = tiny_windows(lengths=(300,))
    few, many = (rows.kept_for_backward(model, windows.take(slice(0, n))) for n in (5, 20))
    assert many == pytest.approx(4 * few, rel=0.1)
    d, n_tokens = model.config.hidden_size, windows.take(slice(0, 20)).inputs.numel()
    assert many > 4 * n_tokens * 5 * 5 * d  # float32, five layers: two norms, queries, keys and values at least
    assert rows.kept_for_backward(model.requires_grad_(False), windows) == 0


def test_a_layer_of_a_narrow_model_starts_in_some_time(monkeypatch):
    monkeypatch.setattr(decode, "_narrow_ms", lambda name, n_layers: 1.0 + 0.5 * n_layers)
    assert decode.start_ms("gpt2-shape") == (0.5, 1.0)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_compiled_step_on_a_static_cache_gives_the_same_tokens(family):
    model = tiny(family)
    prompt = torch.tensor([[3, 1, 4, 1, 5]])
    ids = prompt
    with torch.no_grad():
        for _ in range(6):
            ids = torch.cat([ids, model(input_ids=ids, use_cache=False).logits[:, -1:].argmax(-1)], 1)
    tokens, ms = decode.compiled_decode(model, prompt, new_tokens=6, rounds=1, backend="eager")
    assert tokens == ids[0, 5:].tolist() and ms > 0


def test_readme_holds_what_the_results_say():
    assert bench_readme.fill(PAGE) == PAGE, "run `python -m benchmarks.readme`"


@pytest.mark.parametrize("path", sorted(machine.RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_every_result_names_its_machine_and_code(path: Path):
    result = json.loads(path.read_text(encoding="utf-8"))
    assert all(result[key] for key in ("machine", "n_threads", "versions", "code_hash", "commit"))
    assert "+changes" not in result["commit"], f"{path.name} was measured with code that is not committed"


def test_what_was_tried_lost_and_wrong_is_a_table(tmp_path: Path):
    rows = {
        "killed": {"tried": 50, "lost_or_wrong": 1, "note": "2 studies ended"},
        "spoilt": {"tried": 2_000, "lost_or_wrong": 0, "note": ""},
    }
    (tmp_path / "reliability.json").write_text(json.dumps({"seed": 7, "faults": rows, "machine": "a machine", "commit": "abc"}))
    same = {"teacher_nats": 0.0, "student_nats": 0.0}
    other = {"teacher_nats": 2e-7, "student_nats": 3e-6}
    settings = {"2 threads": same, "2 threads, again": {**same, "same_bits_as_before": True}, "1 thread": other}
    settings |= {"1 thread, again": {**other, "same_bits_as_before": True}, "2 threads, MKL's products": other}
    found = {"model": "gpt2-mini", "tokens": 2_048, "machine": "a machine", "settings": settings}
    (tmp_path / "determinism.json").write_text(json.dumps(found))
    told = bench_readme.reliability(tmp_path).split("\n")
    assert told[2:4] == ["| killed | 50 | 1 | 2 studies ended |", "| spoilt | 2,000 | 0 |  |"]
    assert told[5] == "Moments of the kills: seed 7; the other faults are the same every time. (a machine, commit abc.)"
    assert told[-1].startswith(
        "The same work twice on as many threads agrees bit for bit. 1 thread, next to 2 threads: at most 2e-07 nats"
    )
    settings["1 thread, again"]["same_bits_as_before"] = False
    assert "does NOT agree bit for bit" in bench_readme.same_again(found)


def test_decode_in_llama_cpp_is_told_with_gain_and_size():
    from benchmarks import llama_cpp

    found = llama_cpp.rows({"whole": [10.0, 10.2, 9.8], "2 fewer": [9.0, 9.1, 8.9]}, {"whole": 1_000, "2 fewer": 950})
    assert found["depths"]["whole"]["gain"][0] == 1
    found |= {"model": "smollm2-135m", "version": "0.3", "machine": "a machine"}
    whole, cut = bench_readme.llama_cpp_lines(found)
    assert whole == "| smollm2-135m in llama.cpp | 30 | 10.0 |  |  | 1.000 [1.000, 1.000] | 1.00x | 1.00x |"
    assert cut.startswith("| smollm2-135m in llama.cpp | 28 | 9.0 |  |  | 1.111 [") and cut.endswith(" | 1.07x | 1.05x |")
    assert "behind 64 tokens, and the same without layers 14 + 17;" in bench_readme.llama_cpp_note(found)
