"""Start and step learned together on easy and hard tasks: trained against predicted (both papers).

MAML learns its start with one rate, with a full preconditioner P (KFO: for one output, any matrix)
or with more layers. NAL's start gets a learned rate or P; a deep one, trained by NAL, a rate.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch

from companion import nets, tables
from companion.experiment import Experiment, rounded
from companion.fleets import Budget, Model, start, train
from companion.measures.linear_steps import risks, rule_alone
from companion.measures.quotients import Quotient, quotients, towards_theory
from companion.meta_optimizers import Params
from companion.objectives import joined, parted
from companion.records import Point, Record, Row
from companion.tables import Finding
from companion.tasks import Fleet
from companion.tasks.mixtures import mixture_fleet
from companion.theory import together
from companion.theory.landscape import Mixture

RATE, FULL, DEEP, SMALL = "one rate", "full P", "deep", "deep, small start"


@dataclass(frozen=True)
class Config:
    """``mixtures`` change some of ``base``, a support of None is the full batch; those in
    ``deeper`` have more deep models. The inner ``alphas`` to start from and the outer ``rates`` are
    for one layer and for more; ``scales`` are those of NAL's deep starts. From the logarithm
    ``least`` of a quotient on a side is predicted."""

    base: Mapping[str, float] = field(default_factory=lambda: {
        "rho_easy": 0.9, "rho_hard": 0.1, "dim": 10, "support": 20, "distance": 3.0,
        "var_easy": 1.0, "var_hard": 0.01})
    mixtures: Mapping[str, Mapping[str, float | None]] = field(default_factory=lambda: {
        "full batch": {"support": None}, "100 samples": {"support": 100}, "20 samples": {},
        "5 samples": {"support": 5}, "full batch, spread": {"support": None, "var_hard": 1.0},
        "full batch, nearer": {"support": None, "rho_hard": 0.5}, "tight": {"var_easy": 0.01},
        "equal curvature": {"rho_hard": 0.9}, "one centre": {"distance": 0.0}})
    deeper: Sequence[str] = ("full batch", "100 samples", "20 samples")
    alphas: tuple[float, float] = (1.0, 0.1)
    rates: tuple[float, float] = (0.05, 0.03)
    scales: Mapping[str, float] = field(default_factory=lambda: {SMALL: 0.1, "deep, start": 1.0})
    least: float = 0.005
    seeds: Sequence[int] = tuple(range(20))
    budget: Budget = Budget(steps=1000, tasks=20, rate=0.05, test_tasks=1000)


PROFILES = {
    "quick": Config(mixtures={"full batch": {"support": None}, "20 samples": {}},
                    deeper=("20 samples",), seeds=tuple(range(5)),
                    budget=replace(Config.budget, steps=300, test_tasks=200)),
    "full": Config(),
}


def points(config: Config) -> list[Point]:
    """Every arm on every mixture."""
    usual = [("maml", RATE), ("maml", FULL), ("maml", DEEP), ("nal", RATE), ("nal", FULL)]
    more = [("maml", "deep, 3 layers"), *(("nal", name) for name in config.scales)]
    return [{"mixture": name, "method": method, "arm": arm} for name in config.mixtures
            for method, arm in (*usual, *(more if name in config.deeper else ()))]


def mixture_of(config: Config, name: str) -> Mixture:
    """A mixture of the config; its ``alpha`` is not used."""
    fields = {**config.base, **config.mixtures[name]}
    return Mixture(**{key: math.inf if value is None else value
                      for key, value in fields.items()}, alpha=0.0)


def model_of(config: Config, point: Point) -> Model:
    """The network and the rule of an arm."""
    dim, arm = int(config.base["dim"]), point["arm"]
    layers = 3 if "3" in arm else 2 if DEEP in arm else 1
    plain = "SGD" if layers > 1 and point["method"] == "maml" else "learned rate"
    return Model(nets.deep_linear((*[dim] * layers, 1)), rule="KFO" if arm == FULL else plain)


def trained(config: Config, point: Point, fleet: Fleet, mixture: Mixture) -> Params:
    """The parameters of an arm's network and rule, [run, ...]."""
    model = model_of(config, point)
    network, rule = parted(begin := start(fleet, model))
    budget = replace(config.budget, rate=config.rates[len(network) > 1])
    if point["method"] == "maml":
        return train(fleet, model, budget, begin=begin)
    if len(network) == 1:  # NAL's start is known in closed form
        network["0.weight"] = torch.zeros_like(network["0.weight"])
        network["0.weight"][..., 0] = float(mixture.weight_nal * np.asarray(mixture.distance))
    else:
        scale = config.scales[point["arm"]]
        network = train(fleet, replace(model, method="nal", rule="SGD"), budget,
                        begin={name: scale * value for name, value in network.items()})
    return train(fleet, model, budget, begin=joined(network, rule),
                 optimizer=rule_alone(config.rates[0], budget.steps))


