"""What changes a hash and what does not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import toy

from depthprune_study import paths, provenance
from depthprune_study.errors import StudyError


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Writes a module of a made-up code base."""
    monkeypatch.setattr(paths, "CODE", tmp_path)

    def of(module: str, source: str) -> None:
        path = tmp_path / (module.replace(".", "/") + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        (path.parent / "__init__.py").touch()
        path.write_text(source)

    of("depthprune_core.losses", "def f():\n    return 1\n")
    of("depthprune_study.lab.work", "from depthprune_core import losses\n")
    of("depthprune_study.other", "x = 1\n")
    return of


def hash_now() -> str:
    provenance._meaning.cache_clear()
    return provenance.code_hash("depthprune_study.lab.work")


@pytest.mark.parametrize(
    ("module", "source", "same"),
    [
        (
            "depthprune_core.losses",
            '"""Of."""\ndef f():\n    """What."""\n    return 1  # why\n',
            True,
        ),
        ("depthprune_core.losses", "def f():\n    # why\n    return (\n        1\n    )\n", True),
        ("depthprune_core.losses", "def f():\n    return 2\n", False),
        ("depthprune_core.losses", 'def f():\n    return 1\n\n\nx = """What."""\n', False),
        ("depthprune_study.other", "x = 2\n", True),
        ("depthprune_study.lab.__init__", "y = 1\n", False),
        ("depthprune_study.lab.work", "import depthprune_core.losses\nimport x\n", False),
    ],
)
def test_code_changes_the_hash_and_docstrings_do_not(
    write: Callable[[str, str], None], module: str, source: str, same: bool
) -> None:
    before = hash_now()
    write(module, source)
    assert (hash_now() == before) is same


def test_the_closure_of_the_real_study_follows_packages_and_late_imports() -> None:
    found = provenance.closure(["depthprune_study.runner.prepare"])
    assert {"depthprune_core.models", "depthprune_study", "depthprune_study.paths"} <= found


def test_two_modules_that_import_each_other_end(write: Callable[[str, str], None]) -> None:
    write("depthprune_core.losses", "from depthprune_study.lab import work\n")
    assert "depthprune_core.losses" in provenance.closure(["depthprune_study.lab.work"])


def test_a_notebook_hash_covers_code_and_on_request_prose(tmp_path: Path) -> None:
    path = toy.write(tmp_path, "x", "a = 1")
    code, prose = provenance.notebook_hash(path), provenance.notebook_hash(path, prose=True)
    content = json.loads(path.read_text())
    content["cells"][1]["outputs"] = [{"output_type": "stream", "name": "stdout", "text": "1"}]
    text = {"cell_type": "markdown", "id": "t", "metadata": {}, "source": "Words."}
    given = toy.code_cell("tokens = 3", 9, ["injected-parameters"])
    content["cells"] += [text, given]
    path.write_text(json.dumps(content))
    assert provenance.notebook_hash(path) == code
    assert provenance.notebook_hash(path, prose=True) != prose
    content["cells"][1]["source"] = "a = 2"
    path.write_text(json.dumps(content))
    assert provenance.notebook_hash(path) != code


@pytest.mark.parametrize(
    "content", ["", "[]", '{"cells": [1]}', '{"cells": [{"cell_type": "code", "source": ""}]}']
)
def test_a_damaged_notebook_is_named_in_a_sentence(tmp_path: Path, content: str) -> None:
    (tmp_path / "x.ipynb").write_text(content)
    with pytest.raises(StudyError, match=r"notebook .*x\.ipynb "):
        provenance.read_cells(tmp_path / "x.ipynb")


def test_shell_lines_are_ignored_and_bad_code_is_reported_with_its_line(tmp_path: Path) -> None:
    path = toy.write(tmp_path, "x", "if True:\n    !pip install x\n%matplotlib inline\nb = 1")
    assert "b = 1" in provenance.notebook_code(path)
    toy.write(tmp_path, "x", "a = = 1")
    with pytest.raises(StudyError, match=r"is not valid Python: .*a = = 1"):
        provenance.notebook_code(path)


def test_the_commit_names_the_code_or_its_release(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    provenance.commit.cache_clear()
    monkeypatch.setattr(paths, "CODE", tmp_path)
    assert provenance.commit().startswith("release ")
    provenance.commit.cache_clear()
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "notebooks").mkdir()
    assert provenance.commit() == "no-git"
    provenance.commit.cache_clear()


def test_environment_variables_move_runs_reports_and_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEPTHPRUNE_HOME", str(tmp_path))
    monkeypatch.setenv("DEPTHPRUNE_RUNS", "elsewhere")
    assert paths.runs("ci") == tmp_path / "elsewhere" / "ci"
    assert paths.reports("ci") == tmp_path / "reports" / "ci"
    monkeypatch.setattr(paths, "CODE", tmp_path)  # as installed: no checkout
    assert paths.notebooks() == paths.PACKAGE / "data" / "notebooks"
    assert "depthprune" in str(paths.cache()) and tmp_path not in paths.cache().parents
