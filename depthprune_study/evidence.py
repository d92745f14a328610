"""The records of a finished or running study, read for verdicts and report. No torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from depthprune_core import intervals, records
from depthprune_core.intervals import Interval
from depthprune_core.records import Plan, Score
from depthprune_study import places
from depthprune_study.settings import StudyError

STAND_INS = {"gpt2-mini", "llama-tiny"}  # they show that the chain works; the headline is another model's, where there is one
RANDOM_WEIGHTS = {"gpt2-shape", "tinyllama-1.1b-shape", "llama-tiny"}  # of these, size, speed and memory mean something alone
CONTROL = "teacher + same text (ce)"


@dataclass(frozen=True)
class Evidence:
    """Where the records lie, and readings of them that verdicts and figures share."""

    study: str
    folder: Path  # holds <notebook>/<name>.json

    def has(self, notebook: str, name: str) -> bool:
        return self._path(notebook, name).exists()

    def record(self, notebook: str, name: str) -> Any:
        """A record. Raises StudyError where it is missing."""
        self._require(notebook, name)
        return records.read(self._path(notebook, name))

    def stamp(self, notebook: str, name: str) -> records.Stamp:
        """Where a record comes from. Raises StudyError where it is missing."""
        self._require(notebook, name)
        return records.read_stamp(self._path(notebook, name))

    def parameter(self, notebook: str, key: str) -> Any:
        """A parameter as a notebook ran with it, read off the stamp of its test scores (or its profile)."""
        name = "profile" if notebook == "01_sensitivity" else "test_scores"
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

    def recovery_tokens(self, notebook: str) -> int:
        """How many tokens a family's recovery had."""
        if notebook == "04_transfer_tinyllama":
            return self.parameter(notebook, "tokens")
        return self.record("03_recovery", "recipe").values["tokens"]

    def pilots(self, notebook: str) -> list[str]:
        """The records of a notebook's trials, a score each; those of notebook 03 are told by its own records of them too."""
        return sorted(f"validation/{path.stem}" for path in (self.folder / notebook / "validation").glob("pilot-*.json"))

    def test(self, notebook: str) -> dict[str, Score]:
        return self.record(notebook, "test_scores")

    def ratio(self, notebook: str, arm: str) -> Interval:
        """PPL ratio of an arm to the frozen teacher on the test articles."""
        scores = self.test(notebook)
        return intervals.ppl_ratio(scores[arm], scores["teacher"])

    def elsewhere(self) -> dict[str, Score]:
        """The arms of notebook 03b on another kind of text, the timed ones too."""
        timed = self.has("03b_controls", "timed_elsewhere_scores")
        more = self.record("03b_controls", "timed_elsewhere_scores") if timed else {}
        return self.record("03b_controls", "elsewhere_scores") | more

    def seed_ratios(self) -> list[Interval]:
        """PPL ratio of the same recovery with each seed of notebook 05."""
        seeds = self.record("05_seed_stability", "seeds").values["seeds"]
        return [self.ratio("05_seed_stability", f"seed {seed}") for seed in seeds]

    def decode_gain(self, notebook: str, fewer: int) -> Interval:
        """How many times faster the cut model decodes: median of paired timings."""
        return intervals.decode_gain(self.record(notebook, f"timing-{fewer}"))

    @property
    def first_leads(self) -> bool:
        """Whether the headline is the first family's: where only the second one is a stand-in."""
        return self.second_model in STAND_INS and self.first_model not in STAND_INS

    @property
    def lead(self) -> str:
        """The notebook whose cut is the headline."""
        return "03_recovery" if self.first_leads else "04_transfer_tinyllama"

    @property
    def lead_model(self) -> str:
        return self.first_model if self.first_leads else self.second_model

    @property
    def lead_fewer(self) -> int:
        """How many layers the main cut of the headline model drops."""
        return len(self.cut(self.lead).dropped)

    @property
    def staging(self) -> str:
        """The notebook that has the headline model's staged and one-shot arms."""
        return "03b_controls" if self.first_leads else "04_transfer_tinyllama"

    def cut(self, notebook: str) -> Plan:
        """The main cut of a family: the first's from notebook 02, the second's from notebook 04."""
        if notebook == "04_transfer_tinyllama":
            return self.record(notebook, "plans")["recovered"]
        return self.record("02_prune_gpt2", "plans")[f"{self.record('03_recovery', 'recipe').values['rule']}-{self.fewer}"]

    def removed(self, notebook: str, arm: str) -> float:
        """The share of a family's parameters that an arm (recovered, one_shot, staged) is without."""
        if notebook == "04_transfer_tinyllama":
            sizes, fewer = self.record(notebook, "sizes"), len(self.record(notebook, "plans")[arm].dropped)
            return 1 - sizes[f"{fewer} fewer"].n_parameters / sizes["0 fewer"].n_parameters
        n_bytes = self.record("03b_controls", "bytes").values
        return 1 - n_bytes[arm] / n_bytes["teacher"]

    def before(self, notebook: str, arm: str) -> Interval | None:
        """PPL ratio of an arm's own cut before recovery; None where that was not scored."""
        scores = self.test(notebook)
        cut = before_recovery(arm, scores)
        return intervals.ppl_ratio(cut, scores["teacher"]) if cut is not None else None

    def mixed_notebooks(self) -> list[str]:
        """Notebooks whose records were made by more than one version of it, of the code or of the parameters; then those that do not
        belong beside another one, as far as stamps tell: `03b_controls beside 03_recovery (recovered)`.
        """
        stamps = {
            folder.name: [records.read_stamp(path) for path in folder.rglob("*.json")]
            for folder in sorted(path for path in self.folder.iterdir() if path.is_dir())
        }
        mixed = []
        for notebook, of in stamps.items():
            origins = {(s.notebook_hash, s.code_hash, json.dumps(s.parameters, sort_keys=True)) for s in of}
            if len(origins) > 1:
                mixed.append(notebook)
        return mixed + _of_other_work(stamps) + self._of_other_runs()

    def _of_other_runs(self) -> list[str]:
        """Notebooks that rest on another run of an earlier one than is there now: students that both have scored are of other
        weights, or the recipe that was taken over is another.
        """
        if not self.has("03_recovery", "recipe"):
            return []
        recipe, seed = self.record("03_recovery", "recipe").values, self._seed("03_recovery")
        shared = [("02_prune_gpt2", f"{recipe['rule']}-{recipe['drop_count']}", "03_recovery", "unrecovered")]
        for later in ("03b_controls", "05_seed_stability"):
            shared.append(("03_recovery", "unrecovered", later, "unrecovered"))
        if self._seed("03b_controls") == seed:
            shared.append(("03_recovery", "recovered", "03b_controls", "recovered"))
        shared.append(("03_recovery", "recovered", "05_seed_stability", f"seed {seed}"))
        found = []
        for earlier, as_earlier, later, as_later in shared:
            there, here = self._scored(earlier, as_earlier), self._scored(later, as_later)
            if there and here and there != here:
                found.append(f"{later} beside {earlier} ({as_later})")
        if self.has("04_transfer_tinyllama", "choice"):
            told = self.record("04_transfer_tinyllama", "choice").values
            given = {"rule": recipe["rule"], "lr_grid": recipe.get("lr_grid"), **recipe["recipe"]}
            its_own = {*told.get("changed", ()), "seed", "seq_len", "refit_tokens"}  # the last two as far as the model allows
            taken = {name: value for name, value in told.get("unchanged", {}).items() if name not in its_own}
            differing = [name for name, value in taken.items() if value != given.get(name)]
            found += [f"04_transfer_tinyllama beside 03_recovery ({', '.join(differing)})"] if differing else []
        return found

    def _seed(self, notebook: str) -> Any:
        name = "test_scores"
        return self.stamp(notebook, name).parameters.get("seed") if self.has(notebook, name) else None

    def _scored(self, notebook: str, student: str) -> str:
        """The hash of the weights that a test score was measured on; empty where the stamp does not tell."""
        name = f"test/{student}"
        inputs = self.stamp(notebook, name).inputs if self.has(notebook, name) else {}
        return next((content for item, content in inputs.items() if item.split()[0] == "0"), "")  # what was scored comes first

    def answer_ratios(self) -> dict[str, Interval]:
        """The answer on the headline model."""
        found = {arm: self.ratio(self.lead, arm) for arm in ("unrecovered", "recovered")}
        if self.first_leads:
            found["ce"] = self.ratio(self.lead, "ce")
            found["width, as small"] = self.ratio("03b_controls", "width")
        found |= {f"{arm}, {self.lead_fewer + 1} fewer": self.ratio(self.staging, arm) for arm in ("one_shot", "staged")}
        return found | {CONTROL: self.ratio(self.lead, CONTROL)}

    def answer_title(self) -> str:
        return f"{self.lead_model}: {self.lead_fewer} layers fewer, and what brings the loss back"

    def answer_alt(self) -> str:
        parts = [f"{arm} {ratio}" for arm, ratio in self.answer_ratios().items()]
        return f"Perplexity ratio to the whole {self.lead_model} on the test articles: " + "; ".join(parts)

    def answer_lines(self) -> list[str]:
        """The study's answer as a few lines of text."""
        other = "04_transfer_tinyllama" if self.first_leads else "03_recovery"
        plans, staged = self.record(self.staging, "plans"), self.ratio(self.staging, "staged")
        more = (
            f"{self.lead_model}, one layer more: {staged} staged ({_listed(plans['staged'].dropped)}), "
            f"{self.ratio(self.staging, 'one_shot')} at once ({_listed(plans['one_shot'].dropped)}; n = {staged.n} test articles)."
        )
        beside = [self._with_text(), self._narrower()] if self.first_leads else []
        return [line for line in (self._cut_in_words(self.lead), *beside, more, self._cut_in_words(other)) if line]

    def _with_text(self) -> str:
        """The same cut, trained on the text itself in place of the whole model's predictions; here and elsewhere."""
        far, near = self.elsewhere(), self.test("03b_controls")
        rivals = [
            (arm, name) for arm, name in (("ce", "all weights"), ("ce, lora", "adapters alone")) if arm in near and arm in far
        ]
        if not rivals:
            return ""
        here = ", ".join(f"{self.ratio('03b_controls', arm)} ({name})" for arm, name in rivals)
        away = {arm: intervals.ppl_ratio(far[arm], far["teacher"]) for arm in ("recovered", *(arm for arm, _ in rivals))}
        there = ", ".join(f"{away[arm]} ({name})" for arm, name in rivals)
        return (
            f"{self.lead_model}, the same cut trained on the text itself (CE) on as many tokens: {here}; n = {len(near['teacher'].documents)}. On "
            f"{self.parameter('03b_controls', 'elsewhere')}, which nothing was trained on: {there}, recovered as above {away['recovered']}; "
            f"n = {len(far['teacher'].documents)}."
        )

    def _narrower(self) -> str:
        ratio, before = self.ratio("03b_controls", "width"), self.before("03b_controls", "width")
        cost = f"{before} before the same recovery, {ratio} after" if before is not None else f"{ratio} after the same recovery"
        return f"{self.lead_model}, as small by narrower MLPs instead: {cost} (n = {ratio.n} test articles)."

    def _cut_in_words(self, notebook: str) -> str:
        first = notebook == "03_recovery"
        model, plan = self.first_model if first else self.second_model, self.cut(notebook)
        is_what = "random weights" if model in RANDOM_WEIGHTS else "a stand-in" if model in STAND_INS else ""
        known = f"{model} ({is_what})" if is_what else model
        after = self.ratio(notebook, "recovered")
        faster = self.decode_gain("02_prune_gpt2" if first else notebook, len(plan.dropped))
        unsure = "" if faster.low > 1 else ": no gain is shown"
        return (
            f"{known}: layers {_listed(plan.dropped)} of {plan.n_layers} dropped; PPL ratio to the whole model "
            f"{self.ratio(notebook, 'unrecovered')} before recovery, {after} after (n = {after.n} test articles); the whole model trained "
            f"on the same text: {self.ratio(notebook, CONTROL)}; decodes {faster} times as fast (n = {faster.n} rounds){unsure}."
        )

    def _require(self, notebook: str, name: str) -> None:
        if not self.has(notebook, name):
            raise StudyError(f"record {notebook}/{name} of study {self.study} is not there: run the notebook first")

    def _path(self, notebook: str, name: str) -> Path:
        return self.folder / notebook / f"{name}.json"


