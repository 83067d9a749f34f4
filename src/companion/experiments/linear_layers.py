"""Linear layers added at the output, multiplied out, and frozen (paper D, claim D2)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from companion import nets, tables
from companion.experiment import Experiment, rows_of, unless_diverged
from companion.fleets import CAP, Budget, Model, scores, train
from companion.measures.collapse import COLLAPSED, collapsed
from companion.records import Point, Record, Row
from companion.tasks import Fleet
from companion.tasks.readouts import readout_fleet, spread

MODEL = ["kind", "inputs", "frozen", "added", "width"]  # what names a model


@dataclass(frozen=True)
class Config:
    """Inner rates ``alphas``, and the ``rates`` that collapsed models try, are relative to the
    largest curvature. ``widths`` are those of added layers, the usual one first, and half of an
    MLP's; it has ``hidden`` units and features."""

    kinds: Sequence[str] = ("regression", "boundaries", "mlp")
    dim: int = 10
    support: int = 20
    least: float = 0.1
    most: float = 3.0
    hidden: int = 20
    added: Sequence[int] = (0, 1, 2, 3, 4)
    widths: Sequence[int] = (10, 1, 2, 5, 20)
    frozen_layers: int = 2
    alphas: Sequence[float] = (0.2, 1.0)
    rates: Sequence[float] = tuple(np.geomspace(0.03, 30, 16).round(4).tolist())
    ks: Sequence[int] = (0, 1, 3)
    seeds: int = 20
    budget: Budget = Budget(steps=800, tasks=20, rate=0.02, query=50, test_tasks=300,
                            test_query=100)


PROFILES = {"quick": Config(
    added=(0, 1, 2), widths=(10, 2), alphas=(0.2,), seeds=5, frozen_layers=1,
    budget=replace(Config.budget, steps=250, test_tasks=200)),
    "full": Config()}


def points(config: Config) -> list[Point]:
    """A fleet for every number of added layers, width of one, and set of frozen ones."""
    usual, *others = config.widths
    found: list[Point] = []
    for kind in config.kinds:
        base: Point = {"kind": kind, "inputs": "spread", "frozen": "none"}
        added = [{"added": added, "width": usual} for added in config.added]
        found += [{**base, **layers} for layers in added]
        if kind != "mlp":
            found += [{**base, "added": 1, "width": width} for width in others]
            found += [{**base, "inputs": "isotropic", **layers} for layers in added]
        top = config.frozen_layers + (1 if kind != "mlp" else 2)
        found += [{**base, "added": config.frozen_layers, "width": usual, "frozen": f"{side} {n}"}
                  for side in ("bottom", "top") for n in range(1, top)]
    return found


def fleet_of(config: Config, point: Point, alphas: Sequence[float], device: str = "cpu") -> Fleet:
    """Every inner rate of ``alphas`` at every seed."""
    scales = spread(config.dim, config.least, config.most, point["inputs"])
    kind, hidden = ("regression", config.hidden) if point["kind"] == "mlp" else (point["kind"], 0)
    return readout_fleet(kind, [{"scales": scales, "hidden": hidden, "alpha": a} for a in alphas],
                         range(config.seeds), support=config.support, device=device)


def model_of(config: Config, point: Point) -> Model:
    """The network of a point; which layers adapt, if some are frozen."""
    added, mlp = point["added"], point["kind"] == "mlp"
    body = (config.dim, config.hidden) if mlp else (config.dim,)
    width = point["width"] * (2 if mlp else 1)
    net = nets.mlp((*body, *[width] * added, 1), "tanh", bias=mlp, linear_layers=added)
    if point["frozen"] == "none":
        return Model(net)
    side, count = point["frozen"].split()
    layers = range(added + len(body))
    kept = layers[int(count) :] if side == "bottom" else layers[: -int(count)]
    parts = ("weight", "bias") if mlp else ("weight",)
    return Model(net, adapted=tuple(f"{layer}.{part}" for layer in kept for part in parts))


def measure(config: Config, point: Point, device: str) -> list[Row]:
    """A row for every inner rate and seed: risks of the model, and of what it collapses to."""
    model, budget = model_of(config, point), config.budget

    def rows(alphas: Sequence[float]) -> list[Row]:
        fleet = fleet_of(config, point, alphas, device)
        params = train(fleet, model, budget)
        risk, accuracy = scores(fleet, model, params, budget, config.ks).means
        valid = scores(fleet, model, params, budget, [1], purpose="validate").means
        columns: dict[str, Any] = {f"risk_{k}": risk[:, j] for j, k in enumerate(config.ks)}
        columns |= {f"accuracy_{k}": accuracy[:, j] for j, k in enumerate(config.ks)}
        columns |= {"valid": valid.risk[:, 0]} | dict.fromkeys(COLLAPSED, np.full(len(risk), None))
        if point["added"] and point["frozen"] == "none":
            plain = model_of(config, {**point, "added": 0})
            columns |= collapsed(fleet, model, plain, params, point["added"], budget, config.rates,
                                 np.repeat(alphas, config.seeds))
        return rows_of(point, alphas, fleet.seeds, columns)

    lost: Row = {f"risk_{k}": CAP for k in config.ks} | {f"accuracy_{k}": None for k in config.ks}
    lost |= {"valid": CAP} | dict.fromkeys(COLLAPSED)
    return unless_diverged(rows, config.alphas, point, config.seeds, lost)


def gains(table: pd.DataFrame, column: str | None = None) -> pd.DataFrame:
    """The risk after one step of plain over that with added layers, each at its best inner rate;
    or of what those layers collapse to, a ``column``, over them."""
    best = tables.best(table, MODEL)
    if column is not None:
        return tables.contrast(best.dropna(subset=column), MODEL, column, "risk_1")
    return tables.contrast(best, MODEL, "risk_1", baseline(table), swap=True)


def baseline(table: pd.DataFrame) -> dict[str, Any]:
    """What names the plain model: no added layer, of the usual width, that of the first point."""
    return {"added": 0, "width": table["width"].iloc[0]}


def collapses(table: pd.DataFrame) -> pd.DataFrame:
    """The collapsed model over the plain one meta-trained at the same inner rate, in risk after
    one step; rates at which a run was lost are left out."""
    risks = table["collapsed"].where(table["added"] > 0, table["risk_1"])
    rows = table.assign(collapsed=risks).dropna(subset="collapsed")
    return tables.contrast(rows, [*MODEL, "alpha"], "collapsed", baseline(table))


def asked(record: Record) -> pd.DataFrame:
    """The rows that the claim is about: spread inputs, layers of the usual width."""
    return tables.where(record.table, inputs="spread", width=baseline(record.table)["width"])


EXPERIMENT = Experiment(
    "linear_layers", "linear layers added at the output, multiplied out, and frozen", PROFILES,
    points, measure, devices=("cuda", "cpu"), findings={
        "D2/collapse": lambda record: tables.judge(
            collapses(asked(record)), "risk of collapsed / plain", ["kind", "added", "alpha"],
            above=0.99),
        "D2/own rate": lambda record: tables.judge(
            gains(asked(record), "collapsed_tuned"),
            "risk of collapsed at its own rate / with layers", ["kind", "added"], above=1)})
