"""Upper layers transplanted as a rule: a small network takes inner steps of its own by the external
rule fitted to the upper layers of a deep one (paper D, claim D4)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch

from companion import nets, tables
from companion.experiment import Experiment, rows_of, unless_diverged
from companion.fleets import CAP, Budget, Model, scores, start, train
from companion.measures.upper_layers import bottom_gradients, fitted, named, on_bottom, resized
from companion.meta_optimizers import Params
from companion.objectives import joined
from companion.records import Point, Row
from companion.tasks import Fleet
from companion.tasks.readouts import readout_fleet, spread

BOTTOM, UPPER = ("0.weight", "1.weight"), ("2.weight", "3.weight")  # the fifth layer is the head
ARMS = {"transplanted": "KFO, held", "random upper": "KFO, held", "other seed": "KFO, held",
        "one rate": "learned rate", "KFO": "KFO"}  # small networks, and their rules
CONTROLS = ("one rate", "random upper", "other seed")
CASE, RISKS = ["activation", "arm"], ["risk_0", "risk_1", "valid"]


@dataclass(frozen=True)
class Config:
    """Five layers without biases on shared features, for "identity" on labels linear in x. Inner
    rates ``alphas`` are relative to the largest curvature. Rules are fitted on ``pairs`` tasks to a
    deep network trained by ``budget``; then it, and small ones that start from its layers, train
    for ``again`` steps."""

    activations: Sequence[str] = ("relu", "tanh", "identity")
    dim: int = 10
    outputs: int = 3
    support: int = 20
    least: float = 0.1
    most: float = 3.0
    correlation: float = 0.5
    hidden: int = 20
    alphas: Sequence[float] = (0.3, 1.0)
    pairs: int = 300
    seeds: int = 20
    again: int = 400
    budget: Budget = Budget(steps=600, tasks=20, rate=0.02, query=50, test_tasks=300,
                            test_query=100)


PROFILES = {"quick": Config(activations=("tanh",), alphas=(1.0,), pairs=150, seeds=5, again=100,
                            budget=replace(Config.budget, steps=200)),
            "full": Config()}


def points(config: Config) -> list[Point]:
    """An activation, with the deep network and all small ones."""
    return [{"activation": name} for name in config.activations]


def fleet_of(config: Config, activation: str, alphas: Sequence[float], device: str) -> Fleet:
    """Every inner rate of ``alphas`` at every seed."""
    setting = {"scales": spread(config.dim, config.least, config.most), "outputs": config.outputs,
               "correlation": config.correlation,
               "hidden": 0 if activation == "identity" else config.hidden}
    fleet = readout_fleet("regression", [setting | {"alpha": alpha} for alpha in alphas],
                          range(config.seeds), support=config.support, device=device)
    # in single precision the last digits of a processor decide how some of these runs end
    return replace(fleet, training_dtype=torch.float64)


def model_of(config: Config, activation: str, arm: str) -> Model:
    """The network of an arm, or of "deep", and its rule."""
    widths = [config.dim] * (5 if arm == "deep" else 3)
    net = nets.mlp((*widths, config.outputs), activation, bias=False)
    return Model(net, rule=ARMS.get(arm, "SGD"))


def trained(config: Config, case: Point, begin: Params, budget: Budget,
            device: str) -> tuple[list[Row], dict[float, Params]]:
    """A row for every inner rate and seed of an activation's arm, all from ``begin`` [seed, ...]:
    risks before and after the inner step; and the parameters at rates that did not diverge."""
    model, kept = model_of(config, case["activation"], case["arm"]), {}

    def rows(alphas: Sequence[float]) -> list[Row]:
        fleet = fleet_of(config, case["activation"], alphas, device)
        params = train(fleet, model, budget, begin={
            name: torch.cat([value] * len(alphas)) for name, value in begin.items()})
        for i, alpha in enumerate(alphas):
            kept[alpha] = {n: v.chunk(len(alphas))[i] for n, v in params.items()}
        risks = [*scores(fleet, model, params, budget, (0, 1)).means.risk.T,
                 scores(fleet, model, params, budget, [1], purpose="validate").means.risk[:, 0]]
        return rows_of(case, alphas, fleet.seeds, dict(zip(RISKS, risks, strict=True)))

    lost = dict.fromkeys(RISKS, CAP)
    return unless_diverged(rows, config.alphas, case, config.seeds, lost), kept


def factors(config: Config, fleet: Fleet, activation: str, params: Params) -> dict[str, Params]:
    """The factors ``<name>.L``, ``.R`` [seed, ...] of bottom tensors, by arm: fitted to the deep
    network; to the same with upper layers drawn afresh; to that of the next seed. The last two are
    scaled to updates as large as the first one's, tensor by tensor, so that none loses by size."""
    deep, small = (model_of(config, activation, arm) for arm in ("deep", "transplanted"))
    fresh = start(replace(fleet, name="transplant/upper"), deep)
    own, random = (
        bottom_gradients(fleet, deep.net, small.net, BOTTOM, some, "transplant", config.pairs)
        for some in (params, params | {name: fresh[name] for name in UPPER}))
    rule = fitted(*own)
    next_one = [np.roll(side, -1, axis=1) for side in rule]
    rules = {"transplanted": rule, "random upper": fitted(*random), "other seed": next_one}
    return {arm: named(BOTTOM, resized(some, rule, own[1]), fleet.alpha)
            for arm, some in rules.items()}


def measure(config: Config, point: Point, device: str) -> list[Row]:
    """The rows of all arms, trained on from the deep network's layers at its best inner rate."""
    activation, again = point["activation"], replace(config.budget, steps=config.again)
    fleet = fleet_of(config, activation, [1.0], device)  # for its tasks alone
    begin = {arm: start(fleet, model_of(config, activation, arm)) for arm in ("deep", *ARMS)}
    first, kept = trained(config, {**point, "arm": "deep"}, begin["deep"], config.budget, device)
    deep = kept[tables.best(pd.DataFrame(first), CASE)["alpha"].iloc[0]]
    rules, rows = factors(config, fleet, activation, deep), []
    for arm, params in begin.items():
        layers = deep if arm == "deep" else on_bottom(deep, BOTTOM)
        rows += trained(config, {**point, "arm": arm},
                        params | joined(layers, rules.get(arm, {})), again, device)[0]
    return rows


def gains(table: pd.DataFrame) -> pd.DataFrame:
    """Risk after one step of every arm over the transplanted one's, each at its best rate."""
    return tables.contrast(tables.best(table, CASE), CASE, "risk_1", {"arm": "transplanted"})


def closed(table: pd.DataFrame) -> pd.DataFrame:
    """The share of the way from one rate to the deep network that every other small network goes,
    (one rate - arm) / (one rate - deep) in mean risks after one step: value, low, high."""
    found = []
    for activation, rows in tables.best(table, CASE).groupby("activation", sort=False):
        risk = {arm: tables.by_seed(rows, "risk_1", arm=arm) for arm in ("deep", *ARMS)}
        one, deep = risk.pop("one rate"), risk.pop("deep")
        found += [{"activation": activation, "arm": arm}
                  | tables.columns(tables.ratio(one - each, one - deep))
                  for arm, each in risk.items()]
    return pd.DataFrame(found)


EXPERIMENT = Experiment(
    "transplant", "a rule fitted to upper layers in a network without them", PROFILES, points,
    measure, devices=("cuda", "cpu"), findings={"D4/transplant": lambda record: tables.judge(
        tables.where(gains(record.table), arm=CONTROLS), "risk of control / transplanted", CASE,
        above=1)})
