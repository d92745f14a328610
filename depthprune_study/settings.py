"""The parameters of each notebook, as pydantic models; a study's YAML files are checked as a whole before any work."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from depthprune_study import places, yaml_files

MOST_TOKENS = 10**10  # a training sample lies in memory, 17 bytes a token
Tokens = Annotated[int, Field(ge=8, le=MOST_TOKENS)]
CountOrZero = Annotated[int, Field(ge=0, le=MOST_TOKENS)]
Count = Annotated[int, Field(ge=1, le=10**6)]  # of what is timed
Layers = Annotated[int, Field(ge=1, le=1_000)]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]  # what NumPy takes
Rate = Annotated[float, Field(gt=0, le=1)]
Device = Literal["auto", "cpu", "cuda"]
Rule = Literal[
    "least_sensitive", "most_sensitive", "greedy", "pairwise", "exhaustive", "contiguous", "racing", "evenly_spaced", "last_k"
]


class Common(BaseModel):
    """What every notebook takes. Strict: `1e-4` (a string in YAML 1.1) and `no` (a bool) are refused, not guessed at."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    study: Annotated[str, Field(pattern=r"^[a-z0-9_-]+$", description="folder under runs/ and params/")]


class Work(Common):
    """What every notebook that computes takes."""

    model: Annotated[str, Field(description="named model or local folder", min_length=1)]
    text: Annotated[str, Field(description="named text, file or folder", min_length=1)]
    max_documents: Annotated[CountOrZero, Field(description="documents used of each split; 0 = all")]
    seq_len: Annotated[int, Field(ge=8, le=8192, description="tokens a window")]
    score_tokens: Annotated[Tokens, Field(description="tokens scored a document")]
    device: Device
    seed: Seed

    @field_validator("max_documents")
    @classmethod
    def _more_than_one(cls, max_documents: int) -> int:
        if max_documents == 1:
            raise ValueError("0 (all) or at least 2 is wanted: a single document gives no interval")
        return max_documents


class Sensitivity(Work):
    calibration_tokens: Annotated[Tokens, Field(description="tokens a calibration document")]
    pairs: Annotated[bool, Field(description="measure all pairs of layers")]


class Prune(Work):
    calibration_tokens: Tokens
    drop_counts: Annotated[list[Layers], Field(min_length=1, max_length=4, description="layers to drop, one set of plans each")]
    exhaustive_to: Annotated[int, Field(ge=2, le=4, description="largest sets of layers that are all measured")]
    race_counts: Annotated[list[Layers], Field(max_length=4, description="layers to drop by racing")]
    race_tokens: Annotated[Tokens, Field(description="tokens a calibration document for the race")]
    random_draws: Annotated[int, Field(ge=1, le=50)]
    timed_context: Annotated[Count, Field(description="tokens of prompt")]
    timed_new_tokens: Count
    timed_rounds: Annotated[int, Field(ge=3, le=200)]
    timed_shapes: list[Literal["gpt2-shape", "tinyllama-1.1b-shape", "llama-tiny"]]
    shape_context: Count
    shape_new_tokens: Count
    shape_rounds: Annotated[int, Field(ge=3, le=200)]


class Recovery(Work):
    calibration_tokens: Tokens
    rules: Annotated[
        list[Rule], Field(min_length=1, max_length=8, description="arms of notebook 02, one of which is recovered")
    ]
    drop_count: Layers
    tokens: Annotated[Tokens, Field(description="recovery tokens a run")]
    pilot_tokens: Annotated[Tokens, Field(description="tokens a trial of the sweep")]
    rate_tokens: Annotated[Tokens, Field(description="tokens a trial of a learning rate")]
    lr_grid: Annotated[list[Rate], Field(min_length=1, max_length=8)]
    optimisers: Annotated[list[Literal["adamw", "muon"]], Field(min_length=1, max_length=2)]
    train_seq_lens: Annotated[list[Annotated[int, Field(ge=8, le=8192)]], Field(min_length=1, max_length=8)]
    batch_tokens: Annotated[list[Tokens], Field(min_length=1, max_length=8)]
    warmups: Annotated[list[Annotated[float, Field(ge=0, lt=1)]], Field(min_length=1, max_length=8)]
    temperatures: Annotated[list[Annotated[float, Field(gt=0, le=20)]], Field(min_length=1, max_length=8)]
    trained_parts: Annotated[list[Literal["all", "after_first_cut"]], Field(min_length=1, max_length=2)]
    lora_lr_grid: Annotated[list[Rate], Field(max_length=8)]
    refit_tokens: Annotated[
        CountOrZero, Field(description="tokens, at most, to fit the maps before the cuts on; 0 means never")
    ]
    hidden_weights: Annotated[list[Annotated[float, Field(ge=0, le=100)]], Field(min_length=1, max_length=8)]
    mixed_in_full: Annotated[bool, Field(description="run the mixed loss in full too, not only as trials")]
    precision: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"], Field(description="of recovery's arithmetic; weights stay float32")
    ]
    mixed_ce: Annotated[float, Field(gt=0, le=1, description="weight of CE in the mixed loss, KL has the rest")]

    @field_validator("batch_tokens")
    @classmethod
    def _whole_windows(cls, batch_tokens: list[int], info: ValidationInfo) -> list[int]:
        lengths = info.data.get("train_seq_lens", [])
        if any(tokens % length for tokens in batch_tokens for length in lengths):
            raise ValueError(f"each must be a multiple of every train_seq_lens {lengths}: a step takes whole windows")
        return batch_tokens


