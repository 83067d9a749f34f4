"""The tables of `make bench` on the pages are those of its results."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

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
    import numpy as np

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
