from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from depthprune_study import places, provenance
from depthprune_study.settings import StudyError

CORE = {
    "alpha": '"""What alpha is."""\n\n\ndef double(x: int) -> int:\n    """Twice x."""\n    return 2 * x  # why\n',
    "beta": "from depthprune_core import alpha\n\n\ndef four(x):\n    return alpha.double(alpha.double(x))\n",
    "gamma": "def late():\n    import depthprune_core.beta\n\n    return depthprune_core.beta.four(1)\n",
    "delta": "import json\n\nfrom depthprune_core.alpha import double\n",
    "lonely": "import numpy\n",
}


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """A tree of small modules in place of ours; the result rewrites one of them, as an edit between two runs does."""
    monkeypatch.setattr(places, "ROOT", tmp_path)
    (tmp_path / "depthprune_core").mkdir()

    def write(module: str, source: str) -> None:
        (tmp_path / "depthprune_core" / f"{module}.py").write_text(source, encoding="utf-8")
        provenance._meaning.cache_clear()  # an edit is seen by the next process

    for module, source in CORE.items():
        write(module, source)
    return write


def test_docstrings_and_comments_do_not_change_the_code_hash(write: Callable[[str, str], None]) -> None:
    before = provenance.code_hash("depthprune_core.alpha")
    write("alpha", '"""Another text."""\n\ndef double(x: int) -> int:\n    # no reason\n    return (2 * x)\n')
    assert provenance.code_hash("depthprune_core.alpha") == before


def test_a_function_that_is_only_a_docstring_has_a_hash(write: Callable[[str, str], None]) -> None:
    write("alpha", 'class Odd(ValueError):\n    """Only words."""\n')
    before = provenance.code_hash("depthprune_core.alpha")
    write("alpha", 'class Odd(ValueError):\n    """Other words."""\n')
    assert provenance.code_hash("depthprune_core.alpha") == before


@pytest.mark.parametrize(
    "change", [("2 * x", "3 * x"), ("double", "twice"), ("x: int", "x: float"), ("2 * x", "2 * x if x else 'text'")]
)
def test_code_changes_the_code_hash(write: Callable[[str, str], None], change: tuple[str, str]) -> None:
    before = provenance.code_hash("depthprune_core.alpha")
    write("alpha", CORE["alpha"].replace(*change))
    assert provenance.code_hash("depthprune_core.alpha") != before


def test_a_string_that_is_no_docstring_counts(write: Callable[[str, str], None]) -> None:
    write("alpha", 'NAME = "one"\n')
    before = provenance.code_hash("depthprune_core.alpha")
    write("alpha", 'NAME = "two"\n')
    assert provenance.code_hash("depthprune_core.alpha") != before


@pytest.mark.parametrize("module", ["beta", "gamma", "delta"])
def test_the_code_of_what_is_imported_counts(write: Callable[[str, str], None], module: str) -> None:
    before = provenance.code_hash(f"depthprune_core.{module}")
    write("alpha", CORE["alpha"].replace("2 * x", "3 * x"))
    assert provenance.code_hash(f"depthprune_core.{module}") != before


def test_the_code_of_what_is_not_imported_does_not_count(write: Callable[[str, str], None]) -> None:
    before = provenance.code_hash("depthprune_core.beta")
    write("lonely", "import scipy\n")
    assert provenance.code_hash("depthprune_core.beta") == before


def test_the_closure_follows_modules_named_in_from_imports(write: Callable[[str, str], None]) -> None:
    assert provenance.closure(["depthprune_core.gamma"]) == {f"depthprune_core.{name}" for name in ("gamma", "beta", "alpha")}


def test_the_closure_ends_where_two_modules_import_each_other(write: Callable[[str, str], None]) -> None:
    write("alpha", "from depthprune_core import beta\n")
    assert provenance.closure(["depthprune_core.alpha"]) == {"depthprune_core.alpha", "depthprune_core.beta"}


def test_names_that_are_no_modules_are_passed_over(write: Callable[[str, str], None]) -> None:
    source = (
        "import os\nfrom depthprune_core.alpha import double\nfrom depthprune_core import nothing\nimport depthprune_core\n"
    )
    assert provenance.imports(source) == ["depthprune_core.alpha"]


def test_the_real_recovery_rests_on_the_modules_that_it_computes_with() -> None:
    found = provenance.closure(["depthprune_core.distillation"])
    assert {f"depthprune_core.{name}" for name in ("losses", "decoders", "evaluation", "text", "records", "assets")} <= found


