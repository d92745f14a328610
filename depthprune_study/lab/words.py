"""Text that the whole model wrote itself, sampled once and kept on disk as token ids."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from depthprune_core import evaluation
from depthprune_core.records import Recipe
from depthprune_core.text import Windows
from depthprune_study.lab import cache

if TYPE_CHECKING:
    from depthprune_study.lab.workspace import Workspace

AT_ONCE = 16  # windows a file: what is lost, at most, where the sampling is stopped
MODULES = ("depthprune_core.evaluation",)
PARTS = ("inputs", "targets", "mask")


def own_words(lab: Workspace, *, recipe: Recipe) -> Windows:
    """The recipe's number of tokens in documents of one window each, sampled by the whole model.

    A smaller number of tokens is the beginning of a larger one.
    """
    n_windows = max(1, recipe.tokens // recipe.seq_len)
    on = [lab.teacher, lab.teacher.start, recipe.seq_len, recipe.seed]
    folder = lab.folder / "text" / cache.stamped(lab, "words", on, modules=MODULES, shared=True).key
    n_files = -(-n_windows // AT_ONCE)
    files = [folder / f"{number:04}.safetensors" for number in range(n_files)]
    pieces = []
    for number, path in enumerate(files):
        with lab.progress.of(f"own words, {number + 1} of {n_files}"):
            pieces.append(_piece(lab, path, recipe, number))
    return _joined(pieces).take(slice(0, n_windows))


def _piece(lab: Workspace, path: Path, recipe: Recipe, number: int) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError):  # not there yet, or damaged: it is written again
        pass
    written = evaluation.write_text(
        lab.teacher.model,
        start=lab.teacher.start,
        n_windows=AT_ONCE,
        seq_len=recipe.seq_len,
        seed=int(cache.short_hash([recipe.seed, number]), 16) % 2**32,
        progress=lab.progress,
    )
    parts = {name: getattr(written, name).contiguous() for name in PARTS}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    save_file(parts, temporary)
    os.replace(temporary, path)
    return parts


def _joined(pieces: list[dict[str, torch.Tensor]]) -> Windows:
    tokens = {name: torch.cat([piece[name] for piece in pieces]) for name in PARTS}
    n = len(tokens["inputs"])
    names = tuple(f"own words {i}" for i in range(n))
    return Windows(**tokens, document=torch.arange(n), names=names, n_bytes=(0,) * n)
