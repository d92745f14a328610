from __future__ import annotations

import hashlib
import json
import math
import os
from dataclasses import replace
from pathlib import Path

import pytest

from depthprune_core import records
from depthprune_core.records import (
    Answers,
    Curve,
    Divergence,
    Facts,
    PairCosts,
    Plan,
    Profile,
    Race,
    Score,
    Size,
    Stamp,
    Timing,
)

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
RECORDS = {
    "plan": Plan(5, (3, 1), "by hand", {"costs": [0.1, 0.2]}),
    "score": SCORE,
    "divergence": Divergence(("a",), (0.25,), (3,), (4,)),
    "profile": Profile(2, SCORE, {"drop_nll_nats": ((1.0, 2.0), (0.0, -0.5))}, {"taylor": (0.1, 0.2)}, {"1": (0.3, 0.4)}),
    "pairs": PairCosts(3, (0.1, 0.2, 0.3), {"0,1": 0.5, "0,2": 0.1, "1,2": 0.7}),
    "race": Race(
        n_layers=3,
        winner=(0, 2),
        error_probability=0.05,
        tolerance_nats=0.002,
        n_windows=40,
        n_sets=3,
        ruled_out_by_parts=1,
        rounds=({"windows": 8, "sets": 2}, {"windows": 12, "sets": 2}),
        finalists={"0,1": (0.1, -0.001, 0.2), "0,2": (0.0, 0.0, 0.0)},
        rise_nll_nats=0.3,
        set_windows=60,
        part_checks=3,
        part_failures=1,
        largest_part_failure_nats=0.01,
        gap_skewness=(-0.1, 0.5, 2.0),
    ),
    "curve": Curve({"lr": 1e-4, "loss": {"kl": 1.0}}, "ab12", (64, 128), {"kl": (0.5, 0.25)}, (0, 128), (3.0, 2.5)),
    "timing": Timing("cpu", "float32", 1, 8, 4, 2, (1.0,), (0.9,), (2.0,), (1.5,), 1.2, 1.13, 640, 512),
    "answers": Answers("cloze", (True, False, True)),
    "size": Size(12, 5_900_000, 11_800_000),
    "facts": Facts({"name": "Österreich", "nested": {"values": [1, 2.5, None, True]}}),
}


@pytest.fixture(params=RECORDS)
def record(request: pytest.FixtureRequest) -> records.Record:
    return RECORDS[request.param]


def test_every_kind_of_record_is_tried_here() -> None:
    assert {type(record) for record in RECORDS.values()} == set(records._KINDS.values())


def test_a_record_is_read_back_as_it_was(tmp_path: Path, record: records.Record) -> None:
    assert records.read(records.write(tmp_path / "one.json", record, STAMP)) == record


def test_records_by_name_are_read_back_as_they_were(tmp_path: Path, record: records.Record) -> None:
    many = {"first arm": record, "zweiter Arm": record}
    assert records.read(records.write(tmp_path / "many.json", many, STAMP)) == many


def test_the_stamp_is_read_back_as_it_was(tmp_path: Path) -> None:
    assert records.read_stamp(records.write(tmp_path / "one.json", SCORE, STAMP)) == STAMP


def test_two_kinds_in_one_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"mixed\.json: one kind of record a file is wanted, got \['Plan', 'Score'\]"):
        records.write(tmp_path / "mixed.json", {"a": RECORDS["plan"], "b": SCORE}, STAMP)


@pytest.mark.parametrize("record", [{}, {"a": 1.5}, "text"])
def test_what_is_no_record_is_refused(tmp_path: Path, record: object) -> None:
    with pytest.raises(ValueError, match="one kind of record a file is wanted"):
        records.write(tmp_path / "odd.json", record, STAMP)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_refused_in_a_sentence(tmp_path: Path, value: float) -> None:
    with pytest.raises(ValueError, match=r"^bad\.json: a value is NaN or infinite, so the record is not saved$"):
        records.write(tmp_path / "bad.json", replace(SCORE, nll_nats=(1.0, value)), STAMP)
    assert list(tmp_path.iterdir()) == []


