"""Start and step learned together on easy and hard tasks: trained against predicted (both papers).

One inner step on linear regressions of :class:`companion.theory.landscape.Mixture`, the hard centre
at 0 and the easy one on the first axis. MAML learns the start with one rate, with a preconditioner
(KFO, which for one output is any matrix), or with layers; NAL's start gets the rate, the
preconditioner, or the layers of a deep model trained by NAL from a small or a large start and one
learned rate.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from statistics import NormalDist
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.optimize import minimize_scalar

from companion import nets, tables, training
from companion.checks import Array
from companion.experiment import Experiment, rounded
from companion.fleets import Budget, Model, scores, start, train
from companion.losses import squared_error
from companion.meta_optimizers import Params
from companion.objectives import joined, parted
from companion.records import Point, Record, Row
from companion.tables import Finding
from companion.tasks import Fleet, Task, normal_draws
from companion.theory import depth, together
from companion.theory.landscape import Mixture

RATE, FULL = "one rate", "full P"
ARMS = (RATE, FULL, "deep", "deep, 3 layers")
NAL_ARMS = (RATE, FULL, "deep, small start", "deep, large start")


@dataclass(frozen=True)
class Config:
    """``mixtures`` change some of ``base``, and ``sides`` are those of which the theory says that a
    full P raises the gain (1), or lowers it (-1), by some percent. ``alpha`` is the inner rate that
    rules and layers begin at; ``scales`` are those of the deep starts of NAL."""

    base: Mapping[str, float] = field(default_factory=lambda: {
        "rho_easy": 0.9, "rho_hard": 0.1, "dim": 10, "support": 20, "distance": 3.0,
        "var_easy": 1.0, "var_hard": 0.01})
    mixtures: Mapping[str, Mapping[str, float]] = field(default_factory=lambda: {
        "full batch": {"support": math.inf},
        "full batch, spread": {"support": math.inf, "var_hard": 1.0},
        "full batch, nearer": {"support": math.inf, "rho_hard": 0.5},
        "100 samples": {"support": 100}, "20 samples": {}, "5 samples": {"support": 5},
        "tight": {"var_easy": 0.01}, "equal curvature": {"rho_hard": 0.9},
        "one centre": {"distance": 0.0}})
    alpha: float = 0.1
    scales: tuple[float, float] = (0.1, 1.0)
    seeds: Sequence[int] = tuple(range(20))
    budget: Budget = Budget(steps=1500, tasks=40, rate=0.02, test_tasks=2000)


PROFILES = {
    "quick": Config(mixtures={"full batch": {"support": math.inf}, "20 samples": {}},
                    seeds=tuple(range(5)),
                    budget=replace(Config.budget, steps=300, test_tasks=500)),
    "full": Config(),
}


def points(config: Config) -> list[Point]:
    """Every arm on every mixture."""
    return [{"mixture": name, "method": method, "arm": arm} for name in config.mixtures
            for method, arms in (("maml", ARMS), ("nal", NAL_ARMS)) for arm in arms]


def mixture_of(config: Config, name: str) -> Mixture:
    """A mixture of the config, by name; its ``alpha`` is not used."""
    return Mixture(**dict(config.base) | dict(config.mixtures[name]), alpha=config.alpha)


def fleet_of(config: Config, mixture: Mixture) -> Fleet:
    """A run for every seed. The expected loss is exact: that of the d points sqrt(rho d) e_i, on
    which a model also adapts where the support is the full batch."""
    dim, distance = int(config.base["dim"]), float(np.asarray(mixture.distance))
    whole = math.isinf(mixture.support)
    samples = 1 if whole else int(np.asarray(mixture.support))
    cut = NormalDist().inv_cdf(1 - float(np.asarray(mixture.hard_fraction)))
    eye = torch.eye(dim, dtype=torch.float64)

    def make(normal: dict[str, torch.Tensor]) -> Task:
        hard = (normal["group"][0] > cut).to(eye)
        rho, variance = (float(a) + hard * (float(b) - float(a)) for a, b in (
            (mixture.rho_easy, mixture.rho_hard), (mixture.var_easy, mixture.var_hard)))
        optimum = (1 - hard) * distance * eye[0] + (variance / dim).sqrt() * normal["task"]
        query = (rho * dim).sqrt() * eye
        x = query if whole else rho.sqrt() * normal["x"]
        return Task((x, x @ optimum), (query, query @ optimum))

    draw = normal_draws(lambda tasks, query: {
        "group": (tasks, 1), "task": (tasks, dim), "x": (tasks, samples, dim)})
    alphas = torch.full((len(config.seeds),), config.alpha, dtype=torch.float64)
    return Fleet("together", tuple(config.seeds), (), alphas, draw, make, squared_error,
                 training_dtype=torch.float64)


def model_of(config: Config, point: Point) -> Model:
    """The network and the rule of an arm."""
    dim, arm, method = int(config.base["dim"]), point["arm"], point["method"]
    layers = 1 if arm in (RATE, FULL) else 3 if "3" in arm else 2
    rule = "KFO" if arm == FULL else "learned rate" if layers == 1 or method == "nal" else "SGD"
    return Model(nets.deep_linear((*[dim] * layers, 1)), rule=rule)


def held(optimizer: training.Optimizer) -> training.Optimizer:
    """The optimizer for a rule alone: the network stays as it is."""
    def update(gradients: Params, moments: Params, step: int) -> tuple[Params, Params]:
        updates, moments = optimizer.update(gradients, moments, step)
        params, rule = parted(updates)
        return joined({name: torch.zeros_like(u) for name, u in params.items()}, rule), moments

    return training.Optimizer(optimizer.init, update)


def trained(config: Config, point: Point, fleet: Fleet, mixture: Mixture) -> Params:
    """The parameters of an arm's network and rule, [run, ...]."""
    model, budget = model_of(config, point), config.budget
    begin = start(fleet, model)
    if point["method"] == "maml":
        return train(fleet, model, budget, begin=begin)
    network, rule = parted(begin)
    if len(network) == 1:  # NAL's start is known
        network["0.weight"] = torch.zeros_like(network["0.weight"])
        network["0.weight"][..., 0] = float(mixture.weight_nal * mixture.distance)
    else:
        scale = config.scales["large" in point["arm"]]
        network = train(fleet, replace(model, method="nal", rule="SGD"), budget,
                        begin={name: scale * value for name, value in network.items()})
    optimizer = held(training.adam(training.cosine(budget.rate, budget.steps)))
    return train(fleet, model, budget, begin=joined(network, rule), optimizer=optimizer)


