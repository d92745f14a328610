"""A model of one's own: any decoder in, a folder out that plain transformers opens; what cannot be done is refused first."""

from __future__ import annotations

import copy
import itertools
import math
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given
from hypothesis import settings as given_settings
from hypothesis import strategies as st
from tiny import ARCHITECTURES, FAMILIES, plan_of, tiny, tiny_tokenizer, tiny_windows
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM, AutoTokenizer
from typer.testing import CliRunner

from depthprune_core import distillation, evaluation, models, pruning, refitting
from depthprune_core.assets import sha256_of
from depthprune_core.intervals import Interval
from depthprune_core.records import Plan
from depthprune_study import cli, export, own, passages, places, run
from depthprune_study.settings import StudyError

OPTIONS = {"seq_len": 32, "batch_tokens": 64, "say": lambda line: None}


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text of forty passages, in words that the tiny tokenizer knows."""
    generator = torch.Generator().manual_seed(0)
    lines = [
        " ".join(f"w{i}" for i in torch.randint(1, 128, (25,), generator=generator).tolist()) + "\n" for _ in range(40 * 25)
    ]
    path = tmp_path_factory.mktemp("text") / "words.txt"
    path.write_text("".join(lines), encoding="utf-8")
    return path


def saved(folder: Path, model: Any, *, dtype: torch.dtype = torch.float32, tokenizer: Any = None) -> Path:
    model.to(dtype).save_pretrained(folder)
    (tokenizer or tiny_tokenizer()).save_pretrained(folder)
    return folder


def opened(folder: Path) -> Any:
    model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert [info[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys")] == [set()] * 3
    return model


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_any_decoder_comes_out_smaller_and_opens_plainly(
    name: str, words: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In bytes: transformers knows some as another class.
    tokenizer = AutoTokenizer.from_pretrained(models.BUNDLED / "gpt2-mini")
    base = saved(tmp_path / "base", tiny(name, vocab_size=len(tokenizer)), tokenizer=tokenizer)
    starts, honest = [], distillation.recover

    def watched(student: Any, *args: Any, **options: Any) -> Any:
        starts.append(copy.deepcopy(student))
        return honest(student, *args, **options)

    monkeypatch.setattr(distillation, "recover", watched)
    made = own.prune(str(base), text_name=str(words), out=tmp_path / "out", drop=1, recover_tokens=256, **OPTIONS)
    model = opened(tmp_path / "out")
    assert len(made.plan.dropped) == 1
    monkeypatch.chdir(tmp_path)
    shown: dict[str, Any] = {}
    exec((tmp_path / "out" / "README.md").read_text(encoding="utf-8").split("```python")[1].split("```")[0], shown)
    assert type(shown["model"]) is type(model) and shown["tokenizer"]("w5") == tokenizer("w5")
    assert AutoConfig.from_pretrained(tmp_path / "out").get_text_config().num_hidden_layers == len(made.plan.kept)
    ids = torch.arange(1, 13)[None]
    assert torch.isfinite(model(ids).logits).all()
    assert not torch.equal(model(ids).logits, starts[0](ids).logits)  # beyond its start, which may be refitted
    assert AutoTokenizer.from_pretrained(tmp_path / "out").decode(tokenizer("w5 and w9").input_ids) == "w5 and w9"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "out"]


def test_without_recovery_it_is_the_cut_itself(words: Path, tmp_path: Path) -> None:
    base = saved(tmp_path / "base", tiny("llama"))
    made = own.prune(str(base), text_name=str(words), out=tmp_path / "out", drop=0, layers=(3, 1), **OPTIONS)
    ids = torch.arange(1, 13)[None]
    wanted = pruning.drop_layers(tiny("llama"), plan_of(tiny("llama"), 1, 3))
    assert torch.equal(opened(tmp_path / "out")(ids).logits, wanted(ids).logits)
    assert made.ratios["before recovery"] == made.ratios["as saved"]


def test_weights_are_saved_in_the_bases_precision_and_measured_so(words: Path, tmp_path: Path) -> None:
    base = saved(tmp_path / "base", tiny("llama"), dtype=torch.bfloat16)
    made = own.prune(str(base), text_name=str(words), out=tmp_path / "out", drop=1, recover_tokens=256, **OPTIONS)
    stored = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert stored.dtype == torch.bfloat16
    parts = passages.split(str(words))
    test = own.text.windows(parts["test"], tiny_tokenizer(), seq_len=32, tokens_per_document=1_024)
    whole, small = (own.evaluation.score(opened(folder), test) for folder in (base, tmp_path / "out"))
    assert made.ratios["as saved"] == own.intervals.ppl_ratio(small, whole)
    page = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert f"| whole model | {whole.ppl:.2f} [" in page and f"| as saved | {small.ppl:.2f} [" in page


def test_a_run_that_was_cut_goes_on_and_ends_the_same(words: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = saved(tmp_path / "base", tiny("gpt2"))

    def run(out: str) -> Any:
        own.prune(str(base), text_name=str(words), out=tmp_path / out, drop=1, recover_tokens=1_024, **OPTIONS)
        return opened(tmp_path / out).state_dict()

    undisturbed = run("whole")
    honest, steps = distillation.recover, []

    def cut_short(*args: Any, **options: Any) -> Any:
        def stop(done: int, total: int, unit: str) -> None:
            steps.append(done)
            if len(steps) == 8:
                raise KeyboardInterrupt

        return honest(*args, **{**options, "progress": stop, "checkpoint_every_seconds": 0})

    monkeypatch.setattr(distillation, "recover", cut_short)
    with pytest.raises(KeyboardInterrupt):
        run("again")
    # Another machine, or another number of threads, would round it otherwise.
    monkeypatch.setattr(refitting, "refit", lambda *args: pytest.fail("its start was fitted again"))
    assert list((tmp_path / ".again.work").glob("*.ckpt")) and not (tmp_path / "again").exists()
    resumed = run("again")
    assert steps[8] > steps[0]  # it did not begin anew
    assert all(torch.equal(resumed[name], undisturbed[name]) for name in undisturbed)
    assert not (tmp_path / ".again.work").exists()


@pytest.mark.parametrize("damaged", [False, True])
def test_a_fitted_start_is_read_back_unless_it_is_damaged(damaged: bool, tmp_path: Path) -> None:
    teacher, plan = tiny("llama"), plan_of(tiny("llama"), 2)
    said: list[str] = []

    def fitted() -> dict[str, torch.Tensor]:
        student = pruning.drop_layers(teacher, plan)
        own._refit(student, teacher, plan, tiny_windows(), tmp_path, write=True, say=said.append)
        return student.state_dict()

    first = fitted()
    (maps,) = tmp_path.glob("*.safetensors")
    if damaged:
        content = bytearray(maps.read_bytes())
        content[-3] ^= 1  # within a number
        maps.write_bytes(content)
    again = fitted()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert said == ([f"{maps} is damaged: fitted anew"] if damaged else [])
    assert sha256_of(maps) == maps.with_suffix(".sha256").read_text()


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("trained", ["lora", "after_first_cut"])
def test_what_saves_memory_reaches_the_recovery(
    trained: str, name: str, words: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = saved(tmp_path / "base", tiny(name))
    seen: dict[str, Any] = {}
    honest = distillation.recover

    def watched(student: Any, teacher: Any, *args: Any, **options: Any) -> Any:
        seen.update(options, shared=set(student.parameters()) & set(teacher.parameters()))
        return honest(student, teacher, *args, **options)

    monkeypatch.setattr(distillation, "recover", watched)
    savers = {"trained": trained, "optimiser": "adamw_8bit", "checkpoint_activations": True}
    made = {"text_name": str(words), "drop": 0, "layers": (2,), "recover_tokens": 512, "lr": 0.01, **OPTIONS}
    own.prune(str(base), out=tmp_path / "out", **made, **savers)
    assert {option: seen[option] for option in savers} == savers
    assert bool(seen["shared"]) == (trained == "lora")
    ours, theirs = opened(tmp_path / "out").state_dict(), opened(base).state_dict()
    layer = "transformer.h" if name == "gpt2" else "model.layers"
    first = [key for key in ours if key.startswith(f"{layer}.0.") and ours[key].ndim == 2]
    last = [(key, key.replace(f"{layer}.3.", f"{layer}.4.")) for key in ours if key.startswith(f"{layer}.3.")]
    assert all(torch.equal(ours[key], theirs[key]) for key in first) == (trained == "after_first_cut")
    assert any(not torch.equal(ours[key], theirs[old]) for key, old in last)
    recipe = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "AdamW with moments in 8 bits at 0.01" in recipe and own.TRAINED[trained] in recipe


def test_held_out_passages_are_never_trained_on(words: Path) -> None:
    parts = passages.split(str(words))
    held_out = [passage.text for part in ("test", "calibration") for passage in parts[part]]
    assert len(held_out) == len(set(held_out)) >= 8
    assert all(len(passage) >= passages.PASSAGE_CHARS - 1 for passage in held_out)
    lines = {line for passage in held_out for line in passage.splitlines()}
    assert not lines & {line for document in parts["recovery"] for line in document.text.splitlines()}


@pytest.mark.parametrize("kind", ["one line", "short documents"])
def test_a_text_of_one_line_or_of_short_documents_gives_passages_too(words: Path, tmp_path: Path, kind: str) -> None:
    told = words.read_text(encoding="utf-8").split()
    if kind == "one line":
        name = tmp_path / "line.txt"
        name.write_text(" ".join(told), encoding="utf-8")
    else:  # each of them shorter than a passage
        name = tmp_path / "stories"
        name.mkdir()
        for i, first in enumerate(range(0, len(told), 100)):
            (name / f"{i:04d}.txt").write_text(" ".join(told[first : first + 100]), encoding="utf-8")
    parts = passages.split(str(name))
    assert len(parts["test"]) >= 2 and len(parts["calibration"]) >= 2
    kept = [word for documents in parts.values() for document in documents for word in document.text.split()]
    assert len(kept) > 0.9 * len(told) and set(kept) == set(told)  # no word is cut in two


@pytest.mark.parametrize("n_words", [60, 100, 190])
def test_of_short_documents_none_is_cut_and_hardly_one_is_lost(words: Path, tmp_path: Path, n_words: int) -> None:
    told = words.read_text(encoding="utf-8").split()
    (tmp_path / "stories").mkdir()
    stories = [" ".join(told[first : first + n_words]) for first in range(0, len(told), n_words)]
    for i, story in enumerate(stories):
        (tmp_path / "stories" / f"{i:04d}.txt").write_text(story, encoding="utf-8")
    parts = passages.split(str(tmp_path / "stories"))
    found = {part: [s for document in parts[part] for s in document.text.strip().split("\n\n")] for part in parts}
    assert sum(map(len, found.values())) > 0.95 * len(stories)
    assert all(set(of) <= set(stories) for of in found.values())
    assert not set(found["test"]) & set(found["recovery"])
    pool = own.text.windows(parts["recovery"], tiny_tokenizer(), seq_len=512, whole=True)
    assert pool.inputs.numel() > 0.85 * sum(len(document.text.split()) for document in parts["recovery"])


def test_hardly_a_token_that_is_not_held_out_is_lost_to_the_ends_of_windows(words: Path) -> None:
    parts = passages.split(str(words))
    n_tokens = sum(len(document.text.split()) for document in parts["recovery"])
    pool = own.text.windows(parts["recovery"], tiny_tokenizer(), seq_len=512, whole=True)
    assert pool.inputs.numel() > 0.85 * n_tokens
    assert n_tokens > 0.75 * len(words.read_text(encoding="utf-8").split())


def test_a_cut_run_of_another_model_is_not_gone_on_from(words: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bases = [saved(tmp_path / f"base{seed}", tiny("gpt2", seed=seed)) for seed in (0, 1)]
    run = {"text_name": str(words), "drop": 0, "layers": (1,), "recover_tokens": 1_024, **OPTIONS}
    own.prune(str(bases[1]), out=tmp_path / "alone", **run)
    honest = distillation.recover

    def cut_short(*args: Any, **options: Any) -> Any:
        def stop(done: int, total: int, unit: str) -> None:
            if done > 256:
                raise KeyboardInterrupt

        return honest(*args, **{**options, "progress": stop, "checkpoint_every_seconds": 0})

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(distillation, "recover", cut_short)
        own.prune(str(bases[0]), out=tmp_path / "out", **run)
    assert list((tmp_path / ".out.work").iterdir())
    own.prune(str(bases[1]), out=tmp_path / "out", **run)
    alone, after = (opened(tmp_path / name).state_dict() for name in ("alone", "out"))
    assert all(torch.equal(alone[name], after[name]) for name in alone)


def test_a_second_command_for_the_same_folder_is_refused(words: Path, tmp_path: Path) -> None:
    base, work = saved(tmp_path / "base", tiny("gpt2")), tmp_path / ".out.work"
    options = ["--text", words, "--out", tmp_path / "out", "--layers", 1, "--recover-tokens"]
    for tokens in (0, 2_048):
        with run.alone(work):
            (work / "a.ckpt").write_text("the first one's")
            code, said = prune(base, *options, tokens)
            assert code == 1 and f"{tmp_path / 'out'} is being written by another process: wait for it" in said, said
            assert (work / "a.ckpt").exists() and not (tmp_path / "out").exists()
    (work / "a.ckpt").unlink()
    assert prune("nothing", *options, 0)[0] == 1
    assert not work.exists()  # nothing was in it that could be gone on from
    assert prune(base, *options, 2_048)[0] == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "out"]


def test_the_card_of_a_local_base_names_no_path_and_no_hub_model(words: Path, tmp_path: Path) -> None:
    base = saved(tmp_path / "base", tiny("llama"))
    made = own.prune(str(base), text_name=str(words), out=tmp_path / "out", drop=1, **OPTIONS)
    page = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "base without layers" in page
    assert str(tmp_path) not in page and "base_model" not in page
    assert "license" not in yaml.safe_load(page.split("---")[1])
    whole, cut = (float(re.search(rf"\| {when} \| ([\d.]+) \[", page)[1]) for when in ("whole model", "before recovery"))
    assert cut / whole == pytest.approx(made.ratios["before recovery"].point, rel=1e-2)


def test_mergekit_finds_a_local_base_by_the_path_as_it_was_given(
    words: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path / "base", tiny("llama"))
    monkeypatch.chdir(tmp_path)
    own.prune("./base", text_name=str(words), out=tmp_path / "out", drop=1, **OPTIONS)
    written = (tmp_path / "out" / "mergekit.yaml").read_text(encoding="utf-8")
    assert yaml.safe_load(written)["slices"][0]["sources"][0]["model"] == "./base"
    assert written.startswith("# model: the folder as it was named") and str(tmp_path) not in written


def test_the_bundled_model_has_the_licence_of_its_card_and_the_folder_of_this_repository() -> None:
    assert (own._license("gpt2-mini", ""), own._source("gpt2-mini")) == ("cc-by-sa-4.0", "models/gpt2-mini")
    assert own._source("llama-tiny") == own._license("llama-tiny", "") == ""


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize("head", ["date: 2024-02-30", "x: !!bool maybe", "x: [", "x: !!int 0b", "- a list"])
def test_a_card_of_the_base_that_cannot_be_read_names_no_licence(head: str, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(f"---\nlicense: mit\n{head}\n---\n")
    assert own._license(str(tmp_path), str(tmp_path)) == ""


def test_a_card_on_the_hub_that_cannot_be_reached_names_no_licence(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy that refuses has an error of its own, which is neither OSError nor ValueError."""

    class ProxyError(Exception):
        pass

    def refuse(*args: Any, **options: Any) -> str:
        raise ProxyError("403 Forbidden")

    monkeypatch.setattr(own, "hf_hub_download", refuse)
    assert own._license("gpt2", "") == ""


