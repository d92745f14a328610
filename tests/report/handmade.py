"""Handmade records: a study like `overnight`, whose outcomes a test chooses."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from depthprune_core import storage
from depthprune_core.records import (
    Answers,
    Curve,
    Divergence,
    Facts,
    Plan,
    Profile,
    Recipe,
    Score,
    SetCosts,
    Size,
    Timing,
)
from depthprune_study.report import findings as f
from depthprune_study.report.wording import Finding

N, TOKENS = 30, 1_000
N_LAYERS, N_PARAMETERS, A_LAYER = 30, 134_515_008, 3_540_096
RECIPE = Recipe(tokens=20_480, lr=2e-4)


def score(
    ratio: float, *, noise: float = 0.002, seed: int = 0, n: int = N, diverged: str = ""
) -> Score:
    """A score of `ratio` times the whole model's perplexity (15); `noise` nats between articles."""
    shared = np.random.default_rng(1).normal(0, 0.3, n)  # articles differ, for every model alike
    own = np.random.default_rng(hash((round(ratio, 6), seed)) % 2**32).normal(0, noise, n)
    nll = (math.log(15 * ratio) + shared + own - own.mean() - shared.mean()) * TOKENS
    names = tuple(f"article {i}" for i in range(n))
    return Score(names, tuple(nll.tolist()), (TOKENS,) * n, (4 * TOKENS,) * n, diverged)


def scores(**ratios: float) -> dict[str, Score]:
    """Names with `__` for a space or comma are for the caller to avoid: pass a dict by `**`."""
    return {"whole": score(1.0, noise=0)} | {name: score(value) for name, value in ratios.items()}


def open_scores(base: dict[str, Score], name: str, like: str) -> dict[str, Score]:
    """The same with `name` as good as `like`, but for noise that no interval sees through."""
    noisy = np.random.default_rng(7).normal(0, 0.2 * TOKENS, N)
    nll = np.add(base[like].nll_nats, noisy - noisy.mean())
    old = base[like]
    return base | {name: Score(old.documents, tuple(nll.tolist()), old.n_tokens, old.n_bytes)}


def profile(costs: list[float] | None = None, noise: float = 0.01) -> Profile:
    """Thirty layers: both ends costly, layer 11 costly in the middle, layer 16 the cheapest."""
    if costs is None:
        costs = [0.2 + 0.002 * layer for layer in range(N_LAYERS)]
        costs[0], costs[-1], costs[11], costs[16] = 7.0, 2.5, 2.0, 0.1
    rng, n = np.random.default_rng(2), 12
    rows = tuple(tuple(((c + rng.normal(0, noise, n)) * TOKENS).tolist()) for c in costs)
    flat = tuple(tuple([(0.03 + 0.001 * i) * TOKENS] * n) for i in range(len(costs)))
    named = {"drop_nll_nats": rows, "drop_kl_nats": rows, "block_influence": flat}
    magnitude = tuple(float(i) for i in range(len(costs)))
    return Profile(len(costs), score(1.0, n=n), named, {"magnitude": magnitude}, {"1": magnitude})


def timing(gain: float, *, noise: float = 0.005, allowed: float = 1.2, rounds: int = 30) -> Timing:
    rng = np.random.default_rng(3)
    student = 10 / gain * (1 + rng.normal(0, noise, rounds))
    ten, student = (10.0,) * rounds, tuple(student.tolist())
    return Timing(
        "CPU", "float32", 1, 128, 32, 2, ten, student, ten, student, allowed, allowed - 0.01, 96, 80
    )


def sizes(*fewer: int) -> dict[str, Size]:
    return {
        f"{k} fewer": Size(
            N_LAYERS - k, N_PARAMETERS - k * A_LAYER, 4 * (N_PARAMETERS - k * A_LAYER)
        )
        for k in (0, *fewer)
    }


def answers(**accuracies: float) -> dict[str, Answers]:
    """student -> accuracy, in two families of 500 items."""
    return {
        f"{name}: {family}": Answers(family, tuple(i < 500 * value for i in range(500)))
        for name, value in accuracies.items()
        for family in ("copying", "agreement")
    }


def divergence(kl: float) -> Divergence:
    rng = np.random.default_rng(4)
    values = tuple((TOKENS * (kl + rng.normal(0, 0.001, N))).tolist())
    return Divergence(tuple(f"article {i}" for i in range(N)), values, (800,) * N, (TOKENS,) * N)


def curve(*validation: float, diverged: str = "") -> Curve:
    """A healing with these validation losses, the first before any training."""
    tokens = tuple(2_048 * i for i in range(len(validation)))
    kl = {"kl": (0.2,) * len(tokens[1:])}
    return Curve(RECIPE, "abc", tokens[1:], kl, tokens, validation, diverged)


