"""Do the insights of linear regression carry over to two-layer networks? (paper L, claim L4)"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import stats
from torch.func import grad

from companion import nets, tables
from companion.checks import Array
from companion.evaluation import Interval, bootstrap
from companion.experiment import Experiment, rounded
from companion.experiments import quadratic
from companion.fleets import Budget, Model, measure, start, train
from companion.meta_optimizers import Params
from companion.records import Point, Record, Row
from companion.tables import Finding
from companion.tasks import Fleet, teachers
from companion.theory.kernels import KERNELS

METHODS = ("nal", "maml")
SETTING = ["activation", "sweep", "x"]


@dataclass(frozen=True)
class Config:
    """The sweeps and their cost.

    Every sweep varies one entry of ``base``, but two: "support" is the number of samples to adapt
    on, elsewhere the full batch (or ``softplus_support``, for softplus has no closed form);
    "hidden" varies the hidden units at equal input variances, the angle between the centres' rows
    fixed.
    """

    activations: Sequence[str] = ("erf", "relu", "softplus")
    dim: int = 10
    hidden: int = 3
    base: Mapping[str, float] = field(default_factory=lambda: {
        "rho_easy": 1.0, "rho_hard": 0.1, "distance": 2.0, "var_easy": 0.1, "var_hard": 0.01,
        "alpha": 0.9})
    sweeps: Mapping[str, Sequence[float]] = field(default_factory=lambda: {
        "distance": (0.0, 0.5, 1.0, 1.5, 2.0, 2.4),
        "var_hard": (0.003, 0.01, 0.03, 0.1, 0.3, 1.0),
        "rho_hard": (0.05, 0.1, 0.2, 0.4, 0.7, 1.0),
        "alpha": (0.1, 0.3, 0.6, 0.9, 1.2, 1.6),
        "support": (20, 40, 80, 160, 400),
        "hidden": (1, 2, 3, 5)})
    softplus_support: int = 200
    seeds: int = 20
    budget: Budget = Budget(steps=1500, tasks=20, rate=0.05, query=50, test_tasks=500,
                            test_query=400)


PROFILES = {
    "quick": Config(
        sweeps={"distance": (0.0, 1.0, 2.0), "var_hard": (0.01, 1.0), "rho_hard": (0.1, 0.2, 1.0)},
        seeds=5, budget=Budget(steps=400, tasks=20, rate=0.05, query=50, test_tasks=150,
                               test_query=100)),
    "full": Config(),
}


def points(config: Config) -> list[Point]:
    """A fleet for every activation and sweep; support sizes and numbers of hidden units are fleets
    of their own."""
    found: list[Point] = []
    for activation in config.activations:
        shared = {"hidden": config.hidden,
                  "support": config.softplus_support if activation == "softplus" else None}
        for sweep, values in config.sweeps.items():
            alone = sweep in shared
            for xs in [[x] for x in values] if alone else [list(values)]:
                shape = shared | ({sweep: xs[0]} if alone else {})
                found.append({"activation": activation, "sweep": sweep, "x": xs, **shape})
    return found


def setting(config: Config, sweep: str, x: float) -> dict[str, float]:
    """The family and inner rate of one value of a sweep."""
    base = dict(config.base)
    if sweep == "hidden":
        distance = base["distance"] * math.sqrt(x / config.hidden)
        return base | {"rho_hard": base["rho_easy"], "distance": distance}
    return base | ({} if sweep == "support" else {sweep: x})


def fleet_of(config: Config, point: Point, device: str = "cpu") -> Fleet:
    """Every value of the point's sweep, at every seed."""
    settings = [setting(config, point["sweep"], x) for x in point["x"]]
    return teachers.teacher_fleet(point["activation"], settings, range(config.seeds),
                                  dim=config.dim, hidden=point["hidden"], support=point["support"],
                                  device=device)


def model_of(config: Config, point: Point, method: str) -> Model:
    """The student, trained by "nal" or by "maml" with one inner step."""
    return Model(nets.two_layer(config.dim, point["hidden"], point["activation"]), method)


def by_group(fleet: Fleet, model: Model, params: Params, budget: Budget,
             activation: str) -> tuple[dict[str, Array], Array]:
    """Mean risks before and after one step and gradient norms, by group of tasks, each [run]; and
    the mean risk after it over all tasks. Exact where the activation has a closed form."""
    loss = fleet.loss(model.net.apply)

    def judge(params: Params, normal: Any, family: Any, alpha: Any) -> tuple[torch.Tensor, ...]:
        task = fleet.make(normal, family)
        weights, rho, group = teachers.teacher(family, normal)
        exact, query = loss, task.query
        if activation in KERNELS:
            exact, query = teachers.population(activation), (weights, rho)
        moved = model.adapt(loss, params, task.support, alpha, 1)
        slope = grad(exact)(params, query)["weight"]
        return group, exact(params, query), exact(moved, query), slope.square().sum().sqrt()

    group, *values = measure(fleet, judge, params, budget)
    found = {}
    for name, share in (("easy", 1 - group), ("hard", group)):
        for what, each in zip(("before", "after", "gradient"), values, strict=True):
            found[f"{name}_{what}"] = ((each * share).sum(1) / share.sum(1)).numpy()
    return found, values[1].mean(1).numpy()


