"""Records: ``table.csv`` (tidy, one row a measurement) and ``provenance.json`` with its hash.

And the journal, in which a run keeps its points until the record is whole. Nothing is read back
that does not match its hash.
"""

import errno
import hashlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from companion import paths
from companion.errors import MissingRecord, RecordError
from companion.files import make_folder, naming, write_atomically
from companion.provenance import Origin, differences

Row = dict[str, Any]  # column -> text, number, or None
Point = Mapping[str, Any]  # what tells one measurement of an experiment apart
TABLE, PROVENANCE = "table.csv", "provenance.json"
SEAL = "sha256"  # of a provenance file: the hash of all the rest of it


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _hash(value: Any) -> str:
    """The hash of a value of plain types, whatever the order of its keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return _sha256(text.encode())


def key(experiment: str, config: Any, points: Sequence[Point]) -> str:
    """The hash of all that reaches a measurement: a frozen config, a dataclass, and the points."""
    return _hash({"experiment": experiment, "config": asdict(config), "points": list(points)})


def point_key(point: Point) -> str:
    """A point by its content."""
    return _hash(dict(point))[:16]


def folder(experiment: str, profile: str) -> Path:
    """Where the record of an experiment at a profile is."""
    return paths.results() / experiment / profile


@dataclass(frozen=True)
class Record:
    """A verified record: its table, and its provenance as read."""

    table: pd.DataFrame
    provenance: Mapping[str, Any]


def sittings(provenance: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The sittings in which a record's points were measured, the first one first."""
    return list(provenance["sittings"])


def started(provenance: Mapping[str, Any]) -> str:
    """The day on which the last sitting of a record began."""
    return str(sittings(provenance)[-1]["started"])[:10]


def processors(provenance: Mapping[str, Any]) -> str:
    """The processors on which a record was measured, as far as they are known."""
    known = [one["processor"] for one in sittings(provenance) if one["processor"] is not None]
    return ", ".join(dict.fromkeys(known))


def committed(provenance: Mapping[str, Any]) -> bool:
    """Whether every point of a record is of a commit with nothing changed beside it: it was
    measured there, or ``measured_again`` there and came out equal."""
    total = provenance["points"]
    again = [one for one in provenance.get("measured_again", []) if one["points"] == total]
    return all(map(_of_commit, sittings(provenance))) or any(map(_of_commit, again))


def _of_commit(sitting: Mapping[str, Any]) -> bool:
    commit = sitting["commit"]
    return commit is not None and not commit.endswith("+dirty")


def took(provenance: Mapping[str, Any]) -> str:
    """How long a record's sittings were, as far as that is known."""
    every = [one["seconds"] for one in sittings(provenance)]
    known = [seconds for seconds in every if seconds is not None]
    if not known:
        return "time unknown"
    minutes = f"{sum(known) / 60:.1f} min"
    if len(known) < len(every):
        return f"{minutes} and earlier sittings"
    return minutes if len(known) == 1 else f"{minutes} in {len(known)} sittings"


def save(where: Path, rows: Sequence[Row], provenance: Mapping[str, Any]) -> None:
    """Write a record, the table first: a crash between the two files leaves a mismatch that
    :func:`load` refuses. ValueError unless all rows have the same columns."""
    for row in rows:
        if list(row) != list(rows[0]):
            raise ValueError(
                f"rows of one table must have the same columns, got {list(rows[0])} and "
                f"{list(row)}; give every measurement an experiment of its own"
            )
    if not rows:
        raise ValueError(
            "a table must have rows, got none; give the config points that measure something"
        )
    table = pd.DataFrame(list(rows)).to_csv(index=False, lineterminator="\n").encode()
    write_atomically(where / TABLE, table)
    write_atomically(where / PROVENANCE, sealed(provenance, table))


def sealed(provenance: Mapping[str, Any], table: bytes) -> bytes:
    """A provenance file, with the hash of its table and that of all the rest of itself."""
    whole = {name: value for name, value in provenance.items() if name != SEAL}
    whole["table_sha256"] = _sha256(table)
    whole[SEAL] = _hash(whole)
    return (json.dumps(whole, indent=2, sort_keys=True, allow_nan=False) + "\n").encode()


def load(where: Path, *, expected: str | None = None) -> Record:
    """The record in a folder, usually :func:`folder`, verified; of the key ``expected``, if given.
    Raises MissingRecord: there is none. RecordError: a file is missing, truncated or altered, or
    the key is another."""
    remedy = (
        "restore it from version control, or make the record again with `companion run ... --fresh`"
    )
    found = [name for name in (TABLE, PROVENANCE) if (where / name).exists()]
    if not found:
        raise MissingRecord(f"{where} must hold a record, got none; make it with `companion run`")
    if len(found) == 1:
        raise RecordError(
            f"{where} must hold {TABLE} and {PROVENANCE}, got only {found[0]}; {remedy}"
        )
    with naming(where, "read"):
        table, text = (where / TABLE).read_bytes(), (where / PROVENANCE).read_bytes()
    try:
        provenance = json.loads(text)
        stated, seal = provenance["table_sha256"], provenance.pop(SEAL)
        sound = seal == _hash(provenance)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RecordError(
            f"{where / PROVENANCE} must be a whole provenance file, got {error!r}; {remedy}"
        ) from error
    if not sound:
        raise RecordError(
            f"{where / PROVENANCE} must have the hash that it states, got an altered file; {remedy}"
        )
    if _sha256(table) != stated:
        raise RecordError(
            f"{where / TABLE} must have the hash that its provenance states, got another; {remedy}"
        )
    if expected is not None and provenance["key"] != expected:
        raise RecordError(
            f"{where / PROVENANCE} must be of key {expected[:12]}, got {provenance['key'][:12]}: "
            "the experiment has changed since; make the record again with `companion run`"
        )
    return Record(pd.read_csv(where / TABLE), provenance)


