"""Points handed to any executor, this process, local ones or a Dask cluster: the same table."""

import math
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from concurrent.futures import BrokenExecutor, Executor, Future
from contextlib import contextmanager
from itertools import islice
from typing import Any, NamedTuple

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from companion.checks import require
from companion.errors import RecordError
from companion.provenance import Origin
from companion.records import Journal, Point, Row

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
PATIENCE = 8.0  # seconds for a scheduler, and for its first worker, to answer
PER_WORKER = 2  # points in flight for each worker: one at work, one waiting


class Measured(NamedTuple):
    """The rows of a point, and what they were measured with."""

    rows: Sequence[Row]
    origin: Origin


class InProcess(Executor):
    """Runs every call at once, in this process."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        """The finished future of the call."""
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


def _end_with_parent(parent: int) -> None:
    """End this worker soon after its parent is gone, however the parent ended."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _need_workers(client: Any, scheduler: str) -> None:
    try:
        client.wait_for_workers(1, timeout=PATIENCE)
    except TimeoutError as error:
        raise ValueError(
            f"scheduler must have a worker, got none at {scheduler} within {PATIENCE:g} "
            f"seconds; start one with `dask worker {scheduler}`"
        ) from error


@contextmanager
def executor(workers: int | None = None,
             scheduler: str | None = None) -> Iterator[tuple[Executor, int]]:
    """An executor and how many points it may hold at once: this process, ``workers`` >= 1 local
    ones, or those of a Dask ``scheduler``, "tcp://host:port", which needs the extra ``cluster``.
    ValueError: both are given, a count below 1, or no scheduler or no worker of it answers within 8
    seconds."""
    if workers is not None and scheduler is not None:
        raise ValueError("workers and scheduler exclude each other, got both; name one")
    if scheduler is not None:
        try:
            from distributed import Client

            client = Client(scheduler, timeout=PATIENCE)
        except ImportError as error:
            raise ValueError("a scheduler needs Dask, got none installed; pip install "
                             "'dask[distributed]'") from error
        except (OSError, TimeoutError, ValueError) as error:
            raise ValueError(f"scheduler must be a running Dask scheduler, got {scheduler}; start "
                             "it first") from error
        with client, client.get_executor(pure=False) as pool:
            _need_workers(client, scheduler)
            yield pool, PER_WORKER * max(1, len(client.scheduler_info(n_workers=-1)["workers"]))
    elif workers is not None:
        require(workers >= 1, "workers", "be at least 1", workers,
                "leave it out to run in this process")
        os.environ |= dict.fromkeys(THREADS, "1")  # numbers may depend on the threads
        context = multiprocessing.get_context("spawn")
        with futures.ProcessPoolExecutor(workers, context, initializer=_end_with_parent,
                                         initargs=(os.getpid(),)) as pool:
            yield pool, PER_WORKER * workers
    else:
        yield InProcess(), 1


def _check(rows: Sequence[Row]) -> None:
    for row in rows:
        for name, value in row.items():
            if not isinstance(value, str | int | float | None):
                raise TypeError(f"{name} must be text, a number or None, got {type(value).__name__}"
                                " in the row; use float(...) or int(...)")
            if isinstance(value, float) and not math.isfinite(value):
                raise ArithmeticError(f"{name} is {value} in {row}")


def sweep(function: Callable[[Point], Measured], points: Sequence[Point], journal: Journal,
          pool: Executor, in_flight: int, *, progress: bool = True) -> list[tuple[Point, str]]:
    """Measure every point that ``journal`` does not hold yet, and journal each as it finishes. A
    point that raises, or whose rows hold a number that is not finite, is journaled as failed; the
    others go on. Returns the failures: points and reasons. Raises BrokenExecutor: a worker process
    was lost; RecordError: a worker has other code, versions or data than the journal's points, or a
    file cannot be written. What finished is kept."""
    missing = [point for point in points if not journal.finished(point)]
    todo = iter(missing)
    running: dict[Future[Measured], Point] = {}
    failed = 0
    bar = Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
                   TextColumn("{task.fields[failed]} failed"), TimeRemainingColumn(),
                   disable=not progress)

    def refill() -> None:
        for point in islice(todo, in_flight - len(running)):
            running[pool.submit(function, point)] = point

    with bar:
        task = bar.add_task("points", total=len(points), completed=len(points) - len(missing),
                            failed=0)
        refill()
        while running:
            done, _ = futures.wait(running, return_when=futures.FIRST_COMPLETED)
            for future in done:
                point = running.pop(future)
                try:
                    outcome = future.result()
                    if not isinstance(outcome, Measured):
                        raise RecordError("a worker must run the same version of this package, got "
                                          "one that does not say what it runs; restart it")
                    _check(outcome.rows)
                except (BrokenExecutor, RecordError):
                    raise
                except Exception as error:
                    failed += 1
                    journal.fail(point, f"{type(error).__name__}: {error}")
                else:
                    journal.add(point, *outcome)
                bar.update(task, advance=1, failed=failed)
            refill()
    return journal.failures
