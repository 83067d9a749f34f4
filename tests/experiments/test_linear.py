"""The exact ratio against drawn tasks: L3 from a made table."""

import pandas as pd
import pytest

from companion.experiments import linear
from companion.records import Record


def test_a_point_is_measured_the_same_way_twice() -> None:
    config = linear.PROFILES["quick"]
    assert len({str(point) for point in linear.points(config)}) == 19
    point = linear.points(config)[3]
    first, second = (linear.measure(config, point, "cpu")[0] for _ in range(2))
    assert first == second
    assert abs(first["value"] - first["exact"]) < 4 * first["error"]
    assert first["draws"] == 30_000


@pytest.fixture
def table() -> pd.DataFrame:
    """Drawn ratios one error off: 1 at equal hardness, rising in R, falling in v_H."""
    rows = []
    for point in linear.points(linear.PROFILES["full"]):
        sweep, x = point["sweep"], point["x"]
        exact = {"rho_hard": 2 - x, "distance": 1 + x, "var_hard": 5 - x}[sweep]
        rows.append({**point, "value": exact + 0.01, "error": 0.01, "draws": 1000, "exact": exact})
    return pd.DataFrame(rows)


def word(table: pd.DataFrame) -> str:
    return linear.packed_and_far(Record(table, {})).word


def test_l3_flips(table: pd.DataFrame) -> None:
    holds, fails = "supported", "contradicted"
    assert word(table) == holds
    for sweep, x, expected in (("rho_hard", 0.1, holds), ("distance", 2.0, fails),
                               ("var_hard", 0.3, fails)):
        at = (table["sweep"] == sweep) & (table["x"] == x)
        assert word(table.assign(value=table["value"] + 0.05 * at)) == expected
    for sweep in ("distance", "var_hard"):
        rows = table["sweep"] == sweep
        level = table.assign(value=table["value"].where(~rows, 2.0),
                             exact=table["exact"].where(~rows, 2.0))
        assert word(level) == fails


def test_the_number_is_that_of_the_end_of_the_sweep(table: pd.DataFrame) -> None:
    found = linear.packed_and_far(Record(table.sample(frac=1, random_state=0), {}))
    assert found.interval.value == pytest.approx(9.01)
    assert found.interval.high - found.interval.low == pytest.approx(2 * 1.96 * 0.01, rel=0.01)
