"""Every fair opponent of depth on one ladder, from no step to least squares (paper D, claims D1 and
D2)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from companion import fleets, nets, tables
from companion.checks import Array
from companion.experiment import Experiment, rows_of, unless_diverged
from companion.fleets import CAP, Budget, Model, scores, train
from companion.losses import accuracy, squared_error
from companion.meta_optimizers import Params
from companion.records import Point, Record, Row
from companion.tables import Finding
from companion.tasks import Fleet
from companion.tasks.readouts import readout_fleet, spread
from companion.theory import whitening

CASE = ["kind", "model", "family", "steps"]
FAMILIES = ("neither", "inputs", "tasks", "both")  # what is spread
RATES = ("one rate", "per-step rates", "per-parameter rates")
WHITENED = ("whitened", "whitened, per-step rates", "best ridge")
LAYERS = ("1 added", "2 added", "3 added", "4 added")
DEEP = "deep"  # the number of added layers that is best on validation tasks


class Rung(NamedTuple):
    """A rule, and on which inputs it is used: as they are, or whitened with the ridge for tasks
    without structure ("free"), or the one that is best for the family ("best")."""

    rule: str = "SGD"
    ridge: str = ""


RUNGS = {"one rate": Rung("learned rate"), "per-step rates": Rung("per-step rates"),
         "per-parameter rates": Rung("Meta-SGD"), "whitened": Rung("learned rate", "free"),
         "whitened, per-step rates": Rung("per-step rates", "free"),
         "best ridge": Rung("learned rate", "best"), "matrix": Rung("KFO")}
OTHERS = ("no step", "least squares")


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
    """Every rung that differs: with one step and one tensor a rate per step is one rate, and white
    inputs need no whitening."""
    cases = [(kind, model, family, steps) for model, steps, _ in config.alphas
             for kind in config.kinds
             for family in (config.families if steps == 1 else config.longer)
             if model == "linear" or family == "inputs"]
    return [dict(zip([*CASE, "rung"], (*case, rung), strict=True))
            for case in cases for rung in _rungs(config, *case[1:])]


def _rungs(config: Config, model: str, family: str, steps: int) -> list[str]:
    def differs(rung: str) -> bool:
        once = model == "linear" and steps == 1 and "per-step" in rung
        white = RUNGS[rung].ridge and family not in ("inputs", "both")
        return not (once or white or (rung == "best ridge" and family != "both"))

    layers = LAYERS[: config.few] if model == "mlp" and steps > 1 else LAYERS
    return [*filter(differs, RUNGS), *layers, *(OTHERS if steps == 1 else ())]


def variances(config: Config, family: str) -> tuple[Array, Array]:
    """Of the inputs and, times the number of inputs, of the optima, along their axes, [dim]."""
    wide, flat = np.square(spread(config.dim, config.least, config.most)), np.ones(config.dim)
    return (wide if family in ("inputs", "both") else flat,
            wide if family in ("tasks", "both") else flat)


def fleet_of(config: Config, point: Point, alphas: Sequence[float], device: str = "cpu") -> Fleet:
    """Every inner rate of ``alphas`` at every seed."""
    inputs, optima = variances(config, point["family"])
    setting: dict[str, Any] = {"scales": np.sqrt(inputs).tolist()}
    if point["model"] == "mlp":
        setting["hidden"] = config.hidden
    else:
        setting["tasks"] = np.sqrt(optima).tolist()
    ridge = RUNGS.get(point["rung"], Rung()).ridge
    if ridge:
        family = np.diag(inputs), np.diag(optima) / config.dim, config.support
        setting["ridge"] = (whitening.best_ridge(*family) if ridge == "best"
                            else whitening.ridge_whitening(family[0], config.support).ridge)
    return readout_fleet(point["kind"], [setting | {"alpha": alpha} for alpha in alphas],
                         range(config.seeds), support=config.support, device=device)


def model_of(config: Config, point: Point) -> Model:
    """The network of a rung with its rule; added layers are as wide as the inputs of the last."""
    rung, mlp = point["rung"], point["model"] == "mlp"
    added = int(rung.split()[0]) if rung in LAYERS else 0
    body = (config.dim, config.hidden) if mlp else (config.dim,)
    net = nets.mlp((*body, *[body[-1]] * added, 1), "tanh", bias=mlp, linear_layers=added)
    return Model(net, method="nal" if rung == "no step" else "maml", steps=point["steps"],
                 rule=RUNGS.get(rung, Rung()).rule)


def measure(config: Config, point: Point, device: str) -> list[Row]:
    """A row for every inner rate and seed: risk and accuracy on new tasks after each number of
    inner steps, and the risk on validation tasks after those trained for."""
    model, rung = model_of(config, point), point["rung"]
    ks = config.ks if rung not in OTHERS else (0,) * len(config.ks)

    def rows(alphas: Sequence[float]) -> list[Row]:
        fleet = fleet_of(config, point, alphas, device)
        if rung == "least squares":
            risk, right = least_squares(config, fleet)
        else:
            params = train(fleet, model, config.budget, begin=begin(config, fleet, model))
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


def begin(config: Config, fleet: Fleet, model: Model) -> Params:
    """Where runs start, rates per step from slow to fast if there are several."""
    params = fleets.start(fleet, model)
    ends = np.log(config.apart) * (model.steps > 1)
    scales = torch.linspace(-ends, ends, model.steps).exp().to(fleet.alpha)
    return {name: value * scales if name.endswith(".scales") else value
            for name, value in params.items()}


def least_squares(config: Config, fleet: Fleet) -> tuple[Array, Array]:
    """Risk and accuracy of the linear model of least squared error on the support, the shortest
    one, [run, k]: the same for every k. Its outputs for classes are no logits: no risk."""
    apply = nets.linear(config.dim).apply
    loss, right = squared_error(apply), accuracy(apply)

    def judge(params: Params, drawn: Any, *settings: Any) -> tuple[torch.Tensor, torch.Tensor]:
        (x, y), query = fleet.make(drawn, *settings[:-1])
        fitted = {"0.weight": (torch.linalg.pinv(x) @ (y - 0.5 if fleet.classes else y))[None]}
        none = x.new_tensor(torch.nan)
        return (none, right(fitted, query)) if fleet.classes else (loss(fitted, query), none)

    found = fleets.measure(fleet, judge, {}, config.budget)
    risk, shares = (np.repeat(part.numpy().mean(1)[:, None], len(config.ks), 1) for part in found)
    return risk, shares


def at_best(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of every rung at its best start rate on validation tasks, and those of DEEP, with
    the risk ``after`` the steps trained for, and the accuracy ``right``."""
    best = tables.best(table, [*CASE, "rung"])
    layers = tables.where(best, rung=LAYERS)
    deep = tables.best(layers, CASE, choice="rung").assign(rung=DEEP)
    every = pd.concat([best, deep], ignore_index=True)
    for name, column in (("after", "risk"), ("right", "accuracy")):
        every[name] = [row[f"{column}_{row['steps']}"] for _, row in every.iterrows()]
    return every


