"""The command line: run, status, report, restore, verify, prune, cut-gguf, sweep."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from depthprune_study import cli_own, numerics, paths, provenance
from depthprune_study.errors import StudyError
from depthprune_study.telling import say, stopping

numerics.settle()  # before torch is imported
app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Which whole layers can a causal language model lose, and how much does distillation win "
    "back? Runs the study's notebooks; prunes your own model.",
)
app.command("prune")(cli_own.prune_own)
app.command("cut-gguf")(cli_own.cut_gguf)
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

        states = publish.states(study, {step.notebook: step.key for step in steps})
        if {*states.values()} != {publish.CURRENT} or not all(step.done for step in planned):
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
        states = publish.states(study, {step.notebook: step.key for step in steps})
        for step in steps:
            done = "run: done" if step.done else "run: to do"
            say(f"{step.notebook:<20} {done:<11} report: {states[step.notebook]}")


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


def _publish(study: str, steps: list) -> None:
    from depthprune_study.report import publish
    from depthprune_study.runner import chain, marks

    keys = {step.notebook: step.key for step in steps if step.done}
    costs, unfinished = marks.costs(paths.runs(study)), len(keys) < len(steps)
    with chain.alone(study):
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
