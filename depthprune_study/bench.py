"""The workbench of a notebook: models, windows, finished pieces of work, figures, progress.

A piece of work is done once: its record carries a stamp (code, parameters, inputs by content), and is read back only
where the stamp still holds. A recovery that was cut goes on from its checkpoint.
"""

from __future__ import annotations

import base64
import copy
import ctypes
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from IPython.display import display
from transformers import PreTrainedModel

from depthprune_core import (
    decoders,
    distillation,
    evaluation,
    figures,
    folders,
    models,
    pruning,
    records,
    refitting,
    speed,
    text,
    zero_shot,
)
from depthprune_core.assets import sha256_of
from depthprune_core.products import has_bfloat16
from depthprune_core.records import Answers, Curve, Divergence, Facts, Plan, Score
from depthprune_core.teachers import TeacherStates
from depthprune_study import libraries, places, provenance, settings
from depthprune_study.arms import Arm, forget_hash, load_weights, model_of, release, save_weights, weights_hash
from depthprune_study.live import Progress
from depthprune_study.settings import StudyError

ARM_MODULES = ("depthprune_core.distillation", "depthprune_core.pruning")  # what a recovery runs, with all that these import
REFIT_MODULES = ("depthprune_core.refitting", "depthprune_core.pruning")
MODULES = (
    *ARM_MODULES,
    *REFIT_MODULES,
    "depthprune_core.speed",
    "depthprune_core.sensitivity",
    "depthprune_core.subsets",
    "depthprune_core.racing",
    "depthprune_core.selection",
    "depthprune_core.rounding",
    "depthprune_core.zero_shot",
    "depthprune_study.rules",
)
Student = PreTrainedModel | Arm


def open_bench(notebook: str, cell: Mapping[str, Any]) -> Bench:
    """The bench of a notebook, its parameters taken from the notebook's own variables (`globals()`) and checked."""
    libraries.check()
    _keep_freed_memory()
    schema = settings.schema_of(notebook)
    parameters = settings.check(notebook, {name: cell[name] for name in schema.model_fields if name in cell})
    return Bench(notebook, parameters)