def study() -> dict[str, dict[str, Any]]:
    """notebook -> record name -> record: everything there is, and most of the claims hold."""
    path = scores(cut=1.25, refitted=1.12, healed=1.05, ce=0.95, **{"whole, same text": 0.9})
    one_more = {
        "at once, cut": 1.5,
        "at once, healed": 1.2,
        "staged, pair first, healed": 1.15,
        "staged, single first, healed": 1.16,
    }
    depth = {
        f"{k} fewer, {stage}": 1 + k * x for k in (1, 2, 3, 4, 5) for stage, x in STAGES.items()
    }
    seeds = {f"{k} fewer, healed, seed {s}": 1 + k * 0.0202 for k in (3, 4, 5) for s in (1,)}
    before = {f"{i},{j}": 1.2 + 0.01 * (i + j) for i in range(5) for j in range(i + 1, 6)}
    after = {name: 1.05 + 0.001 * n for n, name in enumerate(reversed(before))}
    wide = {"narrower, cut": 1.3, "narrower, healed": 1.1, "adapters": 1.06}
    rivals = {f"{m}, {k} fewer": r * k / 2 for m, r in RIVALS.items() for k in (2, 3, 5)}
    rules = {"least_sensitive-2": 1.25, "exhaustive-2": 1.22, "greedy-2": 1.22, "last_k-2": 2.0}
    rules |= {"most_sensitive-2": 90.0, "random_0-2": 1.6, "random_1-2": 1.7}
    seeded = {"cut": 1.25, **{f"healed, seed {s}": 1.05 + s / 10_000 for s in range(3)}}
    budget = {f"articles, {n} tokens": r for n, r in ((16_384, 1.09), (262_144, 1.04))}
    budget |= {"articles, 0 tokens": 1.12, "own words, 0 tokens": 1.13}
    budget |= {f"own words, {n} tokens": r + 0.02 for n, r in ((16_384, 1.09), (262_144, 1.04))}
    trials = {
        "lr: 0.0002": 1.05,
        "lr: 0.0004": 1.08,
        "temperature: 1.0": 1.05,
        "temperature: 2.0": 1.05,
    }
    published = {
        f"{m}, {n} layers": {"n_parameters": p, "weight_bytes_per_token": 4 * p}
        for m, n, p in (
            ("gpt2", 12, 124_439_808),
            ("gpt2", 10, 110_264_064),
            ("gpt2", 9, 103_176_192),
        )
    }
    shaped = {
        "gpt2-shape, 10 layers": timing(1.19),
        "gpt2-shape, 9 layers": timing(1.3, allowed=1.33),
    }
    shaped |= {
        "tinyllama-1.1b-shape, 20 layers": timing(1.1, allowed=1.1),
        "tinyllama-1.1b-shape, 19 layers": timing(1.1, allowed=1.16),
    }
    facts = Facts({"prompts": ["The"], "samples": {"whole": ["end"]}})
    plan = Plan(N_LAYERS, (16, 17), "exhaustive")
    pairs = SetCosts(
        4, {"0": 3.0, "1": 0.1, "2": 0.2, "3": 1.0, "1,2": 0.4, "1,3": 1.2, "2,3": 1.5}
    )
    return {
        "01_sensitivity": {"profile": profile(), "pairs": pairs},
        "02_prune": {
            "validation": scores(**rules),
            "test": scores(**rules),
            "plans": {"exhaustive-2": plan},
            "sizes": sizes(2, 3),
            "published": Facts(published),
            "timing": {
                "0 fewer": timing(1.0, allowed=1.0),
                "2 fewer": timing(1.05, allowed=1.07),
            },
            "shape_timing": shaped,
        },
        "03_recovery": {
            "plan": plan,
            "recipe": RECIPE,
            "curves": {"healed": curve(3.0, 2.9, 2.8)},
            "test": path,
            "elsewhere": path,
            "divergences": {
                "cut": divergence(0.3),
                "refitted": divergence(0.08),
                "healed": divergence(0.05),
                "ce": divergence(0.1),
            },
            "probes": answers(whole=0.9, cut=0.6, healed=0.89),
            "sizes": sizes(2),
            "continuations": facts,
        },
        "04_transfer": {
            "plans": {"main": Plan(12, (4, 5), "greedy")},
            "recipe": RECIPE,
            "test": path | scores(**one_more),
            "sizes": sizes(2, 3),
            "timing": {"2 fewer": timing(1.1), "3 fewer": timing(1.2)},
            "profile": profile(),
        },
        "05_seed_stability": {"test": scores(**seeded)},
        "06_controls": {
            "test": path | scores(**wide, Q8_0=1.001, Q4_0=1.03),
            "bytes": Facts({"whole": 270, "healed": 255, "Q8_0": 143, "Q4_0": 76}),
            "rivals": scores(**rivals),
            "plans": PLANS,
        },
        "07_choice": {
            "before": scores(**before),
            "after": scores(**after),
            "healed": scores(**{f"{n}, seed {s}": r for n, r in WINNERS.items() for s in (0, 1)}),
            "rules": Facts({"greedy": "0,1"}),
        },
        "08_limits": {
            "sizes": sizes(1, 2, 3, 4, 5),
            "depth": scores(**depth, **seeds),
            "budget": scores(**budget),
            "probes": answers(**{"whole": 0.9, "2 fewer": 0.85, "5 fewer": 0.5}),
        },
        "09_recipe": {
            "trials": scores(**trials),
            "distances": {name: divergence(ratio - 1) for name, ratio in trials.items()},
            "kept": RECIPE,
        },
    }


