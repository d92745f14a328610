"""Prefill and decode times of a student next to its teacher, and what they could be at best."""

from __future__ import annotations

import time

import torch
from transformers import PreTrainedModel

from depthprune_core.models import decoder, text_config
from depthprune_core.progress import Progress, silent
from depthprune_core.records import Timing


@torch.no_grad()
def compare(
    teacher: PreTrainedModel,
    student: PreTrainedModel,
    *,
    context: int,
    new_tokens: int,
    repetitions: int,
    batch_size: int = 1,
    progress: Progress = silent,
) -> Timing:
    """Times taken in turn (teacher, student, teacher, ...), after one unmeasured round of each.

    Prefill is one forward over `context` tokens that fills the KV cache; decode is `new_tokens` single-token steps
    behind it, greedy, never stopped early. Random token ids: the time does not depend on them.
    """
    generator = torch.Generator().manual_seed(0)
    vocabulary = text_config(teacher.config).vocab_size
    prompt = torch.randint(vocabulary, (batch_size, context), generator=generator).to(teacher.device)
    samples: dict[str, list[tuple[float, float]]] = {"teacher": [], "student": []}
    for repetition in range(repetitions + 1):
        for name, model in (("teacher", teacher), ("student", student)):
            times = _prefill_and_decode_ms(model, prompt, new_tokens)
            if repetition:  # the first round warms up caches, allocator and clocks
                samples[name].append(times)
        progress(repetition, repetitions, "timed rounds")
    return Timing(
        device=device_name(teacher.device),
        dtype=str(teacher.dtype).removeprefix("torch."),
        batch_size=batch_size,
        context=context,
        new_tokens=new_tokens,
        n_threads=torch.get_num_threads(),
        teacher_prefill_ms=tuple(prefill for prefill, _ in samples["teacher"]),
        student_prefill_ms=tuple(prefill for prefill, _ in samples["student"]),
        teacher_decode_ms_per_token=tuple(decode for _, decode in samples["teacher"]),
        student_decode_ms_per_token=tuple(decode for _, decode in samples["student"]),
        by_layer_count=len(decoder(teacher).layers) / len(decoder(student).layers),
        by_weight_bytes=weight_bytes_per_token(teacher) / weight_bytes_per_token(student),
        teacher_kv_bytes_per_token=kv_bytes_per_token(teacher),
        student_kv_bytes_per_token=kv_bytes_per_token(student),
    )


def weight_bytes_per_token(model: PreTrainedModel) -> int:
    """Bytes of weights that one decoded token must read: the layers, the final norm and the head; of an embedding one row."""
    parts = decoder(model)
    embeddings = {m.weight for m in parts.base.modules() if isinstance(m, torch.nn.Embedding)}
    read = {p for p in model.parameters() if p not in embeddings} | set(parts.head.parameters())
    return sum(p.numel() * p.element_size() for p in read)


@torch.no_grad()
def kv_bytes_per_token(model: PreTrainedModel) -> int:
    """Bytes that one more token of context adds to the KV cache, read off a cache of four tokens."""
    ids = torch.tensor([[1, 2, 3, 4]], device=model.device)
    cache = model(input_ids=ids, use_cache=True).past_key_values
    tensors = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors) // ids.numel()


def device_name(device: torch.device) -> str:
    """What the times were measured on."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return device.type


def _prefill_and_decode_ms(model: PreTrainedModel, prompt: torch.Tensor, new_tokens: int) -> tuple[float, float]:
    start = _now(model.device)
    out = model(input_ids=prompt, use_cache=True, logits_to_keep=1)
    prefilled = _now(model.device)
    for _ in range(new_tokens):
        ids = out.logits[:, -1:].argmax(-1)
        out = model(input_ids=ids, past_key_values=out.past_key_values, use_cache=True)
    done = _now(model.device)
    return 1e3 * (prefilled - start), 1e3 * (done - prefilled) / new_tokens


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
