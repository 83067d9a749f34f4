"""How SGD descends on linear regressions: its iterates, when they arrive, and their noise."""

import numpy as np
import torch

from companion.checks import Array
from companion.fleets import Budget, Model, gradient, train
from companion.meta_optimizers import Params
from companion.tasks import Fleet
from companion.training import Optimizer


def paths(fleet: Fleet, model: Model, budget: Budget, begin: Array,
          optimizer: Optimizer) -> Array:
    """Every iterate of a linear model from ``begin`` [run, d]: [step + 1, run, d]."""
    iterates: list[Array] = []

    def watch(step: int, params: Params, values: torch.Tensor) -> None:
        iterates.append(params["0.weight"][:, 0].numpy())

    last = train(fleet, model, budget, begin={"0.weight": torch.from_numpy(begin)[:, None]},
                 optimizer=optimizer, watch=watch)
    return np.stack([*iterates, last["0.weight"][:, 0].numpy()])


def steps_to_reach(risks: Array, target: float) -> Array:
    """The first step at which ``risks`` [step, ...] is at or below ``target``; inf if never."""
    reached = risks <= target
    return np.where(reached.any(axis=0), reached.argmax(axis=0).astype(float), np.inf)


def gradient_variance(fleet: Fleet, model: Model, budget: Budget, w: Array) -> float:
    """E|g - E g|^2 at w [d], g the gradient of one meta-batch of a linear model; a draw a run."""
    weight = torch.from_numpy(w)[None, None].repeat(len(fleet.seeds), 1, 1)
    drawn = fleet.draw(fleet, "train", budget.tasks, budget.query)(0)
    slopes, _ = gradient(fleet, model)({"0.weight": weight}, drawn, fleet.alpha)
    return float(slopes["0.weight"].var(dim=0).sum())
