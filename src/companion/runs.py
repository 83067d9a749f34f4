"""One way to run every experiment: journaled, resumable, in this process, in others, or on Dask."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from companion import records, sweeps
from companion.checks import require
from companion.errors import MissingRecord, RecordError, Unfinished
from companion.experiment import Experiment
from companion.files import naming
from companion.records import Journal, Point, Record, Row


def run(experiment: Experiment, profile: str = "quick", *, device: str = "auto",
        workers: int | None = None, scheduler: str | None = None, fresh: bool = False,
        progress: bool = True, say: Callable[[str], None] = print) -> Record:
    """Run an experiment to a whole record, or return the one that is there. Every finished point is
    journaled at once; after a crash the same call goes on where it stopped, to the same bytes of
    the table. Two runs of one experiment wait for each other. A point is measured on one thread.

    ``device`` is "cpu", "cuda" or "auto"; ``workers`` and ``scheduler`` as in
    :func:`companion.sweeps.executor`; ``fresh`` measures everything anew and replaces the record at
    the end. ValueError: an argument is out of range; nothing has been written. RecordError: a file
    cannot be written, or is altered. Unfinished: points failed; there is no record yet.
    """
    config, device = experiment.config(profile), experiment.device(device)
    points, key = experiment.points(config), experiment.key(profile)
    distinct = len({records.point_key(point) for point in points})
    require(distinct == len(points), "points", "differ from each other", f"{distinct} different of "
            f"{len(points)}", "name what tells them apart")
    where = records.folder(experiment.name, profile)
    with sweeps.executor(workers, scheduler) as (pool, in_flight), _locked(where, say):
        path = where / f"journal-{key[:12]}.jsonl"
        try:
            if not fresh and records.load(where).provenance.get("key") == key:
                say(f"{where} is up to date")
                return experiment.load(profile)
        except MissingRecord:
            pass
        except RecordError:
            if not path.exists():  # else a run was cut off as it wrote the record
                raise
        if fresh:
            path.unlink(missing_ok=True)
        made_with = records.environment()  # as the run starts: files may change while it goes on
        started, clock = datetime.now(UTC).isoformat(timespec="seconds"), time.monotonic()
        header = {"key": key, "experiment": experiment.name, "profile": profile}
        with Journal(path, header) as journal:
            kept = sum(map(journal.finished, points))
            if kept:
                say(f"{kept} of {len(points)} points are kept from an earlier run")
            measure = partial(_measure, experiment.measure, config, device)
            if failures := sweeps.sweep(measure, points, journal, pool, in_flight,
                                        progress=progress):
                raise Unfinished(failures, len(points))
            provenance = header | made_with | {
                "config": asdict(config), "points": len(points), "points_before": kept,
                "device": device, "threads": 1, "started": started,
                "seconds": round(time.monotonic() - clock, 1)}
            records.save(where, journal.rows(points), provenance)
        path.unlink()
    return experiment.load(profile)


def _measure(function: Callable[[Any, Point, str], Sequence[Row]], config: Any, device: str,
             point: Point) -> Sequence[Row]:
    import torch  # only here, where points are measured

    torch.set_num_threads(1)
    return function(config, point, device)


@contextmanager
def _locked(where: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock of a record's folder; says so where it has to wait for another run."""
    lock = FileLock(where / ".lock")
    with naming(where, "made and locked"):
        where.mkdir(parents=True, exist_ok=True)
        try:
            held = lock.acquire(timeout=0)
        except Timeout:
            say(f"another run holds {where}; waiting for it to end")
            held = lock.acquire()
    with held:
        yield