PLANS = {f"{k} fewer": Plan(N_LAYERS, tuple(range(14, 14 + k)), "greedy") for k in (2, 3, 5)}
STAGES = {"cut": 0.12, "refitted": 0.05, "healed": 0.02}
RIVALS = {"cut": 1.25, "refitted": 1.11, "prune_and_comp": 1.2, "replaceme": 1.15}
WINNERS = {"0,1": 1.05, "4,5": 1.04}
MODELS = {"04_transfer": "gpt2-mini"}


def stamp(notebook: str, model: str, **parameters: Any) -> storage.Stamp:
    given = {"model": model, "text": "wikipedia-excerpt", "elsewhere": "news-excerpt"}
    given |= {"cheap_layers": 3, **parameters}
    return storage.Stamp(
        "overnight",
        f"{notebook}/x",
        "c0de",
        "b00c",
        given,
        {},
        {"torch": "2.13"},
        "cpu",
        "float32",
        0,
        "f00",
    )


def write(
    folder: Path,
    records: dict[str, dict[str, Any]],
    *,
    model: str = "smollm2-135m",
    models: dict[str, str] = MODELS,
) -> Path:
    """The study's records below `folder`/records."""
    for notebook, of in records.items():
        told = {"findings": Facts({"told": findings(notebook, of)})}
        for name, record in (of | told).items():
            more = {"drop_counts": [1, 2, 3, 4, 5]}
            about = stamp(notebook, models.get(notebook, model), **more)
            storage.write(folder / "records" / notebook / f"{name}.json", record, about)
    return folder


TOLD: dict[tuple[str, str], Callable[..., Finding]] = {  # notebook, figure: from its records
    ("01_sensitivity", "profile"): lambda of: f.profile(of["profile"]),
    ("02_prune", "rules-2"): lambda of: f.rules(of["validation"], 2),
    ("02_prune", "speed"): lambda of: f.speed(of["timing"]),
    ("03_recovery", "path"): lambda of: f.path(of["test"]),
    ("03_recovery", "control"): lambda of: f.control(of["test"]),
    ("03_recovery", "divergences"): lambda of: f.divergences(of["divergences"]),
    ("03_recovery", "elsewhere"): lambda of: f.elsewhere(of["elsewhere"], "news-excerpt"),
    ("04_transfer", "transfer"): lambda of: f.transfer(of["test"], "gpt2-mini"),
    ("04_transfer", "path"): lambda of: f.path(of["test"]),
    ("04_transfer", "staged"): lambda of: f.staged(of["test"]),
    ("05_seed_stability", "seeds"): lambda of: f.seeds({"smollm2-135m": of["test"]}),
    ("06_controls", "width"): lambda of: f.width(of["test"], {}),
    ("06_controls", "bytes"): lambda of: f.rounding(of["test"], of["bytes"]),
    ("06_controls", "rivals"): lambda of: f.rivals(of["rivals"], of["plans"]),
    ("07_choice", "choice"): lambda of: f.choice(of["before"], of["after"], tail=3),
    ("07_choice", "winners"): lambda of: f.winner(of["before"], of["after"], of["healed"]),
    ("08_limits", "depth"): lambda of: f.depth(of["depth"], of["sizes"]),
    ("08_limits", "budget"): lambda of: f.budget(of["budget"]),
    ("09_recipe", "factors"): lambda of: f.recipe(of["distances"], of["kept"], of["trials"]),
}
ASIDE = ("divergences", "bytes")  # not among the main findings


def findings(notebook: str, of: dict[str, Any]) -> list[dict[str, Any]]:
    """What the record `findings` of a notebook holds."""
    made = {name: make(of) for (at, name), make in TOLD.items() if at == notebook}
    return [{"name": n, **vars(found), "lead": n not in ASIDE} for n, found in made.items()]


def draw(folder: Path) -> Path:
    """A figure for every finding that has one, and executed notebooks, as a run leaves them."""
    from matplotlib.figure import Figure

    from depthprune_study.report.pages import QUESTIONS
    from depthprune_study.results import charts

    figure = Figure(figsize=(2, 1))
    figure.set_label("a figure")
    svg = charts.svg(figure)
    for notebook, name in TOLD:
        records = sorted((folder / "records" / notebook).glob("*.json"))[:1]
        sources = {p.relative_to(folder).as_posix(): storage.data_hash(p) for p in records}
        path = folder / "figures" / f"{notebook}-{name}.png"
        storage.write_atomically(path, charts.png(figure, sources=sources))
        storage.write_atomically(path.with_suffix(".svg"), svg)
    for notebook in QUESTIONS:
        storage.write_atomically(folder / "notebooks" / f"{notebook}.ipynb", '{"cells": []}')
    costs = {notebook: {"seconds": 90.0, "peak_bytes": 2**30} for notebook in QUESTIONS}
    storage.write_atomically(folder / "costs.json", json.dumps(costs))
    return folder