class Controls(Work):
    elsewhere: Annotated[str, Field(description="named text that no run was trained on or chosen by", min_length=1)]
    calibration_tokens: Tokens
    width_lr_grid: Annotated[
        list[Rate], Field(max_length=8, description="tried for the narrower model; empty: those of notebook 03")
    ]
    lora_lr_grid: Annotated[list[Rate], Field(min_length=1, max_length=8)]
    paced_windows: Count
    bits: Annotated[list[Annotated[int, Field(ge=2, le=8)]], Field(max_length=7)]
    zero_shot_items: CountOrZero
    zero_shot_tasks: list[str]


class Choice(Work):
    arm_tokens: Annotated[Tokens, Field(description="recovery tokens of each rule")]
    set_tokens: Annotated[Tokens, Field(description="recovery tokens of each set")]
    n_sets: Annotated[int, Field(ge=2, le=100)]
    set_seeds: Annotated[list[Seed], Field(min_length=1, max_length=10)]


class Transfer(Work):
    first_model: Annotated[str, Field(description="the family whose recipe is taken over", min_length=1)]
    calibration_tokens: Tokens
    drop_count: Layers
    tokens: Tokens
    pilot_tokens: Annotated[Tokens, Field(description="tokens a trial of the learning rate")]
    second_choice_tokens: Annotated[
        Tokens, Field(description="calibration tokens a document for the choice between two stages")
    ]
    trained: Annotated[
        Literal["recipe", "all", "after_first_cut", "lora"],
        Field(description="what is trained, where not what the recipe says"),
    ]
    lr_grid: Annotated[list[Rate], Field(max_length=8, description="learning rates tried; empty: those of notebook 03")]
    control_lr_grid: Annotated[
        list[Rate], Field(max_length=8, description="tried for the control; empty: notebook 03's, or for adapters lr_grid")
    ]
    optimiser: Annotated[Literal["recipe", "adamw", "adamw_8bit", "muon"], Field(description="where not the recipe's")]
    windows_at_once: Annotated[CountOrZero, Field(description="windows of a step that are computed together; 0: all of them")]
    checkpoint_activations: Annotated[
        bool, Field(description="compute layers' insides again in the backward pass, to save memory")
    ]
    timed_context: Count
    timed_new_tokens: Count
    timed_rounds: Annotated[int, Field(ge=3, le=200)]


class Seeds(Work):
    seeds: Annotated[list[Seed], Field(min_length=2, max_length=50)]

    @field_validator("seeds")
    @classmethod
    def _differ(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) != len(seeds):
            raise ValueError("the seeds must differ from each other")
        return seeds


class Report(Common):
    pass


class Cell(Work):
    calibration_tokens: Tokens
    rule: Rule
    drop_count: Layers
    tokens: Annotated[Tokens, Field(description="recovery tokens")]
    lr: Rate
    batch_tokens: Annotated[Tokens, Field(description="tokens a step")]
    refit_tokens: CountOrZero
    precision: Literal["auto", "float32", "bfloat16", "float16"]

    @field_validator("batch_tokens")
    @classmethod
    def _whole_windows(cls, batch_tokens: int, info: ValidationInfo) -> int:
        if batch_tokens % info.data.get("seq_len", 1):
            raise ValueError(f"must be a multiple of seq_len {info.data['seq_len']}: a step takes whole windows")
        return batch_tokens


class Table(Common):
    pass


