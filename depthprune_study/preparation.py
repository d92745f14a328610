"""What is asked before the first notebook runs: is every model and text there, does the machine suit, are there layers enough to drop?"""

from __future__ import annotations

import importlib.util
import platform
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from depthprune_study import places
from depthprune_study.settings import StudyError

if TYPE_CHECKING:
    from depthprune_study.run import Step


def fetch(steps: Sequence[Step], say: Callable[[str], None]) -> None:
    """Get and check every model and text that the steps name before the first of them runs: what is missing is told at once."""
    from transformers.utils import logging

    from depthprune_core import models, text, zero_shot

    logging.disable_progress_bar()
    logging.set_verbosity_error()  # a table of what is wrong with a folder, which is told in a sentence
    asks_tasks = [
        step.notebook for step in steps if step.parameters.get("zero_shot_items") or step.parameters.get("zero_shot_tasks")
    ]
    if asks_tasks and importlib.util.find_spec("lm_eval") is None:
        raise StudyError(
            f"{asks_tasks[0]} asks for zero-shot tasks, which need lm-eval: pip install 'depthprune[eval]', or ask for none"
        )
    for step in steps:
        if (tasks := step.parameters.get("zero_shot_tasks")) and (unknown := zero_shot.unknown(tasks)):
            raise StudyError(
                f"{step.notebook}: zero_shot_tasks names {unknown[0]!r}, which is no single task that lm-eval knows"
            )
    wanted_texts = {step.parameters[key] for step in steps for key in ("text", "elsewhere") if key in step.parameters}
    wanted_models = {step.parameters["model"] for step in steps if "model" in step.parameters}
    try:
        for name in sorted(wanted_texts):
            say(f"text {name}: fetching, or checking what is cached")
            text.split_named(name, cache=places.cache(), assets=places.assets())
        for name in sorted(wanted_models):
            say(f"model {name}: fetching, or checking what is cached")
            models.fetch_only(name, cache=places.cache(), assets=places.assets())
        for step in steps:
            _check_depth(step, models.depth(step.parameters["model"]) if "model" in step.parameters else 0)
    except (ValueError, RuntimeError) as error:
        raise StudyError(str(error)) from None


def shortcomings(steps: Sequence[Step]) -> list[str]:
    """Where the machine that runs the steps seems not to suit them, a sentence each; a host that hands them on need not ask.

    Raises StudyError for a GPU, or an optimiser's package, that is not there.
    """
    from depthprune_core import optimisers

    for step in steps:
        for optimiser in {*step.parameters.get("optimisers", ()), step.parameters.get("optimiser", "recipe")} - {"recipe"}:
            try:
                optimisers.check(optimiser)
            except ValueError as error:
                raise StudyError(f"{step.notebook}: {error}") from None
    return [*slow_precisions(steps), *short_memory(steps)]


def short_memory(steps: Sequence[Step]) -> list[str]:
    """A sentence for each notebook that needs, by arithmetic, more memory than the GPU has that it would run on."""
    import torch

    from depthprune_study import budget
    from depthprune_study.bench import device_of

    on_gpu = [step.notebook for step in steps if device_of(step.parameters.get("device", "cpu")) == "cuda"]
    if not on_gpu:
        return []
    has = torch.cuda.get_device_properties(0).total_memory
    try:
        needs = {cost.notebook: cost.peak_bytes for cost in budget.costs_of({s.notebook: s.parameters for s in steps})}
    except (StudyError, KeyError):  # a size that only a look at the model would tell; a cell of a sweep, or its table
        return []
    return [
        f"{notebook}: it needs about {needs[notebook] / 2**30:.1f} GiB at most, by arithmetic, and this GPU has "
        f"{has / 2**30:.1f}: README.md says what saves memory"
        for notebook in on_gpu
        if needs.get(notebook, 0) > has
    ]


def slow_precisions(steps: Sequence[Step]) -> list[str]:
    """A sentence for each notebook that asks for 16-bit arithmetic of an x86 processor for which PyTorch has no kernels of it.

    Raises StudyError for a GPU that is not there.
    """
    asked = [step for step in steps if step.parameters.get("precision") in ("bfloat16", "float16")]
    if not asked:
        return []
    import torch

    from depthprune_study.bench import device_of

    is_slow = platform.machine() in ("x86_64", "AMD64") and torch.backends.cpu.get_cpu_capability() != "AVX512"
    return [
        f"{step.notebook}: precision={step.parameters['precision']} can take many times as long as float32 on this CPU, "
        "which has no AVX-512: a GPU is wanted, or precision=auto"
        for step in asked
        if device_of(step.parameters["device"]) == "cpu" and is_slow
    ]


def _check_depth(step: Step, n_layers: int) -> None:
    """Raises StudyError where a notebook would leave no layer; 0 layers: not known. After a single count, one more goes in stages."""
    for name, most in (("drop_counts", n_layers - 1), ("race_counts", n_layers - 1), ("drop_count", n_layers - 2)):
        asked = step.parameters.get(name, [])
        if n_layers and max(asked if isinstance(asked, list) else [asked], default=0) > most:
            raise StudyError(
                f"{step.notebook}: {name}={asked} should be at most {most}: {step.parameters['model']} has {n_layers} layers"
            )
