"""The model that is pruned: found by name, folder or hub id, and what its card will say of it."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import yaml
from huggingface_hub import hf_hub_download

from depthprune_core import folders, models
from depthprune_core.models import SOURCES
from depthprune_study.errors import StudyError


@dataclass(frozen=True)
class Base:
    """Where a model comes from. Empty: not known, or it has none."""

    name: str  # as the user named it: a known name, a folder or a hub id
    folder: str  # where its files lie; "" for a known name, which `models.load` finds by itself
    hub: str  # its id on the hub
    revision: str  # its commit there
    title: str  # what a card calls it: no path of the maker's machine
    source: str  # the folder by which mergekit finds it

    @property
    def loaded_by(self) -> str:
        """What `models.load` takes."""
        return self.folder or self.name


def find(model: str) -> Base:
    """The model's files, fetched where it is a hub id, and checked to be a whole model.

    Raises StudyError for a model that is nowhere, ValueError for a folder that holds no whole model
    (quantised weights, an adapter, a damaged file).
    """
    if known := SOURCES.get(model):
        hub = known.where if known.kind == "hub" else ""
        source = f"{models.BUNDLED.name}/{known.where}" if known.kind == "bundled" else ""
        return Base(model, "", hub, known.revision, model, source)
    if Path(model).is_dir():
        folders.check(Path(model))
        return Base(model, model, "", "", Path(model).resolve().name, model)
    if Path(model).exists():
        raise StudyError(f"model={model!r} is a file: name the folder that holds it")
    if model.count("/") != 1:
        names = ", ".join(SOURCES)
        raise StudyError(f"model={model!r} is not known: name {names}, a local folder or a hub id")
    try:
        folder = models.fetch_hub(model)  # with its card, which names the licence
    except RuntimeError as error:
        raise StudyError(f"model={model!r} is no local folder, and {error}") from None
    return Base(model, str(folder), model, folder.name, model, "")


def licence(base: Base) -> str:
    """The licence that the base model's own card names, if it has one that can be read."""
    folder, known = base.folder, SOURCES.get(base.name)
    if known is not None and known.kind == "bundled":
        folder = str(models.BUNDLED / known.where)
    if known is not None and known.kind == "hub":
        with suppress(Exception):  # a network has errors of its own: the card then names none
            readme = hf_hub_download(known.where, "README.md", revision=known.revision)
            folder = str(Path(readme).parent)
    card = Path(folder) / "README.md" if folder else None
    if card is None or not card.is_file():
        return ""
    content = card.read_text(encoding="utf-8", errors="replace")
    if not content.startswith("---"):
        return ""
    try:
        head = yaml.safe_load(content.split("---")[1])
    except (yaml.YAMLError, RecursionError, ValueError, TypeError, KeyError, AttributeError):
        return ""
    found = head.get("license", "") if isinstance(head, dict) else ""
    return found if isinstance(found, str) else ""