def before_recovery(arm: str, scores: Mapping[str, Score]) -> Score | None:
    """Of an arm's name, the score of the same layers or neurons before any recovery; None where there is none of these."""
    if (own := scores.get(f"{arm}, unrecovered")) is not None:
        return own
    is_main_cut = arm in ("recovered", "refitted", "mixed") or arm.startswith(("recovered, ", "ce"))
    return scores["unrecovered"] if is_main_cut else None


def read_evidence(study: str, folder: Path | None = None) -> Evidence:
    """The records of a study, from where it runs (or from a report's `records` folder)."""
    return Evidence(study, folder or places.runs(study) / "records")


def _of_other_work(stamps: dict[str, list[records.Stamp]]) -> list[str]:
    """Notebooks that have no code, libraries, text or window length in common with the first."""
    found, first = [], next(iter(stamps), "")
    for notebook, of in stamps.items():
        theirs, its_own = _work(stamps[first]), _work(of)
        differing = [what for what in theirs if theirs[what] and its_own[what] and not theirs[what] & its_own[what]]
        found += [f"{notebook} beside {first} ({', '.join(differing)})"] if differing else []
    return found


def _work(stamps: list[records.Stamp]) -> dict[str, set[str]]:
    return {
        "code": {s.code_hash for s in stamps},
        "versions": {json.dumps(s.versions, sort_keys=True) for s in stamps},
        "text": {str(s.parameters.get("text")) for s in stamps},
        "seq_len": {str(s.parameters.get("seq_len")) for s in stamps},
    }


def _listed(layers: tuple[int, ...]) -> str:
    return " + ".join(map(str, layers))
