"""What the same work gives again, with other threads and with torch's other library.

`python -m benchmarks.determinism`. Each setting is a process of its own: gpt2-mini scored, cut,
refitted and recovered on 2,048 tokens, and the student scored.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

from benchmarks import machine
from depthprune_core import checkpoints, distillation, evaluation, products, pruning, refitting
from depthprune_core.records import Plan, Recipe, Score

MODEL, PLAN = "gpt2-mini", Plan(12, (4, 5), "by hand")
RECIPE = Recipe(tokens=2_048, lr=3e-4, batch_tokens=512, seq_len=256)
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
    found = {name: _in_a_process(*setting) for name, setting in SETTINGS.items()}
    base, rows = found["2 threads"], {}
    for name, result in found.items():
        rows[name] = {
            f"{who}_nats": _apart(result[who], base[who]) for who in ("teacher", "student")
        }
        if name.endswith(", again"):
            rows[name]["same_bits_as_before"] = result == found[name.removesuffix(", again")]
    content = {"model": MODEL, "tokens": RECIPE.tokens, "settings": rows}
    print(f"saved {machine.save('determinism', content)}")


def work(*, mkl: bool) -> dict[str, Any]:
    """NLL per token of the whole model and of the student, and a hash of the student's weights."""
    if mkl:
        products.onednn_is_better = lambda: False
    teacher = machine.load(MODEL)
    validation = machine.windows(teacher, "validation", seq_len=256, count=12)
    windows = machine.windows(teacher, "recovery", seq_len=256, count=8)
    student = pruning.drop_layers(teacher.model, PLAN)
    refitting.refit(student, teacher.model, PLAN, windows)
    distillation.recover(student, teacher.model, windows, RECIPE)
    return {
        "teacher": _nats(evaluation.score(teacher.model, validation)),
        "student": _nats(evaluation.score(student, validation)),
        "weights": checkpoints.content(student).hex(),
    }


def _nats(score: Score) -> list[float]:
    rows = zip(score.nll_nats, score.n_tokens, strict=True)
    return [nll / n for nll, n in rows if n]


def _in_a_process(threads: str, mkl: bool) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.determinism", "mkl" if mkl else "chosen"]
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def _apart(a: list[float], b: list[float]) -> float:
    return max(abs(x - y) for x, y in zip(a, b, strict=True))


if __name__ == "__main__":
    main()
