"""The experiment `linear_layers`: linear layers added at the output, multiplied out, and frozen
(paper D)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.func import vmap

from companion import nets
from companion.checks import Array
from companion.claims import Finding, all_or_some
from companion.evaluation import interval_columns
from companion.experiments import Experiment, shallow, synthetic
from companion.experiments.synthetic import Fleet, Model, Sizes
from companion.meta_optimizers import Params
from companion.records import Record, Row
from companion.sweeps import Point

KINDS = ("regression", "boundaries", "mlp")
STEPS = (0, 1, 3)
_KEYS = ["kind", "inputs", "frozen", "added", "width"]  # what names a model
SLACK = 0.99  # a collapsed model counts as no better than plain if its risk is at least this share


@dataclass(frozen=True)
class Config:
    """Sizes. ``alphas`` are relative to the largest curvature, as are the ``rates`` that collapsed
    models try.

    ``widths`` are those of the added layers, the usual one first; an MLP has ``hidden`` units and
    features, and added layers of twice the usual width.
    """

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
        default_factory=lambda: tuple(np.geomspace(0.03, 30, 16).round(4).tolist())
    )
    seeds: int = 20
    tasks: int = 20
    steps: int = 800
    rate: float = 0.02
    query: int = 50
    test_tasks: int = 300
    test_query: int = 100


PROFILES = {"quick": Config(added=(0, 1, 2), widths=(10, 2), alphas=(0.2,), seeds=5, steps=250,
                            test_tasks=200, frozen_layers=1),
            "full": Config()}


def points(config: Config) -> list[Point]:
    """A fleet for every number of added layers, every width of one added layer, and every set of
    frozen layers."""
    usual, *others = config.widths
    found: list[Point] = []
    for kind in KINDS:
        told: dict[str, Any] = {"kind": kind, "inputs": "spread", "frozen": "none"}
        found += [told | {"added": added, "width": usual} for added in config.added]
        if kind != "mlp":
            found += [told | {"added": 1, "width": width} for width in others]
            found += [told | {"inputs": "isotropic", "added": added, "width": usual}
                      for added in config.added]
        layers = config.frozen_layers + (1 if kind != "mlp" else 2)
        found += [
            told | {"added": config.frozen_layers, "width": usual, "frozen": f"{side} {count}"}
            for side in ("bottom", "top")
            for count in range(1, layers)
        ]
    return found


def fleet(config: Config, point: Point, tried: Sequence[float], device: str = "cpu") -> Fleet:
    """The fleet of a point: every inner step of ``tried``, at every seed."""
    scales = shallow.scales(shallow.Config(dim=config.dim, least=config.least, most=config.most),
                            point["inputs"])
    hidden = config.hidden if point["kind"] == "mlp" else 0
    settings = [{"scales": scales, "alpha": alpha, "hidden": hidden} for alpha in tried]
    kind = "boundaries" if point["kind"] == "boundaries" else "regression"
    return synthetic.fleet(kind, settings, range(config.seeds), support=config.support,
                           device=device)


def model(config: Config, point: Point, added: int | None = None) -> Model:
    """The network of a point, with another number of added layers if told; which layers adapt, if
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
    names = tuple(
        f"{i}.{part}" for i in kept for part in (("weight", "bias") if mlp else ("weight",))
    )
    return Model(net, adapted=names)


def collapse(
    of: Fleet, params: Params, config: Config, point: Point
) -> tuple[Model, Params, Array]:
    """The plain model with the layers of ``params`` multiplied out, and how far its outputs are
    off, [run].

    The largest difference of outputs before adaptation, over the size of the outputs, on 100 drawn
    inputs.
    """
    deep, plain = model(config, point), model(config, point, added=0)
    one = nets.collapsed(params, point["added"])
    x = of.normals("collapse", 1, 100)(0)["x"][:, 0] @ of.families.root.mT
    both = [vmap(m.net.apply)(p, x) for m, p in ((deep, params), (plain, one))]
    off = (both[0] - both[1]).abs().amax(1) / both[0].abs().amax(1)
    return plain, one, off.cpu().numpy()


def at_rate(of: Fleet, rate: Array, told: Array) -> Fleet:
    """The fleet with other inner steps, relative as ``told``, its own, are."""
    return of._replace(alpha=of.alpha * torch.from_numpy(rate / told).to(of.alpha))


def at_own_rate(of: Fleet, plain: Model, params: Params, size: Sizes, rates: Sequence[float],
                told: Array) -> Array:
    """The scalar rate of least validation risk after one step, relative as the alphas are, of every
    run.

    The least one of ``rates``, moved to the vertex of the parabola through it and its neighbours,
    on a log scale.
    """
    tried = [at_rate(of, np.full(len(told), rate), told) for rate in rates]
    risks = np.stack(
        [synthetic.scores(own, plain, params, size, [1], "validate").risk[:, 0] for own in tried]
    )
    best = risks.argmin(0).clip(1, len(rates) - 2)
    low, mid, high = (risks[best + shift, np.arange(risks.shape[1])] for shift in (-1, 0, 1))
    bend = low - 2 * mid + high
    shift = np.where(bend > 0, (low - high) / (2 * np.where(bend > 0, bend, 1)), 0).clip(-1, 1)
    logs = np.log(np.asarray(rates))
    return np.asarray(np.exp(logs[best] + shift * (logs[1] - logs[0])))


