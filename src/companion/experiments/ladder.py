"""Every fair opponent of depth on one ladder, from no step to least squares (paper D, claims D1 and
D2)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from companion import tables
from companion.experiment import Experiment, rows_of, unless_diverged
from companion.experiments.rungs import (
    CASE,
    DEEP,
    FAMILIES,
    LAYERS,
    OTHERS,
    RATES,
    WHITENED,
    at_best,
    begin,
    differing,
    model_of,
    over,
    setting,
)
from companion.fleets import CAP, Budget, scores, train
from companion.measures.least_squares import least_squares
from companion.records import Point, Record, Row
from companion.tables import Finding
from companion.tasks import Fleet
from companion.tasks.readouts import readout_fleet


@dataclass(frozen=True)
class Config:
    """Models trained for several steps are on the families ``longer`` alone; MLPs are on spread
    inputs, and have at most ``few`` layers more where they are trained for several steps.
    ``alphas`` are inner rates to start from, relative to the largest curvature, by model and steps
    trained for. Rates per step start from 1/``apart`` to ``apart`` times that: steps of a linear
    model on one support can change places, so that equal rates would stay equal. Variances are the
    squares of numbers from ``least`` to ``most``, or 1."""

    kinds: Sequence[str] = ("regression", "boundaries")
    families: Sequence[str] = FAMILIES
    longer: Sequence[str] = ("inputs", "tasks")
    alphas: Sequence[tuple[str, int, Sequence[float]]] = (
        ("linear", 1, (0.3, 1.0)), ("linear", 5, (0.03, 0.1, 0.3)), ("mlp", 1, (0.3, 1.0)),
        ("mlp", 5, (0.3, 1.0)))
    apart: float = 8.0
    few: int = 2
    dim: int = 10
    support: int = 20
    least: float = 0.1
    most: float = 3.0
    hidden: int = 20
    ks: Sequence[int] = (0, 1, 3, 5, 10)
    seeds: int = 20
    budget: Budget = Budget(steps=600, tasks=20, rate=0.02, query=50, test_tasks=300,
                            test_query=100)


PROFILES = {
    "quick": Config(kinds=("regression",), families=("inputs", "tasks"),
                    alphas=(("linear", 1, (1.0,)),), seeds=5,
                    budget=replace(Config.budget, steps=250, test_tasks=200)),
    "full": Config(),
}


def points(config: Config) -> list[Point]:
    """Every rung that differs, in every case."""
    cases = [(kind, model, family, steps) for model, steps, _ in config.alphas
             for kind in config.kinds
             for family in (config.families if steps == 1 else config.longer)
             if model == "linear" or family == "inputs"]
    found: list[Point] = []
    for case in cases:
        _, model, family, steps = case
        layers = LAYERS[: config.few] if model == "mlp" and steps > 1 else LAYERS
        every = (*differing(model, family, steps), *layers, *(OTHERS if steps == 1 else ()))
        found += [dict(zip([*CASE, "rung"], (*case, rung), strict=True)) for rung in every]
    return found


def fleet_of(config: Config, point: Point, alphas: Sequence[float], device: str = "cpu") -> Fleet:
    """Every inner rate of ``alphas`` at every seed."""
    each = setting(point["rung"], point["family"], (config.dim, config.least, config.most),
                   config.support, config.hidden if point["model"] == "mlp" else 0)
    return readout_fleet(point["kind"], [each | {"alpha": alpha} for alpha in alphas],
                         range(config.seeds), support=config.support, device=device)


def measure(config: Config, point: Point, device: str) -> list[Row]:
    """A row for every inner rate and seed: risk and accuracy on new tasks after each number of
    inner steps, and the risk on validation tasks after those trained for."""
    rung, hidden = point["rung"], config.hidden if point["model"] == "mlp" else 0
    model = model_of(rung, point["steps"], config.dim, hidden)
    ks = config.ks if rung not in OTHERS else (0,) * len(config.ks)

    def rows(alphas: Sequence[float]) -> list[Row]:
        fleet = fleet_of(config, point, alphas, device)
        if rung == "least squares":
            risk, right = (np.repeat(part[:, None], len(config.ks), 1) for part in
                           least_squares(fleet, config.dim, config.budget))
        else:
            params = train(fleet, model, config.budget, begin=begin(fleet, model, config.apart))
            risk, right = scores(fleet, model, params, config.budget, ks).means
        valid = np.zeros(len(risk)) if rung in OTHERS else scores(
            fleet, model, params, config.budget, [model.steps], purpose="validate").means.risk[:, 0]
        columns = {"valid": valid} | {f"risk_{k}": risk[:, j] for j, k in enumerate(config.ks)}
        columns |= {f"accuracy_{k}": right[:, j] for j, k in enumerate(config.ks)}
        return rows_of(point, alphas, fleet.seeds, columns)

    lost: Row = {"valid": CAP} | {f"risk_{k}": CAP for k in config.ks}
    lost |= {f"accuracy_{k}": None for k in config.ks}
    (alphas,) = (rates for *named, rates in config.alphas
                 if named == [point["model"], point["steps"]])
    return unless_diverged(rows, alphas[:1] if rung in OTHERS else alphas, point, config.seeds,
                           lost)


def above(base: str, rungs: Sequence[str], record: Record) -> Finding:
    """Is the risk of each of ``rungs`` larger than that of the rung ``base``, wherever something is
    spread?"""
    rows = over(record.table, base, rungs)
    rows = rows[rows["family"] != "neither"].reset_index(drop=True)
    return tables.judge(rows, f"risk of shallow / {base}", [*CASE, "rung"], above=1)


def gain(record: Record) -> Finding:
    """D2: plain with a learned rate has a larger risk than with layers added, after one step,
    unless nothing is spread."""
    rows = tables.where(at_best(record.table), steps=1, rung=("one rate", *LAYERS))
    rows = tables.contrast(rows[rows["family"] != "neither"], [*CASE, "rung"], "after",
                           {"rung": "one rate"}, swap=True)
    return tables.judge(rows, "risk of plain, learned rate / with layers",
                        ["kind", "model", "family", "rung"], above=1)


EXPERIMENT = Experiment(
    "ladder", "depth beside every opponent, from no step to least squares", PROFILES, points,
    measure, devices=("cuda", "cpu"), findings={
        "D1/rates": partial(above, DEEP, RATES), "D1/whitened": partial(above, DEEP, WHITENED),
        "D1/matrix": partial(above, DEEP, ("matrix",)), "D2/gain": gain,
        "D3/every rate": partial(above, "matrix", RATES)})
