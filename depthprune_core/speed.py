"""Prefill and decode times of a student and its teacher, and the possible speed-up."""

from __future__ import annotations

import platform
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from depthprune_core.anatomy import anatomy
from depthprune_core.decoder import text_config
from depthprune_core.products import CPUINFO
from depthprune_core.progress import Progress, silent
from depthprune_core.pruning import drop_layers
from depthprune_core.records import Plan, Timing


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
    """Interleaved times (teacher, each student, teacher, ...), after one unmeasured round.

    Prefill is one forward over `context` tokens that fills the KV cache; decode is `new_tokens`
    greedy single-token steps after it, never stopped early. Token ids are random, because the time
    does not depend on them.
    """
    generator = torch.Generator().manual_seed(0)
    vocabulary = text_config(teacher.config).vocab_size
    prompt = torch.randint(vocabulary, (batch_size, context), generator=generator)
    prompt = prompt.to(teacher.device)
    models = {None: teacher, **students}
    times: dict[str | None, list[tuple[float, float]]] = {name: [] for name in models}
    for repetition in range(repetitions + 1):
        for name, model in models.items():
            pair = _prefill_and_decode_ms(model, prompt, new_tokens)
            if repetition:  # the first round warms up caches, allocator and clocks
                times[name].append(pair)
        progress(repetition, repetitions, "timed rounds")
    setting = {
        "device": device_name(teacher.device),
        "dtype": str(teacher.dtype).removeprefix("torch."),
        "batch_size": batch_size,
        "context": context,
        "new_tokens": new_tokens,
        "n_threads": torch.get_num_threads(),
    }
    return {
        name: Timing(
            **setting,
            teacher_prefill_ms=tuple(prefill for prefill, _ in times[None]),
            student_prefill_ms=tuple(prefill for prefill, _ in times[name]),
            teacher_decode_ms_per_token=tuple(decode for _, decode in times[None]),
            student_decode_ms_per_token=tuple(decode for _, decode in times[name]),
            by_layer_count=len(anatomy(teacher).layers) / len(anatomy(student).layers),
            by_weight_bytes=weight_bytes_per_token(teacher) / weight_bytes_per_token(student),
            teacher_kv_bytes_per_token=kv_bytes_per_token(teacher),
            student_kv_bytes_per_token=kv_bytes_per_token(student),
        )
        for name, student in students.items()
    }


def compare_depths(
    model: PreTrainedModel, depths: Sequence[int], **options: Any
) -> dict[str, Timing]:
    """Times of a model and of shallower copies, by depth. Options as in `compare_all`.

    A layer's time does not depend on its weights, so the last layers are dropped, and random
    weights are sufficient.
    """
    n = len(anatomy(model).layers)
    plans = {str(depth): Plan(n, tuple(range(depth, n)), "last_k") for depth in depths}
    students = {depth: drop_layers(model, plan, share=True) for depth, plan in plans.items()}
    return compare_all(model, students, **options)


def weight_bytes_per_token(model: PreTrainedModel) -> int:
    """Bytes of weights that one decoded token must read: the layers, the final norm and the head.

    The one row of the embedding is ignored. Needs only shapes: the meta device is sufficient.
    """
    embeddings = {m.weight for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    read = {p for p in model.parameters() if p not in embeddings}
    read |= set(model.get_output_embeddings().parameters())
    return sum(p.numel() * p.element_size() for p in read)


@torch.no_grad()
def kv_bytes_per_token(model: PreTrainedModel) -> int:
    """Bytes that one more token adds to the KV cache, measured on a cache of four tokens."""
    ids = torch.tensor([[1, 2, 3, 4]], device=model.device)
    cache = model(input_ids=ids, use_cache=True).past_key_values
    tensors = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors) // ids.numel()


def device_name(device: torch.device) -> str:
    """The name of the GPU or processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    text = CPUINFO.read_text() if CPUINFO.exists() else ""
    model = re.search(r"model name\s*:\s*(.*\S)", text)
    return model[1] if model else platform.processor() or platform.machine() or device.type


def _prefill_and_decode_ms(
    model: PreTrainedModel, prompt: torch.Tensor, new_tokens: int
) -> tuple[float, float]:
    """Milliseconds: of the prompt, and of each token after it."""
    start = now(model.device)
    out = model(input_ids=prompt, use_cache=True, logits_to_keep=1)
    prefilled = now(model.device)
    for _ in range(new_tokens):
        ids = out.logits[:, -1:].argmax(-1)
        out = model(input_ids=ids, past_key_values=out.past_key_values, use_cache=True)
    done = now(model.device)
    return 1e3 * (prefilled - start), 1e3 * (done - prefilled) / new_tokens


def now(device: torch.device) -> float:
    """Seconds on a clock, after waiting for the GPU to finish."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
