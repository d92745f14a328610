"""Pruning your own model: a folder in, a smaller one out; invalid options are refused first."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import FAMILIES, plain_logits, plan_of, skipping, tiny, tiny_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from depthprune_core import distillation, models, pruning, refitting
from depthprune_core.models import Teacher
from depthprune_study import parameters
from depthprune_study.errors import StudyError
from depthprune_study.lab import export, job, own
from depthprune_study.lab.card import CUT, SAVED, WHOLE, licence_of
from depthprune_study.lab.workspace import Workspace

IDS = torch.arange(1, 13)[None]


@pytest.fixture(autouse=True)
def few_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = {"lr": 1e-3, "batch_tokens": 256, "refit_tokens": 512}
    monkeypatch.setattr(parameters, "recipe_values", lambda: dict(recipe))


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text of forty passages, in words that the tiny tokenizer knows."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(1, 128, (1_000, 25), generator=generator).tolist()
    path = tmp_path_factory.mktemp("text") / "words.txt"
    path.write_text("".join(" ".join(f"w{i}" for i in line) + "\n" for line in drawn))
    return path


def folder(path: Path, model: Any, *, tokenizer: Any = None, **config: Any) -> str:
    """A model folder, with these fields of its config.json changed."""
    model.save_pretrained(path)
    (tokenizer or tiny_tokenizer()).save_pretrained(path)
    file = path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **config}))
    return str(path)


def prune(model: str, words: Path, out: Path, say: Any = lambda line: None, **options: Any) -> Any:
    """The steps of notebooks/your_model.ipynb; its work goes to the folder `work` beside `out`."""
    usual = {"model": model, "text": str(words), "out": str(out)}
    usual |= {"drop": "1", "recover_tokens": 0, "seq_len": 32, "score_tokens": 64}
    values = parameters.checked("your_model", usual | options)
    job = own.prepare(Workspace("your_model", values, folder=out.parent / "work"), say=say)
    plan = own.choose(job)
    student = own.cut(job, plan)
    scores = own.score(job, {WHOLE: job.lab.teacher, CUT: student})
    student = own.heal(job, plan) if job.recipe else student
    return own.pushed(job, own.save(job, student, scores))


def opened(path: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)


def refused(words: Path, tmp_path: Path, sentence: str, model: str, **options: Any) -> None:
    """Checks that it is refused in this sentence, before any training, and leaves no file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distillation, "recover", lambda *args, **rest: pytest.fail("it was trained"))
        with pytest.raises((StudyError, ValueError), match=sentence):
            prune(model, words, tmp_path / "out", **{"recover_tokens": 512, **options})
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))


# ---------------------------------------------------------------- what comes out


@pytest.mark.parametrize("name", FAMILIES)
def test_a_folder_comes_out_smaller_healed_and_plain(name: str, words: Path, tmp_path: Path):
    given = folder(tmp_path / "base", tiny(name))
    made = prune(given, words, tmp_path / "out", recover_tokens=1_024)
    model = opened(tmp_path / "out")
    assert model.config.num_hidden_layers == 4 and len(made.plan.dropped) == 1
    cut = pruning.drop_layers(tiny(name), made.plan)
    assert not torch.equal(plain_logits(model, IDS), plain_logits(cut, IDS))
    assert made.ratios[SAVED] != made.ratios[CUT]
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("w5").input_ids == [5]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "out", "work"]
    gone = made.plan.dropped[0]
    assert str(made).startswith(f"out: dropped layers {gone}, perplexity ratio")


def test_named_layers_without_healing_give_the_cut_itself(words: Path, tmp_path: Path):
    made = prune(folder(tmp_path / "base", tiny("llama")), words, tmp_path / "out", layers=[3, 1])
    with skipping(tiny("llama"), (1, 3)) as whole:
        wanted = plain_logits(whole, IDS)
    torch.testing.assert_close(plain_logits(opened(tmp_path / "out"), IDS), wanted)
    assert made.plan.dropped == (1, 3) and made.ratios[CUT] == made.ratios[SAVED]


