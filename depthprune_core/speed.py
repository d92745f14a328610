"""Prefill and decode times of a student next to its teacher, and what they could be at best."""

from __future__ import annotations

import platform
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from depthprune_core.decoders import decoder, text_config
from depthprune_core.distillation import recover
from depthprune_core.products import CPUINFO, linear
from depthprune_core.progress import Progress, silent
from depthprune_core.pruning import drop_layers
from depthprune_core.records import Plan, Timing
from depthprune_core.text import Windows


def compare(teacher: PreTrainedModel, student: PreTrainedModel, **options: Any) -> Timing:
    """One student next to its teacher. Options as in `compare_all`."""
    return compare_all(teacher, {"student": student}, **options)["student"]


@torch.no_grad()
def compare_all(
    teacher: PreTrainedModel,
    students: Mapping[str, PreTrainedModel],
    *,
    context: int,
    new_tokens: int,
    repetitions: int,
    batch_size: int = 1,
    progress: Progress = silent,
) -> dict[str, Timing]:
    """Times taken in turn (teacher, each student, teacher, ...), after one unmeasured round of each.

    Prefill is one forward over `context` tokens that fills the KV cache; decode is `new_tokens` single-token steps
    behind it, greedy, never stopped early. Random token ids: the time does not depend on them.
    """
    generator = torch.Generator().manual_seed(0)
    vocabulary = text_config(teacher.config).vocab_size
    prompt = torch.randint(vocabulary, (batch_size, context), generator=generator).to(teacher.device)
    teacher_samples: list[tuple[float, float]] = []
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in students}
    for repetition in range(repetitions + 1):
        teacher_times = _prefill_and_decode_ms(teacher, prompt, new_tokens)
        times = {name: _prefill_and_decode_ms(student, prompt, new_tokens) for name, student in students.items()}
        if repetition:  # the first round warms up caches, allocator and clocks
            teacher_samples.append(teacher_times)
            for name, pair in times.items():
                samples[name].append(pair)
        progress(repetition, repetitions, "timed rounds")
    return {
        name: Timing(
            device=device_name(teacher.device),
            dtype=str(teacher.dtype).removeprefix("torch."),
            batch_size=batch_size,
            context=context,
            new_tokens=new_tokens,
            n_threads=torch.get_num_threads(),
            teacher_prefill_ms=tuple(prefill for prefill, _ in teacher_samples),
            student_prefill_ms=tuple(prefill for prefill, _ in samples[name]),
            teacher_decode_ms_per_token=tuple(decode for _, decode in teacher_samples),
            student_decode_ms_per_token=tuple(decode for _, decode in samples[name]),
            by_layer_count=len(decoder(teacher).layers) / len(decoder(student).layers),
            by_weight_bytes=weight_bytes_per_token(teacher) / weight_bytes_per_token(student),
            teacher_kv_bytes_per_token=kv_bytes_per_token(teacher),
            student_kv_bytes_per_token=kv_bytes_per_token(student),
        )
        for name, student in students.items()
    }


def compare_depths(model: PreTrainedModel, depths: Sequence[int], **options: Any) -> dict[str, Timing]:
    """A model next to shallower ones of the same weights, by depth. Options as in `compare_all`.

    What a layer computes does not change its time, so the last layers go, and random weights time as well as real ones.
    """
    n_layers = len(decoder(model).layers)
    plans = {str(depth): Plan(n_layers, tuple(range(depth, n_layers)), "last_k") for depth in depths}
    return compare_all(model, {depth: drop_layers(model, plan, share=True) for depth, plan in plans.items()}, **options)


def weight_bytes_per_token(model: PreTrainedModel) -> int:
    """Bytes of weights that one decoded token must read: the layers, the final norm and the head; an embedding's one row is
    left out. By arithmetic: a model on torch's meta device will do."""
    embeddings = {m.weight for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    read = {p for p in model.parameters() if p not in embeddings} | set(model.get_output_embeddings().parameters())
    return sum(p.numel() * p.element_size() for p in read)


@torch.no_grad()
def kv_bytes_per_token(model: PreTrainedModel) -> int:
    """Bytes that one more token of context adds to the KV cache, read off a cache of four tokens."""
    ids = torch.tensor([[1, 2, 3, 4]], device=model.device)
    cache = model(input_ids=ids, use_cache=True).past_key_values
    tensors = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors) // ids.numel()


def device_name(device: torch.device) -> str:
    """What the times were measured on: the GPU or the processor by its name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    model = re.search(r"model name\s*:\s*(.*\S)", CPUINFO.read_text()) if CPUINFO.exists() else None
    return model[1] if model else platform.processor() or platform.machine() or device.type


def _prefill_and_decode_ms(model: PreTrainedModel, prompt: torch.Tensor, new_tokens: int) -> tuple[float, float]:
    start = now(model.device)
    out = model(input_ids=prompt, use_cache=True, logits_to_keep=1)
    prefilled = now(model.device)
    for _ in range(new_tokens):
        ids = out.logits[:, -1:].argmax(-1)
        out = model(input_ids=ids, past_key_values=out.past_key_values, use_cache=True)
    done = now(model.device)
    return 1e3 * (prefilled - start), 1e3 * (done - prefilled) / new_tokens


def now(device: torch.device) -> float:
    """Seconds on a clock that waits for what a GPU has still to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def product_tflops(device: torch.device, precision: str = "float32", *, times: int = 5) -> float:
    """What large matrix products reach, by the library that recovery uses: the fastest of a few, in 10^12 operations a second."""
    size, at_once = (8_192, 10) if device.type == "cuda" else (2_048, 1)
    a = torch.ones(size, size, device=device, dtype=getattr(torch, precision))
    seconds = []
    for _ in range(times + 1):
        began = now(device)
        for _ in range(at_once):
            linear(a, a)
        seconds.append(now(device) - began)
    return 2 * size**3 * at_once / min(seconds) / 1e12


def recovery_pace(
    make_student: Callable[[], PreTrainedModel], teacher: PreTrainedModel, windows: Windows, *, rounds: int = 3, **recipe: Any
) -> float:
    """Tokens a second of a recovery on these windows: the median of some rounds, after one that warms up. Options as in `recover`."""
    seconds = []
    for _ in range(rounds + 1):
        student = make_student()
        start = now(student.device)
        recover(student, teacher, windows, **recipe)
        seconds.append(now(student.device) - start)
    return len(windows) * windows.seq_len / statistics.median(seconds[1:])