def as_linear(model: Model, params: Params) -> Params:
    """A linear model with KFO, L = 1, that has a trained one's start W and, to first order in the
    rate, its step: R.T is the preconditioner over the inner rate."""
    network, rule = parted(params)
    starts, rights = [], []
    for run in range(len(network["0.weight"])):
        layers = [value[run].numpy() for value in network.values()]
        matrix = depth.effective_preconditioner(layers)
        if model.rule == "KFO":
            matrix = rule["0.weight.L"][run].item() * rule["0.weight.R"][run].numpy().T
        starts.append(depth.product(layers))
        rights.append(matrix.T * (rule["scale"][run].item() if "scale" in rule else 1.0))
    right = torch.from_numpy(np.stack(rights))
    return joined({"0.weight": torch.from_numpy(np.stack(starts))},
                  {"0.weight.L": torch.ones(len(right), 1, 1, dtype=right.dtype),
                   "0.weight.R": right})


def exact(mixture: Mixture, w: Array, preconditioner: Array) -> float:
    """The excess risk of a start and a step, both [d] and [d, d], whatever they are."""
    d, total = len(w), 0.0
    p = float(np.asarray(mixture.hard_fraction))
    far = np.asarray(mixture.distance) * np.eye(d)[0]
    for share, rho, variance, centre in ((1 - p, mixture.rho_easy, mixture.var_easy, far),
                                         (p, mixture.rho_hard, mixture.var_hard, 0 * far)):
        error = np.outer(w - centre, w - centre) + np.asarray(variance) / d * np.eye(d)
        total += share * depth.preconditioned_risk(
            preconditioner, np.asarray(rho) * np.eye(d), error, float(np.asarray(mixture.support)))
    return total


def predicted(mixture: Mixture, method: str, arm: str) -> float | None:
    """The least risk by theory: layers can learn a full P. NAL's layers from a small start end in
    balance, A = |w|^1/2 w b.T for unit w and b, whose preconditioner has twice the rate along w."""
    if method == "nal" and arm not in (RATE, FULL):
        if "large" in arm or mixture.distance == 0:
            return None
        rates = np.array([[2.0, 1.0], [0.0, 0.0]])
        return float(minimize_scalar(lambda rate: together.learned(
            mixture, float(mixture.weight_nal), rate * rates).risk).fun)
    found = (together.scalar if arm == RATE else together.full)(mixture)
    return found.maml.risk if method == "maml" else found.nal.risk


def measure(config: Config, point: Point, device: str) -> list[Row]:
    """A row for every seed: the risk; what theory says; where the start lies, as the weight on the
    easy centre and the length of the rest; rates along the line of the centres and beside it.

    The risk is exact for the linear model with the same start and step, plus what the model's own
    step changes on test tasks: nothing where it is linear."""
    mixture = mixture_of(config, point["mixture"])
    fleet, model = fleet_of(config, mixture), model_of(config, point)
    params = trained(config, point, fleet, mixture)
    linear = as_linear(model, params)
    other = Model(nets.linear(int(config.base["dim"])), rule="KFO")
    drawn, same = (scores(fleet, which, numbers, config.budget, [1]).means.risk[:, 0]
                   for which, numbers in ((model, params), (other, linear)))
    least, rows = predicted(mixture, point["method"], point["arm"]), []
    for run, seed in enumerate(fleet.seeds):
        w = linear["0.weight"][run, 0].numpy()
        step = config.alpha * linear["rule/0.weight.R"][run].numpy().T
        axis, rest = w[0] / (float(mixture.distance) or 1.0), np.linalg.norm(w[1:])
        rows.append({**point, "seed": seed} | rounded(
            risk=exact(mixture, w, step) + drawn[run] - same[run], predicted=least, weight=axis,
            offset=rest, along=step[0, 0], beside=np.trace(step[1:, 1:]) / (len(w) - 1)))
    return rows
