"""The command line: ``companion list``, ``run``, ``verify``, ``data``, ``diagnose``. Commands
import what they need, so that help and wrong calls are answered at once."""

import math
import os
import sys
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor
from contextlib import suppress
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from companion import __version__, checks, errors, paths

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False,
                  help="Run the companion's experiments. Example: companion run linear --profile "
                       "full --workers 2")


_ODD = (LookupError, TypeError, AttributeError, ValueError)  # what a foreign provenance may raise


def _show(table: Table) -> None:
    """Print a table; in a pipe, where no window has a width, its lines may be long."""
    wide = not sys.stdout.isatty() and "COLUMNS" not in os.environ
    Console(width=220 if wide else None).print(table)


def _add(table: Table, *cells: str | Text) -> None:
    """Add a row of texts as they are: in a plain str, Rich takes [brackets] for its markup."""
    table.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in cells))


def _why(error: Exception) -> str:
    return str(error) if isinstance(error, errors.RecordError) else (
        f"its provenance and table must be whole, got {error!r}")


def _unusable(why: str = "") -> Text:
    return Text.assemble(("not usable", "red"), f": {why}" if why else "")


def _watched() -> bool:
    """Whether somebody sees how far it is."""
    return sys.stderr is not None and sys.stderr.isatty()


def _version(asked: bool) -> None:
    if asked:
        print(f"companion {__version__}")
        raise typer.Exit


@app.callback()
def before(version: Annotated[bool, typer.Option(
        "--version", callback=_version, is_eager=True, help="say which version this is")] = False
        ) -> None:
    """What holds for every command."""


@app.command("list")
def show() -> None:
    """Every experiment, its profiles, and what is on record. Example: companion list"""
    from companion import experiments, records

    paths.results()
    table = Table("experiment", "profile", "points", "record", "purpose")
    for name, experiment in experiments.EXPERIMENTS.items():
        for profile, config in experiment.profiles.items():
            state: str | Text
            try:
                provenance = experiment.load(profile).provenance
                state = f"{records.started(provenance)}, {records.took(provenance)}"
            except errors.MissingRecord:
                state = "none"
            except _ODD as error:
                state = _unusable(_why(error))
            _add(table, name, profile, str(len(experiment.points(config))), state,
                 experiment.purpose)
    _show(table)


@app.command("verify")
def verify(profile: Annotated[str, typer.Option(help="quick or full")] = "full") -> None:
    """Check every record and settle every claim anew. Example: companion verify"""
    from companion import claims, experiments, provenance

    checks.require(profile in claims.PROFILES, "profile", f"be one of {', '.join(claims.PROFILES)}",
                   repr(profile), "claims are settled from these")
    paths.results()
    entries, broken, moved = claims.listed(), dict[str, str](), list[str]()
    for experiment in experiments.EXPERIMENTS.values():
        for each in experiment.profiles:
            try:
                code = experiment.load(each).provenance["code"]
                if code != provenance.code(experiment.measure.__module__):
                    moved.append(f"{experiment.name}/{each}")
            except errors.MissingRecord:
                pass
            except _ODD as error:
                broken[f"{experiment.name}/{each}"] = _why(error)
    table = Table("claim", "part", "verdict", "value", "95 %", "of what", "from", "remark")
    for entry in entries:
        try:
            (claim,) = claims.evaluate(profile, entry["id"])
        except _ODD as error:
            by = sorted({f"{part['by']}/{profile}" for part in entry["parts"]} & broken.keys())
            if not by:  # a whole record, of which something else is odd
                broken[f"claim {entry['id']}"] = _why(error)
            _add(table, entry["id"], "", _unusable(), "", "", "", ", ".join(by), "")
            continue
        for part in claim.parts:
            numbers = part.interval.texts if part.interval else ("", "")
            _add(table, claim.id, part.name, part.word, *numbers, part.what, part.source or "",
                 part.remark)
    _show(table)
    if moved:
        print(f"The code has moved on since these records were made: {', '.join(moved)}. They stay "
              "valid as long as their cheap points come out again, which the tests check.")
    if broken:
        told = "".join(f"\n  {name}: {why}" for name, why in broken.items())
        raise errors.RecordError(f"{len(broken)} records cannot be used, and no claim that rests "
                                 f"on them is settled:{told}" if len(broken) > 1 else
                                 "a record cannot be used, and no claim that rests on it is "
                                 f"settled:{told}")


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
             fresh=fresh, progress=_watched())
    print(f"The record is at {records.folder(name, profile)}")


@app.command("data")
def data(name: Annotated[str, typer.Argument(help="glyphs, omniglot, cifar_fs, fc100 or "
                                             "mini_imagenet")]) -> None:
    """Fetch or find the images of a source and check them. Example: companion data omniglot"""
    from companion.tasks import downloads

    source = downloads.locate(name, progress=_watched())
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
        _add(table, *row)
    Console().print(table)
    print(found.advice)
    if figure is not None:
        try:
            found.figure().savefig(figure)
        except OSError as error:
            raise ValueError(f"figure must be a file that can be written, got {figure}: "
                             f"{error.strerror}; name another") from error


def _behind(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those that led to it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _call() -> None:
    """Run the command to its end, its output out of the buffers; tell what Typer and Rich end a
    process for without a word."""
    if sys.stdout is None:  # closed before the start: then some file of a record would be it
        raise ValueError("standard output must be open, got a closed one; send it to a file, or to "
                         "/dev/null")
    if isinstance(sys.stdout, TextIOWrapper):  # a file on Windows has no ρ: then a question mark
        sys.stdout.reconfigure(errors="replace")
    try:
        try:
            app()
        finally:
            sys.stdout.flush()
    except (SystemExit, OSError) as end:
        for error in _behind(end):
            if isinstance(error, BrokenPipeError):
                with suppress(OSError, ValueError):  # what is left in buffers goes nowhere
                    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                sys.exit("companion: what reads the output has closed it; the rest is not shown")
            if isinstance(error, KeyboardInterrupt):
                raise error from None
        raise


def main() -> None:
    """The command line; one line for what goes wrong. Exit 2: the call is wrong; 1: the run is;
    130: interrupted."""
    try:
        _call()
    except (errors.RecordError, errors.Unfinished) as error:
        sys.exit(f"companion: {error}")
    except (ImportError, SyntaxError) as error:
        sys.exit("companion: the installation must be whole, got "
                 f"{type(error).__name__}: {error}; install it anew, as the README says")
    except ValueError as error:
        print(f"companion: {error}", file=sys.stderr)
        sys.exit(2)
    except RuntimeError as error:
        if "home directory" not in str(error):  # as pathlib says it
            raise
        print("companion: a home folder must be known, got none; set HOME, or set "
              "COMPANION_RESULTS, COMPANION_DATA and COMPANION_CACHE to folders", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("companion: interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenExecutor:
        sys.exit("companion: a worker process was lost; finished points are kept, run again to go "
                 "on")