@pytest.mark.parametrize(
    ("drop", "n"), [("2", 2), ("20%", 1), ("45%", 3), ("17K", 4), ("0.03M", 2)]
)
def test_a_goal_is_a_number_of_layers_a_share_or_a_size(drop: str, n: int):
    model = tiny("llama")
    assert job._n_dropped(Teacher("tiny", model, None, 0, ""), *job._goal(drop)) == n
    plan = plan_of(model, *range(n))
    if not drop.isdigit():
        left = pruning.drop_layers(model, plan, share=True).num_parameters()
        wanted = (1 - float(drop[:-1]) / 100) * model.num_parameters() if "%" in drop else None
        wanted = wanted or float(drop[:-1]) * {"K": 1e3, "M": 1e6}[drop[-1]]
        layer = sum(p.numel() for p in model.model.layers[0].parameters())
        assert abs(left - wanted) <= layer / 2


# ---------------------------------------------------------------- going on


def test_an_interrupted_run_goes_on_and_ends_the_same(words: Path, tmp_path: Path, monkeypatch):
    given = folder(tmp_path / "base", tiny("gpt2"))
    whole, again = tmp_path / "whole" / "out", tmp_path / "again" / "out"
    prune(given, words, whole, recover_tokens=1_024)
    honest, steps = distillation.recover, []

    def interrupted(*args: Any, **options: Any) -> Any:
        def stop(done: int, total: int, unit: str) -> None:
            steps.append(done)
            if len(steps) == 3:
                raise KeyboardInterrupt

        return honest(*args, **{**options, "progress": stop, "checkpoint_every_seconds": 0})

    monkeypatch.setattr(distillation, "recover", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prune(given, words, again, recover_tokens=1_024)
    assert list((again.parent / "work").rglob("*.ckpt")) and not again.exists()
    monkeypatch.setattr(refitting, "refit", lambda *args, **rest: pytest.fail("refitted again"))
    prune(given, words, again, recover_tokens=1_024)
    assert steps[3] > steps[0]  # it did not start from the beginning
    ours, wanted = (load_file(path / "model.safetensors") for path in (again, whole))
    assert all(torch.equal(ours[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("name", FAMILIES)
def test_adapters_share_the_whole_models_weights_and_leave_a_plain_folder(
    name, words, tmp_path, monkeypatch
):
    seen = []
    honest = distillation.recover

    def watched(student: Any, teacher: Any, *args: Any, **options: Any) -> Any:
        shared = {id(p) for p in student.parameters()} & {id(p) for p in teacher.parameters()}
        seen.append(len(shared))
        healed = honest(student, teacher, *args, **options)
        assert torch.equal(plain_logits(teacher, IDS), plain_logits(tiny(name), IDS))
        return healed

    monkeypatch.setattr(distillation, "recover", watched)
    given = folder(tmp_path / "base", tiny(name))
    prune(given, words, tmp_path / "out", recover_tokens=512, trained="lora")
    assert seen[0] > 5
    assert not any("lora" in key for key in load_file(tmp_path / "out" / "model.safetensors"))
    assert torch.equal(plain_logits(opened(Path(given)), IDS), plain_logits(tiny(name), IDS))


# ---------------------------------------------------------------- faults from the wild


def test_each_tensor_keeps_its_own_dtype_whatever_the_config_says(words: Path, tmp_path: Path):
    given = Path(folder(tmp_path / "base", tiny("llama").to(torch.bfloat16)))
    file = given / "config.json"
    config = json.loads(file.read_text())
    del config["dtype"]
    file.write_text(json.dumps(config))
    weights = load_file(given / "model.safetensors")
    weights |= {key: w.float() for key, w in weights.items() if "norm" in key}
    save_file(weights, given / "model.safetensors", metadata={"format": "pt"})
    made = prune(str(given), words, tmp_path / "out", recover_tokens=512)
    stored = load_file(tmp_path / "out" / "model.safetensors")
    dtypes = {("norm" in key, tensor.dtype) for key, tensor in stored.items()}
    assert dtypes == {(True, torch.float32), (False, torch.bfloat16)}
    assert made.ratios[SAVED].point > 0


def test_a_saved_model_does_not_refer_to_remote_code(words: Path, tmp_path: Path):
    lines: list[str] = []
    phi = tiny("phi3", num_key_value_heads=2, pad_token_id=2)
    given = folder(tmp_path / "base", phi, auto_map={"AutoConfig": "configuration_phi3.Phi3Config"})
    prune(given, words, tmp_path / "out", say=lines.append)
    assert "auto_map" not in json.loads((tmp_path / "out" / "config.json").read_text())
    AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=True)
    assert any("auto_map" in line for line in lines)


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"drop": ""}, "drop='' is not valid: give a number of layers"),
        ({"drop": "120%"}, "drop=120% is out of reach"),
        ({"drop": "5"}, "drop=5 is out of reach: .* in 5 layers; at most 4 can be dropped"),
        ({"drop": "1K"}, "drop=1K is out of reach"),
        ({"layers": [7]}, r"the plan drops layer 7, but the model has layers 0\.\.4"),
        ({"rule": "best"}, "rule must be one of least_sensitive, .*, not 'best'"),
        ({"trained": "some"}, "trained must be one of recipe, all, lora, not 'some'"),
        ({"device": "tpu"}, "device must be one of auto, cpu, cuda, not 'tpu'"),
        ({"seed": 2**64}, "seed must be 0 to 4,294,967,295, not 18446744073709551616"),
        ({"tokens": 9}, "tokens is not a parameter; the parameters are study, model, drop"),
        ({"recover_tokens": 100}, "tokens=100 is not possible: one step takes 256"),
        ({"push_to": "a/b/c"}, "push_to='a/b/c' must be NAME/MODEL"),
    ],
    ids=str,
)
def test_impossible_requests_are_refused_in_a_sentence(
    options, sentence, words, tmp_path, tiny_folder
):
    refused(words, tmp_path, sentence, tiny_folder, **options)


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return folder(tmp_path_factory.mktemp("models") / "base", tiny("llama"))


