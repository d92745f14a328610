"""The records of a whole study, made by hand: what verdicts and pages are tried on; and a notebook's cells, run without a kernel."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from depthprune_core import records
from depthprune_core.records import Curve, Facts, PairCosts, Plan, Profile, Score, Size, Stamp, Timing
from depthprune_study import places
from depthprune_study.evidence import Evidence

N_DOCUMENTS, N_TOKENS = 8, 100
NOTEBOOKS = (
    "01_sensitivity",
    "02_prune_gpt2",
    "03_recovery",
    "03b_controls",
    "03c_choice",
    "04_transfer_tinyllama",
    "05_seed_stability",
)


def score(nats_per_token: float, *, spread: float = 0.01) -> Score:
    """Eight documents of 100 tokens around a mean NLL: an interval of nearly that mean."""
    names = tuple(f"article {i}" for i in range(N_DOCUMENTS))
    nll = tuple(N_TOKENS * (nats_per_token + spread * (i - (N_DOCUMENTS - 1) / 2) / N_DOCUMENTS) for i in range(N_DOCUMENTS))
    return Score(names, nll, (N_TOKENS,) * N_DOCUMENTS, (4 * N_TOKENS,) * N_DOCUMENTS)


def profile(rises: tuple[float, ...]) -> Profile:
    """Each layer's rise in NLL, the same in every document."""
    by_document = tuple((N_TOKENS * rise,) * N_DOCUMENTS for rise in rises)
    return Profile(
        len(rises), score(3.0), {"drop_nll_nats": by_document}, {"taylor": rises}, {"1": tuple(abs(r) for r in rises)}
    )


def timing(gain: float, *, by_layer_count: float = 1.2) -> Timing:
    steps = (10.0, 10.1, 9.9, 10.0, 10.2)
    faster = tuple(step / gain for step in steps)
    return Timing("cpu", "float32", 1, 32, 8, 2, steps, faster, steps, faster, by_layer_count, 1.13, 960, 800)


def curve(*validation: float) -> Curve:
    return Curve({"lr": 1e-4}, "abc", (64, 128), {"kl": (0.5, 0.4)}, tuple(64 * i for i in range(len(validation))), validation)


EDGY = (9.0, 0.5, 0.1, 0.2, 0.1, 0.3, 0.2, 0.3, 0.4, 0.4, 0.5, 2.0)  # the first and last layer matter, the middle does not


