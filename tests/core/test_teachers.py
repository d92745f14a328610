"""Teacher states: exact, computed once, and safe against damage on disk."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny import count_layer_passes, layers_of, plan_of, tiny, tiny_windows

from depthprune_core import teachers
from depthprune_core.anatomy import anatomy
from depthprune_core.distillation import recover
from depthprune_core.pruning import drop_layers
from depthprune_core.records import Recipe
from depthprune_core.running import hidden_states
from depthprune_core.teachers import TeacherStates

TRAINING = tiny_windows(seed=1, lengths=(60, 29, 31))  # 11 windows
RECIPE = Recipe(tokens=132, lr=3e-3, kl=0.7, ce=0.3, temperature=2.0, batch_tokens=24, seq_len=12)
WINDOW_BYTES = 12 * 32 * 4


@pytest.mark.parametrize(  # 0: there is room for none
    ("name", "limit_bytes"), [("gpt2", 2**20), ("llama", 0), ("gemma2", 2**20)]
)
def test_kept_states_change_neither_student_nor_curve(name, limit_bytes, monkeypatch):
    monkeypatch.setattr(teachers, "LIMIT_BYTES", limit_bytes)
    teacher = tiny(name)
    student = drop_layers(teacher, plan_of(teacher, 2))
    expected, plain = recover(copy.deepcopy(student), teacher, TRAINING, RECIPE)
    states = TeacherStates(teacher)
    for _ in range(2):
        again = copy.deepcopy(student)
        healed, curve = recover(again, teacher, TRAINING, RECIPE, states=states)
        assert curve.recipe == plain.recipe
        assert curve.losses["kl"] == pytest.approx(plain.losses["kl"], rel=1e-4, abs=1e-6)
        with torch.no_grad():
            logits = [m(input_ids=TRAINING.inputs).logits for m in (healed, expected)]
        torch.testing.assert_close(*logits, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("n_kept", [0, 5])
def test_a_second_request_runs_the_teacher_only_on_new_windows(n_kept, monkeypatch):
    monkeypatch.setattr(teachers, "LIMIT_BYTES", n_kept * WINDOW_BYTES)
    teacher = tiny("llama")
    states = TeacherStates(teacher)
    first = states.of(TRAINING.inputs)[1]
    passes = count_layer_passes(teacher)
    assert torch.equal(states.of(TRAINING.inputs)[1], first)
    assert len(passes) == (len(TRAINING) - n_kept) * len(layers_of(teacher))


def test_the_states_of_a_window_do_not_depend_on_its_batch():
    teacher = tiny("gpt2")
    alone, together = TeacherStates(teacher), TeacherStates(teacher)
    one = torch.cat([alone.of(row[None])[1] for row in TRAINING.inputs])
    parts, all_of_them = together.of(TRAINING.inputs)
    assert torch.equal(one, all_of_them) and parts is anatomy(teacher)
    with torch.no_grad():
        plain = hidden_states(anatomy(teacher), TRAINING.inputs).flatten(0, 1)
    torch.testing.assert_close(one, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-1], lambda b: b"", lambda b: b[:50] + b"\0" * 9 + b[59:]]
)
def test_states_on_disk_are_reused_and_a_damaged_file_counts_as_missing(tmp_path, damage):
    expected = TeacherStates(tiny("llama"), folder=tmp_path).of(TRAINING.inputs)[1]
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert len(files) == len({tuple(row.tolist()) for row in TRAINING.inputs})
    files[0].write_bytes(damage(files[0].read_bytes()))
    for passes_wanted in (5, 0):  # the damaged window's, then none: its file was written anew
        teacher = tiny("llama")
        anatomy(teacher)
        passes = count_layer_passes(teacher)
        assert torch.equal(TeacherStates(teacher, folder=tmp_path).of(TRAINING.inputs)[1], expected)
        assert len(passes) == passes_wanted


def test_states_of_other_weights_another_config_and_another_precision_are_not_read(tmp_path):
    TeacherStates(tiny("llama"), folder=tmp_path).of(TRAINING.inputs)
    for teacher, autocast in (
        (tiny("llama", seed=1), False),
        (tiny("llama", rms_norm_eps=0.1), False),
        (tiny("llama"), True),
    ):
        anatomy(teacher)
        passes = count_layer_passes(teacher)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            TeacherStates(teacher, folder=tmp_path).of(TRAINING.inputs)
        assert len(passes) == 5 * len(TRAINING)


def test_disk_use_is_limited_and_a_full_disk_does_not_stop_the_run(tmp_path, monkeypatch):
    teacher = tiny("llama")
    monkeypatch.setattr(teachers, "LIMIT_BYTES", 3 * WINDOW_BYTES)
    TeacherStates(teacher, folder=tmp_path).of(TRAINING.inputs)
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 3 * WINDOW_BYTES + 200 and files
    monkeypatch.setattr(teachers, "LIMIT_BYTES", 2 * WINDOW_BYTES)
    TeacherStates(teacher, folder=tmp_path).of(TRAINING.inputs)
    assert len(list(tmp_path.rglob("*"))) == 1 + len(files)

    def full(path, content):
        raise OSError("No space left on device")

    monkeypatch.setattr(teachers, "write_atomically", full)
    states = TeacherStates(teacher, folder=tmp_path / "full")
    expected = TeacherStates(teacher).of(TRAINING.inputs)[1]
    assert torch.equal(states.of(TRAINING.inputs)[1], expected)
