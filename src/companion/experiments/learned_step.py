"""What depth learns: the preconditioner of a meta-trained deep linear model (paper D)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch

from companion import nets, tables
from companion.checks import Array
from companion.experiment import Experiment, rounded
from companion.fleets import Budget, Model, train
from companion.meta_optimizers import Params
from companion.records import Point, Row
from companion.streams import torch_stream
from companion.tasks import Fleet
from companion.tasks.readouts import readout_fleet, spread
from companion.theory import depth

SETTING = ["spread", "support", "dim", "rho", "alpha", "b"]


@dataclass(frozen=True)
class Config:
    """``isotropic`` are settings (support, dim, rho), fixed before any run, at the inner rate
    ``alpha``; ``broken`` are (alpha, b) at which (10, 5, 1) is measured again, with b the standard
    deviation of the second layer at the start. ``spread`` are supports for inputs, or for optima of
    white inputs, of standard deviations from ``least`` to ``most``. A starts as a multiple of I, up
    to ``std``."""

    isotropic: Sequence[tuple[int, int, float]] = (
        (1, 1, 1.0), (1, 8, 1.0), (1, 3, 0.5), (5, 3, 1.0), (5, 8, 2.0), (10, 5, 1.0), (10, 1, 0.5),
        (20, 8, 0.5), (40, 5, 2.0))
    alpha: float = 0.1
    broken: Sequence[tuple[float, float]] = ((1.0, 0.01), (0.1, 1.0))
    spread: Sequence[int] = (5, 20, 100)
    dim: int = 10
    least: float = 0.1
    most: float = 3.0
    std: float = 0.01
    seeds: int = 20
    budget: Budget = Budget(steps=1500, tasks=100, rate=0.01)


PROFILES = {
    "quick": Config(isotropic=((5, 3, 1.0), (10, 5, 1.0)), spread=(20,), seeds=6,
                    budget=replace(Config.budget, steps=500, tasks=50)),
    "full": Config(),
}


def points(config: Config) -> list[Point]:
    """A fleet for every setting; ``spread`` says what is, "inputs", "tasks" or "none"."""
    every: list[tuple[Any, ...]] = [("none", *setting, config.alpha, config.std)
                                    for setting in config.isotropic]
    every += [("none", 10, 5, 1.0, *broken) for broken in config.broken]
    every += [(what, support, config.dim, rho, config.alpha, config.std)
              for what, rho in (("inputs", None), ("tasks", 1.0)) for support in config.spread]
    return [dict(zip(SETTING, setting, strict=True)) for setting in every]


def scales_of(config: Config, point: Point) -> tuple[Array, Array]:
    """Standard deviations along the axes, [dim]: of the inputs, and of the optima times
    sqrt(dim)."""
    wide, flat = np.array(spread(config.dim, config.least, config.most)), np.ones(point["dim"])
    inputs = wide if point["spread"] == "inputs" else flat * math.sqrt(point["rho"])
    return inputs, wide if point["spread"] == "tasks" else flat


def fleet_of(config: Config, point: Point, device: str = "cpu") -> Fleet:
    """A run for every seed; the inner rate is ``alpha``, relative to the largest curvature where
    inputs are spread."""
    (inputs, optima), alpha = scales_of(config, point), point["alpha"]
    if point["rho"] is not None:
        alpha = alpha * point["rho"]
    setting = {"scales": inputs.tolist(), "tasks": optima.tolist(), "alpha": alpha}
    return readout_fleet("regression", [setting], range(config.seeds), support=point["support"],
                         device=device)


def near_identity(fleet: Fleet, width: int, level: float, std: float, b_std: float) -> Params:
    """A deep linear start, [run, ...]: A.T = level (I + std z), [width, dim], and b = b_std z."""
    starts: dict[str, list[torch.Tensor]] = {"0.weight": [], "1.weight": []}
    dim = fleet.settings[0].root.shape[-1]
    for seed in fleet.seeds:
        rng = torch_stream(seed, "shallow/start")
        a, b = (torch.randn(*shape, generator=rng, dtype=torch.float64)
                for shape in ((width, dim), (1, width)))
        starts["0.weight"].append(level * (torch.eye(width, dim, dtype=a.dtype) + std * a))
        starts["1.weight"].append(b_std * b)
    return {name: torch.stack(values).to(fleet.alpha.device) for name, values in starts.items()}


def preconditioners(fleet: Fleet, params: Params) -> Array:
    """What depth has learned: ``alpha (A A.T + |b|^2 I)`` of every run, [run, dim, dim]."""
    layers = (params[name].cpu().numpy() for name in ("0.weight", "1.weight"))
    return np.stack([float(alpha) * depth.effective_preconditioner(pair)
                     for alpha, *pair in zip(fleet.alpha, *layers, strict=True)])


def measure(config: Config, point: Point, device: str) -> list[Row]:
    """A row for every seed and axis: the ``variance`` of what is spread along it, the learned and
    the best preconditioner there, the least and largest eigenvalue learned, and the length of b.

    Runs start from half of the best step. Where nothing is spread there is one variance, and the
    learned number is the mean eigenvalue.
    """
    fleet, dim, m = fleet_of(config, point, device), point["dim"], point["support"]
    inputs, optima = map(np.square, scales_of(config, point))
    best = np.diag(depth.best_preconditioner(np.diag(inputs), np.diag(optima) / dim, m))
    level = math.sqrt(float(np.exp(np.log(best).mean())) / (2 * float(fleet.alpha[0])))
    model = Model(nets.deep_linear((dim, dim, 1)))
    params = train(fleet, model, config.budget,
                   begin=near_identity(fleet, dim, level, config.std, point["b"]))
    learned = preconditioners(fleet, params)
    root = fleet.settings[0].root.cpu().numpy()
    directions = root / np.linalg.norm(root, axis=1, keepdims=True)
    along = np.einsum("rki,rkl,rli->ri", directions, learned, directions)
    variances = optima if point["spread"] == "tasks" else inputs
    if point["spread"] == "none":
        variances, best, along = variances[:1], best[:1], along.mean(1, keepdims=True)
    values = np.linalg.eigvalsh(learned)
    lengths = params["1.weight"].norm(dim=(1, 2)).tolist()
    return [{**point, "seed": seed} | rounded(
                variance=variances[i], learned=along[run, i], best=best[i],
                smallest=values[run, 0], largest=values[run, -1], length_b=lengths[run])
            for run, seed in enumerate(fleet.seeds) for i in range(len(variances))]


def over_best(table: pd.DataFrame) -> pd.DataFrame:
    """The learned number over the best one, of every setting and variance: mean over seeds with its
    interval, and the extreme eigenvalues."""
    keys = [*SETTING, "variance"]
    shares = table.assign(share=table["learned"] / table["best"],
                          smallest=table["smallest"] / table["best"],
                          largest=table["largest"] / table["best"])
    groups = shares.groupby(keys, sort=False, dropna=False)
    extremes = groups.agg(best=("best", "first"), smallest=("smallest", "min"),
                          largest=("largest", "max"), length_b=("length_b", "mean"),
                          seeds=("seed", "size")).reset_index()
    return tables.means(shares, keys, "share").merge(extremes, on=keys)


EXPERIMENT = Experiment("learned_step", "the preconditioner that a deep linear model learns",
                        PROFILES, points, measure, devices=("cuda", "cpu"))
