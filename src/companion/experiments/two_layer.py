"""Do the insights of linear regression carry over to two-layer networks? (paper L, claim L4)"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from companion import nets, tables
from companion.experiment import Experiment, rounded
from companion.fleets import Budget, Model, start, train
from companion.measures import networks, quadratic
from companion.records import Point, Record, Row
from companion.tables import Finding
from companion.tasks import Fleet
from companion.tasks.teachers import teacher_fleet


@dataclass(frozen=True)
class Config:
    """Every sweep varies one entry of ``base``, but two: "support" is the number of samples to
    adapt on, elsewhere the full batch (or ``softplus_support``, for softplus has no closed form);
    "hidden" varies the hidden units at equal input variances, the angle between the centres' rows
    fixed."""

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
        "alpha": (0.1, 0.3, 0.6, 0.9, 1.2, 1.6, 2.0),
        "support": (20, 40, 80, 160, 400),
        "hidden": (1, 2, 3, 5)})
    softplus_support: int = 200
    seeds: int = 20
    budget: Budget = Budget(steps=1500, tasks=20, rate=0.05, query=50, test_tasks=500,
                            test_query=400)


PROFILES = {
    "quick": Config(
        sweeps={"distance": (0.0, 1.0, 2.0), "var_hard": (0.01, 1.0), "rho_hard": (0.1, 0.2, 1.0)},
        seeds=5, budget=replace(Config.budget, steps=400, test_tasks=150, test_query=100)),
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
    return teacher_fleet(point["activation"], settings, range(config.seeds), dim=config.dim,
                         hidden=point["hidden"], support=point["support"], device=device)


def measure(config: Config, point: Point, device: str) -> list[Row]:
    """One row for every value and seed: risks and gradients by method and group, and what the
    linear theory says."""
    fleet, activation = fleet_of(config, point, device), point["activation"]
    net = nets.two_layer(config.dim, point["hidden"], activation)
    columns: dict[str, Any] = {}
    for model in (Model(net, "nal"), Model(net, "maml")):
        # started in double precision, whatever they are trained in
        params = train(fleet, model, config.budget, begin=start(fleet, model))
        columns |= quadratic.by_group(fleet, model, params, config.budget, activation)
    columns |= quadratic.predictions(fleet, activation, point["support"])
    xs = np.repeat(point["x"], config.seeds).tolist()
    return [{"activation": activation, "sweep": point["sweep"], "x": x, "seed": seed}
            | rounded(**{name: values[i] for name, values in columns.items()})
            for i, (x, seed) in enumerate(zip(xs, fleet.seeds, strict=True))]


def below_the_ceiling(record: Record) -> Finding:
    """L4: in every setting the measured ratio is below the ceiling at the measured h."""
    return tables.judge(networks.slack(record.table), "log(ceiling / measured ratio)",
                        networks.SETTING, above=0)


def packed_and_far(record: Record) -> Finding:
    """L4: for packed, far hard optima and rho_E / rho_H >= 5 the ratio is above 1.1."""
    rows = tables.where(networks.ratios(record.table), sweep="rho_hard")
    return tables.judge(rows[rows["x"] <= 0.2], "risk NAL / MAML at ρ_E / ρ_H ≥ 5",
                        ["activation", "x"], above=1.1)


def order(record: Record) -> Finding:
    """L4: Spearman's correlation of predicted and measured log ratio is at least .8."""
    return tables.judge(networks.correlations(record), "Spearman, predicted and measured",
                        ["activation", "sweep"], inside=(0.8, 1.0))


def stationarity(record: Record) -> Finding:
    """L4: at each method's solution the groups' gradients that it trains on balance better than the
    others."""
    return tables.judge(networks.balances(record), "imbalance, other gradients less own",
                        ["activation", "at"], above=0)


EXPERIMENT = Experiment(
    "two_layer", "two-layer networks: risks of NAL and MAML beside the linear theory", PROFILES,
    points, measure,
    {"L4/ceiling": below_the_ceiling, "L4/packed and far": packed_and_far, "L4/order": order,
     "L4/stationarity": stationarity},
    ("cuda", "cpu"))
