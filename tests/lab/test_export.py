"""The written folder, its card and its mergekit configuration."""

from __future__ import annotations

from math import log
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch
import yaml
from huggingface_hub import HfApi
from huggingface_hub.repocard_data import model_index_to_eval_results
from safetensors.torch import load_file
from tiny import BYTES, byte_tokenizer, plan_of, tiny
from transformers import AutoModelForCausalLM

from depthprune_core.pruning import drop_layers
from depthprune_core.records import Plan, Recipe, Score
from depthprune_study.errors import StudyError
from depthprune_study.lab import export
from depthprune_study.lab.card import CUT, SAVED, WHOLE, mergekit, model_card
from depthprune_study.lab.job import Base

HUB = Base("gpt2", "openai-community/gpt2", "607a30d783dfa663caf39e06633721c8d4cfcd7e")
PLAN = Plan(12, (4, 7), "least_sensitive")


def card(base: Base, text: str, tokens: int) -> str:
    """The page of a model of two layers fewer, whose perplexities are 30, 39 and 33."""
    whole = SimpleNamespace(num_parameters=lambda: 124_439_808)
    recipe = Recipe(tokens=tokens, lr=1e-3) if tokens else None
    lab = SimpleNamespace(teacher=SimpleNamespace(model=whole), parameters={"text": text})
    job = SimpleNamespace(lab=lab, base=base, recipe=recipe, out=Path("smaller"))
    scores = {
        name: Score(("a", "b"), (100 * log(ppl), 100 * log(ppl)), (100, 100), (400, 400))
        for name, ppl in ((WHOLE, 30), (CUT, 39), (SAVED, 33))
    }
    return model_card(job, PLAN, scores, 110_264_064)


def test_the_card_is_what_the_hub_reads(monkeypatch):
    monkeypatch.setattr("depthprune_study.lab.card.licence_of", lambda base: "mit")
    page = card(HUB, "Salesforce/wikitext:text", 2_048)
    head = yaml.safe_load(page.split("---")[1])
    assert head["base_model"] == "openai-community/gpt2"
    assert (head["base_model_relation"], head["license"]) == ("finetune", "mit")
    assert head["datasets"] == ["Salesforce/wikitext"] and head["pipeline_tag"] == "text-generation"
    name, results = model_index_to_eval_results(head["model-index"])
    assert name == "smaller"
    assert {r.metric_value for r in results} == {33.0, 30.0}
    assert "gpt2 (revision 607a30d783df) without layers 4, 7 (counted from 0) of its 12:" in page
    assert "110,264,064 parameters, 11.4% fewer" in page
    assert "It was then trained on 2,048 tokens of Salesforce/wikitext: KL to the whole" in page
    assert "| whole model | 30.00 [30.00, 30.00] | 1 | 2 |" in page
    assert "| as saved | 33.00 [33.00, 33.00] | 1.100 [1.100, 1.100] | 2 |" in page


def test_a_local_base_has_no_hub_fields_and_no_path(tmp_path: Path):
    page = card(Base("mine", card=str(tmp_path / "README.md")), str(tmp_path / "notes.txt"), 0)
    head = yaml.safe_load(page.split("---")[1])
    assert not {"base_model", "base_model_relation", "datasets", "license"} & head.keys()
    assert "It was not trained after the cut." in page
    assert "the terms of the base model also apply" in page and str(tmp_path) not in page


@pytest.mark.parametrize("dropped", [(0,), (5,), (2, 4), (0, 1, 5), (1, 3, 5)])
def test_mergekit_passes_the_kept_layers_through(dropped: tuple[int, ...]):
    plan = Plan(6, dropped, "named")
    made = yaml.safe_load(mergekit(HUB, plan, torch.bfloat16))
    sources = [source for part in made["slices"] for source in part["sources"]]
    ranges = [source["layer_range"] for source in sources]
    assert [layer for first, last in ranges for layer in range(first, last)] == list(plan.kept)
    assert {source["model"] for source in sources} == {f"{HUB.hub}@{HUB.revision}"}
    assert (made["merge_method"], made["dtype"]) == ("passthrough", "bfloat16")


