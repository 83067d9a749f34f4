"""At equal hardness NAL and MAML, both trained, adapt equally well (paper L, claim L2).

Criterion: the ratio of mean risks after adaptation, NAL / MAML, has its 95 % interval inside
``band`` = [.99, 1.01] where all tasks have one curvature, and at alpha_0, where one step leaves
easy and hard tasks equally unsolved although their curvatures differ. The control, the same tasks
at another step, must lie above the band; if it does not, the part is inconclusive.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
import torch

from companion import nets, tables
from companion.experiment import Experiment, rounded
from companion.fleets import Budget, Model, train
from companion.records import Point, Record, Row
from companion.streams import stream
from companion.tables import Finding
from companion.tasks.regressions import LinearFamily, regression_fleet
from companion.theory.landscape import Mixture
from companion.training import sgd


@dataclass(frozen=True)
class Config:
    """``hardness`` are the cases' rho_H / rho_E with rho_E = 1. The equal step is taken in the case
    "equal step", ``alpha`` elsewhere. SGD at ``budget.rate`` / (1 + step / ``decay``) from points
    ``start`` times normal."""

    cases: Sequence[tuple[str, float]] = (
        ("equal curvature", 1.0), ("equal step", 0.2), ("control", 0.2))
    base: Mapping[str, float] = field(default_factory=lambda: {
        "rho_easy": 1.0, "dim": 5, "support": 20, "distance": 3.0, "var_easy": 0.5,
        "var_hard": 0.1, "noise": 0.2})
    alpha: float = 0.6
    start: float = 2.0
    decay: float = 50.0
    band: tuple[float, float] = (0.99, 1.01)
    seeds: int = 40
    budget: Budget = Budget(steps=2000, tasks=10, rate=2.0, query=20)


PROFILES = {"quick": Config(seeds=20, budget=Budget(steps=600, tasks=10, rate=2.0, query=20)),
            "full": Config()}


def points(config: Config) -> list[Point]:
    """Every case."""
    return [{"case": case, "hardness": hardness} for case, hardness in config.cases]


def mixture_of(config: Config, point: Point) -> Mixture:
    """The mixture of a case, at its step."""
    mixture = Mixture(**dict(config.base), rho_hard=point["hardness"], alpha=config.alpha)
    equal = point["case"] == "equal step"
    return replace(mixture, alpha=mixture.equal_hardness_step) if equal else mixture


def measure(config: Config, point: Point, device: str) -> list[Row]:
    """A row for every seed: the exact risks after adaptation from what each method has learned, on
    the same tasks from the same start, and the exact ratio of the minimisers."""
    mixture, budget = mixture_of(config, point), config.budget
    family, dim = LinearFamily.from_mixture(mixture), int(np.asarray(mixture.dim))
    alpha, support = float(np.asarray(mixture.alpha)), int(np.asarray(mixture.support))
    seeds = range(config.seeds)
    fleet = regression_fleet(family, seeds, alpha=alpha, support=support)
    begin = config.start * np.stack([stream(seed, "linear/start").standard_normal(dim)
                                     for seed in seeds])
    optimizer = sgd(lambda step: budget.rate / (1 + step / config.decay))
    risks = {}
    for method in ("nal", "maml"):
        last = train(fleet, Model(nets.linear(dim), method), budget,
                     begin={"0.weight": torch.from_numpy(begin)[:, None]}, optimizer=optimizer)
        risks[method] = family.risk(last["0.weight"][:, 0].numpy(), alpha, support)
    return [{**point, "seed": seed} | rounded(
        alpha=alpha, nal=risks["nal"][seed], maml=risks["maml"][seed], exact=mixture.ratio)
        for seed in seeds]


def ratios(table: pd.DataFrame) -> pd.DataFrame:
    """The ratio of mean risks NAL / MAML in every case, with its interval."""
    return tables.contrast(table, ["case"], "nal", "maml")


def trained(record: Record) -> Finding:
    """L2: the ratio is 1 within the band at equal hardness, and above the band in the control."""
    low, high = record.provenance["config"]["band"]
    found = ratios(record.table)
    asked = tables.judge(found[found["case"] != "control"], "risk NAL / MAML", ["case"],
                         inside=(low, high))
    (control,) = tables.where(found, case="control").itertuples()
    if control.low > high:
        return asked
    return replace(asked, word="inconclusive", what=f"{asked.what}; the control is not above it",
                   detectable=asked.interval.detectable if asked.interval else None)


EXPERIMENT = Experiment("equal_hardness", "risks of trained NAL and MAML at equal hardness",
                        PROFILES, points, measure, {"L2/trained": trained})
