"""One of several processes that recover a tiny student together: RANK and WORLD_SIZE say which.

Arguments: the folder for its results, and the recipes, where not everything is wanted.
"""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from pathlib import Path

import torch
from accelerate import Accelerator
from tiny import plan_of, tiny, tiny_windows

from depthprune_core.distillation import recover
from depthprune_core.pruning import drop_layers, share_equal

RECIPES = {
    "all": {"loss": {"kl": 0.5, "ce": 0.5}, "weight_decay": 0.1},
    "small steps": {"loss": {"kl": 1.0}, "micro_batch_size": 1},
    "hidden": {"loss": {"kl": 1.0, "hidden": 1.0}, "optimiser": "muon"},
    "lora": {"loss": {"ce": 1.0}, "trained": "lora", "lora_rank": 2},
    "lora, the teacher's weights": {"loss": {"kl": 1.0}, "trained": "lora", "lora_rank": 2},
    "after_first_cut": {"loss": {"kl": 1.0}, "trained": "after_first_cut"},
}
WINDOWS = tiny_windows(seed=3, lengths=(60, 29, 31))
assert len(WINDOWS) == 11  # in steps of five: the last one has fewer windows than there are processes


def recovered(
    name: str, accelerator: Accelerator | None, *, family: str = "llama", noise: float = 0.0, **options: object
) -> tuple:
    """A recipe run on the same models and windows everywhere. `noise`: how far this process' student is off at first."""
    teacher = tiny(family)
    plan = plan_of(teacher, 2)
    student = drop_layers(teacher, plan)
    with torch.no_grad():
        for p in student.parameters():
            p.add_(noise)
    if name == "lora, the teacher's weights":
        share_equal(student, teacher, plan)
        assert set(student.parameters()) <= set(teacher.parameters())
    return recover(
        student, teacher, WINDOWS, plan=plan, lr=1e-2, seed=0, batch_size=5, accelerator=accelerator, **options, **RECIPES[name]
    )


def resumed(folder: Path, accelerator: Accelerator) -> tuple:
    """The first recipe, stopped after its second step, and gone on with from before that one."""
    seen = []

    def stop(done: int, of: int, what: str) -> None:
        seen.append(done)
        if len(seen) == 2:
            raise KeyboardInterrupt

    options = {"checkpoint": folder / "run.ckpt", "checkpoint_every_seconds": 0, "noise": 0.01 * accelerator.process_index}
    with suppress(KeyboardInterrupt):
        recovered("all", accelerator, progress=stop, **options)
    accelerator.wait_for_everyone()
    return recovered("all", accelerator, **options)


def refused(folder: Path, accelerator: Accelerator) -> str:
    """What each process says where the checkpoint is on the first one's disk alone."""
    own = folder / "run.ckpt" if accelerator.process_index == 0 else folder / "nothing.ckpt"
    accelerator.wait_for_everyone()
    try:
        recovered("all", accelerator, checkpoint=own)
    except ValueError as error:
        return str(error)
    return "nothing"


def main(folder: Path, *names: str) -> None:
    accelerator = Accelerator(cpu=True)
    assert torch.distributed.get_backend() == "gloo"
    rank = accelerator.process_index
    for name in names or RECIPES:
        student, curve = recovered(name, accelerator, noise=0.01 * rank if name == "all" else 0.0)
        torch.save(dict(student.named_parameters()), folder / f"{name}-{rank}.pt")
        (folder / f"{name}-{rank}.json").write_text(json.dumps([curve.losses, curve.tokens, curve.recipe, curve.token_hash]))
    if not names:
        student, curve = resumed(folder, accelerator)
        torch.save(dict(student.named_parameters()), folder / f"resumed-{rank}.pt")
        (folder / f"resumed-{rank}.json").write_text(json.dumps(curve.losses))
        (folder / f"refused-{rank}.txt").write_text(refused(folder, accelerator))
    accelerator.end_training()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
