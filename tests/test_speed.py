"""What timing does, without a clock; and the bytes it is set against, by hand."""

from __future__ import annotations

import pytest
import torch
from tiny import plan_of, state_of, tiny, tiny_windows

from depthprune_core import models, speed
from depthprune_core.pruning import drop_layers


def test_teacher_and_student_take_turns_and_the_first_round_does_not_count(model, monkeypatch):
    student = drop_layers(model, plan_of(model, 1, 2))
    turns = []

    def fake(timed, prompt, new_tokens):
        turns.append("A" if timed is model else "B")
        return float(len(turns)), 100.0 + len(turns)

    monkeypatch.setattr(speed, "_prefill_and_decode_ms", fake)
    timing = speed.compare(model, student, context=7, new_tokens=3, repetitions=3, batch_size=2)
    assert "".join(turns) == "ABABABAB"
    assert (timing.teacher_prefill_ms, timing.student_prefill_ms) == ((3, 5, 7), (4, 6, 8))
    assert (timing.teacher_decode_ms_per_token, timing.student_decode_ms_per_token) == ((103, 105, 107), (104, 106, 108))
    assert (timing.context, timing.new_tokens, timing.batch_size, timing.dtype) == (7, 3, 2, "float32")
    assert timing.device == speed.device_name(torch.device("cpu"))
    assert timing.n_threads == torch.get_num_threads()
    assert timing.by_layer_count == pytest.approx(5 / 3)


def test_decode_is_single_tokens_behind_the_prompt(model):
    lengths = []
    hook = model.register_forward_pre_hook(
        lambda module, args, kwargs: lengths.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    timing = speed.compare(model, model, context=7, new_tokens=3, repetitions=1, batch_size=2)
    hook.remove()
    assert lengths[:16] == [(2, 7), (2, 1), (2, 1), (2, 1)] * 4
    assert min(*timing.teacher_prefill_ms, *timing.teacher_decode_ms_per_token) > 0


def test_decode_time_is_per_token(model, monkeypatch):
    clock = iter([0.0, 0.010, 0.040])  # seconds: start, prompt done, three tokens later
    monkeypatch.setattr(speed, "now", lambda device: next(clock))
    with torch.no_grad():
        assert speed._prefill_and_decode_ms(model, torch.ones(1, 4, dtype=torch.long), 3) == pytest.approx((10, 10))


def test_timing_leaves_models_and_the_random_state_as_they_were(model):
    unchanged, random_state = state_of(model), torch.get_rng_state()
    speed.compare(model, model, context=4, new_tokens=2, repetitions=1)
    assert unchanged() and torch.equal(torch.get_rng_state(), random_state)


@pytest.mark.parametrize(
    ("name", "values_per_layer"),
    [("gpt2", 2 * 32), ("llama", 2 * 2 * 8), ("mistral", 2 * 2 * 8)],  # keys and values; two of four heads of 8 where grouped
)
def test_kv_cache_bytes_per_token(name, values_per_layer):
    model = tiny(name)
    assert speed.kv_bytes_per_token(model) == 5 * values_per_layer * 4
    assert speed.kv_bytes_per_token(drop_layers(model, plan_of(model, 0, 3)).to(torch.bfloat16)) == 3 * values_per_layer * 2


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_weights_read_per_token_are_layers_norm_and_head_but_no_embedding(name, tie):
    model = tiny(name, tie_word_embeddings=tie)
    layer = {
        "gpt2": 4 * 32 * 32 + 4 * 32 + 8 * 32 * 32 + 5 * 32 + 4 * 32,
        "llama": 2 * 32 * 32 + 2 * 16 * 32 + 3 * 48 * 32 + 2 * 32,
    }[name]
    norm = {"gpt2": 2 * 32, "llama": 32}[name]
    assert speed.weight_bytes_per_token(model) == 4 * (5 * layer + norm + 128 * 32)
    assert speed.weight_bytes_per_token(model.to(torch.bfloat16)) == 2 * (5 * layer + norm + 128 * 32)


def test_gpt2s_head_weighs_as_much_as_five_layers_so_two_of_twelve_gain_1_13():
    read = {n: speed.weight_bytes_per_token(models.shape("gpt2-shape", n_layers=n)) for n in (12, 10)}
    per_layer = (read[12] - read[10]) / 2
    assert (read[12] / per_layer) - 12 == pytest.approx(5.4, abs=0.05)
    assert read[12] / read[10] == pytest.approx((124_439_808 - 786_432) / (110_264_064 - 786_432), rel=1e-9)  # less positions


def test_depths_are_timed_in_one_round_on_the_models_own_weights(model, monkeypatch):
    timed = []

    def fake(timed_model, prompt, new_tokens):
        timed.append(timed_model)
        return float(len(timed)), float(len(timed))

    monkeypatch.setattr(speed, "_prefill_and_decode_ms", fake)
    timings = speed.compare_depths(model, [4, 2], context=4, new_tokens=2, repetitions=2)
    assert [m.config.num_hidden_layers for m in timed] == [5, 4, 2] * 3
    own = {p.data_ptr() for p in model.parameters()}
    assert all(p.data_ptr() in own for m in timed for p in m.parameters())
    assert timings["4"].teacher_prefill_ms == timings["2"].teacher_prefill_ms == (4, 7)
    assert (timings["4"].student_prefill_ms, timings["2"].student_prefill_ms) == ((5, 8), (6, 9))
    assert timings["2"].by_layer_count == 2.5


def test_the_pace_of_a_recovery_is_its_median_round_behind_one_that_warms_up(model, monkeypatch):
    plan = plan_of(model, 2)
    clock = iter([0.0, 50.0, 100.0, 102.0, 200.0, 208.0, 300.0, 304.0])  # rounds of 50 (the first), 2, 8 and 4 seconds
    monkeypatch.setattr(speed, "now", lambda device: next(clock))
    made = []

    def make():
        made.append(drop_layers(model, plan))
        return made[-1]

    windows = tiny_windows()
    pace = speed.recovery_pace(make, model, windows, plan=plan, loss={"kl": 1.0}, lr=1e-3, seed=0)
    assert pace == len(windows) * windows.seq_len / 4.0
    assert len(made) == 4


def test_the_peak_is_that_of_the_library_which_recovery_uses(monkeypatch):
    clock = iter([0.0, 1.0, 1.0, 1.5, 1.5, 1.75])
    shapes = []
    monkeypatch.setattr(speed, "now", lambda device: next(clock))
    monkeypatch.setattr(speed, "linear", lambda a, b: shapes.append((tuple(a.shape), tuple(b.shape))))
    assert speed.product_tflops(torch.device("cpu"), times=2) == pytest.approx(2 * 2_048**3 / 0.25 / 1e12)
    assert shapes == [((2_048, 2_048), (2_048, 2_048))] * 3
