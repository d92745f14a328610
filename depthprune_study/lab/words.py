"""Text sampled once from the whole model and kept on disk as token ids."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from depthprune_core import evaluation
from depthprune_core.records import Facts, Recipe
from depthprune_core.text import Windows
from depthprune_study.lab import cache, weights

if TYPE_CHECKING:
    from depthprune_study.lab.workspace import Workspace

AT_ONCE = 16  # windows per file; an interruption loses at most this much
PARTS = ("inputs", "targets", "mask")


def own_words(lab: Workspace, *, recipe: Recipe) -> Windows:
    """The recipe's number of tokens in one-window documents sampled from the whole model.

    A smaller sample is the beginning of a larger sample.
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


def beginnings(lab: Workspace, windows: Windows, *, n: int, tokens: int) -> Facts:
    """The first tokens of the first n sampled documents, as a table of continuations."""
    texts = lab.teacher.tokenizer.batch_decode(windows.targets[:n, :tokens])
    names = [f"sample {i + 1}" for i in range(len(texts))]
    return lab.save("own-words", Facts({"prompts": names, "samples": {"own words": texts}}))


def _piece(lab: Workspace, path: Path, recipe: Recipe, number: int) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError):  # missing or damaged: it is written again
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
