"""Real experiments cut off and resumed: the bytes of an undisturbed run, and nothing of another
config."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from companion import errors, provenance, records, runs
from companion.errors import RecordError
from companion.experiment import Experiment
from companion.experiments import linear, rules

SHORT = linear.Config(draws=2000, sweeps={"distance": (0.5, 2.0, 4.0), "var_hard": (0.1, 1.0)})


@pytest.fixture(autouse=True)
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("COMPANION_RESULTS", str(tmp_path))
    return tmp_path


def run(experiment: Experiment, say: Callable[[str], None] = lambda message: None
        ) -> records.Record:
    return runs.run(experiment, progress=False, say=say)


def made(config: linear.Config = SHORT, failing: Callable[[dict], bool] = lambda point: False,
         points: Callable = linear.points) -> tuple[Experiment, list[dict]]:
    """The experiment "linear" with another config, and the points that it has measured."""
    measured: list[dict] = []

    def measure(config, point, device):
        measured.append(dict(point))
        if failing(point):
            raise KeyError("a bug")
        return linear.measure(config, point, device)

    return replace(linear.EXPERIMENT, profiles={"quick": config}, measure=measure,
                   points=points), measured


def test_cut_off_at_any_byte_the_journal_keeps_its_whole_lines(results: Path) -> None:
    """And nothing else: what is missing is measured again, to the same rows."""
    experiment, points = made(failing=lambda point: point["x"] == 1.0)[0], linear.points(SHORT)
    with pytest.raises(errors.Unfinished):
        run(experiment)
    (path,) = (results / "linear" / "quick").glob("journal-*")
    whole, cut = path.read_bytes(), results / "cut.jsonl"
    origin = provenance.here(experiment.measure.__module__)
    key = experiment.key("quick")
    header = {"key": key, "experiment": "linear", "profile": "quick", "device": "cpu"}
    ends = [i for i, byte in enumerate(whole, start=1) if byte == ord("\n")]
    assert len(ends) == 7  # the header, the sitting, four points, and one that failed
    lines = [json.loads(line.split(b" ", 1)[1]) for line in whole.splitlines()]
    rows = [line["rows"] for line in lines if "rows" in line]
    for size in range(len(whole) + 1):
        cut.write_bytes(whole[:size])
        with records.Journal(cut, header, origin) as journal:
            kept = [point for point in points if journal.finished(point)]
            assert kept == points[: min(4, max(0, sum(end <= size for end in ends) - 2))]
            journal.sit()
            for point, some in list(zip(points, rows, strict=False))[len(kept):]:
                journal.add(point, some, origin)
        with records.Journal(cut, header, origin) as journal:
            assert journal.rows(points[:4]) == [row for some in rows for row in some]


@pytest.mark.parametrize("lines", range(7))
def test_cut_off_after_any_line_the_table_is_the_same(results: Path, lines: int) -> None:
    experiment = made(failing=lambda point: point["x"] == 1.0)[0]
    with pytest.raises(errors.Unfinished):
        run(experiment)
    (path,) = (results / "linear" / "quick").glob("journal-*")
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:lines]) + b"0123 {")
    resumed, again = made()
    run(resumed)
    assert again == linear.points(SHORT)[max(0, lines - 2):]
    table = (results / "linear" / "quick" / "table.csv").read_bytes()
    os.environ["COMPANION_RESULTS"] = str(results / "calm")
    assert len(run(made()[0]).provenance["sittings"]) == 1
    assert table == (results / "calm" / "linear" / "quick" / "table.csv").read_bytes()


@pytest.mark.parametrize("change", [
    {"draws": 2001}, {"sweeps": {"distance": (0.5, 2.5, 4.0), "var_hard": (0.1, 1.0)}},
    {"base": dict(SHORT.base) | {"dim": 4}}], ids=["draws", "sweeps", "base"])
def test_nothing_of_another_config_is_used(results: Path, change: dict) -> None:
    before, measured = made(failing=lambda point: point["x"] == 0.1)
    with pytest.raises(errors.Unfinished, match="1 of 5 points failed"):
        run(before)
    config = replace(SHORT, **change)
    today, again = made(config)
    record = run(today)
    assert again == linear.points(config)
    assert record.table[["sweep", "x"]].to_dict("records") == linear.points(config)
    assert len(record.provenance["sittings"]) == 1
    expected = [linear.measure(config, point, "cpu")[0] for point in linear.points(config)]
    assert record.table.to_dict("records") == expected
    with pytest.raises(RecordError, match="the experiment has changed since"):
        before.load("quick")
    mended, rest = made()
    run(mended)  # the journal of before is still its own
    assert rest == [point for point in measured if point["x"] == 0.1]


def test_a_journal_under_another_name_is_refused(results: Path) -> None:
    before, _ = made(failing=lambda point: point["x"] == 0.1)
    with pytest.raises(errors.Unfinished):
        run(before)
    today, again = made(replace(SHORT, draws=2001))
    (journal,) = (results / "linear" / "quick").glob("journal-*")
    journal.rename(journal.with_name(f"journal-{today.key('quick')[:12]}.jsonl"))
    with pytest.raises(RecordError, match="must be the journal of this run, got that of another"):
        run(today)
    assert not again


def test_another_rule_or_point_makes_a_record_stale(monkeypatch: pytest.MonkeyPatch) -> None:
    """The record in use is refused as soon as the config has one rule more, or the same config one
    point more."""
    monkeypatch.undo()
    assert len(rules.EXPERIMENT.load("full").table)
    config = rules.PROFILES["full"]
    for changed in (
        replace(rules.EXPERIMENT, profiles={"full": replace(config, rules=(*config.rules, "new"))}),
        replace(rules.EXPERIMENT, points=lambda config: [*rules.points(config), {"kind": "new"}]),
        replace(rules.EXPERIMENT, points=lambda config: rules.points(config)[:-1]),
    ):
        with pytest.raises(RecordError, match="the experiment has changed since"):
            changed.load("full")


def test_a_point_that_is_there_twice_is_refused(results: Path) -> None:
    twice, measured = made(replace(SHORT, sweeps={"distance": (0.5, 2.0, 0.5)}))
    with pytest.raises(ValueError, match="points must differ from each other, got 2 different of "
                                         "3; name what tells them apart"):
        run(twice)
    assert not measured
    assert not list(results.iterdir())


@pytest.mark.parametrize("other", [
    lambda row: row | {"more": 1}, lambda row: {name: row[name] for name in sorted(row)},
    lambda row: {name: row[name] for name in list(row)[1:]}], ids=["more", "in order", "less"])
def test_rows_with_other_columns_are_refused(results: Path, other: Callable[[dict], dict]) -> None:
    def measure(config, point, device):
        rows = linear.measure(config, point, device)
        return list(map(other, rows)) if point["x"] == 4.0 else rows

    with pytest.raises(ValueError, match="rows of one table must have the same columns"):
        run(replace(linear.EXPERIMENT, profiles={"quick": SHORT}, measure=measure))
    assert not (results / "linear" / "quick" / "table.csv").exists()


def test_the_journal_keeps_the_columns_in_their_order(results: Path) -> None:
    """Sorted columns, which the rows of this experiment do not have, would be another table."""
    before, _ = made(failing=lambda point: point["x"] == 0.1)
    with pytest.raises(errors.Unfinished):
        run(before)
    (journal,) = (results / "linear" / "quick").glob("journal-*")
    entries = [json.loads(line.split(" ", 1)[1])
               for line in journal.read_text(encoding="utf-8").splitlines()]
    first = entries[2]["rows"][0]
    assert list(first) == ["sweep", "x", "value", "error", "draws", "exact"]
    assert list(run(made()[0]).table) == list(first)
