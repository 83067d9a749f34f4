"""Runs that are killed, crossed, starved and lied to: the right table in the end, or one clear
error."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from companion import records

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(),
                                reason="process trees are read from /proc")


def descendants(pid: int) -> set[int]:
    """The living children of a process, theirs, and so on."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()
            except OSError:
                continue
            parents.setdefault(int(fields[1]), []).append(int(entry.name))
    found, todo = set(), [pid]
    while todo:
        children = parents.get(todo.pop(), [])
        found.update(children)
        todo.extend(children)
    return found


def alive(pid: int) -> bool:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
        return text.rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def journaled(path: Path) -> set[int]:
    """The points of the whole lines of a journal."""
    return {entry["point"]["index"] for entry in entries(path)}


def entries(path: Path) -> list[dict]:
    """The points of the whole lines of a journal, without its header and its sittings."""
    lines = path.read_bytes().rpartition(b"\n")[0].splitlines()[1:]
    every = [json.loads(line.split(b" ", 1)[1]) for line in lines]
    return [entry for entry in every if "sitting" not in entry]


@pytest.mark.parametrize("how", [(), ("workers", "2")], ids=["in process", "two workers"])
def test_sigkill_at_random_moments(toy, make_toy, how: tuple[str, ...]) -> None:
    calm = make_toy("calm")
    assert calm.run("profile", "long")[0] == 0
    rng, where, kills = random.Random(len(how)), toy.folder / "toy" / "long", []
    for _ in range(6):
        before = len(toy.computed())
        process = toy.start("profile", "long", *how, seconds=0.05)
        while len(toy.computed()) == before and process.poll() is None:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.15))
        assert process.poll() is None, "the run ended before it could be killed: make it longer"
        children = descendants(process.pid)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        deadline = time.monotonic() + 5
        while any(map(alive, children)) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not any(map(alive, children))
        kills.append((journaled(next(where.glob("journal-*"))), len(toy.computed())))
    code, said = toy.run("profile", "long", *how)
    assert code == 0, said
    assert (where / "table.csv").read_bytes() == (
        calm.folder / "toy" / "long" / "table.csv"
    ).read_bytes()
    assert not list(where.glob("journal-*"))
    assert len(kills[-1][0]) > 3
    assert all(
        not kept & set(toy.computed()[seen:]) for kept, seen in kills
    )  # no journaled point twice


def test_no_journaled_point_is_computed_twice(toy, reference: bytes) -> None:
    code, said = toy.run(bad='{"7": "raise", "30": "raise"}')
    assert code != 0
    assert "2 of 40 points failed" in said
    assert "{'index': 7}" in said
    assert toy.computed() == list(range(40))
    assert not (toy.record / "table.csv").exists()
    code, said = toy.run()
    assert code == 0, said
    assert "38 of 40 points are kept" in said
    assert toy.computed()[40:] == [7, 30]
    assert toy.table() == reference
    code, said = toy.run()
    assert "up to date" in said
    assert len(toy.computed()) == 42


def test_a_local_pool_gives_the_same_table(toy, reference: bytes) -> None:
    code, said = toy.run("workers", "2")
    assert code == 0, said
    assert toy.table() == reference


def test_two_runs_at_once(toy, reference: bytes) -> None:
    first = toy.start(seconds=0.1)
    while not toy.computed() and first.poll() is None:
        time.sleep(0.01)
    code, said = toy.run()
    assert code == 0, said
    assert "another run holds" in said
    out, err = first.communicate(timeout=120)
    assert first.returncode == 0, out + err
    assert Counter(toy.computed()) == Counter(range(40))
    assert toy.table() == reference


@pytest.mark.parametrize(("kind", "reason"),
                         [("nan", "value is nan"), ("tuple", "value must be text, a number or None,"
                          " got tuple"), ("diverge", "not finite at step 17")])
@pytest.mark.parametrize("how", [(), ("workers", "2")], ids=["in process", "two workers"])
def test_numbers_that_are_none_are_failed_points(
    toy, kind: str, reason: str, how: tuple[str, ...]
) -> None:
    code, said = toy.run(*how, bad=json.dumps({"3": kind}))
    assert code != 0
    assert reason in said
    assert not (toy.record / "table.csv").exists()
    (journal,) = toy.record.glob("journal-*.jsonl")
    kept = entries(journal)
    assert [entry["point"] for entry in kept if "failed" in entry] == [{"index": 3}]
    assert len(kept) == 40


def test_a_run_cut_off_between_the_files_of_its_record_loses_nothing(toy, reference: bytes) -> None:
    """The journal goes last, so all points are kept, and the half-written record is no obstacle."""
    toy.run(bad='{"39": "raise"}')
    (toy.record / "table.csv").write_bytes(reference)
    code, said = toy.run()
    assert code == 0, said
    assert "39 of 40 points are kept" in said
    assert toy.table() == reference
    (toy.record / "provenance.json").unlink()  # without a journal it may be anything
    code, said = toy.run()
    assert code != 0
    assert "must hold table.csv and provenance.json, got only table.csv" in said