def over(table: pd.DataFrame, base: str) -> pd.DataFrame:
    """Risk of every rung over that of the rung ``base``, after the steps trained for."""
    rows = at_best(table).dropna(subset="after")
    return tables.contrast(rows, [*CASE, "rung"], "after", {"rung": base})


def above(base: str, rungs: Sequence[str], record: Record) -> Finding:
    """Is the risk of each of ``rungs`` larger than that of the rung ``base``, wherever something is
    spread?"""
    rows = over(record.table, base)
    rows = tables.where(rows[rows["family"] != "neither"], rung=tuple(rungs))
    return tables.judge(rows, f"risk of shallow / {base}", [*CASE, "rung"], above=1)


def gain(record: Record) -> Finding:
    """D2: plain with a learned rate has a larger risk than with layers added, after one step,
    unless nothing is spread."""
    best = tables.where(at_best(record.table), steps=1).dropna(subset="after")
    rows = pd.concat([tables.contrast(tables.where(best, rung=("one rate", layers)),
                                      [*CASE, "rung"], "after", {"rung": "one rate"}, swap=True)
                      for layers in LAYERS])
    rows = rows[rows["family"] != "neither"].reset_index(drop=True)
    return tables.judge(rows, "risk of plain, learned rate / with layers",
                        ["kind", "model", "family", "rung"], above=1)


EXPERIMENT = Experiment(
    "ladder", "depth beside every opponent, from no step to least squares", PROFILES, points,
    measure, devices=("cuda", "cpu"), findings={
        "D1/rates": partial(above, DEEP, RATES), "D1/whitened": partial(above, DEEP, WHITENED),
        "D1/matrix": partial(above, DEEP, ("matrix",)), "D2/gain": gain,
        "D3/every rate": partial(above, "matrix", RATES)})
