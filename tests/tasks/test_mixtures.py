"""The mixture as a fleet: its tasks are those of the theory, and its losses exact."""

import math

import numpy as np
import pytest
import torch

from companion import nets
from companion.fleets import Budget, Model, measure
from companion.tasks.mixtures import mixture_fleet
from companion.theory.landscape import Mixture

MIXTURE = Mixture(0.9, 0.2, 3, 4, 0.0, hard_fraction=0.3, distance=2.0, var_easy=0.5, var_hard=2.0)
BUDGET = Budget(steps=0, tasks=0, rate=0.0, test_tasks=40_000, batch=10_000)


@pytest.mark.parametrize("support", [4, math.inf])
@pytest.mark.parametrize("alpha", [0.0, 0.4])
def test_the_mean_loss_after_a_step_is_the_exact_risk(support: float, alpha: float) -> None:
    mixture = Mixture(0.9, 0.2, 3, support, alpha, hard_fraction=0.3, distance=2.0, var_easy=0.5,
                      var_hard=2.0)
    fleet = mixture_fleet(mixture, (3, 4), alpha=alpha)
    model = Model(nets.linear(3))
    loss = fleet.loss(model.net.apply)

    def judge(params: dict, drawn: dict, rate: torch.Tensor) -> torch.Tensor:
        task = fleet.make(drawn)
        return loss(model.adapt(loss, params, task.support, rate, 1), task.query)

    start = torch.tensor([[[1.2, 0.0, 0.0]]] * 2, dtype=torch.float64)  # weight 0.6
    risks = np.asarray(measure(fleet, judge, {"0.weight": start}, BUDGET))
    error = risks.std() / math.sqrt(risks.size)
    assert error < 0.01 * risks.mean()
    assert abs(risks.mean() - mixture.risk(0.6)) < 4 * error


def test_the_expected_loss_is_exact_and_the_groups_are_those_of_the_mixture() -> None:
    fleet = mixture_fleet(MIXTURE, (0,), alpha=0.1)
    drawn = fleet.draw(fleet, "test", 4000, 0)(0)
    optima, hard = [], []
    for i in range(4000):
        task = fleet.make({name: value[0, i] for name, value in drawn.items()})
        x, y = task.query
        rho = (x.T @ x / 3)[0, 0].item()
        torch.testing.assert_close(x.T @ x / 3, rho * torch.eye(3, dtype=x.dtype))
        optima.append(torch.linalg.solve(x, y).numpy())
        hard.append(abs(rho - 0.2) < 1e-9)
        assert hard[-1] or abs(rho - 0.9) < 1e-9
        assert task.support[0].shape == (4, 3)
    group, w = np.array(hard), np.array(optima)
    assert abs(group.mean() - 0.3) < 0.03
    for which, centre, variance in ((group, 0.0, 2.0), (~group, 2.0, 0.5)):
        np.testing.assert_allclose(w[which].mean(0), [centre, 0, 0], atol=0.12)
        assert w[which].var(0).sum() == pytest.approx(variance, rel=0.1)


@pytest.mark.parametrize(("field", "value", "message"), [
    ("noise", 0.1, "noise must be 0, got 0.1"), ("hard_fraction", 0.0, "lie inside"),
    ("distance", [1.0, 2.0], "mixture must hold numbers")])
def test_bad_input(field: str, value: object, message: str) -> None:
    fields = {"rho_easy": 1.0, "rho_hard": 0.5, "dim": 2, "support": 3, "alpha": 0.0, field: value}
    with pytest.raises(ValueError, match=message):
        mixture_fleet(Mixture(**fields), (0,), alpha=0.1)
