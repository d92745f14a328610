"""`python -m benchmarks.determinism`: what the same work gives again, with other threads and with torch's other library.

Each setting is a process of its own: gpt2-mini scored, cut, refitted and recovered on 2,048 tokens, and the student scored.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import torch

from benchmarks import machine
from depthprune_core import distillation, evaluation, models, products, pruning, refitting, text
from depthprune_core.records import Plan
from depthprune_study import places
from depthprune_study.arms import weights_hash

MODEL, PLAN = "gpt2-mini", Plan(12, (4, 5), "by hand")
SETTINGS = {  # threads, and whether products go through MKL even where oneDNN is faster
    "2 threads": ("2", False),
    "2 threads, again": ("2", False),
    "1 thread": ("1", False),
    "1 thread, again": ("1", False),
    "2 threads, MKL's products": ("2", True),
}


def main() -> None:
    """Run every setting and save how far each is from the first."""
    if len(sys.argv) > 1:
        print(json.dumps(work(mkl=sys.argv[1] == "mkl")))
        return
    found = {name: _in_a_process(threads, mkl=mkl) for name, (threads, mkl) in SETTINGS.items()}
    base = found["2 threads"]
    rows = {
        name: {
            "teacher_nats": _largest(result["teacher"], base["teacher"]),
            "student_nats": _largest(result["student"], base["student"]),
        }
        for name, result in found.items()
    }
    for again in (name for name in SETTINGS if name.endswith(", again")):
        rows[again]["same_bits_as_before"] = found[again] == found[again.removesuffix(", again")]
    print(f"saved {machine.save('determinism', {'model': MODEL, 'tokens': 2_048, 'settings': rows})}")


def work(*, mkl: bool) -> dict[str, Any]:
    """NLL per token of each document, for the whole model and for the student, and a hash of the student's weights."""
    if mkl:
        products.onednn_is_better = lambda: False
    teacher, tokenizer = models.load(MODEL, cache=places.cache(), assets=places.assets())
    documents = text.split_named("wikipedia-excerpt", cache=places.cache(), assets=places.assets())
    validation = text.windows(documents["validation"], tokenizer, seq_len=256, tokens_per_document=256)
    pool = text.windows(documents["recovery"], tokenizer, seq_len=256, whole=True)
    windows = text.draw(pool, n_tokens=2_048, seed=0)
    student = refitting.refit(pruning.drop_layers(teacher, PLAN), teacher, PLAN, windows)
    distillation.recover(student, teacher, windows, loss={"kl": 1.0}, lr=3e-4, batch_size=2, seed=0)
    return {
        "teacher": _nats(evaluation.score(teacher, validation)),
        "student": _nats(evaluation.score(student, validation)),
        "weights": weights_hash(student),
    }


def _nats(score: Any) -> list[float]:
    return [nll / n for nll, n in zip(score.nll_nats, score.n_tokens, strict=True)]


def _in_a_process(threads: str, *, mkl: bool) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.determinism", "mkl" if mkl else "own"]
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def _largest(a: list[float], b: list[float]) -> float:
    return float((torch.tensor(a, dtype=torch.float64) - torch.tensor(b, dtype=torch.float64)).abs().max())


if __name__ == "__main__":
    main()
