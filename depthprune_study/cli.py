"""The command line: run, report, restore, status, verify, why, prune, sweep, cut-gguf, to-gguf."""

from __future__ import annotations

import errno
import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from depthprune_study import places
from depthprune_study.settings import StudyError

# Architectures in which llama.cpp treats every layer alike. In others (gemma 2 and 3, smollm3, cohere2) every nth layer is special.
LAYERS_ALIKE = ("llama", "gpt2", "qwen2", "qwen3", "gptneox", "bloom", "falcon", "starcoder2", "stablelm", "phi2")
FREE_SOME_SPACE = "; free some space, then the same command goes on from here"

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Which whole layers can a causal language model lose, and how much does distillation win back? Runs the study's notebooks.",
)
Study = Annotated[
    str, typer.Argument(help="A study: the name of a folder under params/ (quick, ci, smollm2, full, full-t4, rehearsal).")
]


@app.command("run")
def run_study(
    study: Study = "quick",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done, and how long it should take; do nothing.")
    ] = False,
) -> None:
    """Run a study's notebooks in order and write its report. What is finished and unchanged is not run again."""
    from depthprune_study import report, run

    with _sentences():
        steps = run.plan(study)
        _say_plan(study, steps)
        if dry_run:
            _say_budget(study)
            return
        run.run(study, say=_say)
        page = places.reports(study) / "report.html"
        nothing_new = page.exists() and all(step.done for step in steps) and all(report.is_current(study).values())
        _say_answer(study, page if nothing_new else report.publish(study))


@app.command("report")
def make_report(
    study: Study = "quick",
    unfinished: Annotated[
        bool, typer.Option("--unfinished", help="Publish what there is so far of a run that was stopped.")
    ] = False,
) -> None:
    """Write reports/<study>/ anew from a finished run."""
    from depthprune_study import report, run

    with _sentences():
        waiting = [step.notebook for step in run.plan(study) if not step.done]
        if waiting and not unfinished:
            raise StudyError(
                f"study {study} is not finished: {', '.join(waiting)} wait; `depthprune run {study}` runs them, "
                "`--unfinished` publishes what there is"
            )
        if waiting:
            _say(f"report so far: {report.publish(study, unfinished=True, say=_say)}")
        else:
            _say_answer(study, report.publish(study, say=_say))


@app.command("restore")
def restore_run(
    study: Study = "quick",
    source: Annotated[Path | None, typer.Option("--from", help="A report's folder; reports/<study>/ if not given.")] = None,
) -> None:
    """Put a report's records into runs/<study>/: `run` then does only what they do not hold, or hold for other code or inputs."""
    from depthprune_study import run

    with _sentences():
        n_files = run.restore(study, source or places.reports(study))
        _say(f"{n_files} files restored to {places.runs(study)}; `depthprune run {study}` goes on from them")


@app.command("status")
def show_status(study: Study = "quick") -> None:
    """Say which notebooks are done, and whether the report in reports/ was made by the code as it is now."""
    from depthprune_study import report, run

    with _sentences():
        current = report.is_current(study)
        for step in run.plan(study):
            done = "run: done" if step.done else "run: to do"
            fresh = "report: current" if current[step.notebook] else "report: made by other code or parameters, or missing"
            _say(f"{step.notebook:<24} {done:<11} {fresh}")


@app.command("verify")
def verify_report(
    report_folder: Annotated[Path, typer.Argument(help="A published report, such as reports/quick.")],
    recompute: Annotated[bool, typer.Option(help="Score the whole models and one cut anew, too.")] = True,
) -> None:
    """Check that a report's records, notebooks, figures and verdicts fit together, and that its cheap numbers come out again."""
    from depthprune_study import verify

    with _sentences():
        wrong = verify.differences(report_folder)
        if not wrong:
            _say("records, notebooks, figures and verdicts fit together")
            for what, nats in verify.recomputed(report_folder) if recompute else ():
                _say(f"{what}: scored anew, at most {nats:.1g} nats per token from the record")
                if nats > verify.TOLERANCE_NATS:
                    wrong.append(f"{what}: {nats:.1g} nats per token is more than sums in another order explain")
        if wrong:
            raise StudyError("\n".join(wrong))


@app.command("why")
def why_it_says_so(
    report_folder: Annotated[Path, typer.Argument(help="A published report, such as reports/quick.")],
    thing: Annotated[str, typer.Argument(help="A claim (C4), a section of the page (recovery), a figure's file or a record.")],
) -> None:
    """Follow a claim, figure or record of a report back to its records, arms, parameters, code, versions, device, seed and inputs."""
    from depthprune_study import why

    with _sentences():
        for line in why.explain(report_folder, thing):
            _say(line)


