from __future__ import annotations

import copy
import errno
import gc
import json
import math
import re
import shutil
import time
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest
import torch
from tiny import count_layer_passes, tiny

from depthprune_core import distillation, evaluation, pruning, records, refitting, speed, zero_shot
from depthprune_core.records import Answers, Curve, Facts, Plan, Score
from depthprune_study import arms, live, places, settings
from depthprune_study import bench as bench_module
from depthprune_study.arms import Arm
from depthprune_study.bench import Bench, open_bench
from depthprune_study.settings import StudyError

VALUES = {
    "study": "bench-test",
    "model": "llama-tiny",
    "text": "wikipedia-excerpt",
    "max_documents": 2,
    "seq_len": 16,
    "score_tokens": 32,
    "device": "cpu",
    "seed": 0,
}
RECIPE: dict[str, Any] = {"loss": {"kl": 1.0}, "lr": 1e-3, "seed": 0, "batch_size": 2, "checkpoint_every_seconds": 0}
PLAN = Plan(6, (2, 4), "by hand")


@pytest.fixture(autouse=True)
def silence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "display", lambda *shown, **options: None)


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DEPTHPRUNE_RUNS", str(tmp_path))
    return tmp_path


def new_bench(notebook: str = "05_seed_stability", **changes: Any) -> Bench:
    more = {"01_sensitivity": {"calibration_tokens": 32, "pairs": True}, "05_seed_stability": {"seeds": [0, 1]}}
    return Bench(notebook, settings.check(notebook, {**VALUES, **more[notebook], **changes}))


@pytest.fixture
def bench(runs: Path) -> Bench:
    return new_bench()


class Counted:
    """A piece of work that counts how often it is done."""

    def __init__(self, record: Any = None) -> None:
        self.times = 0
        self.record = record if record is not None else Facts({"answer": 42})

    def __call__(self) -> Any:
        self.times += 1
        return self.record


# ---------------------------------------------------------------- once


def test_a_piece_of_work_is_done_once(bench: Bench) -> None:
    make = Counted()
    assert [bench.once("piece", make, on=[PLAN]) for _ in range(3)] == [make.record] * 3
    assert make.times == 1


def test_another_session_reads_it_back(bench: Bench) -> None:
    make = Counted({"a": PLAN, "b": PLAN})
    bench.once("piece", make, on=[PLAN])
    assert new_bench().once("piece", make, on=[PLAN]) == {"a": PLAN, "b": PLAN}
    assert make.times == 1


@pytest.mark.parametrize(
    "change",
    [{"on": [replace(PLAN, dropped=(1, 4))]}, {"on": [PLAN, PLAN]}, {"on": [vars(PLAN)]}],
    ids=["another plan", "one input more", "another kind with the same values"],
)
def test_it_is_done_again_when_what_it_depends_on_changes(bench: Bench, change: dict) -> None:
    make = Counted()
    bench.once("piece", make, on=[PLAN])
    bench.once("piece", make, **change)
    assert make.times == 2


def test_it_is_done_again_when_a_parameter_changes(bench: Bench) -> None:
    make = Counted()
    bench.once("piece", make, on=[])
    new_bench(score_tokens=33).once("piece", make, on=[])
    assert make.times == 2


def test_it_is_done_again_when_one_weight_changes(bench: Bench) -> None:
    make, (model, _) = Counted(), bench.model("llama-tiny")
    bench.once("piece", make, on=[model])
    with torch.no_grad():
        model.model.layers[3].mlp.up_proj.weight[5, 7] += 1e-3
    bench.once("piece", make, on=[model])
    assert make.times == 2


def test_it_is_done_again_when_the_tokens_change(bench: Bench) -> None:
    make, (_, tokenizer) = Counted(), bench.model("llama-tiny")
    windows = [bench.recovery_windows(tokenizer, tokens=64, seed=seed) for seed in (0, 0, 1)]
    for some in windows:
        bench.once("piece", make, on=[some])
    assert make.times == 2


@pytest.mark.parametrize("damage", ["", "{}", "not json", '"kind": "Plan"'])
def test_it_is_done_again_when_the_record_is_damaged(bench: Bench, damage: str) -> None:
    make = Counted()
    bench.once("piece", make, on=[])
    path = bench.record_path("piece")
    path.write_text(path.read_text().replace('"kind": "Facts"', damage) if "kind" in damage else damage)
    assert bench.once("piece", make, on=[]) == make.record
    assert make.times == 2


def test_work_that_fails_leaves_no_record(bench: Bench) -> None:
    def fail() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        bench.once("piece", fail, on=[])
    assert not bench.record_path("piece").exists()


# ---------------------------------------------------------------- recover


def recovered(bench: Bench, **changes: Any) -> tuple[dict[str, torch.Tensor], Curve]:
    teacher, tokenizer = bench.model("llama-tiny")
    windows = bench.recovery_windows(tokenizer, tokens=192, seed=0)  # six steps
    validation = bench.windows("validation", tokenizer, tokens_per_document=16)
    student, curve = bench.recover("arm", PLAN, teacher, windows, validation=validation, **{**RECIPE, **changes})
    return student.model.state_dict(), curve


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def no_training(*args: Any, **options: Any) -> None:
    raise AssertionError("trained again")


