"""The command line: run, status, report, restore, verify, prune, cut-gguf, sweep."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

# Set before torch is imported: spinning OpenMP threads slow down on a busy machine.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

import typer

from depthprune_study import paths, provenance
from depthprune_study.errors import StudyError
from depthprune_study.telling import say, stopping

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Which whole layers can a causal language model lose, and how much does distillation win "
    "back? Runs the study's notebooks; prunes your own model.",
)
Study = Annotated[str, typer.Argument(help="The name of a folder under params/, such as quick.")]


def _version(asked: bool) -> None:
    if asked:
        say(f"depthprune {provenance.version('depthprune')} ({provenance.commit()})")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Options of every command."""


@app.command("run")
def run_study(
    study: Study = "quick",
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="List what would run, with time, memory and disk."),
    ] = False,
) -> None:
    """Run a study's notebooks in order and write its report. Finished notebooks are skipped."""
    with stopping(f"running study {study}", kept=lambda: chain.kept(study)):
        from depthprune_study.runner import chain, estimate

        planned = chain.plan(study)
        for line in estimate.lines(study, planned):
            say(line)
        if dry_run:
            return
        steps = chain.run(study, say=say)
        from depthprune_study.report import publish

        current = publish.is_current(study, {step.notebook: step.key for step in steps})
        if not (all(current.values()) and all(step.done for step in planned)):
            _publish(study, steps)
        _say_answer(study)


@app.command("report")
def make_report(
    study: Study = "quick",
    unfinished: Annotated[
        bool, typer.Option("--unfinished", help="Publish the results of a stopped run.")
    ] = False,
) -> None:
    """Write reports/<study>/ again from a finished run."""
    with stopping(f"writing the report of study {study}", kept="the old report is unchanged"):
        from depthprune_study.runner import chain

        steps = chain.plan(study)
        waiting = [step.notebook for step in steps if not step.done]
        if waiting and not unfinished:
            raise StudyError(
                f"study {study} is not finished; still to run: {', '.join(waiting)}. `depthprune "
                f"run {study}` runs them, `--unfinished` publishes the finished part"
            )
        _publish(study, steps)
        _say_answer(study)


@app.command("restore")
def restore_run(
    study: Study = "quick",
    source: Annotated[
        Path | None,
        typer.Option("--from", help="A report's folder; reports/<study>/ if not given."),
    ] = None,
) -> None:
    """Copy a report's records into runs/<study>/, so that `run` does only the rest."""
    with stopping(f"restoring study {study}", kept="the files copied so far are whole"):
        from depthprune_study.runner import chain

        n_files = chain.restore(study, source or paths.reports(study))
        say(f"{n_files} files restored to {paths.runs(study)}; `depthprune run {study}` resumes")


@app.command("status")
def show_status(study: Study = "quick") -> None:
    """Show which notebooks are done, and whether the report was made by the current code."""
    with stopping(f"reading the state of study {study}", kept="nothing was changed"):
        from depthprune_study.report import publish
        from depthprune_study.runner import chain

        steps = chain.plan(study)
        current = publish.is_current(study, {step.notebook: step.key for step in steps})
        for step in steps:
            done = "run: done" if step.done else "run: to do"
            fresh = "current" if current.get(step.notebook) else "outdated or missing"
            say(f"{step.notebook:<20} {done:<11} report: {fresh}")


@app.command("verify")
def verify_report(
    folder: Annotated[Path, typer.Argument(help="A published report, such as reports/quick.")],
) -> None:
    """Check that a report's records, notebooks, figures and pages agree."""
    with stopping(f"verifying {folder}", kept="nothing was changed"):
        from depthprune_study.report import verify

        if wrong := verify.differences(folder):
            raise StudyError("\n".join(wrong))
        say(f"{folder}: records, notebooks, figures and pages agree")


@app.command("prune")
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
    rule: Annotated[str, typer.Option(help="How layers are chosen.")] = "least_sensitive",
    recover_tokens: Annotated[
        float, typer.Option(help="Training tokens for recovery, such as 1e6; 0: no recovery.")
    ] = 0,
    lr: Annotated[float, typer.Option(help="Learning rate; 0: the recipe's.")] = 0,
    trained: Annotated[str, typer.Option(help="What recovery trains: all or lora.")] = "all",
    seed: Annotated[int, typer.Option(help="Random seed for the recovery text.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    push_to: Annotated[str, typer.Option(help="A hub repository to push the folder to.")] = "",
) -> None:
    """Drop layers from a decoder, recover it, write a folder that plain transformers opens."""
    with stopping(
        f"pruning {model}",
        kept=f"{out} was not written; finished work is kept beside it; the same command resumes",
    ):
        from depthprune_study.lab import own

        if bool(drop) == bool(layers):
            raise StudyError("give either --drop (how much) or --layers (which layers)")
        if not 0 <= recover_tokens < 1e12 or recover_tokens % 1:
            raise StudyError(f"--recover-tokens must be a whole number, not {recover_tokens:g}")
        made = own.prune(
            model,
            text=text,
            out=out,
            drop=drop,
            layers=_layers("--layers", layers),
            rule=rule,
            recover_tokens=int(recover_tokens),
            lr=lr,
            trained=trained,
            seed=seed,
            device=device,
            push_to=push_to,
            say=say,
        )
        say(str(made))


@app.command("cut-gguf")
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


@app.command("sweep")
def run_sweep(
    files: Annotated[list[Path], typer.Argument(help="Files such as params/sweeps/rules.yaml.")],
    workers: Annotated[
        int, typer.Option(help="Parallel cells on this machine; 0: one per GPU, else 1.", min=0)
    ] = 0,
    site: Annotated[
        Path | None, typer.Option(help="A Parsl site, such as params/sites/slurm.py.")
    ] = None,
) -> None:
    """Run a notebook over a grid of parameters; a failed cell does not stop the others."""
    with stopping("running a sweep", kept="finished cells are kept; the same command resumes"):
        from depthprune_study.runner import sweep

        failed = []
        for grid in [sweep.read(path) for path in files]:  # bad ones are refused before any runs
            failed += sweep.run(grid, sweep.pool(workers, site), say=say)
            say(f"table: {sweep.gather(grid)}")
        if failed:
            lines = [f"{len(failed)} cells failed; the same command runs them again:", *failed]
            raise StudyError("\n".join(lines))


def _layers(option: str, written: str) -> tuple[int, ...]:
    try:
        return tuple(int(number) for number in written.split(",")) if written else ()
    except ValueError:
        raise StudyError(f"{option} must be layer numbers such as 14,17, not {written!r}") from None


def _publish(study: str, steps: list) -> None:
    from depthprune_study.report import publish
    from depthprune_study.runner import chain, marks

    keys = {step.notebook: step.key for step in steps if step.done}
    costs, unfinished = marks.costs(paths.runs(study)), len(keys) < len(steps)
    with chain.alone(paths.runs(study)):
        publish.publish(study, keys=keys, costs=costs, unfinished=unfinished)


def _say_answer(study: str) -> None:
    from depthprune_study.report import evidence, pages

    folder = paths.reports(study)
    found = evidence.Evidence(study, folder)
    for line in pages.answer_lines(found) if found.lead else ():
        say(line.replace("**", ""))
    say(f"report: {folder / 'report.html'}")


def main() -> None:
    """Entry point."""
    app()