@app.command("sweep")
def run_sweep(
    sweep_files: Annotated[
        list[Path], typer.Argument(help="Files such as params/sweeps/rules.yaml, one sweep after the other.")
    ],
    workers: Annotated[int, typer.Option(help="Cells at a time on this machine; 0: one a GPU, or one.", min=0)] = 0,
    site: Annotated[
        Path | None, typer.Option(help="A Parsl site, such as params/sites/slurm.py, in place of this machine.")
    ] = None,
) -> None:
    """Run a grid of models, rules, depths and seeds; a cell that fails stops no other, and what is done is not run again."""
    from depthprune_study import grid, settings

    with _sentences():
        sweeps = [settings.read_sweep(path) for path in sweep_files]
        for sweep in sweeps:
            grid.cells(sweep)  # refuses bad parameters before any worker starts
        failed = []
        for sweep in sweeps:
            with grid.stopped_at_once(grid.parsl_pool(site) if site else grid.local_pool(workers)) as pool:
                failed += grid.run_sweep(sweep, pool, say=_say)
            if any(cell.done for cell in grid.cells(sweep)):
                _say(f"\ntable and figures: {grid.gather(sweep)}")
        if failed:
            raise StudyError("\n".join([f"{len(failed)} cells failed; the same command runs them again:", *failed]))


