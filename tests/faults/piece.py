"""A small piece of a study, as notebooks do it: a student recovered, scored and heard; what the fault tests damage and disturb.

As a script (`piece.py FOLDER [TOKENS AFTER WHICH MEMORY ENDS]`) it does a longer one there. FOLDER/told has a file a start: tokens after
each step, a line each. FOLDER/ended has a hash of all that came of it.
"""

from __future__ import annotations

import hashlib
import json
import resource
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from depthprune_core.records import Plan
from depthprune_study import live, settings
from depthprune_study.bench import Bench

TOKENS = 4_096  # of the script's recovery: 128 steps, each of them checkpointed
RECIPE: dict[str, Any] = {
    "loss": {"kl": 1.0},
    "lr": 1e-3,
    "batch_size": 2,
    "refit_tokens": 64,
    "checkpoint_every_seconds": 0,
}
VALUES = {
    "study": "faults",
    "model": "llama-tiny",
    "text": "wikipedia-excerpt",
    "max_documents": 2,
    "seq_len": 16,
    "score_tokens": 32,
    "device": "cpu",
    "seed": 0,
    "seeds": [0, 1],
}


def piece_of_a_study(
    folder: Path,
    *,
    seed: int = 0,
    tokens: int = 128,
    stop_at: int | None = None,
    told: Callable[[int], None] = lambda done: None,
) -> tuple[Any, ...]:
    """Recover a student and score it, below `folder`; `stop_at`: killed after so many tokens."""

    def progress(done: int, of: int, what: str) -> None:
        if what == "tokens":
            told(done)
            if done == stop_at:
                raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(live, "display", lambda *shown, **options: None)
        patch.setenv("DEPTHPRUNE_RUNS", str(folder))
        bench = Bench("05_seed_stability", settings.check("05_seed_stability", VALUES))
        bench.progress = progress
        teacher, tokenizer = bench.model("llama-tiny")
        windows = bench.recovery_windows(tokenizer, tokens=tokens, seed=seed)
        student, curve = bench.recover("arm", Plan(6, (2, 4), "by hand"), teacher, windows, seed=seed, **RECIPE)
        scores = bench.validation_scores({"teacher": teacher, "arm": student}, tokenizer)
        said = bench.continuations({"arm": student}, tokenizer, ["One"], new_tokens=2)
        weights = {name: tensor.numpy().tobytes() for name, tensor in student.model.state_dict().items()}
    return curve, scores, said, weights


def main(folder: Path, *, memory_ends_at: int = 0) -> None:
    """`memory_ends_at`: tokens after which the process is given no more memory than it has."""

    def tell(done: int) -> None:
        told.write(f"{done}\n")
        if done == memory_ends_at:
            resource.setrlimit(resource.RLIMIT_AS, (1, resource.RLIM_INFINITY))
            torch.ones(2**28)  # a step finds room in what was freed before, for longer or shorter by machine; this does not

    (folder / "told").mkdir(parents=True, exist_ok=True)
    with (folder / "told" / f"{len(list((folder / 'told').iterdir())):03d}").open("w", encoding="utf-8", buffering=1) as told:
        curve, *found = piece_of_a_study(folder, tokens=TOKENS, told=tell)
    in_order = json.dumps(asdict(curve), sort_keys=True)  # one that is read back from its record has its recipe sorted
    (folder / "ended").write_text(hashlib.sha256(repr((in_order, *found)).encode()).hexdigest(), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), memory_ends_at=int(sys.argv[2]) if len(sys.argv) > 2 else 0)
