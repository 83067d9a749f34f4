"""The exact ratio against drawn tasks: L2 and L3 from made tables."""

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


def words(table: pd.DataFrame) -> list[str]:
    return [finding(Record(table, {})).word
            for finding in (linear.equal_hardness, linear.packed_and_far)]


def at(table: pd.DataFrame, sweep: str, x: float) -> pd.Series:
    return (table["sweep"] == sweep) & (table["x"] == x)


def test_l2_and_l3_flip(table: pd.DataFrame) -> None:
    holds, fails = "supported", "contradicted"
    assert words(table) == [holds, holds]
    for sweep, x, expected in (("rho_hard", 0.1, [fails, holds]), ("distance", 2.0, [holds, fails]),
                               ("var_hard", 0.3, [holds, fails])):
        off = table.assign(value=table["value"] + 0.05 * at(table, sweep, x))
        assert words(off) == expected
    equal = at(table, "rho_hard", 1.0)
    unequal = table.assign(exact=table["exact"] + 0.05 * equal,
                           value=table["value"] + 0.05 * equal)  # agrees, but is not 1
    assert words(unequal) == [fails, holds]
    for sweep in ("distance", "var_hard"):
        rows = table["sweep"] == sweep
        level = table.assign(value=table["value"].where(~rows, 2.0),
                             exact=table["exact"].where(~rows, 2.0))
        assert words(level) == [holds, fails]


def test_the_number_is_that_of_the_end_of_the_sweep(table: pd.DataFrame) -> None:
    shuffled = table.sample(frac=1, random_state=0)
    found = linear.equal_hardness(Record(shuffled, {}))
    assert found.interval.value == pytest.approx(1.01)
    assert found.interval.high - found.interval.low == pytest.approx(2 * 1.96 * 0.01, rel=0.01)
    assert linear.packed_and_far(Record(shuffled, {})).interval.value == pytest.approx(9.01)