class Sweep(BaseModel):
    """A grid of cells: what varies is given in lists, the rest as in a cell."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    name: Annotated[str, Field(pattern=r"^[a-z0-9_-]+$", description="names its folders under runs/")]
    models: Annotated[list[str], Field(min_length=1, max_length=100)]
    rules: Annotated[list[Rule], Field(min_length=1, max_length=20)]
    drop_counts: Annotated[list[Layers], Field(min_length=1, max_length=100)]
    seeds: Annotated[list[Seed], Field(min_length=1, max_length=100)]
    same: Annotated[dict[str, Any], Field(description="parameters that all cells share")]

    @field_validator("models", "rules", "drop_counts", "seeds")
    @classmethod
    def _once(cls, values: list[Any]) -> list[Any]:
        if len(set(values)) != len(values):
            raise ValueError("each can be named once")
        return values


SCHEMAS: dict[str, type[Common]] = {
    "01_sensitivity": Sensitivity,
    "02_prune_gpt2": Prune,
    "03_recovery": Recovery,
    "03b_controls": Controls,
    "03c_choice": Choice,
    "04_transfer_tinyllama": Transfer,
    "05_seed_stability": Seeds,
    "06_report": Report,
}


# Which work on the first model, read each other's records and so have one model and one text.
FIRST_FAMILY = ("01_sensitivity", "02_prune_gpt2", "03_recovery", "03b_controls", "03c_choice", "05_seed_stability")

SWEEP_SCHEMAS: dict[str, type[Common]] = {"sweeps/cell": Cell, "sweeps/table": Table}


class StudyError(ValueError):
    """A message for the user: says what is wrong and what to do. The command line shows it without a traceback."""


def studies() -> list[str]:
    """Names of the studies that have parameters."""
    return sorted(folder.name for folder in places.PARAMS.iterdir() if (folder / "06_report.yaml").exists())


def read_study(study: str) -> dict[str, Common]:
    """The checked parameters of each notebook of a study, in order. Raises StudyError with every problem found."""
    if study not in studies():
        raise StudyError(f"study {study!r} is not known: name one of {', '.join(studies())}")
    folder = places.PARAMS / study
    problems: list[str] = []
    checked: dict[str, Common] = {}
    for path in sorted(folder.glob("*.yaml")):
        if path.stem not in SCHEMAS:
            problems.append(f"{study}/{path.name}: there is no such notebook; known are {', '.join(SCHEMAS)}")
    for name, schema in SCHEMAS.items():
        path = folder / f"{name}.yaml"
        if not path.exists():
            problems.append(f"{study}/{path.name}: the file is missing")
            continue
        found, parameters = yaml_files.read(path, schema)
        problems += [f"{study}/{path.name}: {problem}" for problem in found]
        if parameters is not None:
            checked[name] = parameters
            if parameters.study != study:
                problems.append(f"{study}/{path.name}: study={parameters.study!r} should be {study!r}, as its folder says")
    problems = problems or [f"{study}/{problem}" for problem in _disagreements(checked)]
    if problems:
        raise StudyError("\n".join(problems))
    return checked


def _disagreements(checked: dict[str, Common]) -> Iterator[str]:
    """What one notebook says otherwise than another whose records it reads."""
    first = checked.get("01_sensitivity")
    for name in FIRST_FAMILY:
        for key in ("model", "text", "max_documents"):
            if name in checked and getattr(checked[name], key) != getattr(first, key):
                told, wanted = (yaml_files.short(getattr(of, key)) for of in (checked[name], first))
                yield f"{name}.yaml: {key}={told} should be {wanted}, as in 01_sensitivity.yaml"
    transfer, prune, recovery = (checked.get(name) for name in ("04_transfer_tinyllama", "02_prune_gpt2", "03_recovery"))
    if transfer and transfer.first_model != first.model:
        told, wanted = yaml_files.short(transfer.first_model), yaml_files.short(first.model)
        yield f"04_transfer_tinyllama.yaml: first_model={told} should be {wanted}, the model of 01_sensitivity.yaml"
    if not (prune and recovery):
        return
    if (k := recovery.drop_count) not in prune.drop_counts:
        yield f"03_recovery.yaml: drop_count={k} should be one of 02_prune_gpt2.yaml's drop_counts {prune.drop_counts}"
    for rule in recovery.rules:
        if rule == "exhaustive" and k > prune.exhaustive_to:
            yield (
                f"03_recovery.yaml: rules names exhaustive, but for drop_count={k} 02_prune_gpt2.yaml's exhaustive_to="
                f"{prune.exhaustive_to} should be at least {k}"
            )
        if rule == "racing" and k not in prune.race_counts:
            yield (
                f"03_recovery.yaml: rules names racing, but 02_prune_gpt2.yaml's race_counts={prune.race_counts} should hold "
                f"drop_count={k}"
            )


def check(notebook: str, values: dict[str, Any]) -> Common:
    """Parameters as a notebook's cell has them. Raises StudyError with every problem found."""
    schema = schema_of(notebook)
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        raise StudyError("\n".join(f"{notebook}: {problem}" for problem in yaml_files.sentences(error, schema))) from None


def schema_of(notebook: str) -> type[Common]:
    """The parameters that a notebook takes."""
    return (SCHEMAS | SWEEP_SCHEMAS)[notebook]


def read_sweep(path: Path) -> Sweep:
    """A sweep's file. Raises StudyError with every problem found."""
    if not path.is_file():
        raise StudyError(f"{path} is not there: name a file such as params/sweeps/rules.yaml")
    found, sweep = yaml_files.read(path, Sweep)
    if found:
        raise StudyError("\n".join(f"{path.name}: {problem}" for problem in found))
    return sweep
