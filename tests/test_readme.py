"""README.md holds: its code runs, its addresses and links are right, its numbers are the report's."""

from __future__ import annotations

import io
import os
import random
import re
import subprocess
import zipfile
from pathlib import Path
from unittest.mock import MagicMock

import pytest
from tiny import tiny, tiny_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from depthprune_study import places, readme, settings
from depthprune_study.settings import StudyError

PAGE = readme.README.read_text(encoding="utf-8")
ROOT = places.ROOT


def python_of(page: str) -> str:
    (code,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    return code


def text_folder(folder: Path, *, documents: int = 130, words: int = 40) -> Path:
    """Documents of equal length, so that the fifty of the other splits leave recovery its share."""
    folder.mkdir()
    draw = random.Random(0)
    for i in range(documents):
        (folder / f"{i:03d}.txt").write_text(" ".join(f"w{draw.randrange(100, 128)}" for _ in range(words)), encoding="utf-8")
    return folder


@pytest.mark.parametrize("family, positions", [("gpt2", "n_positions"), ("llama", "max_position_embeddings")])
def test_the_code_for_your_own_model_runs(family, positions, tmp_path, monkeypatch, capsys):
    model, tokenizer = tiny(family, **{positions: 256}), tiny_tokenizer()
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    code = python_of(PAGE)
    for name, folder in {"gpt2-mini": tmp_path / "model", "wikipedia-excerpt": text_folder(tmp_path / "texts")}.items():
        assert code.count(f'"{name}"') == 1, f"README.md's code should name {name} once"
        code = code.replace(f'"{name}"', repr(str(folder)))
    monkeypatch.chdir(tmp_path)
    variables: dict = {}
    exec(compile(code, "README.md", "exec"), variables)
    assert capsys.readouterr().out.startswith(str(variables["plan"].dropped))
    pruned, info = AutoModelForCausalLM.from_pretrained(tmp_path / "pruned", output_loading_info=True)
    assert pruned.config.num_hidden_layers == model.config.num_hidden_layers - 2
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert AutoTokenizer.from_pretrained(tmp_path / "pruned").vocab_size == tokenizer.vocab_size


def test_every_notebook_has_its_badge():
    missing = [path.stem for path in sorted(places.NOTEBOOKS.glob("*.ipynb")) if places.badge(path.stem) not in PAGE]
    assert not missing, f"README.md lacks the badges that depthprune_study/places.py makes for {', '.join(missing)}"


def test_the_address_is_the_repositorys():
    address = f"https://github.com/{places.REPOSITORY}"
    assert f"git clone {address}.git" in PAGE, f"README.md should clone {address}.git, as depthprune_study/places.py has it"
    assert f"repository-code: {address}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8"), (
        f"CITATION.cff should name {address}"
    )


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\((?!https?://)([^)#\s]+)", (ROOT / page).read_text(encoding="utf-8"))
    broken = [link for link in links if not link.startswith("reports/") and not (ROOT / link).exists()]
    assert links and not broken, f"{page} links to {', '.join(broken) or 'nothing'}"


def test_every_study_is_listed():
    missing = [study for study in settings.studies() if f"\n| `{study}`" not in PAGE]
    assert not missing, f"README.md's table of studies lacks {', '.join(missing)}"


def test_every_environment_variable_is_listed():
    variables = set(re.findall(r"DEPTHPRUNE_[A-Z]+", Path(places.__file__).read_text(encoding="utf-8")))
    assert variables == set(re.findall(r"^\| `(DEPTHPRUNE_[A-Z]+)`", PAGE, flags=re.MULTILINE))


def test_every_module_is_in_the_tree():
    modules = {path.name for package in ("depthprune_core", "depthprune_study") for path in (ROOT / package).glob("[!_]*.py")}
    missing = sorted(name for name in modules if not re.search(rf"^ {{6}}.*\b{re.escape(name)}", PAGE, flags=re.MULTILINE))
    assert not missing, f"README.md's tree lacks {', '.join(missing)}"


# ---------------------------------------------------------------- the filled blocks


def test_the_committed_blocks_are_those_of_the_committed_reports(tmp_path, monkeypatch):
    """Those of the commit, since `make study` replaces the reports that lie here; without git, what lies here."""
    archive = subprocess.run(["git", "archive", "--format=zip", "HEAD", "README.md", "reports"], cwd=ROOT, capture_output=True)
    if archive.returncode == 0:
        zipfile.ZipFile(io.BytesIO(archive.stdout)).extractall(tmp_path)
    committed = tmp_path if archive.returncode == 0 else ROOT
    monkeypatch.setenv("DEPTHPRUNE_REPORTS", str(committed / "reports"))
    monkeypatch.setattr(readme, "README", committed / "README.md")
    page = (committed / "README.md").read_text(encoding="utf-8")
    assert readme.fill() == page, "README.md is not as the reports have it: run `python -m depthprune_study.readme`"


def test_without_a_report_the_page_is_left_and_a_sentence_says_why(tmp_path, monkeypatch):
    monkeypatch.setenv("DEPTHPRUNE_REPORTS", str(tmp_path))
    before = os.stat(readme.README).st_mtime_ns
    with pytest.raises(SystemExit, match="the report of study quick is not there"):
        readme.main()
    assert os.stat(readme.README).st_mtime_ns == before


def test_a_block_is_replaced_and_nothing_else():
    page = "a\n<!-- x -->\nold\n<!-- /x -->\nb\n"
    filled = readme.replace(page, "x", "new")
    assert filled == "a\n<!-- x -->\nnew\n<!-- /x -->\nb\n"
    assert readme.replace(filled, "x", "new") == filled


@pytest.mark.parametrize("page", ["", "<!-- x -->", "<!-- /x --><!-- x -->", "<!-- x --><!-- x --><!-- /x -->"])
def test_a_missing_or_doubled_marker_is_an_error(page):
    with pytest.raises(StudyError, match="once each"):
        readme.replace(page, "x", "new")


def test_minutes_are_summed_and_a_study_without_times_has_no_column():
    costs = {"01_sensitivity": {"seconds": 60.4, "peak_bytes": 3 * 2**29}, "06_report": {"seconds": 29.6, "peak_bytes": 0}}
    table = readme.minutes({"quick": costs, "ci": {}})
    lines = table.split("\n")
    assert lines[0] == "| notebook | `quick` |"
    assert "| 01_sensitivity | 60 s |" in lines and "| 02_prune_gpt2 |  |" in lines
    assert lines[-2:] == ["| in all | 1.5 min |", "| peak memory | 1.5 GiB |"]
    costs["06_report"]["resumed"] = True
    assert "| in all | more than 1.5 min |" in readme.minutes({"quick": costs})


@pytest.mark.parametrize("error", [StudyError("a report is not there"), ValueError("it is damaged"), OSError("it is gone")])
def test_what_keeps_the_page_from_being_filled_is_told_in_a_sentence(monkeypatch, error):
    monkeypatch.setattr(readme, "fill", MagicMock(side_effect=error))
    with pytest.raises(SystemExit, match=f"^{error}$"):
        readme.main()