@app.command("prune")
def prune_own(
    model: Annotated[str, typer.Argument(help="A named model, a local folder or a hub id (org/name).")],
    text: Annotated[str, typer.Option(help="A text file, a folder of .txt files, or a named text.")],
    out: Annotated[Path, typer.Option(help="The folder to write; nothing may be there.")],
    drop: Annotated[int, typer.Option(help="How many layers go.")] = 0,
    layers: Annotated[str, typer.Option(help="Which layers go, counted from 0: 14,17. In place of --drop.")] = "",
    rule: Annotated[str, typer.Option(help="How they are chosen.")] = "least_sensitive",
    recover_tokens: Annotated[float, typer.Option(help="Tokens to recover on: 1e6; 0 for the cut alone.")] = 0,
    lr: Annotated[float, typer.Option(help="Learning rate of recovery.")] = 1e-4,
    trained: Annotated[str, typer.Option(help="What recovery trains: all, after_first_cut or lora.")] = "all",
    optimiser: Annotated[str, typer.Option(help="adamw, adamw_8bit (less memory) or muon.")] = "adamw",
    checkpoint_activations: Annotated[
        bool, typer.Option("--checkpoint-activations", help="Compute activations twice: less memory, a third more time.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Draws of the recovery text.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Drop layers from any decoder, recover it on a text, and write a folder that plain transformers opens, with a model card."""
    from depthprune_study import own

    with _sentences():
        if bool(drop) == bool(layers):
            raise StudyError("how many layers go, or which: give one of --drop and --layers")
        if not (math.isfinite(recover_tokens) and recover_tokens >= 0 and recover_tokens == int(recover_tokens)):
            raise StudyError(f"--recover-tokens {recover_tokens:g}: a whole number from 0 on is wanted")
        made = own.prune(
            model,
            text_name=text,
            out=out,
            drop=drop,
            layers=tuple(_layers("--layers", layers)) if layers else (),
            rule=rule,
            recover_tokens=int(recover_tokens),
            lr=lr,
            trained=trained,
            optimiser=optimiser,
            checkpoint_activations=checkpoint_activations,
            seed=seed,
            device=device,
            say=_say,
        )
        if made is None:  # one of several processes, and not the first
            return
        _say(f"perplexity ratio to the whole model as saved: {made.ratios['as saved']}")
        _say(f"{out}: opened and checked; its README.md is the model card")


@app.command("cut-gguf")
def cut_gguf(
    source: Annotated[Path, typer.Argument(help="A GGUF file.")],
    target: Annotated[Path, typer.Argument(help="The file to write.")],
    drop: Annotated[str, typer.Option(help="Layers to drop, counted from 0: 14,17.")],
) -> None:
    """Drop layers from a GGUF file as it is, without dequantising it. What was written is opened and checked."""
    from depthprune_core import gguf_files

    with _sentences():
        layers = _layers("--drop", drop)
        architecture = gguf_files.architecture(source)
        if architecture not in LAYERS_ALIKE:
            raise StudyError(
                f"{source} holds a model of architecture {architecture!r}; layers can be dropped from {', '.join(LAYERS_ALIKE)}, "
                "where llama.cpp treats every layer alike"
            )
        plan = gguf_files.cut(source, target, layers)
        smaller = 1 - target.stat().st_size / source.stat().st_size
        _say(f"{target}: {len(plan.kept)} of {plan.n_layers} layers, {smaller:.1%} smaller; opened and checked")


@app.command("to-gguf")
def to_gguf_file(
    folder: Annotated[Path, typer.Argument(help="A model folder, such as `depthprune prune` writes.")],
    target: Annotated[Path, typer.Argument(help="The file to write.")],
    kind: Annotated[str, typer.Option("--type", help="How matrices are kept: f16 or f32.")] = "f16",
) -> None:
    """Write a model folder as a GGUF file for llama.cpp. What was written is opened, and its logits are compared."""
    from depthprune_study import to_gguf

    with _sentences():
        to_gguf.convert(folder, target, kind=kind)
        _say(f"{target}: {target.stat().st_size:,} bytes; opened, and its logits compared")


def _layers(option: str, written: str) -> list[int]:
    """Layers as the command line has them. Raises StudyError for what is no list of whole numbers."""
    try:
        return [int(number) for number in written.split(",")]
    except ValueError:
        raise StudyError(f"{option} {written!r}: layer numbers with commas between them are wanted, such as 14,17") from None


def _say_plan(study: str, steps: list) -> None:
    waiting = [step for step in steps if not step.done]
    total = sum(step.expected_seconds for step in waiting)
    known = f", about {total / 60:.0f} min on two CPU cores" if total else ""
    _say(f"study {study}: {len(steps)} notebooks, {len(waiting)} to run{known}")
    for step in steps:
        about = f"about {step.expected_seconds:.0f} s" if step.expected_seconds else "time not measured"
        models = ", ".join(str(step.parameters[key]) for key in ("model", "tokens") if key in step.parameters)
        _say(f"  {step.notebook:<24} {'done' if step.done else about:<18} {models}")


def _say_budget(study: str) -> None:
    from depthprune_study import budget, estimate

    try:
        rehearsed = estimate.published() if study in (estimate.REHEARSED, estimate.ON_A_T4) else None
    except ValueError:  # a damaged report, which `depthprune verify` names
        rehearsed = None
    try:
        found = [*budget.lines(study), *(estimate.lines(rehearsed, study) if rehearsed is not None else [])]
    except StudyError:  # sizes that only a look at the model or the text would tell
        return
    _say("")
    for line in found:
        _say(line)


def _say_answer(study: str, page: Path) -> None:
    from depthprune_study.evidence import read_evidence

    _say("")
    for line in read_evidence(study).answer_lines():
        _say(line)
    _say(f"\nreport: {page}")


def _say(line: str) -> None:
    print(line, flush=True)


@contextmanager
def _sentences() -> Iterator[None]:
    """What the user can mend is told in a sentence, without a traceback, and the exit code says that it failed."""
    from safetensors import SafetensorError

    try:
        yield
    except (ValueError, RuntimeError, FloatingPointError) as error:  # the core's sentences as well as StudyError
        print(error, file=sys.stderr)
        raise typer.Exit(1) from None
    except OSError as error:
        full = FREE_SOME_SPACE if error.errno == errno.ENOSPC else ""
        print(f"{error.strerror or error}: {error.filename or ''}".rstrip(": ") + full, file=sys.stderr)
        raise typer.Exit(1) from None
    except SafetensorError as error:
        print(f"{error}{FREE_SOME_SPACE if 'No space left' in str(error) else ''}", file=sys.stderr)
        raise typer.Exit(1) from None
    except MemoryError as error:
        what = f" ({error})" if str(error) else ""
        print(f"memory ran out{what}: give the machine more, or take a smaller model", file=sys.stderr)
        raise typer.Exit(1) from None
    except ImportError as error:  # of a tokenizer or a quantised model that needs more than this package does
        print(f"a package is missing, or does not fit: {' '.join(str(error).split())}", file=sys.stderr)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        print("stopped: what is finished is kept, the same command goes on from here", file=sys.stderr)
        raise typer.Exit(130) from None


def main() -> None:
    """Entry point. Idle threads spin for a bounded time, which must be set before torch is imported."""
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    app()


if __name__ == "__main__":
    main()
