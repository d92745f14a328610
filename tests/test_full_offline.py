"""The parts of the `full` study that need the hubs, on local copies of their layout; and what is said when neither is there."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import tiny, tiny_tokenizer
from transformers import PreTrainedModel

from depthprune_core import evaluation, models, pruning, records, text
from depthprune_core.models import Source
from depthprune_core.records import Plan
from depthprune_study import live, preparation, run, settings
from depthprune_study.bench import Bench

WORDS = " ".join(f"w{i}" for i in range(1, 120))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, PreTrainedModel]:
    """A tiny gpt2 in the cache of the hub's client, its files copies (as on a file system without links), and where they lie."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    folder = tmp_path / "hub" / "models--openai-community--gpt2" / "snapshots" / models.SOURCES["gpt2"].revision
    model = tiny("gpt2")
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder, model


@pytest.fixture
def wikitext_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    import datasets
    import pyarrow
    import pyarrow.parquet

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets-cache")
    folder = tmp_path / "wikitext"
    folder.mkdir()
    for split, count in (("train", 12), ("validation", 2), ("test", 3)):
        lines = [line for i in range(count) for line in ("", f" = Article {i} of {split} = \n", "", f" {WORDS} \n" * 7)]
        pyarrow.parquet.write_table(pyarrow.table({"text": lines}), folder / f"{split}-00000-of-00001.parquet")
    return folder


# ---------------------------------------------------------------- models


def test_a_model_of_the_hub_is_loaded_as_it_lies_there(tmp_path: Path, hub: tuple[Path, PreTrainedModel]) -> None:
    model, tokenizer = models.load("gpt2", cache=tmp_path)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), hub[1].parameters(), strict=True))
    assert tokenizer("w3 w5").input_ids == [3, 5]


def test_masks_in_files_of_the_first_days_are_passed_over(tmp_path: Path, hub: tuple[Path, PreTrainedModel]) -> None:
    weights = load_file(hub[0] / "model.safetensors")
    masks = {f"h.{i}.attn.bias": torch.ones(1, 1, 64, 64) for i in range(5)}
    bare = {
        name.removeprefix("transformer."): tensor.clone() for name, tensor in weights.items()
    }  # as in the hub's file: no prefix
    save_file({**bare, **masks}, hub[0] / "model.safetensors", metadata={"format": "pt"})
    model, _ = models.load("gpt2", cache=tmp_path)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), hub[1].parameters(), strict=True))


@pytest.mark.parametrize("name", ["transformer.h.2.mlp.c_fc.weight", "transformer.wte.weight"])
def test_a_model_of_the_hub_that_misses_a_tensor_is_refused(
    tmp_path: Path, hub: tuple[Path, PreTrainedModel], name: str
) -> None:
    weights = load_file(hub[0] / "model.safetensors")
    weights.pop(name)
    save_file(weights, hub[0] / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="missing keys"):
        models.load("gpt2", cache=tmp_path)


def test_a_model_of_the_hub_without_safetensors_is_refused_in_a_sentence(
    tmp_path: Path, hub: tuple[Path, PreTrainedModel]
) -> None:
    torch.save(hub[1].state_dict(), hub[0] / "pytorch_model.bin")
    (hub[0] / "model.safetensors").unlink()
    with pytest.raises(RuntimeError, match="could not fetch model gpt2"):
        models.load("gpt2", cache=tmp_path)


@pytest.fixture
def cached(hub: tuple[Path, PreTrainedModel]) -> Path:
    """The same as it usually lies there: links to files that are named by their hashes, and a list of them."""
    laid_out(hub[0])
    return hub[0]


