"""A model of one's own: choose layers, drop them, recover on a text, measure, write a folder."""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import torch
import yaml
from huggingface_hub import hf_hub_download
from safetensors.torch import load_file
from transformers import AutoConfig, PreTrainedModel

from depthprune_core import decoders, distillation, evaluation, folders, intervals, models, optimisers, pruning, refitting, text
from depthprune_core.assets import sha256_of, snapshot
from depthprune_core.intervals import Interval
from depthprune_core.records import Plan, Score, write_atomically
from depthprune_study import export, passages, places, rules, run, yaml_files
from depthprune_study.arms import save_weights, weights_hash
from depthprune_study.bench import device_of, fast_precision
from depthprune_study.settings import MOST_TOKENS, Device, StudyError

if TYPE_CHECKING:
    from accelerate import Accelerator

REFIT_TOKENS = 25_600
OPTIMISERS = {"adamw": "AdamW", "adamw_8bit": "AdamW with moments in 8 bits", "muon": "Muon"}  # in the card's words
TRAINED = {"all": "", "after_first_cut": "the layers after the first cut alone, ", "lora": "low-rank adapters alone, "}


@dataclass(frozen=True)
class Pruned:
    """What was made: the plan, and PPL ratios to the whole model on held-out passages."""

    plan: Plan
    ratios: dict[str, Interval]


