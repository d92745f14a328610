"""Rows as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.measure import Row

WORK = ("work", "model", "size", "plain", "ours", "plain / ours", "by operation counts")
WORK += ("memory: plain / ours", "largest difference", "note")


def header(names: Sequence[str]) -> str:
    """The two lines above a table's rows."""
    return f"| {' | '.join(names)} |\n{'| --- ' * len(names)}|"


def work(row: Row) -> str:
    """One row of the table of work."""
    plain, ours = (sorted(s)[len(s) // 2] for s in (row.plain_seconds, row.our_seconds))
    ratio, memory = row.ratio, ""
    spread = f" [{ratio.low:.2f}, {ratio.high:.2f}]" if ratio.n > 1 else ""
    if row.plain_peak_bytes and row.our_peak_bytes:
        share = row.our_peak_bytes / row.plain_peak_bytes
        sides = [f"{n / 1e6:,.0f} MB" for n in (row.plain_peak_bytes, row.our_peak_bytes)]
        memory = f"{' / '.join(sides)} ({share:.2f}x)"
    allowed = f"{row.counts_allow:.2f}x" if row.counts_allow else ""
    cells = [row.work, row.model, row.size, f"{plain:.1f} s", f"{ours:.1f} s"]
    cells += [f"**{ratio.point:.2f}x**{spread}", allowed, memory, f"{row.largest_difference:.0e}"]
    return f"| {' | '.join([*cells, row.note])} |"
