"""Several processes recover the student that one process recovers (two of them here, on a CPU, by gloo)."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from teammate import RECIPES, recovered
from tiny import plan_of, tiny, tiny_tokenizer

from depthprune_core.pruning import drop_layers

HERE = Path(__file__).resolve().parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent)]), "OMP_NUM_THREADS": "1"}


def together(command: list[str], n: int, **environment: str) -> list[subprocess.CompletedProcess]:
    """The command in n processes, as a launcher would start them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {**ENVIRONMENT, "WORLD_SIZE": str(n), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, **environment}
    started = [
        subprocess.Popen(
            command,
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(n)
    ]
    try:
        told = [process.communicate(timeout=240) for process in started]
    finally:
        for process in started:
            process.kill()
    told = [("".join(line for line in said.splitlines(True) if not line.startswith("[Gloo] ")), cried) for said, cried in told]
    done = [subprocess.CompletedProcess(command, p.returncode, *said) for p, said in zip(started, told, strict=True)]
    assert all(process.returncode == 0 for process in done), "".join(process.stderr[-2_000:] for process in done)
    return done


def assert_both_have(student: torch.nn.Module, folder: Path, name: str) -> None:
    """Both processes ended with the same weights, and these are the student's."""
    first, second = (torch.load(folder / f"{name}-{rank}.pt", weights_only=False) for rank in (0, 1))
    for n, p in student.named_parameters():
        assert torch.equal(first[n], second[n])
        torch.testing.assert_close(first[n], p, rtol=1e-3, atol=2e-4)


@pytest.mark.slow
def test_the_launcher_that_accelerate_calls_starts_such_a_team(tmp_path: Path) -> None:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    launch += [str(HERE / "teammate.py"), str(tmp_path), "all"]
    done = subprocess.run(launch, env=ENVIRONMENT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2_000:]
    assert_both_have(recovered("all", None)[0], tmp_path, "all")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("team")
    together([sys.executable, str(HERE / "teammate.py"), str(folder)], 2)
    return folder


@pytest.mark.parametrize("name", RECIPES)
def test_two_processes_recover_the_student_of_one(name: str, folder: Path) -> None:
    student, curve = recovered(name, None)
    start = dict(recovered_start().named_parameters())
    assert any(not torch.allclose(p, start[n], atol=1e-3) for n, p in student.named_parameters())
    assert_both_have(student, folder, name)
    for rank in (0, 1):
        losses, tokens, recipe, token_hash = json.loads((folder / f"{name}-{rank}.json").read_text())
        assert (tuple(tokens), recipe, token_hash) == (curve.tokens, curve.recipe, curve.token_hash)
        for term, values in curve.losses.items():
            assert losses[term] == pytest.approx(values, rel=1e-3)


def test_two_processes_go_on_from_one_checkpoint(folder: Path) -> None:
    curve = recovered("all", None)[1]
    first, second = (torch.load(folder / f"resumed-{rank}.pt", weights_only=False) for rank in (0, 1))
    straight = torch.load(folder / "all-0.pt", weights_only=False)
    for n in straight:
        assert torch.equal(first[n], second[n])
        torch.testing.assert_close(first[n], straight[n], rtol=1e-4, atol=1e-5)
    for rank in (0, 1):
        losses = json.loads((folder / f"resumed-{rank}.json").read_text())
        assert len(losses["kl"]) == len(curve.losses["kl"]) and losses["kl"] == pytest.approx(curve.losses["kl"], rel=1e-3)


def test_a_checkpoint_that_one_process_cannot_see_is_refused_by_all(folder: Path) -> None:
    for rank in (0, 1):
        told = (folder / f"refused-{rank}.txt").read_text()
        assert "is there for 1 of 2 processes: put it where all of them see it" in told


def recovered_start() -> torch.nn.Module:
    teacher = tiny("llama")
    return drop_layers(teacher, plan_of(teacher, 2))


def test_a_model_of_one_s_own_is_recovered_together_and_written_once(tmp_path: Path) -> None:
    tiny("llama").save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    generator = torch.Generator().manual_seed(0)
    lines = [" ".join(f"w{i}" for i in torch.randint(1, 128, (25,), generator=generator).tolist()) for _ in range(1_000)]
    (tmp_path / "words.txt").write_text("\n".join(lines), encoding="utf-8")

    def command(out: str, n_tokens: int = 8_192) -> list[str]:
        options = ["--text", str(tmp_path / "words.txt"), "--drop", "1", "--recover-tokens", str(n_tokens), "--device", "cpu"]
        options += ["--lr", "1e-2"]  # so that it moves weights by more than sums in another order do
        prune = [sys.executable, "-m", "depthprune_study.cli", "prune", str(tmp_path / "base"), *options]
        return [*prune, "--out", str(tmp_path / out)]

    first, second = together(command("two"), 2)
    together(command("one"), 1)
    assert "opened and checked" in first.stdout and not second.stdout
    first, second = together(command("cut", 0), 2)
    assert "opened and checked" in first.stdout and not second.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "cut", "one", "two", "words.txt"]
    one, two, base = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two", "base"))
    assert one.keys() == two.keys()
    # Adam's step is as long for a gradient that is nothing but rounding; those that count move a weight by 1e-2.
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-3, atol=2e-3)
    assert sum(float((one[name] - base[name]).abs().max()) > 1e-2 for name in one if one[name].shape == base[name].shape) > 5
