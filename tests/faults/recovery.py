"""One recovery with a checkpoint every step, as a script: `recovery.py FOLDER`.

FOLDER/steps has one file per start, with the tokens after each step, one per line. FOLDER/ended has
a hash of the student and its curve.
"""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from tiny import tiny, tiny_windows

from depthprune_core import distillation, pruning
from depthprune_core.records import Plan, Recipe

STEPS = 60


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    teacher, some = tiny("llama"), tiny_windows()
    windows = some.take([i % len(some) for i in range(2 * STEPS)])
    student = pruning.drop_layers(teacher, Plan(5, (2,), "by hand"))
    step = 2 * windows.seq_len
    recipe = Recipe(
        tokens=STEPS * step, lr=1e-3, batch_tokens=step, seq_len=windows.seq_len, seed=0
    )
    (folder / "steps").mkdir(parents=True, exist_ok=True)
    number = len(list((folder / "steps").iterdir()))
    with open(folder / "steps" / f"{number:03d}", "w", encoding="utf-8", buffering=1) as steps:
        student, curve = distillation.recover(
            student,
            teacher,
            windows,
            recipe,
            checkpoint=folder / "checkpoint",
            checkpoint_every_seconds=0,
            progress=lambda done, of, what: steps.write(f"{done}\n"),
        )
    weights = [tensor.numpy().tobytes() for _, tensor in sorted(student.state_dict().items())]
    curve_text = json.dumps(asdict(curve), sort_keys=True).encode()
    (folder / "ended").write_text(hashlib.sha256(b"".join([curve_text, *weights])).hexdigest())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
