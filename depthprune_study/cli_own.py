"""Commands for your own model: prune, cut-gguf."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from depthprune_core.selection import RULES
from depthprune_study.errors import StudyError
from depthprune_study.telling import say, stopping


def prune_own(
    model: Annotated[str, typer.Argument(help="A named model, a folder or a hub id (org/name).")],
    text: Annotated[str, typer.Option(help="A file, a folder, a named text or ORG/NAME:column.")],
    out: Annotated[Path, typer.Option(help="The folder to write; it must not exist.")],
    drop: Annotated[
        str, typer.Option(help="How much to drop: layers (2), a share (8%), or to a size (110M).")
    ] = "",
    layers: Annotated[
        str, typer.Option(help="Layers to drop, counted from 0: 14,17. Replaces --drop.")
    ] = "",
    rule: Annotated[
        str, typer.Option(help=f"How layers are chosen: {', '.join(RULES)}.")
    ] = "least_sensitive",
    recover_tokens: Annotated[
        float, typer.Option(help="Training tokens for recovery, such as 1e6; 0: no recovery.")
    ] = 0,
    trained: Annotated[str, typer.Option(help="What recovery trains: all or lora.")] = "all",
    seed: Annotated[int, typer.Option(help="Random seed for the recovery text.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    push_to: Annotated[str, typer.Option(help="A hub repository to push the folder to.")] = "",
) -> None:
    """Drop layers from a decoder, recover it, write a folder that plain transformers opens."""
    kept = f"{out} was not written; finished work is kept; the same command resumes"
    with stopping(f"pruning {model}", kept=kept):
        from depthprune_study.runner import own

        if bool(drop) == bool(layers):
            raise StudyError("give either --drop (how much) or --layers (which layers)")
        if not 0 <= recover_tokens < 1e12 or recover_tokens % 1:
            raise StudyError(f"--recover-tokens must be a whole number, not {recover_tokens:g}")
        said = own.prune(
            model,
            text=text,
            out=out,
            drop=drop,
            layers=list(_layers("--layers", layers)),
            rule=rule,
            recover_tokens=int(recover_tokens),
            trained=trained,
            seed=seed,
            device=device,
            push_to=push_to,
            say=say,
        )
        say(f"{said}; the executed notebook lies in {out}")


def cut_gguf(
    source: Annotated[Path, typer.Argument(help="A GGUF file.")],
    target: Annotated[Path, typer.Argument(help="The file to write.")],
    drop: Annotated[str, typer.Option(help="Layers to drop, counted from 0: 14,17.")],
) -> None:
    """Drop layers from a GGUF file without dequantising it; the result is checked."""
    with stopping(f"cutting {source}", kept=f"{target} was not written"):
        from depthprune_study.lab import gguf

        plan = gguf.cut(source, target, _layers("--drop", drop))
        smaller = 1 - target.stat().st_size / source.stat().st_size
        say(f"{target}: {len(plan.kept)} of {plan.n_layers} layers, {smaller:.1%} smaller; checked")


def _layers(option: str, written: str) -> tuple[int, ...]:
    try:
        return tuple(int(number) for number in written.split(",")) if written else ()
    except ValueError:
        raise StudyError(f"{option} must be layer numbers such as 14,17, not {written!r}") from None