class Bench:
    """What a notebook works with. `parameters` are the checked ones; every file goes under runs/<study>/."""

    def __init__(self, notebook: str, parameters: settings.Common) -> None:
        self.notebook, self.parameters = notebook, parameters
        self.folder = places.runs(parameters.study)
        # Of code and notebook as they are now: what is edited while cells run has made none of their results.
        self._notebook_hash = provenance.notebook_hash(places.NOTEBOOKS / f"{notebook}.ipynb")
        provenance.code_hash(*MODULES)  # which reads each module once
        release()  # students are held for one notebook
        self.device = device_of(getattr(parameters, "device", "cpu"))
        self.texts: dict[str, dict[str, list[text.Document]]] = {}
        self._states: TeacherStates | None = None
        self._scores: dict[tuple[str, str], Score] = {}
        self._pool: tuple[Any, text.Windows] | None = None  # tokenised once a tokenizer
        self._test_is_read = False
        self._progress = Progress(self.folder / "progress.json", notebook)
        self.progress = self._progress.tell

    @property
    def machine(self) -> str:
        """What a time is measured on: a piece of work that measures one depends on it."""
        return f"{speed.device_name(torch.device(self.device))}, {torch.get_num_threads()} threads"

    # ------------------------------------------------------------ what goes in

    def model(self, name: str) -> tuple[PreTrainedModel, Any]:
        """A named model on the bench's device, with its tokenizer; a folder is looked through first."""
        if name not in models.SOURCES and Path(name).is_dir():
            folders.check(Path(name))
        options = {"cache": places.cache(), "assets": places.assets(), "device": self.device, "seed": self.parameters.seed}
        model, tokenizer = models.load(name, **options)
        folders.check_fit(model, tokenizer, name)
        return model, tokenizer

    def precision(self, wanted: str) -> str:
        """What recovery computes in, as asked for or as is best here (`auto`)."""
        return fast_precision(self.device) if wanted == "auto" else wanted

    def documents(self, split: str) -> list[text.Document]:
        """The documents of a split; only `test_scores` reads the test split."""
        if split == "test":
            raise ValueError(
                "the test split is read by bench.test_scores (once) and bench.zero_shot alone, after every choice is made"
            )
        return self._split(split)

    def windows(self, split: str, tokenizer: Any, *, tokens_per_document: int) -> text.Windows:
        """The first tokens of each document of a split, in windows of `seq_len`."""
        return text.windows(
            self.documents(split), tokenizer, seq_len=self.parameters.seq_len, tokens_per_document=tokens_per_document
        )

    def recovery_windows(self, tokenizer: Any, *, tokens: int, seed: int, seq_len: int | None = None) -> text.Windows:
        """A training sample of the recovery articles: each seed its own windows (of `seq_len` tokens) in its own order."""
        seq_len = seq_len or self.parameters.seq_len
        if self._pool is None or self._pool[0] is not tokenizer or self._pool[1].seq_len != seq_len:
            pool = text.windows(self.documents("recovery"), tokenizer, seq_len=seq_len, whole=True)
            self._pool = (tokenizer, pool)
        return text.draw(self._pool[1], n_tokens=tokens, seed=seed)

    def context_of(self, model: PreTrainedModel) -> int:
        """The longest window that the model can read, as its config says."""
        return getattr(decoders.text_config(model.config), "max_position_embeddings", None) or sys.maxsize

    def check_context(self, model: PreTrainedModel, seq_lens: Sequence[int]) -> None:
        """Raises StudyError where a window would be longer than the model can read."""
        if too_long := [n for n in seq_lens if n > self.context_of(model)]:
            raise StudyError(
                f"{self.notebook}: train_seq_lens={list(seq_lens)} holds {too_long[0]}, but {self.parameters.model} reads at most "
                f"{self.context_of(model)} tokens"
            )

    def _split(self, split: str, *, of: str | None = None) -> list[text.Document]:
        name = of or self.parameters.text
        if name not in self.texts:
            self.texts[name] = text.split_named(name, cache=places.cache(), assets=places.assets())
        documents = self.texts[name][split]
        return documents[: self.parameters.max_documents or None]

    # ------------------------------------------------------------ finished pieces

    def once(self, name: str, make: Callable[[], Any], *, on: list[Any], by_content: bool = False) -> Any:
        """The record(s) of a piece of work: read back where its stamp still holds, else made and saved.

        `on`: what it depends on (models, windows, plans, records), hashed by content. `by_content`: on nothing else, so what another
        version of the notebook has left, or one with other parameters, holds as well.
        """
        path = self.record_path(name)
        stamp = self._stamp(name, on, 0 if by_content else self.parameters.seed)
        if (kept := _kept(path, stamp, by_content=by_content)) is not None:
            return kept
        for item in on:
            if isinstance(item, Arm):
                model_of(item)  # read, or made again, as a piece of work of its own
        self._progress.begin(name)
        record = make()
        records.write(path, record, stamp)
        self._progress.end()
        return record

    def recover(
        self,
        name: str,
        plan: Plan,
        teacher: PreTrainedModel,
        windows: text.Windows,
        *,
        start: Student | None = None,
        validation: text.Windows | None = None,
        keep_weights: bool = True,
        refit_tokens: int = 0,
        **recipe: Any,
    ) -> tuple[Arm, Curve]:
        """The plan's student, recovered from `teacher` (or from the weights of `start`), and its curve.

        With `refit_tokens` the student is fitted to its teacher in closed form first, on at most so many of the run's own tokens. A
        recipe may give `batch_tokens` in place of the batch size, and the `seq_len` that its windows must have (ValueError if not).

        A plan that drops nothing gives the control: the teacher itself, trained on the same windows (with `start`: a student that
        is smaller in another way). Options as in `distillation.recover`. Arms are kept by recipe, not by notebook: what one notebook
        has recovered, another reads. The record is enough to find what was measured on an arm already; weights that are not on disk
        (moved away, or `keep_weights=False`) are made again when something new is measured. An arm that diverged is marked
        (`Arm.diverged`), its last checkpoint stays, and the student that it began from stands in its place. So is one whose `start`
        is marked.
        """
        recipe = _in_windows(recipe, windows)
        folder = self.folder / "arms" / name
        cut = Plan(plan.n_layers, plan.dropped, "any")  # which rule picked the layers changes no weight
        is_whole = not plan.dropped and start is None  # nothing to fit, and with KL alone nothing to train
        fitted, told = None, {}
        if refit_tokens and not is_whole and refitting.fitted_layers(plan):
            fitted = self.refitted(plan, teacher, windows, n_tokens=refit_tokens, start=start)
            told = {"refit_tokens": _first(windows, refit_tokens).inputs.numel()}
        inputs = [teacher, cut, windows, fitted or start, validation, recipe, *_tools(recipe)]
        precision = recipe.get("precision", "float32")
        stamp = self._stamp(f"arm/{name}", inputs, recipe["seed"], shared=True, dtype=precision)
        path, weights = folder / f"{stamp.key}.json", folder / f"{stamp.key}.safetensors"

        def unrecovered() -> PreTrainedModel:
            student = fitted.fresh() if fitted is not None else _as_cut(plan, teacher, start)
            as_they_are = recipe.get("trained") == "lora"  # the weights, so that there is no need of two copies
            return pruning.share_equal(student, teacher, plan) if as_they_are else student

        def distilled() -> tuple[PreTrainedModel, Curve]:
            checkpoint = folder / f"{stamp.key}.ckpt"
            release()
            begun = unrecovered()
            release()  # what it began from
            self._progress.begin(name)
            try:
                student, curve = distillation.recover(
                    begun,
                    teacher,
                    windows,
                    plan=None if is_whole else plan,
                    validation=validation,
                    checkpoint=checkpoint,
                    teacher_cache=self._states_of(teacher, recipe["loss"]),
                    progress=self.progress,
                    **recipe,
                )
                if validation is None and not math.isfinite(evaluation.score(student, _first(windows, 1)).mean_nll_nats):
                    problem = f"the loss is no number after the last step: lower the learning rate (lr={recipe['lr']:g})"
                    raise distillation.DivergedError(problem, curve)
            except distillation.DivergedError as stop:
                curve, told["diverged"] = stop.curve, str(stop)
            if "diverged" in told:  # what the run held is gone by now
                begun = None
                student = unrecovered()
            forget_hash(student)
            curve = Curve(**{**vars(curve), "recipe": {**curve.recipe, **told, "weights": weights_hash(student)}})
            if keep_weights and "diverged" not in told:
                save_weights(student, weights)
            records.write(path, {"arm": curve}, stamp)
            if "diverged" not in told:
                checkpoint.unlink(missing_ok=True)
            self._progress.end()
            return student, curve

        def again() -> PreTrainedModel:
            if "diverged" in curve.recipe:
                return unrecovered()
            student = _as_cut(plan, teacher, start)  # all of its weights are in the file
            return student if load_weights(student, weights, content) else _as_recorded(name, distilled()[0], content)

        kept = _kept(path, stamp)
        student, curve = distilled() if kept is None else (None, kept["arm"])
        content, before = curve.recipe["weights"], _diverged(start)
        diverged = curve.recipe.get("diverged") or (f"of the run that it began from, {before}" if before else "")
        if kept is None and not keep_weights:
            return Arm(content, lambda: student, diverged=diverged), curve
        return Arm(content, again, model=student, diverged=diverged), curve

    def refitted(
        self,
        plan: Plan,
        teacher: PreTrainedModel,
        windows: text.Windows,
        *,
        n_tokens: int,
        start: Student | None = None,
    ) -> Arm:
        """The plan's student (or `start`) fitted to its teacher on the first tokens of these windows (`refitting.refit`), untrained.

        The fitted maps are kept beside its record.
        """
        cut, some = Plan(plan.n_layers, plan.dropped, "any"), _first(windows, n_tokens)
        stamp = self._stamp("arm/refitted", [teacher, cut, some, start], 0, shared=True, modules=REFIT_MODULES)
        path = self.folder / "arms" / "refitted" / f"{stamp.key}.json"

        def fitted() -> PreTrainedModel:
            student = _as_cut(plan, teacher, start)
            self._progress.begin("refitted")
            refitting.refit(student, teacher, plan, some, progress=self.progress)
            maps = [decoders.mlp_outputs(student)[layer].weight for layer in refitting.fitted_layers(plan)]
            save_weights(student, path.with_suffix(".safetensors"), only=maps)
            records.write(path, Facts({"weights": weights_hash(student)}), stamp)
            self._progress.end()
            return student

        def again() -> PreTrainedModel:
            student = _as_cut(plan, teacher, start)
            at_hand = load_weights(student, path.with_suffix(".safetensors"), content)
            return student if at_hand else _as_recorded("refitted", fitted(), content)

        kept = _kept(path, stamp)
        content = weights_hash(fitted()) if kept is None else kept.values["weights"]
        return Arm(content, again, diverged=_diverged(start))

    def recovery_pace(
        self,
        plan: Plan,
        teacher: PreTrainedModel,
        windows: text.Windows,
        *,
        timed_windows: int,
        refit_tokens: int = 0,
        **recipe: Any,
    ) -> float:
        """Tokens a second of a recovery on `windows`, from `timed_windows` of them; the time to refit, if asked for, counts."""
        some, options = windows.take(slice(0, timed_windows)), _in_windows(recipe, windows)
        pace = speed.recovery_pace(lambda: pruning.drop_layers(teacher, plan), teacher, some, plan=plan, **options)
        if not refit_tokens:
            return pace
        began = speed.now(teacher.device)
        refitting.refit(pruning.drop_layers(teacher, plan), teacher, plan, _first(windows, refit_tokens))
        n_tokens = windows.inputs.numel()
        return n_tokens / (n_tokens / pace + speed.now(teacher.device) - began)

    def _states_of(self, teacher: PreTrainedModel, loss: Mapping[str, float]) -> TeacherStates | None:
        """The teacher's states, shared by all recoveries of the notebook that need nothing else of it."""
        if not loss.get("kl") or loss.get("hidden"):
            return None
        if self._states is None or self._states.teacher is not teacher:
            self._states = TeacherStates(teacher)
        return self._states

    def validation_scores(self, arms: Mapping[str, Student], tokenizer: Any) -> dict[str, Score]:
        """Each model's score on the validation articles; choices are made on these."""
        windows = self.windows("validation", tokenizer, tokens_per_document=self.parameters.score_tokens)
        return {name: self._score("validation", name, model, windows) for name, model in arms.items()}

    def test_scores(self, arms: Mapping[str, Student], tokenizer: Any) -> dict[str, Score]:
        """Each frozen model's score on the test articles. Can be called once, as the notebook's last measurement."""
        if self._test_is_read:
            raise ValueError("the test split was read already in this notebook: score every arm in one call")
        self._test_is_read = True
        tokens = self.parameters.score_tokens
        windows = text.windows(self._split("test"), tokenizer, seq_len=self.parameters.seq_len, tokens_per_document=tokens)
        return {name: self._score("test", name, model, windows) for name, model in arms.items()}

    def scores_elsewhere(self, name: str, arms: Mapping[str, Student], tokenizer: Any) -> dict[str, Score]:
        """Each model's score on the test split of another named text, which nothing was trained on or chosen by."""
        documents = self._split("test", of=name)
        tokens = self.parameters.score_tokens
        windows = text.windows(documents, tokenizer, seq_len=self.parameters.seq_len, tokens_per_document=tokens)
        folder = Path(name).name  # of a file's path its end: records stay in their folder
        return {arm: self._score(folder, arm, model, windows) for arm, model in arms.items()}

    def zero_shot(
        self, arms: Mapping[str, Student], tokenizer: Any, *, n_items: int, tasks: Sequence[str] = ()
    ) -> dict[str, Answers]:
        """ "arm: task" -> answers, on lm-eval's tasks of these names and (with `n_items`) on two made of the test articles."""
        folder = self.folder / "tasks"
        own = zero_shot.write_tasks(folder, self._split("test"), n_items=n_items, seed=self.parameters.seed) if n_items else []
        items = [sha256_of(folder / f"{task}.jsonl") for task in own]
        found = {}
        for name, model in arms.items():
            answered = self.once(
                f"zero_shot/{name}",
                lambda m=model: zero_shot.answers(model_of(m), tokenizer, [*own, *tasks], folder=folder),
                on=[model, _tokenizer_hash(tokenizer), items, list(tasks), f"lm_eval {importlib.metadata.version('lm_eval')}"],
            )
            found |= {f"{name}: {task}": answers for task, answers in answered.items()}
        return found

    def divergences(self, arms: Mapping[str, Student], teacher: PreTrainedModel, tokenizer: Any) -> dict[str, Divergence]:
        """KL(teacher || student) and top-1 agreement on the validation articles."""
        windows = self.windows("validation", tokenizer, tokens_per_document=self.parameters.score_tokens)
        return {
            name: self.once(
                f"divergence/{name}",
                lambda m=model: evaluation.divergence(model_of(m), teacher, windows),
                on=[model, teacher, windows],
            )
            for name, model in arms.items()
        }

    def continuations(
        self, arms: Mapping[str, Student], tokenizer: Any, prompts: list[str], *, new_tokens: int
    ) -> dict[str, list[str]]:
        """How each model continues the prompts, greedily."""

        def make() -> Facts:
            said = {
                name: evaluation.continuations(model_of(m), tokenizer, prompts, new_tokens=new_tokens)
                for name, m in arms.items()
            }
            return Facts({"prompts": prompts, "samples": said})

        return self.once(
            "continuations", make, on=[*arms.values(), list(arms), _tokenizer_hash(tokenizer), prompts, new_tokens]
        ).values["samples"]

    def _score(self, split: str, name: str, model: Student, windows: text.Windows) -> Score:
        """Of an arm that diverged, the record says so."""
        key = (_content_hash(model), windows.token_hash)  # two rules may pick the same layers
        mark = _diverged(model)

        def make() -> Score:
            score = self._scores.get(key) or evaluation.score(model_of(model), windows, progress=self.progress)
            return replace(score, diverged=mark)

        on = [model, windows, mark] if mark else [model, windows]
        self._scores[key] = self.once(f"{split}/{name}", make, on=on, by_content=True)
        return self._scores[key]

    # ------------------------------------------------------------ what comes out

    def save(self, name: str, record: Any) -> None:
        """Keep a record that was derived from others in this notebook. Returns nothing: a path would end up in the output."""
        records.write(self.record_path(name), record, self._stamp(name, [], self.parameters.seed))

    def read(self, notebook: str, name: str) -> Any:
        """A record that an earlier notebook of the study kept. Raises StudyError where it is not there yet."""
        path = self.folder / "records" / notebook / f"{name}.json"
        if not path.exists():
            raise StudyError(
                f"record {notebook}/{name} is not there: run notebook {notebook} of study {self.parameters.study} first"
            )
        return records.read(path)

    def plan_of(self, rule: str, k: int) -> Plan:
        """The plan of notebook 02 by which `rule` drops k layers. Raises StudyError where there is none."""
        plans = self.read("02_prune_gpt2", "plans")
        if f"{rule}-{k}" not in plans:
            raise StudyError(f"{self.notebook}: notebook 02 has no plan {rule}-{k}; it has {', '.join(sorted(plans))}")
        return plans[f"{rule}-{k}"]

    def show(self, name: str, figure: Any) -> None:
        """Display a figure and keep it as PNG under runs/<study>/figures/."""
        data = figures.png(figure)
        path = self.folder / "figures" / f"{self.notebook}-{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        temporary.write_bytes(data)
        os.replace(temporary, path)
        label = figure.get_label() or name
        shown = {"image/png": base64.b64encode(data).decode(), "text/plain": label}
        display(shown, metadata={"image/png": {"alt": label}}, raw=True)  # Image(alt=...) needs IPython 8: Colab has 7.34

    def record_path(self, name: str) -> Path:
        return self.folder / "records" / self.notebook / f"{name}.json"

    def _stamp(
        self,
        step: str,
        on: list[Any],
        seed: int,
        *,
        shared: bool = False,
        modules: tuple[str, ...] = ARM_MODULES,
        dtype: str = "float32",
    ) -> records.Stamp:
        """`shared` leaves the notebook out: the piece is defined by its inputs and `modules` alone."""
        return provenance.stamp(
            study=self.parameters.study,
            notebook="any" if shared else self.notebook,
            notebook_hash="" if shared else self._notebook_hash,
            step=step,
            modules=modules if shared else MODULES,
            parameters={} if shared else self.parameters.model_dump(mode="json"),
            inputs={f"{i} {_kind(item)}": _content_hash(item) for i, item in enumerate(on)},
            device=self.device,
            dtype=dtype,
            seed=seed,
        )