def test_a_line_cut_short_is_computed_again(toy, reference: bytes) -> None:
    toy.run(bad='{"39": "raise"}')
    (journal,) = toy.record.glob("journal-*.jsonl")
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:-2]) + lines[-2][:25])  # as a crash leaves it
    code, said = toy.run()
    assert code == 0, said
    assert toy.computed()[40:] == [38, 39]
    assert toy.table() == reference


def flip_a_bit(path: Path, at: int) -> bytes:
    """Alter one byte of a file; returns what it holds then."""
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    return bytes(data)


def test_an_altered_journal_is_refused(toy) -> None:
    toy.run(bad='{"39": "raise"}')
    (journal,) = toy.record.glob("journal-*.jsonl")
    data = flip_a_bit(journal, journal.stat().st_size // 2)
    code, said = toy.run()
    assert code != 0
    assert f"{journal}, line" in said
    assert "altered" in said
    assert journal.read_bytes() == data


def test_an_altered_record_is_not_overwritten_but_by_fresh(toy, reference: bytes) -> None:
    toy.run()
    table = toy.record / "table.csv"
    data = flip_a_bit(table, 100)
    code, said = toy.run()
    assert code != 0
    assert f"{table} must have the hash" in said
    assert "--fresh" in said
    assert table.read_bytes() == data
    code, said = toy.run("fresh", "yes")
    assert code == 0, said
    assert toy.table() == reference


@pytest.mark.parametrize(
    ("damage", "message"),
    [(lambda t: t[: len(t) // 2], "whole provenance file"),
     (lambda t: "{}", "whole provenance file"),
     (lambda t: "[]", "whole provenance file"),
     (lambda t: t.replace('"key": "', '"key": "0'), "the hash that it states, got an altered"),
     (lambda t: t.replace('"device": "cpu"', '"device": "gpu"'), "got an altered file"),
     (lambda t: t.replace('"processor": "', '"processor": "Z'), "got an altered file"),
     (lambda t: t.replace('"started": "2', '"started": "3'), "got an altered file"),
     (lambda t: t.replace('"commit": "', '"commit": "f'), "got an altered file")],
    ids=["truncated", "empty", "a list", "key", "device", "processor", "date", "commit"],
)
def test_a_damaged_provenance(toy, monkeypatch: pytest.MonkeyPatch, damage: Callable[[str], str],
                              message: str) -> None:
    toy.run()
    monkeypatch.setenv("COMPANION_RESULTS", str(toy.folder))
    path = toy.record / "provenance.json"
    stated = json.loads(path.read_text(encoding="utf-8"))["key"]
    path.write_text(damage(path.read_text(encoding="utf-8")), encoding="utf-8")
    with pytest.raises(records.RecordError, match=message) as caught:
        records.load(toy.record, expected=stated)
    assert str(path) in str(caught.value)


def test_half_a_record_and_none(toy) -> None:
    toy.run()
    (toy.record / "table.csv").unlink()
    with pytest.raises(records.RecordError, match=r"got only provenance\.json"):
        records.load(toy.record)
    (toy.record / "provenance.json").unlink()
    with pytest.raises(records.MissingRecord, match="companion run"):
        records.load(toy.record)


def test_a_full_disk(toy, reference: bytes, small_disk: Callable[[str], Path]) -> None:
    toy.folder = small_disk("size=64k")
    ballast = toy.folder / "ballast"
    ballast.write_bytes(b"0" * (64 - 4) * 1024)
    code, said = toy.run()
    assert code != 0
    assert "journal-" in said
    assert "No space left on device" in said
    assert "COMPANION_RESULTS" in said
    assert not (toy.record / "table.csv").exists()
    ballast.unlink()
    kept = len(toy.computed())
    code, said = toy.run()
    assert code == 0, said
    assert len(toy.computed()) < kept + 40
    assert toy.table() == reference


def test_a_folder_that_cannot_be_written(toy, small_disk: Callable[[str], Path]) -> None:
    toy.folder = small_disk("size=64k")
    subprocess.run(["mount", "-o", "remount,ro", str(toy.folder)], check=True)
    with pytest.raises(OSError, match="Read-only"):
        (toy.folder / "probe").write_text("", encoding="utf-8")
    code, said = toy.run()
    assert code != 0
    assert str(toy.folder) in said
    assert "COMPANION_RESULTS" in said
    assert toy.computed() == []


def test_many_small_points_on_two_processes(toy) -> None:
    code, said = toy.run("profile", "many", "workers", "2")
    assert code == 0, said
    assert (toy.folder / "toy" / "many" / "table.csv").read_bytes().count(b"\n") == 30_001


def test_dask_loses_a_worker_and_no_point(toy, reference: bytes) -> None:
    here = Path(__file__).parent
    known = {"TOY_LOG": str(toy.log), "TOY_SECONDS": "0.1", "PYTHONPATH": str(here)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([sys.executable, str(here / "cluster.py")], env=os.environ | known,
                          text=True, **pipes) as dask:
        address, victim, _ = dask.stdout.readline().split()
        run = toy.start("scheduler", address)
        while len(toy.computed()) < 5 and run.poll() is None:
            time.sleep(0.01)
        os.kill(int(victim), signal.SIGKILL)
        out, err = run.communicate(timeout=120)
        dask.stdin.close()
        dask.wait(timeout=60)
    assert run.returncode == 0, out + err
    assert toy.table() == reference
    assert set(toy.computed()) == set(range(40))
