"""What the `full` study would take, from a rehearsal of it: times and memory measured there, hours scaled to GPUs that people rent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from depthprune_core import figures, models, speed
from depthprune_study import budget, places, run, settings, story, tables
from depthprune_study.evidence import Evidence, read_evidence
from depthprune_study.report import REHEARSAL

REHEARSED, ON_A_T4 = "full", "full-t4"


@dataclass(frozen=True)
class Machine:
    """Where a rehearsal ran, and how much of its peak a plain recovery reached there."""

    device: str
    tokens_per_second: float  # of training with the text itself, whole windows, the first model
    achieved_tflops: float
    peak_tflops: float  # of one large matrix product there, in the type that recovery computes in

    @property
    def share(self) -> float:
        return self.achieved_tflops / self.peak_tflops


def machine(evidence: Evidence) -> Machine:
    """As the records of a rehearsal tell."""
    measured = evidence.record("03b_controls", "pace").values
    pace = measured["ce"]
    kept = len(evidence.cut("03_recovery").kept)
    forward = 2 * speed.weight_bytes_per_token(models.shape(evidence.first_model, n_layers=kept)) / 4
    achieved = budget.TRAINED * forward * pace / 1e12
    return Machine(evidence.stamp("03b_controls", "pace").device, pace, achieved, measured["peak_tflops"])


def hours(share: float, study: str = REHEARSED) -> dict[str, dict[str, float]]:
    """GPU -> notebook of a study -> hours, where a recovery reaches this share of the peak there too."""
    costs = budget.costs(study)
    return {gpu: {cost.notebook: cost.hours(gpu, share) for cost in costs} for gpu in budget.PEAK_TFLOPS}


def published() -> Machine | None:
    """The machine of the published rehearsal, if there is one."""
    evidence = read_evidence(REHEARSAL, places.reports(REHEARSAL) / "records")
    return machine(evidence) if evidence.has("03b_controls", "pace") else None


def lines(found: Machine, study: str = REHEARSED) -> list[str]:
    """The estimate as text."""
    in_all = ", ".join(f"{gpu} {sum(by_notebook.values()):.1f}" for gpu, by_notebook in hours(found.share, study).items())
    return [f"  hours, scaled from the rehearsal ({found.device}, {found.share:.0%} of its peak): {in_all}"]


def html(found: Machine, costs: Mapping[str, Mapping[str, Any]]) -> str:
    """What was measured, what is scaled, what is arithmetic; each figure says which."""
    scaled = hours(found.share)
    memory = {cost.notebook: cost.peak_bytes / 2**30 for cost in budget.costs(REHEARSED)}
    head = ["notebook", "rehearsal, measured", "its peak memory, measured", *(f"{gpu}, scaled" for gpu in scaled)]
    head.append("GPU memory at most in the full study, arithmetic")
    rows = []
    for notebook in run.READS:
        cost = costs.get(notebook)
        by_gpu = [f"{by_notebook[notebook]:.2f} h" if notebook in by_notebook else "" for by_notebook in scaled.values()]
        needed = f"{memory[notebook]:.1f} GiB" if memory.get(notebook) else ""
        told = (f"{run.at_least(cost)}{cost['seconds']:.0f} s", _held(cost)) if cost else ("", "")  # one that was not timed
        rows.append([notebook, *told, *by_gpu, needed])
    seconds = sum(cost["seconds"] for cost in costs.values())
    peak = max((cost["peak_bytes"] for cost in costs.values()), default=0)
    at_least = run.at_least(*(costs.get(notebook, {"resumed": True}) for notebook in run.READS))
    in_all = [f"{sum(by_notebook.values()):.1f} h" for by_notebook in scaled.values()]
    rows.append(["in all", f"{at_least}{seconds / 60:.1f} min", f"{peak / 2**30:.1f} GiB", *in_all, ""])
    peaks = ", ".join(f"{gpu} {tflops} and {budget.PEAK_TFLOPS_32[gpu]}" for gpu, tflops in budget.PEAK_TFLOPS.items())
    return (
        "<h1>What the full study would take</h1>"
        f"<p>The study {REHEARSAL} runs every notebook of {REHEARSED} at its real shapes, with random weights and a few small steps a run, "
        "TinyLlama by adapters: it shows that the chain runs, and how fast. "
        f"Measured on {escape(found.device)}: training on the text reaches {found.tokens_per_second:,.0f} tokens a second, "
        f"{found.achieved_tflops:.2f} TFLOP/s, which is {found.share:.0%} of the {found.peak_tflops:.2f} that one large matrix product reaches "
        f"there. Scaled: the arithmetic of {REHEARSED}, at the same share of each GPU's peaks ({peaks} TFLOP/s, dense, in 16 bits for a "
        "recovery's steps and in 32 for the rest). A GPU may reach another share: these hours are an estimate.</p>"
        f"{story.figure_html(figures.hours(scaled), _in_words(scaled), 'Scaled hours of the full study.')}"
        + tables.table(head, rows)
        + _fits(memory)
    )


def _held(cost: Mapping[str, Any]) -> str:
    if not cost["peak_bytes"]:
        return ""  # a notebook that measures nothing
    gpu = f", GPU {cost['peak_gpu_bytes'] / 2**30:.1f} GiB" if cost.get("peak_gpu_bytes") else ""
    return f"{cost['peak_bytes'] / 2**30:.1f} GiB{gpu}"


def _in_words(scaled: Mapping[str, Mapping[str, float]]) -> str:
    return "; ".join(f"{gpu}: {sum(by_notebook.values()):.1f} hours" for gpu, by_notebook in scaled.items())


def _fits(memory: Mapping[str, float]) -> str:
    lines = []
    for gpu, room in budget.GPU_GIB.items():
        too_large = [notebook for notebook, needed in memory.items() if needed > room]
        says = f"all but {', '.join(too_large)}" if too_large else "every notebook"
        lines.append(f"{gpu} ({room} GiB): {says} fits, by arithmetic.")
    adapted = max(cost.peak_bytes for cost in budget.costs(ON_A_T4)) / 2**30
    lines.append(f"TinyLlama by adapters, a window at a time (the study {ON_A_T4}): {adapted:.1f} GiB at most, by arithmetic.")
    return "<ul>" + "".join(f"<li>{line}</li>" for line in lines) + "</ul>"


def where(studies: Sequence[str] = ("ci", "quick", "smollm2", "rehearsal", REHEARSED, ON_A_T4)) -> str:
    """Where each study can be run, as a table of README.md: time and memory, each cell saying which it is. Raises StudyError."""
    found = published()
    if found is None:
        raise settings.StudyError(f"the report of study {REHEARSAL} is not there: `make study STUDY={REHEARSAL}` writes it")
    head = ["study", "CPU, two cores", *budget.PEAK_TFLOPS, "GPU memory at most"]
    rows = [head, ["---"] * len(head)]
    for study in studies:
        needed = max(cost.peak_bytes for cost in budget.costs(study)) / 2**30
        cells = []
        for gpu, by_notebook in hours(found.share, study).items():
            fits = needed <= budget.GPU_GIB[gpu]
            cells.append(f"{_time(3_600 * sum(by_notebook.values()))}, scaled" if fits else "does not fit, by arithmetic")
        rows.append([f"`{study}`", _on_a_cpu(study, found, needed), *cells, f"{needed:.1f} GiB, arithmetic"])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _on_a_cpu(study: str, found: Machine, needed: float) -> str:
    costs = run.read_costs(places.reports(study))
    trained = [costs[notebook]["peak_bytes"] for notebook in budget.ITEMS if notebook in costs]
    if len(trained) == len(budget.ITEMS) and _device(study) == "cpu":
        went_on = run.at_least(*costs.values(), {"resumed": not all(trained)})  # one that held no memory found records there
        return f"{went_on}{_time(sum(cost['seconds'] for cost in costs.values()))}, {max(trained) / 2**30:.1f} GiB, measured"
    if found.device != "cpu":
        return "not measured"
    seconds = sum(cost.teraflops for cost in budget.costs(study)) / found.achieved_tflops
    return f"{_time(seconds)}, scaled; {needed:.1f} GiB, arithmetic"


def _device(study: str) -> str:
    return read_evidence(study, places.reports(study) / "records").stamp("03_recovery", "test_scores").device


def _time(seconds: float) -> str:
    if seconds < 5_400:
        return f"{seconds / 60:.0f} min" if seconds >= 60 else "under a minute"
    return f"{seconds / 3_600:.1f} h" if seconds < 48 * 3_600 else f"{seconds / 86_400:.0f} days"