def contents() -> dict[str, dict[str, Any]]:
    """Notebook -> name -> record(s) of a study in which every claim holds."""
    text = "teacher + same text (ce)"
    pair = {f"{i},{j}": 0.1 * (i + j) for i in range(12) for j in range(i + 1, 12)}
    rules = {
        f"{rule}-{k}": score(3.0 + k * rise)
        for k in (2, 3)
        for rule, rise in {"least_sensitive": 0.05, "most_sensitive": 1.0}.items()
    }
    second = {"unrecovered": 3.2, "recovered": 3.04, "one_shot": 3.08, "staged": 3.06, text: 2.99}
    third = {
        "unrecovered": 3.2,
        "recovered": 3.05,
        "mixed": 3.055,
        "ce": 3.06,
        text: 2.98,
        "teacher + same text (mixed)": 2.985,
    }
    sets = {"2,3": [0.1, 0.06], "4,5": [0.12, 0.05]} | {f"{n},{n + 1}": [0.2 + 0.01 * n, 0.1] for n in range(10, 20)}
    sized = {"recovered": 89, "width": 89, "one_shot": 88, "staged": 88}
    controls = {
        "unrecovered": 3.2,
        "recovered": 3.05,
        "width": 3.1,
        "one_shot": 3.08,
        "staged": 3.06,
        "quantised, 4 bits": 3.02,
        "width, unrecovered": 3.25,
        "one_shot, unrecovered": 3.3,
        "staged, unrecovered": 3.3,
    }
    sweep = {"trained: all": score(3.05), "trained: lora": score(3.2), "rate: 0.1": score(3.1), "rate: 0.2": score(3.05)}
    samples = {"teacher": [" sat"], "unrecovered": [" the"], "recovered": [" sat down"]}
    said = Facts({"prompts": ["The cat"], "samples": samples})
    return {
        "01_sensitivity": {
            "profile": profile(EDGY),
            "pairs": PairCosts(12, EDGY, pair),
            "criteria": Facts({"spearman": {"a": {"a": 1.0, "b": 0.5}, "b": {"a": 0.5, "b": 1.0}}}),
        },
        "02_prune_gpt2": {
            "plans": {f"least_sensitive-{k}": Plan(12, tuple(range(2, 2 + k)), "least_sensitive") for k in (2, 3)},
            "test_scores": {"teacher": score(3.0), **rules},
            "published_sizes": Facts(
                {
                    "gpt2-shape": {"12": 124_439_808, "10": 110_264_064, "9": 103_176_192},
                    "tinyllama-1.1b-shape": {"22": 1_100_048_384, "20": 1_011_959_808, "19": 967_915_520},
                }
            ),
            "published_weight_bytes": Facts(
                {
                    "gpt2-shape": {"12": 494_613_504, "10": 437_910_528, "9": 409_559_040},
                    "tinyllama-1.1b-shape": {"22": 4_138_049_536, "20": 3_785_695_232, "19": 3_609_518_080},
                }
            ),
            "timing-2": timing(1.2),
            "timing-3": timing(1.3, by_layer_count=1.33),
        },
        "03_recovery": {
            "recipe": Facts(
                {
                    "rule": "least_sensitive",
                    "drop_count": 2,
                    "tokens": 2048,
                    "pilot_tokens": 512,
                    "rate_tokens": 512,
                    "recipe": {"lr": 1e-4},
                    "ce": {"lr": 1e-4},
                    "control": {"lr": 1e-4},
                    "lr_grid": [5e-5, 1e-4, 2e-4],
                    "trials": list(sweep),
                }
            ),
            "sweep": sweep,
            "test_scores": {"teacher": score(3.0), **{name: score(value) for name, value in third.items()}},
            "validation_scores": {"teacher": score(3.0), **{name: score(value) for name, value in third.items()}},
            "curves": {"recovered": curve(3.2, 3.05), "ce": curve(3.2, 3.06)},
            "continuations": said,
        },
        "03b_controls": {
            "plans": {"one_shot": Plan(12, (2, 3, 4), "least_sensitive"), "staged": Plan(12, (2, 3, 6), "staged")},
            "bytes": Facts({"teacher": 100, "quantised, 4 bits": 40, **sized}),
            "test_scores": {"teacher": score(3.0), **{name: score(value) for name, value in controls.items()}},
            "curves": {"width": curve(3.25, 3.1), "ce, lora": curve(3.2, 3.06)},
            "timed_test_scores": {"ce (timed)": score(3.07)},
            "elsewhere_scores": {"teacher": score(4.0), "unrecovered": score(4.3), "recovered": score(4.2)},
        },
        "03c_choice": {
            "sets": Facts({"costs": sets, "old": "2,3", "new": "4,5", "seeds": [0, 1]}),
            "test_scores": {
                "teacher": score(3.0),
                "least_sensitive": score(3.06),
                "most_sensitive": score(4.0),
                "2,3, unrecovered": score(3.1),
                "4,5, unrecovered": score(3.12),
                **{f"2,3 (seed {seed})": score(3.07) for seed in (0, 1)},
                **{f"4,5 (seed {seed})": score(3.05) for seed in (0, 1)},
            },
        },
        "04_transfer_tinyllama": {
            "profile": profile(EDGY),
            "plans": {
                name: Plan(12, dropped, name)
                for name, dropped in {"recovered": (2, 4), "one_shot": (2, 3, 4), "staged": (2, 4, 6)}.items()
            },
            "test_scores": {"teacher": score(3.0), **{name: score(value) for name, value in second.items()}},
            "validation_scores": {"teacher": score(3.0), **{name: score(value) for name, value in second.items()}},
            "curves": {"recovered": curve(3.2, 3.04), "one_shot": curve(3.3, 3.08)},
            "continuations": said,
            "choice": Facts(
                {"notes": {"a stand-in": "it stands in"}, "lr": 1e-4, "unchanged": {"lr_grid": [5e-5, 1e-4, 2e-4]}}
            ),
            "sizes": {f"{k} fewer": Size(12 - k, 100 - 4 * k, 200 - 8 * k) for k in (0, 2, 3)},
            "timing-2": timing(1.10, by_layer_count=1.1),
            "timing-3": timing(1.09, by_layer_count=1.16),
        },
        "05_seed_stability": {
            "seeds": Facts({"seeds": [0, 1, 2]}),
            "test_scores": {"teacher": score(3.0), **{f"seed {seed}": score(3.05 + 0.001 * seed) for seed in range(3)}},
        },
    }


def evidence(
    folder: Path,
    *,
    first: str = "gpt2-mini",
    second: str = "smollm2-135m",
    changes: Mapping[tuple[str, str], Any] | None = None,
) -> Evidence:
    """The records in a folder. `changes`: (notebook, name) -> another or one more record, or None to leave it out."""
    for notebook, named in contents().items():
        named |= {name: record for (where, name), record in (changes or {}).items() if where == notebook}
        model = second if notebook.startswith("04") else first
        sizes = {"seq_len": 128, "score_tokens": 256, "tokens": 2048, "arm_tokens": 512, "set_tokens": 256}
        parameters = {"model": model, "elsewhere": "news-excerpt", "lora_lr_grid": [5e-5, 1e-4, 2e-4], **sizes}
        for name, record in named.items():
            record = (changes or {}).get((notebook, name), record)
            if record is not None:
                records.write(folder / notebook / f"{name}.json", record, stamp(notebook, name, parameters))
    return Evidence("by-hand", folder)


def stamp(notebook: str, name: str, parameters: dict[str, Any]) -> Stamp:
    return Stamp(
        "by-hand", f"{notebook}/{name}", "c0de", "b00c", parameters, {}, {"torch": "2.13.0"}, "cpu", "float32", 0, "no-git"
    )


def executed(notebook: str, **parameters: Any) -> dict[str, Any]:
    """The names that a notebook's code leaves, run in this process with these parameters."""
    namespace: dict[str, Any] = {}
    for cell in json.loads((places.NOTEBOOKS / f"{notebook}.ipynb").read_text(encoding="utf-8"))["cells"]:
        tags = cell["metadata"].get("tags", [])
        if cell["cell_type"] == "code" and "setup" not in tags:
            exec("".join(cell["source"]), namespace)
            namespace |= parameters if "parameters" in tags else {}
    return namespace
