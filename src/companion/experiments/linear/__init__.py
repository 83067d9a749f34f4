"""The experiment `linear`: the exact ratio against drawn tasks, and whether MAML is harder to
optimise (paper L)."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from companion.claims import Finding
from companion.evaluation import Estimate, estimate, ratio
from companion.experiments import Experiment
from companion.experiments.linear import measure
from companion.records import Record, Row
from companion.streams import stream
from companion.sweeps import Point
from companion.tasks.regressions import LinearFamily, easy_and_hard
from companion.theory.landscape import Mixture
from companion.theory.landscape_proofs import proofs

BASE = {"rho_easy": 1.0, "rho_hard": 0.2, "dim": 3, "support": 60, "alpha": 0.9, "distance": 3.0,
        "var_easy": 0.5, "var_hard": 0.02}
SWEEPS = {"rho_hard": (0.02, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0),
          "var_hard": (0.01, 0.03, 0.1, 0.3, 1.0, 3.0), "distance": (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)}
RACES = (("isotropic", 0.1, 20), ("isotropic", 0.1, 100), ("anisotropic", 0.1, 20),
         ("anisotropic", 0.1, 100), ("anisotropic", 1.0, 20))


RATES = np.array([0.5, 1, 2, 4, 8, 16])


@dataclass(frozen=True)
class Config:
    """Sizes of a run: ``draws`` tasks for each ratio; seeds that choose the rate of a race, and
    seeds that count."""

    draws: int = 30_000
    tuning_seeds: int = 10
    seeds: int = 20


PROFILES = {"quick": Config(), "full": Config(draws=300_000, tuning_seeds=50, seeds=200)}


def points(config: Config) -> list[Point]:
    """Every value of every sweep, and every race."""
    drawn = [{"part": "ratio", "sweep": name, "x": x}
             for name, values in SWEEPS.items() for x in values]
    races = [{"part": "race", "inputs": name, "hardness": hard, "support": m} for name, hard,
             m in RACES]
    return [*drawn, *races]


def compute(config: Config, point: Point, device: str = "cpu") -> list[Row]:
    """The rows of one point; always computed on the CPU."""
    return {"ratio": _ratio, "race": _race}[point["part"]](config, point)


def drawn_ratio(mixture: Mixture, rng: np.random.Generator, draws: int) -> Estimate:
    """The ratio of risks from tasks alone: both methods adapted on the same drawn tasks and
    samples."""
    family = LinearFamily.from_mixture(mixture)
    starts = np.outer([mixture.weight_nal, mixture.weight_maml], family.centres[0])
    alpha, support = float(np.asarray(mixture.alpha)), float(np.asarray(mixture.support))
    return ratio(*measure.adapted_risks(family, starts, alpha, support, rng, draws))


def _ratio(config: Config, point: Point) -> list[Row]:
    mixture = Mixture(**BASE | {point["sweep"]: point["x"]})
    rng = stream(0, f"linear/ratio/{point['sweep']}/{point['x']}")
    found = drawn_ratio(mixture, rng, config.draws)
    return [{**point, "quantity": "ratio", "value": found.value, "error": found.error,
             "exact": float(mixture.ratio)}]


def _race(config: Config, point: Point) -> list[Row]:
    scales = np.ones(10) if point["inputs"] == "isotropic" else np.logspace(0, -1, 10)
    family = easy_and_hard(stream(0, "linear/race"), scales, point["hardness"] * scales, distance=3,
                           var_easy=1, var_hard=0.1)
    rows: list[Row] = []
    for method in ("nal", "maml"):
        run = measure.race(family, method, RATES, alpha=1.0, support=point["support"], query=20,
                           meta_batch=10, steps=40, tuning_seeds=config.tuning_seeds,
                           seeds=config.seeds)
        values: dict[str, Any] = {"rate": run.rate, "condition": run.condition,
                                  "gradient_noise": run.gradient_noise}
        rows += [{**point, "method": method, "quantity": name, "value": value}
                 for name, value in values.items()]
        rows += [{**point, "method": method, "quantity": "steps", "seed": config.tuning_seeds + i,
                  "value": float(steps)}
                 for i, steps in enumerate(run.steps)]
    return rows


@dataclass(frozen=True)
class Duel:
    """The race of both methods on one mixture: ``log_ratio`` is that of steps, MAML over NAL, seed
    by seed."""

    inputs: str
    hardness: float
    support: int
    nal: Estimate
    maml: Estimate
    log_ratio: Estimate
    condition: tuple[float, float]
    gradient_noise: tuple[float, float]

    @property
    def ratio(self) -> tuple[float, float, float]:
        """The geometric mean of the ratio of steps, and the ends of its 95 % interval over
        seeds."""
        low, high = self.log_ratio.interval()
        return math.exp(self.log_ratio.value), math.exp(low), math.exp(high)


def duels(table: pd.DataFrame) -> list[Duel]:
    """The races in a table of this experiment."""
    found = []
    races = table[table["part"] == "race"]
    for (inputs, hardness, support), race in races.groupby(["inputs", "hardness", "support"],
                                                           sort=False):
        by = {key: group["value"].to_numpy() for key, group in race.groupby(["method", "quantity"])}
        nal, maml = by["nal", "steps"], by["maml", "steps"]
        condition, noise = ((float(by["nal", name][0]), float(by["maml", name][0]))
                            for name in ("condition", "gradient_noise"))
        duel = Duel(inputs, hardness, int(support), estimate(nal), estimate(maml),
                    estimate(np.log(maml / nal)), condition, noise)
        found.append(duel)
    return found


def harder_to_optimise(found: list[Duel]) -> str:
    """The verdict on claim L1 (b): the lower end of the ratio of steps is above 1 in all mixtures,
    in some, in none."""
    above = [duel.ratio[1] > 1 for duel in found]
    return "holds" if all(above) else "partly" if any(above) else "fails"


def _proved(*names: str) -> str:
    return "derived" if all(proofs()[name] for name in names) else "fails"


def settle_l1(record: Record) -> Finding:
    """L1: the closed forms, and the race. The value is the least ratio of steps over mixtures."""
    found = duels(record.table)
    least = min(found, key=lambda duel: duel.ratio[1])
    parts = {
        "(a) closed forms": _proved("gap"), "(b) harder to optimise": harder_to_optimise(found),
    }
    what = f"steps MAML / NAL, least of {len(found)} mixtures"
    return Finding(parts, least.ratio[0], (least.ratio[1], least.ratio[2]), what)


def _drawn(record: Record, sweep: str) -> pd.DataFrame:
    rows: pd.DataFrame = record.table[record.table["sweep"] == sweep].sort_values("x")
    return rows


def _agrees(rows: pd.DataFrame) -> bool:
    return bool(((rows["value"] - rows["exact"]).abs() <= 4 * rows["error"]).all())


def _interval(row: pd.Series) -> tuple[float, float]:
    return float(row["value"] - 1.96 * row["error"]), float(row["value"] + 1.96 * row["error"])


def settle_l2(record: Record) -> Finding:
    """L2: the zeros of the gap, and the drawn ratio over rho_H / rho_E. The value is the ratio at
    equal hardness."""
    rows = _drawn(record, "rho_hard")
    equal = rows.iloc[-1]
    one = abs(equal["value"] - 1) <= 4 * equal["error"]
    numeric = "holds" if _agrees(rows) and one else "fails"
    parts = {"zeros": _proved("gap", "zeros"), "drawn over ρ_H/ρ_E": numeric}
    return Finding(parts, float(equal["value"]), _interval(equal),
                   "risk NAL / MAML at equal hardness")


def settle_l3(record: Record) -> Finding:
    """L3: the limit, and the drawn ratio over R and v_H. The value is the ratio at the largest
    R."""
    far, spread = _drawn(record, "distance"), _drawn(record, "var_hard")
    rises = _interval(far.iloc[-1])[0] > _interval(far.iloc[0])[1]
    falls = _interval(spread.iloc[-1])[1] < _interval(spread.iloc[0])[0]
    numeric = "holds" if _agrees(far) and _agrees(spread) and rises and falls else "fails"
    parts = {
        "limit and monotonicity": _proved("limit", "monotone"), "drawn over R and v_H": numeric,
    }
    last = far.iloc[-1]
    return Finding(parts, float(last["value"]), _interval(last),
                   f"risk NAL / MAML at R = {last['x']:g}")


def live(profile: str, part: str) -> pd.DataFrame:
    """The rows of one part, computed now in this process."""
    config = EXPERIMENT.config(profile)
    return pd.DataFrame(
        [row for point in points(config) if point["part"] == part for row in compute(config, point)]
    )


EXPERIMENT = Experiment(
    "linear", "risks of NAL and MAML on drawn tasks; steps until each is near its optimum",
    PROFILES, points, compute,
)