def _keep_freed_memory() -> None:
    """Let this process use again what it has freed, where glibc would hand large pieces back and fault them in anew each step."""
    if platform.libc_ver()[0] == "glibc":
        never, trim_threshold, most_mapped = 2**31 - 1, -1, -4  # names in malloc.h: M_TRIM_THRESHOLD, M_MMAP_MAX
        libc = ctypes.CDLL(None)
        libc.mallopt(most_mapped, 0)
        libc.mallopt(trim_threshold, never)


def device_of(wanted: str) -> str:
    """`cpu` or `cuda`, by name or by what is there (`auto`). Raises StudyError for a GPU that is not there."""
    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise StudyError("device='cuda' was asked for, but no GPU is there: take device='auto' or 'cpu'")
    return "cuda" if wanted != "cpu" and available else "cpu"


def fast_precision(device: str) -> str:
    """float32 on a CPU, bfloat16 on a GPU that truly has it, else float16."""
    if device != "cuda":
        return "float32"
    return "bfloat16" if has_bfloat16(device) else "float16"


def _as_cut(plan: Plan, teacher: PreTrainedModel, start: Student | None) -> PreTrainedModel:
    """A student before any recovery, which nothing else holds: the plan's cut of the teacher, or a copy of `start`."""
    return pruning.drop_layers(teacher, plan) if start is None else copy.deepcopy(model_of(start))


