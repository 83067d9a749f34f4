"""Shallow and deep models: the floor that theory sets, lost rates, and D1 from made tables."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from companion import nets
from companion.experiments import shallow
from companion.fleets import CAP, Budget, Model, scores, train
from companion.records import Record
from companion.tasks.readouts import readout_fleet
from companion.theory import depth

SCALES = (0.3, 1.0, 2.0)


def test_shallow_training_reaches_the_floor() -> None:
    """Meta-trained from data, the shallow models come down to what the theory says is their
    least."""
    m, budget = 6, Budget(steps=400, tasks=20, rate=0.03, test_tasks=3000, batch=500)
    fleet = readout_fleet("regression", [{"scales": SCALES, "alpha": 0.4}], range(6), support=m)
    s, c = np.diag(np.square(SCALES)), np.eye(3) / 3
    floor = depth.shallow_risk(s, c, 0.4 / 4, m)
    best = depth.shallow_risk(s, c, depth.best_shallow_step(s, c, m), m)
    for rule, exact in (("SGD", floor), ("learned rate", best)):
        model = Model(nets.linear(3), rule=rule)
        risks = scores(fleet, model, train(fleet, model, budget), budget, [1]).risk
        assert risks.mean() == pytest.approx(exact, rel=0.03)
    assert floor > 1.05 * best


def test_a_diverged_inner_rate_is_lost_alone() -> None:
    config = shallow.Config(alphas=((1, (0.1, 1e6)),), seeds=2, budget=Budget(
        steps=20, tasks=10, rate=0.02, query=20, test_tasks=50, test_query=30))
    point = {"kind": "regression", "inputs": "spread", "train_steps": 1, "model": "deep"}
    assert point in shallow.points(config)
    rows = shallow.measure(config, point, "cpu")
    assert [(row["alpha"], row["seed"]) for row in rows] == [(0.1, 0), (0.1, 1), (1e6, 0), (1e6, 1)]
    assert all((row["valid"] == CAP) == (row["alpha"] == 1e6) for row in rows)
    assert len({tuple(row) for row in rows}) == 1
    alone = shallow.measure(replace(config, alphas=((1, (0.1,)),)), point, "cpu")
    assert rows[:2] == alone


def table(around, deep: float = 0.4, boundaries: float | None = None,
          noise: float = 0.01) -> Record:
    """D1 holds: 0.5 for the shallow model, at a rate that validation tasks choose."""
    rows = []
    for point in shallow.points(shallow.PROFILES["full"]):
        mean = 0.5 if point["model"] != "deep" else deep
        if boundaries and (point["kind"], point["model"]) == ("boundaries", "deep"):
            mean = boundaries
        for alpha, valid in ((0.1, 2.0), (0.3, 1.0), (1.0, 3.0)):
            rows += [{**point, "alpha": alpha, "seed": seed, "valid": valid,
                      "risk_1": risk if point["train_steps"] == 1 else 9.0,
                      "risk_5": risk if point["train_steps"] == 5 else 9.0}
                     for seed, risk in enumerate(around(mean, noise) if alpha == 0.3
                                                 else np.full(20, 7 * mean))]
    return Record(pd.DataFrame(rows), {})


@pytest.mark.parametrize(("changes", "word"), [
    ({}, "supported"), ({"deep": 0.7}, "contradicted"), ({"boundaries": 0.7}, "mixed"),
    ({"boundaries": 0.5003, "noise": 0.2}, "inconclusive")], ids=str)
def test_d1_flips(around, changes: dict, word: str) -> None:
    found = shallow.synthetic(table(around, **changes))
    assert found.word == word
    assert set(found.cases) == {f"{kind}, train steps {k}" for kind in shallow.KINDS
                                for k in (1, 5)}
    assert (found.detectable is not None) == (word == "inconclusive")
    if word == "supported":
        assert found.interval.value == pytest.approx(1.25, rel=0.02)
        assert found.interval.low < found.interval.value < found.interval.high
    else:
        assert found.interval.low < 1