def prune(
    model: str,
    *,
    text_name: str,
    out: Path,
    drop: int,
    layers: tuple[int, ...] = (),
    rule: str = "least_sensitive",
    recover_tokens: int = 0,
    lr: float = 1e-4,
    trained: str = "all",
    optimiser: str = "adamw",
    checkpoint_activations: bool = False,
    seq_len: int = 512,
    batch_tokens: int = 2_048,
    seed: int = 0,
    device: str = "auto",
    say: Callable[[str], None] = print,
) -> Pruned | None:
    """Drop `drop` layers by `rule` (or these `layers`) from a named model, local folder or hub id; recover; write `out`.

    The text is cut into passages, a tenth of which is held out for the figures and another one for the choice of layers; they are
    never trained on. Recovery is KL to the whole model, from a start that is refitted where the architecture allows it. A run that
    is cut goes on from its last checkpoint. `trained`, `optimiser` and `checkpoint_activations` are those of `distillation.recover`
    and save memory; with `lora` the student holds no second copy of weights that are still the whole model's. Started once a GPU
    (`accelerate launch`, `torchrun`), the processes recover it together; the first one measures and writes, the others return None.

    Raises StudyError or ValueError, in a sentence and before layers are chosen, for what cannot be done; FloatingPointError where
    the loss diverges, or is not finite from the start or as it would be saved.
    """
    out = Path(out)
    _check_numbers(
        drop=drop, layers=layers, recover_tokens=recover_tokens, lr=lr, seq_len=seq_len, batch_tokens=batch_tokens, seed=seed
    )
    _check_names(rule=rule, trained=trained, device=device, optimiser=optimiser)
    if not recover_tokens and int(os.environ.get("RANK", "0")):
        return None  # without recovery there is nothing to share
    export.check_free(out)
    leads = not int(os.environ.get("RANK", "0"))  # of the processes that belong together
    with _alone(out, say) if leads else nullcontext():
        accelerator = _accelerator(device) if recover_tokens else None
        first = accelerator is None or accelerator.is_main_process
        say = say if first else _silent
        export.check_free(out)  # another command may have ended just now
        on = device_of(device) if accelerator is None else str(accelerator.device)
        with nullcontext() if accelerator is None else accelerator.main_process_first():  # which fetches what is not there yet
            parts = passages.split(text_name)
            folder, teacher, tokenizer = _loaded(model, device=on, seed=seed)
        folders.check_fit(teacher, tokenizer, model)
        named = _checked(model, len(decoders.decoder(teacher).layers), drop=drop, layers=layers)
        seq_len = min(seq_len, getattr(decoders.text_config(teacher.config), "max_position_embeddings", None) or seq_len)

        def windows(part: str, n_tokens: int | None) -> text.Windows:
            return text.windows(parts[part], tokenizer, seq_len=seq_len, tokens_per_document=n_tokens)

        sample = (
            _sample(parts, tokenizer, seq_len=seq_len, n_tokens=recover_tokens, seed=seed, say=say) if recover_tokens else None
        )
        say(f"{model}: {teacher.num_parameters():,} parameters; choosing what to drop")
        plan = named or rules.choose(rule, drop, teacher, windows("calibration", 512), progress=_steps(say))
        plan = _first_one_s(plan, accelerator)
        say(f"layers {', '.join(map(str, plan.dropped))} go ({plan.rule})")
        test = windows("test", 1_024)
        whole = _finite(evaluation.score(teacher, test), "the whole model's loss on the held-out passages")
        student = pruning.drop_layers(teacher, plan)
        cut = _finite(evaluation.score(student, test), "the student's loss on the held-out passages, before recovery,")
        ratios = {"before recovery": intervals.ppl_ratio(cut, whole)}
        say(f"perplexity ratio to the whole model before recovery: {ratios['before recovery']}")
        licence = _license(model, folder) if first else ""  # before the long part, so that no file of the base can end it
        recipe = ""
        if sample is not None:
            checkpoint = _work(out) / f"{weights_hash(teacher)}.ckpt"  # another model's is never gone on from
            recipe = _recover(
                student,
                teacher,
                plan,
                sample,
                lr=lr,
                batch=max(1, batch_tokens // seq_len),
                trained=trained,
                optimiser=optimiser,
                checkpoint_activations=checkpoint_activations,
                seed=seed,
                checkpoint=checkpoint,
                accelerator=accelerator,
                say=say,
            )
        if not first:
            return None
        dtype = _dtype(folder or model, teacher)
        told = f"the loss of the student as it would be saved, in {dtype}, on the held-out passages,"
        as_saved = _finite(evaluation.score(_rounded(student, dtype), test), told)
        recovered = {**ratios, "as saved": intervals.ppl_ratio(as_saved, whole)}
        card = export.Card(
            base=_name(model),
            hub=_hub_id(model),
            plan=plan,
            n_parameters=student.num_parameters(),
            tokens=sample.inputs.numel() if sample is not None else 0,
            text=text_name if text_name in run.TEXTS else "a text of the maker's own",
            recipe=recipe,
            ratios=recovered,
            license=licence,
            revision=_revision(model, folder),
            source=_source(model),
            perplexities={
                name: _perplexity(score)
                for name, score in (("whole model", whole), ("before recovery", cut), ("as saved", as_saved))
            },
        )
        export.folder(out, student, tokenizer, card, dtype=dtype)
        shutil.rmtree(_work(out), ignore_errors=True)
        return Pruned(plan, recovered)


@contextmanager
def _alone(out: Path, say: Callable[[str], None]) -> Iterator[None]:
    """One command at a time for a folder. Raises StudyError for a second one. A work folder with nothing to go on from goes at the end."""
    work = _work(out)
    with run.alone(work, say, busy=f"{out} is being written"):
        try:
            yield
        finally:
            if work.exists() and not any(path.name != ".lock" for path in work.iterdir()):
                shutil.rmtree(work, ignore_errors=True)


def _check_numbers(
    *, drop: int, layers: tuple[int, ...], recover_tokens: int, lr: float, seq_len: int, batch_tokens: int, seed: int
) -> None:
    """Raises StudyError for a number that no model allows."""
    if drop < 0 or (not layers and drop < 1):
        raise StudyError(f"drop={drop} is not possible: a whole number from 1 on is wanted")
    if not (math.isfinite(lr) and lr > 0):
        raise StudyError(f"lr={lr:g} is not possible: a number above 0 is wanted, such as 1e-4")
    for name, value in (("seq_len", seq_len), ("batch_tokens", batch_tokens)):
        if value < 1:
            raise StudyError(f"{name}={value} is not possible: a whole number from 1 on is wanted")
    if not 0 <= seed < 2**63:
        raise StudyError(f"seed={seed} is not possible: a whole number from 0 on is wanted, below 2^63")
    if recover_tokens > MOST_TOKENS:
        raise StudyError(f"recover_tokens={recover_tokens:.3g} is not possible: they lie in memory, {MOST_TOKENS:,} at most")
    if recover_tokens < 0 or 0 < recover_tokens < batch_tokens:
        raise StudyError(f"recover_tokens={recover_tokens} is less than one step of {batch_tokens} tokens; 0 means no recovery")


def _check_names(*, rule: str, trained: str, device: str, optimiser: str) -> None:
    """Raises StudyError or ValueError for a name that is not known."""
    for name, value, allowed in (
        ("rule", rule, rules.NAMES),
        ("trained", trained, distillation.TRAINED_PARTS),
        ("device", device, get_args(Device)),
    ):
        if value not in allowed:
            raise StudyError(f"{name}={value!r} is not known: name one of {', '.join(allowed)}")
    optimisers.check(optimiser)


def _accelerator(device: str) -> Accelerator | None:
    """Where this process is one of several (as their launcher says), its tie to the others."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return None
    from accelerate import Accelerator

    return Accelerator(cpu=device_of(device) == "cpu")


def _first_one_s(plan: Plan, accelerator: Accelerator | None) -> Plan:
    """The first process' plan, in all of them: on GPUs a close choice could fall differently."""
    if accelerator is None:
        return plan
    from accelerate.utils import broadcast_object_list

    return broadcast_object_list([plan])[0]


def _silent(line: str) -> None:
    pass


def _checked(model: str, n_layers: int, *, drop: int, layers: tuple[int, ...]) -> Plan | None:
    """The plan of layers that are named, None where they are to be chosen. Raises what `prune` raises for layers."""
    if layers:
        return Plan(n_layers, layers, "named")
    if not 0 < drop < n_layers:
        raise StudyError(f"drop={drop} is not possible: {model} has {n_layers} layers, 1..{n_layers - 1} can go")
    return None


def _rounded(student: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """The student as its file will hold it, in the arithmetic of its measurement."""
    return export.cast(export.cast(student, dtype), torch.float32)


def _perplexity(score: Score) -> Interval:
    """A token's, on the held-out passages: the ratio to a model that knows every token."""
    return intervals.ppl_ratio(score, replace(score, nll_nats=(0.0,) * len(score.nll_nats)))


def _finite(score: Score, what: str) -> Score:
    if not math.isfinite(score.mean_nll_nats):
        raise FloatingPointError(f"{what} is {score.mean_nll_nats}: nothing was written")
    return score


def _recover(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    plan: Plan,
    sample: text.Windows,
    *,
    lr: float,
    batch: int,
    trained: str,
    optimiser: str,
    checkpoint_activations: bool,
    seed: int,
    checkpoint: Path,
    accelerator: Accelerator | None,
    say: Callable[[str], None],
) -> str:
    """Recover in place; returns the recipe in words."""
    start = "as cut"
    if refitting.is_possible(student) and refitting.fitted_layers(plan):
        some = sample.take(slice(0, max(1, REFIT_TOKENS // sample.seq_len)))
        _refit(
            student, teacher, plan, some, checkpoint.parent, write=accelerator is None or accelerator.is_main_process, say=say
        )
        start = "refitted"
    if trained == "lora":
        pruning.share_equal(student, teacher, plan)
    distillation.recover(
        student,
        teacher,
        sample,
        plan=plan,
        loss={"kl": 1.0},
        lr=lr,
        batch_size=batch,
        trained=trained,
        optimiser=optimiser,
        checkpoint_activations=checkpoint_activations,
        seed=seed,
        precision=fast_precision(teacher.device.type),
        checkpoint=checkpoint,
        accelerator=accelerator,
        progress=_steps(say),
    )
    return (
        f"KL to the whole model, {OPTIMISERS[optimiser]} at {lr:g}, {TRAINED[trained]}{batch} windows of {sample.seq_len} tokens a step, "
        f"started {start}"
    )


def _refit(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    plan: Plan,
    some: text.Windows,
    work: Path,
    *,
    write: bool,
    say: Callable[[str], None],
) -> None:
    """Refit in place, as it came out when the run began: another machine would round otherwise, and its checkpoint is of that start."""
    inputs = f"{weights_hash(teacher)} {plan.dropped} {some.token_hash}"
    kept = work / f"{hashlib.sha256(inputs.encode()).hexdigest()[:16]}.safetensors"
    checksum = kept.with_suffix(".sha256")
    if kept.exists() and checksum.exists():
        if checksum.read_text(encoding="utf-8", errors="replace") == sha256_of(kept):
            student.load_state_dict(load_file(kept), strict=False)
            return
        say(f"{kept} is damaged: fitted anew")
    refitting.refit(student, teacher, plan, some)
    if write:
        maps = [decoders.mlp_outputs(student)[layer].weight for layer in refitting.fitted_layers(plan)]
        save_weights(student, kept, only=maps)
        write_atomically(checksum, sha256_of(kept))


def _sample(
    parts: dict[str, list[text.Document]],
    tokenizer: Any,
    *,
    seq_len: int,
    n_tokens: int,
    seed: int,
    say: Callable[[str], None],
) -> text.Windows:
    """The windows to recover on."""
    pool = text.windows(parts["recovery"], tokenizer, seq_len=seq_len, whole=True)
    sample = text.draw(pool, n_tokens=n_tokens, seed=seed)
    say(f"to recover on: {sample.inputs.numel():,} tokens, {len(sample) / len(pool):.2g} times the text that is not held out")
    return sample


def _loaded(model: str, *, device: str, seed: int) -> tuple[str, PreTrainedModel, Any]:
    """The folder where the model lies (empty for a named one), the model, its tokenizer. Raises StudyError for an unknown name."""
    folder = _at_hand(model)
    if folder and Path(model).is_dir():
        folders.check(Path(folder))
    elif folder:
        models.check_snapshot(model, Path(folder))
    elif model not in models.SOURCES:
        raise StudyError(f"model {model!r} is not known: name one of {', '.join(models.SOURCES)}, a local folder or a hub id")
    return folder, *models.load(folder or model, cache=places.cache(), assets=places.assets(), device=device, seed=seed)


def _at_hand(model: str) -> str:
    """The folder of a hub model, fetched; empty for what `models.load` knows by itself."""
    if model in models.SOURCES:
        return ""
    if Path(model).is_dir() or model.count("/") != 1:
        return model if Path(model).is_dir() else ""
    try:
        return str(snapshot(model, None, files=[*folders.HUB_FILES, "README.md"]))  # which tells the licence
    except (OSError, ValueError) as error:
        raise StudyError(
            f"model {model!r} is no local folder, and could not be fetched from the model hub ({type(error).__name__}): check the name "
            "and the network"
        ) from None


def _dtype(where: str, teacher: PreTrainedModel) -> torch.dtype:
    """What the base model's file is kept in."""
    if where in models.SOURCES:
        return teacher.dtype
    kept = getattr(AutoConfig.from_pretrained(where), "dtype", None)
    return kept if isinstance(kept, torch.dtype) else teacher.dtype


def _hub_id(model: str) -> str:
    """The model's name on the hub; empty where it has none that is known."""
    source = models.SOURCES.get(model)
    if source is not None:
        return source.where if source.kind == "hub" else ""
    return "" if Path(model).is_dir() else model


def _name(model: str) -> str:
    """What the card calls the base model: no path of the maker's machine."""
    return Path(model).resolve().name if Path(model).is_dir() else model


def _revision(model: str, folder: str) -> str:
    """The commit of a hub model; empty for others."""
    if model in models.SOURCES:
        return models.SOURCES[model].revision
    return Path(folder).name if folder and not Path(model).is_dir() else ""


def _source(model: str) -> str:
    """A folder of the base model: as the user named it, or as it lies in this repository; empty where there is none."""
    named = models.SOURCES.get(model)
    if named is not None:
        return f"{models.BUNDLED.name}/{named.where}" if named.kind == "bundled" else ""
    return model if Path(model).is_dir() else ""


def _license(model: str, folder: str) -> str:
    """The licence that the base model's card names, if there is one."""
    named = models.SOURCES.get(model)
    if named is not None and named.kind == "bundled":
        folder = str(models.BUNDLED / named.where)
    if named is not None and named.kind == "hub":
        with suppress(Exception):  # whatever keeps it away (a proxy has errors of its own): the card names none then
            folder = str(Path(hf_hub_download(named.where, "README.md", revision=named.revision)).parent)
    card = Path(folder) / "README.md" if folder else None
    if (
        card is None
        or not card.is_file()
        or not (content := card.read_text(encoding="utf-8", errors="replace")).startswith("---")
    ):
        return ""
    try:
        head = yaml.safe_load(content.split("---")[1])
    except (yaml.YAMLError, RecursionError, *yaml_files.OF_A_VALUE):
        return ""
    licence = head.get("license", "") if isinstance(head, dict) else ""
    return licence if isinstance(licence, str) else ""


def _work(out: Path) -> Path:
    return out.with_name(f".{out.name}.work")


def _steps(say: Callable[[str], None], *, every_seconds: float = 10) -> Callable[[int, int, str], None]:
    """A progress callback that speaks now and then."""
    last = time.monotonic()

    def told(done: int, total: int, unit: str) -> None:
        nonlocal last
        if time.monotonic() - last >= every_seconds:
            last = time.monotonic()
            say(f"  {done:,} of {total:,} {unit}")

    return told