@pytest.mark.parametrize("notebook", sorted(path.stem for path in places.NOTEBOOKS.glob("*.ipynb")))
def test_the_python_of_every_notebook_can_be_parsed(notebook: str) -> None:
    assert provenance.imports(provenance.notebook_code(places.NOTEBOOKS / f"{notebook}.ipynb"))


# ---------------------------------------------------------------- notebooks


def a_notebook(path: Path, *, code: str = "x = 1", prose: str = "# Title", outputs: list | None = None) -> Path:
    cells = [
        {"cell_type": "markdown", "metadata": {}, "source": [prose]},
        {
            "cell_type": "code",
            "metadata": {},
            "source": [code],
            "outputs": outputs or [],
            "execution_count": 3 if outputs else None,
        },
    ]
    path.write_text(json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}), encoding="utf-8")
    return path


def test_a_notebook_hash_ignores_outputs_and_prose(tmp_path: Path) -> None:
    plain = a_notebook(tmp_path / "a.ipynb")
    run = a_notebook(
        tmp_path / "b.ipynb", prose="# Another", outputs=[{"output_type": "stream", "name": "stdout", "text": ["1"]}]
    )
    assert provenance.notebook_hash(plain) == provenance.notebook_hash(run)


def test_a_notebook_hash_knows_code_and_where_asked_prose(tmp_path: Path) -> None:
    plain = a_notebook(tmp_path / "a.ipynb")
    code = a_notebook(tmp_path / "b.ipynb", code="x = 2")
    prose = a_notebook(tmp_path / "c.ipynb", prose="# Another")
    assert provenance.notebook_hash(plain) != provenance.notebook_hash(code)
    assert provenance.notebook_hash(plain, prose=True) != provenance.notebook_hash(prose, prose=True)


def test_shell_and_magic_lines_are_no_python(tmp_path: Path) -> None:
    path = a_notebook(tmp_path / "a.ipynb", code="import sys\nif sys:\n    !pip install x\n%matplotlib inline")
    assert "pip" not in provenance.notebook_code(path)


WHOLE = json.dumps({"cells": [{"cell_type": "code", "metadata": {}, "source": ["x = 1\n", "y = 2"]}]})
DAMAGED = {
    "empty": "",
    "cut": WHOLE[:40],
    "no text": b"\xff\xfe\x00",
    "no object": "[1]",
    "no cells": "{}",
    "cells of nothing": '{"cells": null}',
    "cells of text": '{"cells": ["x = 1"]}',
    "no source": WHOLE.replace("source", "sauce"),
    "a source of numbers": WHOLE.replace('"x = 1\\n"', "1"),
    "no kind": WHOLE.replace("cell_type", "type"),
    "no metadata": WHOLE.replace('"metadata": {}', '"metadata": []'),
    "deep": "[" * 200_000,
}


@pytest.mark.parametrize("name", DAMAGED)
@pytest.mark.parametrize("read", [provenance.notebook_code, provenance.notebook_hash])
def test_a_damaged_notebook_is_told_in_a_sentence_that_names_it(tmp_path: Path, name: str, read: Callable) -> None:
    path, content = tmp_path / "a.ipynb", DAMAGED[name]
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(StudyError) as error:
        read(path)
    told = str(error.value)
    assert told.startswith(f"notebook {path} is damaged") and "\n" not in told and len(told) < 400


def test_a_whole_notebook_of_such_cells_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.ipynb").write_text(WHOLE)
    assert provenance.notebook_code(tmp_path / "a.ipynb") == "x = 1\ny = 2"


def test_code_that_is_no_python_is_told_with_its_line(tmp_path: Path) -> None:
    path = a_notebook(tmp_path / "a.ipynb", code="x = 1\nif x\n    y = 2")
    with pytest.raises(StudyError) as error:
        provenance.notebook_code(path)
    assert str(error.value) == f"notebook {path}: its code is no Python: expected ':' (in 'if x')"


# ---------------------------------------------------------------- where it ran


def test_a_stamp_of_an_arm_leaves_the_notebook_out() -> None:
    stamp = provenance.stamp(
        study="ci",
        notebook="any",
        notebook_hash="",
        step="arm/kl",
        modules=("depthprune_core.records",),
        parameters={},
        inputs={},
        device="cpu",
        dtype="float32",
        seed=0,
    )
    assert (stamp.step, stamp.notebook_hash) == ("any/arm/kl", "")


def test_outside_a_repository_the_commit_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert provenance.commit.__wrapped__() == "no-git"


def test_without_git_the_commit_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert provenance.commit.__wrapped__() == "no-git"
