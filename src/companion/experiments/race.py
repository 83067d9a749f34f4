"""Is MAML harder to optimise than NAL? SGD until each is near its own optimum (paper L, claim L1).

Criterion: steps, and gradient evaluations, until 1.1 times the own optimum, each method at its best
rate on one grid, MAML / NAL above 1 in every mixture, isotropic and anisotropic, at both budgets:

    "equal samples": MAML adapts on m samples of a task and is scored on q others; NAL sees m + q.
    "equal queries": NAL sees q samples, as many as score MAML, and no support.

A gradient evaluation is the gradient of the loss of one sample, or a product of its Hessian with a
vector. Of a task and step NAL needs as many as it sees samples; MAML needs m for the inner
gradient, q for the query's, and m for the products that carry it back through the inner step: 2m +
q.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from companion import nets, tables
from companion.experiment import Experiment, rounded
from companion.fleets import Budget, Model
from companion.measures.descent import gradient_variance, paths, steps_to_reach
from companion.records import Point, Record, Row
from companion.streams import stream
from companion.tables import Finding
from companion.tasks.regressions import LinearFamily, easy_and_hard, regression_fleet
from companion.training import sgd

MIXTURE = ["inputs", "hardness", "support"]
BUDGETS = ("equal samples", "equal queries")
CASES = [*MIXTURE, "samples", "counted"]


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
    """On every mixture NAL at both budgets, and MAML, which is the same at both, once."""
    entries = [*(("nal", samples) for samples in BUDGETS), ("maml", "both")]
    return [dict(zip(MIXTURE, mixture, strict=True)) | {"method": method, "samples": samples}
            for mixture in config.mixtures for method, samples in entries]


def family_of(config: Config, point: Point) -> LinearFamily:
    """Inputs of variance 1, or from 1 down to .1 along axes that differ in the two groups."""
    scales = (np.ones(config.dim) if point["inputs"] == "isotropic"
              else np.logspace(0, -1, config.dim))
    return easy_and_hard(stream(0, "linear/race"), scales, point["hardness"] * scales,
                         distance=config.distance, var_easy=config.var_easy,
                         var_hard=config.var_hard)


def evaluations_a_step(config: Config, point: Point) -> int:
    """Gradient evaluations of one step, all of its tasks, as the module defines them."""
    support, query = point["support"], config.budget.query
    of_a_task: dict[str, int] = {"equal samples": support + query, "equal queries": query,
                                 "both": 2 * support + query}
    return config.budget.tasks * of_a_task[point["samples"]]


def measure(config: Config, point: Point, device: str) -> list[Row]:
    """A row for every seed: steps and gradient evaluations at the best rate of the grid, and
    whether that is inside the grid; and what makes a method slow, the condition of its Hessian and
    its noise, E|g - E g|^2 / (2 L f) at the optimum: g the gradient of one meta-batch, L the
    largest eigenvalue of the Hessian, f the optimum."""
    family, support, budget = family_of(config, point), point["support"], config.budget
    seen = 0 if point["samples"] == "equal queries" else support  # besides the query
    step = 0.0 if point["method"] == "nal" else config.alpha
    optimum = (family.minimiser_nal() if point["method"] == "nal"
               else family.minimiser_maml(config.alpha, support))
    least = float(family.risk(optimum, step, support))
    hessian = family.hessian(step, support)
    model = Model(nets.linear(config.dim), point["method"])
    seeds, rates = range(config.tuning_seeds + config.seeds), config.rates
    fleet = regression_fleet(family, seeds, alpha=config.alpha, support=seen, copies=len(rates))
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
    noise = gradient_variance(
        regression_fleet(family, range(config.noise_batches), alpha=config.alpha, support=seen),
        model, budget, optimum)
    shared = {"inside": 0 < best < len(rates) - 1} | rounded(
        rate=rates[best], condition=values[-1] / values[0],
        gradient_noise=noise / (2 * values[-1] * least))
    each_step = evaluations_a_step(config, point)
    return [{**point, "seed": seed, "steps": counts[best, seed],
             "evaluations": counts[best, seed] * each_step} | shared
            for seed in seeds[config.tuning_seeds :]]


def duels(table: pd.DataFrame) -> pd.DataFrame:
    """MAML over NAL in every mixture, at both budgets, by steps and by evaluations (``counted``):
    the geometric mean of the ratio over seeds with its interval; beside it mean steps, condition
    and noise of both."""
    both = pd.concat([tables.where(table, method="nal"), *(
        tables.where(table, method="maml").assign(samples=samples) for samples in BUDGETS)])
    keys = [*MIXTURE, "samples", "method"]
    parts = [tables.contrast(both.assign(log=np.log(both[counted])), keys, "log",
                             {"method": "nal"}, tables.difference).assign(counted=counted)
             for counted in ("steps", "evaluations")]
    logs = pd.concat(parts, ignore_index=True).drop(columns="method")
    ends = ["value", "low", "high"]
    logs[ends] = np.exp(logs[ends])
    columns = ["steps", "condition", "gradient_noise"]
    beside = both.groupby(keys)[columns].mean().unstack("method")
    beside.columns = [f"{column}_{method}" for column, method in beside.columns]
    return logs.join(beside, on=keys[:-1])


def optimise(record: Record) -> Finding:
    """L1: MAML needs more steps, and more evaluations, in every mixture and at both budgets."""
    return tables.judge(duels(record.table), "MAML / NAL", CASES, above=1)


EXPERIMENT = Experiment("race", "steps of SGD until NAL and MAML are near their own optimum",
                        PROFILES, points, measure, {"L1/optimise": optimise})
