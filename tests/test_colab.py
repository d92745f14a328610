"""Notebooks in an imitation of Colab: an environment that is there already and older, `google.colab`, a folder `content`, no .venv.

Never tried here: Colab itself, its GPUs, its interface. What stands in for a mounted drive is a folder that outlives `content`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sysconfig
import time
import venv
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

from depthprune_core import records
from depthprune_study import places, run

pytestmark = pytest.mark.slow
OLDER = ("transformers==5.12.*", "numpy<2.2")
BROUGHT = ("depthprune", "__editable__", "mwparserfromhell", "gguf")  # what the set-up cell has to bring
EXTRAS = ("lm_eval", "bitsandbytes", "parsl", "hypothesis", "nbval", "nbstripout", "pre_commit", "pytest", "ruff")
ABSENT = (*BROUGHT, *EXTRAS, "ipywidgets", "transformers", "numpy", "pip")
WAIT_SECONDS = 300


class Colab(NamedTuple):
    python: Path
    environment: dict[str, str]
    drive: Path  # outlives a session
    folder: Path

    def session(self) -> Path:
        """A new machine: an empty `content`."""
        content = self.folder / "content"
        shutil.rmtree(content, ignore_errors=True)
        content.mkdir()
        return content

    def start(self, notebook: str, content: Path) -> subprocess.Popen:
        """The notebook as it is opened from its badge, with the parameters of `ci`."""
        command = [str(self.python), "-m", "papermill", "--no-progress-bar", "--kernel", "python3", "--cwd", str(content)]
        command += ["-f", str(places.PARAMS / "ci" / f"{notebook}.yaml")]
        command += ["-p", "zero_shot_items", "0"] if notebook == "03b_controls" else []  # lm-eval is an extra
        command += [str(places.NOTEBOOKS / f"{notebook}.ipynb"), str(self.folder / f"{notebook}.ipynb")]
        with (self.folder / f"{notebook}.log").open("w") as log:
            return subprocess.Popen(command, env=self.environment, cwd=content, stdout=log, stderr=log)

    def finish(self, notebook: str, content: Path) -> dict:
        """The executed notebook."""
        status = self.start(notebook, content).wait(WAIT_SECONDS)
        assert status == 0, (self.folder / f"{notebook}.log").read_text()[-4_000:]
        return json.loads((self.folder / f"{notebook}.ipynb").read_text(encoding="utf-8"))

    def versions(self) -> dict[str, str]:
        listed = subprocess.run(
            [self.python, "-m", "pip", "list", "--format", "json", "--disable-pip-version-check"],
            env=self.environment,
            capture_output=True,
            text=True,
            check=True,
        )
        return {found["name"].lower(): found["version"] for found in json.loads(listed.stdout)}


@pytest.fixture(scope="module")
def colab(tmp_path_factory: pytest.TempPathFactory) -> Colab:
    folder = tmp_path_factory.mktemp("colab")
    python = _environment(folder)
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV", "HF_HUB_OFFLINE")}
    environment |= {
        "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}",
        "DEPTHPRUNE_RUNS": str(folder / "drive"),
        "DEPTHPRUNE_CACHE": str(places.cache()),
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.{_repository(folder).as_uri()}.insteadOf",
        "GIT_CONFIG_VALUE_0": f"https://github.com/{places.REPOSITORY}.git",
    }
    return Colab(python, environment, folder / "drive", folder)


def _environment(folder: Path) -> Path:
    """The running environment's packages without what Colab lacks, and older ones in front of them."""
    there = folder / "there"
    there.mkdir()
    for path in Path(sysconfig.get_paths()["purelib"]).iterdir():
        if not path.name.lower().startswith(ABSENT) and path.suffix != ".pth":
            (there / path.name).symlink_to(path)
    venv.create(folder / "env", with_pip=True)
    python = folder / "env" / "bin" / "python"
    own = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"], capture_output=True, text=True, check=True
    )
    site = Path(own.stdout.strip())
    (site / "google" / "colab").mkdir(parents=True)
    (site / "google" / "colab" / "__init__.py").touch()
    (site / "there.pth").write_text(f"{there}\nimport google.colab\n")  # Colab imports it before the first cell
    subprocess.run(
        [python, "-m", "pip", "install", "-qq", "--disable-pip-version-check", *OLDER], check=True, timeout=WAIT_SECONDS
    )
    return python


def _repository(folder: Path) -> Path:
    """What the notebooks clone in place of the address: the working tree's tracked files, on the branch that they name."""
    listed = subprocess.run(["git", "-C", places.ROOT, "ls-files", "-z"], capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("no git repository here to clone from")
    copy = folder / "repository"
    for name in listed.stdout.split("\0")[:-1]:
        if not name.startswith("reports/") and (places.ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(places.ROOT / name, copy / name)
    git = ["git", "-C", str(copy), "-c", "user.name=t", "-c", "user.email=t@localhost"]
    for command in (["init", "-q", "-b", places.BRANCH], ["add", "-A"], ["commit", "-q", "-m", "as it is"]):
        subprocess.run([*git, *command], check=True)
    return copy


def test_every_notebook_runs_and_nothing_that_was_there_is_replaced(colab: Colab) -> None:
    before = colab.versions()
    assert not set(before) & {"ipywidgets", "lm_eval", "lm-eval", "depthprune", "gguf", "mwparserfromhell"}
    content = colab.session()
    for notebook in run.READS:
        executed = colab.finish(notebook, content)
        assert all(cell["execution_count"] for cell in executed["cells"] if cell["cell_type"] == "code")
    after = colab.versions()
    assert {name: after.pop(name) for name in ("depthprune", "gguf", "mwparserfromhell")}
    assert after == before and before["torch"]
    profile = colab.drive / "ci" / "records" / "01_sensitivity" / "profile.json"
    assert records.read_stamp(profile).versions["transformers"] == before["transformers"]
    assert before["transformers"].startswith("5.12.") and tuple(map(int, before["numpy"].split(".")[:2])) < (2, 2)
    assert not (content / ".venv").exists() and not (content / "runs").exists()
    assert {path.name for path in (colab.drive / "ci" / "records").iterdir()} >= set(run.READS) - {"06_report"}


def test_a_lost_session_goes_on_from_the_drive(colab: Colab) -> None:
    shutil.rmtree(colab.drive, ignore_errors=True)
    content = colab.session()
    for notebook in ("01_sensitivity", "02_prune_gpt2"):
        colab.finish(notebook, content)
    lost = colab.start("03_recovery", content)
    arms = colab.drive / "ci" / "arms"
    began = time.monotonic()
    while len(kept := sorted(arms.rglob("*.json"), key=lambda path: path.stat().st_mtime_ns)) < 4:
        assert lost.poll() is None and time.monotonic() - began < WAIT_SECONDS
        time.sleep(0.05)
    runner = psutil.Process(lost.pid)
    for process in (*runner.children(recursive=True), runner):
        with suppress(psutil.NoSuchProcess):
            process.kill()
    lost.wait()
    finished = kept[:-1]  # the last one's weights may have been lost before they were scored
    written = {path: path.stat().st_mtime_ns for path in finished}
    colab.finish("03_recovery", colab.session())
    assert {path: path.stat().st_mtime_ns for path in finished} == written  # not made again
    assert len(sorted(arms.rglob("*.json"))) > len(kept)
