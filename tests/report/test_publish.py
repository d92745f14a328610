"""Publishing: swapped in one step, whatever interrupts it; verify finds a flipped bit anywhere."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import handmade as h
import pytest

from depthprune_core import storage
from depthprune_core.records import Facts
from depthprune_study.errors import StudyError
from depthprune_study.report import publish, verify
from depthprune_study.report.pages import QUESTIONS

KEYS = {notebook: f"key of {notebook}" for notebook in QUESTIONS}
COSTS = {notebook: {"seconds": 90.0, "peak_bytes": 2**30} for notebook in QUESTIONS}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home in which the study has run."""
    home = tmp_path_factory.mktemp("home")
    h.draw(h.write(home / "runs" / "overnight", h.study()))
    return home


@pytest.fixture
def home(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(finished, tmp_path / "home")
    monkeypatch.setenv("DEPTHPRUNE_HOME", str(tmp_path / "home"))
    for name in ("DEPTHPRUNE_RUNS", "DEPTHPRUNE_REPORTS"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "home"


def published(**more: object) -> Path:
    return publish.publish("overnight", keys=KEYS, costs=COSTS, **more)


def test_a_report_is_whole_current_and_verified(home: Path) -> None:
    folder = published()
    assert folder == home / "reports" / "overnight"
    there = " ".join(sorted(path.name for path in folder.iterdir()))
    files = "README.md costs.json figures made-from.json notebooks records report.html"
    assert there == files
    assert verify.differences(folder) == []
    assert set(publish.states("overnight", KEYS).values()) == {"current"}
    changed = publish.states("overnight", KEYS | {"07_choice": "another", "12_new": "key"})
    others = {"07_choice": "outdated", "12_new": "missing"}
    assert changed == dict.fromkeys(KEYS, "current") | others
    assert set(publish.states("quick", KEYS).values()) == {"missing"}


@pytest.mark.parametrize(
    "target",
    [
        ".overnight.new/notebooks/01_sensitivity.ipynb",
        ".overnight.new/made-from.json",
        ".overnight.old",
        "overnight",
        "README.md",
    ],
)
def test_an_interrupted_publication_leaves_a_whole_report(
    home: Path, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    before, at = publish.hashes(published()), home / "reports" / target
    interrupted = []

    def stops(real):
        def act(source: object, to: object, *more: object) -> object:
            if Path(to) == at:
                interrupted.append(to)
                raise KeyboardInterrupt
            return real(source, to, *more)

        return act

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(publish.os, "replace", stops(os.replace))
        patched.setattr(publish.shutil, "copy", stops(shutil.copy))
        published()
    assert interrupted
    report = home / "reports" / "overnight"
    there = report if report.exists() else report.with_name(".overnight.old")
    assert publish.hashes(there) == before, "one of the two is whole"
    assert verify.differences(published()) == []


def test_the_next_publication_repairs_an_interrupted_swap(home: Path) -> None:
    folder = published()
    os.replace(folder, folder.with_name(".overnight.old"))
    assert verify.differences(published()) == []
    assert not folder.with_name(".overnight.old").exists()


def test_an_unfinished_study_is_published_as_such(home: Path) -> None:
    keys = {name: KEYS[name] for name in ("01_sensitivity", "02_prune")}
    for kind in ("measured", "students"):
        storage.write_atomically(home / "runs" / "overnight" / kind / "1234.json", "{}")
    folder = publish.publish("overnight", keys=keys, costs=COSTS, unfinished=True)
    assert all((folder / kind / "1234.json").is_file() for kind in ("measured", "students"))
    assert "Unfinished" in (folder / "README.md").read_text(encoding="utf-8")
    assert "Unfinished" in (folder.parent / "README.md").read_text(encoding="utf-8")
    assert verify.differences(folder) == []
    assert not (folder / "records" / "03_recovery").exists()


def test_a_study_that_did_not_run_is_refused(home: Path) -> None:
    with pytest.raises(StudyError, match="no finished notebook 01_sensitivity"):
        publish.publish("quick", keys=KEYS, costs={})
    with pytest.raises(StudyError, match="no finished notebook at all"):
        publish.publish("quick", keys={}, costs={})


def test_the_index_leads_with_overnight_and_gives_ci_a_line(home: Path) -> None:
    for study in ("ci", "quick"):
        shutil.copytree(home / "runs" / "overnight", home / "runs" / study)
        publish.publish(study, keys=KEYS, costs=COSTS)
    published()
    index = (home / "reports" / "README.md").read_text(encoding="utf-8")
    assert index.index("## overnight") < index.index("## quick") < index.index("- **ci**")
    assert "loses layers 16 and 17 of 30" in index.split("## quick")[0]
    for link in ("overnight/README.md", "ci/report.html"):
        assert f"({link})" in index and (home / "reports" / link).is_file()


@pytest.mark.parametrize(
    "name",
    [
        "records/03_recovery/test.json",
        "figures/03_recovery-path.png",
        "notebooks/03_recovery.ipynb",
        "README.md",
        "costs.json",
    ],
)
def test_verify_finds_a_flipped_bit(home: Path, name: str) -> None:
    folder = published()
    path = folder / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    assert any(name in line for line in verify.differences(folder))


def test_verify_finds_an_intact_but_different_record(home: Path) -> None:
    """With new checksums, the figures and the pages still show the change."""
    folder = published()
    other = h.study()["03_recovery"] | {"continuations": Facts({"samples": {}})}
    h.write(folder, {"03_recovery": other})
    found = " ".join(verify.differences(folder))
    record = "records/03_recovery/continuations.json"
    assert f"03_recovery-path.png was drawn from a different version of {record}" in found


def test_verify_finds_pages_of_other_rules(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from depthprune_study.report import pages

    folder = published()
    monkeypatch.setattr(pages, "failures", lambda evidence, root="": "nothing failed")
    assert "README.md does not match the records and params/claims.yaml" in verify.differences(
        folder
    )


def test_verify_finds_missing_and_foreign_files(home: Path) -> None:
    folder = published()
    (folder / "extra.html").write_text("x", encoding="utf-8")
    assert verify.differences(folder) == ["extra.html is not part of the published report"]
    (folder / "extra.html").rename(folder / "report.html")
    (folder / "README.md").unlink()
    wrong = ["README.md is missing", "report.html was changed after the report was published"]
    assert verify.differences(folder) == wrong


def test_a_folder_that_is_not_a_report_is_refused(tmp_path: Path) -> None:
    assert verify.differences(tmp_path) == [f"{tmp_path} is not a report: it has no records/"]
