"""The fast profile equals the slow one: brute-force loops over plain forwards with full logits."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from tiny import (
    ARCHITECTURES,
    FAMILIES,
    by_document,
    count_layer_passes,
    final_norm_of,
    layers_of,
    plain_logits,
    plain_nll,
    skipping,
    state_of,
    tiny,
)

from depthprune_core import losses, sensitivity
from depthprune_core.decoders import decoder
from depthprune_core.evaluation import score

NATS = 1e-4  # per token


# ---------------------------------------------------------------- drop-one


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_drop_one_equals_a_full_forward_of_each_pruned_model(name, windows):
    model = tiny(name)
    profile = sensitivity.profile(model, windows, gradients=False)
    log_p = plain_logits(model, windows.inputs)[windows.mask].double().log_softmax(-1)
    teacher = plain_nll(model, windows)
    n_tokens = [29, 12, 5]
    assert list(profile.teacher.n_tokens) == n_tokens and profile.n_layers == len(layers_of(model))
    assert profile.teacher.nll_nats == pytest.approx(by_document(teacher, windows), abs=NATS * 5)
    for layer in range(profile.n_layers):
        with skipping(model, (layer,)):
            rise = plain_nll(model, windows) - teacher
            log_q = plain_logits(model, windows.inputs)[windows.mask].double().log_softmax(-1)
        kl = (log_p.exp() * (log_p - log_q)).sum(-1)
        assert profile.drop_one[layer] == pytest.approx(float(rise.mean()), abs=NATS)
        assert profile.criteria["drop_kl_nats"][layer] == pytest.approx(float(kl.mean()), abs=NATS)
        for measured, values in (("drop_nll_nats", rise), ("drop_kl_nats", kl)):
            expected = by_document(values, windows)
            per_token = [(a - b) / n for a, b, n in zip(profile.by_document[measured][layer], expected, n_tokens, strict=True)]
            assert max(map(abs, per_token)) < NATS


@pytest.mark.parametrize("batch_size", [1, 5])
def test_batch_and_chunk_size_do_not_change_the_profile(model, windows, batch_size, monkeypatch):
    expected = sensitivity.profile(model, windows).criteria
    monkeypatch.setattr(losses, "TILE_TOKENS", 7)
    monkeypatch.setattr(losses, "BACKWARD_TOKENS", 7)
    monkeypatch.setattr(losses, "TILE_WORDS", {"cpu": 50})
    actual = sensitivity.profile(model, windows, batch_size=batch_size).criteria
    for criterion, values in expected.items():
        assert actual[criterion] == pytest.approx(values, rel=1e-4, abs=1e-5), criterion


def test_padded_tokens_change_nothing_in_the_profile(model, windows):
    expected = sensitivity.profile(model, windows).criteria
    for tensor in (windows.inputs, windows.targets):
        tensor[~windows.mask] = 77
    for criterion, values in sensitivity.profile(model, windows).criteria.items():
        assert values == pytest.approx(expected[criterion], rel=1e-6), criterion


def test_a_layer_that_does_nothing_is_worth_nothing(model, windows):
    layer = layers_of(model)[2]
    closed = (layer.attn.c_proj, layer.mlp.c_proj) if hasattr(layer, "attn") else (layer.self_attn.o_proj, layer.mlp.down_proj)
    for module in closed:
        for p in module.parameters():
            p.data.zero_()
    criteria = sensitivity.profile(model, windows).criteria
    for criterion in ("drop_nll_nats", "drop_kl_nats", "block_influence"):
        assert criteria[criterion][2] == pytest.approx(0, abs=1e-5)
        others = [value for layer, value in enumerate(criteria[criterion]) if layer != 2]
        if criterion == "drop_nll_nats":  # a layer of random weights may do harm
            others = [abs(value) for value in others]
        assert min(others) > 0.01, criterion


# ---------------------------------------------------------------- distances, weights, gradients


def states_of(model, windows) -> list[torch.Tensor]:
    """Input of each layer, and the last layer's output *before* the final norm: transformers' own list ends behind it."""
    before_norm = []
    hook = final_norm_of(model).register_forward_pre_hook(lambda module, args: before_norm.append(args[0]))
    with torch.no_grad():
        states = model(input_ids=windows.inputs, use_cache=False, output_hidden_states=True).hidden_states
    hook.remove()
    return [state[windows.mask].double() for state in (*states[:-1], before_norm[0])]


def test_block_influence_is_one_minus_the_cosine_of_input_and_output(model, windows):
    states = states_of(model, windows)
    profile = sensitivity.profile(model, windows, gradients=False)
    for layer in range(5):
        gap = 1 - torch.cosine_similarity(states[layer], states[layer + 1], dim=-1)
        assert profile.by_document["block_influence"][layer] == pytest.approx(by_document(gap, windows), abs=1e-4)
        assert profile.criteria["block_influence"][layer] == pytest.approx(float(gap.mean()), abs=1e-5)


def test_angular_distance_of_every_span(model, windows):
    states = states_of(model, windows)
    distances = sensitivity.profile(model, windows, gradients=False).angular_distance
    assert {int(length): len(row) for length, row in distances.items()} == {1: 5, 2: 4, 3: 3, 4: 2}
    for first, last in itertools.combinations(range(6), 2):
        if last - first < 5:
            angle = torch.cosine_similarity(states[first], states[last], dim=-1).arccos()
            assert distances[str(last - first)][first] == pytest.approx(float((angle / math.pi).mean()), abs=1e-5)


@pytest.mark.parametrize("name", [*FAMILIES, "gemma2"])
def test_taylor_is_weight_times_gradient_of_the_plain_mean_loss(name, windows):
    model = tiny(name)
    log_q = model(input_ids=windows.inputs, use_cache=False).logits.log_softmax(-1)
    (-log_q.gather(-1, windows.targets[..., None])[..., 0][windows.mask]).mean().backward()
    expected = [sum(float((p.data * p.grad).abs().sum()) for p in layer.parameters()) for layer in layers_of(model)]
    model.zero_grad()
    assert sensitivity.profile(model, windows).by_layer["taylor"] == pytest.approx(expected, rel=1e-4)


def test_magnitude_is_the_sum_of_absolute_weights(model, windows):
    expected = [sum(p.abs().sum().item() for p in layer.parameters()) for layer in layers_of(model)]
    by_layer = sensitivity.profile(model, windows, gradients=False).by_layer
    assert by_layer["magnitude"] == pytest.approx(expected, rel=1e-5)
    assert "taylor" not in by_layer


# ---------------------------------------------------------------- what stays as it was


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_model_and_the_random_state_are_untouched(name, windows):
    model = tiny(name)
    layers_of(model)[1].requires_grad_(False)
    unchanged, random_state = state_of(model), torch.get_rng_state()
    sensitivity.profile(model, windows)
    assert unchanged()
    assert torch.equal(torch.get_rng_state(), random_state)


def test_stopping_midway_leaves_the_model_as_it_was(model, windows):
    unchanged = state_of(model)

    def stop(done: int, of: int, what: str) -> None:
        if done > of // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sensitivity.profile(model, windows, progress=stop)
    assert unchanged()


def test_progress_counts_to_the_end(model, windows):
    seen = []
    sensitivity.profile(model, windows, progress=lambda done, of, what: seen.append((done, of)))
    assert [done for done, _ in seen] == list(range(1, len(seen) + 1)) and seen[-1][0] == seen[-1][1]


def test_only_what_follows_a_skipped_layer_runs_again(model, windows):
    decoder(model)
    passes = count_layer_passes(model)
    sensitivity.profile(model, windows, batch_size=5, gradients=False)
    assert len(passes) == 5 * 6 / 2  # L (L + 1) / 2, where full forwards would need L + L (L - 1)


def test_profile_agrees_with_the_score_of_the_teacher(model, windows):
    assert sensitivity.profile(model, windows).teacher.nll_nats == pytest.approx(score(model, windows).nll_nats, rel=1e-6)
