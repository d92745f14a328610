"""Training-free rivals, each compared with a reference of its paper's equations."""

from __future__ import annotations

import pytest
import torch
from tiny import FAMILIES, layers_of, plain_logits, plan_of, skipping, state_of, tiny, tiny_windows

from depthprune_core.evaluation import score
from depthprune_core.mlps import mlp_outputs
from depthprune_core.pruning import drop_layers
from depthprune_core.records import Plan
from depthprune_study.errors import StudyError
from depthprune_study.lab.rivals import maps
from depthprune_study.lab.rivals.hadamard import hadamard

WINDOWS = tiny_windows(lengths=(48, 48, 29), seq_len=12)


@torch.no_grad()
def states(model, first: int, after: int) -> tuple[torch.Tensor, ...]:
    """X and Y of every window, with plain torch hooks.  (windows, seq, d)"""
    layers, seen = layers_of(model), {}

    def before(index):
        def keep(module, args, kwargs):
            seen[index] = args[0] if args else kwargs["hidden_states"]

        return keep

    def behind(module, args, output):
        seen[len(layers)] = output[0] if isinstance(output, tuple) else output

    hooks = [
        layer.register_forward_pre_hook(before(i), with_kwargs=True)
        for i, layer in enumerate(layers)
    ]
    hooks.append(layers[-1].register_forward_hook(behind))
    model(WINDOWS.inputs)
    for hook in hooks:
        hook.remove()
    return seen[first].double(), seen[after].double()


def scored(state: torch.Tensor) -> torch.Tensor:
    return state[WINDOWS.mask]


def answered(model, plan: Plan, operator) -> torch.Tensor:
    """Logits of the whole model in which the run of layers `plan` drops computes `operator`."""
    first = plan.dropped[0]
    layers = layers_of(model)

    def patched(module, args, kwargs, output):
        state = args[0] if args else kwargs["hidden_states"]
        new = operator(state.double()).float()
        return (new, *output[1:]) if isinstance(output, tuple) else new

    with skipping(model, plan.dropped[1:]):
        hook = layers[first].register_forward_hook(patched, with_kwargs=True)
        try:
            return plain_logits(model, WINDOWS.inputs)
        finally:
            hook.remove()


