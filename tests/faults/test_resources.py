"""What a machine can run out of, in the middle of a study: it stops, nothing finished is lost, and a run with room again ends the same."""

from __future__ import annotations

import itertools
import os
import resource
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import killing
import pytest
from piece import piece_of_a_study
from safetensors import SafetensorError

KIB = 1024
TOLD = (OSError, RuntimeError, SafetensorError)  # how Python, torch and safetensors tell of a write that failed


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ...]:
    return piece_of_a_study(tmp_path_factory.mktemp("undisturbed"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own, in memory; skipped where none may be mounted."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True).returncode == 0
    if not mounted:
        pytest.skip("needs the right to mount a small disk")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


@pytest.mark.slow
def test_memory_that_ends_stops_a_recovery_which_then_goes_on(tmp_path: Path) -> None:
    def ended(folder: str, *options: str) -> tuple[int, str]:
        command = [*killing.PIECE, str(tmp_path / folder), *options]
        done = subprocess.run(command, env=killing.PIECE_ENVIRONMENT, capture_output=True, text=True)
        return done.returncode, done.stderr

    code, said = ended("work", "64")  # behind the second step, before which there is a checkpoint
    assert code != 0 and ("memory" in said or "MemoryError" in said)
    assert not (tmp_path / "work" / "ended").exists()
    assert ended("work")[0] == ended("calm")[0] == 0
    first, second = ([int(n) for n in (tmp_path / "work" / "told" / f"00{start}").read_text().split()] for start in (0, 1))
    assert first[-1] == 64 and second[0] == 64  # from before that step on
    assert (tmp_path / "work" / "ended").read_text() == (tmp_path / "calm" / "ended").read_text()


def made_larger(disk: Path, kib: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={kib}k", disk], check=True)


@pytest.mark.parametrize("room_kib", [64, 512, 1_200, 2_500, 4_000])
def test_a_full_disk_stops_the_study_and_room_lets_it_go_on(small_disk: Path, room_kib: int, expected: tuple[Any, ...]) -> None:
    made_larger(small_disk, room_kib)
    with pytest.raises(TOLD):
        piece_of_a_study(small_disk)
    made_larger(small_disk, 64 * KIB)
    assert piece_of_a_study(small_disk) == expected


@pytest.mark.parametrize("limit_kib", [16, 300, 700, 1_500])
def test_a_file_that_may_not_grow_further_is_no_finished_file(
    tmp_path: Path, limit_kib: int, expected: tuple[Any, ...]
) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_kib * KIB, before[1]))
    try:
        with pytest.raises(TOLD):
            piece_of_a_study(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert piece_of_a_study(tmp_path) == expected


def test_a_clock_that_goes_back_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expected: tuple[Any, ...]
) -> None:
    backwards = itertools.count(1_700_000_000, -3_600)
    monkeypatch.setattr(time, "time", lambda: float(next(backwards)))
    assert piece_of_a_study(tmp_path) == expected
    for age, path in enumerate(sorted(tmp_path.rglob("*"))):  # what is read back is not judged by its age either
        os.utime(path, (3_600 * age, 3_600 * age))
    before = {path: path.stat().st_mtime for path in tmp_path.rglob("*.json")}
    assert piece_of_a_study(tmp_path) == expected
    kept = [path for path in before if path.stat().st_mtime == before[path]]
    assert len(kept) > 3 and len(before) - len(kept) <= 1  # progress.json alone is written again


def test_a_folder_that_is_a_file_is_told_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    with pytest.raises(OSError, match=str(tmp_path / "runs")):
        piece_of_a_study(tmp_path / "runs")
