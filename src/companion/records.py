"""Records: ``table.csv`` (tidy, one row a measurement) and ``provenance.json`` with its hash.

And the journal, in which a run keeps its points until the record is whole. Nothing is read back
that does not match its hash.
"""

import errno
import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd

import companion
from companion import paths
from companion.errors import MissingRecord, RecordError
from companion.files import naming, write_atomically

Row = dict[str, Any]  # column -> text, number, or None
Point = Mapping[str, Any]  # what tells one measurement of an experiment apart
TABLE, PROVENANCE = "table.csv", "provenance.json"


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


def took(provenance: Mapping[str, Any]) -> str:
    """How long the last sitting of a record's run was, and what earlier ones had left to it."""
    points, before = provenance["points"], provenance["points_before"]
    if before == points:
        return f"all points ({points}) of earlier sittings"
    minutes = f"{provenance['seconds'] / 60:.1f} min"
    return f"{minutes}, {before} of {points} points of earlier sittings" if before else minutes


def commit() -> str | None:
    """The checkout's commit, with ``+dirty`` where tracked files differ; None without one."""
    if (root := paths.checkout()) is None:
        return None
    asked = "rev-parse HEAD", "status --porcelain --untracked-files=no -- src"
    try:
        head, status = (subprocess.run(["git", "-C", str(root), *words.split()], check=True,
                                       capture_output=True, text=True).stdout for words in asked)
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.strip() + ("+dirty" if status else "")


def processor() -> str:
    """The model of the processor, as the system names it."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def environment() -> dict[str, Any]:
    """What the numbers may depend on besides the config: versions, commit and processor."""
    names = ("numpy", "scipy", "sympy", "torch", "pandas")
    return {"companion": companion.__version__, "commit": commit(), "processor": processor(),
            "python": platform.python_version(),
            "platform": f"{platform.system()} {platform.machine()}",
            "versions": {name: metadata.version(name) for name in names}}


def save(where: Path, rows: Sequence[Row], provenance: Mapping[str, Any]) -> None:
    """Write a record, the table first: a crash between the two files leaves a mismatch that
    :func:`load` refuses. ValueError unless all rows have the same columns."""
    for row in rows:
        if list(row) != list(rows[0]):
            raise ValueError(f"rows of one table must have the same columns, got {list(rows[0])} "
                             f"and {list(row)}; give every measurement an experiment of its own")
    if not rows:
        raise ValueError("a table must have rows, got none; give the config points that measure "
                         "something")
    table = pd.DataFrame(list(rows)).to_csv(index=False, lineterminator="\n").encode()
    write_atomically(where / TABLE, table)
    text = json.dumps({**provenance, "table_sha256": _sha256(table)}, indent=2, sort_keys=True,
                      allow_nan=False) + "\n"
    write_atomically(where / PROVENANCE, text.encode())


def load(where: Path, *, expected: str | None = None) -> Record:
    """The record in a folder, usually :func:`folder`, verified; of the key ``expected``, if given.
    Raises MissingRecord: there is none. RecordError: a file is missing, truncated or altered, or
    the key is another."""
    remedy = ("restore it from version control, or make the record again with `companion run ... "
              "--fresh`")
    found = [name for name in (TABLE, PROVENANCE) if (where / name).exists()]
    if not found:
        raise MissingRecord(f"{where} must hold a record, got none; make it with `companion run`")
    if len(found) == 1:
        raise RecordError(f"{where} must hold {TABLE} and {PROVENANCE}, got only {found[0]}; "
                          + remedy)
    with naming(where, "read"):
        table, text = (where / TABLE).read_bytes(), (where / PROVENANCE).read_bytes()
    try:
        provenance = json.loads(text)
        stated, made_with = provenance["table_sha256"], str(provenance.get("key"))
    except (ValueError, KeyError, TypeError) as error:
        raise RecordError(f"{where / PROVENANCE} must be a whole provenance file, got {error!r}; "
                          + remedy) from error
    if _sha256(table) != stated:
        raise RecordError(f"{where / TABLE} must have the hash that its provenance states, got "
                          f"another; {remedy}")
    if expected is not None and made_with != expected:
        raise RecordError(f"{where / PROVENANCE} must be of key {expected[:12]}, got "
                          f"{made_with[:12]}: the experiment has changed since; make the record "
                          "again with `companion run`")
    return Record(pd.read_csv(where / TABLE), provenance)


class Journal(AbstractContextManager["Journal"]):
    """The points of one run by content, appended as they finish; one line each, ``hash json``. A
    last line that a crash cut short is dropped; a whole line that does not match its hash is
    refused. Use as a context manager; only one process may hold it."""

    def __init__(self, path: Path, header: Mapping[str, Any]) -> None:
        self.path = path
        self._entries: dict[str, Row] = {}
        with naming(path, "opened"):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a+b", buffering=0)
            self._file.seek(0)
            data = self._file.read()
        try:
            whole = data[: data.rfind(b"\n") + 1]
            with naming(path, "mended"):
                self._file.truncate(len(whole))
            lines = [self._parse(line, i) for i, line in enumerate(whole.splitlines(), start=1)]
            if not lines:
                self._append(dict(header))
            elif lines[0] != dict(header):
                raise RecordError(f"{path} must be the journal of this run, got that of another; "
                                  "remove it")
            self._entries |= {point_key(entry["point"]): entry for entry in lines[1:]}
        except BaseException:
            self._file.close()
            raise

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def _parse(self, line: bytes, number: int) -> Row:
        stated, _, text = line.partition(b" ")
        if _sha256(text)[:16].encode() != stated:
            raise RecordError(f"{self.path}, line {number}, must match its hash, got an altered "
                              "line; remove the file to start afresh, or restore it")
        return dict(json.loads(text))

    def _append(self, entry: Row) -> None:
        # in the rows' own order of columns, which the table of a resumed run keeps
        text = json.dumps(entry, separators=(",", ":"), allow_nan=False).encode()
        line = _sha256(text)[:16].encode() + b" " + text + b"\n"
        with naming(self.path, "written"):
            if self._file.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _keep(self, point: Point, **outcome: Any) -> None:
        entry = self._entries[point_key(point)] = {"point": dict(point)} | outcome
        self._append(entry)

    def add(self, point: Point, rows: Sequence[Row]) -> None:
        """Keep the rows of a finished point."""
        self._keep(point, rows=list(rows))

    def fail(self, point: Point, reason: str) -> None:
        """Note that a point failed; the next run tries it again."""
        self._keep(point, failed=reason)

    def finished(self, point: Point) -> bool:
        """Whether the rows of a point are kept."""
        return "rows" in self._entries.get(point_key(point), {})

    @property
    def failures(self) -> list[tuple[Point, str]]:
        """The points that failed when last tried, and why."""
        return [(entry["point"], entry["failed"]) for entry in self._entries.values()
                if "failed" in entry]

    def rows(self, points: Sequence[Point]) -> list[Row]:
        """The kept rows of ``points``, in their order."""
        return [row for point in points for row in self._entries[point_key(point)]["rows"]]