def close(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.allclose(one, other, rtol=1e-3, atol=1e-3 * float(other.abs().max()))


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("dropped", [(2,), (1, 2), (0,), (3, 4)], ids=str)
def test_prune_and_comp_scales_by_the_mean_ratio_of_magnitudes(name, dropped):
    model, plan = tiny(name), plan_of(tiny(name), *dropped)
    x, y = states(model, dropped[0], dropped[-1] + 1)
    ratios = [
        (y[w][WINDOWS.mask[w]].abs().mean(0) / x[w][WINDOWS.mask[w]].abs().mean(0)).mean()
        for w in range(len(x))
    ]
    alpha = sum(ratios) / len(ratios)
    ours = plain_logits(maps.prune_and_comp(model, plan, WINDOWS), WINDOWS.inputs)
    assert close(ours, answered(model, plan, lambda state: state * alpha))


@torch.no_grad()
def test_the_scalar_at_the_cut_is_the_papers_scalar_folded_into_the_weights():
    model = tiny("llama", tie_word_embeddings=False, rms_norm_eps=1e-12)
    plan = plan_of(model, 3)
    one_window = WINDOWS.take(slice(0, 1))
    ours = maps.prune_and_comp(model, plan, one_window)
    x, y = (state[:1][one_window.mask] for state in states(model, 3, 4))
    alpha = float((y.abs().mean(0) / x.abs().mean(0)).mean())
    folded = drop_layers(model, plan)
    folded.model.embed_tokens.weight *= alpha
    for layer in folded.model.layers[:3]:
        layer.self_attn.o_proj.weight *= alpha
        layer.mlp.down_proj.weight *= alpha
    assert abs(alpha - 1) > 0.01
    assert close(plain_logits(ours, WINDOWS.inputs), plain_logits(folded, WINDOWS.inputs))


@pytest.mark.parametrize("name", FAMILIES)
def test_linear_patch_is_one_symmetric_matrix_of_rotated_channel_ratios(name):
    model, plan = tiny(name), plan_of(tiny(name), 1, 2)
    x, y = states(model, 1, 3)
    rotation = hadamard(32)
    rows = [WINDOWS.mask[w] for w in range(len(x))]
    ratios = [
        (y[w][keep] @ rotation).abs().mean(0) / (x[w][keep] @ rotation).abs().mean(0)
        for w, keep in enumerate(rows)
    ]
    patch = rotation @ torch.diag(torch.stack(ratios).mean(0)) @ rotation.T
    torch.testing.assert_close(patch, patch.T)
    ours = plain_logits(maps.linear_patch(model, plan, WINDOWS), WINDOWS.inputs)
    assert close(ours, answered(model, plan, lambda state: state @ patch))


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("dropped", [(2,), (0,), (3, 4)], ids=str)
def test_ghosted_layers_put_the_least_squares_map_of_the_lost_layers_at_the_cut(name, dropped):
    model, plan = tiny(name), plan_of(tiny(name), *dropped)
    x, y = (scored(state) for state in states(model, dropped[0], dropped[-1] + 1))
    weight = torch.eye(32) + torch.linalg.lstsq(x, y - x, driver="gelsd").solution
    ours = plain_logits(maps.ghosted_layers(model, plan, WINDOWS), WINDOWS.inputs)
    assert close(ours, answered(model, plan, lambda state: state @ weight))


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_replaceme_merges_the_least_squares_map_of_the_mlp_output_into_its_last_map(name):
    model, plan = tiny(name), plan_of(tiny(name), 2)
    x, y = (scored(state) for state in states(model, 2, 3))
    seen = []
    hook = mlp_outputs(model)[1].register_forward_hook(lambda _, args, output: seen.append(output))
    model(WINDOWS.inputs)
    hook.remove()
    mlp = scored(seen[0].reshape(*WINDOWS.inputs.shape, -1).double())
    change = torch.linalg.lstsq(mlp, y - (x - mlp), driver="gelsd").solution
    student = maps.replaceme(model, plan, WINDOWS)
    new = drop_layers(model, plan)
    target = mlp_outputs(new)[1]
    weight = target.weight.double()
    target.weight.copy_(weight @ change if name == "gpt2" else change.T @ weight)
    if target.bias is not None:
        target.bias.copy_(target.bias.double() @ change)
    assert close(plain_logits(student, WINDOWS.inputs), plain_logits(new, WINDOWS.inputs))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in student.modules())  # plain


@pytest.mark.parametrize("method", maps.METHODS)
@pytest.mark.parametrize("dropped", [(0,), (1, 3, 4)], ids=str)  # first; two runs, last
def test_every_rival_repairs_any_plan_and_leaves_the_original_unchanged(method, dropped):
    model = tiny("llama")
    unchanged = state_of(model)
    student = maps.METHODS[method](model, plan_of(model, *dropped), WINDOWS)
    assert torch.isfinite(plain_logits(student, WINDOWS.inputs)).all()
    assert score(student, WINDOWS).mean_nll_nats > 0
    assert unchanged()


@pytest.mark.parametrize("size", [1, 2, 12, 20, 28, 36, 48, 64, 576, 768])
def test_a_hadamard_matrix_is_orthonormal_and_has_one_magnitude(size):
    matrix = hadamard(size)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(size, dtype=torch.float64))
    torch.testing.assert_close(matrix.abs(), torch.full_like(matrix, size**-0.5))


def test_a_size_without_a_hadamard_matrix_and_an_unknown_method_are_refused():
    with pytest.raises(StudyError, match="no Hadamard matrix of size 6 is known"):
        hadamard(6)
    with pytest.raises(StudyError, match="method='magic' is not known: name one of prune_and_comp"):
        maps.training_free(None, "magic", None, None)
