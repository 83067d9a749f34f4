"""How many tasks do NAL and MAML need? What both learn, exactly, from T tasks (claim L1).

Criterion: from the same T tasks of the same samples, the mean excess of the own objective over its
optimum, relative to that optimum, is larger for MAML: the ratio MAML / NAL lies above 1 in every
mixture and at every T. Beside it, for T from ``rate_from``: the slope of log excess on log T, whose
interval must lie in [-1.1, -.9], and T times the excess against the constants of
:mod:`companion.theory.finite_tasks`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from companion import tables
from companion.evaluation import Interval, estimate, log_log_slope
from companion.experiment import Experiment, rounded
from companion.monte_carlo import from_finite_tasks
from companion.records import Point, Record, Row
from companion.streams import stream
from companion.tables import Finding
from companion.tasks.regressions import LinearFamily, easy_and_hard
from companion.theory.finite_tasks import sandwich_maml, sandwich_nal

MIXTURE = ["inputs", "dim", "support", "hardness", "hard_fraction"]


@dataclass(frozen=True)
class Config:
    """``mixtures`` are (inputs, d, m, rho_H / rho_E, p), rho_E = 1; every seed draws T = ``tasks``
    tasks of m + ``query`` samples."""

    mixtures: Sequence[tuple[str, int, int, float, float]] = (
        ("isotropic", 5, 20, 0.2, 0.5), ("isotropic", 10, 20, 0.2, 0.5),
        ("isotropic", 5, 80, 0.2, 0.5), ("isotropic", 5, 20, 0.05, 0.5),
        ("isotropic", 5, 20, 0.5, 0.5), ("anisotropic", 5, 20, 0.2, 0.5),
        ("isotropic", 5, 80, 0.2, 0.9))
    tasks: Sequence[int] = (30, 100, 300, 1000, 3000, 10_000)
    rate_from: int = 300
    query: int = 20
    alpha: float = 0.8
    least_scale: float = 0.2
    groups: Mapping[str, float] = field(default_factory=lambda: {
        "distance": 3.0, "var_easy": 0.5, "var_hard": 0.1, "noise": 0.2})
    seeds: int = 250


PROFILES = {"quick": Config(tasks=(30, 100, 300, 1000), seeds=20), "full": Config()}


def points(config: Config) -> list[Point]:
    """Every mixture."""
    return [dict(zip(MIXTURE, mixture, strict=True)) for mixture in config.mixtures]


def family_of(config: Config, point: Point) -> LinearFamily:
    """Inputs of variance 1, or from 1 down to ``least_scale`` along axes that differ in the two
    groups; times the hardness in hard tasks."""
    scales = (np.ones(point["dim"]) if point["inputs"] == "isotropic"
              else np.geomspace(1, config.least_scale, point["dim"]))
    return easy_and_hard(stream(0, "finite_tasks/family"), scales, point["hardness"] * scales,
                         hard_fraction=point["hard_fraction"], **dict(config.groups))


def measure(config: Config, point: Point, device: str) -> list[Row]:
    """A row for every T and seed: the excess of each method's own objective over its optimum,
    divided by the optimum, and the gain, NAL's risk after adaptation minus MAML's."""
    family, m, alpha = family_of(config, point), point["support"], config.alpha
    best = {"nal": float(family.risk(family.minimiser_nal(), 0, m)),
            "maml": float(family.risk(family.minimiser_maml(alpha, m), alpha, m))}
    rows = []
    for tasks in config.tasks:
        for seed in range(config.seeds):
            nal, maml = from_finite_tasks(family, alpha, m, config.query, tasks,
                                          stream(seed, f"finite_tasks/{tasks}"))
            risk = float(family.risk(maml, alpha, m))
            rows.append({**point, "tasks": tasks, "seed": seed} | rounded(
                nal=float(family.risk(nal, 0, m)) / best["nal"] - 1,
                maml=risk / best["maml"] - 1, gain=float(family.risk(nal, alpha, m)) - risk))
    return rows


def needs(table: pd.DataFrame) -> pd.DataFrame:
    """The relative excess of MAML over that of NAL, in every mixture at every T: for small ones the
    ratio of the tasks that each needs to come equally near its own optimum."""
    return tables.contrast(table, [*MIXTURE, "tasks"], "maml", "nal")


def own_constants(config: Config, point: Point) -> dict[str, float]:
    """C / optimum of both methods: T times the relative excess, in the limit."""
    family, m, q = family_of(config, point), point["support"], config.query
    nal = sandwich_nal(family, m + q)
    maml = sandwich_maml(family, config.alpha, m, q)
    return {"nal": nal.constant / float(family.risk(nal.minimiser, 0, m)),
            "maml": maml.constant / float(family.risk(maml.minimiser, config.alpha, m))}


def rates(table: pd.DataFrame, config: Config) -> pd.DataFrame:
    """For every mixture and method, over T from ``rate_from``: the interval of the slope of log
    excess on log T, and the mean of T times the relative excess over its limit (an Estimate)."""
    late, found = table[table["tasks"] >= config.rate_from], []
    for point in points(config):
        rows, limits = tables.where(late, **point), own_constants(config, point)
        for method, limit in limits.items():
            wide = rows.pivot(index="seed", columns="tasks", values=method)
            sizes = wide.columns.to_numpy(dtype=float)
            slope = log_log_slope(sizes, wide.to_numpy())
            found.append({**point, "method": method, "limit": limit,
                          "over": estimate((wide.to_numpy() * sizes).mean(axis=1) / limit)}
                         | tables.columns(Interval(slope.value, *slope.interval())))
    return pd.DataFrame(found)


def more_tasks(record: Record) -> Finding:
    """L1: from the same tasks MAML stays further from its own optimum, everywhere."""
    return tables.judge(needs(record.table), "relative excess MAML / NAL", [*MIXTURE, "tasks"],
                        above=1)


EXPERIMENT = Experiment("finite_tasks", "what NAL and MAML learn from finitely many tasks",
                        PROFILES, points, measure, {"L1/tasks": more_tasks})
