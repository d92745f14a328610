"""The workspace of a notebook: its parameters, model, texts and records.

Other modules of the lab take it as their first argument.
"""

from __future__ import annotations

import copy
import ctypes
import platform
from collections.abc import MutableMapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from depthprune_core import models, refitting, speed, splits, storage, text
from depthprune_core.anatomy import anatomy
from depthprune_core.records import Recipe
from depthprune_core.teachers import TeacherStates
from depthprune_core.text import Document, Windows
from depthprune_study import parameters, paths, provenance
from depthprune_study.errors import StudyError
from depthprune_study.lab import cache, devices, samples, showing, weights
from depthprune_study.lab.bars import Bar

LORA_TIMES = 10  # adapters take a rate this many times higher
OF_THE_NOTEBOOK = ("tokens", "seed", "trained", "precision")  # parameters used in its recipe


def open_workspace(notebook: str, cell: MutableMapping[str, Any]) -> Workspace:
    """The workspace of a notebook. `cell`: its `globals()`, whose parameters are checked.

    In a study other than the default, parameters at their defaults get the study's values.
    """
    _keep_freed_memory()
    weights.release()  # students are held for one notebook
    values = parameters.resolved(notebook, cell)
    parameters.check_extras(values)
    cell.update(values)
    return Workspace(notebook, values)