class Journal(AbstractContextManager["Journal"]):
    """The points of one run by content, appended as they finish; one line each, ``hash json``.

    The first line says of what the journal is, and with which code and versions its points are
    measured; every sitting begins with a line of its own. A last line that a crash cut short is
    dropped; a whole line that does not match its hash is refused, and so is a sitting with another
    code or other versions, and a point from other data. Use as a context manager; only one process
    may hold it.
    """

    def __init__(self, path: Path, header: Mapping[str, Any], origin: Origin) -> None:
        self.path, self._origin = path, origin
        self._entries: list[Row] = []
        if path.is_symlink():
            raise RecordError(f"{path} must be a file, got a link to {path.readlink()}; remove it")
        make_folder(path.parent)
        with naming(path, "opened"):
            self._file = path.open("a+b", buffering=0)
            self._file.seek(0)
            data = self._file.read()
        try:
            whole = data[: data.rfind(b"\n") + 1]
            lines = [self._parse(line, i) for i, line in enumerate(whole.splitlines(), start=1)]
            if lines:
                self._refuse_another(lines[0], header)
            with naming(path, "mended"):  # only now: what is not this run's stays as it is
                self._file.truncate(len(whole))
            if not lines:
                lines = [{**header, "code": origin.code, "versions": dict(origin.versions)}]
                self._append(lines[0])
        except BaseException:
            self._file.close()
            raise
        self.header, self._entries = lines[0], lines[1:]
        self._latest = {point_key(one["point"]): one for one in lines[1:] if "point" in one}
        self.data: dict[str, str] = {}
        for one in self._entries:
            self.data |= one.get("data", {})

    def _refuse_another(self, first: Row, header: Mapping[str, Any]) -> None:
        names = ("key", "experiment", "profile")
        if any(first.get(name) != header[name] for name in names) or "code" not in first:
            raise RecordError(
                f"{self.path} must be the journal of this run, got that of another; remove it"
            )
        then = {"device": first["device"], "code": first["code"]} | first["versions"]
        now = {"device": header["device"], "code": self._origin.code} | dict(self._origin.versions)
        self._refuse(differences(then, now), "this run")

    def _refuse(self, changes: Sequence[str], who: str) -> None:
        if changes:
            raise RecordError(
                f"{self.path} must go on as it was begun, got from {who} {'; '.join(changes)}; go "
                "back to what it was begun with, or start over with --fresh"
            )

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def _parse(self, line: bytes, number: int) -> Row:
        stated, _, text = line.partition(b" ")
        if _sha256(text)[:16].encode() != stated:
            raise RecordError(
                f"{self.path}, line {number}, must match its hash, got an altered line; remove the "
                "file to start afresh, or restore it"
            )
        return dict(json.loads(text))

    def _append(self, entry: Row) -> None:
        # in the rows' own order of columns, which the table of a resumed run keeps
        text = json.dumps(entry, separators=(",", ":"), allow_nan=False).encode()
        line = _sha256(text)[:16].encode() + b" " + text + b"\n"
        with naming(self.path, "written"):
            if self._file.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _keep(self, point: Point, **outcome: Any) -> None:
        entry = {"point": dict(point)} | outcome | {"clock": self._clock()}
        self._append(entry)
        self._entries.append(entry)
        self._latest[point_key(point)] = entry

    def _clock(self) -> float:
        return round(time.monotonic() - self._began, 1)

    def sit(self, **facts: Any) -> None:
        """Begin a sitting: what is known of it, its commit and its date."""
        self._began = time.monotonic()
        self._append({"sitting": facts})
        self._entries.append({"sitting": facts})

    def add(self, point: Point, rows: Sequence[Row], origin: Origin) -> None:
        """Keep the rows of a finished point; RecordError, and nothing is kept, where its ``origin``
        is of other code, versions or data than the journal's points."""
        then = {"code": self._origin.code} | dict(self._origin.versions) | self.data
        now = {"code": origin.code} | dict(origin.versions) | dict(origin.data)
        self._refuse(differences(then, now), "a worker")
        self.data |= origin.data
        facts = {"data": dict(origin.data)} if origin.data else {}
        self._keep(point, rows=list(rows), processor=origin.processor, **facts)

    def fail(self, point: Point, reason: str) -> None:
        """Note that a point failed; the next run tries it again."""
        self._keep(point, failed=reason)

    def finished(self, point: Point) -> bool:
        """Whether the rows of a point are kept."""
        return "rows" in self._latest.get(point_key(point), {})

    @property
    def failures(self) -> list[tuple[Point, str]]:
        """The points that failed when last tried, and why."""
        return [
            (entry["point"], entry["failed"])
            for entry in self._latest.values()
            if "failed" in entry
        ]

    def rows(self, points: Sequence[Point]) -> list[Row]:
        """The kept rows of ``points``, in their order."""
        return [row for point in points for row in self._latest[point_key(point)]["rows"]]

    def sittings(self) -> list[Row]:
        """What is known of every sitting that has points: what :meth:`sit` was told, how many
        points it has and how long it was, and the processors that measured them."""
        found: list[Row] = []
        last = {id(entry) for entry in self._latest.values()}
        for entry in self._entries:
            if "sitting" in entry:
                seen: dict[str, None] = {}
                found.append({**entry["sitting"], "points": 0, "seconds": 0.0})
                continue
            found[-1]["seconds"] = entry["clock"]
            if id(entry) in last and "rows" in entry:
                seen[entry["processor"]] = None
                found[-1] |= {"points": found[-1]["points"] + 1, "processor": ", ".join(seen)}
        return [sitting for sitting in found if sitting["points"]]