def measure(config: Config, point: Point, device: str) -> list[Row]:
    """A row for every seed: the risk, the least one by theory (layers can learn any P), and that of
    the nearest predicted minimum; the start's weight on the easy centre and its distance from the
    line; the rates along the line and beside it."""
    mixture, arm, nal = mixture_of(config, point["mixture"]), point["arm"], point["method"] == "nal"
    fleet = mixture_fleet(mixture, config.seeds, alpha=config.alphas[DEEP in arm])
    params = trained(config, point, fleet, mixture)
    steps, found = risks(fleet, mixture, model_of(config, point), params, config.budget)
    theory = (together.scalar if arm == RATE else together.full)(mixture)
    best = theory.nal if nal else theory.maml
    minima = [best] if nal else theory.critical[::2]  # between two minima there is a maximum
    distance, rows = float(np.asarray(mixture.distance)) or 1.0, []
    for (w, p), seed, risk in zip(steps, fleet.seeds, found, strict=True):
        near = min(minima, key=lambda one: abs(one.weight - w[0] / distance))
        rows.append({**point, "seed": seed} | rounded(
            risk=risk, predicted=None if nal and DEEP in arm else best.risk,
            nearest=near.risk, weight=w[0] / distance, offset=np.linalg.norm(w[1:]), along=p[0, 0],
            beside=np.trace(p[1:, 1:]) / (len(w) - 1)))
    return rows


def landed(record: Record, column: str) -> Finding:
    """B1: are the risks of one rate and of a full P within 5 % of a predicted one?"""
    rows, keys = tables.where(record.table, arm=(RATE, FULL)), ["mixture", "method", "arm"]
    return tables.judge(tables.contrast(rows, keys, "risk", column), f"risk / {column}", keys,
                        inside=(0.95, 1.05))


GAIN = [("nal", FULL), ("maml", RATE)], [("maml", FULL), ("nal", RATE)]  # of P over one rate
DEEPER = [("nal", SMALL), ("maml", RATE)], [("maml", DEEP), ("nal", RATE)]
RESCUE = [("nal", FULL)], [("maml", RATE)]


def sided(asked: Quotient, like: Quotient, what: str, record: Record) -> Finding:
    """B2, B3: is a quotient of risks on the side of 1 that theory says, wherever it says one?"""
    least = record.provenance["config"]["least"]
    rows = towards_theory(quotients(record.table, asked, like), least)
    return tables.judge(rows, f"{what}, or its inverse, as theory says", ["mixture"], above=1)


EXPERIMENT = Experiment(
    "together", "start and step learned together on easy and hard tasks", PROFILES, points, measure,
    findings={
        "B1/optimum": partial(landed, column="predicted"),
        "B1/minimum": partial(landed, column="nearest"),
        "B2/preconditioner": partial(sided, GAIN, GAIN, "gain with a full P / with one rate"),
        "B2/depth": partial(sided, DEEPER, GAIN, "gain of deep models / with one rate"),
        "B3/rescue": partial(sided, RESCUE, RESCUE, "risk of NAL with a full P / MAML")})
