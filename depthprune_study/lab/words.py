"""Text that the whole model wrote itself, sampled once and kept on disk as token ids."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from depthprune_core import evaluation
from depthprune_core.text import Windows
from depthprune_study.lab import cache

if TYPE_CHECKING:
    from depthprune_study.lab.workspace import Workspace

AT_ONCE = 64  # windows a file: what is lost, at most, where the sampling is stopped
MODULES = ("depthprune_core.evaluation",)
PARTS = ("inputs", "targets", "mask")


def own_words(lab: Workspace, *, n_tokens: int, seq_len: int, seed: int) -> Windows:
    """As many whole windows as `n_tokens` hold, one document each, sampled by the whole model.

    A smaller number of tokens is the beginning of a larger one.
    """
    seq_len = min(seq_len, lab.context)
    n_windows = max(1, n_tokens // seq_len)
    on = [lab.teacher, lab.teacher.start, seq_len, seed]
    folder = lab.folder / "text" / cache.stamped(lab, "words", on, modules=MODULES, shared=True).key
    pieces = []
    with lab.progress.of("own words"):
        for number in range(-(-n_windows // AT_ONCE)):
            pieces.append(_piece(lab, folder / f"{number:04}.safetensors", seq_len, (seed, number)))
            lab.progress(min(n_windows, AT_ONCE * (number + 1)), n_windows, "windows")
    return _joined(pieces).take(slice(0, n_windows))


def _piece(lab: Workspace, path: Path, seq_len: int, seeds: tuple[int, int]) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError):  # not there yet, or damaged: it is written again
        pass
    written = evaluation.write_text(
        lab.teacher.model,
        start=lab.teacher.start,
        n_windows=AT_ONCE,
        seq_len=seq_len,
        seed=int(cache.short_hash(seeds), 16) % 2**32,
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
