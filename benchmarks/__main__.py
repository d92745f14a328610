"""`python -m benchmarks`: speed and memory beside the plain loop, printed as Markdown and saved."""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import asdict

from benchmarks import machine, rows, table


def main() -> None:
    """Run every part, or the rows that are named; only all of them are saved."""
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument("--only", default="", help="rows whose name contains this; not saved")
    only, start = parser.parse_args().only, time.monotonic()

    def tell(done: int, of: int, what: str) -> None:
        seconds = time.monotonic() - start
        print(f"[{seconds:5.0f} s] {done} of {of} {what}", file=sys.stderr, flush=True)

    print(table.header(table.WORK))
    done = []
    for row in rows.all_rows(tell, only=only):
        done.append(row)
        print(table.work(row), flush=True)
    if only:
        return
    print(f"saved {machine.save('table', {'rows': [asdict(row) for row in done]})}")
    print(f"{time.monotonic() - start:.0f} s in all")


if __name__ == "__main__":
    main()