def refused(base: object, tmp_path: Path, words: Path, **options: Any) -> str:
    with pytest.raises((StudyError, ValueError)) as error:
        own.prune(str(base), **{"text_name": str(words), "out": tmp_path / "out", "drop": 1, **OPTIONS, **options})
    assert not (tmp_path / "out").exists()
    return str(error.value)


def test_an_encoder_decoder_is_refused(words: Path, tmp_path: Path) -> None:
    shape = {"d_model": 16, "d_kv": 4, "d_ff": 16, "num_layers": 2, "num_heads": 4, "vocab_size": 128}
    model = AutoModelForSeq2SeqLM.from_config(AutoConfig.for_model("t5", **shape))
    assert "holds a t5: only causal language models" in refused(saved(tmp_path / "base", model), tmp_path, words)


@pytest.mark.parametrize("kind", [AutoModelForMaskedLM, AutoModelForCausalLM])
def test_an_encoder_is_refused(kind: type, words: Path, tmp_path: Path) -> None:
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 128}
    model = kind.from_config(AutoConfig.for_model("bert", **shape))
    refused(saved(tmp_path / "base", model), tmp_path, words)


def test_a_state_space_model_is_refused(words: Path, tmp_path: Path) -> None:
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "state_size": 4, "vocab_size": 128}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("mamba", **shape))
    assert "only transformer decoders can be pruned" in refused(saved(tmp_path / "base", model), tmp_path, words)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"drop": 5}, r"drop=5 is not possible: .* has 5 layers, 1..4 can go"),
        ({"drop": 0, "layers": (7,)}, "the plan drops layer 7, but the model has layers 0..4"),
        ({"rule": "best"}, "rule='best' is not known: name one of least_sensitive"),
        ({"device": "gpu"}, "device='gpu' is not known: name one of auto, cpu, cuda"),
        ({"trained": "some"}, "trained='some' is not known: name one of all, after_first_cut, lora"),
        ({"optimiser": "sgd"}, "optimiser='sgd' is not known: name one of adamw, adamw_8bit, muon"),
        ({"lr": 0.0}, "lr=0 is not possible: a number above 0 is wanted"),
        ({"lr": -1.0}, "lr=-1 is not possible"),
        ({"lr": math.nan}, "lr=nan is not possible"),
        ({"drop": -1}, "drop=-1 is not possible: a whole number from 1 on is wanted"),
        ({"seed": -1}, "seed=-1 is not possible: a whole number from 0 on is wanted"),
        ({"seed": 2**64}, "seed=18446744073709551616 is not possible"),
        ({"seq_len": 0}, "seq_len=0 is not possible: a whole number from 1 on is wanted"),
        ({"recover_tokens": -64}, "recover_tokens=-64 is less than one step"),
        ({"recover_tokens": 10}, "recover_tokens=10 is less than one step of 64 tokens"),
        ({"recover_tokens": int(1e300)}, r"recover_tokens=1e\+300 is not possible: they lie in memory, 10,000,000,000 at most"),
        ({"text_name": "nowhere.txt"}, "text 'nowhere.txt' is not known"),
    ],
)
def test_what_cannot_be_done_is_refused(options: dict[str, Any], sentence: str, words: Path, tmp_path: Path) -> None:
    base = saved(tmp_path / "base", tiny("llama"))
    said = refused(base, tmp_path, words, **options)
    assert re.search(sentence, said), said