def test_a_model_of_one_layer_can_lose_none(words: Path, tmp_path: Path):
    given = folder(tmp_path / "base", tiny("llama", num_hidden_layers=1))
    refused(words, tmp_path, "in 1 layers; at most 0 can be dropped", given)


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        ("nobody/nothing", "is not a local folder, and could not fetch model nobody/nothing"),
        ("gpt5", "model='gpt5' is not known: name gpt2"),
    ],
)
def test_a_model_that_is_not_found_is_refused(
    model: str, sentence: str, words: Path, tmp_path: Path
):
    refused(words, tmp_path, sentence, model)


def test_a_model_of_the_hub_is_named_by_id_and_revision(tiny_folder: str, monkeypatch):
    monkeypatch.setattr(models, "fetch_hub", lambda model: Path(tiny_folder))
    found, place = job._find("someone/model")
    assert (found.hub, found.revision, place) == ("someone/model", "base", tiny_folder)


def test_the_licence_is_that_of_the_base_models_card(tmp_path: Path):
    assert licence_of(job._find("gpt2-mini")[0]) != ""
    model = folder(tmp_path / "base", tiny("llama"))
    for head, wanted in (("license: mit", "mit"), ("license: [", ""), ("- a list", "")):
        (tmp_path / "base" / "README.md").write_text(f"---\n{head}\n---\n# model\n")
        assert licence_of(job._find(model)[0]) == wanted


def test_a_nan_loss_writes_no_folder(words: Path, tmp_path: Path, monkeypatch):
    honest = export.cast

    def spoilt(model: Any, dtypes: Any) -> Any:
        next(model.parameters()).data.fill_(float("nan"))
        return honest(model, dtypes)

    monkeypatch.setattr(export, "cast", spoilt)
    with pytest.raises(FloatingPointError, match=r"the loss of the model \(saved\) .* is nan"):
        prune(folder(tmp_path / "base", tiny("llama")), words, tmp_path / "out")
    assert not (tmp_path / "out").exists()
