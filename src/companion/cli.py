"""The command line: ``companion list``, ``run``, ``verify``, ``data``, ``diagnose``. Commands
import what they need, so that help and wrong calls are answered at once."""

import math
import os
import sys
from concurrent.futures import BrokenExecutor
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from companion import checks, errors, paths

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False,
                  help="Run the companion's experiments. Example: companion run linear --profile "
                       "full --workers 2")


def _show(table: Table) -> None:
    """Print a table; in a pipe, where no window has a width, its lines may be long."""
    wide = not sys.stdout.isatty() and "COLUMNS" not in os.environ
    Console(width=160 if wide else None).print(table)


@app.command("list")
def show() -> None:
    """Every experiment, its profiles, and what is on record. Example: companion list"""
    from companion import experiments, records

    table = Table("experiment", "profile", "points", "record", "purpose")
    for name, experiment in experiments.EXPERIMENTS.items():
        for profile, config in experiment.profiles.items():
            try:
                provenance = experiment.load(profile).provenance
                state = f"{records.started(provenance)}, {records.took(provenance)}"
            except errors.MissingRecord:
                state = "none"
            except errors.RecordError as error:
                state = f"[red]not usable[/red]: {error}"
            except (KeyError, TypeError) as error:
                state = f"[red]not usable[/red]: its provenance must be whole, got {error!r}"
            table.add_row(name, profile, str(len(experiment.points(config))), state,
                          experiment.purpose)
    _show(table)


@app.command("verify")
def verify(profile: Annotated[str, typer.Option(help="quick or full")] = "full") -> None:
    """Check every record and settle every claim anew. Example: companion verify"""
    from companion import claims, experiments

    for experiment in experiments.EXPERIMENTS.values():
        for each in experiment.profiles:
            with suppress(errors.MissingRecord):
                experiment.load(each)
    table = Table("claim", "part", "verdict", "value", "95 %", "of what", "from")
    for claim in claims.evaluate(profile):
        for part in claim.parts:
            numbers = part.interval.texts if part.interval else ("", "")
            table.add_row(claim.id, part.name, part.word, *numbers, part.what, part.source or "")
    _show(table)


@app.command("run")
def run(name: Annotated[str, typer.Argument(help="which experiment: see `companion list`")],
        profile: Annotated[str, typer.Option(help="quick or full")] = "quick",
        device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
        workers: Annotated[int | None, typer.Option(
            help="local processes; by default this one")] = None,
        scheduler: Annotated[str | None, typer.Option(
            help="a Dask scheduler instead, tcp://host:port")] = None,
        fresh: Annotated[bool, typer.Option(
            "--fresh", help="measure everything anew, replace the record")] = False) -> None:
    """Run one experiment to a whole record. Example: companion run linear --workers 2"""
    from companion import experiments, records, runs

    runs.run(experiments.get(name), profile, device=device, workers=workers, scheduler=scheduler,
             fresh=fresh, progress=sys.stderr.isatty())
    print(f"The record is at {records.folder(name, profile)}")


@app.command("data")
def data(name: Annotated[str, typer.Argument(help="glyphs, omniglot, cifar_fs, fc100 or "
                                             "mini_imagenet")]) -> None:
    """Fetch or find the images of a source and check them. Example: companion data omniglot"""
    from companion.tasks import downloads

    source = downloads.locate(name, progress=sys.stderr.isatty())
    classes = ", ".join(f"{len(members)} to {split}" for split, members in source.splits.items())
    at = "drawn" if name == "glyphs" else f"under {paths.data()}"
    print(f"{name}: {len(source.images)} images of {len(source.sizes)} classes ({classes}), {at}")


@app.command("diagnose")
def diagnose(
        file: Annotated[Path, typer.Argument(
            help=".npz with covariances and optima, or x and y, or .csv with a row a sample")],
        support: Annotated[float, typer.Option(
            help="samples in the inner step; inf is the full batch")] = math.inf,
        noise: Annotated[float, typer.Option(
            help="standard deviation of the labels' noise; of samples it is estimated")] = 0.0,
        alpha: Annotated[float | None, typer.Option(
            help="the inner step; by default MAML's best")] = None,
        intercept: Annotated[bool, typer.Option(
            "--intercept", help="add a feature 1 to the samples")] = False,
        task: Annotated[str, typer.Option(help="the column of a .csv that tells tasks apart")
                        ] = "task",
        target: Annotated[str, typer.Option(help="the column of a .csv with the labels")] = "y",
        figure: Annotated[Path | None, typer.Option(help="save a picture there, .png")] = None,
        ) -> None:
    """What tasks of your own let one learn. Example: companion diagnose tasks.csv --support 10"""
    from companion.diagnosis import diagnose as diagnosed
    from companion.diagnosis import task_files

    if figure is not None:
        checks.require(figure.suffix == ".png" and figure.absolute().parent.is_dir(), "figure",
                       "be a .png in a folder that is there", figure, "name another")
    found = diagnosed(**task_files.read(file, task=task, target=target), support=support,
                      noise=noise, alpha=alpha, intercept=intercept)
    table = Table("what", "value", "95 %, or a remark")
    for row in found.rows():
        table.add_row(*row)
    Console().print(table)
    print(found.advice)
    if figure is not None:
        try:
            found.figure().savefig(figure)
        except OSError as error:
            raise ValueError(f"figure must be a file that can be written, got {figure}: "
                             f"{error.strerror}; name another") from error


def main() -> None:
    """The command line; one line for what goes wrong. Exit 2: the call is wrong; 1: the run is."""
    try:
        app()
    except (errors.RecordError, errors.Unfinished) as error:
        sys.exit(f"companion: {error}")
    except ValueError as error:
        print(f"companion: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenExecutor:
        sys.exit("companion: a worker process was lost; finished points are kept, run again to go "
                 "on")
