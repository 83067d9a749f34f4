"""Shallow and deep linear models on tasks that a shallow one solves (paper D)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pandas as pd

from companion import nets, tables
from companion.experiment import Experiment, rows_of, unless_diverged
from companion.fleets import CAP, Budget, Model, scores, train
from companion.records import Point, Row
from companion.tasks import Fleet
from companion.tasks.readouts import readout_fleet, spread

MODEL = ["kind", "inputs", "train_steps", "model"]  # what names a model
KINDS = ("regression", "boundaries")


@dataclass(frozen=True)
class Config:
    """The grid and its cost. ``alphas`` are the inner rates relative to the largest curvature, by
    the steps trained for: several of the largest in a row can diverge before anything is learned.
    Spread inputs have standard deviations from ``least`` to ``most``."""

    alphas: Sequence[tuple[int, Sequence[float]]] = (
        (1, (0.03, 0.1, 0.3, 1.0, 3.0)), (5, (0.03, 0.1, 0.3)))
    dim: int = 10
    support: int = 20
    least: float = 0.1
    most: float = 3.0
    ks: Sequence[int] = (0, 1, 2, 3, 5, 7, 10)
    seeds: int = 20
    budget: Budget = Budget(steps=1500, tasks=20, rate=0.02, query=50, test_tasks=500,
                            test_query=200)


PROFILES = {
    "quick": Config(alphas=((1, (0.1, 1.0)),), seeds=6,
                    budget=replace(Config.budget, steps=300, test_tasks=200)),
    "full": Config(),
}


def models(config: Config, steps: int) -> dict[str, Model]:
    """All compute y = w.x; the deep one as b.(A.T x), A square."""
    plain, deep = nets.linear(config.dim), nets.deep_linear((config.dim, config.dim, 1))
    return {"shallow": Model(plain, steps=steps),
            "shallow, learned rate": Model(plain, rule="learned rate", steps=steps),
            "deep": Model(deep, steps=steps)}


def points(config: Config) -> list[Point]:
    """Every model on every kind of task, a fleet of all its inner rates; isotropic inputs for
    training by one step alone."""
    return [{"kind": kind, "inputs": inputs, "train_steps": steps, "model": model}
            for steps, _ in config.alphas
            for kind in KINDS
            for inputs in (("isotropic", "spread") if steps == 1 else ("spread",))
            for model in models(config, steps)]


def fleet_of(config: Config, point: Point, alphas: Sequence[float], device: str = "cpu") -> Fleet:
    """Every inner rate of ``alphas`` at every seed."""
    scales = spread(config.dim, config.least, config.most, point["inputs"])
    return readout_fleet(point["kind"], [{"scales": scales, "alpha": alpha} for alpha in alphas],
                         range(config.seeds), support=config.support, device=device)


def measure(config: Config, point: Point, device: str) -> list[Row]:
    """A row for every inner rate and seed: risk and accuracy on new tasks after each number of
    inner steps, and the risk on validation tasks after those trained for."""
    model = models(config, point["train_steps"])[point["model"]]

    def rows(alphas: Sequence[float]) -> list[Row]:
        fleet = fleet_of(config, point, alphas, device)
        params = train(fleet, model, config.budget)
        risk, accuracy = scores(fleet, model, params, config.budget, config.ks).means
        valid = scores(fleet, model, params, config.budget, [model.steps], purpose="validate").means
        columns = {"valid": valid.risk[:, 0]}
        columns |= {f"risk_{k}": risk[:, j] for j, k in enumerate(config.ks)}
        columns |= {f"accuracy_{k}": accuracy[:, j] for j, k in enumerate(config.ks)}
        return rows_of(point, alphas, fleet.seeds, columns)

    lost: Row = {"valid": CAP} | {f"risk_{k}": CAP for k in config.ks}
    lost |= {f"accuracy_{k}": None for k in config.ks}
    return unless_diverged(rows, dict(config.alphas)[point["train_steps"]], point, config.seeds,
                           lost)


def at_best(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of every model at its best inner rate on validation tasks, with the risk ``after``
    the steps trained for."""
    best = tables.best(table, MODEL)
    return best.assign(after=[row[f"risk_{row['train_steps']}"] for _, row in best.iterrows()])


def gains(table: pd.DataFrame) -> pd.DataFrame:
    """Risk of every model over that of the deep one, each at its own best rate, after the steps
    trained for."""
    return tables.contrast(at_best(table), MODEL, "after", {"model": "deep"})


EXPERIMENT = Experiment("shallow", "shallow and deep linear models on regression and boundaries",
                        PROFILES, points, measure, devices=("cuda", "cpu"))
