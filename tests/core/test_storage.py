"""Records are read back unchanged, or an error names them; a failure leaves the old file."""

from __future__ import annotations

import hashlib
import json
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
from report import handmade

from depthprune_core import storage
from depthprune_core.records import Facts, Plan, Record, Score
from depthprune_core.storage import Stamp

STAMP = Stamp(
    study="ci",
    step="01_sensitivity/profile",
    code_hash="c0de",
    notebook_hash="b00c",
    parameters={"seed": 0, "text": "Straße"},
    inputs={"0": "abc"},
    versions={"torch": "2.13.0"},
    device="cpu",
    dtype="float32",
    seed=0,
    commit="0123456789ab",
)
SCORE = Score(("a", "b"), (1.5, 0.1 + 0.2), (3, 1), (12, 5), "the kl loss is nan at step 3")
PLAN = Plan(5, (3, 1), "by hand", {"costs": [0.1, 0.2]})
FACTS = Facts({"name": "Österreich", "nested": {"values": [1, 2.5, None, True]}})


def one_of_each_kind() -> dict[str, Any]:
    """A record of every kind, by the name of its kind."""
    found = {type(record).__name__: record for record in (PLAN, SCORE, FACTS)}
    for records in handmade.study().values():
        for held in records.values():
            record = next(iter(held.values())) if isinstance(held, dict) else held
            found.setdefault(type(record).__name__, record)
    return found


RECORDS = one_of_each_kind()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return storage.write(tmp_path / "score.json", SCORE, STAMP)


def test_every_kind_of_record_is_tried_here():
    assert RECORDS.keys() == {kind.__name__ for kind in get_args(Record)}


@pytest.mark.parametrize("name", RECORDS)
def test_a_record_and_a_dict_of_records_are_read_back_unchanged(tmp_path, name):
    record = RECORDS[name]
    assert storage.read(storage.write(tmp_path / "one.json", record, STAMP)) == record
    many = {"first": record, "zweiter Schüler": record}
    assert storage.read(storage.write(tmp_path / "many.json", many, STAMP)) == many


@pytest.mark.parametrize("record", [{}, "text", {"a": PLAN, "b": SCORE}])
def test_other_objects_and_mixed_kinds_are_refused(tmp_path, record):
    with pytest.raises(ValueError, match=r"odd\.json: one kind of record a file"):
        storage.write(tmp_path / "odd.json", record, STAMP)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_value_that_is_not_finite_is_refused_in_a_sentence(tmp_path, value):
    with pytest.raises(ValueError, match=r"^bad\.json: a value is NaN or infinite, so it is not"):
        storage.write(tmp_path / "bad.json", replace(SCORE, nll_nats=(1.0, value)), STAMP)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", ["", '{"study": "ci"}', "[1, 2]", "\x00"])
def test_a_file_that_is_not_a_record_is_refused_and_named(path, content):
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=r"score\.json is damaged or is no record: remove it and"):
        storage.read(path)


def test_a_bit_flipped_anywhere_is_refused_or_changes_nothing(path):
    content = path.read_bytes()
    for at in range(len(content)):
        flipped = bytes([content[at] ^ 1 << at % 8])
        path.write_bytes(content[:at] + flipped + content[at + 1 :])
        try:
            assert (storage.read(path), storage.read_stamp(path)) == (SCORE, STAMP), at  # a space
        except ValueError as error:
            assert "score.json is damaged or is no record" in str(error)


def test_a_failure_while_writing_or_renaming_leaves_the_old_file(path, monkeypatch):
    def full_disk(self: Path, content: bytes) -> None:
        with open(self, "wb") as file:
            file.write(content[:20])
        raise OSError("no space left")

    def refuse(source: Path, target: Path) -> None:
        raise PermissionError("read-only")

    for where, name, fault in ((Path, "write_bytes", full_disk), (os, "replace", refuse)):
        with monkeypatch.context() as patch, pytest.raises(OSError):
            patch.setattr(where, name, fault)
            storage.write(path, replace(SCORE, nll_nats=(9.0, 9.0)), STAMP)
        assert storage.read(path) == SCORE and list(path.parent.iterdir()) == [path]


def test_equal_results_have_equal_files_and_hashes_whatever_their_stamps(tmp_path):
    first = storage.write(tmp_path / "first.json", {"a": SCORE, "b": SCORE}, STAMP)
    second = storage.write(tmp_path / "second.json", {"b": SCORE, "a": SCORE}, STAMP)
    third = storage.write(tmp_path / "third.json", {"b": SCORE, "a": SCORE}, replace(STAMP, seed=7))
    assert first.read_bytes() == second.read_bytes()
    assert storage.data_hash(first) == storage.data_hash(third)


def test_the_stamp_key_ignores_only_the_commit(path):
    assert replace(STAMP, commit="fedcba987654").key == STAMP.key == storage.read_stamp(path).key
    changes = {"parameters": {"seed": 1}, "inputs": {}, "versions": {}, "seed": 1}
    for name in set(vars(STAMP)) - {"commit"}:
        assert replace(STAMP, **{name: changes.get(name, "another")}).key != STAMP.key, name


def test_a_file_from_before_a_field_was_there_is_read_with_its_default(tmp_path):
    score = Score(("a",), (1.5,), (3,), (12,))
    path = storage.write(tmp_path / "score.json", score, STAMP)
    content = json.loads(path.read_text(encoding="utf-8"))
    del content["data"]["diverged"]
    dumped = json.dumps(content["data"], sort_keys=True, separators=(",", ":"))
    content["data_sha256"] = hashlib.sha256(dumped.encode()).hexdigest()
    path.write_text(json.dumps(content), encoding="utf-8")
    assert storage.read(path) == score
