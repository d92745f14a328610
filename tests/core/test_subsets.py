"""Costs of sets of layers measured on a tree equal one brute-force forward per set."""

from __future__ import annotations

import pytest
import torch
from tiny import (
    ARCHITECTURES,
    count_layer_passes,
    layers_of,
    plain_nll,
    skipping,
    state_of,
    tiny,
    tiny_windows,
)

from depthprune_core import subsets
from depthprune_core.anatomy import anatomy
from depthprune_core.sensitivity import profile

NATS = 1e-4  # per token
# Unordered; some prefixes are requested, (0,), and others are only passed: (1, 2, 3).
MIX = [(2,), (0, 3, 4), (), (1, 2), (4,), (0,), (1, 2, 3, 4)]


def brute_force_by_window(model, windows, dropped) -> torch.Tensor:
    """NLL, summed over the tokens of each window.  (n_windows,) float64"""
    with skipping(model, tuple(dropped)):
        values = plain_nll(model, windows)
    return torch.stack([row.sum() for row in values.split(windows.mask.sum(1).tolist())])


def brute_force_rises(model, windows, sets) -> list[float]:
    """Nats per token."""
    whole, *ablated = (brute_force_by_window(model, windows, s).sum() for s in [(), *sets])
    return [float((total - whole) / windows.mask.sum()) for total in ablated]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_any_mix_of_sets_equals_brute_force_window_by_window(name, windows):
    model = tiny(name)
    measured = subsets.nll_by_window(model, windows, MIX)
    assert measured.shape == (7, 5) and measured.dtype == torch.float64
    for dropped, row in zip(MIX, measured, strict=True):
        gap = row - brute_force_by_window(model, windows, dropped)
        assert (gap / windows.mask.sum(1)).abs().max() < NATS, dropped


@pytest.mark.parametrize("batch_size", [1, 3, 99])
def test_rows_are_in_the_order_asked_whatever_batch_and_padding(model, windows, batch_size):
    expected = torch.stack([brute_force_by_window(model, windows, dropped) for dropped in MIX])
    for tensor in (windows.inputs, windows.targets):
        tensor[~windows.mask] = 77
    for order in (list(range(7)), [6, 2, 0, 5, 1, 4, 3]):
        sets = [MIX[i] for i in order]
        measured = subsets.nll_by_window(model, windows, sets, batch_size=batch_size)
        torch.testing.assert_close(measured, expected[order], rtol=1e-5, atol=0)


@pytest.mark.parametrize("sets", [[(2, 1)], [(0, 2, 2)], [(7,)], [], [(1,), (1,)]], ids=str)
def test_impossible_sets_are_refused(model, windows, sets):
    sentence = r"each wanted once, with layers of 0\.\.4 in ascending order, not \["
    with pytest.raises(ValueError, match=sentence):
        subsets.nll_by_window(model, windows, sets)


@pytest.mark.parametrize(
    ("sets", "passes"),
    [
        ([()], [0, 1, 2, 3, 4]),
        ([(0,)], [1, 2, 3, 4]),
        ([(4,)], [0, 1, 2, 3]),
        ([(1, 2)], [0, 3, 4]),  # the root up to layer 1, (1,) nothing, (1, 2) the rest
        ([(1, 2), (1,)], [0, 2, 3, 4, 3, 4]),
        ([(1, 4), (3,), (1, 2)], [0, 1, 2, 2, 3, 3, 4, 4]),
        ([(1, 4), (3,), (1, 2), ()], [0, 1, 2, 3, 4, 2, 3, 3, 4, 4]),
    ],
    ids=str,
)
def test_a_set_on_the_way_runs_no_layer_behind_its_last_branch(model, windows, sets, passes):
    anatomy(model)
    counted = count_layer_passes(model)
    subsets.nll_by_window(model, windows, sets, batch_size=5)
    assert counted == passes


def test_rises_of_every_set_up_to_a_size_equal_brute_force(model):
    windows = tiny_windows(lengths=(14, 5))
    sets = subsets.up_to(5, 3)
    assert len(sets) == len(set(sets)) == 5 + 10 + 10
    rises = subsets.rises(model, windows, sets)
    assert rises == pytest.approx(brute_force_rises(model, windows, sets), abs=NATS)
    assert rises[:5] == pytest.approx(profile(model, windows, gradients=False).drop_one, abs=1e-5)


def test_the_model_is_untouched_also_where_it_is_stopped_and_progress_counts(model, windows):
    layers_of(model)[1].requires_grad_(False)
    unchanged, random_state, seen = state_of(model), torch.get_rng_state(), []
    progress = lambda done, of, what: seen.append((done, of))  # noqa: E731
    subsets.nll_by_window(model, windows, MIX, batch_size=2, progress=progress)
    assert seen == [(done, 21) for done in range(1, 22)]  # 7 sets, 3 batches
    assert unchanged() and torch.equal(torch.get_rng_state(), random_state)

    def stop(done: int, of: int, what: str) -> None:
        if done > of // 2:
            raise KeyboardInterrupt

    for sets in (MIX, [(0, 1), (1, 2), (2, 3)]):
        with pytest.raises(KeyboardInterrupt):
            subsets.nll_by_window(model, windows, sets, progress=stop)
        assert unchanged()