class Workspace(showing.Page):
    """The model, texts and records of a notebook. All files go below `folder`.

    folder: runs/<study>/ if it is not given.
    """

    def __init__(
        self, notebook: str, values: dict[str, Any], *, folder: Path | None = None
    ) -> None:
        super().__init__()
        self.notebook, self.parameters = notebook, values
        self.study: str = values["study"]
        self.model: str = values["model"]
        self.place = self.model  # what is loaded: the same, or the folder of a fetched model
        self.folder = folder or paths.runs(self.study)
        self.device = devices.device_of(values.get("device", "auto"))
        # Hashed now: edits made while cells run did not produce the results.
        self.notebook_hash = provenance.notebook_hash(paths.notebooks() / f"{notebook}.ipynb")
        core = "depthprune_core"
        self.code = {room: provenance.code_hash(f"{core}.{room}") for room in cache.ROOMS}
        self.progress = Bar()
        self.tests_read: dict[str, list[str]] = {}  # record -> contents of the students it scored
        self._texts: dict[str, dict[str, list[Document]]] = {}
        self._pools: dict[int, Windows] = {}  # seq_len -> all recovery windows
        self._windows: dict[tuple[str, int], Windows] = {}

    @cached_property
    def teacher(self) -> models.Teacher:
        """The whole model, loaded at first use."""
        seed = self.parameters.get("seed", 0)
        return models.load(self.place, cache=paths.cache(), device=self.device, seed=seed)

    @cached_property
    def states(self) -> TeacherStates:
        """The teacher's hidden states, shared by all healings and kept on disk."""
        return TeacherStates(self.teacher.model, folder=self.folder / "teacher")

    @cached_property
    def can_refit(self) -> bool:
        """Whether the maps of this model's layers can be fitted in closed form."""
        return refitting.is_possible(self.teacher.model)

    def other(self, model: str) -> Workspace:
        """The same notebook, study and records, with another model."""
        if model == self.model:
            return self
        other = copy.copy(self)
        other.model = other.place = model
        other._pools, other._windows = {}, {}
        for name in ("teacher", "states", "can_refit"):
            other.__dict__.pop(name, None)
        return other

    @property
    def machine(self) -> str:
        """The device and threads; part of the stamp of timing results."""
        name = speed.device_name(torch.device(self.device))
        return f"{name}, {torch.get_num_threads()} threads"

    @property
    def n_layers(self) -> int:
        """Layers of the whole model."""
        return len(anatomy(self.teacher.model).layers)

    @property
    def context(self) -> int:
        """The model's context length in tokens."""
        return devices.context_of(self.teacher.model)

    # ------------------------------------------------------------ text

    def documents(self, split: str) -> list[Document]:
        """The documents of a split; the test split is refused."""
        if split == "test":
            raise StudyError(
                "only scoring.test and scoring.elsewhere may read the test split, "
                "after all choices are made"
            )
        return self.split(split)

    def split(self, split: str, text: str = "") -> list[Document]:
        """For other modules of the lab: any split of the notebook's text or of another text."""
        name = text or self.parameters["text"]
        if name not in self._texts:
            self._texts[name] = splits.split_named(name, cache=paths.cache())
        if not self._texts[name][split]:
            raise StudyError(
                f"text {name!r} has no {split} split: it can be named only as `elsewhere`"
            )
        return self._texts[name][split][: self.parameters.get("max_documents") or None]

    def windows(self, split: str, *, tokens: int = 0) -> Windows:
        """Scoring windows of a split: the first `tokens` of each document (0: all)."""
        if (split, tokens) not in self._windows:
            self._windows[split, tokens] = self.scoring(self.documents(split), tokens=tokens)
        return self._windows[split, tokens]

    def scoring(self, documents: Sequence[Document], *, tokens: int = 0) -> Windows:
        """Scoring windows of `seq_len` tokens, at most the model's context length."""
        return text.scoring_windows(
            documents,
            self.teacher.tokenizer,
            start=self.teacher.start,
            seq_len=min(self.parameters["seq_len"], self.context),
            tokens_per_document=tokens or None,
        )

    def for_refit(self, recipe: Recipe) -> Windows:
        """The windows that the recipe's refit reads."""
        return samples.for_refit(self._pool(recipe.seq_len), recipe)

    def training(self, recipe: Recipe) -> Windows:
        """The recipe's training windows, other than those of its refit."""
        return samples.training(self._pool(recipe.seq_len), recipe)

    def _pool(self, seq_len: int) -> Windows:
        if seq_len not in self._pools:
            self._pools[seq_len] = text.training_windows(
                self.documents("recovery"),
                self.teacher.tokenizer,
                start=self.teacher.start,
                seq_len=seq_len,
            )
        return self._pools[seq_len]

    def recipe(self, **changes: Any) -> Recipe:
        """params/recipe.yaml with these changes; tokens and seed are the notebook's.

        Windows fit the model's context; a step has whole windows. Unless given, the refit sees no
        more text than training does and `for_refit` allows, or 0 if no map can be fitted; and
        adapters take LORA_TIMES the rate of all weights.
        """
        of_file = parameters.recipe_values()
        given = {name: self.parameters[name] for name in OF_THE_NOTEBOOK if name in self.parameters}
        given |= changes
        values = of_file | {name: value for name, value in given.items() if value != "recipe"}
        values["seq_len"] = min(values.get("seq_len", Recipe.seq_len), self.context)
        batch = values.get("batch_tokens", Recipe.batch_tokens)
        values["batch_tokens"] = devices.whole_windows(batch, values["seq_len"])
        if values.get("precision", "auto") == "auto":
            values["precision"] = devices.fast_precision(self.device)
        if "refit_tokens" not in changes:
            values["refit_tokens"] = min(values.get("refit_tokens", 0), values.get("tokens", 0))
        adapters = values.get("trained") == "lora" and of_file.get("trained") == "all"
        if adapters and "lr" not in changes and "lr" in of_file:
            values["lr"] = LORA_TIMES * of_file["lr"]
        try:
            recipe = Recipe(**values)
        except (TypeError, ValueError) as error:
            raise StudyError(f"the recipe is not valid: {error}") from None
        if "refit_tokens" in changes or not recipe.refit_tokens:
            return recipe
        n_windows = len(self.for_refit(recipe)) if self.can_refit else 0
        return recipe.but(refit_tokens=n_windows * recipe.seq_len)

    # ------------------------------------------------------------ records

    def save(self, name: str, record: Any) -> Any:
        """Save record(s) of this notebook; returns them."""
        path = storage.write(self.record_path(name), record, cache.stamped(self, name))
        return self.note(record, path)

    def read(self, notebook: str, name: str) -> Any:
        """Record(s) saved by a notebook of the study. Raises StudyError if they are missing."""
        path = self.record_path(name, notebook)
        if not path.exists():
            wanted, records = _with_earlier(notebook), self.folder / "records"
            absent = [n for n in parameters.CHAIN if n in wanted and not (records / n).is_dir()]
            raise StudyError(
                f"record {notebook}/{name} is missing: run {', '.join(absent or [notebook])} of "
                f"study {self.study} first, in this order (a new machine has an empty disk)"
            )
        return self.note(storage.read(path), path)

    def record_path(self, name: str, notebook: str = "") -> Path:
        """The file of a record of this notebook or another."""
        return self.folder / "records" / (notebook or self.notebook) / f"{name}.json"


def _with_earlier(notebook: str) -> set[str]:
    """A notebook and all notebooks whose records it depends on."""
    if not (paths.notebooks() / f"{notebook}.ipynb").is_file():
        return {notebook}
    return {notebook}.union(*map(_with_earlier, parameters.reads(notebook)))


def _keep_freed_memory() -> None:
    """Let glibc reuse freed memory: by default it returns large blocks to the system."""
    if platform.libc_ver()[0] == "glibc":
        never, trim_threshold, most_mapped = 2**31 - 1, -1, -4  # M_TRIM_THRESHOLD, M_MMAP_MAX
        libc = ctypes.CDLL(None)
        libc.mallopt(most_mapped, 0)
        libc.mallopt(trim_threshold, never)
