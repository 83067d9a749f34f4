"""Shallow and deep models: the floor that theory sets, and lost rates."""

from dataclasses import replace

import numpy as np
import pytest

from companion import nets
from companion.experiments import shallow
from companion.fleets import CAP, Budget, Model, scores, train
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
