"""Rows as text."""

from __future__ import annotations

from benchmarks.decode import Depth
from benchmarks.measure import ABOUT_MEMORY, MEMORY_TARGET, Row

HEADER = (
    "| work | model | size | plain | ours | plain / ours | by operation counts | target | memory: plain / ours (ours as a share) | largest difference |",
    "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
)


def line(row: Row) -> str:
    """One row in Markdown."""
    plain, ours = (sorted(values)[len(values) // 2] for values in (row.plain_seconds, row.our_seconds))
    allowed = f"{row.counts_allow:.2f}x" if row.counts_allow else ""
    target = f"{row.target:g}x" if row.target else ""
    memory = ""
    if row.plain_peak_bytes and row.our_peak_bytes:
        share = row.our_peak_bytes / row.plain_peak_bytes
        memory = f"{_megabytes(row.plain_peak_bytes)} / {_megabytes(row.our_peak_bytes)} ({share:.2f}x)"
    cells = [row.work, row.model, row.size, f"{plain:.1f} s", f"{ours:.1f} s", f"{_ratio(row)}", allowed, target, memory]
    return "| " + " | ".join([*cells, f"{row.largest_difference:.0e} {row.unit}".rstrip()]) + " |"


def notes(rows: list[Row]) -> list[str]:
    """What a row's figures need to be read rightly, a line each."""
    return [
        f"- {row.work}{'' if row.model == '-' else f', {row.model}'}: {row.note}.{_reached(row)}" for row in rows if row.note
    ]


def _reached(row: Row) -> str:
    """Whether a target of memory is met."""
    if not row.note.startswith(ABOUT_MEMORY):
        return ""
    return " Met." if row.our_peak_bytes <= MEMORY_TARGET * row.plain_peak_bytes else " Missed."


def decode_lines(depths: list[Depth]) -> str:
    """The decode table in Markdown."""
    compiled = any(d.compiled_ms_per_token for d in depths)
    heads = ["model", "layers", "ms a token", "floor, ms a token", "measured / floor", "gain", "by layers", "by bytes"]
    heads += ["ms a token, compiled"] if compiled else []
    lines = [f"| {' | '.join(heads)} |", "| --- " + "| ---: " * (len(heads) - 1) + "|"]
    for d in depths:
        share = d.ms_per_token / d.floor_ms_per_token
        cells = [d.model, str(d.n_layers), f"{d.ms_per_token:.1f}", f"{d.floor_ms_per_token:.1f}", f"{share:.2f}", d.gain]
        cells += [f"{d.by_layer_count:.2f}x", f"{d.by_weight_bytes:.2f}x"]
        cells += [f"{d.compiled_ms_per_token:.2f}"] if compiled else []
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _ratio(row: Row) -> str:
    ratio = row.ratio
    return f"**{ratio.point:.2f}x** [{ratio.low:.2f}, {ratio.high:.2f}]" if ratio.n > 1 else f"**{ratio.point:.2f}x**"


def _megabytes(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:,.0f} MB"
