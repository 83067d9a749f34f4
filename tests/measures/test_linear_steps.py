"""Trained linear models as a start and a step, and the risk of these."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from companion import nets
from companion.fleets import Budget, Model, scores, start, train
from companion.measures.linear_steps import Step, exact_risk, risks, rule_alone, steps_of
from companion.meta_optimizers import Params
from companion.objectives import parted
from companion.tasks.mixtures import mixture_fleet
from companion.theory import together
from companion.theory.landscape import Mixture

MIXTURE = Mixture(0.9, 0.2, 3, 6, 0.0, hard_fraction=0.3, distance=2.0, var_easy=0.5, var_hard=2.0)
BUDGET = Budget(steps=3, tasks=4, rate=0.1, test_tasks=20_000, batch=5_000)
MODELS = {"rate": Model(nets.linear(3), rule="learned rate"),
          "KFO": Model(nets.linear(3), rule="KFO"),
          "deep": Model(nets.deep_linear((3, 3, 1))),
          "deeper": Model(nets.deep_linear((3, 3, 3, 1)), rule="learned rate")}


def some(fleet, model: Model) -> Params:
    """A start, shaken so that no rule is the identity."""
    rng = torch.Generator().manual_seed(5)
    return {name: value + 0.3 * torch.randn(value.shape, generator=rng, dtype=value.dtype)
            for name, value in start(fleet, model).items()}


@pytest.mark.parametrize("name", MODELS)
def test_the_step_is_that_of_the_model_to_first_order(name: str) -> None:
    model, alpha = MODELS[name], 1e-6
    fleet = mixture_fleet(MIXTURE, (0, 1), alpha=alpha)
    params = some(fleet, model)
    x, y = torch.randn(2, 5, 4, dtype=torch.float64)[..., :3], torch.randn(2, 5).double()
    for run, step in enumerate(steps_of(model, params, alpha)):
        mine = {key: value[run] for key, value in params.items()}
        batch = (x[run], y[run])
        loss = fleet.loss(model.net.apply)
        moved = parted(model.adapt(loss, mine, batch, alpha, 1))[0]
        slope = (x[run].T @ (x[run] @ torch.from_numpy(step.start) - y[run]) / 5).numpy()
        after = np.linalg.multi_dot([np.eye(1), *[v.numpy() for v in reversed(moved.values())]])[0]
        change = (step.start - after) / alpha
        np.testing.assert_allclose(change, step.preconditioner @ slope / alpha, rtol=1e-4)


def test_exact_risk_is_that_of_the_theory_and_of_drawn_tasks() -> None:
    rates = np.array([[0.9, 0.4], [0.0, 0.0]])
    mixture = replace(MIXTURE, noise=0.3)
    step = Step(0.7 * np.eye(3)[0] * 2.0, np.diag([0.9, 0.4, 0.4]))
    assert exact_risk(mixture, step) == pytest.approx(together.learned(mixture, 0.7, rates).risk)
    off = Step(np.array([0.4, 0.8, 0.0]), np.array([[0.9, 0.2, 0], [0.1, 0.5, 0], [0, 0, 0.3]]))
    at_best = min(exact_risk(MIXTURE, off._replace(preconditioner=p)) for p in (
        off.preconditioner, np.eye(3)))
    assert at_best > together.off_line_risk(MIXTURE, 0.2, 0.8)


@pytest.mark.parametrize("name", MODELS)
def test_risks_agree_with_test_tasks(name: str) -> None:
    model, alpha = MODELS[name], 0.1
    fleet = mixture_fleet(MIXTURE, (0, 1), alpha=alpha)
    params = some(fleet, model)
    found, total = risks(fleet, MIXTURE, model, params, BUDGET)
    drawn = scores(fleet, model, params, BUDGET, [1]).risk[..., 0]
    error = drawn.std(1) / math.sqrt(drawn.shape[1])
    assert (np.abs(drawn.mean(1) - total) < 4 * error).all()
    bare = np.array([exact_risk(MIXTURE, step) for step in found])
    assert (np.abs(total - bare) > 1e-3 * total).all() == name.startswith("deep")


def test_a_rule_is_learned_alone() -> None:
    model = MODELS["rate"]
    fleet = mixture_fleet(MIXTURE, (0, 1), alpha=0.2)
    begin = start(fleet, model)
    last = train(fleet, model, BUDGET, begin=begin, optimizer=rule_alone(0.1, 3))
    torch.testing.assert_close(last["0.weight"], begin["0.weight"], rtol=0, atol=0)
    assert (last["rule/scale"] != 1).all()
