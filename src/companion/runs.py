"""One way to run every experiment: journaled, resumable, in this process, in others, or on Dask."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

import companion
from companion import criteria, paths, provenance, records, sweeps
from companion.checks import require
from companion.errors import MissingRecord, Unfinished
from companion.experiment import Experiment
from companion.files import make_folder, naming
from companion.records import Journal, Point, Record, Row
from companion.sweeps import Measured


def run(
    experiment: Experiment,
    profile: str = "quick",
    *,
    device: str = "auto",
    workers: int | None = None,
    scheduler: str | None = None,
    fresh: bool = False,
    progress: bool = True,
    say: Callable[[str], None] = print,
) -> Record:
    """Run an experiment to a whole record, or return the one that is there. Every finished point is
    journaled at once; after a crash the same call goes on where it stopped, to the same bytes of
    the table, and so it does after a call with ``fresh``. Two runs of one experiment wait for each
    other. A point is measured on one thread.

    ``device`` is "cpu", "cuda" or "auto"; ``workers`` and ``scheduler`` as in
    :func:`companion.sweeps.executor`; ``fresh`` measures everything anew and replaces the record at
    the end. ValueError: an argument is out of range; nothing has been written. RecordError: a file
    cannot be written, or is altered; or what was measured before is of other code, versions, device
    or data than what would be measured now. Unfinished: points failed; there is no record yet.
    """
    config, device = experiment.config(profile), experiment.device(device)
    points, key = experiment.points(config), experiment.key(profile)
    distinct = len({records.point_key(point) for point in points})
    require(
        distinct == len(points),
        "points",
        "differ from each other",
        f"{distinct} different of {len(points)}",
        "name what tells them apart",
    )
    paths.own_results()  # never in an installed package
    where = records.folder(experiment.name, profile)
    path = where / f"journal-{key[:12]}.jsonl"

    def done() -> bool:
        return not fresh and _up_to_date(where, key, path)

    if not done():  # a folder that cannot be written is no obstacle to what is done
        with sweeps.executor(workers, scheduler) as (pool, in_flight), _locked(where, say):
            if not done():  # another run may have ended meanwhile
                if fresh:
                    path.unlink(missing_ok=True)
                _complete(experiment, profile, device, path, pool, in_flight, progress, say)
                return experiment.load(profile)
    say(f"{where} is up to date")
    return experiment.load(profile)


def _up_to_date(where: Path, key: str, journal: Path) -> bool:
    """Whether the record of a key is whole, and no run was cut off that would make it anew."""
    if journal.exists() or journal.is_symlink():
        return False
    try:
        return bool(records.load(where).provenance.get("key") == key)
    except MissingRecord:
        return False


def _complete(
    experiment: Experiment,
    profile: str,
    device: str,
    path: Path,
    pool: Executor,
    in_flight: int,
    progress: bool,
    say: Callable[[str], None],
) -> None:
    """Measure what the journal does not hold yet, and make the record of it."""
    config, module = experiment.config(profile), experiment.measure.__module__
    points = experiment.points(config)
    header = {
        "key": experiment.key(profile),
        "experiment": experiment.name,
        "profile": profile,
        "device": device,
        "criteria": criteria.digests(experiment.findings),
    }
    origin = provenance.here(module)
    with Journal(path, header, origin) as journal:
        if kept := sum(map(journal.finished, points)):
            say(f"{kept} of {len(points)} points are kept from an earlier run")
        journal.sit(  # as the run starts: files may change while it goes on
            commit=provenance.commit(say),
            companion=companion.__version__,
            platform=provenance.platform_name(),
            started=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        measure = partial(_measure, experiment.measure, config, device)
        failures = sweeps.sweep(measure, points, journal, pool, in_flight, progress=progress)
        if failures:
            raise Unfinished(failures, len(points))
        made = journal.header | {
            "config": asdict(config),
            "points": len(points),
            "threads": 1,
            "data": journal.data,
            "sittings": journal.sittings(),
        }
        records.save(path.parent, journal.rows(points), made)
    path.unlink()


def _measure(
    function: Callable[[Any, Point, str], Sequence[Row]], config: Any, device: str, point: Point
) -> Measured:
    import torch  # only here, where points are measured

    torch.set_num_threads(1)
    provenance.code(function.__module__)  # as the first point begins: files may change meanwhile
    rows = function(config, point, device)
    return Measured(rows, provenance.here(function.__module__))


@contextmanager
def _locked(where: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock of a record's folder; says so where it has to wait for another run."""
    lock = FileLock(where / ".lock")
    make_folder(where)
    with naming(where, "locked"):
        try:
            held = lock.acquire(timeout=0)
        except Timeout:
            say(f"another run holds {where}; waiting for it to end")
            held = lock.acquire()
    with held:
        yield