def laid_out(snapshot: Path) -> None:
    """Its files named by their hashes (large ones by sha256, others as git names them), with links to them, and a listing of all."""
    from huggingface_hub import _tree_cache

    blobs = snapshot.parent.parent / "blobs"
    blobs.mkdir()
    listed = {}
    for path in sorted(snapshot.iterdir()):
        content = path.read_bytes()
        git, sha256 = hashlib.sha1(b"blob %d\0%b" % (len(content), content)).hexdigest(), hashlib.sha256(content).hexdigest()
        is_large = path.suffix == ".safetensors"
        blob = blobs / (sha256 if is_large else git)
        path.rename(blob)
        path.symlink_to(blob)
        of_large = {"lfs_sha256": sha256, "lfs_size": len(content)} if is_large else {"lfs_sha256": None, "lfs_size": None}
        listed[path.name] = _tree_cache.TreeCacheEntry(size=len(content), blob_id=git, xet_hash=None, **of_large)
    _tree_cache.write_tree_cache(str(snapshot.parent.parent), snapshot.name, listed)


def test_a_model_that_the_hub_s_cache_holds_whole_is_fetched_and_loaded(tmp_path: Path, cached: Path) -> None:
    models.fetch_only("gpt2", cache=tmp_path)
    assert len(models.load("gpt2", cache=tmp_path)[0].transformer.h) == 5


@pytest.mark.parametrize("get", [models.load, models.fetch_only])
def test_weights_that_are_damaged_in_the_hub_s_cache_are_named(tmp_path: Path, cached: Path, get: Any) -> None:
    """By hash where the cache links to it, by what it holds where it is a copy (as on a file system without links)."""
    weights = cached / "model.safetensors"
    whole = weights.read_bytes()
    for is_link, words in ((True, f"{weights} is damaged ("), (False, f"weights {weights} are damaged (")):
        if not is_link:
            weights.unlink()
        weights.write_bytes(whole[:5_000])
        with pytest.raises(ValueError) as error:
            get("gpt2", cache=tmp_path)
        told = str(error.value)
        assert told.startswith(f"model gpt2: {words}")
        assert told.endswith(
            f": with the network at hand, remove {cached.parent.parent} and run again, it is then fetched anew"
        )
        assert "\n" not in told


def prepared(cache: Path) -> None:
    preparation.fetch([run.Step("01_sensitivity", {"model": "gpt2"}, "key", False, 0)], lambda line: None)


@pytest.mark.parametrize("get", [lambda cache: models.load("gpt2", cache=cache), prepared], ids=["load", "fetch"])
@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
def test_a_bit_that_flipped_in_the_hub_s_cache_is_named(tmp_path: Path, cached: Path, file: str, get: Any) -> None:
    get(tmp_path)
    content = (cached / file).read_bytes()
    (cached / file).resolve().write_bytes(content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])
    with pytest.raises((ValueError, settings.StudyError)) as error:
        get(tmp_path)
    assert str(error.value).startswith(f"model gpt2: {cached / file} is damaged (its hash is ")
    assert str(error.value).endswith(
        f": with the network at hand, remove {cached.parent.parent} and run again, it is then fetched anew"
    )


