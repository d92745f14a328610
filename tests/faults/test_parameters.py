"""Two thousand spoilt parameter files: each is accepted by the schema, or refused in readable lines; never a traceback, never a long wait."""

from __future__ import annotations

import random
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from depthprune_study import places, settings
from depthprune_study.settings import SCHEMAS, StudyError

LAUGHS = "\n".join(
    [f"l0: &l0 [{', '.join(['ha'] * 10)}]", *(f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 10)}]" for n in range(1, 10))]
)
TRAPS = [
    "", "~", "no", "on", "1e-4", "1.0e-4", "-1", "0", "-0.0", "1" + "0" * 400, "1e999", "-.inf", ".nan", "0x1F", "0o17", "1_000",
    "12:30", "2026-11-25", "'3'", '"3"', "[]", "{}", "[1, [2, [3]]]", "{a: {b: c}}", "!!binary aGk=", "!!set {a, b}", "!!float 3",
    "!!python/object/apply:os.system ['touch executed']", "*nobody", "&me [*me]", "|\n  text", ">-\n  text", "Ünïcödé", "東京",
    "\u202e", "\\u0000", "a: b", "- 1", "'", '"', "%", "@x", "`", "[1, 2", "{a: 1", "# nothing", "3 4", "true", "TRUE", "null",
    "../../etc/passwd", "<script>alert(1)</script>", "x" * 5000, "[" * 2000, "{" * 2000, "- " * 500 + "1",
    "!!bool maybe", "!!timestamp x", '!!int ""', "2026-13-45", "9" * 5_000, "0x" + "F" * 5_000, "0x_", "!!float x",
    "1" + ":00" * 200 + ".5", "18446744073709551616",
]  # fmt: skip


HUNDREDS = 24  # some of them come out the same: over two thousand do not


def spoilt(lines: list[str], rng: random.Random) -> str:
    """A parameter file with one to three things wrong with it, as far as they are wrong."""
    lines = list(lines)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(lines))
        name = lines[at].split(":")[0]
        change = rng.choice(
            [
                "value",
                "value",
                "value",
                "name",
                "twice",
                "gone",
                "indented",
                "tab",
                "cut",
                "swapped",
                "bytes",
                "laughs",
                "merged",
            ]
        )
        if change == "value":
            lines[at] = f"{name}: {rng.choice(TRAPS)}"
        elif change == "name":
            lines[at] = rng.choice(["", "3", "null", "[a]", "é", name.upper(), name + "s", "? x"]) + lines[at][len(name) :]
        elif change == "twice":
            lines.append(lines[at])
        elif change == "gone" and len(lines) > 1:
            del lines[at]
        elif change == "indented":
            lines[at] = "  " + lines[at]
        elif change == "tab":
            lines[at] = "\t" + lines[at]
        elif change == "cut":
            lines[at] = lines[at][: rng.randrange(len(lines[at]) + 1)]
        elif change == "swapped":
            other = rng.randrange(len(lines))
            lines[at], lines[other] = lines[at].split(":")[0] + ":" + lines[other].partition(":")[2], lines[other]
        elif change == "bytes":
            lines[at] += rng.choice(["\x00", "\x07", "\ufeff", "\ud7ff", "\x85", "\u2028"])
        elif change == "laughs":
            lines[at] = f"{name}: *l9"
            lines.insert(0, LAUGHS)
        else:
            lines[at] = f"<<: {{{name}: 3}}"
    return "\n".join(lines) + "\n"


def a_spoilt_one(good: str, rng: random.Random) -> str:
    """One that says something else than the good file, or nothing that can be read."""
    while True:
        content = spoilt(good.splitlines(), rng)
        try:
            if yaml.safe_load(content) != yaml.safe_load(good):
                return content
        except Exception:  # the reader stumbles over some of them in its own ways
            return content


def spoilt_file(seed: int) -> tuple[str, str]:
    """A notebook's name, and its parameter file of study ci, spoilt."""
    rng = random.Random(seed)
    notebook = rng.choice(tuple(SCHEMAS))
    return notebook, a_spoilt_one((places.ROOT / "params" / "ci" / f"{notebook}.yaml").read_text(encoding="utf-8"), rng)


def outcome(params: Path, notebook: str, content: str) -> dict[str, Any] | None:
    """The accepted values, or None where the file was refused as it should be."""
    path = params / f"{notebook}.yaml"
    path.write_text(content, encoding="utf-8")
    began = time.monotonic()
    try:
        return settings.read_study("ci")[notebook].model_dump()
    except StudyError as error:
        lines = str(error).split("\n")
        assert all(line.startswith("ci/") and len(line) < 1000 for line in lines), lines
        return None
    finally:
        assert time.monotonic() - began < 5, "a file that takes long to refuse"


def check(params: Path, seed: int) -> None:
    notebook, content = spoilt_file(seed)
    good = (params / f"{notebook}.yaml").read_text(encoding="utf-8")
    accepted = outcome(params, notebook, content)
    if accepted is not None:
        assert accepted == yaml.safe_load(content), content
    (params / f"{notebook}.yaml").write_text(good, encoding="utf-8")


@pytest.fixture
def params(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the studies that a test may spoil; nothing may be written beside it."""
    shutil.copytree(places.PARAMS, tmp_path / "params")
    monkeypatch.setattr(places, "PARAMS", tmp_path / "params")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "params" / "ci"


@pytest.mark.parametrize("hundred", range(2))
def test_a_spoilt_file_is_accepted_or_refused_in_readable_lines(params: Path, hundred: int) -> None:
    for seed in range(100 * hundred, 100 * (hundred + 1)):
        check(params, seed)
    assert sorted(path.name for path in params.parent.parent.iterdir()) == ["params"]


@pytest.mark.slow
@pytest.mark.parametrize("hundred", range(2, HUNDREDS))
def test_so_are_two_thousand_of_them(params: Path, hundred: int) -> None:
    for seed in range(100 * hundred, 100 * (hundred + 1)):
        check(params, seed)
    assert sorted(path.name for path in params.parent.parent.iterdir()) == ["params"]
