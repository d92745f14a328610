"""Files that a run reads back, damaged in every way: each is noticed, and made again or refused by name; none is used silently.

The piece of a study (piece.py) is small enough to be repeated two hundred times; on a CPU it ends bit for bit the same, so that
anything used silently would show in its results.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from piece import piece_of_a_study


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, and one of another seed, whose files can be put in its place."""
    folder = tmp_path_factory.mktemp("finished")
    piece_of_a_study(folder / "run")
    piece_of_a_study(folder / "other", seed=1)
    for name, seed in (("cut", 0), ("other-cut", 1)):
        with pytest.raises(KeyboardInterrupt):
            piece_of_a_study(folder / name, seed=seed, stop_at=64)
    return folder


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ...]:
    return piece_of_a_study(tmp_path_factory.mktemp("undisturbed"))


def truncate(path: Path, rng: random.Random) -> None:
    path.write_bytes(path.read_bytes()[: rng.randrange(path.stat().st_size)])


def flip(path: Path, rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def empty(path: Path, rng: random.Random) -> None:
    path.write_bytes(b"")


DAMAGE: dict[str, tuple[Callable[[Path, random.Random], None], int]] = {
    "truncated": (truncate, 12),
    "bit flipped": (flip, 24),
    "emptied": (empty, 1),
}
FILES = {
    "an arm's record": ("run", "arms/arm/*.json"),
    "an arm's weights": ("run", "arms/arm/*.safetensors"),
    "a fitted start's record": ("run", "arms/refitted/*.json"),
    "a fitted start's maps": ("run", "arms/refitted/*.safetensors"),
    "a student's score": ("run", "records/*/validation/arm.json"),
    "the teacher's score": ("run", "records/*/validation/teacher.json"),
    "what a student said": ("run", "records/*/continuations.json"),
    "a checkpoint": ("cut", "arms/arm/*.ckpt"),
}
CASES = [(file, damage, seed) for file in FILES for damage, (_, times) in DAMAGE.items() for seed in range(times)]
CASES += [(file, "another run's", 0) for file in FILES]
SHORT = [case for case in CASES if case[2] == 0]


def check(case: tuple[str, str, int], finished: Path, expected: tuple[Any, ...], tmp_path: Path) -> None:
    file, damage, seed = case
    source, pattern = FILES[file]
    run = Path(shutil.copytree(finished / source, tmp_path / "run"))
    (path,) = (run / "faults").glob(pattern)
    if damage == "another run's":
        (theirs,) = (finished / ("other-cut" if source == "cut" else "other") / "faults").glob(pattern)
        path.write_bytes(theirs.read_bytes())
    else:
        DAMAGE[damage][0](path, random.Random(f"{file} {damage} {seed}"))
    try:
        results = piece_of_a_study(run)
    except ValueError as error:
        assert path.name in str(error) or str(path) in str(error), f"refused, but not by name: {error}"
        path.unlink()  # as the sentence says
        results = piece_of_a_study(run)
    assert results == expected


@pytest.mark.parametrize("case", SHORT, ids=lambda case: f"{case[0]}, {case[1]}")
def test_a_damaged_file_is_never_used_silently(
    case: tuple[str, str, int], finished: Path, expected: tuple[Any, ...], tmp_path: Path
) -> None:
    check(case, finished, expected, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", [case for case in CASES if case not in SHORT], ids=lambda case: f"{case[0]}, {case[1]}, {case[2]}"
)
def test_nor_one_damaged_elsewhere(
    case: tuple[str, str, int], finished: Path, expected: tuple[Any, ...], tmp_path: Path
) -> None:
    check(case, finished, expected, tmp_path)
