"""A checkpoint is restored unchanged, or an error names it."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny import plan_of, tiny

from depthprune_core import checkpoints
from depthprune_core.pruning import drop_layers

DAMAGED = "is damaged: remove it to begin this recovery again"
LOG = {"step": 3, "losses": {"kl": [0.5, 0.25]}}


def run_of(seed: int = 0, *, steps: int = 0) -> SimpleNamespace:
    """A student, its optimiser after some steps, and a scaler that does nothing."""
    student = tiny("llama", seed=seed)
    optimiser = torch.optim.AdamW(student.parameters(), lr=1e-3)
    for _ in range(steps):
        student(torch.tensor([[1, 2, 3]])).logits.sum().backward()
        optimiser.step()
        optimiser.zero_grad()
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    return SimpleNamespace(student=student, optimiser=optimiser, scaler=scaler, log=LOG)


@pytest.fixture
def path(tmp_path) -> Path:
    checkpoints.save(tmp_path / "run" / "checkpoint", "key", run_of(steps=2))
    return tmp_path / "run" / "checkpoint"


def test_a_damaged_checkpoint_is_refused(path):
    content = path.read_bytes()
    weights = run_of(steps=2).student.model.norm.weight.detach().numpy().tobytes()
    changed = content.replace(weights, weights[::-1])
    for damaged in (content[:-1], content[: len(content) // 2], b"", changed):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=DAMAGED):
            checkpoints.resume(path, "key", run_of())


def test_a_bit_flipped_anywhere_in_its_directory_is_refused_or_changes_nothing(path):
    content, rng, refused = path.read_bytes(), random.Random(0), 0
    expected = checkpoints.content(run_of(steps=2).student)
    directory = content.index(b"PK\x01\x02")
    ends = range(len(content) - 98, len(content))  # the records with the position of the directory
    for at in [*rng.sample(ends, 15), *rng.sample(range(directory, len(content)), 15)]:
        flipped = bytes([content[at] ^ 1 << rng.randrange(8)])
        path.write_bytes(content[:at] + flipped + content[at + 1 :])
        run = run_of(seed=1)
        try:
            checkpoints.resume(path, "key", run)
        except ValueError as error:
            assert str(error) == f"checkpoint {path} {DAMAGED}"
            refused += 1
        else:
            assert checkpoints.content(run.student) == expected
    assert refused > 8


def test_a_failure_while_writing_leaves_the_old_file_and_no_part(path, monkeypatch):
    before = path.read_bytes()

    def full(state: object, part: Path) -> None:
        part.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoints.save(path, "key", run_of())
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]


def test_too_little_memory_is_not_called_damage(path, monkeypatch):
    def full(*args: object, **options: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(torch, "load", full)
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        checkpoints.resume(path, "key", run_of())


def test_content_names_shapes_weights_and_their_order():
    model = tiny("gpt2")
    name = checkpoints.content(model, None)
    assert name == checkpoints.content(tiny("gpt2"), None) != checkpoints.content(None, model)
    assert name != checkpoints.content(drop_layers(model, plan_of(model, 1)), None)
    with torch.no_grad():
        next(model.parameters()).add_(1e-3)
    assert name != checkpoints.content(model, None)