@pytest.mark.parametrize(
    "options", [{"lr": 0.0}, {"device": "gpu"}, {"trained": "some"}, {"optimiser": "sgd"}, {"seed": -1}, {"recover_tokens": 10}]
)
def test_a_bad_option_is_refused_before_any_work(
    options: dict[str, Any], words: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passages, "split", lambda name: pytest.fail("the text was read"))
    monkeypatch.setattr(models, "load", lambda *arguments, **rest: pytest.fail("the model was loaded"))
    assert f"{next(iter(options))}=" in refused("gpt2-mini", tmp_path, words, **options)


def test_a_model_of_the_hub_is_taken_by_its_id(words: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository, revision = tmp_path / "hub" / "models--org--base", "0123456789abcdef0123456789abcdef01234567"
    snapshot = saved(repository / "snapshots" / revision, tiny("llama"))  # as the hub's client lays it out
    (snapshot / "README.md").write_text("---\nlicense: mit\n---\n", encoding="utf-8")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(revision, encoding="utf-8")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    own.prune("org/base", text_name=str(words), out=tmp_path / "out", drop=0, layers=(1,), **OPTIONS)
    assert opened(tmp_path / "out").config.num_hidden_layers == tiny("llama").config.num_hidden_layers - 1
    card = yaml.safe_load((tmp_path / "out" / "README.md").read_text(encoding="utf-8").split("---")[1])
    assert (card["base_model"], card["license"]) == ("org/base", "mit")
    assert f"org/base@{revision}" in (tmp_path / "out" / "mergekit.yaml").read_text(encoding="utf-8")
    weights = snapshot / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5_000])
    shutil.rmtree(tmp_path / "out")
    told = refused("org/base", tmp_path, words, layers=(1,), drop=0)
    assert told.startswith(f"model org/base: weights {weights} are damaged (")
    assert told.endswith(f": with the network at hand, remove {repository} and run again, it is then fetched anew")


