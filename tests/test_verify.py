"""A report that was tampered with, or mixed of two runs, is found out."""

from __future__ import annotations

import base64
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from depthprune_core import evaluation, figures, records
from depthprune_core.records import Score
from depthprune_study import cli, places, verify
from depthprune_study.settings import StudyError

CI = places.ROOT / "reports" / "ci"


@pytest.fixture(autouse=True)
def no_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are drawn again for their texts alone: what takes most of the time is thrown away."""
    monkeypatch.setattr(figures, "png", lambda figure: b"")


@pytest.fixture
def report(tmp_path: Path) -> Path:
    return Path(shutil.copytree(CI, tmp_path / "ci"))


def test_the_committed_reports_fit_together() -> None:
    for name in ("ci", "quick", "smollm2", "rehearsal"):
        assert verify.differences(places.ROOT / "reports" / name) == []


def edit(path: Path, old: str, new: str) -> None:
    content = path.read_text(encoding="utf-8")
    assert old in content
    path.write_text(content.replace(old, new, 1), encoding="utf-8")


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def renamed(key: str) -> Callable[[Path], object]:
    """A flipped bit in a key of a notebook."""
    return lambda path: edit(path, f'"{key}"', f'"{key[:-1]}{chr(ord(key[-1]) ^ 1)}"')


def no_text(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] |= 0x80
    path.write_bytes(content)


def shorter_image(path: Path) -> None:
    """One character fewer in the first image of an executed notebook: no base64 any more."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    data = next(o["data"] for c in notebook["cells"] for o in c.get("outputs", []) if "image/png" in o.get("data", {}))
    data["image/png"] = "".join(data["image/png"]).strip()[:-3]
    path.write_text(json.dumps(notebook), encoding="utf-8")


def another_image(path: Path) -> None:
    """Another figure than the page had, in its place."""
    content, other = path.read_text(encoding="utf-8"), CI / "figures" / "03c_choice-sets.png"
    image = base64.b64encode((CI / "figures" / "03_recovery-curves.png").read_bytes()).decode()
    assert image in content
    path.write_text(content.replace(image, base64.b64encode(other.read_bytes()).decode()), encoding="utf-8")


def worse(score: Score) -> Score:
    return replace(score, nll_nats=tuple(2 * nats for nats in score.nll_nats))


def worse_piece(path: Path) -> None:
    records.write(path, worse(records.read(path)), records.read_stamp(path))


def worse_record(result: str) -> Callable[[Path], None]:
    """A record with its checksum right and its numbers changed, as somebody who wants to would write it."""

    def change(path: Path) -> None:
        scores = records.read(path)
        records.write(path, {**scores, result: worse(scores[result])}, records.read_stamp(path))

    return change


def worse_everywhere(path: Path) -> None:
    worse_record("recovered")(path)
    worse_piece(path.parent / "test" / "recovered.json")


def swapped(first: str, second: str) -> Callable[[Path], None]:
    """What a record says of one thing, it then says of another."""

    def change(path: Path) -> None:
        results = records.read(path)
        records.write(path, {**results, first: results[second], second: results[first]}, records.read_stamp(path))

    return change


