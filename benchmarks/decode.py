"""Decode at the source's own sizes, beside what bandwidth and the cost of a layer's start allow."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks import machine
from depthprune_core import models, speed
from depthprune_core.decoder import anatomy
from depthprune_core.progress import Progress
from depthprune_study.results.statistics import median_ratio

SHAPES = {"gpt2-shape": (10, 9), "tinyllama-1.1b-shape": (20, 19)}
# The same layers, too narrow for memory to matter: what is left is the cost of starting them.
NARROW = {
    "gpt2-shape": {"n_embd": 96, "vocab_size": 512, "bos_token_id": 0, "eos_token_id": 0},
    "tinyllama-1.1b-shape": {
        "hidden_size": 128,
        "intermediate_size": 352,
        "vocab_size": 512,
        "head_dim": 4,
    },
}


@dataclass(frozen=True)
class Depth:
    """Decode of one shape at one depth."""

    model: str
    n_layers: int
    ms_per_token: float  # median over the rounds
    floor_ms_per_token: float  # weight bytes / bandwidth + layers x start + the rest
    gain: str  # over the whole model, with its interval
    by_layer_count: float
    by_weight_bytes: float


def depths(progress: Progress) -> list[Depth]:
    """Every depth of both shapes."""
    found = []
    for name, fewer in SHAPES.items():
        model = machine.load(name).model
        per_second = bandwidth([p for p in anatomy(model).layers.parameters() if p.ndim == 2])
        start, rest = start_ms(name)
        options = {"context": 32, "new_tokens": 8, "repetitions": 7, "progress": progress}
        timings = speed.compare_depths(model, fewer, **options)
        whole = len(anatomy(model).layers)
        measured = {whole: next(iter(timings.values())).teacher_decode_ms_per_token}
        measured |= {int(d): timing.student_decode_ms_per_token for d, timing in timings.items()}
        bytes_read = {
            d: speed.weight_bytes_per_token(models.shape(name, n_layers=d)) for d in measured
        }
        for depth, ms in measured.items():
            floor = 1e3 * bytes_read[depth] / per_second + depth * start + rest
            gain, median = str(median_ratio(measured[whole], ms)), sorted(ms)[len(ms) // 2]
            by_bytes = bytes_read[whole] / bytes_read[depth]
            found.append(Depth(name, depth, median, floor, gain, whole / depth, by_bytes))
        del model
    return found


@torch.no_grad()
def bandwidth(matrices: list[torch.Tensor], *, rounds: int = 7) -> float:
    """Bytes a second at which a vector goes through these matrices, more than a cache holds."""
    sides = {side for m in matrices for side in m.shape}
    like = {"dtype": matrices[0].dtype, "device": matrices[0].device}
    inputs = {side: torch.ones(1, side, **like) for side in sides}
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        for m in matrices:
            functional.linear(inputs[m.shape[1]], m)
        seconds.append(time.perf_counter() - start)
    return sum(m.numel() * m.element_size() for m in matrices) / sorted(seconds)[rounds // 2]


def start_ms(name: str) -> tuple[float, float]:
    """Milliseconds of decode that each layer costs, and the rest of a step, in a narrow model."""
    times = {n: _narrow_ms(name, n) for n in (4, 12)}
    per_layer = (times[12] - times[4]) / 8
    return per_layer, times[4] - 4 * per_layer


def _narrow_ms(name: str, n_layers: int) -> float:
    config = AutoConfig.for_model(**{**models.SOURCES[name].shape, **NARROW[name]})
    config.num_hidden_layers = n_layers
    with torch.random.fork_rng(devices=[]):
        model = AutoModelForCausalLM.from_config(config).eval()
    options = {"context": 32, "new_tokens": 32, "repetitions": 9}
    timing = speed.compare_all(model, {"same": model}, **options)["same"]
    ms = sorted((*timing.teacher_decode_ms_per_token, *timing.student_decode_ms_per_token))
    return ms[len(ms) // 2]
