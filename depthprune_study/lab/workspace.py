"""The workspace of a notebook: its parameters, model and texts, its records, what it shows.

Other rooms of the lab take it as their first argument.
"""

from __future__ import annotations

import copy
import ctypes
import platform
import sys
from collections.abc import Callable, Iterable, MutableMapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from depthprune_core import decoder, models, refitting, speed, splits, storage, text
from depthprune_core.records import Facts, Recipe
from depthprune_core.teachers import TeacherStates
from depthprune_core.text import Document, Windows
from depthprune_study import parameters, paths, provenance
from depthprune_study.errors import StudyError
from depthprune_study.lab import cache, held, showing
from depthprune_study.lab.bars import Bar
from depthprune_study.lab.devices import device_of, fast_precision, whole_windows


def open_workspace(notebook: str, cell: MutableMapping[str, Any]) -> Workspace:
    """The workspace of a notebook. `cell`: its `globals()`, whose parameters are checked.

    In a study that is not the default, those left at their defaults are set to the study's.
    """
    _keep_freed_memory()
    held.release()  # students are held for one notebook
    values = parameters.resolved(notebook, cell)
    cell.update(values)
    return Workspace(notebook, values)


class Workspace:
    """What a notebook works with. Every file goes below `folder`, runs/<study>/."""

    def __init__(self, notebook: str, values: dict[str, Any]) -> None:
        self.notebook, self.parameters = notebook, values
        self.study: str = values["study"]
        self.model: str = values["model"]
        self.folder = paths.runs(self.study)
        self.device = device_of(values.get("device", "auto"))
        # Of code and notebook as they are now: edits while cells run have made none of the results.
        self.notebook_hash = provenance.notebook_hash(paths.notebooks() / f"{notebook}.ipynb")
        self.code = {module: provenance.code_hash(module) for module in cache.MODULES}
        self.progress = Bar(self.folder)
        self.sources = showing.Sources(self.folder)
        self.box_state = showing.Box()
        self.tests_read: dict[str, list[str]] = {}  # record -> contents of the students it scored
        self._texts: dict[str, dict[str, list[Document]]] = {}
        self._pools: dict[int, Windows] = {}  # seq_len -> all recovery windows
        self._windows: dict[tuple[str, int], Windows] = {}

    @cached_property
    def teacher(self) -> models.Teacher:
        """The whole model, loaded when it is first asked for."""
        seed = self.parameters.get("seed", 0)
        return models.load(self.model, cache=paths.cache(), device=self.device, seed=seed)

    @cached_property
    def states(self) -> TeacherStates:
        """The teacher's hidden states, shared by all students that are healed, and kept on disk."""
        return TeacherStates(self.teacher.model, folder=self.folder / "teacher")

    @cached_property
    def can_refit(self) -> bool:
        """Whether maps of this model's layers can be solved for in closed form."""
        return refitting.is_possible(self.teacher.model)

    def other(self, model: str) -> Workspace:
        """The same notebook, study and records, with another model."""
        if model == self.model:
            return self
        other = copy.copy(self)
        other.model, other._pools, other._windows = model, {}, {}
        for name in ("teacher", "states", "can_refit"):
            other.__dict__.pop(name, None)
        return other

    @property
    def machine(self) -> str:
        """What a time is measured on: a piece of work that measures one depends on it."""
        name = speed.device_name(torch.device(self.device))
        return f"{name}, {torch.get_num_threads()} threads"

    @property
    def n_layers(self) -> int:
        """Layers of the whole model."""
        return len(decoder.anatomy(self.teacher.model).layers)

    @property
    def context(self) -> int:
        """The longest window that the model can read."""
        config = decoder.text_config(self.teacher.model.config)
        return getattr(config, "max_position_embeddings", None) or sys.maxsize

    # ------------------------------------------------------------ text

    def documents(self, split: str, text: str | None = None) -> list[Document]:
        """The documents of a split of the notebook's text or another; the test split is refused."""
        if split == "test":
            raise StudyError(
                "the test split is read by scoring.test and scoring.elsewhere alone, "
                "after every choice is made"
            )
        return self.split(split, text)

    def split(self, split: str, text: str | None = None) -> list[Document]:
        """For the lab's own rooms: any split."""
        name = text or self.parameters["text"]
        if name not in self._texts:
            self._texts[name] = splits.split_named(name, cache=paths.cache())
        return self._texts[name][split][: self.parameters.get("max_documents") or None]

    def windows(self, split: str, *, tokens: int = 0) -> Windows:
        """Scoring windows of a split: the first `tokens` of each document (0: all of it)."""
        if (split, tokens) not in self._windows:
            self._windows[split, tokens] = self.scoring(self.documents(split), tokens=tokens)
        return self._windows[split, tokens]

    def scoring(self, documents: Sequence[Document], *, tokens: int = 0) -> Windows:
        """Scoring windows of `seq_len` tokens, or of what the model can read at most."""
        return text.scoring_windows(
            documents,
            self.teacher.tokenizer,
            start=self.teacher.start,
            seq_len=min(self.parameters["seq_len"], self.context),
            tokens_per_document=tokens or None,
        )

    def training(self, recipe: Recipe, *, tokens: int | None = None) -> Windows:
        """The recipe's text (or more or less of it): each seed draws its own recovery documents."""
        if recipe.seq_len not in self._pools:
            self._pools[recipe.seq_len] = text.training_windows(
                self.documents("recovery"),
                self.teacher.tokenizer,
                start=self.teacher.start,
                seq_len=recipe.seq_len,
            )
        n_tokens = recipe.tokens if tokens is None else tokens
        return text.draw(self._pools[recipe.seq_len], n_tokens=n_tokens, seed=recipe.seed)

    def recipe(self, **changes: Any) -> Recipe:
        """params/recipe.yaml with these changes; tokens and seed are the notebook's.

        Windows are no longer than the model can read; a step takes whole windows; the refit sees
        no more text than training does.
        """
        values = parameters.recipe_values()
        own = {name: self.parameters[name] for name in _OWN if name in self.parameters} | changes
        values |= {name: value for name, value in own.items() if value != "recipe"}
        values["seq_len"] = min(values.get("seq_len", Recipe.seq_len), self.context)
        batch = values.get("batch_tokens", Recipe.batch_tokens)
        values["batch_tokens"] = whole_windows(batch, values["seq_len"])
        if values.get("precision", "auto") == "auto":
            values["precision"] = fast_precision(self.device)
        if "tokens" not in values:
            raise StudyError(f"notebook {self.notebook} names no tokens: lab.recipe(tokens=...)")
        if "refit_tokens" not in changes:
            values["refit_tokens"] = min(values.get("refit_tokens", 0), values["tokens"])
        try:
            return Recipe(**values)
        except (TypeError, ValueError) as error:
            raise StudyError(f"the recipe is not possible: {error}") from None

    # ------------------------------------------------------------ records

    def once(self, name: str, make: Callable[[], Any], *, on: Sequence[Any] = ()) -> Any:
        """The record(s) of a piece of work of this notebook: read back, or made and saved."""
        path = self.record_path(name)
        return self.sources.note(cache.once(self, path, make, on=on, by_content=False), path)

    def save(self, name: str, record: Any) -> Any:
        """Keep record(s) that come from others; returns them."""
        path = storage.write(self.record_path(name), record, cache.stamped(self, name))
        return self.sources.note(record, path)

    def has(self, notebook: str, name: str) -> bool:
        """Whether a notebook of the study has kept such a record."""
        return self.record_path(name, notebook).exists()

    def read(self, notebook: str, name: str) -> Any:
        """Record(s) that a notebook of the study has kept. Raises StudyError where it has not."""
        path = self.record_path(name, notebook)
        if not path.exists():
            raise StudyError(self._missing(notebook, name))
        return self.sources.note(storage.read(path), path)

    def _missing(self, notebook: str, name: str) -> str:
        """What to run before a record can be read: every earlier notebook that has left none."""
        wanted, waiting = {notebook}, [notebook]
        while waiting:
            earlier = waiting.pop()
            if (paths.notebooks() / f"{earlier}.ipynb").is_file():
                more = set(parameters.reads(earlier)) - wanted
                wanted |= more
                waiting += more
        folder = self.folder / "records"
        absent = [n for n in parameters.CHAIN if n in wanted and not (folder / n).is_dir()]
        return (
            f"record {notebook}/{name} is not there: run {', '.join(absent or [notebook])} of "
            f"study {self.study} first, in this order (a new machine has an empty disk)"
        )

    def record_path(self, name: str, notebook: str = "") -> Path:
        return self.folder / "records" / (notebook or self.notebook) / f"{name}.json"

    # ------------------------------------------------------------ what is shown

    def box(self) -> None:
        """An empty box, at the top of the notebook, that its findings fill."""
        showing.show_box(self)

    def show(
        self, name: str, figure: Any, found: Any, *, of: Iterable[Any], lead: bool = False
    ) -> None:
        """Display a figure, drawn from the records `of`, and its finding; `lead`: box it too."""
        showing.show(self, name, figure, found, of=of, lead=lead)

    def found(self, found: Any, *, of: Iterable[Any] = (), lead: bool = False) -> None:
        """A finding without a figure."""
        showing.tell(self, found, of=of, lead=lead)

    def table(self, facts: Facts) -> None:
        """Continuations, side by side."""
        showing.table(facts)


_OWN = ("tokens", "seed", "trained", "precision")  # a notebook's parameters that go into its recipe


def _keep_freed_memory() -> None:
    """Use again what was freed: glibc would hand large pieces back and fault them in anew."""
    if platform.libc_ver()[0] == "glibc":
        never, trim_threshold, most_mapped = 2**31 - 1, -1, -4  # M_TRIM_THRESHOLD, M_MMAP_MAX
        libc = ctypes.CDLL(None)
        libc.mallopt(most_mapped, 0)
        libc.mallopt(trim_threshold, never)
