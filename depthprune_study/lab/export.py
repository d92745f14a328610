"""A pruned model as a folder that plain `from_pretrained` opens: weights, tokenizer, card."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi
from huggingface_hub.utils import validate_repo_id
from transformers import AutoTokenizer, PreTrainedModel

from depthprune_core import models, pruning
from depthprune_core.anatomy import anatomy
from depthprune_core.records import Plan
from depthprune_study.errors import StudyError

Dtypes = Mapping[str, torch.dtype]  # parameter of the saved model -> its dtype in the file


def folder(
    out: Path,
    model: PreTrainedModel,
    tokenizer: Any,
    *,
    dtypes: Dtypes,
    files: Mapping[str, str],
    replace: bool = False,
) -> None:
    """Write the folder under a temporary name, open it with transformers, compare, then rename.

    With `replace`, an earlier folder `out` stays until the new one has passed.

    Each parameter gets its dtype of the base model's file: the model is rounded in place to this
    precision and is float32 again at the end. files: name -> text of further files.

    Raises StudyError if `out` exists, or if the opened model gives other logits or the opened
    tokenizer other tokens than before saving.
    """
    check_free(out, replace=replace)
    out.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    try:
        try:
            cast(model, dtypes).save_pretrained(building)
        finally:
            cast(model, dict.fromkeys(dtypes, torch.float32))
        for name, content in files.items():
            (building / name).write_text(content, encoding="utf-8")
        tokenizer.save_pretrained(building)
        _check(building, model, tokenizer)
        os.chmod(building, 0o755)
        if replace:
            shutil.rmtree(out, ignore_errors=True)
        os.replace(building, out)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise


def file_dtypes(teacher: PreTrainedModel, student: PreTrainedModel, plan: Plan) -> Dtypes:
    """The dtype of each student parameter in the base model's file; empty without a file."""
    of_file, stack = models.file_dtypes(teacher), anatomy(teacher).layers_name
    names = {
        name: pruning.original_name(name, stack, plan.kept)
        for name, _ in student.named_parameters()
    }
    return {name: of_file[old] for name, old in names.items() if old in of_file}


@torch.no_grad()
def cast(model: PreTrainedModel, dtypes: Dtypes) -> PreTrainedModel:
    """The model with each parameter cast in place; parameters without an entry are unchanged.

    Buffers derived from the config (rotary frequencies) stay exact.
    """
    for name, p in model.named_parameters():
        p.data = p.data.to(dtypes.get(name, p.dtype))
    return model


def check_free(out: Path, *, replace: bool = False) -> None:
    """Raises StudyError if `out` exists or cannot be replaced by a finished folder.

    With `replace`, `out` may be a folder with files.
    """
    if out.name in ("", "..") or out.is_symlink() or os.path.ismount(out):
        raise StudyError(f"out={out} is a link or a mounted disk: name a folder inside it")
    if out.exists() and not (out.is_dir() and (replace or not any(out.iterdir()))):
        raise StudyError(f"out={out} exists already and is not overwritten: name another folder")


def check_push(push_to: str) -> None:
    """Raises StudyError before any work if a push would fail."""
    if not push_to:
        return
    try:
        validate_repo_id(push_to)
        HfApi().whoami()
    except Exception as error:  # no login, no network, a proxy: each raises another kind
        raise StudyError(
            f"push_to={push_to!r} must be NAME/MODEL and needs a login ({type(error).__name__}): "
            "run `hf auth login`, or leave push_to empty and push the folder later"
        ) from None


def push(out: Path, push_to: str) -> str:
    """Push the folder to a hub model repository, which is created if it is missing.

    Returns its address. Raises StudyError if the hub refuses; the folder stays.
    """
    try:
        address = HfApi().create_repo(push_to, exist_ok=True)
        HfApi().upload_folder(repo_id=push_to, folder_path=out, commit_message="By depthprune")
    except Exception as error:  # of the client or of its network library
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
        raise StudyError(
            f"{out} is written, but could not be pushed to {push_to} ({reason}): "
            f"`hf upload {push_to} {out}` pushes it"
        ) from None
    return str(address)


def _check(path: Path, saved: PreTrainedModel, tokenizer: Any) -> None:
    try:
        pruning.check_saved(saved, path)
    except ValueError as error:
        raise StudyError(f"the written model differs after opening: {error}") from None
    words = "Which layers can go? (14 + 17)"
    if AutoTokenizer.from_pretrained(path)(words).input_ids != tokenizer(words).input_ids:
        raise StudyError("the written tokenizer gives other tokens after opening")