@pytest.mark.parametrize("error", [huggingface_hub.errors.LocalEntryNotFoundError, ConnectionError, KeyError])
def test_a_cache_without_its_own_list_of_files_is_enough_offline(
    tmp_path: Path, cached: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    """As huggingface_hub 1.33 has it, which does not find such a cache unless it is told to look nowhere else; or behind a proxy."""
    asked = []

    def forgetful(where: str, *, local_files_only: bool = False, **options: Any) -> str:
        asked.append(local_files_only)
        if not local_files_only:
            raise error("Cannot find an appropriate cached snapshot folder")
        return str(cached)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", forgetful)
    models.fetch_only("gpt2", cache=tmp_path)
    assert asked == [False, True]


def test_a_damaged_file_that_is_not_read_is_no_matter(tmp_path: Path, cached: Path) -> None:
    blob = cached.parent.parent / "blobs" / ("0" * 64)
    blob.write_text("not what it is called")
    (cached / "pytorch_model.bin").symlink_to(blob)
    models.fetch_only("gpt2", cache=tmp_path)


def test_a_config_without_weights_is_not_a_model_that_was_fetched(tmp_path: Path, cached: Path) -> None:
    (cached / "model.safetensors").unlink()
    with pytest.raises(RuntimeError, match="could not fetch model gpt2"):
        models.fetch_only("gpt2", cache=tmp_path)


def test_weights_and_tokenizer_are_fetched_at_the_pinned_revision_and_nothing_else(
    tmp_path: Path, cached: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda where, **options: asked.update(options, where=where) or str(cached)
    )
    models.fetch_only("gpt2", cache=tmp_path)
    assert (asked["where"], asked["revision"]) == ("openai-community/gpt2", models.SOURCES["gpt2"].revision)
    files = ["model.safetensors", "model.safetensors.index.json", "config.json", "merges.txt", "tokenizer.model"]
    others = ["pytorch_model.bin", "tf_model.h5", "evil.py", "64.tflite", "onnx/config.json", "onnx/model.safetensors"]
    patterns = {"allow_patterns": asked["allow_patterns"], "ignore_patterns": asked["ignore_patterns"]}
    assert list(huggingface_hub.utils.filter_repo_objects(files + others, **patterns)) == files


HUB_NAMES = [name for name, source in models.SOURCES.items() if source.kind == "hub"]


@pytest.mark.parametrize("name", HUB_NAMES)
@pytest.mark.parametrize("get", [models.load, models.fetch_only])
def test_without_the_hub_the_reason_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, get: Any
) -> None:
    source = models.SOURCES[name]
    in_no_cache = Source("hub", "nobody/" + source.where.split("/")[1], source.revision)
    monkeypatch.setitem(models.SOURCES, name, in_no_cache)
    with pytest.raises(RuntimeError) as error:
        get(name, cache=tmp_path)
    told = str(error.value)
    assert told.startswith(f"could not fetch model {name} (nobody/")
    assert "check the network" in told
    assert "local folder" in told
    assert "\n" not in told


def test_the_models_of_the_hub_are_pinned() -> None:
    assert {"gpt2", "distilgpt2", "tinyllama-1.1b"} <= set(HUB_NAMES)
    for name in HUB_NAMES:
        assert len(models.SOURCES[name].revision) == 40
        int(models.SOURCES[name].revision, 16)


# ---------------------------------------------------------------- text


def test_without_the_data_hub_the_reason_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setitem(text._WIKITEXT, "path", "nobody/wikitext")  # in no cache
    with pytest.raises(RuntimeError) as error:
        text.wikitext()
    told = str(error.value)
    assert told.startswith("could not fetch wikitext-2 (nobody/wikitext at ")
    assert "check the network" in told
    assert "\n" not in told


def test_the_full_study_can_be_scored_and_cut_from_local_copies(
    tmp_path: Path, hub: tuple[Path, PreTrainedModel], wikitext_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEPTHPRUNE_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr(live, "display", lambda *shown, **options: None)
    values = {
        "study": "full",
        "model": "gpt2",
        "text": str(wikitext_folder),
        "max_documents": 0,
        "seq_len": 16,
        "score_tokens": 40,
    }
    parameters = settings.check("05_seed_stability", {**values, "device": "cpu", "seed": 0, "seeds": [0, 1]})
    bench = Bench("05_seed_stability", parameters)
    teacher, tokenizer = bench.model("gpt2")
    assert [len(bench.documents(split)) for split in ("recovery", "calibration", "validation")] == [4, 8, 2]
    student = pruning.drop_layers(teacher, Plan(5, (1, 3), "by hand"))
    scores = bench.test_scores({"teacher": teacher, "student": student}, tokenizer)
    assert scores["student"].documents == tuple(f"test/Article {i} of test" for i in range(3))
    assert scores["student"].n_tokens == (40, 40, 40)
    assert scores["student"].nll_nats != scores["teacher"].nll_nats
    assert json.loads(bench.record_path("test/student").read_text())["kind"] == "Score"
    assert records.read(bench.record_path("test/student")) == evaluation.score(
        student, text.windows(text.wikitext(wikitext_folder)["test"], tokenizer, seq_len=16, tokens_per_document=40)
    )
