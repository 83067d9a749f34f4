"""Whole experiments: what they are, and one way to run them all."""

import importlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from companion import records, sweeps
from companion.errors import MissingRecord
from companion.files import naming
from companion.records import Journal, Record, Row
from companion.sweeps import Point

NAMES = ("linear", "two_layer", "shallow", "linear_layers", "meta_optimizers", "landscape_images",
         "depth_images")


@dataclass(frozen=True)
class Experiment:
    """An experiment: its profiles, the points of a config, and how one point is computed.

    ``compute(config, point, device)`` returns rows, one a measurement. It must give the same rows
    for the same arguments in any process, so it draws from named streams only. Points are plain
    dicts. ``devices`` are those that it can use, the preferred one first.
    """

    name: str
    purpose: str
    profiles: Mapping[str, Any]
    points: Callable[[Any], Sequence[Point]]
    compute: Callable[[Any, Point, str], Sequence[Row]]
    devices: tuple[str, ...] = ("cpu",)

    def config(self, profile: str) -> Any:
        """The frozen config of a profile; ValueError for an unknown one."""
        if profile not in self.profiles:
            raise ValueError(f"profile must be one of {', '.join(self.profiles)}, got {profile!r}")
        return self.profiles[profile]

    def device(self, wanted: str) -> str:
        """The device to run on: ``wanted``, or for "auto" the first that is both usable and
        present."""
        if wanted not in ("auto", "cpu", "cuda"):
            raise ValueError(f"device must be auto, cpu or cuda, got {wanted!r}")
        import torch  # only here: a worker that needs no torch starts without it

        here = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
        if wanted == "auto":
            return next(device for device in self.devices if device in here)
        if wanted not in self.devices:
            raise ValueError(
                f"device must be one that {self.name} uses, {', '.join(self.devices)}, got "
                f"{wanted!r}"
            )
        if wanted not in here:
            raise ValueError(
                "device must be present, got 'cuda' and no CUDA device; use --device cpu"
            )
        return wanted

    def load(self, profile: str) -> Record:
        """The record of a profile, verified, and of today's config."""
        key = records.config_hash(self.name, self.config(profile))
        return records.load(records.folder(self.name, profile), expected=key)


class Unfinished(RuntimeError):
    """Some points failed. The others are kept; the next run tries the failed ones alone."""

    def __init__(self, failures: Mapping[int, str], points: Sequence[Point]) -> None:
        lines = [f"  point {i} {dict(points[i])}: {reason}" for i, reason in failures.items()]
        text = (f"{len(failures)} of {len(points)} points failed; run again to try these alone:\n"
                + "\n".join(lines))
        super().__init__(text)


def get(name: str) -> Experiment:
    """The experiment of that name; ValueError for an unknown one."""
    if name not in NAMES:
        raise ValueError(f"experiment must be one of {', '.join(NAMES)}, got {name!r}")
    found: Experiment = importlib.import_module(f"companion.experiments.{name}").EXPERIMENT
    return found


def run(experiment: Experiment, profile: str = "quick", *, device: str = "auto",
        workers: int | None = None, scheduler: str | None = None, fresh: bool = False,
        progress: bool = True, say: Callable[[str], None] = print) -> Record:
    """Run an experiment to a whole record, or return the one that is there.

    Every finished point is journaled at once; after a crash the same call goes on where it stopped.
    Two runs of one experiment wait for each other.

    Args:
        experiment: what to run.
        profile: one of its profiles.
        device: "cpu", "cuda", or "auto".
        workers: local processes; by default the points are computed in this one.
        scheduler: address of a Dask scheduler instead.
        fresh: compute everything anew and replace the record at the end.
        progress: show a bar.
        say: where messages go.

    Raises:
        ValueError: an argument is out of range; nothing has been written.
        RecordError: a file cannot be written, or what is there has been altered.
        Unfinished: points failed; there is no record yet.
    """
    config, device = experiment.config(profile), experiment.device(device)
    key = records.config_hash(experiment.name, config)
    where = records.folder(experiment.name, profile)
    points = experiment.points(config)
    with sweeps.executor(workers, scheduler) as (pool, in_flight), _locked(where, say):
        if not fresh:
            try:
                record = records.load(where)
                if record.provenance["config_hash"] == key:
                    say(f"{where} is up to date")
                    return record
            except MissingRecord:
                pass
        path = where / f"journal-{key[:12]}.jsonl"
        if fresh:
            path.unlink(missing_ok=True)
        made_with = records.environment()  # as the run starts: files may change while it goes on
        started, clock = datetime.now(UTC).isoformat(timespec="seconds"), time.monotonic()
        with Journal(
            path, {"config_hash": key, "experiment": experiment.name, "profile": profile}
        ) as journal:
            if journal.finished:
                say(f"{len(journal.finished)} of {len(points)} points are kept from an earlier run")
            failures = sweeps.sweep(partial(_compute, experiment.compute, config, device), points,
                                    journal, pool, in_flight, progress=progress)
            if failures:
                raise Unfinished(failures, points)
            provenance = {"experiment": experiment.name, "profile": profile,
                          "config": asdict(config), "config_hash": key, "points": len(points),
                          "device": device, "started": started,
                          "seconds": round(time.monotonic() - clock, 1), **made_with}
            records.save(where, journal.rows(), provenance)
        path.unlink()
    return experiment.load(profile)


def _compute(function: Callable[[Any, Point, str], Sequence[Row]], config: Any, device: str,
             point: Point) -> Sequence[Row]:
    return function(config, point, device)


@contextmanager
def _locked(where: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock of a record's folder; says so where it has to wait for another run."""
    lock = FileLock(where / ".lock")
    with naming(where, "made and locked"):
        where.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            say(f"another run holds {where}; waiting for it to end")
            lock.acquire()
    try:
        yield
    finally:
        lock.release()
