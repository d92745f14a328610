"""`python -m benchmarks`: the table, printed row by row and saved under benchmarks/results/."""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import asdict

from benchmarks import decode, figure, machine, rows, table
from benchmarks.measure import Row


def main() -> None:
    """Run every row (or the named ones) and save the table, as JSON and as a figure."""
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument("--only", default="", help="rows whose work contains this text; nothing is saved then")
    only = parser.parse_args().only
    start = time.monotonic()

    def tell(done: int, of: int, what: str) -> None:
        print(f"[{time.monotonic() - start:5.0f} s] {done} of {of} {what}", file=sys.stderr, flush=True)

    done: list[Row] = []
    for row in rows.all_rows(tell, only=only):
        done.append(row)
        print(table.line(row), flush=True)
    if only and only not in "decode":
        return
    depths, timings, constants = decode.depths(lambda *_: None)
    print(table.decode_lines(depths), flush=True)
    if not only:
        path = machine.save(
            "table", {"rows": [asdict(row) for row in done], "decode": [asdict(d) for d in depths], "floor": constants}
        )
        figure.save(path.with_suffix(".png"), done, timings)
        print(f"saved {path}, {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
