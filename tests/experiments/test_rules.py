"""Rules on shallow and deep models: how they are counted, lost rates, and D3 from made tables."""

from dataclasses import replace

import pandas as pd
import pytest

from companion.experiments import rules
from companion.fleets import CAP, Budget, start
from companion.objectives import counted, joined, parted
from companion.records import Record

QUICK = rules.PROFILES["quick"]
POINT = {"kind": "regression", "steps": 3, "adapting": False, "turned": True, "model": "deep",
         "rule": "SGD"}


def test_theory_orders_the_preconditioners() -> None:
    found = list(rules.floors(rules.PROFILES["full"]).values())
    assert found[0] > 1.2 * found[1]
    assert found[1] > found[2]


def test_a_rule_is_counted() -> None:
    point = POINT | {"model": "shallow", "rule": "KFO", "steps": 1}
    params = start(rules.fleet_of(QUICK, point, 1.0), rules.model_of(QUICK, point))
    plain, rule = parted(params)
    assert counted(params) == {"parameters": 30, "own_parameters": 9 + 100}
    assert joined(plain, {}) == plain
    assert set(joined(plain, rule)) == set(params)


def test_a_rule_starts_at_the_first_rate_that_does_not_diverge() -> None:
    config = replace(QUICK, seeds=2, alphas=(1e7, 0.2), budget=Budget(
        steps=15, tasks=20, rate=0.04, query=50, test_tasks=50, test_query=50))
    assert POINT in rules.points(config)
    rows = rules.measure(config, POINT, "cpu")
    assert [(row["alpha"], row["seed"]) for row in rows] == [(0.2, 0), (0.2, 1)]
    assert rows == rules.measure(replace(config, alphas=(0.2,)), POINT, "cpu")
    lost = rules.measure(replace(config, alphas=(1e7,)), POINT, "cpu")
    assert [row["after"] for row in lost] == [CAP] * 2
    assert list(lost[0]) == list(rows[0])


@pytest.fixture
def table(around) -> pd.DataFrame:
    """D3 holds: .5 for one learned rate, .4 for KFO."""
    means = {"learned rate": 0.5, "KFO": 0.4}
    return pd.DataFrame([
        {**point, "parameters": 1, "own_parameters": 2, "alpha": 1.0, "seed": seed, "after": risk}
        for point in rules.points(rules.PROFILES["full"])
        for seed, risk in enumerate(around(means.get(point["rule"], 0.45)))])


def test_d3_flips(table: pd.DataFrame) -> None:
    def found(where, value):
        changed = table.assign(after=table["after"].where(~where, value))
        return rules.synthetic(Record(changed, {}))

    kfo = (table["rule"] == "KFO") & (table["model"] == "shallow")
    mlp = kfo & (table["kind"] == "mlp")
    holds = rules.synthetic(Record(table, {}))
    assert holds.word == "supported"
    assert set(holds.cases) == {
        "regression, steps 1", "regression, steps 3", "boundaries, steps 3", "mlp, steps 3"}
    assert holds.interval.value == pytest.approx(1.25, rel=0.02)
    assert found(mlp, 0.6).word == "mixed"
    assert found(kfo, 0.6).word == "contradicted"
    unsure = found(mlp, 0.5 + 0.01 * (table["seed"] - 9.5))
    assert (unsure.word, unsure.detectable > 0) == ("inconclusive", True)
    aside = (table["rule"] == "KFO") & ~kfo | kfo & (table["adapting"] | ~table["turned"])
    assert found(aside, 0.9).cases == holds.cases


def test_gains_are_over_the_shallow_model_with_one_learned_rate(table: pd.DataFrame) -> None:
    gains = rules.gains(table)
    assert len(gains) == len(rules.points(rules.PROFILES["full"])) - 5
    deep = gains[(gains["model"] == "deep") & (gains["rule"] == "learned rate")]
    assert deep["value"].tolist() == pytest.approx([1.0] * 4)
    other = gains[gains["rule"] == "SGD"]["value"]
    assert other.tolist() == pytest.approx([0.5 / 0.45] * 8, rel=0.01)
