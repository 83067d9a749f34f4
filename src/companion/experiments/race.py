"""Is MAML harder to optimise than NAL? Steps of SGD until each is near its own optimum (paper L,
claim L1)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from companion import nets, tables
from companion.checks import Array
from companion.experiment import Experiment, rounded
from companion.fleets import Budget, Model, gradient, train
from companion.meta_optimizers import Params
from companion.records import Point, Record, Row
from companion.streams import stream
from companion.tables import Finding
from companion.tasks import Fleet
from companion.tasks.regressions import LinearFamily, easy_and_hard, regression_fleet
from companion.theory.gaussian import q_matrix
from companion.training import Optimizer, sgd

MIXTURE = ["inputs", "hardness", "support"]


@dataclass(frozen=True)
class Config:
    """``mixtures`` are (inputs, rho_H / rho_E, m). The best rate of a grid is chosen on
    ``tuning_seeds``, steps until ``factor`` times the optimum are counted on other ``seeds``. The
    noise of the gradient is measured on ``noise_batches``."""

    mixtures: Sequence[tuple[str, float, int]] = (
        ("isotropic", 0.1, 20), ("isotropic", 0.1, 100), ("anisotropic", 0.1, 20),
        ("anisotropic", 0.1, 100), ("anisotropic", 1.0, 20))
    dim: int = 10
    distance: float = 3.0
    var_easy: float = 1.0
    var_hard: float = 0.1
    alpha: float = 1.0
    rates: Sequence[float] = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
    factor: float = 1.1
    tuning_seeds: int = 50
    seeds: int = 200
    noise_batches: int = 1000
    budget: Budget = Budget(steps=40, tasks=10, rate=1.0, query=20)


PROFILES = {"quick": Config(tuning_seeds=10, seeds=20), "full": Config()}


def points(config: Config) -> list[Point]:
    """Both methods on every mixture."""
    return [dict(zip(MIXTURE, mixture, strict=True)) | {"method": method}
            for mixture in config.mixtures for method in ("nal", "maml")]


def family_of(config: Config, point: Point) -> LinearFamily:
    """Inputs of variance 1, or from 1 down to .1 along axes that differ in the two groups."""
    scales = (np.ones(config.dim) if point["inputs"] == "isotropic"
              else np.logspace(0, -1, config.dim))
    return easy_and_hard(stream(0, "linear/race"), scales, point["hardness"] * scales,
                         distance=config.distance, var_easy=config.var_easy,
                         var_hard=config.var_hard)


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


def measure(config: Config, point: Point, device: str) -> list[Row]:
    """A row for every seed: steps at the best rate of the grid; and what makes a method slow, the
    condition of its Hessian and its noise, E|g - E g|^2 / (2 L f) at the optimum: g the gradient of
    one meta-batch, L the largest eigenvalue of the Hessian, f the optimum."""
    family, support, budget = family_of(config, point), point["support"], config.budget
    step = 0.0 if point["method"] == "nal" else config.alpha
    optimum = (family.minimiser_nal() if point["method"] == "nal"
               else family.minimiser_maml(config.alpha, support))
    least = float(family.risk(optimum, step, support))
    hessian = np.einsum("g,gij->ij", family.weights / family.weights.sum(),
                        q_matrix(family.covariances, step, support))
    model = Model(nets.linear(config.dim), point["method"])
    seeds, rates = range(config.tuning_seeds + config.seeds), config.rates
    fleet = regression_fleet(family, seeds, alpha=config.alpha, support=support,
                             copies=len(rates))
    begin = 2 * np.stack([stream(seed, "linear/start").standard_normal(config.dim)
                          for seed in seeds])
    each = torch.tensor(rates, dtype=torch.float64).repeat_interleave(len(seeds))
    path = paths(fleet, model, budget, np.tile(begin, (len(rates), 1)), sgd(each))
    with np.errstate(over="ignore", invalid="ignore"):  # too high a rate never arrives
        error = path - optimum
        risks = least + np.einsum("tri,ij,trj->tr", error, hessian, error, optimize=True) / 2
    counts = steps_to_reach(risks, config.factor * least).reshape(len(rates), len(seeds))
    best = int(counts[:, : config.tuning_seeds].mean(axis=1).argmin())
    values = np.linalg.eigvalsh(hessian)
    shared = rounded(rate=rates[best], condition=values[-1] / values[0],
                     gradient_noise=spread_of_gradient(config, family, model, optimum, support)
                     / (2 * values[-1] * least))
    return [{**point, "seed": seed, "steps": counts[best, seed]} | shared
            for seed in seeds[config.tuning_seeds :]]


def spread_of_gradient(config: Config, family: LinearFamily, model: Model, optimum: Array,
                       support: int) -> float:
    """E|g - E g|^2 of the gradient of one meta-batch at the optimum."""
    count = config.noise_batches
    fleet = regression_fleet(family, range(count), alpha=config.alpha, support=support)
    weight = torch.from_numpy(optimum)[None, None].repeat(count, 1, 1)
    drawn = fleet.draw(fleet, "train", config.budget.tasks, config.budget.query)(0)
    slopes, _ = gradient(fleet, model)({"0.weight": weight}, drawn, fleet.alpha)
    return float(slopes["0.weight"].var(dim=0).sum())


def duels(table: pd.DataFrame) -> pd.DataFrame:
    """Steps of MAML over those of NAL in every mixture: the geometric mean of the ratio over seeds
    with its interval, and beside it mean steps, condition and noise of both."""
    logs = tables.contrast(table.assign(log=np.log(table["steps"])), [*MIXTURE, "method"], "log",
                           {"method": "nal"}, tables.difference)
    ends = ["value", "low", "high"]
    logs[ends] = np.exp(logs[ends])
    columns = ["steps", "condition", "gradient_noise"]
    both = table.groupby([*MIXTURE, "method"])[columns].mean().unstack("method")
    both.columns = [f"{column}_{method}" for column, method in both.columns]
    return logs.drop(columns="method").join(both, on=MIXTURE)


def optimise(record: Record) -> Finding:
    """L1: MAML needs more steps than NAL in every mixture."""
    return tables.judge(duels(record.table), "steps MAML / NAL", MIXTURE, above=1)


EXPERIMENT = Experiment("race", "steps of SGD until NAL and MAML are near their own optimum",
                        PROFILES, points, measure, {"L1/optimise": optimise})