def test_a_recovery_that_was_cut_goes_on_and_ends_bit_for_bit_where_an_uninterrupted_one_ends(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut(done: int, of: int, what: str) -> None:
        seen.append(done)
        if seen.count(96) == 1 and done == 96:
            raise KeyboardInterrupt

    bench, seen = new_bench(), []
    bench.progress = cut
    with pytest.raises(KeyboardInterrupt):
        recovered(bench)
    bench = new_bench()
    bench.progress = cut
    weights, curve = recovered(bench)
    assert seen == [32, 64, 96, 96, 128, 160, 192]  # the step at whose end it was cut, again
    monkeypatch.setenv("DEPTHPRUNE_RUNS", str(runs / "uninterrupted"))
    other_weights, other_curve = recovered(new_bench())
    assert same(weights, other_weights)
    assert curve == other_curve


def test_a_finished_arm_is_read_back_bit_for_bit(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    weights, curve = recovered(bench)
    monkeypatch.setattr(bench_module.distillation, "recover", no_training)
    again, curve_again = recovered(new_bench())
    assert same(weights, again)
    assert curve == curve_again


def test_a_finished_arm_is_read_back_by_another_notebook(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    weights, _ = recovered(bench)
    monkeypatch.setattr(bench_module.distillation, "recover", no_training)
    assert same(weights, recovered(new_bench("01_sensitivity"))[0])


def test_a_finished_arm_leaves_no_checkpoint(bench: Bench, runs: Path) -> None:
    recovered(bench)
    assert sorted(path.suffix for path in (runs / "bench-test" / "arms" / "arm").iterdir()) == [".json", ".safetensors"]


@pytest.mark.parametrize("change", [{"lr": 2e-3}, {"temperature": 2.0}, {"seed": 1}, {"loss": {"kl": 1.0, "ce": 0.1}}])
def test_another_recipe_is_another_arm(bench: Bench, change: dict) -> None:
    assert recovered(bench)[1] != recovered(bench, **change)[1]


def test_an_arm_with_damaged_weights_is_made_again(bench: Bench, runs: Path) -> None:
    weights, curve = recovered(bench)
    (file,) = (runs / "bench-test").rglob("*.safetensors")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    again, curve_again = recovered(new_bench())
    assert same(weights, again)
    assert curve == curve_again


def test_what_was_measured_on_an_arm_is_read_back_without_its_weights(
    bench: Bench, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def notebook(bench: Bench) -> tuple[Score, Score, dict]:
        teacher, tokenizer = bench.model("llama-tiny")
        windows = bench.recovery_windows(tokenizer, tokens=192, seed=0)
        student, _ = bench.recover("arm", PLAN, teacher, windows, **RECIPE)
        further, _ = bench.recover("further", PLAN, teacher, windows, start=student.without(Plan(4, (1,), "more")), **RECIPE)
        scores = bench.validation_scores({"arm": student, "further": further}, tokenizer)
        said = bench.continuations({"arm": student}, tokenizer, ["One"], new_tokens=3)
        return scores["arm"], scores["further"], said

    first = notebook(bench)
    for file in (runs / "bench-test").rglob("*.safetensors"):
        file.unlink()
    monkeypatch.setattr(bench_module.distillation, "recover", no_training)
    assert notebook(new_bench()) == first


def test_an_arm_whose_weights_are_not_kept_is_made_again_for_a_new_measurement(bench: Bench, runs: Path) -> None:
    weights, _ = recovered(bench, keep_weights=False)
    assert list((runs / "bench-test").rglob("*.safetensors")) == []
    assert same(weights, recovered(new_bench())[0])
    assert len(list((runs / "bench-test").rglob("*.safetensors"))) == 1


def test_an_arm_that_another_machine_makes_slightly_differently_is_told_and_kept_anew(
    bench: Bench, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rounded_otherwise(student: Any, *args: Any, **options: Any) -> Any:
        student, curve = recover(student, *args, **options)
        with torch.no_grad():
            student.model.layers[0].mlp.up_proj.weight[0, 0] += 1e-6
        return student, curve

    weights, _ = recovered(bench, keep_weights=False)
    recover = bench_module.distillation.recover
    monkeypatch.setattr(bench_module.distillation, "recover", rounded_otherwise)
    with pytest.raises(
        StudyError, match=r"^the weights of arm arm were not on disk, .* run the study again, and what was measured"
    ):
        recovered(new_bench())
    monkeypatch.setattr(bench_module.distillation, "recover", no_training)
    again, curve = recovered(new_bench())
    assert not same(weights, again)
    assert curve.recipe["weights"] == bench_module.weights_hash(new_arm_model(new_bench()))


def new_arm_model(bench: Bench) -> Any:
    teacher, tokenizer = bench.model("llama-tiny")
    windows = bench.recovery_windows(tokenizer, tokens=192, seed=0)
    validation = bench.windows("validation", tokenizer, tokens_per_document=16)
    return bench.recover("arm", PLAN, teacher, windows, validation=validation, **RECIPE)[0].model


def test_the_model_that_a_recovery_starts_from_stays_as_it_was(bench: Bench) -> None:
    teacher, tokenizer = bench.model("llama-tiny")
    windows = bench.recovery_windows(tokenizer, tokens=64, seed=0)
    narrow = pruning.narrow_mlps(teacher, [range(100)] * 6)
    before = {name: tensor.clone() for name, tensor in narrow.state_dict().items()}
    bench.recover("width", Plan(6, (), "none"), teacher, windows, start=narrow, **RECIPE)
    assert same(before, narrow.state_dict())


def test_an_arm_without_a_layer_is_its_student_without_it(bench: Bench) -> None:
    teacher, tokenizer = bench.model("llama-tiny")
    windows = bench.recovery_windows(tokenizer, tokens=64, seed=0)
    student, _ = bench.recover("arm", PLAN, teacher, windows, **RECIPE)
    more = Plan(4, (1,), "more")
    assert same(student.without(more).model.state_dict(), pruning.drop_layers(student.model, more).state_dict())
    contents = {student.content, student.without(more).content, student.without(Plan(4, (2,), "more")).content}
    assert len(contents) == 3


def test_a_refitted_arm_begins_where_the_plain_fit_ends_and_is_known_by_its_record(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher, tokenizer = bench.model("llama-tiny")
    windows = bench.recovery_windows(tokenizer, tokens=192, seed=0)
    begun = pruning.drop_layers(teacher, PLAN)
    refitting.refit(begun, teacher, PLAN, windows.take(slice(0, 6)))  # 96 of the 192 tokens, in windows of 16
    alone = bench.refitted(PLAN, teacher, windows, n_tokens=96)
    assert same(alone.model.state_dict(), begun.state_dict())
    by_hand, _ = bench.recover("by-hand", PLAN, teacher, windows, start=begun, **RECIPE)
    arm, curve = bench.recover("arm", PLAN, teacher, windows, refit_tokens=96, **RECIPE)
    plain, of_plain = bench.recover("arm", PLAN, teacher, windows, refit_tokens=0, **RECIPE)
    assert same(arm.model.state_dict(), by_hand.model.state_dict())
    assert not same(arm.model.state_dict(), plain.model.state_dict())
    assert curve.recipe["refit_tokens"] == 96 and "refit_tokens" not in of_plain.recipe

    def no_work(*args: Any, **options: Any) -> None:
        raise AssertionError("a finished piece of work is done again")

    monkeypatch.setattr(bench_module.refitting, "refit", no_work)
    monkeypatch.setattr(bench_module.distillation, "recover", no_work)
    assert same(new_arm_of(new_bench(), windows, 96).model.state_dict(), by_hand.model.state_dict())
    later = new_bench()
    assert same(later.refitted(PLAN, teacher, windows, n_tokens=96).model.state_dict(), begun.state_dict())
    assert later.refitted(PLAN, later.model("llama-tiny")[0], windows, n_tokens=96).content == alone.content
    assert later.recover("arm", PLAN, teacher, windows, refit_tokens=96, **RECIPE)[0].content == arm.content


def new_arm_of(bench: Bench, windows: Any, refit_tokens: int) -> Any:
    return bench.recover("arm", PLAN, bench.model("llama-tiny")[0], windows, refit_tokens=refit_tokens, **RECIPE)[0]


def test_what_is_told_of_a_refit_is_what_was_done(bench: Bench) -> None:
    teacher, tokenizer = bench.model("llama-tiny")
    windows = bench.recovery_windows(tokenizer, tokens=64, seed=0)
    _, curve = bench.recover("arm", PLAN, teacher, windows, refit_tokens=10_000, **RECIPE)
    assert curve.recipe["refit_tokens"] == 64  # there are no more
    _, curve = bench.recover("arm", Plan(6, (0,), "by hand"), teacher, windows, refit_tokens=64, **RECIPE)
    assert "refit_tokens" not in curve.recipe  # no layer before the cut


def test_fitted_maps_that_are_damaged_are_fitted_again(bench: Bench, runs: Path) -> None:
    teacher, tokenizer = bench.model("llama-tiny")
    windows = bench.recovery_windows(tokenizer, tokens=64, seed=0)
    weights = bench.refitted(PLAN, teacher, windows, n_tokens=64).model.state_dict()
    (maps,) = (runs / "bench-test" / "arms" / "refitted").glob("*.safetensors")
    assert maps.stat().st_size < 200_000  # two maps, not a model
    maps.write_bytes(maps.read_bytes()[:-100])
    assert same(bench.refitted(PLAN, teacher, windows, n_tokens=64).model.state_dict(), weights)


def test_the_whole_model_is_not_refitted_but_a_narrower_one_is(bench: Bench) -> None:
    teacher, tokenizer = bench.model("llama-tiny")
    windows = bench.recovery_windows(tokenizer, tokens=64, seed=0)
    nothing, recipe = Plan(6, (), "none"), {**RECIPE, "loss": {"ce": 1.0}}
    _, control = bench.recover("control", nothing, teacher, windows, refit_tokens=64, **recipe)
    narrow = pruning.narrow_mlps(teacher, [range(100)] * 6)
    _, width = bench.recover("width", nothing, teacher, windows, start=narrow, refit_tokens=64, **recipe)
    assert "refit_tokens" not in control.recipe and width.recipe["refit_tokens"] == 64


def test_a_recipe_in_tokens_is_the_same_recipe_in_windows(bench: Bench) -> None:
    teacher, tokenizer = bench.model("llama-tiny")
    windows = bench.recovery_windows(tokenizer, tokens=192, seed=0, seq_len=32)
    assert windows.seq_len == 32
    in_tokens = {key: value for key, value in RECIPE.items() if key != "batch_size"} | {"seq_len": 32, "batch_tokens": 64}
    one, _ = bench.recover("arm", PLAN, teacher, windows, **in_tokens)
    other, _ = bench.recover("other", PLAN, teacher, windows, **RECIPE)
    assert one.content == other.content
    for tokens in (8, 48):
        with pytest.raises(ValueError, match=f"batch_tokens={tokens} is no multiple of the windows' 32 tokens"):
            bench.recover("arm", PLAN, teacher, windows, **{**in_tokens, "batch_tokens": tokens})
    with pytest.raises(ValueError, match="windows of seq_len=16 tokens, but these have 32"):
        bench.recover("arm", PLAN, teacher, windows, **{**in_tokens, "seq_len": 16})


def test_the_time_to_refit_counts_in_the_pace(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, tokenizer = bench.model("llama-tiny")
    windows = bench.recovery_windows(tokenizer, tokens=192, seed=0)
    monkeypatch.setattr(bench_module.speed, "recovery_pace", lambda *args, **options: 100.0)
    monkeypatch.setattr(bench_module.refitting, "refit", lambda *args, **options: time.sleep(0.2))
    plain, refitted = (bench.recovery_pace(PLAN, teacher, windows, timed_windows=2, refit_tokens=n, **RECIPE) for n in (0, 64))
    assert plain == 100
    assert refitted < 192 / (192 / 100 + 0.2) + 1e-6


def test_windows_that_are_longer_than_the_model_reads_are_refused(bench: Bench) -> None:
    model, _ = bench.model("llama-tiny")
    longest = bench.context_of(model)
    assert longest == model.config.max_position_embeddings
    bench.check_context(model, [longest])
    with pytest.raises(StudyError, match=rf"holds {longest + 1}, but llama-tiny reads at most {longest} tokens"):
        bench.check_context(model, [8, longest + 1])


@pytest.mark.parametrize(
    ("device", "has_bfloat16", "precision"),
    [("cpu", True, "float32"), ("cuda", True, "bfloat16"), ("cuda", False, "float16")],
)
def test_auto_computes_in_what_the_device_truly_has(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, device: str, has_bfloat16: bool, precision: str
) -> None:
    def answer(including_emulation: bool = True) -> bool:
        return including_emulation or has_bfloat16

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", answer)
    bench.device = device
    assert bench.precision("auto") == precision
    assert bench.precision("float32") == "float32"


def test_the_teacher_stays_as_it_was(bench: Bench) -> None:
    teacher, tokenizer = bench.model("llama-tiny")
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    nothing = Plan(6, (), "none")
    windows = bench.recovery_windows(tokenizer, tokens=64, seed=0)
    control, _ = bench.recover("control", nothing, teacher, windows, **{**RECIPE, "loss": {"ce": 1.0}})
    assert same(before, teacher.state_dict())
    assert not same(before, control.model.state_dict())


# ---------------------------------------------------------------- splits


@pytest.mark.parametrize("read", [lambda b, t: b.documents("test"), lambda b, t: b.windows("test", t, tokens_per_document=8)])
def test_the_test_split_is_refused_to_everything_but_test_scores(bench: Bench, read: Callable) -> None:
    _, tokenizer = bench.model("llama-tiny")
    with pytest.raises(ValueError, match=r"the test split is read by bench\.test_scores \(once\) and bench\.zero_shot alone"):
        read(bench, tokenizer)


def test_two_arms_with_the_same_weights_are_scored_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, tokenizer = bench.model("llama-tiny")
    scored, score = [], bench_module.evaluation.score
    monkeypatch.setattr(bench_module.evaluation, "score", lambda *args, **options: scored.append(1) or score(*args, **options))
    twins = {name: pruning.drop_layers(teacher, PLAN, share=True) for name in ("greedy", "racing")}
    scores = bench.validation_scores({"teacher": teacher} | twins, tokenizer)
    assert len(scored) == 2 and scores["greedy"] == scores["racing"] != scores["teacher"]
    assert bench.record_path("validation/racing").exists()


def test_the_test_split_is_read_once(bench: Bench) -> None:
    model, tokenizer = bench.model("llama-tiny")
    scores = bench.test_scores({"teacher": model}, tokenizer)
    assert isinstance(scores["teacher"], Score)
    with pytest.raises(ValueError, match="was read already in this notebook: score every arm in one call"):
        bench.test_scores({"teacher": model}, tokenizer)


def test_test_and_validation_scores_are_of_different_articles(bench: Bench) -> None:
    model, tokenizer = bench.model("llama-tiny")
    arms = {"teacher": model}
    test, validation = bench.test_scores(arms, tokenizer), bench.validation_scores(arms, tokenizer)
    assert set(test["teacher"].documents).isdisjoint(validation["teacher"].documents)
    assert set(test["teacher"].n_tokens) == {VALUES["score_tokens"]}


def test_max_documents_cuts_every_split(bench: Bench) -> None:
    assert [len(bench.documents(split)) for split in ("recovery", "calibration", "validation")] == [2, 2, 2]


# ---------------------------------------------------------------- parameters, device


def test_a_bench_opened_without_a_parameter_is_refused_in_a_sentence(runs: Path) -> None:
    with pytest.raises(StudyError, match=r"^05_seed_stability: seeds is missing$"):
        open_bench("05_seed_stability", VALUES)


def test_a_bench_takes_its_parameters_from_the_cell_and_nothing_else(runs: Path) -> None:
    cell = {**VALUES, "seeds": [0, 1], "torch": torch, "unrelated": 3}
    assert open_bench("05_seed_stability", cell).parameters.model_dump() == {**VALUES, "seeds": [0, 1]}


def test_a_gpu_that_is_not_there_is_told_in_a_sentence(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(StudyError, match=r"^device='cuda' was asked for, but no GPU is there: take device='auto' or 'cpu'$"):
        new_bench(device="cuda")
    assert new_bench(device="auto").device == "cpu"


def test_a_record_that_is_not_there_yet_is_told_in_a_sentence(bench: Bench) -> None:
    with pytest.raises(
        StudyError, match=r"^record 03_recovery/recipe is not there: run notebook 03_recovery of study bench-test first$"
    ):
        bench.read("03_recovery", "recipe")


def test_a_record_of_an_earlier_notebook_is_read(bench: Bench) -> None:
    new_bench("01_sensitivity").save("kept", Facts({"value": 1}))
    assert bench.read("01_sensitivity", "kept") == Facts({"value": 1})


# ---------------------------------------------------------------- figures, progress


class Display:
    """Stands for the notebook: keeps what is displayed, and what each line was replaced by."""

    def __init__(self) -> None:
        self.outputs: list[list[Any]] = []

    def __call__(self, shown: Any, **options: Any) -> Any:
        self.outputs.append([shown])
        display = self

        class Handle:
            at = len(self.outputs) - 1

            def update(self, shown: Any, **options: Any) -> None:
                display.outputs[self.at].append(shown)

        return Handle()


def test_a_figure_is_shown_with_its_text_and_kept(bench: Bench, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = Display()
    monkeypatch.setattr(bench_module, "display", shown)
    figure = plt.figure(label="what the figure says")
    bench.show("plot", figure)
    plt.close(figure)
    assert (
        shown.outputs[0][0]["text/plain"] == "what the figure says"
    )  # no Image(alt=...): IPython 7.34, which Colab has, knows none
    assert shown.outputs[0][0]["image/png"]
    assert (runs / "bench-test" / "figures" / "05_seed_stability-plot.png").read_bytes()[:4] == b"\x89PNG"


def test_progress_is_one_line_that_is_replaced_and_empty_in_the_end(
    bench: Bench, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = Display()
    monkeypatch.setattr(live, "display", shown)

    def make() -> Facts:
        for done in range(1, 1001):
            bench.progress(done, 1000, "things")
        return Facts({})

    bench.once("piece", make, on=[])
    (line,) = shown.outputs
    assert line[0] == {"text/plain": "piece ..."}
    assert line[-1] == {"text/plain": ""}
    assert len(line) <= 4  # at most one update a second, and the last one


def test_progress_reaches_the_runner_through_a_file(bench: Bench, runs: Path) -> None:
    file, told = runs / "bench-test" / "progress.json", []

    def make() -> Facts:
        bench.progress(5, 5, "things")
        told.append(json.loads(file.read_text())["line"])
        return Facts({})

    bench.once("piece", make, on=[])
    assert told[0].startswith("piece: 5 of 5 things")
    assert json.loads(file.read_text())["line"] == "piece: done"


def test_records_carry_where_they_come_from(bench: Bench) -> None:
    bench.once("piece", Counted(), on=[])
    stamp = records.read_stamp(bench.record_path("piece"))
    assert (stamp.study, stamp.step, stamp.device) == ("bench-test", "05_seed_stability/piece", "cpu")
    assert {"torch", "transformers"} <= set(stamp.versions)
    assert stamp.parameters["score_tokens"] == 32


# ---------------------------------------------------------------- text from elsewhere


def test_scores_elsewhere_are_of_the_other_texts_test_split(bench: Bench) -> None:
    model, tokenizer = bench.model("llama-tiny")
    scores = bench.scores_elsewhere("news-excerpt", {"teacher": model}, tokenizer)
    assert len(scores["teacher"].documents) == 2  # max_documents
    assert not set(scores["teacher"].documents) & {document.name for document in bench.documents("recovery")}
    bench.test_scores({"teacher": model}, tokenizer)  # is still to be read


def test_records_of_a_text_in_a_file_stay_among_the_others(bench: Bench, tmp_path: Path) -> None:
    model, tokenizer = bench.model("llama-tiny")
    folder = tmp_path / "stories"
    folder.mkdir()
    for i in range(130):
        (folder / f"{i:03d}.txt").write_text(f"story {i} " * 250, encoding="utf-8")
    bench.scores_elsewhere(str(folder), {"teacher": model}, tokenizer)
    assert bench.record_path("stories/teacher").is_file()
    assert not list(folder.rglob("*.json"))


def test_a_student_that_is_smaller_in_another_way_starts_from_its_own_weights(bench: Bench) -> None:
    teacher, tokenizer = bench.model("llama-tiny")
    windows = bench.recovery_windows(tokenizer, tokens=64, seed=0)
    narrow = pruning.narrow_mlps(teacher, [range(100)] * 6)
    whole = Plan(6, (), "none")
    student, curve = bench.recover("width", whole, teacher, windows, start=narrow, **RECIPE)
    assert student.model.num_parameters() < teacher.num_parameters()
    again, _ = bench.recover("width", whole, teacher, windows, start=pruning.narrow_mlps(teacher, [range(100)] * 6), **RECIPE)
    assert all(torch.equal(p, q) for p, q in zip(student.model.parameters(), again.model.parameters(), strict=True))
    _, other = bench.recover(
        "width", whole, teacher, windows, start=pruning.narrow_mlps(teacher, [range(28, 128)] * 6), **RECIPE
    )
    assert curve.losses != other.losses


def test_recoveries_of_a_notebook_run_the_teacher_once_a_window(bench: Bench) -> None:
    teacher, tokenizer = bench.model("llama-tiny")
    windows = bench.recovery_windows(tokenizer, tokens=64, seed=0)
    bench.recover("first", PLAN, teacher, windows, **RECIPE)
    passes = count_layer_passes(teacher)
    bench.recover("second", PLAN, teacher, windows, **{**RECIPE, "lr": 2e-3})
    assert passes == []


@pytest.mark.parametrize("change", [{}, {"optimiser": "muon"}, {"trained": "lora"}], ids=str)
def test_a_trained_student_is_known_by_its_new_weights_also_when_it_was_hashed_before(bench: Bench, change: dict) -> None:
    teacher, tokenizer = bench.model("llama-tiny")
    windows = bench.recovery_windows(tokenizer, tokens=64, seed=0)
    start = pruning.narrow_mlps(teacher, [range(100)] * 6)
    before = bench_module._content_hash(start)
    student, _ = bench.recover("width", Plan(6, (), "none"), teacher, windows, start=start, **RECIPE, **change)
    again = pruning.narrow_mlps(teacher, [range(100)] * 6)
    again, _ = bench.recover("width", Plan(6, (), "none"), teacher, windows, start=again, **RECIPE, **change)
    hashes = [bench_module._content_hash(m) for m in (student, again)]
    assert hashes[0] == hashes[1] != before


def test_rules_that_picked_the_same_layers_share_a_run(bench: Bench) -> None:
    teacher, tokenizer = bench.model("llama-tiny")
    windows = bench.recovery_windows(tokenizer, tokens=64, seed=0)
    for rule in ("greedy", "exhaustive"):
        bench.recover("rule", Plan(6, (2, 4), rule, {"steps": [rule]}), teacher, windows, **RECIPE)
    assert len(list((bench.folder / "arms" / "rule").glob("*.json"))) == 1


@pytest.mark.parametrize("variable", ["DEPTHPRUNE_CACHE", "DEPTHPRUNE_REPORTS", "DEPTHPRUNE_RUNS"])
def test_an_empty_variable_moves_nothing(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "")
    for folder in (places.cache(), places.reports("ci"), places.runs("ci")):
        assert folder.is_relative_to(places.ROOT) and folder != places.ROOT


def test_a_rule_that_notebook_02_has_no_plan_of_is_told_in_a_sentence(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    plans = {"greedy-2": Plan(6, (2, 4), "greedy"), "last_k-2": Plan(6, (4, 5), "last_k")}
    monkeypatch.setattr(bench, "read", lambda *asked: plans if asked == ("02_prune_gpt2", "plans") else None)
    assert bench.plan_of("greedy", 2).dropped == (2, 4)
    with pytest.raises(StudyError, match=r"notebook 02 has no plan racing-2; it has greedy-2, last_k-2$"):
        bench.plan_of("racing", 2)


def test_a_folder_that_is_not_whole_is_refused_before_it_is_read(bench: Bench, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no \.safetensors file"):
        bench.model(str(tmp_path))


# ---------------------------------------------------------------- students in memory


def test_students_stay_in_memory_as_far_as_they_fit(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    def arm(number: int) -> Arm:
        return Arm(f"content {number}", lambda: made.append(number) or tiny("llama", seed=number))

    first, second, third = map(arm, range(3))
    one = sum(p.numel() * p.element_size() for p in first.model.parameters())
    monkeypatch.setattr(arms, "HELD_BYTES", 2 * one)
    assert first.model is first.model and made == [0]
    assert second.model is second.model and first.model is first.model and made == [0, 1]
    assert third.model is third.model and made == [0, 1, 2]
    assert first.model is not None and made == [0, 1, 2]  # asked for after the second, which went
    assert second.model is not None and made == [0, 1, 2, 1]


def test_one_student_is_held_however_large_it_is(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arms, "HELD_BYTES", 0)
    made: list[int] = []
    arm = Arm("content", lambda: made.append(0) or tiny("llama"))
    assert arm.model is arm.model and made == [0]


def test_a_recovered_student_that_went_from_memory_is_read_from_disk(bench: Bench) -> None:
    teacher, tokenizer = bench.model("llama-tiny")
    arm, _ = bench.recover("arm", PLAN, teacher, bench.recovery_windows(tokenizer, tokens=192, seed=0), **RECIPE)
    before = {name: tensor.clone() for name, tensor in arm.model.state_dict().items()}
    held = weakref.ref(arm.model)
    arms.release()
    gc.collect()
    assert held() is None
    assert all(torch.equal(tensor, before[name]) for name, tensor in arm.model.state_dict().items())


def test_a_score_is_read_back_by_what_it_measured(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, tokenizer = bench.model("llama-tiny")
    before = bench.validation_scores({"arm": teacher}, tokenizer)
    monkeypatch.setattr("depthprune_core.evaluation.score", no_training)
    monkeypatch.setattr("depthprune_study.provenance.notebook_hash", lambda path: "of another version")
    other = new_bench(seeds=[0, 1, 2])
    assert other.validation_scores({"arm": teacher}, tokenizer) == before
    stamp = records.read_stamp(other.record_path("validation/arm"))
    assert (stamp.notebook_hash, stamp.parameters["seeds"]) == ("of another version", [0, 1, 2])
    for changed in (new_bench(score_tokens=8), new_bench(max_documents=3), new_bench(seq_len=8)):
        with pytest.raises(AssertionError, match="trained again"):
            changed.validation_scores({"arm": teacher}, tokenizer)
    with pytest.raises(AssertionError, match="trained again"):
        new_bench().validation_scores({"arm": tiny("llama", vocab_size=4_096)}, tokenizer)


def test_other_work_is_done_anew_when_its_notebook_or_a_parameter_changes(bench: Bench) -> None:
    work = Counted(Facts({"value": 1}))
    for changed in (bench, new_bench(), new_bench(seeds=[0, 1, 2])):
        changed.once("work", work, on=[])
    assert work.times == 2


def test_what_an_old_cell_computed_is_not_the_edited_notebooks(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A notebook that is edited while it runs: its stamps tell of the notebook whose cells ran."""
    notebooks = tmp_path / "notebooks"
    shutil.copytree(places.NOTEBOOKS, notebooks)
    monkeypatch.setattr(places, "NOTEBOOKS", notebooks)
    path, bench = notebooks / "05_seed_stability.ipynb", new_bench()
    path.write_text(path.read_text(encoding="utf-8").replace("seeds", "grains"), encoding="utf-8")
    bench.once("piece", lambda: Facts({"made by": "old cells"}), on=[])
    assert new_bench().once("piece", lambda: Facts({"made by": "new cells"}), on=[]).values == {"made by": "new cells"}


def another_tokenizer(tokenizer: Any) -> Any:
    """The same words, but for one merge."""
    other, told = copy.deepcopy(tokenizer), json.loads(tokenizer.backend_tokenizer.to_str())
    told["model"]["merges"].pop()
    other._tokenizer = type(tokenizer.backend_tokenizer).from_str(json.dumps(told))
    return other


def test_continuations_and_tasks_are_measured_anew_with_another_tokenizer(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(evaluation, "continuations", lambda model, tokenizer, *_, **__: asked.append(tokenizer) or ["said"])
    answers = {"piqa": Answers("piqa", (True,))}
    monkeypatch.setattr(zero_shot, "answers", lambda model, tokenizer, *_, **__: asked.append(tokenizer) or answers)
    model, tokenizer = bench.model("llama-tiny")
    called = copy.deepcopy(tokenizer)
    called("a b c d", truncation=True, max_length=2)  # which it remembers
    assert called.backend_tokenizer.to_str() != tokenizer.backend_tokenizer.to_str()
    for one in (tokenizer, called, another_tokenizer(tokenizer)):
        bench.continuations({"teacher": model}, one, ["A"], new_tokens=2)
        bench.zero_shot({"teacher": model}, one, n_items=0, tasks=["piqa"])
    assert len(asked) == 4


def test_a_time_is_measured_anew_with_another_number_of_threads(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    work = Counted()
    for threads in (1, 1, 2):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        bench.once("timing-2", work, on=[PLAN, bench.machine])
    assert work.times == 2
    assert bench.machine == f"{speed.device_name(torch.device('cpu'))}, 2 threads"


# ---------------------------------------------------------------- runs that diverge


def diverging(bench: Bench, **options: Any) -> tuple[Arm, Curve, Any]:
    teacher, tokenizer = bench.model("llama-tiny")
    windows = bench.recovery_windows(tokenizer, tokens=192, seed=0)
    arm, curve = bench.recover("wild", PLAN, teacher, windows, **{**RECIPE, "lr": 1e38}, **options)
    return arm, curve, tokenizer


@pytest.mark.parametrize("options", [{}, {"keep_weights": False}, {"refit_tokens": 96}], ids=str)
def test_a_run_that_diverges_is_marked_and_its_start_stands_in_its_place(bench: Bench, options: dict) -> None:
    arm, curve, tokenizer = diverging(bench, **options)
    assert arm.diverged == curve.recipe["diverged"]
    assert re.match(r"the (kl loss is|gradient is not) .* at step \d+: lower the learning rate \(lr=1e\+38\)", arm.diverged)
    teacher, _ = bench.model("llama-tiny")
    windows = bench.recovery_windows(tokenizer, tokens=192, seed=0)
    start = pruning.drop_layers(teacher, PLAN)
    if "refit_tokens" in options:
        start = refitting.refit(start, teacher, PLAN, windows.take(slice(0, 6)))
    assert same(arm.model.state_dict(), start.state_dict())
    scores = bench.validation_scores({"wild": arm, "start": start}, tokenizer)
    assert scores["wild"].diverged == arm.diverged and not scores["start"].diverged
    assert scores["wild"].nll_nats == scores["start"].nll_nats
    pieces = {name: records.read(bench.record_path(f"validation/{name}")) for name in scores}
    assert pieces == scores  # also what is kept of a trial, whose scores are in no record of all arms, tells that it diverged
    checkpoint = list((bench.folder / "arms" / "wild").glob("*.ckpt"))
    assert len(checkpoint) == min(1, len(curve.tokens))  # the last good one stays, where there was one
    for path in checkpoint:
        state = torch.load(path, weights_only=True)
        assert state["log"]["step"] == len(curve.tokens) - 1  # before the step after which the loss was no number
        assert all(bool(tensor.isfinite().all()) for tensor in state["student"].values())


def test_the_checkpoint_that_a_run_which_diverged_leaves_has_a_finite_loss(bench: Bench) -> None:
    teacher, tokenizer = bench.model("llama-tiny")
    windows = bench.recovery_windows(tokenizer, tokens=192, seed=0)
    honest = bench_module.distillation.optimisers.schedule

    def breaks_at_the_third_step(step: int, n_steps: int, warmup: float) -> float:
        return 1e30 if step == 2 else honest(step, n_steps, warmup)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(bench_module.distillation.optimisers, "schedule", breaks_at_the_third_step)
        arm, curve = bench.recover("wild", PLAN, teacher, windows, **RECIPE)
    assert arm.diverged and len(curve.tokens) == 3
    (path,) = (bench.folder / "arms" / "wild").glob("*.ckpt")
    state = torch.load(path, weights_only=True)
    student = pruning.drop_layers(teacher, PLAN)
    student.load_state_dict(state["student"], strict=False)
    assert state["log"]["step"] == 2
    assert math.isfinite(evaluation.score(student, windows).mean_nll_nats)
    assert state["log"]["losses"]["kl"] == list(curve.losses["kl"][:2])


@pytest.mark.parametrize("tokens", [192, 32], ids=["on the way", "in the last step"])
def test_a_run_that_breaks_where_it_is_validated_is_marked_too(bench: Bench, tokens: int) -> None:
    teacher, tokenizer = bench.model("llama-tiny")
    windows = bench.recovery_windows(tokenizer, tokens=tokens, seed=0)
    options = {**RECIPE, "lr": 1e38, "validation": windows.take(slice(0, 1)), "validate_every_tokens": 32}
    arm, curve = bench.recover("wild", PLAN, teacher, windows, **options)
    assert arm.diverged.endswith("lower the learning rate (lr=1e+38)")
    assert all(math.isfinite(nll) for nll in curve.validation_nll_nats)
    assert len(curve.validation_nll_nats) == len(curve.validation_tokens) >= 1


def test_finite_weights_whose_loss_is_no_number_are_no_result(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """No validation would have told; the scores that follow would be no numbers."""
    plain = distillation.recover

    def broken(*args: Any, **options: Any) -> Any:
        student, curve = plain(*args, **options)
        student.model.norm.weight.data[:] = 1e38  # finite, but not what it gives
        return student, curve

    monkeypatch.setattr(distillation, "recover", broken)
    teacher, tokenizer = bench.model("llama-tiny")
    arm, _ = bench.recover("wild", PLAN, teacher, bench.recovery_windows(tokenizer, tokens=192, seed=0), **RECIPE)
    assert arm.diverged == "the loss is no number after the last step: lower the learning rate (lr=0.001)"
    assert same(arm.model.state_dict(), pruning.drop_layers(teacher, PLAN).state_dict())


def test_a_result_that_could_not_be_kept_leaves_its_checkpoint(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, tokenizer = bench.model("llama-tiny")
    windows = bench.recovery_windows(tokenizer, tokens=192, seed=0)

    def full(*args: Any, **options: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(bench_module, "save_weights", full)
    with pytest.raises(OSError, match="No space left"):
        bench.recover("arm", PLAN, teacher, windows, **{**RECIPE, "checkpoint_every_seconds": 0})
    assert list((bench.folder / "arms" / "arm").glob("*.ckpt"))
    monkeypatch.undo()


def test_a_run_that_diverged_is_known_by_its_record(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    first, _, _ = diverging(bench)
    weights = {name: tensor.clone() for name, tensor in first.model.state_dict().items()}

    def no_training(*args: Any, **options: Any) -> None:
        raise AssertionError("a finished piece of work is done again")

    monkeypatch.setattr(bench_module.distillation, "recover", no_training)
    later = new_bench()
    again, curve, tokenizer = diverging(later)
    assert (again.content, again.diverged) == (first.content, first.diverged) and curve.recipe["diverged"]
    assert same(again.model.state_dict(), weights)
    assert later.validation_scores({"wild": again}, tokenizer)["wild"].diverged


@pytest.mark.parametrize("options", [{}, {"refit_tokens": 96}], ids=str)
def test_a_student_that_was_recovered_from_a_start_that_diverged_stays_marked(bench: Bench, options: dict) -> None:
    first, _, tokenizer = diverging(bench)
    second = Plan(4, (1,), "by hand")
    start = first.without(second)
    assert start.diverged == first.diverged != ""
    teacher, _ = bench.model("llama-tiny")
    windows = bench.recovery_windows(tokenizer, tokens=64, seed=0)
    staged = pruning.drop_more(PLAN, second)
    assert bench.refitted(staged, teacher, windows, n_tokens=32, start=start).diverged == first.diverged
    for each in (bench, new_bench()):  # trained, and read back
        arm, curve = each.recover("stage2", staged, teacher, windows, start=start, **RECIPE, **options)
        assert arm.diverged == f"of the run that it began from, {first.diverged}" and "diverged" not in curve.recipe
        assert each.validation_scores({"staged": arm}, tokenizer)["staged"].diverged == arm.diverged
        assert not same(arm.model.state_dict(), start.model.state_dict())
    wild, curve = bench.recover("stage2", staged, teacher, windows, start=start, **{**RECIPE, "lr": 1e38}, **options)
    assert wild.diverged == curve.recipe["diverged"]


def test_adapters_take_no_second_copy_of_the_teacher(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    recover = bench_module.distillation.recover
    shared = []

    def watched(student: Any, teacher: Any, *args: Any, **options: Any) -> Any:
        shared.append(set(student.parameters()) <= set(teacher.parameters()))
        return recover(student, teacher, *args, **options)

    monkeypatch.setattr(bench_module.distillation, "recover", watched)
    teacher, tokenizer = bench.model("llama-tiny")
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    windows = bench.recovery_windows(tokenizer, tokens=64, seed=0)
    arm, _ = bench.recover("adapters", PLAN, teacher, windows, **RECIPE, trained="lora", lora_rank=2)
    bench.recover("whole", PLAN, teacher, windows, **RECIPE)
    assert shared == [True, False]
    assert same(before, teacher.state_dict())
    weights = {name: tensor.clone() for name, tensor in arm.model.state_dict().items()}
    later = new_bench()
    again, _ = later.recover("adapters", PLAN, teacher, windows, **RECIPE, trained="lora", lora_rank=2)
    assert same(again.model.state_dict(), weights) and shared == [True, False]
