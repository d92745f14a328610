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

from depthprune_core import losses
from depthprune_core.anatomy import anatomy
from depthprune_core.evaluation import score
from depthprune_core.sensitivity import profile

NATS = 1e-4  # per token


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_drop_one_equals_a_full_forward_of_each_pruned_model(name, windows):
    model = tiny(name)
    measured = profile(model, windows, gradients=False)
    log_p = plain_logits(model, windows.inputs)[windows.mask].double().log_softmax(-1)
    teacher = plain_nll(model, windows)
    assert measured.teacher.n_tokens == (29, 12, 5)
    assert measured.n_layers == len(layers_of(model))
    assert measured.teacher.nll_nats == pytest.approx(by_document(teacher, windows), abs=NATS * 5)
    for layer in range(measured.n_layers):
        with skipping(model, (layer,)):
            rise = plain_nll(model, windows) - teacher
            log_q = plain_logits(model, windows.inputs)[windows.mask].double().log_softmax(-1)
        kl = (log_p.exp() * (log_p - log_q)).sum(-1)
        assert measured.drop_one[layer] == pytest.approx(float(rise.mean()), abs=NATS)
        assert measured.criteria["drop_kl_nats"][layer] == pytest.approx(float(kl.mean()), abs=NATS)
        for name, values in (("drop_nll_nats", rise), ("drop_kl_nats", kl)):
            rows = measured.by_document[name][layer], by_document(values, windows)
            gaps = [(a - b) / n for a, b, n in zip(*rows, (29, 12, 5), strict=True)]
            assert max(map(abs, gaps)) < NATS


@pytest.mark.parametrize("batch_size", [1, 5])
def test_batch_chunk_and_padding_do_not_change_the_profile(model, windows, batch_size, monkeypatch):
    expected = profile(model, windows).criteria
    monkeypatch.setattr(losses, "TILE_TOKENS", 7)
    monkeypatch.setattr(losses, "BACKWARD_TOKENS", 7)
    monkeypatch.setattr(losses, "TILE_WORDS", {"cpu": 50})
    for tensor in (windows.inputs, windows.targets):
        tensor[~windows.mask] = 77
    actual = profile(model, windows, batch_size=batch_size).criteria
    for criterion, values in expected.items():
        assert actual[criterion] == pytest.approx(values, rel=1e-4, abs=1e-5), criterion


def states_of(model, windows) -> list[torch.Tensor]:
    """Input of each layer, and the last one's output *before* the final norm."""
    before_norm = []
    norm = final_norm_of(model)
    hook = norm.register_forward_pre_hook(lambda module, args: before_norm.append(args[0]))
    with torch.no_grad():
        out = model(input_ids=windows.inputs, use_cache=False, output_hidden_states=True)
    hook.remove()  # transformers' own list ends behind the norm
    return [s[windows.mask].double() for s in (*out.hidden_states[:-1], before_norm[0])]


def test_distances_are_those_of_plain_hidden_states(model, windows):
    states = states_of(model, windows)
    measured = profile(model, windows, gradients=False)
    rows = measured.by_document["block_influence"]
    for layer in range(5):
        gap = 1 - torch.cosine_similarity(states[layer], states[layer + 1], dim=-1)
        assert rows[layer] == pytest.approx(by_document(gap, windows), abs=1e-4)
    distances = measured.angular_distance
    assert {int(n): len(row) for n, row in distances.items()} == {1: 5, 2: 4, 3: 3, 4: 2}
    for first, last in itertools.combinations(range(6), 2):
        if last - first < 5:
            angle = torch.cosine_similarity(states[first], states[last], dim=-1).arccos()
            expected = float((angle / math.pi).mean())
            assert distances[str(last - first)][first] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("name", [*FAMILIES, "gemma2"])
def test_weights_and_gradients_are_those_of_the_plain_mean_loss(name, windows):
    model = tiny(name)
    log_q = model(input_ids=windows.inputs, use_cache=False).logits.log_softmax(-1)
    (-log_q.gather(-1, windows.targets[..., None])[..., 0][windows.mask]).mean().backward()
    layers = [list(layer.parameters()) for layer in layers_of(model)]
    taylor = [sum(float((p.data * p.grad).abs().sum()) for p in layer) for layer in layers]
    magnitude = [sum(float(p.detach().abs().sum()) for p in layer) for layer in layers]
    model.zero_grad()
    by_layer = profile(model, windows).by_layer
    assert by_layer["taylor"] == pytest.approx(taylor, rel=1e-4)
    assert by_layer["magnitude"] == pytest.approx(magnitude, rel=1e-5)
    assert "taylor" not in profile(model, windows, gradients=False).by_layer


@pytest.mark.parametrize("name", FAMILIES)
def test_the_model_and_the_random_state_are_untouched(name, windows):
    model = tiny(name)
    layers_of(model)[1].requires_grad_(False)
    unchanged, random_state = state_of(model), torch.get_rng_state()
    profile(model, windows)
    assert unchanged() and torch.equal(torch.get_rng_state(), random_state)

    def stop(done: int, of: int, what: str) -> None:
        if done > of // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        profile(model, windows, progress=stop)
    assert unchanged()


def test_only_what_follows_a_skipped_layer_runs_again(model, windows):
    anatomy(model)
    passes, seen = count_layer_passes(model), []
    progress = lambda done, of, what: seen.append((done, of))  # noqa: E731
    measured = profile(model, windows, batch_size=5, gradients=False, progress=progress)
    assert len(passes) == 5 * 6 / 2  # L (L + 1) / 2, where full forwards would need L + L (L - 1)
    assert seen == [(done, 5) for done in range(1, 6)]
    assert measured.teacher.nll_nats == pytest.approx(score(model, windows).nll_nats, rel=1e-6)
