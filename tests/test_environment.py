"""The files that set up an environment agree: pyproject.toml, constraints.txt, environment.yml, find-python.sh."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from depthprune_study import libraries
from depthprune_study.settings import StudyError

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PYTHONS = SpecifierSet(PROJECT["project"]["requires-python"])
DIRECT = [Requirement(line) for line in PROJECT["project"]["dependencies"] + PROJECT["project"]["optional-dependencies"]["dev"]]


def pins() -> list[Requirement]:
    lines = [line.split("#")[0].strip() for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()]
    return [Requirement(line) for line in lines if line]


# ---------------------------------------------------------------- versions


@pytest.mark.parametrize(
    ("library", "found", "wanted"),
    [("transformers", "5.11.2", ">=5.12"), ("transformers", "6.0", "<6"), ("torch", "2.8.0+cu126", ">=2.9")],
)
def test_a_notebook_refuses_a_library_that_is_too_old_or_too_new(library, found, wanted, monkeypatch):
    there = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: found if name == library else there(name))
    with pytest.raises(StudyError, match=rf"{re.escape(f'{library} {found}')} is here, but .*{wanted}"):
        libraries.check()


def test_these_libraries_will_do_and_one_that_is_missing_or_newer_is_no_concern(monkeypatch):
    libraries.check()
    there = importlib.metadata.version

    def version(name: str) -> str:
        if name == "gguf":
            raise importlib.metadata.PackageNotFoundError(name)
        return "3.0.0.dev20270101+cu140" if name == "torch" else there(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    libraries.check()


@pytest.mark.parametrize("wanted", DIRECT, ids=lambda requirement: requirement.name)
def test_constraints_pin_one_version_of_every_direct_dependency(wanted):
    found = [str(pin.specifier) for pin in pins() if canonicalize_name(pin.name) == canonicalize_name(wanted.name)]
    assert len(found) == 1, f"constraints.txt should pin {wanted.name} once, it has {found or 'no line'}"
    assert found[0].startswith("==") and "*" not in found[0] and "," not in found[0], (
        f"{wanted.name}{found[0]} is not one version"
    )
    assert wanted.specifier.contains(found[0].removeprefix("==")), (
        f"{wanted.name}{found[0]} is outside pyproject.toml's {wanted.specifier}"
    )


def test_every_constraint_is_one_exact_version():
    loose = [str(pin) for pin in pins() if [spec.operator for spec in pin.specifier] != ["=="]]
    assert not loose, f"constraints.txt should name exact versions: {', '.join(loose)}"


def test_torch_is_a_range():
    (torch,) = [requirement for requirement in DIRECT if requirement.name == "torch"]
    operators = {spec.operator for spec in torch.specifier}
    assert operators and not operators & {"==", "===", "~="}, (
        f"pyproject.toml asks for torch{torch.specifier}: an exact pin would replace the machine's own build"
    )


def test_package_data_files_exist():
    missing = [
        f"{package}/{file}"
        for package, files in PROJECT["tool"]["setuptools"]["package-data"].items()
        for file in files
        if not list((ROOT / package).glob(file))
    ]
    assert not missing, f"pyproject.toml names package data that is not there: {', '.join(missing)}"


def test_every_package_is_listed():
    packages = sorted(path.parent.name for path in ROOT.glob("depthprune_*/__init__.py"))
    assert sorted(PROJECT["tool"]["setuptools"]["packages"]) == packages


# ---------------------------------------------------------------- conda


def test_conda_gives_a_supported_python_and_pip_the_rest():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    assert environment["name"] == PROJECT["project"]["name"]
    conda = [entry for entry in environment["dependencies"] if isinstance(entry, str)]
    (python,) = [entry for entry in conda if entry.startswith("python=")]
    assert PYTHONS.contains(f"{python.removeprefix('python=')}.0"), (
        f"environment.yml has {python}, pyproject.toml asks for {PYTHONS}"
    )
    assert conda == [python, "pip"], "conda should bring Python and pip alone: all else comes from pip, in the tested versions"
    (pip,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    assert pip == ["-c constraints.txt", "-e .[dev]"]


# ---------------------------------------------------------------- the interpreter


def find_python(**environment: str) -> subprocess.CompletedProcess:
    shell = shutil.which("sh")
    return subprocess.run(
        [shell, "tools/find-python.sh"], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60
    )


def version_of(python: str) -> str:
    script = "import sys; print('.'.join(map(str, sys.version_info[:3])))"
    return subprocess.run([python, "-c", script], capture_output=True, text=True, check=True, timeout=60).stdout.strip()


def test_a_supported_interpreter_is_found_on_the_path():
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = find_python(PATH=path)
    assert done.returncode == 0, done.stderr
    assert PYTHONS.contains(version_of(shutil.which(done.stdout.strip(), path=path)))


def test_an_interpreter_that_is_named_is_taken():
    assert find_python(PATH="/nonexistent", PYTHON=sys.executable).stdout.strip() == sys.executable


def test_without_an_interpreter_a_sentence_says_what_to_do(tmp_path):
    done = find_python(PATH=str(tmp_path))
    assert done.returncode == 1 and not done.stdout
    assert "install one, or name it with PYTHON=" in done.stderr and len(done.stderr.strip().splitlines()) == 1


def test_another_version_is_passed_over(tmp_path):
    old = tmp_path / "python3"
    old.write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")  # as a Python does whose version is refused
    old.chmod(0o755)
    assert find_python(PATH=str(tmp_path)).returncode == 1
    (tmp_path / "python3.12").symlink_to(shutil.which("true"))
    assert find_python(PATH=str(tmp_path)).stdout.strip() == "python3.12"


# ---------------------------------------------------------------- before a commit, and after it


def test_ci_lists_known_vulnerabilities_and_stops_for_none_of_them():
    lines = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert lines.index("make audit || true") < lines.index("make test") < lines.index("make test-slow")


def test_commit_hooks_fetch_nothing_and_spare_the_reports():
    configuration = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    assert configuration["exclude"] == "^(reports|runs|models)/"
    assert [repository["repo"] for repository in configuration["repos"]] == ["local"]
    hooks = configuration["repos"][0]["hooks"]
    assert {hook["id"] for hook in hooks} == {"nbstripout", "ruff-check", "ruff-format"}
    assert all(hook["language"] == "system" and hook["entry"].startswith(".venv/bin/") for hook in hooks)
