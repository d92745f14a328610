"""`make torture`: kills the study `ci` and a recovery again and again, and reports the results.

It resumes after a stop. The numbers of kills, losses and errors are printed and kept in
runs/torture/results.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import killing

from depthprune_core import storage

RUN = [sys.executable, "-m", "depthprune_study", "run", "ci"]


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    options.add_argument("--kills", type=int, default=50)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--folder", type=Path, default=Path("runs") / "torture")
    asked = options.parse_args()
    folder = asked.folder.resolve()
    calm = folder / "calm"
    records = Path("reports") / "ci" / "records"
    began = time.monotonic()
    where = killing.environment(DEPTHPRUNE_HOME=str(calm))
    subprocess.run(RUN, env=where, check=True)
    whole = max(20.0, time.monotonic() - began)
    expected = killing.contents(calm / records)
    home = folder / f"seed-{asked.seed}"
    home.mkdir(parents=True, exist_ok=True)
    state = killing.harry(
        home,
        RUN,
        home / records,
        expected,
        kills=asked.kills,
        seed=asked.seed,
        seconds=(3, 0.5 * whole),
    )
    print(f"study: {sum(state['kills'].values())} kills {state['kills']}, {state['studies']} ended")
    print(f"of {len(expected)} records, lost: {state['lost']}, wrong: {state['wrong']}", flush=True)
    healed = killing.harry_recovery(folder / "recovery", kills=asked.kills, seed=asked.seed)
    print(f"recovery: {healed}")
    results = {"seed": asked.seed, "study": state, "recovery": healed}
    storage.write_atomically(folder / "results.json", json.dumps(results, indent=1))
    return bool(state["lost"] or state["wrong"] or healed["wrong"] or healed["repeated"])


if __name__ == "__main__":
    sys.exit(main())