def _in_windows(recipe: Mapping[str, Any], windows: text.Windows) -> dict[str, Any]:
    """A recipe as `distillation.recover` takes it: the batch in windows of this length."""
    own = dict(recipe)
    if (seq_len := own.pop("seq_len", windows.seq_len)) != windows.seq_len:
        raise ValueError(f"the recipe is for windows of seq_len={seq_len} tokens, but these have {windows.seq_len}")
    if "batch_tokens" in own:
        own["batch_size"], rest = divmod(own.pop("batch_tokens"), windows.seq_len)
        if rest or not own["batch_size"]:
            raise ValueError(f"batch_tokens={recipe['batch_tokens']} is no multiple of the windows' {windows.seq_len} tokens")
    return own


def _tokenizer_hash(tokenizer: Any) -> str:
    """Of what decides how it cuts a text: a fast tokenizer as it is saved, else its words and how it is set."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    told = {"set": repr(tokenizer), "words": tokenizer.get_vocab()} if backend is None else json.loads(backend.to_str())
    lasting = {name: value for name, value in told.items() if name not in ("padding", "truncation")}  # left by the last call
    return hashlib.sha256(json.dumps(lasting, sort_keys=True).encode()).hexdigest()[:16]


def _tools(recipe: Mapping[str, Any]) -> list[str]:
    """Libraries, with their versions, that this recipe uses and others do not."""
    used = {"peft": recipe.get("trained") == "lora", "bitsandbytes": recipe.get("optimiser") == "adamw_8bit"}
    return [f"{name} {importlib.metadata.version(name)}" for name, is_used in used.items() if is_used]


def _first(windows: text.Windows, n_tokens: int) -> text.Windows:
    """At most so many tokens' worth of whole windows, one window at least."""
    return windows.take(slice(0, max(1, n_tokens // windows.seq_len)))


def _as_recorded(name: str, student: PreTrainedModel, content: str) -> PreTrainedModel:
    if weights_hash(student) != content:
        raise StudyError(
            f"the weights of arm {name} were not on disk, and this machine makes slightly other ones than its record tells of: "
            "the new ones are kept; run the study again, and what was measured on the old ones is measured anew"
        )
    return student


def _kept(path: Path, stamp: records.Stamp, *, by_content: bool = False) -> Any:
    """The record(s) of a file that is whole and carries this stamp, else None. `by_content`: whatever notebook and parameters the
    file's own stamp names; it then names these.
    """
    try:
        record, its_own = records.read(path), records.read_stamp(path)
    except (FileNotFoundError, ValueError):
        return None
    if by_content and its_own.key != stamp.key:
        its_own = replace(its_own, notebook_hash=stamp.notebook_hash, parameters=stamp.parameters)
        if its_own.key == stamp.key:
            records.write(path, record, its_own)
    return record if its_own.key == stamp.key else None


def _diverged(student: Student | None) -> str:
    """Why the recovery that it rests on was stopped; empty where none was."""
    return student.diverged if isinstance(student, Arm) else ""


def _kind(item: Any) -> str:
    """What an input is, for the reader of a stamp."""
    if isinstance(item, PreTrainedModel | Arm):
        return "model"
    return type(item).__name__.lower() if hasattr(item, "__dataclass_fields__") else "value"


def _content_hash(item: Any) -> str:
    """A hash of what an input holds: weights, token ids, values."""
    if isinstance(item, PreTrainedModel):
        return weights_hash(item)
    if isinstance(item, Arm):
        return item.content
    if isinstance(item, text.Windows):
        return item.token_hash
    if hasattr(item, "__dataclass_fields__"):
        item = {"kind": type(item).__name__, **vars(item)}
    return hashlib.sha256(json.dumps(item, sort_keys=True, default=vars).encode()).hexdigest()[:16]