def test_mergekit_asks_for_the_folder_of_a_model_that_is_not_on_the_hub():
    page = mergekit(Base("mine"), PLAN, torch.float32)
    assert page.startswith("# model: name the folder of mine here\n")


def written(out: Path, dtypes: Any = None, *, replace: bool = False) -> Any:
    model = tiny("llama", vocab_size=BYTES)
    student = drop_layers(model, plan_of(model, 2))
    dtypes = dict.fromkeys(dict(student.named_parameters()), torch.float32) | (dtypes or {})
    files = {"README.md": "# out"}
    export.folder(out, student, byte_tokenizer(), dtypes=dtypes, files=files, replace=replace)
    return student


def test_each_tensor_is_kept_in_its_own_dtype_and_the_model_is_what_the_file_holds(tmp_path: Path):
    name = "model.layers.1.mlp.up_proj.weight"
    student = written(tmp_path / "out", {name: torch.bfloat16})
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert [key for key, tensor in stored.items() if tensor.dtype != torch.float32] == [name]
    assert torch.equal(student.get_parameter(name), stored[name].float())
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    ids = torch.arange(1, 13)[None]
    assert torch.equal(opened(ids).logits, student(ids).logits)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o755


def test_a_folder_that_opens_as_another_model_is_not_left_there(tmp_path, monkeypatch):
    honest = type(tiny("llama")).save_pretrained

    def spoilt(self, folder, **options):
        weight = self.model.layers[0].mlp.up_proj.weight
        weight.data.add_(1)
        honest(self, folder, **options)
        weight.data.sub_(1)

    monkeypatch.setattr(type(tiny("llama")), "save_pretrained", spoilt)
    with pytest.raises(StudyError, match="the written model differs after opening"):
        written(tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_replaced_folder_stays_until_the_new_one_has_passed(tmp_path, monkeypatch):
    written(tmp_path / "out")
    (tmp_path / "out" / "old").touch()
    with monkeypatch.context() as patch:
        patch.setattr(export, "_check", Mock(side_effect=StudyError("it differs")))
        with pytest.raises(StudyError, match="it differs"):
            written(tmp_path / "out", replace=True)
    assert (tmp_path / "out" / "old").exists()
    written(tmp_path / "out", replace=True)
    assert not (tmp_path / "out" / "old").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_existing_folders_and_impossible_places_are_refused(tmp_path: Path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    export.check_free(tmp_path / "empty")
    for name, sentence in (
        ("full", "exists already"),
        ("link", "is a link"),
        ("..", "is a link or a mounted disk"),
    ):
        with pytest.raises(StudyError, match=sentence):
            export.check_free(tmp_path / name)
    export.check_free(tmp_path / "full", replace=True)
    for name, sentence in (("full/file", "exists already"), ("link", "is a link")):
        with pytest.raises(StudyError, match=sentence):
            export.check_free(tmp_path / name, replace=True)


# ---------------------------------------------------------------- the hub


def test_a_push_that_could_not_work_is_refused_before_any_work(monkeypatch):
    export.check_push("")
    with pytest.raises(StudyError, match="push_to='a/b/c' must be NAME/MODEL"):
        export.check_push("a/b/c")

    def refuse(self):
        raise OSError("no login")

    monkeypatch.setattr(HfApi, "whoami", refuse)
    with pytest.raises(StudyError, match=r"needs a login \(OSError\): run `hf auth login`"):
        export.check_push("me/smaller")


def test_a_folder_is_pushed_as_it_is_and_stays_where_the_hub_refuses(tmp_path, monkeypatch):
    calls: list[Any] = []

    def made(self, repo, **options):
        return f"https://hub/{repo}"

    monkeypatch.setattr(HfApi, "create_repo", made)
    monkeypatch.setattr(HfApi, "upload_folder", lambda self, **options: calls.append(options))
    assert export.push(tmp_path, "me/smaller") == "https://hub/me/smaller"
    assert (calls[0]["repo_id"], calls[0]["folder_path"]) == ("me/smaller", tmp_path)

    def refuse(self, **options):
        raise OSError("no quota")

    monkeypatch.setattr(HfApi, "upload_folder", refuse)
    with pytest.raises(
        StudyError, match=r"is written, but could not be pushed to me/smaller \(OSError"
    ):
        export.push(tmp_path, "me/smaller")
