"""The records of a finished or running study, read for verdicts and report. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from depthprune_core import intervals, records
from depthprune_core.intervals import Interval
from depthprune_core.records import Score
from depthprune_study import places
from depthprune_study.settings import StudyError


@dataclass(frozen=True)
class Evidence:
    """Where the records lie, and readings of them that verdicts and figures share."""

    study: str
    folder: Path  # holds <notebook>/<name>.json

    def has(self, notebook: str, name: str) -> bool:
        return self._path(notebook, name).exists()

    def record(self, notebook: str, name: str) -> Any:
        """A record. Raises StudyError where it is missing."""
        if not self.has(notebook, name):
            raise StudyError(f"record {notebook}/{name} of study {self.study} is not there: run the notebook first")
        return records.read(self._path(notebook, name))

    def stamp(self, notebook: str, name: str) -> records.Stamp:
        return records.read_stamp(self._path(notebook, name))

    def parameter(self, notebook: str, key: str) -> Any:
        """A parameter as a notebook ran with it, read off the stamp of its test scores (or its profile)."""
        name = "test_scores" if self.has(notebook, "test_scores") else "profile"
        return self.stamp(notebook, name).parameters[key]

    @property
    def first_model(self) -> str:
        return self.parameter("02_prune_gpt2", "model")

    @property
    def second_model(self) -> str:
        return self.parameter("04_transfer_tinyllama", "model")

    @property
    def fewer(self) -> int:
        """How many layers the main cut of the first family drops."""
        return self.record("03_recovery", "recipe").values["drop_count"]

    def test(self, notebook: str) -> dict[str, Score]:
        return self.record(notebook, "test_scores")

    def ratio(self, notebook: str, arm: str) -> Interval:
        """PPL ratio of an arm to the frozen teacher on the test articles."""
        scores = self.test(notebook)
        return intervals.ppl_ratio(scores[arm], scores["teacher"])

    def decode_gain(self, notebook: str, fewer: int) -> Interval:
        """How many times faster the cut model decodes: median of paired timings."""
        return intervals.decode_gain(self.record(notebook, f"timing-{fewer}"))

    def shape_gains(self, name: str) -> dict[str, Interval]:
        """Depth -> how many times faster a published shape decodes at that depth; empty where it was not timed."""
        if not self.has("02_prune_gpt2", f"timing-{name}"):
            return {}
        timings = self.record("02_prune_gpt2", f"timing-{name}")
        return {depth: intervals.decode_gain(timing) for depth, timing in timings.items()}

    def answer_ratios(self) -> dict[str, Interval]:
        """The answer on the second, pretrained family."""
        arms = ("unrecovered", "recovered", "teacher + same text (ce)", "one_shot", "staged")
        return {arm: self.ratio("04_transfer_tinyllama", arm) for arm in arms}

    def answer_alt(self) -> str:
        parts = [f"{arm} {ratio}" for arm, ratio in self.answer_ratios().items()]
        return f"Perplexity ratio to the whole {self.second_model} on the test articles: " + "; ".join(parts)

    def answer_lines(self) -> list[str]:
        """The study's answer as a few lines of text."""
        plans = self.record("04_transfer_tinyllama", "plans")
        second, first = self.second_model, self.first_model
        plan = self.record("02_prune_gpt2", "plans")
        recipe = self.record("03_recovery", "recipe").values
        mini = plan[f"{recipe['rule']}-{recipe['drop_count']}"]
        fewer = len(plans["recovered"].dropped)
        n = self.ratio("04_transfer_tinyllama", "recovered").n
        return [
            f"{second}: layers {_listed(plans['recovered'].dropped)} of {plans['recovered'].n_layers} dropped; PPL ratio to the whole model "
            f"{self.ratio('04_transfer_tinyllama', 'unrecovered')} before recovery, {self.ratio('04_transfer_tinyllama', 'recovered')} after "
            f"(n = {n} test articles); the whole model trained on the same text: {self.ratio('04_transfer_tinyllama', 'teacher + same text (ce)')}; "
            f"decodes {self.decode_gain('04_transfer_tinyllama', fewer)} times as fast.",
            f"{second}, one layer more: {self.ratio('04_transfer_tinyllama', 'staged')} staged ({_listed(plans['staged'].dropped)}), "
            f"{self.ratio('04_transfer_tinyllama', 'one_shot')} at once ({_listed(plans['one_shot'].dropped)}).",
            f"{first} (a stand-in): layers {_listed(mini.dropped)} of {mini.n_layers} dropped; {self.ratio('03_recovery', 'unrecovered')} before, "
            f"{self.ratio('03_recovery', 'kl')} after; the whole model trained on the same text: {self.ratio('03_recovery', 'teacher + same text (ce)')}; "
            f"decodes {self.decode_gain('02_prune_gpt2', recipe['drop_count'])} times as fast.",
        ]

    def _path(self, notebook: str, name: str) -> Path:
        return self.folder / notebook / f"{name}.json"


def read_evidence(study: str, folder: Path | None = None) -> Evidence:
    """The records of a study, from where it runs (or from a report's `records` folder)."""
    return Evidence(study, folder or places.runs(study) / "records")


def _listed(layers: tuple[int, ...]) -> str:
    return " + ".join(map(str, layers))
