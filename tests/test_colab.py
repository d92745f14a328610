"""An imitation of Colab: its package versions, `google.colab` in every kernel, an empty folder.

Not tested here: Colab itself, its GPUs, its page and its drive.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import venv
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from depthprune_core import storage
from depthprune_study import colab as in_colab
from depthprune_study import parameters, paths
from depthprune_study.errors import StudyError

ROOT = Path(__file__).resolve().parents[1]
PINS = Path(__file__).parent / "data" / "colab-2026-08-19.txt"
LATER = ("depthprune", "gguf")  # installed by the set-up cell
ABSENT = {*LATER, "papermill", "jupyterlab", "jedi", "bitsandbytes", "lm-eval"}
RED = re.compile(r"ERROR|Traceback|\x1b\[(1;)?[39]1m")
MINUTES_20 = 1_200
# Colab loads its package by IPython's configuration: in the kernels that papermill starts as well.
CONFIGURATION = 'get_config().InteractiveShellApp.extensions = ["google.colab"]\n'
IMITATION = """import os


def load_ipython_extension(shell):
    with open(os.environ["COLAB_KERNELS"], "a") as file:
        print(os.getpid(), file=file)
"""


class Colab(NamedTuple):
    """Colab's environment, and the actions of its browser page."""

    python: Path
    environment: dict[str, str]
    folder: Path

    def empty(self) -> Path:
        """A new machine's disk: an empty `content`."""
        content = self.folder / "content"
        shutil.rmtree(content, ignore_errors=True)
        content.mkdir()
        return content

    def machine(self) -> Path:
        """A new machine without our package."""
        self.pip("uninstall", "-y", "-q", *LATER)
        return self.empty()

    def pip(self, *words: str) -> str:
        command = [str(self.python), "-m", "pip", *words]
        return _called(command, env=self.environment).stdout

    def versions(self) -> dict[str, str]:
        listed = json.loads(self.pip("list", "--format", "json"))
        return {package["name"].lower(): package["version"] for package in listed}

    def n_kernels(self) -> int:
        """How many kernels have loaded google.colab."""
        return len(Path(self.environment["COLAB_KERNELS"]).read_text().splitlines())

    def opened(self, name: str, content: Path, *, fails: bool = False, **changed: str) -> dict:
        """A notebook opened from its badge and executed; `changed`: lines of its parameters cell.

        Papermill drives it from our own environment: the kernel's has none.
        """
        notebook = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8"))
        (cell,) = (c for c in notebook["cells"] if "parameters" in c["metadata"].get("tags", ()))
        for key, value in changed.items():
            pattern = re.compile(rf"^{key}: (\w+) = .*?(?=  #)", re.MULTILINE)
            cell["source"], n = pattern.subn(rf"{key}: \1 = {value}", "".join(cell["source"]))
            assert n == 1
        source, executed = self.folder / f"{name}.ipynb", self.folder / f"{name}-executed.ipynb"
        source.write_text(json.dumps(notebook), encoding="utf-8")
        command = [sys.executable, "-m", "papermill", "--no-progress-bar", "--kernel", "colab"]
        command += ["--cwd", str(content), str(source), str(executed)]
        done = _called(command, env=self.environment, cwd=content, may_fail=fails)
        assert (done.returncode != 0) == fails, done.stderr[-3_000:]
        return json.loads(executed.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def colab(tmp_path_factory: pytest.TempPathFactory) -> Colab:
    folder = tmp_path_factory.mktemp("colab")
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("DEPTHPRUNE", "PYTHON", "PYTEST", "HF_", "VIRTUAL_ENV"))
    }
    python = _environment(folder, kept)
    kernel = [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (folder / "jupyter" / "kernels" / "colab").mkdir(parents=True)
    (folder / "jupyter" / "kernels" / "colab" / "kernel.json").write_text(
        json.dumps({"argv": kernel, "display_name": "Colab", "language": "python"})
    )
    (folder / "kernels.txt").touch()
    environment = kept | {
        "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}",
        "JUPYTER_PATH": str(folder / "jupyter"),
        "IPYTHONDIR": str(folder / "ipython"),
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "COLAB_KERNELS": str(folder / "kernels.txt"),
        "DEPTHPRUNE_CACHE": str(paths.cache()),
        "OMP_NUM_THREADS": "1",
        "GOMP_SPINCOUNT": "10000",
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.{_repository(folder).as_uri()}.insteadOf",
        "GIT_CONFIG_VALUE_0": f"https://github.com/{paths.REPOSITORY}.git",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }
    return Colab(python, environment, folder)


def _environment(folder: Path, variables: dict[str, str]) -> Path:
    """Colab's packages in a separate environment, with our torch."""
    venv.create(folder / "env", with_pip=True)
    python = folder / "env" / "bin" / "python"
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(_called([str(python), "-c", where], env=variables).stdout.strip())
    shared = folder / "torch"
    shared.mkdir()
    torch = Path(str(importlib.metadata.distribution("torch").locate_file("")))
    for path in (*map(torch.joinpath, ("torch", "torchgen", "functorch")), *torch.glob("torch-*")):
        if path.exists():
            (shared / path.name).symlink_to(path)
    (site / "torch.pth").write_text(f"{shared}\n")
    words = ["install", "--quiet", "--no-deps", "--no-compile", "--only-binary=:all:"]
    command = [str(python), "-m", "pip", *words, "-r", str(PINS)]
    installed = _called(command, env=variables, may_fail=True)
    if installed.returncode:
        reason = installed.stderr.strip().splitlines()[-1]
        pytest.skip(f"pip cannot fetch Colab's versions for this Python: {reason}")
    (site / "google" / "colab").mkdir(parents=True)
    (site / "google" / "colab" / "__init__.py").write_text(IMITATION)
    (folder / "env" / "etc" / "ipython").mkdir(parents=True)
    (folder / "env" / "etc" / "ipython" / "ipython_config.py").write_text(CONFIGURATION)
    return python


def _repository(folder: Path) -> Path:
    """The repository that is cloned instead of the real one: the working tree, on this branch."""
    listed = subprocess.run(["git", "-C", ROOT, "ls-files", "-z"], capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("no git repository here to clone from")
    copy = folder / "repository"
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file() and (not name.startswith("reports/") or "costs" in name):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
    git = ["git", "-C", str(copy), "-c", "user.name=t", "-c", "user.email=t@localhost"]
    for words in (["init", "-q", "-b", paths.BRANCH], ["add", "-A"], ["commit", "-q", "-m", "t"]):
        _called([*git, *words])
    return copy


def _called(
    command: list[str], *, may_fail: bool = False, **options: Any
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=MINUTES_20, check=False, **options
    )
    assert may_fail or done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"[-4_000:]
    return done


def flaws(notebook: dict) -> Iterator[str]:
    """Outputs that a reader should not see in an executed notebook."""
    cells = [c for c in notebook["cells"] if c["cell_type"] == "code" and "".join(c["source"])]
    for number, cell in enumerate(cells):
        if cell["execution_count"] is None:
            yield f"code cell {number} was not executed"
        for output in cell["outputs"]:
            data = output.get("data") or {"text": output.get("text", output.get("evalue", ""))}
            text = "".join("".join(value) for value in data.values())
            wrong = output["output_type"] == "error" or output.get("name") == "stderr"
            if wrong or not text.strip() or ("image/png" not in data and RED.search(text)):
                yield f"code cell {number}: {text}"


class Study(NamedTuple):
    executed: dict  # notebooks/colab.ipynb
    content: Path
    before: dict[str, str]
    after: dict[str, str]
    n_kernels: int


@pytest.fixture(scope="module")
def study(colab: Colab) -> Study:
    """The smallest study, run from colab.ipynb on a new machine, one kernel per notebook."""
    content, before = colab.machine(), colab.versions()
    executed = colab.opened("colab", content, study='"ci"')
    return Study(executed, content, before, colab.versions(), colab.n_kernels())


@pytest.mark.slow
def test_colab_runs_every_notebook_of_the_smallest_study_and_shows_the_report(study: Study) -> None:
    assert list(flaws(study.executed)) == []
    notebooks = parameters.notebooks_of("ci")
    assert study.n_kernels == 1 + len(notebooks)
    for name in notebooks:
        executed = study.content / "runs" / "ci" / "notebooks" / f"{name}.ipynb"
        assert list(flaws(json.loads(executed.read_text(encoding="utf-8")))) == [], name
    assert {path.name for path in study.content.iterdir()} == {"runs", "reports"}  # no second clone
    (shown,) = study.executed["cells"][-1]["outputs"]
    assert "srcdoc=" in "".join(shown["data"]["text/html"])


@pytest.mark.slow
def test_a_study_has_trained_adapters_beside_the_old_torchao(study: Study) -> None:
    assert study.before["torchao"] == "0.10.0"
    scores = storage.read(study.content / "runs" / "ci" / "records" / "06_controls" / "test.json")
    assert scores["adapters"].mean_nll_nats != scores["cut"].mean_nll_nats


@pytest.mark.slow
def test_kernels_write_nothing_to_stderr_but_progress(study: Study) -> None:
    for log in (study.content / "runs" / "ci" / "logs").glob("*.log"):
        assert not RED.search(text := log.read_text(encoding="utf-8")), log
        assert "Warning" not in text, log


@pytest.mark.slow
def test_no_package_of_colab_is_replaced(study: Study) -> None:
    assert study.before["ipython"] == "7.34.0"
    assert not ABSENT & set(study.before)
    assert study.before.items() <= study.after.items()
    assert {*LATER, "papermill"} <= set(study.after)


@pytest.mark.slow
def test_a_badge_takes_the_parameters_of_the_study_named_in_its_cell(colab: Colab) -> None:
    content = colab.machine()
    assert list(flaws(colab.opened("01_sensitivity", content, study='"ci"'))) == []
    stamp = storage.read_stamp(content / "runs/ci/records/01_sensitivity/profile.json")
    assert stamp.parameters == parameters.of_study("ci")["01_sensitivity"]
    assert stamp.versions["transformers"] == "5.15.0"


@pytest.mark.slow
def test_a_badge_runs_as_it_is(colab: Colab) -> None:
    content = colab.machine()
    assert list(flaws(colab.opened("01_sensitivity", content))) == []
    stamp = storage.read_stamp(content / "runs/quick/records/01_sensitivity/profile.json")
    assert stamp.parameters == parameters.of_study("quick")["01_sensitivity"]


@pytest.mark.slow
def test_a_notebook_names_the_missing_earlier_notebooks(colab: Colab) -> None:
    executed = colab.opened("03_recovery", colab.empty(), fails=True, study='"ci"')
    outputs = [output for cell in executed["cells"] for output in cell.get("outputs", ())]
    (error,) = (output for output in outputs if output["output_type"] == "error")
    assert error["ename"] == "StudyError"
    for part in ("01_sensitivity", "02_prune", "a new machine has an empty disk"):
        assert part in error["evalue"]
    assert "\n" not in error["evalue"]


def test_a_drive_keeps_records_and_checkpoints_but_no_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEPTHPRUNE_HOME", str(tmp_path / "content"))
    monkeypatch.setattr(in_colab, "DRIVE", tmp_path / "drive" / "depthprune")
    in_colab.DRIVE.mkdir(parents=True)
    run = tmp_path / "content" / "runs" / "ci"
    kept, left = ("records/01/a.json", "students/b.ckpt"), ("students/b.safetensors", "teacher/c")
    for name in (*kept, *left, ".lock"):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text(name)
    with in_colab.kept_on_drive("ci"):
        pass
    there = in_colab.DRIVE / "runs" / "ci"
    assert {str(f.relative_to(there)) for f in there.rglob("*") if f.is_file()} == set(kept)
    (run / "students/b.ckpt").unlink()  # that training is over
    in_colab.to_drive("ci")
    assert not (there / "students/b.ckpt").exists()
    shutil.rmtree(tmp_path / "content")  # the session is lost, and a new machine resumes
    assert "GiB free" in in_colab.mounted("ci")
    assert (run / "records/01/a.json").read_text() == "records/01/a.json"


def test_a_missing_drive_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        in_colab, "DRIVE", tmp_path / "content" / "drive" / "MyDrive" / "depthprune"
    )
    with pytest.raises(StudyError, match="no Google Drive is mounted"):
        in_colab.mounted("ci")


def test_the_report_is_shown_without_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEPTHPRUNE_HOME", str(tmp_path))
    (paths.reports("ci") / "report.html").parent.mkdir(parents=True)
    (paths.reports("ci") / "report.html").write_text('<p class="a">found</p>')
    with warnings.catch_warnings(action="error"):
        shown = in_colab.show_report("ci").data
    assert 'srcdoc="&lt;p class=&quot;a&quot;&gt;found&lt;/p&gt;"' in shown
