"""The tables of `make bench` on the pages are those of its results; `make bench-check` fails where
it must."""

import dataclasses
import importlib
import importlib.util
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench", ROOT / "benchmarks" / "bench.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", ["README.md", "book/reproduce.md"])
def test_the_tables_are_those_of_the_results(bench: ModuleType, page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    shown = text.split(bench.BEGIN)[1].split(bench.END)[0].strip()
    assert shown == bench.render()
    assert len(list(bench.RESULTS.glob("*.json"))) >= 1


def test_a_table_shows_its_result(bench: ModuleType, tmp_path: Path) -> None:
    row = {"median_us": 2000.0, "least_us": 1000.0, "most_us": 3000.0, "rounds": 5,
           "first_call_s": 0.1}
    rows = {"companion": row, "companion, compiled": row | {"median_us": 500.0},
            "other": row | {"median_us": 1e6}}
    result = {"title": "a work", "contestants": rows,
              "machine": {"gpu": None, "cpu": "a processor", "cores": 2, "threads": 1,
                              "date": "2000-01-01"}}
    (tmp_path / "work.json").write_text(json.dumps(result), encoding="utf-8")
    lines = bench.render(tmp_path).splitlines()
    assert "**a work** (a processor, 2 cores; threads of each: 1; 2000-01-01):" in lines
    assert "| companion | 2 [1, 3] | 4 | 0.1 |" in lines
    assert "| other | 1000 [1, 3] | 2000 | 0.1 |" in lines


def test_the_difference_is_relative_and_over_common_runs(bench: ModuleType) -> None:
    ours = {"a": np.array([[3.0, 4.0], [1.0, 1.0]]), "b": np.zeros((2, 1))}
    theirs = {"a": np.array([[3.0, 4.5]]), "b": np.zeros((1, 1))}
    assert bench.differ(theirs, ours) == pytest.approx(0.1)
    assert bench.differ(ours, ours) == 0


def test_a_step_with_linear_kfo_costs_at_most_two_plain_ones(bench: ModuleType) -> None:
    path = bench.RESULTS / "rules" / "two-layer-cpu.json"
    result = json.loads(path.read_text(encoding="utf-8"))
    rows = {row["rule"]: row for row in result["rows"] if row["steps"] == 1}
    assert len(rows) == 7
    for column in ("plain_us", "plain_least_us", "compiled_us", "compiled_least_us"):
        assert rows["KFO"][column] < 2 * rows["SGD"][column]


@pytest.fixture
def one_work(bench: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The check, on one small work alone."""
    monkeypatch.syspath_prepend(bench.KEPT.parent)
    works = importlib.import_module("works")
    monkeypatch.setattr(works, "CHECKS", [one for one in works.CHECKS if one.name == "mlp-5"])
    return bench


def test_the_engine_agrees_with_what_the_peers_computed(one_work: ModuleType,
                                                        capsys: pytest.CaptureFixture) -> None:
    one_work.check()
    assert "mlp-5: 4 agree" in capsys.readouterr().out


@pytest.mark.parametrize("fault", ["scaled", "first order", "one entry", "nothing"])
def test_a_wrong_meta_gradient_is_found(one_work: ModuleType, monkeypatch: pytest.MonkeyPatch,
                                        fault: str) -> None:
    contestants = importlib.import_module("contestants")
    right = contestants.companion_plain

    def wrong(work: object) -> object:
        if fault == "first order":
            return right(dataclasses.replace(work, first_order=True))
        found = {name: value.clone() for name, value in right(work)().items()}
        for value in found.values():
            value *= {"scaled": 1.0001, "nothing": 0.0}.get(fault, 1.0)
        if fault == "one entry":
            found["1.bias"][0, 2] += 0.01
        return lambda: found

    monkeypatch.setitem(contestants.CONTESTANTS, "companion", wrong)
    with pytest.raises(SystemExit, match=r"must (be that of companion|not vanish)"):
        one_work.check()


@pytest.mark.parametrize(("change", "reason"), [
    ({"inputs": np.array("0")}, r"of the present works\.py, contestants\.py, requirements\.txt"),
    ({"mlp-5/given/data": None}, "of the starts and tasks of mlp-5"),
    ({"mlp-5/given/data": np.zeros(10)}, "of the starts and tasks of mlp-5"),
    ({"mlp-5": None}, "two peers or more for mlp-5, got 0"),
    ({"mlp-5/JAX, vmap": None, "mlp-5/higher": None}, "two peers or more for mlp-5, got 1"),
    (None, "got no such file")])
def test_what_is_stale_or_lacking_is_refused(one_work: ModuleType, monkeypatch: pytest.MonkeyPatch,
                                             tmp_path: Path, change: dict | None, reason: str
                                             ) -> None:
    """With the command that makes it again."""
    values = dict(np.load(one_work.KEPT))
    for name, value in (change or {}).items():
        values = {key: old for key, old in values.items() if not key.startswith(name)}
        values |= {} if value is None else {name: value}
    monkeypatch.setattr(one_work, "KEPT", tmp_path / "peers.npz")
    if change is not None:
        np.savez(one_work.KEPT, **values)
    with pytest.raises(SystemExit, match=f"{reason}.*`make bench-check-peers`"):
        one_work.check()


def test_an_altered_work_or_version_makes_it_stale(bench: ModuleType, tmp_path: Path,
                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    known = bench.inputs()
    for changed in bench.INPUTS:
        (tmp_path / changed.name).write_bytes(changed.read_bytes() + b"# another\n")
        monkeypatch.setattr(bench, "INPUTS", [
            tmp_path / path.name if path == changed else path for path in bench.INPUTS])
        assert bench.inputs() != known
        monkeypatch.undo()
    assert bench.inputs() == known
