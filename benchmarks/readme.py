"""The blocks of README.md that the benchmarks and `make torture` fill: `python -m benchmarks.readme`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks import table
from benchmarks.decode import Depth
from benchmarks.machine import RESULTS
from benchmarks.measure import Row
from depthprune_core import models
from depthprune_core.records import write_atomically
from depthprune_study import readme
from depthprune_study.settings import StudyError


def fill(page: str) -> str:
    """The page with the blocks filled. Raises StudyError where a result or a marker is missing."""
    page = readme.replace(page, "bench", block(RESULTS))
    return readme.replace(page, "reliability", reliability(RESULTS))


def block(folder: Path) -> str:
    """Machine, table, decode, and what the long runs found."""
    measured = _read(folder / "table.json")
    rows = [Row(**row) for row in measured["rows"]]
    versions = measured["versions"]
    lines = [
        f"{measured['machine']}, {measured['n_threads']} threads, torch {versions['torch']}, transformers {versions['transformers']}; "
        "the median of the repetitions, and a 95 % interval of the ratio where there are several:",
        "",
        *table.HEADER,
        *map(table.line, rows),
        "",
        *table.notes(rows),
        "",
        table.decode_lines([Depth(**depth) for depth in measured["decode"]]),
    ]
    if (folder / "llama-cpp.json").exists():
        found = _read(folder / "llama-cpp.json")
        lines += [*llama_cpp_lines(found), "", f"- {llama_cpp_note(found)}"]
    lines += [""] if lines[-1].startswith("|") else []
    lines += [race_line(_read(path)) for path in sorted(folder.glob("race-*.json"))]
    if (folder / "beyond-pairs.json").exists():
        lines += ["", *beyond_lines(_read(folder / "beyond-pairs.json"))]
    if (folder / "teacher-cache.json").exists():
        lines += ["", cache_line(_read(folder / "teacher-cache.json"))]
    return "\n".join(lines)


def reliability(folder: Path) -> str:
    """What was tried against a study (where `make torture` has run), and how far the same work differs on other threads and libraries."""
    lines = []
    if (folder / "reliability.json").exists():
        tried = _read(folder / "reliability.json")
        lines = ["| fault | tried | results lost or wrong | |", "| --- | ---: | ---: | --- |"]
        lines += [
            f"| {words} | {row['tried']:,} | {row['lost_or_wrong']} | {row['note']} |" for words, row in tried["faults"].items()
        ]
        lines += [
            "",
            f"Moments of the kills: seed {tried['seed']}; the other faults are the same every time. ({tried['machine']}, commit {tried['commit']}.)",
            "",
        ]
    return "\n".join([*lines, same_again(_read(folder / "determinism.json"))])


def same_again(found: dict[str, Any]) -> str:
    """Determinism in a few sentences."""
    rows = found["settings"]
    again = [name for name in rows if name.endswith(", again")]
    held = all(rows[name]["same_bits_as_before"] for name in again)
    told = [f"The same work twice on as many threads {'agrees bit for bit' if held else 'does NOT agree bit for bit'}."]
    for name in ("1 thread", "2 threads, MKL's products"):
        row = rows[name]
        told.append(
            f"{name}, next to 2 threads: at most {row['teacher_nats']:.1g} nats per token of an article apart in the whole model's "
            f"score, {row['student_nats']:.1g} in the recovered student's."
        )
    return f"{' '.join(told)} ({found['model']}, {found['tokens']:,} tokens; {found['machine']}.)"


def race_line(race: dict[str, Any]) -> str:
    """A race in one sentence, with its certificate."""
    certificate = race["certificate"]
    size = len(race["dropped"])
    exhaustive, greedy = (race[f"plain_{search}_seconds"] / race["race_seconds"] for search in ("exhaustive", "greedy"))
    share = certificate["set_windows"] / (certificate["n_sets"] * certificate["n_windows"])
    return (
        f"- Best {size} of {certificate['n_layers']} layers of {race['model']} on {race['pool_tokens']:,} tokens, by racing: layers "
        f"{' + '.join(map(str, race['dropped']))}, within {certificate['tolerance_nats']:g} nats of the best with error probability "
        f"{certificate['error_probability']:.0%}, in {race['race_seconds'] / 60:.1f} min; that is **{exhaustive:.1f}x** faster than "
        f"exhaustive full forwards ({race['plain_exhaustive_seconds'] / 3600:.1f} h, from a timed sample) and {greedy:.2f}x as fast as a "
        f"greedy search by full forwards. {share:.1%} of the {certificate['n_sets']:,} sets x {certificate['n_windows']} windows were measured; "
        f"a part cost more than the whole set in {certificate['part_failures']} of {certificate['part_checks']:,} comparisons."
    )


def beyond_lines(found: dict[str, Any]) -> list[str]:
    """Three rules at each depth."""
    lines = [
        f"Beyond triples ({found['model']}, {found['tokens']:,} calibration tokens; PPL ratio on validation articles before any recovery):",
        "",
        "| dropped | rule | layers | rise in NLL on calibration, nats per token | PPL ratio on validation | seconds to choose |",
        "| ---: | --- | --- | ---: | ---: | ---: |",
    ]
    for k, rules in found["by_depth"].items():
        for rule, row in rules.items():
            point, low, high = row["validation_ppl_ratio"]
            seconds = row["search_seconds"] + (found["pair_table_seconds"] if rule == "pairwise" else 0)
            layers = ", ".join(map(str, row["dropped"]))
            cells = [k, rule, layers, f"{row['rise_nll_nats']:.3f}", f"{point:.2f} [{low:.2f}, {high:.2f}]", f"{seconds:.0f}"]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def cache_line(found: dict[str, Any]) -> str:
    """What is kept of the teacher, in two sentences."""
    whole = found["tokens_per_second"]
    shares = "; ".join(
        f"k = {k}: {row['tokens_per_second'] / whole:.2f}x the tokens a second, {row['share_of_kl']:.1%} of the KL"
        for k, row in found["by_k"].items()
    )
    return (
        f"A second recovery of {found['model']} on the same windows runs the teacher's head alone on the states kept from the first "
        f"(`TeacherStates`, exact): {found['states_tokens_per_second'] / whole:.2f}x the tokens a second. With its k most likely tokens kept "
        f"(`TeacherTop`, off by default) nothing of the teacher runs; {shares}."
    )


def llama_cpp_lines(found: dict[str, Any]) -> list[str]:
    """Rows of the decode table: a GGUF file as it came, and its cuts, in llama.cpp. No floor was measured there."""
    whole, n_layers = found["depths"]["whole"], models.depth(found["model"])
    lines = []
    for row in found["depths"].values():
        left = n_layers - len(row["dropped"])
        gain = "{:.3f} [{:.3f}, {:.3f}]".format(*row["gain"])
        ratios = (n_layers / left, whole["bytes"] / row["bytes"])
        cells = [f"{found['model']} in llama.cpp", str(left), f"{row['ms_per_token']:.1f}", "", "", gain]
        lines.append(f"| {' | '.join([*cells, *(f'{ratio:.2f}x' for ratio in ratios)])} |")
    return lines


def llama_cpp_note(found: dict[str, Any]) -> str:
    """What those rows are of."""
    cuts = [" + ".join(map(str, row["dropped"])) for row in found["depths"].values() if row["dropped"]]
    return (
        f"In llama.cpp (llama-cpp-python {found['version']}, {found['machine']}): the GGUF file that {found['model']} comes in, behind "
        f"{found['context']} tokens, and the same without layers {', or '.join(cuts)}; by bytes: of the files "
        "(`python -m benchmarks.llama_cpp`, with the extra `gguf`)."
    )


def _read(path: Path) -> dict[str, Any]:
    if not path.exists():
        maker = "python -m benchmarks.determinism" if path.stem == "determinism" else "make bench"
        raise StudyError(f"{path.name} is not there: `{maker}` writes it")
    return json.loads(path.read_text(encoding="utf-8"))


def main() -> None:
    """Write README.md anew; what is wrong is told in a sentence."""
    try:
        write_atomically(readme.README, fill(readme.README.read_text(encoding="utf-8")))
    except StudyError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
