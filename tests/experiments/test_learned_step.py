"""What depth learns: the best step, and where it does not arrive."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from companion.experiments import learned_step
from companion.fleets import Budget
from companion.tasks.readouts import readout_fleet


def test_depth_learns_the_best_step() -> None:
    """The protocol of the record, shorter: eigenvalues of alpha (A A.T + |b|^2 I) at eta*."""
    config = learned_step.Config(isotropic=((10, 2, 2.0),), seeds=4,
                                 budget=Budget(steps=600, tasks=50, rate=0.01))
    rows = learned_step.measure(config, learned_step.points(config)[0], "cpu")
    assert len(rows) == 4
    shares = np.array([[row[name] / row["best"] for name in ("smallest", "learned", "largest")]
                       for row in rows])
    assert shares[:, 1].mean() == pytest.approx(1, abs=0.02)
    assert (np.diff(shares, axis=1) >= 0).all()
    assert shares.min() > 0.9
    assert shares.max() < 1.1


def test_the_preconditioner_is_that_of_the_net() -> None:
    fleet = readout_fleet("regression", [{"scales": (0.3, 1.0, 2.0), "alpha": 0.3}], (3, 7),
                          support=6)
    params = learned_step.near_identity(fleet, 4, 1.5, 0.1, 0.2)
    for run in range(2):
        a, b = params["0.weight"][run].mT, params["1.weight"][run, 0]
        expected = fleet.alpha[run] * (a @ a.mT + b @ b * torch.eye(3, dtype=torch.float64))
        np.testing.assert_allclose(learned_step.preconditioners(fleet, params)[run],
                                   expected.numpy(), rtol=1e-12)


def test_what_is_spread_has_a_row_a_direction() -> None:
    config = learned_step.Config(isotropic=(), broken=(), spread=(5,), dim=3, seeds=2,
                                 budget=Budget(steps=5, tasks=5, rate=0.01))
    points = learned_step.points(config)
    assert [point["spread"] for point in points] == ["inputs", "tasks"]
    for point, order in zip(points, (1, -1), strict=True):
        rows = learned_step.measure(config, point, "cpu")
        assert [(row["seed"], round(row["variance"], 4)) for row in rows] == [
            (seed, variance) for seed in (0, 1) for variance in (0.01, 0.3, 9.0)]
        best = [row["best"] for row in rows[:3]][::order]
        assert best[0] > best[1] > best[2]
        (family,) = learned_step.fleet_of(config, point).run(0)
        spread, flat = ((family.covariance, 3 * family.task_covariance)[::order])
        assert torch.linalg.eigvalsh(spread).tolist() == pytest.approx([0.01, 0.3, 9], rel=1e-9)
        torch.testing.assert_close(flat, torch.eye(3, dtype=torch.float64))
    one = learned_step.measure(replace(config, seeds=1), point, "cpu")
    assert [row["learned"] for row in one] == pytest.approx(
        [row["learned"] for row in rows[:3]], rel=1e-5)


def test_the_record_of_the_learned_step() -> None:
    """Nine settings fixed beforehand, 20 seeds: every 95 % interval inside [.97, 1.03]."""
    config = learned_step.PROFILES["full"]
    found = learned_step.over_best(learned_step.EXPERIMENT.load("full").table)
    usual = found[(found["spread"] == "none") & (found["alpha"] == config.alpha)
                  & (found["b"] == config.std)]
    assert [tuple(row) for row in usual[["support", "dim", "rho"]].to_numpy()] == list(
        config.isotropic)
    assert {1} <= set(usual["support"])
    assert {1, 8} <= set(usual["dim"])
    assert (usual["seeds"] >= 20).all()
    assert (usual["low"] > 0.97).all()
    assert (usual["high"] < 1.03).all()
