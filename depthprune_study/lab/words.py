"""Text that the whole model wrote itself, sampled once and kept on disk as token ids."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from depthprune_core import evaluation
from depthprune_core.records import Recipe
from depthprune_core.text import Windows
from depthprune_study.lab import cache, weights

if TYPE_CHECKING:
    from depthprune_study.lab.workspace import Workspace

AT_ONCE = 16  # windows a file: what is lost, at most, where the sampling is stopped
PARTS = ("inputs", "targets", "mask")


def own_words(lab: Workspace, *, recipe: Recipe) -> Windows:
    """The recipe's number of tokens in documents of one window each, sampled by the whole model.

    A smaller number of tokens is the beginning of a larger one.
    """
    n_windows = max(1, recipe.tokens // recipe.seq_len)
    on = [lab.teacher, lab.teacher.start, recipe.seq_len, recipe.seed]
    stamp = cache.stamped(lab, "words", on, rooms=("evaluation",), shared=True)
    n_files = -(-n_windows // AT_ONCE)
    pieces = []
    for number in range(n_files):
        with lab.progress.of(f"own words, {number + 1} of {n_files}"):
            path = lab.folder / "text" / stamp.key / f"{number:04}.safetensors"
            pieces.append(_piece(lab, path, recipe, number))
    tokens = {name: torch.cat([piece[name] for piece in pieces])[:n_windows] for name in PARTS}
    names = tuple(f"own words {i}" for i in range(n_windows))
    owners = torch.arange(n_windows)
    return Windows(**tokens, document=owners, names=names, n_bytes=(0,) * n_windows)


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
    parts = {name: getattr(written, name) for name in PARTS}
    weights.save_tensors(path, parts)
    return parts
