"""Decode at the source's own sizes, next to what memory bandwidth and the cost of starting a layer allow."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, StaticCache

from benchmarks.rows import load
from depthprune_core import intervals, models, speed
from depthprune_core.decoders import decoder
from depthprune_core.progress import Progress
from depthprune_core.pruning import drop_layers
from depthprune_core.records import Plan, Timing

SHAPES = {"gpt2-shape": (10, 9), "tinyllama-1.1b-shape": (20, 19)}
NARROW = {  # the same layers, too narrow for memory to matter: what is left is the cost of starting them
    "gpt2-shape": {"n_embd": 96, "n_head": 12, "vocab_size": 512, "bos_token_id": 0, "eos_token_id": 0},
    "tinyllama-1.1b-shape": {
        "hidden_size": 128,
        "intermediate_size": 352,
        "vocab_size": 512,
        "num_attention_heads": 32,
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
    compiled_ms_per_token: float = 0.0  # with a static cache and a compiled step; 0 = not measured (on a GPU only)


def depths(progress: Progress) -> tuple[list[Depth], dict[str, Timing], dict[str, float]]:
    """Every depth of both shapes; the timings; and the constants of the floor: GB/s, ms a layer, ms beside the layers."""
    found, all_timings, constants = [], {}, {}
    for name, fewer in SHAPES.items():
        model, _ = load(name)
        matrices = [p for p in decoder(model).layers.parameters() if p.ndim == 2]
        gigabytes_per_second = bandwidth(matrices)
        start, rest = start_ms(name)
        constants |= {f"{name}: GB/s": gigabytes_per_second, f"{name}: ms a layer": start, f"{name}: ms beside": rest}
        timings = speed.compare_depths(model, fewer, context=32, new_tokens=8, repetitions=7, progress=progress)
        whole = len(decoder(model).layers)
        measured = {whole: next(iter(timings.values())).teacher_decode_ms_per_token}
        measured |= {int(depth): timing.student_decode_ms_per_token for depth, timing in timings.items()}
        compiled = _compiled_depths(model, measured) if model.device.type == "cuda" else {}
        for depth, ms in measured.items():
            read = speed.weight_bytes_per_token(models.shape(name, n_layers=depth))
            floor = read / gigabytes_per_second / 1e6 + depth * start + rest
            gain = intervals.median_ratio(measured[whole], ms)
            by_bytes = speed.weight_bytes_per_token(models.shape(name, n_layers=whole)) / read
            median = sorted(ms)[len(ms) // 2]
            found.append(Depth(name, depth, median, floor, str(gain), whole / depth, by_bytes, compiled.get(depth, 0.0)))
        all_timings |= {f"{name}, {depth} layers": timing for depth, timing in timings.items()}
        del model, matrices
    return found, all_timings, constants


@torch.no_grad()
def bandwidth(matrices: list[torch.Tensor], *, rounds: int = 7) -> float:
    """GB/s at which one token's vector goes through these matrices, far more of them than a cache holds."""
    inputs = {m.shape[1]: torch.ones(1, m.shape[1], dtype=m.dtype, device=m.device) for m in matrices}
    inputs |= {m.shape[0]: torch.ones(1, m.shape[0], dtype=m.dtype, device=m.device) for m in matrices}
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        for m in matrices:
            functional.linear(inputs[m.shape[1]], m)
        seconds.append(time.perf_counter() - start)
    return sum(m.numel() * m.element_size() for m in matrices) / sorted(seconds)[rounds // 2] / 1e9


@torch.no_grad()
def compiled_decode(
    model: PreTrainedModel, prompt: torch.Tensor, *, new_tokens: int, rounds: int = 5, **compile_options: Any
) -> tuple[list[int], float]:
    """Greedy tokens behind a prompt (1, context), and the median milliseconds a token over the rounds.

    The KV cache has its full size from the start and the step of one token is compiled, so that a GPU replays one graph
    instead of starting every kernel.
    """
    cache = StaticCache(config=model.config, max_cache_len=prompt.shape[1] + new_tokens)
    step = torch.compile(lambda ids: model(input_ids=ids, past_key_values=cache, use_cache=True).logits, **compile_options)
    seconds, tokens = [], []
    for _ in range(rounds + 2):  # the first two compile and record
        cache.reset()
        ids = model(input_ids=prompt, past_key_values=cache, use_cache=True).logits[:, -1:].argmax(-1)
        tokens = [int(ids)]
        start = speed.now(model.device)
        for _ in range(new_tokens - 1):
            ids = step(ids.clone())[:, -1:].argmax(-1)
            tokens.append(int(ids))
        seconds.append(speed.now(model.device) - start)
    return tokens, 1e3 * sorted(seconds[2:])[rounds // 2] / (new_tokens - 1)


def _compiled_depths(model: PreTrainedModel, depths: Iterable[int]) -> dict[int, float]:
    n_layers, found = len(decoder(model).layers), {}
    prompt = torch.ones(1, 32, dtype=torch.long, device=model.device)
    for depth in depths:
        cut = drop_layers(model, Plan(n_layers, tuple(range(depth, n_layers)), "last_k"), share=True)
        found[depth] = compiled_decode(cut, prompt, new_tokens=33, mode="reduce-overhead")[1]
    return found


def start_ms(name: str) -> tuple[float, float]:
    """Milliseconds of decode that each layer costs, and the rest of a step, in a model too narrow for bytes to matter."""
    times = {n: _narrow_ms(name, n) for n in (4, 12)}
    per_layer = (times[12] - times[4]) / 8
    return per_layer, times[4] - 4 * per_layer


def _narrow_ms(name: str, n_layers: int) -> float:
    config = AutoConfig.for_model(**{**models.SOURCES[name].shape, **NARROW[name]})
    config.num_hidden_layers = n_layers
    with torch.random.fork_rng(devices=[]):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config).eval()
    timing = speed.compare(model, model, context=32, new_tokens=32, repetitions=9)
    ms = sorted((*timing.teacher_decode_ms_per_token, *timing.student_decode_ms_per_token))
    return ms[len(ms) // 2]
