"""Linear layers added at the output, multiplied out, and frozen (paper D, claim D2)."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from companion import nets, tables
from companion.experiment import Experiment, rows_of, unless_diverged
from companion.experiments.collapse import best_rate, multiplied_out, scaled
from companion.fleets import CAP, Budget, Model, scores, train
from companion.records import Point, Record, Row
from companion.tables import Finding
from companion.tasks import Fleet
from companion.tasks.readouts import readout_fleet, spread

MODEL = ["kind", "inputs", "frozen", "added", "width"]  # what names a model
COLLAPSED = ("off", "collapsed", "collapsed_rate", "collapsed_tuned")


@dataclass(frozen=True)
class Config:
    """``alphas`` are inner rates relative to the largest curvature, as are the ``rates`` that
    collapsed models try. ``widths`` are those of the added layers, the usual
    one first; an MLP has ``hidden`` units and features, and added layers of twice that width."""

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
    rates: Sequence[float] = field(
        default_factory=lambda: tuple(np.geomspace(0.03, 30, 16).round(4).tolist()))
    ks: Sequence[int] = (0, 1, 3)
    seeds: int = 20
    budget: Budget = Budget(steps=800, tasks=20, rate=0.02, query=50, test_tasks=300,
                            test_query=100)


PROFILES = {
    "quick": Config(added=(0, 1, 2), widths=(10, 2), alphas=(0.2,), seeds=5, frozen_layers=1,
                    budget=Budget(steps=250, tasks=20, rate=0.02, query=50, test_tasks=200,
                                  test_query=100)),
    "full": Config(),
}


def points(config: Config) -> list[Point]:
    """A fleet for every number of added layers, every width of one added layer, and every set of
    frozen layers."""
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
        found += [{**base, "added": config.frozen_layers, "width": usual,
                   "frozen": f"{side} {count}"}
                  for side in ("bottom", "top") for count in range(1, top)]
    return found


def fleet_of(config: Config, point: Point, alphas: Sequence[float], device: str = "cpu") -> Fleet:
    """Every inner rate of ``alphas`` at every seed."""
    setting = {"scales": spread(config.dim, config.least, config.most, point["inputs"]),
               "hidden": config.hidden if point["kind"] == "mlp" else 0}
    kind = "boundaries" if point["kind"] == "boundaries" else "regression"
    return readout_fleet(kind, [setting | {"alpha": alpha} for alpha in alphas],
                         range(config.seeds), support=config.support, device=device)


def model_of(config: Config, point: Point, added: int | None = None) -> Model:
    """The network of a point, with another number of added layers if named; which layers adapt, if
    some are frozen."""
    added = point["added"] if added is None else added
    mlp = point["kind"] == "mlp"
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
    """A row for every inner rate and seed: risks of the model, and of what it collapses to, at the
    same rate and at its own best one."""
    model, budget = model_of(config, point), config.budget

    def rows(alphas: Sequence[float]) -> list[Row]:
        fleet = fleet_of(config, point, alphas, device)
        params = train(fleet, model, budget)
        risk, accuracy = scores(fleet, model, params, budget, config.ks).means
        columns: dict[str, Any] = {f"risk_{k}": risk[:, j] for j, k in enumerate(config.ks)}
        columns |= {f"accuracy_{k}": accuracy[:, j] for j, k in enumerate(config.ks)}
        valid = scores(fleet, model, params, budget, [1], purpose="validate").means
        columns |= {"valid": valid.risk[:, 0]} | dict.fromkeys(COLLAPSED, np.full(len(risk), None))
        if point["added"] and point["frozen"] == "none":
            plain, relative = model_of(config, point, added=0), np.repeat(alphas, config.seeds)
            product, off = multiplied_out(fleet, model, plain, params, point["added"])
            rate = best_rate(fleet, plain, product, budget, config.rates, relative)
            after = [scores(each, plain, product, budget, [1]).means.risk[:, 0]
                     for each in (fleet, scaled(fleet, rate / relative))]
            columns |= dict(zip(COLLAPSED, (off, after[0], rate, after[1]), strict=True))
        return rows_of(point, alphas, fleet.seeds, columns)

    lost: Row = {f"risk_{k}": CAP for k in config.ks}
    lost |= {f"accuracy_{k}": None for k in config.ks}
    lost |= {"valid": CAP} | dict.fromkeys(COLLAPSED)
    return unless_diverged(rows, config.alphas, point, config.seeds, lost)


def gains(table: pd.DataFrame, column: str | None = None) -> pd.DataFrame:
    """The risk after one step of plain over that with added layers, each at its best inner rate;
    or of what those layers collapse to, a ``column``, over them."""
    best = tables.where(tables.best(table, MODEL), frozen="none")
    usual = table["width"].iloc[0]
    if column is None:
        rows = [tables.contrast(tables.where(best, width=(width, usual)), MODEL, "risk_1",
                                {"added": 0, "width": usual}, swap=True)
                for width in best["width"].unique()]
        found = pd.concat(rows).drop_duplicates(MODEL)
    else:
        found = tables.contrast(best[best["added"] > 0], MODEL, column, "risk_1")
    return found.reset_index(drop=True)


def collapses(table: pd.DataFrame) -> pd.DataFrame:
    """The collapsed model over the plain one meta-trained at the same inner rate, in risk after
    one step; rates at which a run was lost are left out."""
    kept = table[(table["added"] > 0) & table["collapsed"].notna()]
    plain = tables.where(table, added=0, frozen="none")
    both = kept.merge(plain[["kind", "inputs", "alpha", "seed", "risk_1"]], suffixes=("", "_plain"),
                      on=["kind", "inputs", "alpha", "seed"])
    return tables.contrast(both, [*MODEL, "alpha"], "collapsed", "risk_1_plain")


def frozen(table: pd.DataFrame) -> pd.DataFrame:
    """Models with frozen layers over the same with none frozen, each at its best inner rate."""
    return tables.contrast(tables.best(table, MODEL), MODEL, "risk_1", {"frozen": "none"})


def usual(rows: pd.DataFrame, record: Record) -> pd.DataFrame:
    """The rows that the claim is about: spread inputs, layers of the usual width."""
    return tables.where(rows, inputs="spread", width=record.provenance["config"]["widths"][0])


def gain(record: Record) -> Finding:
    """D2: the model with added layers beats plain."""
    return tables.judge(usual(gains(record.table), record), "risk of plain / with layers",
                        ["kind", "added"], above=1)


def no_better(record: Record) -> Finding:
    """D2: the collapsed model is no better than plain at the same inner rate (at least .99)."""
    return tables.judge(usual(collapses(record.table), record), "risk of collapsed / plain",
                        ["kind", "added", "alpha"], above=0.99)


def at_own_rate(record: Record) -> Finding:
    """D2: nor is it as good as the model with layers at its own best scalar rate."""
    return tables.judge(usual(gains(record.table, "collapsed_tuned"), record),
                        "risk of collapsed at its own rate / with layers", ["kind", "added"],
                        above=1)


EXPERIMENT = Experiment(
    "linear_layers", "linear layers added at the output, multiplied out, and frozen", PROFILES,
    points, measure,
    {"D2/gain": gain, "D2/collapse": no_better, "D2/own rate": at_own_rate}, ("cuda", "cpu"))