def every(old: str, new: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        content = path.read_text(encoding="utf-8")
        assert re.search(old, content)
        path.write_text(re.sub(old, new, content), encoding="utf-8")

    return change


def in_notebook_and_page(path: Path) -> None:
    for changed in (path, path.parent / "notebooks" / "06_report.ipynb"):
        edit(changed, "Recovery is short on purpose", "Recovery is as long as can be")


def not_measured(record: str, result: str) -> str:
    return f"what records/{record}.json says of {result} is not what was measured: no record of its own says it"


def of_another_notebook(path: Path) -> None:
    stamp = records.read_stamp(path)
    records.write(path, records.read(path), records.Stamp(**{**vars(stamp), "notebook_hash": "0" * 16}))


def with_other_parameters(path: Path) -> None:
    stamp = records.read_stamp(path)
    parameters = {**stamp.parameters, "tokens": 10**9}
    records.write(path, records.read(path), records.Stamp(**{**vars(stamp), "parameters": parameters}))


def replaced_by(record: str) -> Callable[[Path], None]:
    """Another record of the same report, whole, in its place."""
    return lambda path: shutil.copy(path.parents[1] / f"{record}.json", path) and None


TAMPERING: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "a flipped bit": ("records/03_recovery/test_scores.json", flip, "is damaged: its content is not what its checksum says"),
    "an emptied record": ("records/01_sensitivity/profile.json", lambda p: p.write_text(""), "profile.json is damaged"),
    "another version's record": (
        "records/03_recovery/test_scores.json",
        of_another_notebook,
        "was made by another version of notebook 03_recovery than the one beside it",
    ),
    "a record of another kind in its place": (
        "records/03_recovery/curves.json",
        replaced_by("03_recovery/recipe"),
        "records/03_recovery/curves.json is another record than its name says: it was made as 03_recovery/recipe",
    ),
    "a record of the same kind in its place": (
        "records/03b_controls/bytes.json",
        replaced_by("03b_controls/pace"),
        "records/03b_controls/bytes.json is another record than its name says: it was made as 03b_controls/pace",
    ),
    "other parameters": (
        "records/03_recovery/test_scores.json",
        with_other_parameters,
        "was made with other parameters than notebook 03_recovery shows",
    ),
    "changed numbers": (
        "records/03_recovery/test_scores.json",
        worse_everywhere,
        "what notebooks/06_report.ipynb says of C2 is not what records and params/claims.yaml say",
    ),
    "a changed figure": ("figures/03_recovery-curves.png", flip, "is not the figure that its notebook shows"),
    "a changed notebook": (
        "notebooks/03_recovery.ipynb",
        lambda p: edit(p, "pilot = bench.recovery_windows", "pilot = bench.recovery_window"),
        "was made by another version of notebook 03_recovery",
    ),
    "a broken notebook": ("notebooks/03_recovery.ipynb", lambda p: p.write_text("{"), "notebooks/03_recovery.ipynb is damaged"),
    **{
        f"a flipped bit in {key}": ("notebooks/03_recovery.ipynb", renamed(key), "notebooks/03_recovery.ipynb is damaged")
        for key in ("metadata", "cell_type", "source", "outputs", "output_type", "cells")
    },
    "a cut image": (
        "notebooks/03_recovery.ipynb",
        shorter_image,
        "notebooks/03_recovery.ipynb is damaged: it holds an image that cannot be decoded",
    ),
    "a removed figure": (
        "figures/03_recovery-curves.png",
        Path.unlink,
        "notebooks/03_recovery.ipynb shows a figure that is not in figures/",
    ),
    "a changed answer": ("figures/answer.png", flip, "figures/answer.png is not the figure that its notebook shows"),
    "an arm's record": ("arms/rule", lambda p: flip(sorted(p.glob("*.json"))[0]), "is damaged: its content is not what its"),
    "a page that is no text": ("report.html", no_text, "report.html is damaged"),
    "half a page": ("02_prune_gpt2.html", lambda p: p.write_bytes(p.read_bytes()[:9000]), "02_prune_gpt2.html is damaged"),
    "a page that says something else": (
        "05_seed_stability.html",
        lambda p: edit(p, "runs of 2,048 tokens", "runs of 9,048 tokens"),
        "05_seed_stability.html does not show what notebooks/05_seed_stability.ipynb shows",
    ),
    "a page that shows something else": (
        "03_recovery.html",
        another_image,
        "03_recovery.html does not show what notebooks/03_recovery.ipynb shows",
    ),
    "a page of another run": (
        "report.html",
        lambda p: edit(p, "PPL ratio to the whole model", "PPL ratio to a model"),
        "report.html does not show what notebooks/06_report.ipynb shows",
    ),
    "verdicts of another kind": (
        "report.html",
        every('<span class="verdict [^<]*</span>', '<span class="verdict reproduced">reproduced</span>'),
        "report.html does not show what notebooks/06_report.ipynb shows",
    ),
    "verdicts of another colour": (
        "report.html",
        every('class="verdict [a-z-]*"', 'class="verdict reproduced"'),
        "report.html does not show what notebooks/06_report.ipynb shows",
    ),
    "a failure that is none": (
        "report.html",
        every("is not reproduced on", "is reproduced on"),
        "report.html does not show what notebooks/06_report.ipynb shows",
    ),
    "a limit that is none, in notebook and page": (
        "report.html",
        in_notebook_and_page,
        "what notebooks/06_report.ipynb says of failures is not what the records say",
    ),
    "an alternative text of another run": (
        "report.html",
        every('alt="Perplexity ratio to the whole ', 'alt="Perplexity ratio to half of the '),
        "report.html does not show what notebooks/06_report.ipynb shows",
    ),
    **{
        f"a score in {record} that was not measured": (
            f"records/{record}.json",
            worse_record(result),
            not_measured(record, result),
        )
        for record, result in {
            "02_prune_gpt2/test_scores": "teacher",
            "03_recovery/validation_scores": "teacher + same text (ce)",
            "03_recovery/sweep": "layers: last_k",
            "03_recovery/trials_with_text": "ce: adamw, 0.0001",
            "03b_controls/elsewhere_scores": "recovered",
            "03b_controls/timed_test_scores": "ce (timed)",
            "03b_controls/timed_validation_scores": "ce, lora (timed)",
            "03c_choice/set_scores": "1,8 (seed 0)",
        }.items()
    },
    **{
        f"a result in {record} that is another's": (
            f"records/{record}.json",
            swapped(first, second),
            not_measured(record, first),
        )
        for record, (first, second) in {
            "03_recovery/divergences": ("ce", "recovered"),
            "03_recovery/sweep": ("rate, 512 tokens: muon, 0.0001", "rate, 512 tokens: muon, 0.0004"),
            "03b_controls/zero_shot": ("teacher: depthprune_choice", "teacher: depthprune_cloze"),
        }.items()
    },
    "a curve of no arm": ("arms/recovered", shutil.rmtree, not_measured("03_recovery/curves", "recovered")),
    "another piece": (
        "records/03b_controls/news-excerpt/width.json",
        worse_piece,
        not_measured("03b_controls/elsewhere_scores", "width"),
    ),
    "a removed piece": (
        "records/05_seed_stability/test/seed 1.json",
        Path.unlink,
        not_measured("05_seed_stability/test_scores", "seed 1"),
    ),
}


