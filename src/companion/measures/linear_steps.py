"""A trained linear model of any depth as a start and a preconditioner, and their exact risk; and
how a step alone is learned."""

from typing import NamedTuple

import numpy as np
import torch

from companion import training
from companion.checks import Array
from companion.fleets import Budget, Model, scores
from companion.meta_optimizers import Params
from companion.nets import linear
from companion.objectives import joined, parted
from companion.tasks import Fleet
from companion.theory import depth
from companion.theory.landscape import Mixture


class Step(NamedTuple):
    """W+ = W - P G to first order in the inner rate: W [d], P [d, d], of one run."""

    start: Array
    preconditioner: Array


def steps_of(model: Model, params: Params, alpha: float) -> list[Step]:
    """What every run of a linear model with one output has learned, by the rule "SGD", "learned
    rate" or, for a single layer, "KFO", at the inner rate ``alpha``. P is that of
    :func:`companion.theory.depth.effective_preconditioner`, or alpha L R.T for KFO."""
    network, rule = ({name: value.cpu().numpy() for name, value in part.items()}
                     for part in parted(params))
    found = []
    for run in range(len(network["0.weight"])):
        layers = [value[run] for value in network.values()]
        matrix = depth.effective_preconditioner(layers)
        if model.rule == "KFO":
            matrix = rule["0.weight.L"][run].item() * rule["0.weight.R"][run].T
        scale = rule["scale"][run] if model.rule == "learned rate" else 1.0
        found.append(Step(depth.product(layers)[0], alpha * scale * matrix))
    return found


def exact_risk(mixture: Mixture, step: Step) -> float:
    """The excess risk of any start and step, the hard centre at 0 and the easy one on the first
    axis: the groups' mean of :func:`companion.theory.depth.preconditioned_risk`, with E (w - w*)(w
    - w*).T in place of the tasks' covariance."""
    d, p = len(step.start), float(np.asarray(mixture.hard_fraction))
    easy = np.eye(d)[0] * np.asarray(mixture.distance)
    total = 0.0
    for share, rho, variance, centre in ((1 - p, mixture.rho_easy, mixture.var_easy, easy),
                                         (p, mixture.rho_hard, mixture.var_hard, 0 * easy)):
        apart = step.start - centre
        error = np.outer(apart, apart) + np.asarray(variance) / d * np.eye(d)
        total += share * depth.preconditioned_risk(
            step.preconditioner, np.asarray(rho) * np.eye(d), error,
            float(np.asarray(mixture.support)), float(np.asarray(mixture.noise)))
    return total


def risks(fleet: Fleet, mixture: Mixture, model: Model, params: Params,
          budget: Budget) -> tuple[list[Step], Array]:
    """The steps of all runs, and their risks, [run]: the exact ones of these steps, plus what the
    model's own step changes on test tasks, which for a single layer is nothing."""
    alpha = float(fleet.alpha[0])
    found = steps_of(model, params, alpha)
    total = np.array([exact_risk(mixture, step) for step in found])
    if len(parted(params)[0]) > 1:
        weights, right = (torch.from_numpy(np.stack(part)) for part in (
            [step.start[None] for step in found],
            [step.preconditioner.T / alpha for step in found]))
        same = joined({"0.weight": weights}, {
            "0.weight.L": torch.ones(len(found), 1, 1, dtype=right.dtype), "0.weight.R": right})
        flat = Model(linear(weights.shape[-1]), rule="KFO")
        own, its = (scores(fleet, which, numbers, budget, [1]).means.risk[:, 0]
                    for which, numbers in ((model, params), (flat, same)))
        total = total + own - its
    return found, total


def rule_alone(rate: float, steps: int) -> training.Optimizer:
    """Adam for a rule's parameters, its ``rate`` decayed to 0 over ``steps``; the network stays."""
    adam = training.adam(training.cosine(rate, steps))

    def update(gradients: Params, moments: Params, step: int) -> tuple[Params, Params]:
        updates, moments = adam.update(gradients, moments, step)
        params, rule = parted(updates)
        return joined({name: torch.zeros_like(u) for name, u in params.items()}, rule), moments

    return training.Optimizer(adam.init, update)