def measure_point(config: Config, point: Point, device: str) -> list[Row]:
    """One row for every value and seed: risks by method and group, gradient norms, and the linear
    theory's risks."""
    fleet, activation = fleet_of(config, point, device), point["activation"]
    columns: dict[str, Any] = {}
    for method in METHODS:
        model = model_of(config, point, method)
        # started in double precision, whatever they are trained in
        params = train(fleet, model, config.budget, begin=start(fleet, model))
        groups, columns[method] = by_group(fleet, model, params, config.budget, activation)
        columns |= {f"{method}_{name}": values for name, values in groups.items()}
    said = [quadratic.predict(activation, fleet.run(i)[0], float(fleet.alpha[i]),
                              point["support"], seed)
            for i, seed in enumerate(fleet.seeds)]
    columns |= {f"predicted_{method}": [getattr(each, f"risk_{method}") for each in said]
                for method in METHODS}
    columns |= {"alpha": fleet.alpha, "distance": [each.distance for each in said]}
    xs = np.repeat(point["x"], config.seeds).tolist()
    return [{"activation": activation, "sweep": point["sweep"], "x": x, "seed": seed}
            | rounded(**{name: values[i] for name, values in columns.items()})
            for i, (x, seed) in enumerate(zip(xs, fleet.seeds, strict=True))]


def ratios(table: pd.DataFrame) -> pd.DataFrame:
    """The measured ratio of risks NAL / MAML of every value of every sweep, and the predicted."""
    means = table.groupby(SETTING, sort=False)[["predicted_nal", "predicted_maml"]].mean()
    predicted = (means["predicted_nal"] / means["predicted_maml"]).rename("predicted")
    return tables.contrast(table, SETTING, "nal", "maml").join(predicted, on=SETTING)


def landscape(table: pd.DataFrame, base: Mapping[str, float]) -> pd.DataFrame:
    """The rows that the correlation is taken over: all sweeps but "hidden", the base setting
    once."""
    again = table["x"] == table["sweep"].map(dict(base)).astype(float)
    return table[(table["sweep"] != "hidden") & ~(again & (table["sweep"] != "distance"))]


def correlation(table: pd.DataFrame, base: Mapping[str, float]) -> Interval:
    """Spearman's correlation of predicted and measured log ratio over the settings of one
    activation, with its bootstrap interval over seeds."""
    rows = landscape(table, base).set_index(["sweep", "x", "seed"])
    risks = rows[["nal", "maml", "predicted_nal", "predicted_maml"]]
    samples = risks.unstack(["sweep", "x"]).to_numpy()  # [seed, 4 * setting]

    def statistic(drawn: Array) -> Array:
        means = drawn.mean(axis=-2).reshape(*drawn.shape[:-2], 4, -1)
        ranks = [stats.rankdata(means[..., i, :] / means[..., i + 1, :], axis=-1) for i in (0, 2)]
        a, b = (rank - rank.mean(axis=-1, keepdims=True) for rank in ranks)
        return np.asarray((a * b).sum(-1) / np.sqrt((a * a).sum(-1) * (b * b).sum(-1)))

    return bootstrap(statistic, samples)


def correlations(record: Record) -> pd.DataFrame:
    """The :func:`correlation` of every activation."""
    base = record.provenance["config"]["base"]
    return pd.DataFrame([{"activation": activation} | tables.columns(correlation(runs, base))
                         for activation, runs in record.table.groupby("activation", sort=False)])


def equal_hardness(record: Record) -> Finding:
    """L4: with equal input variances the ratio lies inside [.98, 1.02]."""
    rows = tables.where(ratios(record.table), sweep="rho_hard", x=1.0)
    return tables.judge(rows, "risk NAL / MAML at equal input variances", ["activation"],
                        inside=(0.98, 1.02))


def packed_and_far(record: Record) -> Finding:
    """L4: for packed, far hard optima and rho_E / rho_H >= 5 the ratio is above 1.1."""
    rows = ratios(record.table)
    rows = rows[(rows["sweep"] == "rho_hard") & (rows["x"] <= 0.2)]
    return tables.judge(rows, "risk NAL / MAML at rho_E / rho_H >= 5", ["activation", "x"],
                        above=1.1)


def order(record: Record) -> Finding:
    """L4: Spearman's correlation of predicted and measured log ratio is at least .8."""
    return tables.judge(correlations(record), "Spearman, predicted and measured", ["activation"],
                        inside=(0.8, 1.0))


EXPERIMENT = Experiment(
    "two_layer", "two-layer networks: risks of NAL and MAML beside the linear theory", PROFILES,
    points, measure_point,
    {"L4/equal hardness": equal_hardness, "L4/packed and far": packed_and_far, "L4/order": order},
    ("cuda", "cpu"))