def compute(config: Config, point: Point, device: str) -> list[Row]:
    """A row for every inner step and seed: risks of the model, and of what it collapses to."""
    size, own = synthetic.sizes(config), model(config, point)

    def rows_of(tried: Sequence[float]) -> list[Row]:
        of = fleet(config, point, tried, device)
        params = synthetic.train(of, own, size)
        found = synthetic.scores(of, own, params, size, STEPS)
        columns: dict[str, Array] = {f"risk_{k}": found.risk[:, j] for j, k in enumerate(STEPS)}
        columns["valid"] = synthetic.scores(of, own, params, size, [1], "validate").risk[:, 0]
        if point["kind"] == "boundaries":
            columns |= {f"accuracy_{k}": found.accuracy[:, j] for j, k in enumerate(STEPS)}
        if point["added"] and point["frozen"] == "none":
            plain, one, columns["off"] = collapse(of, params, config, point)
            columns["collapsed"] = synthetic.scores(of, plain, one, size, [1]).risk[:, 0]
            told = np.repeat(np.asarray(tried), config.seeds)
            rate = columns["collapsed_rate"] = at_own_rate(of, plain, one, size, config.rates, told)
            columns["collapsed_tuned"] = synthetic.scores(at_rate(of, rate, told), plain, one, size,
                                                          [1]).risk[:, 0]
        return synthetic.as_rows(point, of, tried, columns)

    lost = {**point, "valid": synthetic.CAP} | {f"risk_{k}": synthetic.CAP for k in STEPS}
    return synthetic.by_alpha(rows_of, config.alphas, lost, config.seeds)


def at_own_best(table: pd.DataFrame) -> pd.DataFrame:
    """The rows at the inner step that is best on validation tasks, of every model."""
    return synthetic.at_best(table, _KEYS)


def _runs(rows: pd.DataFrame, of: Mapping[str, Any], column: str = "risk_1") -> Array:
    chosen = rows[(rows[list(of)] == pd.Series(of)).all(axis=1)]
    return np.asarray(chosen.sort_values("seed")[column])


def _told(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Every model with added layers and none frozen."""
    rows = table[(table["added"] > 0) & (table["frozen"] == "none")]
    return list(rows[_KEYS].drop_duplicates().to_dict("records"))


def ratios(table: pd.DataFrame) -> pd.DataFrame:
    """Of every model with added layers, each at its best inner step, ratios of mean risks after one
    step.

    ``gain``: plain over it; ``tuned``: what it collapses to at its own best rate, over it. With
    their intervals.
    """
    best, rows, usual = at_own_best(table), [], table["width"].iloc[0]
    for of in _told(table):
        deep = _runs(best, of)
        gain = synthetic.risk_ratio(_runs(best, of | {"added": 0, "width": usual}), deep)
        tuned = synthetic.risk_ratio(_runs(best, of, "collapsed_tuned"), deep)
        rows.append(of | interval_columns({"gain": gain, "tuned": tuned}))
    return pd.DataFrame(rows)


def collapses(table: pd.DataFrame) -> pd.DataFrame:
    """The collapsed model over the plain one meta-trained at the same inner step, in risk after
    it."""
    rows, usual = [], table["width"].iloc[0]
    for of in _told(table):
        for alpha in table["alpha"].unique():
            here = of | {"alpha": alpha}
            if np.isnan(_runs(table, here, "off")).any():
                continue  # lost: some run diverged
            plain = _runs(table, here | {"added": 0, "width": usual})
            ratio = synthetic.risk_ratio(_runs(table, here, "collapsed"), plain)
            off = float(_runs(table, here, "off").max())
            rows.append(here | interval_columns({"ratio": ratio}) | {"off": off})
    return pd.DataFrame(rows)


def frozen(table: pd.DataFrame) -> pd.DataFrame:
    """Models with layers frozen in the inner loop over the same model with none frozen, each at its
    best step."""
    best, rows = at_own_best(table), []
    for of in best[best["frozen"] != "none"][_KEYS].drop_duplicates().to_dict("records"):
        ratio = synthetic.risk_ratio(_runs(best, of), _runs(best, of | {"frozen": "none"}))
        rows.append(of | interval_columns({"ratio": ratio}))
    return pd.DataFrame(rows)


def settle_d2(record: Record) -> Finding:
    """D2, with spread inputs: (i) added layers beat plain; (ii) collapsed they do not; (iii) nor at
    their best rate.

    Each is asked of every model and number of added layers at the usual width, (ii) at every inner
    step.
    """
    table = record.table
    asked = table[(table["inputs"] == "spread") & (table["width"] == table["width"].iloc[0])]
    found, tested = ratios(asked), collapses(asked)
    parts = {"(i) added layers beat plain": all_or_some(found["gain_low"] > 1),
             "(ii) collapsed no better than plain": all_or_some(tested["ratio_low"] >= SLACK),
             "(iii) nor at its own best rate": all_or_some(found["tuned_low"] > 1)}
    least = found.loc[found["gain_low"].idxmin()]
    of = f"risk of plain / {least['added']} added, least ({least['kind']})"
    value, low, high = (float(least[name]) for name in ("gain", "gain_low", "gain_high"))
    return Finding(parts, value, (low, high), of)


EXPERIMENT = Experiment(
    "linear_layers",
    "linear layers added at the output: adaptation against depth, collapse, and freezing", PROFILES,
    points, compute, ("cuda", "cpu"),
)