@pytest.mark.parametrize("case", TAMPERING)
def test_what_does_not_fit_is_named(report: Path, case: str) -> None:
    file, tamper, sentence = TAMPERING[case]
    tamper(report / file)
    assert any(sentence in found for found in verify.differences(report)), verify.differences(report)


@pytest.mark.parametrize(
    "part",
    [
        "notebooks",
        "figures",
        "figures/answer.png",
        "report.html",
        "04_transfer_tinyllama.html",
        "notebooks/06_report.ipynb",
        "notebooks/02_prune_gpt2.ipynb",
        "records/05_seed_stability",
        "costs.json",
        "made-from.json",
    ],
)
def test_what_is_missing_is_named(report: Path, part: str) -> None:
    shutil.rmtree(report / part) if (report / part).is_dir() else (report / part).unlink()
    found = verify.differences(report)
    assert any(part in sentence for sentence in found), found


def test_a_folder_that_is_no_report_is_refused_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"is no report: it has no records/$"):
        verify.differences(tmp_path)


def test_an_executed_notebooks_parameters_are_read_and_not_executed(report: Path) -> None:
    path = report / "notebooks" / "01_sensitivity.ipynb"
    notebook = json.loads(path.read_text(encoding="utf-8"))
    cell = next(c for c in notebook["cells"] if "injected-parameters" in c["metadata"].get("tags", []))
    cell["source"] = ["seed = __import__('os').system('touch executed')\n"]
    path.write_text(json.dumps(notebook), encoding="utf-8")
    assert verify.differences(report) == ["notebooks/01_sensitivity.ipynb was given parameters that are no plain values"]


def test_the_cheap_numbers_come_out_again() -> None:
    distances = dict(verify.recomputed(CI))
    assert set(distances) == {
        "gpt2-mini, teacher",
        "gpt2-mini, least_sensitive-2",
        "llama-tiny, teacher",
        "llama-tiny, unrecovered",
    }
    assert max(distances.values()) <= verify.TOLERANCE_NATS


@pytest.mark.slow
@pytest.mark.parametrize("study", ["quick"])
def test_the_cheap_numbers_of_a_real_study_come_out_again(study: str) -> None:
    done = CliRunner().invoke(cli.app, ["verify", str(places.reports(study))])
    assert done.exit_code == 0, done.output
    assert done.output.count("scored anew, at most ") == 4
    assert "smollm2-135m, unrecovered: scored anew" in done.output


def test_a_number_that_does_not_come_out_again_is_seen(report: Path) -> None:
    path = report / "records" / "02_prune_gpt2" / "test_scores.json"
    scores = records.read(path)
    s = scores["teacher"]
    off = Score(s.documents, (s.nll_nats[0] * 1.001, *s.nll_nats[1:]), s.n_tokens, s.n_bytes)
    records.write(path, {**scores, "teacher": off}, records.read_stamp(path))
    assert dict(verify.recomputed(report))["gpt2-mini, teacher"] > verify.TOLERANCE_NATS


@pytest.mark.parametrize("place", [0, 1, -1])
def test_a_score_that_is_no_number_is_a_difference(report: Path, monkeypatch: pytest.MonkeyPatch, place: int) -> None:
    score = evaluation.score

    def broken(*args: Any, **options: Any) -> Score:
        found = score(*args, **options)
        nats = list(found.nll_nats)
        nats[place] = float("nan")
        return replace(found, nll_nats=tuple(nats))

    monkeypatch.setattr(evaluation, "score", broken)
    monkeypatch.setattr(verify, "differences", lambda folder: [])
    result = CliRunner().invoke(cli.app, ["verify", str(report)])
    assert result.exit_code == 1
    assert "gpt2-mini, teacher: inf nats per token is more than sums in another order explain" in result.stderr
