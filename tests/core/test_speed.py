"""The timing procedure without a clock, and the weight bytes, computed by hand."""

from __future__ import annotations

import pytest
import torch
from tiny import FAMILIES, plan_of, state_of, tiny

from depthprune_core import speed
from depthprune_core.pruning import drop_layers


@pytest.fixture
def timed(monkeypatch) -> list:
    """The models as they were timed; the nth takes n ms to prefill and 100 + n a token."""
    order = []

    def fake(model, prompt, new_tokens):
        order.append(model)
        return float(len(order)), 100.0 + len(order)

    monkeypatch.setattr(speed, "_prefill_and_decode_ms", fake)
    return order


def test_teacher_and_student_take_turns_and_the_first_round_does_not_count(model, timed):
    student, seen = drop_layers(model, plan_of(model, 1, 2)), []
    timing = speed.compare_all(
        model,
        {"2 fewer": student},
        context=7,
        new_tokens=3,
        repetitions=3,
        batch_size=2,
        progress=lambda done, of, what: seen.append((done, of)),
    )["2 fewer"]
    assert [m is model for m in timed] == [True, False] * 4 and seen[-1] == (3, 3)
    assert (timing.teacher_prefill_ms, timing.student_prefill_ms) == ((3, 5, 7), (4, 6, 8))
    assert timing.teacher_decode_ms_per_token == (103, 105, 107)
    assert timing.student_decode_ms_per_token == (104, 106, 108)
    assert (timing.context, timing.new_tokens, timing.batch_size) == (7, 3, 2)
    assert timing.device == speed.device_name(torch.device("cpu")) and timing.dtype == "float32"
    assert timing.n_threads == torch.get_num_threads()
    assert timing.by_layer_count == pytest.approx(5 / 3)


def test_depths_are_timed_in_one_round_on_the_models_own_weights(model, timed):
    timings = speed.compare_depths(model, [4, 2], context=4, new_tokens=2, repetitions=2)
    assert [m.config.num_hidden_layers for m in timed] == [5, 4, 2] * 3
    weights = {p.data_ptr() for p in model.parameters()}
    assert all(p.data_ptr() in weights for m in timed for p in m.parameters())
    assert timings["4"].teacher_prefill_ms == timings["2"].teacher_prefill_ms == (4, 7)
    assert timings["2"].student_prefill_ms == (6, 9) and timings["2"].by_layer_count == 2.5


def test_decode_is_single_tokens_behind_the_prompt_and_changes_nothing(model):
    unchanged, random_state, lengths = state_of(model), torch.get_rng_state(), []
    hook = model.register_forward_pre_hook(
        lambda module, args, kwargs: lengths.append(tuple(kwargs["input_ids"].shape)),
        with_kwargs=True,
    )
    options = {"context": 7, "new_tokens": 3, "repetitions": 1, "batch_size": 2}
    timing = speed.compare_all(model, {"same": model}, **options)["same"]
    hook.remove()
    assert lengths[:16] == [(2, 7), (2, 1), (2, 1), (2, 1)] * 4
    assert min(*timing.teacher_prefill_ms, *timing.teacher_decode_ms_per_token) > 0
    assert unchanged() and torch.equal(torch.get_rng_state(), random_state)


def test_decode_time_is_per_token(model, monkeypatch):
    clock = iter([0.0, 0.010, 0.040])  # seconds: start, prompt done, three tokens later
    monkeypatch.setattr(speed, "now", lambda device: next(clock))
    with torch.no_grad():
        times = speed._prefill_and_decode_ms(model, torch.ones(1, 4, dtype=torch.long), 3)
    assert times == pytest.approx((10, 10))


@pytest.mark.parametrize(
    ("name", "values_per_layer"),  # keys and values; two of four heads of 8 where grouped
    [("gpt2", 2 * 32), ("llama", 2 * 2 * 8), ("mistral", 2 * 2 * 8)],
)
def test_kv_cache_bytes_per_token(name, values_per_layer):
    model = tiny(name)
    assert speed.kv_bytes_per_token(model) == 5 * values_per_layer * 4
    half = drop_layers(model, plan_of(model, 0, 3)).to(torch.bfloat16)
    assert speed.kv_bytes_per_token(half) == 3 * values_per_layer * 2


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("name", FAMILIES)
def test_weights_read_per_token_are_layers_norm_and_head_but_no_embedding(name, tie):
    model = tiny(name, tie_word_embeddings=tie)
    of_gpt2 = 4 * 32 * 32 + 4 * 32 + 8 * 32 * 32 + 5 * 32 + 4 * 32
    of_llama = 2 * 32 * 32 + 2 * 16 * 32 + 3 * 48 * 32 + 2 * 32
    layer, norm = {"gpt2": (of_gpt2, 2 * 32), "llama": (of_llama, 32)}[name]
    n = 5 * layer + norm + 128 * 32
    assert speed.weight_bytes_per_token(model) == 4 * n
    assert speed.weight_bytes_per_token(model.to(torch.bfloat16)) == 2 * n