def spoil(model: Any) -> Any:
    """Of one token, whose loss is then no number."""
    model.model.embed_tokens.weight.data[50] = math.nan
    return model


@pytest.mark.parametrize("options", [(), ("--recover-tokens", 2_048)], ids=["cut alone", "recovered"])
@pytest.mark.parametrize(
    ("broken", "sentence"),
    [
        ("load", "the whole model's loss on the held-out passages is nan: nothing was written"),
        ("drop_layers", "the student's loss on the held-out passages, before recovery, is nan: nothing was written"),
        (
            "_rounded",
            "the loss of the student as it would be saved, in torch.float32, on the held-out passages, is nan: nothing",
        ),
    ],
)
def test_a_student_whose_loss_is_no_number_is_not_written(
    broken: str, sentence: str, options: tuple, words: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = saved(tmp_path / "base", tiny("llama", tie_word_embeddings=False))
    where = {"load": models, "drop_layers": pruning, "_rounded": own}[broken]
    honest = getattr(where, broken)

    def broken_one(*arguments: Any, **rest: Any) -> Any:
        made = honest(*arguments, **rest)
        spoil(made[0] if broken == "load" else made)
        return made

    monkeypatch.setattr(where, broken, broken_one)
    code, said = prune(base, "--text", words, "--out", tmp_path / "out", "--layers", 1, *options)
    assert code == 1 and sentence in said, said
    assert "Traceback" not in said and not (tmp_path / "out").exists()


def test_a_short_text_is_refused(tmp_path: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_text("w1 w2\n" * 1_000, encoding="utf-8")
    base = saved(tmp_path / "base", tiny("llama"))
    assert "is too short: it gives 2 passages" in refused(base, tmp_path, short)


def test_a_model_that_is_nowhere_is_refused(words: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "is not known: name one of gpt2" in refused("nothing", tmp_path, words)
    assert "could not be fetched from the model hub" in refused("nobody/nothing-at-all", tmp_path, words)
    (tmp_path / "empty").mkdir()
    assert "holds no .safetensors file" in refused(tmp_path / "empty", tmp_path, words)


@pytest.mark.parametrize("kind", ["a link", "a link to nothing", "a disk", ".", ".."])
def test_a_name_that_no_finished_folder_can_take_is_refused_before_any_work(words: Path, tmp_path: Path, kind: str) -> None:
    (tmp_path / "empty").mkdir()
    out = tmp_path / "out" if kind.startswith("a") else Path(kind)
    if "link" in kind:
        out.symlink_to(tmp_path / ("empty" if kind == "a link" else "nothing"))
    if kind == "a disk":
        out.mkdir()
        if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", out], capture_output=True).returncode:
            pytest.skip("needs the right to mount a disk")
    try:
        with pytest.raises(StudyError, match=r"name a folder (inside it|that is not there yet)$"):
            own.prune("nothing", text_name=str(words), out=out, drop=1, **OPTIONS)
    finally:
        if kind == "a disk":
            subprocess.run(["umount", "-l", out], check=True)


def test_nothing_is_overwritten(words: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(StudyError, match="is there already"):
        own.prune("nothing", text_name=str(words), out=tmp_path / "out", drop=1, **OPTIONS)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


# ---------------------------------------------------------------- the folder


def card(**changes: Any) -> export.Card:
    ratios = {"before recovery": Interval(1.25, 1.2, 1.3, 30, 28.0), "as saved": Interval(1.05, 1.04, 1.06, 30, 28.0)}
    known = {
        "base": "org/base",
        "hub": "org/base",
        "plan": Plan(6, (2, 4), "named"),
        "n_parameters": 1_234_567,
        "tokens": 1_024,
        "text": "a text",
    }
    return export.Card(**{**known, "recipe": "KL", "ratios": ratios, "license": "mit", **changes})


def test_the_model_card_tells_base_cut_recovery_and_figures() -> None:
    page = export.model_card(card(), "small")
    head = yaml.safe_load(page.split("---")[1])
    assert head["base_model"] == "org/base" and head["license"] == "mit"
    for told in (
        "without layers 2, 4 (counted from 0) of its 6",
        "Layers kept: 0, 1, 3, 5.",
        "1,234,567",
        "1,024 tokens of a text",
        "1.050 [1.040, 1.060] | 30",
    ):
        assert told in page
    assert "It was not trained after the cut." in export.model_card(card(tokens=0), "small")
    assert "license" not in yaml.safe_load(export.model_card(card(license=""), "small").split("---")[1])


@pytest.mark.parametrize("dropped", [(0,), (5,), (2, 4), (0, 1, 5), (1, 3, 5)])
def test_the_spans_for_mergekit_are_the_kept_layers(dropped: tuple[int, ...]) -> None:
    plan = Plan(6, dropped, "named")
    config = yaml.safe_load(export.mergekit(card(plan=plan), torch.bfloat16))
    ranges = [piece["sources"][0]["layer_range"] for piece in config["slices"]]
    assert [layer for first, end in ranges for layer in range(first, end)] == list(plan.kept)
    assert all(end < following for (_, end), (following, _) in itertools.pairwise(ranges))  # no span could be longer
    assert (config["merge_method"], config["dtype"]) == ("passthrough", "bfloat16")


@pytest.mark.parametrize(
    ("changes", "model", "comment"),
    [
        ({"hub": "org/base", "revision": "abc"}, "org/base@abc", ""),
        ({"hub": "org/base"}, "org/base", ""),
        ({"hub": "", "source": "../mine"}, "../mine", "change it to where that lies"),
        ({"hub": "", "base": "smollm2-135m"}, "smollm2-135m", "smollm2-135m has no folder of its own"),
    ],
)
def test_mergekit_is_told_where_the_base_is_or_what_to_change(changes: dict[str, Any], model: str, comment: str) -> None:
    written = export.mergekit(card(**changes), torch.float32)
    assert {piece["sources"][0]["model"] for piece in yaml.safe_load(written)["slices"]} == {model}
    assert comment in written and written.startswith("#") == bool(comment)


def save_this_instead(other: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = type(other).save_pretrained
    monkeypatch.setattr(type(other), "save_pretrained", lambda self, folder, **options: honest(other, folder, **options))


def test_a_folder_that_does_not_open_as_what_it_is_is_not_left_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("llama")
    save_this_instead(tiny("llama", seed=1), monkeypatch)
    with pytest.raises(StudyError, match="does not open as what it is"):
        export.folder(tmp_path / "out", model, tiny_tokenizer(), card(), dtype=torch.float32)
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- the command


def prune(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(cli.app, ["prune", *map(str, arguments)])
    return result.exit_code, result.output + result.stderr


ANY = st.one_of(
    st.text(st.characters(exclude_characters="\0"), max_size=12),
    st.sampled_from(
        ["-1", "0", "1e300", "nan", "inf", "-0.0", "1e-400", "9" * 40, "14,17", "1,,2", "1_000", "é", "東京", "--", "-", " "]
    ),
    st.floats().map(str),
    st.integers().map(str),
)
OPTIONS_OF_PRUNE = (
    "--drop",
    "--layers",
    "--rule",
    "--recover-tokens",
    "--lr",
    "--trained",
    "--optimiser",
    "--seed",
    "--device",
)


@given_settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from(OPTIONS_OF_PRUNE), ANY), max_size=4))
def test_whatever_the_command_is_given_it_refuses_readably_before_any_work(
    tmp_path: Path, given_options: list[tuple[str, str]]
) -> None:
    arguments = [word for option in given_options for word in option]
    result = CliRunner().invoke(
        cli.app, ["prune", "gpt2-mini", "--text", str(tmp_path / "nowhere"), "--out", str(tmp_path / "out"), *arguments]
    )
    assert result.exit_code in (1, 2) and isinstance(result.exception, SystemExit)
    assert "Traceback" not in result.output + result.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_command_writes_a_folder(words: Path, tmp_path: Path) -> None:
    base = saved(tmp_path / "base", tiny("llama"))
    code, said = prune(base, "--text", words, "--out", tmp_path / "out", "--layers", "1,3", "--recover-tokens", "4.096e3")
    assert code == 0, said
    assert "layers 1, 3 go (named)" in said and "opened and checked" in said
    assert "4,096 tokens" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert math.isfinite(opened(tmp_path / "out")(torch.arange(1, 9)[None]).logits.sum().item())


def test_the_command_fails_where_what_it_wrote_is_wrong(words: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = saved(tmp_path / "base", tiny("llama"))
    other = tiny("llama", seed=1)
    save_this_instead(pruning.drop_layers(other, plan_of(other, 1, 3)), monkeypatch)
    code, said = prune(base, "--text", words, "--out", tmp_path / "out", "--layers", "1,3")
    assert code == 1
    assert "does not open as what it is" in said and "Traceback" not in said
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


@pytest.mark.slow
def test_a_real_model_by_its_name_comes_out_smaller_and_better_than_its_cut(tmp_path: Path) -> None:
    options = ["--text", "wikipedia-excerpt", "--drop", "2", "--recover-tokens", "20480", "--device", "cpu"]
    code, said = prune("gpt2-mini", *options, "--out", tmp_path / "out")
    assert code == 0, said
    articles = own.text.split_named("wikipedia-excerpt", cache=places.cache(), assets=places.assets())["test"]
    whole, tokenizer = models.load("gpt2-mini", cache=places.cache())
    windows = own.text.windows(articles, tokenizer, seq_len=256, tokens_per_document=512)
    found = re.search(r"layers (\d+), (\d+) go", said)
    assert found is not None
    plan = plan_of(whole, *map(int, found.groups()))
    recovered, cut = opened(tmp_path / "out"), pruning.drop_layers(whole, plan)
    reached, before, at_best = (evaluation.score(model, windows).mean_nll_nats for model in (recovered, cut, whole))
    assert at_best < reached < before


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "how many layers go, or which: give one of --drop and --layers"),
        (["--drop", "1", "--layers", "1"], "give one of --drop and --layers"),
        (["--layers", "1;2"], "--layers '1;2': layer numbers with commas between them are wanted"),
        (["--drop", "1", "--recover-tokens", "inf"], "--recover-tokens inf: a whole number from 0 on is wanted"),
        (["--drop", "1", "--recover-tokens", "1.5"], "--recover-tokens 1.5: a whole number from 0 on is wanted"),
        (["--drop", "1", "--device", "gpu"], "device='gpu' is not known: name one of auto, cpu, cuda"),
        (["--drop", "1", "--trained", "some"], "trained='some' is not known"),
        (["--drop", "1", "--optimiser", "sgd"], "optimiser='sgd' is not known"),
        (["--drop", "1", "--checkpoint-activations"], "model 'nothing' is not known"),
    ],
)
def test_the_command_refuses_in_a_sentence(arguments: list[str], sentence: str, words: Path, tmp_path: Path) -> None:
    code, said = prune("nothing", "--text", words, "--out", tmp_path / "out", *arguments)
    assert code == 1
    assert sentence in said and "Traceback" not in said