def damaged(path: Path, how: str) -> None:
    content = path.read_text(encoding="utf-8")
    if how == "emptied":
        path.write_text("")
    elif how == "truncated":
        path.write_text(content[: len(content) // 2])
    elif how == "bit flipped in its data":
        at = content.index("1.5")
        path.write_bytes(content[:at].encode() + bytes([content.encode()[at] ^ 1]) + content[at + 1 :].encode())
    elif how == "of another kind":
        path.write_text(content.replace('"kind": "Score"', '"kind": "Curve"'))
    elif how == "of an unknown kind":
        path.write_text(content.replace('"kind": "Score"', '"kind": "Guess"'))
    elif how == "said to hold several":
        path.write_text(content.replace('"many": false', '"many": true'))
    elif how == "not text":
        path.write_bytes(b"\xff\xfe\x00")
    elif how == "other JSON":
        path.write_text('{"study": "ci"}')
    elif how == "a list":
        path.write_text("[1, 2]")


DAMAGE = (
    "emptied",
    "truncated",
    "bit flipped in its data",
    "of another kind",
    "of an unknown kind",
    "said to hold several",
    "not text",
)


@pytest.mark.parametrize("how", [*DAMAGE, "other JSON", "a list"])
def test_a_damaged_file_is_refused_and_named(tmp_path: Path, how: str) -> None:
    path = records.write(tmp_path / "score.json", SCORE, STAMP)
    damaged(path, how)
    with pytest.raises(ValueError, match=r"score\.json is damaged or is no record: remove it and run the study again"):
        records.read(path)


@pytest.mark.parametrize("name", ['"stamp"', '"seed"', '"step"'])
def test_a_file_with_a_damaged_stamp_is_refused_and_named(tmp_path: Path, name: str) -> None:
    path = records.write(tmp_path / "score.json", SCORE, replace(STAMP, parameters={}))
    path.write_text(path.read_text(encoding="utf-8").replace(name, '"sxxx"'))
    with pytest.raises(ValueError, match=r"score\.json is damaged"):
        records.read_stamp(path)


def test_a_bit_flipped_anywhere_in_the_stamp_or_its_checksum_is_refused_or_changes_nothing(tmp_path: Path) -> None:
    path = records.write(tmp_path / "score.json", SCORE, STAMP)
    content = path.read_bytes()
    for at in range(content.index(b'"stamp"'), len(content)):
        for bit in range(8):
            path.write_bytes(content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :])
            try:
                assert (records.read(path), records.read_stamp(path)) == (SCORE, STAMP)  # other white space
            except ValueError as error:
                assert "score.json is damaged" in str(error)


def test_a_file_from_before_stamps_had_a_checksum_is_read(tmp_path: Path) -> None:
    path = records.write(tmp_path / "score.json", SCORE, STAMP)
    content = json.loads(path.read_text(encoding="utf-8"))
    del content["stamp_sha256"]
    path.write_text(json.dumps(content), encoding="utf-8")
    assert (records.read(path), records.read_stamp(path)) == (SCORE, STAMP)


def test_a_failure_while_writing_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = records.write(tmp_path / "score.json", SCORE, STAMP)

    def full_disk(self: Path, text: str, **options: object) -> None:
        with open(self, "w") as file:
            file.write(text[:20])
        raise OSError("no space left")

    monkeypatch.setattr(Path, "write_text", full_disk)
    with pytest.raises(OSError, match="no space left"):
        records.write(path, replace(SCORE, nll_nats=(9.0, 9.0)), STAMP)
    assert records.read(path) == SCORE
    assert list(tmp_path.iterdir()) == [path]


def test_a_failure_while_renaming_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = records.write(tmp_path / "score.json", SCORE, STAMP)

    def refuse(source: Path, target: Path) -> None:
        raise PermissionError("read-only")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(PermissionError):
        records.write(path, replace(SCORE, nll_nats=(9.0, 9.0)), STAMP)
    assert records.read(path) == SCORE
    assert list(tmp_path.iterdir()) == [path]


def test_equal_records_have_equal_data_hashes_whatever_their_stamps(tmp_path: Path) -> None:
    first = records.write(tmp_path / "first.json", SCORE, STAMP)
    second = records.write(tmp_path / "second.json", SCORE, replace(STAMP, seed=7, commit="another"))
    assert records.data_hash(first) == records.data_hash(second)


def test_equal_records_are_equal_files(tmp_path: Path) -> None:
    first = records.write(tmp_path / "first.json", {"a": SCORE, "b": SCORE}, STAMP)
    second = records.write(tmp_path / "second.json", {"b": SCORE, "a": SCORE}, STAMP)
    assert first.read_bytes() == second.read_bytes()


def test_the_stamp_key_ignores_the_commit() -> None:
    assert replace(STAMP, commit="fedcba987654").key == STAMP.key


@pytest.mark.parametrize(
    "change",
    [
        {"study": "quick"},
        {"step": "01_sensitivity/pairs"},
        {"code_hash": "0"},
        {"notebook_hash": "0"},
        {"parameters": {"seed": 1}},
        {"inputs": {"0": "abd"}},
        {"versions": {"torch": "2.12.0"}},
        {"device": "cuda"},
        {"dtype": "bfloat16"},
        {"seed": 1},
    ],
    ids=lambda change: next(iter(change)),
)
def test_the_stamp_key_changes_with_everything_else(change: dict) -> None:
    assert replace(STAMP, **change).key != STAMP.key


def test_the_stamp_key_survives_the_file(tmp_path: Path) -> None:
    path = records.write(tmp_path / "score.json", SCORE, STAMP)
    assert records.read_stamp(path).key == STAMP.key
    assert json.loads(path.read_text(encoding="utf-8"))["stamp"]["commit"] == STAMP.commit


def test_a_plan_sorts_what_it_drops_and_knows_what_it_keeps() -> None:
    plan = Plan(5, (3, 1), "by hand")
    assert (plan.dropped, plan.kept) == ((1, 3), (0, 2, 4))


@pytest.mark.parametrize(
    ("dropped", "sentence"),
    [
        ((12,), r"the plan drops layer 12, but the model has layers 0\.\.11"),
        ((-1,), r"the plan drops layer -1, but the model has layers 0\.\.11"),
        ((3, 3), r"the plan drops a layer twice: \[3, 3\]"),
        (tuple(range(12)), "the plan drops all 12 layers: at least one must stay"),
    ],
)
def test_an_impossible_plan_is_refused_in_a_sentence(dropped: tuple[int, ...], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        Plan(12, dropped, "by hand")


def test_ppl_and_bits_per_byte_match_a_hand_computed_example() -> None:
    score = Score(("a", "b"), (6 * math.log(2), 2 * math.log(2)), (3, 1), (12, 4))  # 8 bits, 4 tokens, 16 bytes
    assert score.mean_nll_nats == pytest.approx(2 * math.log(2))
    assert score.ppl == pytest.approx(4)
    assert score.bits_per_byte == pytest.approx(0.5)


def test_ppl_weighs_tokens_not_documents() -> None:
    score = Score(("long", "short"), (9.0, 0.0), (9, 1), (9, 1))
    assert score.ppl == pytest.approx(math.exp(0.9))


def test_a_perplexity_that_overflows_is_infinite() -> None:
    assert Score(("a",), (1e6,), (1,), (1,)).ppl == math.inf


def test_a_loss_that_is_no_number_has_a_perplexity_that_is_none() -> None:
    assert math.isnan(Score(("a", "b"), (1.0, math.nan), (1, 1), (1, 1)).ppl)


def test_an_interaction_is_the_pair_cost_minus_both_single_costs() -> None:
    pairs = RECORDS["pairs"]
    assert pairs.interaction(0, 1) == pytest.approx(0.2)
    assert pairs.interaction(2, 0) == pytest.approx(-0.3)
    assert pairs.cost(frozenset()) == 0


def test_a_profile_gives_means_per_token() -> None:
    profile = RECORDS["profile"]
    assert profile.drop_one == (0.75, -0.125)
    assert profile.criteria["angular_distance"] == (0.3, 0.4)


def test_a_file_from_before_a_field_was_there_is_read_with_its_default(tmp_path: Path) -> None:
    path = records.write(tmp_path / "score.json", Score(("a",), (1.5,), (3,), (12,)), STAMP)
    content = json.loads(path.read_text(encoding="utf-8"))
    del content["data"]["diverged"]
    dumped = json.dumps(content["data"], sort_keys=True, separators=(",", ":"))
    content["data_sha256"] = hashlib.sha256(dumped.encode()).hexdigest()
    path.write_text(json.dumps(content), encoding="utf-8")
    assert records.read(path) == Score(("a",), (1.5,), (3,), (12,))
