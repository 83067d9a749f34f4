"""The exact ratio of risks against drawn tasks of linear regression (paper L, claim L3)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd

from companion import tables
from companion.evaluation import Estimate, Interval
from companion.experiment import Experiment
from companion.monte_carlo import drawn_ratio
from companion.records import Point, Record, Row
from companion.streams import stream
from companion.tables import Finding
from companion.theory.landscape import Mixture


@dataclass(frozen=True)
class Config:
    """Sweeps around one mixture, and ``draws`` tasks for each ratio."""

    draws: int = 300_000
    base: Mapping[str, float] = field(default_factory=lambda: {
        "rho_easy": 1.0, "rho_hard": 0.2, "dim": 3, "support": 60, "alpha": 0.9, "distance": 3.0,
        "var_easy": 0.5, "var_hard": 0.02})
    sweeps: Mapping[str, Sequence[float]] = field(default_factory=lambda: {
        "rho_hard": (0.02, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0),
        "var_hard": (0.01, 0.03, 0.1, 0.3, 1.0, 3.0),
        "distance": (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)})


PROFILES = {"quick": Config(draws=30_000), "full": Config()}


def points(config: Config) -> list[Point]:
    """Every value of every sweep."""
    return [{"sweep": name, "x": x} for name, values in config.sweeps.items() for x in values]


def measure(config: Config, point: Point, device: str) -> list[Row]:
    """The ratio from drawn tasks, its standard error, and the exact one."""
    mixture = Mixture(**dict(config.base) | {point["sweep"]: point["x"]})
    rng = stream(0, f"linear/ratio/{point['sweep']}/{point['x']}")
    drawn = drawn_ratio(mixture, rng, config.draws)
    return [{**point, "value": drawn.value, "error": drawn.error, "draws": drawn.count,
             "exact": float(mixture.ratio)}]


def estimates(table: pd.DataFrame, sweep: str) -> list[Estimate]:
    """The drawn ratios of a sweep, by rising x."""
    rows = tables.where(table, sweep=sweep).sort_values("x")
    return [Estimate(row.value, row.error, row.draws) for row in rows.itertuples()]


def agrees(table: pd.DataFrame, *sweeps: str) -> bool:
    """Whether every drawn ratio is within 4 standard errors of the exact one."""
    rows = tables.where(table, sweep=sweeps)
    return bool(((rows["value"] - rows["exact"]).abs() <= 4 * rows["error"]).all())


def packed_and_far(record: Record) -> Finding:
    """L3: drawn and exact agree over R and v_H; the ratio rises in R and falls in v_H."""
    far, spread = (estimates(record.table, name) for name in ("distance", "var_hard"))
    rises = far[-1].interval()[0] > far[0].interval()[1]
    falls = spread[-1].interval()[1] < spread[0].interval()[0]
    holds = agrees(record.table, "distance", "var_hard") and rises and falls
    return Finding("supported" if holds else "contradicted",
                   Interval(far[-1].value, *far[-1].interval()), "risk NAL / MAML at the largest R")


EXPERIMENT = Experiment("linear", "risks of NAL and MAML on drawn tasks of linear regression",
                        PROFILES, points, measure, {"L3/drawn": packed_and_far})
