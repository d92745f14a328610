"""`python -m benchmarks.long`: what takes longer than `make bench` may. Each part is saved as it is done, and done once.

- race-2, race-3: the best pair and triple of SmolLM2 by racing, next to what full forwards would take.
- beyond-pairs: 4, 6 and 8 layers by pair terms, by greedy search and by single costs, quality and cost.
- teacher-cache: what recovery gains when the teacher's states are kept, and what KL loses when only its top tokens are.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from itertools import combinations
from typing import Any

import torch

from benchmarks import machine, plain
from benchmarks.rows import PAIR, greedy_passes, head_in_layers, load, passes, windows_of
from depthprune_core import distillation, evaluation, intervals, pruning, racing, selection, subsets, teachers, text
from depthprune_core.decoders import decoder
from depthprune_core.records import Plan
from depthprune_core.text import Windows
from depthprune_study import places

MODEL = "smollm2-135m"
POOL = {"seq_len": 128, "count": 128}  # windows that a race is about
SAMPLED = 24  # full forwards timed of what would take hours
TABLE_WINDOWS = 8  # of 128 tokens, for the costs of all pairs
DEPTHS = (4, 6, 8)  # layers dropped


def main() -> None:
    """Do what is not there yet; the names of parts as arguments do these alone, again."""
    named = sys.argv[1:]
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "race-2": lambda: race(2),
        "beyond-pairs": beyond_pairs,
        "teacher-cache": teacher_cache,
        "race-3": lambda: race(3),
    }
    for name, work in parts.items():
        if name in named or (not named and not (machine.RESULTS / f"{name}.json").exists()):
            print(f"{name} ...", flush=True)
            print(f"saved {machine.save(name, work())}", flush=True)


def race(k: int) -> dict[str, Any]:
    """The race timed as a whole; of the plain searches on the same windows a sample, scaled by layer passes."""
    model, tokenizer = load(MODEL)
    n_layers, head = len(decoder(model).layers), head_in_layers(model)
    windows = _pool(tokenizer, POOL["count"])
    start = time.perf_counter()
    plan, certificate = racing.best_set(model, windows, k, progress=_Tell())
    race_seconds = time.perf_counter() - start
    sets = list(combinations(range(n_layers), k))
    chosen = torch.randperm(len(sets), generator=torch.Generator().manual_seed(0))[:SAMPLED].tolist()
    batch = windows.take(slice(0, 4))
    start = time.perf_counter()
    plain.nll_sums(model, batch, [sets[i] for i in chosen])
    seconds_per_pass = (time.perf_counter() - start) / (SAMPLED * (n_layers - k + head)) / batch.n_tokens
    exhaustive = len(sets) * (n_layers - k + head) * windows.n_tokens * seconds_per_pass
    greedy = greedy_passes(n_layers, k, head) * windows.n_tokens * seconds_per_pass
    return {
        "model": MODEL,
        "pool_tokens": windows.n_tokens,
        "race_seconds": race_seconds,
        "plain_exhaustive_seconds": exhaustive,
        "plain_greedy_seconds": greedy,
        "plain_sample": f"{SAMPLED} full forwards of {batch.n_tokens} tokens, scaled by layer passes",
        "tree_passes_to_plain_passes": passes(n_layers, k, head, tree=True) / passes(n_layers, k, head, tree=False),
        "dropped": list(plan.dropped),
        "certificate": asdict(certificate),
    }


def beyond_pairs() -> dict[str, Any]:
    """Three rules at three depths: seconds to choose, and NLL on calibration and on validation articles."""
    model, tokenizer = load(MODEL)
    n_layers = len(decoder(model).layers)
    windows = _pool(tokenizer, TABLE_WINDOWS)
    articles = text.split_named("wikipedia-excerpt", cache=places.cache(), assets=places.assets())["validation"]
    validation = text.windows(articles, tokenizer, seq_len=256, tokens_per_document=512)
    whole = evaluation.score(model, validation)
    pairs = subsets.CostFunction(model, windows, progress=_Tell())
    start = time.perf_counter()
    pairs.ahead([frozenset(s) for size in (1, 2) for s in combinations(range(n_layers), size)])
    table_seconds = time.perf_counter() - start
    single = [pairs(frozenset({layer})) for layer in range(n_layers)]
    result: dict[str, Any] = {"model": MODEL, "tokens": windows.n_tokens, "pair_table_seconds": table_seconds, "by_depth": {}}
    for k in DEPTHS:
        fresh = subsets.CostFunction(model, windows, progress=_Tell())
        plans: dict[str, tuple[Plan, float]] = {}
        for rule, choose in {
            "pairwise": lambda k=k: selection.pairwise(n_layers, k, pairs),
            "greedy": lambda k=k, fresh=fresh: selection.greedy(n_layers, k, fresh),
            "least_sensitive": lambda k=k: selection.least_sensitive(single, k),
        }.items():
            start = time.perf_counter()
            plan = choose()
            plans[rule] = plan, time.perf_counter() - start
        result["by_depth"][str(k)] = {
            rule: _quality(model, pairs, validation, whole, plan) | {"search_seconds": seconds}
            for rule, (plan, seconds) in plans.items()
        }
        print(k, result["by_depth"][str(k)], flush=True)
    return result


def teacher_cache() -> dict[str, Any]:
    """Tokens a second of a second recovery on the same windows; KL against the top k tokens as a share of the full KL."""
    teacher, tokenizer = load(MODEL)
    plan = Plan(len(decoder(teacher).layers), PAIR, "fixed")
    windows = windows_of(tokenizer, "recovery", seq_len=256, count=8)
    recipe = {"plan": plan, "loss": {"kl": 1.0}, "lr": 1e-4, "seed": 0, "batch_size": 2}

    def run(cache: teachers.TeacherStates | teachers.TeacherTop | None) -> tuple[float, float]:
        student = pruning.drop_layers(teacher, plan)
        start = time.perf_counter()
        _, curve = distillation.recover(student, teacher, windows, teacher_cache=cache, **recipe)
        return windows.n_tokens / (time.perf_counter() - start), curve.losses["kl"][0]

    run(None)  # warms up
    whole, kl = run(None)
    states = teachers.TeacherStates(teacher)
    run(states)
    result: dict[str, Any] = {
        "model": MODEL,
        "tokens": windows.n_tokens,
        "tokens_per_second": whole,
        "states_tokens_per_second": run(states)[0],
        "by_k": {},
    }
    for k in (8, 32, 128):
        top = teachers.TeacherTop(teacher, k)
        first, _ = run(top)
        second, merged = run(top)
        result["by_k"][str(k)] = {"first_tokens_per_second": first, "tokens_per_second": second, "share_of_kl": merged / kl}
    return result


def _quality(model: Any, cost: subsets.CostFunction, validation: Windows, whole: Any, plan: Plan) -> dict[str, Any]:
    ratio = intervals.ppl_ratio(evaluation.score(pruning.drop_layers(model, plan), validation), whole)
    return {
        "dropped": list(plan.dropped),
        "rise_nll_nats": cost(frozenset(plan.dropped)),
        "validation_ppl_ratio": [ratio.point, ratio.low, ratio.high],
        "n_articles": ratio.n,
    }


def _pool(tokenizer: Any, count: int) -> Windows:
    """Windows drawn from all of the calibration articles."""
    windows = windows_of(tokenizer, "calibration", seq_len=POOL["seq_len"], count=10_000)
    return windows.take(torch.randperm(len(windows), generator=torch.Generator().manual_seed(1))[:count])


class _Tell:
    """A line every half minute."""

    def __init__(self) -> None:
        self.began = self.told = time.monotonic()

    def __call__(self, done: int, of: int, what: str) -> None:
        now = time.monotonic()
        if now - self.told > 30:
            self.told = now
            print(f"[{now - self.began:5.0f} s] {done} of {of} {what}", flush=True)


if __name__ == "__main__":
    main()
