"""Which half of a model must adapt in the inner loop for depth to gain (paper D, claim D4)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from companion import nets, tables
from companion.checks import Array
from companion.evaluation import bootstrap
from companion.experiment import Experiment, rows_of, unless_diverged
from companion.fleets import CAP, Budget, Model, scores, train
from companion.records import Point, Record, Row
from companion.tables import Finding
from companion.tasks import Fleet
from companion.tasks.readouts import readout_fleet, spread
from companion.theory.halves import half_risks

CASE, COLUMNS = ["family", "model"], ("risk_0", "risk_1", "accuracy_1", "valid")


@dataclass(frozen=True)
class Config:
    """Start rates ``alphas`` are relative to the largest curvature. What is spread has standard
    deviations from ``least`` to ``most``; ``noise`` is for spread outputs, ``hidden`` for MLPs."""

    families: Sequence[str] = ("inputs", "tasks, inputs", "tasks, outputs", "both", "boundaries")
    dim: int = 10
    outputs: int = 5
    support: int = 20
    least: float = 0.1
    most: float = 3.0
    noise: float = 2.0
    hidden: int = 20
    alphas: Sequence[tuple[str, Sequence[float]]] = (
        ("linear", (0.3, 1.0)), ("mlp", (0.1, 0.3, 1.0)))
    seeds: int = 20
    budget: Budget = Budget(600, 20, 0.02, query=50, test_tasks=300, test_query=100)


PROFILES = {"quick": Config(
    families=("tasks, inputs", "tasks, outputs"), alphas=(("linear", (1.0,)),), seeds=5,
    budget=replace(Config.budget, steps=250, test_tasks=200)), "full": Config()}


def points(config: Config) -> list[Point]:
    """A fleet for every family, model, and what adapts; "one rate" is the model without depth."""
    return [{"family": family, "model": model, "adapting": arm} for family in config.families
            for model, _ in config.alphas for arm in ("one rate", "both", "bottom", "top")]


def setting(config: Config, family: str, hidden: int = 0) -> dict[str, Any]:
    """Arguments of :func:`companion.tasks.readouts.readout`: the inputs are spread, or the tasks
    along the inputs (or ``hidden`` features), along the outputs, or along both."""
    def scales(count: int, *wide: str) -> tuple[float, ...]:
        return spread(count, config.least, config.most, "spread" if family in wide else "isotropic")

    return {"scales": scales(config.dim, "inputs", "boundaries"), "outputs": config.outputs,
            "tasks": scales(hidden or config.dim, "tasks, inputs", "both"), "hidden": hidden,
            "output_scales": scales(config.outputs, "tasks, outputs", "both"),
            "noise": config.noise if family in ("tasks, outputs", "both") else 0.0}


def fleet_of(config: Config, point: Point, alphas: Sequence[float], device: str = "cpu") -> Fleet:
    """Every start rate of ``alphas`` at every seed."""
    kind = "boundaries" if point["family"] == "boundaries" else "regression"
    each = setting(config, point["family"], config.hidden if point["model"] == "mlp" else 0)
    return readout_fleet(kind, [each | {"alpha": alpha} for alpha in alphas], range(config.seeds),
                         support=config.support, device=device)


def model_of(config: Config, point: Point) -> Model:
    """The network of a point, and what adapts: the last layer is the top, those below the bottom.
    Depth is a linear layer below the last, wide enough for U B = 0 with any preconditioner."""
    mlp, arm = point["model"] == "mlp", point["adapting"]
    body = (config.dim, config.hidden) if mlp else (config.dim,)
    added = () if arm == "one rate" else (body[-1] + config.outputs,)
    net = nets.mlp((*body, *added, config.outputs), "tanh", bias=mlp, linear_layers=len(added))
    if arm not in ("bottom", "top"):
        return Model(net, rule="SGD" if added else "learned rate")
    layers = (len(body),) if arm == "top" else range(len(body))
    parts = ("weight", "bias") if mlp else ("weight",)
    return Model(net, adapted=tuple(f"{layer}.{part}" for layer in layers for part in parts))


def measure(config: Config, point: Point, device: str) -> list[Row]:
    """A row for every start rate and seed: risk before and after one inner step, and accuracy."""
    model, budget = model_of(config, point), config.budget

    def rows(alphas: Sequence[float]) -> list[Row]:
        fleet = fleet_of(config, point, alphas, device)
        params = train(fleet, model, budget)
        risk, accuracy = scores(fleet, model, params, budget, (0, 1)).means
        valid = scores(fleet, model, params, budget, (1,), purpose="validate").means.risk[:, 0]
        found = (*risk.T, accuracy[:, 1], valid)
        return rows_of(point, alphas, fleet.seeds, dict(zip(COLUMNS, found, strict=True)))

    lost: Row = dict(zip(COLUMNS, (CAP, CAP, None, CAP), strict=True))
    return unless_diverged(rows, dict(config.alphas)[point["model"]], point, config.seeds, lost)


def floors(config: Config, family: str) -> dict[str, float]:
    """What :func:`companion.theory.halves.half_risks` has for a family of linear regressions."""
    each = setting(config, family)
    inputs, tasks, outputs = (np.square(each[n]) for n in ("scales", "tasks", "output_scales"))
    return half_risks(inputs, tasks / config.dim, outputs, config.support, each["noise"])


def gains(table: pd.DataFrame) -> pd.DataFrame:
    """The risk after one step of "one rate" over that of "both", each at its best start rate."""
    arms = [*CASE, "adapting"]
    rows = tables.contrast(tables.best(table, arms), arms, "risk_1", {"adapting": "both"})
    return tables.where(rows, adapting="one rate").drop(columns="adapting")


def share(risks: Array) -> Array:
    """(one rate - half) / (one rate - both) in means over seeds, [..., seed, 3] -> [...]."""
    one, half, both = np.moveaxis(risks.mean(-2), -1, 0)
    return np.asarray((one - half) / (one - both))


def kept(table: pd.DataFrame) -> pd.DataFrame:
    """The :func:`share` of the gain that either half keeps; any number where there is no gain."""
    found = []
    for key, rows in tables.best(table, [*CASE, "adapting"]).groupby(CASE, sort=False):
        for half in ("bottom", "top"):
            arms = ("one rate", half, "both")
            risks = np.stack([tables.by_seed(rows, "risk_1", adapting=arm) for arm in arms], axis=1)
            found.append({**dict(zip(CASE, key, strict=True)), "adapting": half,
                          **tables.columns(bootstrap(share, risks))})
    return pd.DataFrame(found)


def who_transforms_whom(record: Record) -> Finding:
    """D4: the bottom alone keeps half of what depth gains, wherever it clearly gains 2 %."""
    clear = (gains(record.table).set_index(CASE)["low"] > 1.02).rename("clear")
    shares = tables.where(kept(record.table), adapting="bottom").join(clear, on=CASE)
    what, small = "share of the gain kept by the bottom alone", shares[~shares["clear"]]
    if len(small):
        names = "; ".join(f"{row['family']}, {row['model']}" for _, row in small.iterrows())
        what += f" (not asked of {names}: depth gains too little)"
    if len(small) == len(shares):
        return Finding("inconclusive", what=what)
    return tables.judge(shares[shares["clear"]], what, CASE, above=0.5)


EXPERIMENT = Experiment("freezing", "which half of a model must adapt", PROFILES, points, measure,
                        {"D4/who transforms whom": who_transforms_whom}, ("cuda", "cpu"))
