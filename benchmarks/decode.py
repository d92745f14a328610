"""Decode at the source's own sizes, beside what layer count and weight bytes allow."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks import machine
from depthprune_core import models, speed
from depthprune_core.anatomy import anatomy
from depthprune_core.progress import Progress
from depthprune_study.results.statistics import median_ratio

SHAPES = {"gpt2-shape": (10, 9), "tinyllama-1.1b-shape": (20, 19)}


@dataclass(frozen=True)
class Depth:
    """Decode of one shape at one depth."""

    model: str
    n_layers: int
    ms_per_token: float  # median over the rounds
    gain: str  # over the whole model, with its interval
    by_layer_count: float
    by_weight_bytes: float


def depths(progress: Progress) -> list[Depth]:
    """Every depth of both shapes."""
    found = []
    options = {"context": 32, "new_tokens": 8, "repetitions": 7, "progress": progress}
    for name, fewer in SHAPES.items():
        model = machine.load(name).model
        timings = speed.compare_depths(model, fewer, **options)
        whole = len(anatomy(model).layers)
        measured = {whole: next(iter(timings.values())).teacher_decode_ms_per_token}
        measured |= {int(d): timing.student_decode_ms_per_token for d, timing in timings.items()}
        n_bytes = {
            d: speed.weight_bytes_per_token(models.shape(name, n_layers=d)) for d in measured
        }
        for depth, ms in measured.items():
            gain, median = str(median_ratio(measured[whole], ms)), sorted(ms)[len(ms) // 2]
            by_bytes = n_bytes[whole] / n_bytes[depth]
            found.append(Depth(name, depth, median, gain, whole / depth, by_bytes))
    return found
