"""The wheel, installed outside the checkout, as a user gets it from pip."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DATA = ("notebooks/01_sensitivity.ipynb", "params/quick/01_sensitivity.yaml", "params/claims.yaml")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel and this environment's libraries, but without this checkout."""
    folder = tmp_path_factory.mktemp("env")
    venv.create(folder, with_pip=False)
    scheme = {"base": str(folder), "platbase": str(folder)}
    packages = Path(sysconfig.get_path("purelib", vars=scheme))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(packages)
    there = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (packages / "zz_libraries.pth").write_text("\n".join(there))
    hidden = f"import sys; sys.modules.update(dict.fromkeys({only_of_extras()}))\n"
    (packages / "zz_hidden.pth").write_text(hidden)
    return folder


def only_of_extras() -> list[str]:
    """Modules that plain `pip install depthprune` does not bring: an import of one must fail."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [line for extra in extras["optional-dependencies"].values() for line in extra]
    names = [re.split(r"[^A-Za-z0-9_-]", line)[0].replace("-", "_") for line in lines]
    return sorted({name for name in names if not name.startswith("depthprune")})


def run(installed: Path, where: Path, *words: str) -> str:
    """The output of `depthprune WORDS` in an empty folder."""
    kept = {n: v for n, v in os.environ.items() if not n.startswith(("DEPTHPRUNE", "PYTHON"))}
    environment = kept | {"XDG_CACHE_HOME": str(where / "cache"), "HF_HUB_OFFLINE": "1"}
    python = next(installed.glob("[bS]*/python*"))
    command = [str(python), "-m", "depthprune_study", *words]
    done = subprocess.run(command, cwd=where, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_wheel_holds_notebooks_parameters_and_the_bundled_model(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    for name in DATA:
        assert f"depthprune_study/data/{name}" in names
    assert "depthprune_core/data/models/gpt2-mini/model.safetensors" in names
    assert "depthprune_core/data/splits.json" in names
    tops = {name.split("/")[0] for name in names if "dist-info" not in name}
    assert tops == {"depthprune_core", "depthprune_study"}


def test_outside_a_checkout_it_prints_version_plan_and_state(
    installed: Path, tmp_path: Path
) -> None:
    assert run(installed, tmp_path, "--version").startswith("depthprune ")
    assert "01_sensitivity" in run(installed, tmp_path, "run", "quick", "--dry-run")
    assert "run: to do" in run(installed, tmp_path, "status")
    assert {path.name for path in tmp_path.iterdir()} <= {"cache"}  # of matplotlib's fonts


@pytest.mark.slow
def test_it_prunes_a_model_that_plain_transformers_opens(installed: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(f"A passage about the number {n}. " * 60 for n in range(80)))
    words = ("--drop", "2", "--text", str(text), "--out", str(tmp_path / "out"))
    said = run(installed, tmp_path, "prune", "gpt2-mini", *words)
    assert "perplexity ratio" in said
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert (tmp_path / "out" / "your_model.ipynb").is_file()
    whole = json.loads((ROOT / "models/gpt2-mini/config.json").read_text())["n_layer"]
    assert model.config.n_layer == whole - 2


@pytest.mark.slow
def test_it_runs_a_notebook_of_the_smallest_study(installed: Path, tmp_path: Path) -> None:
    script = (
        "from depthprune_study import parameters\nfrom depthprune_study.runner import chain\n"
        "first = dict([next(iter(parameters.of_study('ci').items()))])\n"
        "chain.run('ci', say=print, given=first)"
    )
    python = next(installed.glob("[bS]*/python*"))
    kept = {n: v for n, v in os.environ.items() if not n.startswith(("DEPTHPRUNE", "PYTHON"))}
    environment = kept | {"XDG_CACHE_HOME": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [str(python), "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "runs/ci/records/01_sensitivity/profile.json").is_file()
