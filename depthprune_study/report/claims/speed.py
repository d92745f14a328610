"""Claims about speed: C3, C6."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from depthprune_core.records import Timing
from depthprune_study.report import wording as w
from depthprune_study.report.evidence import SHAPES, Evidence
from depthprune_study.report.verdicts import (
    FAILS,
    HOLDS,
    NOT_TESTED,
    OPEN,
    Reading,
    claim,
    within,
)
from depthprune_study.results import statistics

Rule = dict[str, Any]


def _timings(evidence: Evidence, shape: str) -> Iterator[tuple[str, str, dict[int, Timing]]]:
    """Model, notebook, {layers fewer: Timing}: the source's shape, then the models cut here."""
    whole = {"gpt2-shape": 12, "tinyllama-1.1b-shape": 22}[shape]
    of_shape = {
        whole - int(name.split(", ")[1].split()[0]): timing
        for name, timing in evidence.get("02_prune", "shape_timing").items()
        if name.startswith(f"{shape}, ")
    }
    if of_shape:
        yield shape, "02_prune", of_shape
    for notebook in ("04_transfer", "02_prune"):
        timed = evidence.get(notebook, "timing")
        if timed:
            by_count = {k: timed[f"{k} fewer"] for k in w.counts(timed)}
            yield evidence.model(notebook), notebook, by_count


@claim("C3", "02_prune")
def faster(evidence: Evidence, rule: Rule) -> Iterator[Reading]:
    """Decoding with two layers fewer; a model whose layer count allows less cannot test it."""
    for model, notebook, timed in _timings(evidence, "gpt2-shape"):
        if 2 not in timed:
            continue
        gain, allowed = statistics.decode_gain(timed[2]), timed[2].by_layer_count
        word = within(gain, rule["low"], rule["high"]) if allowed >= rule["low"] else NOT_TESTED
        detail = f"n = {gain.n} rounds; layer count allows {allowed:.2f}"
        detail += f", weight bytes {timed[2].by_weight_bytes:.2f}"
        detail += _shape_note(model)
        figure = f"{w.interval(gain)} at 2 fewer; the rule wants"
        figure += f" {rule['low']:.2f} to {rule['high']:.2f}"
        yield Reading(model, word, figure, notebook, detail)


@claim("C6", "02_prune")
def clean_then_mixed(evidence: Evidence, rule: Rule) -> Iterator[Reading]:
    """Two fewer: clearly faster. Three: not clearly faster than two, with narrow intervals."""
    for model, notebook, timed in _timings(evidence, "tinyllama-1.1b-shape"):
        if not {2, 3} <= set(timed):
            continue
        two, three = statistics.decode_gain(timed[2]), statistics.decode_gain(timed[3])
        step = two.point * (timed[3].by_layer_count / timed[2].by_layer_count - 1)
        fine = (two.high - two.low + three.high - three.low) / 2 < step
        clean, clearer = two.low > rule["clean"], three.low > two.high
        word = HOLDS if clean and fine and not clearer else OPEN
        word = FAILS if two.high < rule["clean"] or (clean and clearer) else word
        detail = f"n = {two.n} rounds"
        detail += "" if fine else "; the intervals are too wide to show the step"
        figure = f"{w.interval(two)} / {w.interval(three)}"
        figure += ": three are clearly faster" if clearer else ""
        yield Reading(model, word, figure, notebook, detail + _shape_note(model))


def _shape_note(model: str) -> str:
    shape = SHAPES.get(model)
    return f"; random weights in {shape}'s shape, which determines speed" if shape else ""
