"""Rules that transform gradients, on shallow and on deep models (paper D, claim D3)."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from companion import nets, tables
from companion.errors import Diverged
from companion.experiment import Experiment, rows_of
from companion.fleets import CAP, Budget, Model, scores, start, train
from companion.objectives import counted
from companion.records import Point, Record, Row
from companion.tables import Finding
from companion.tasks import Fleet
from companion.tasks.readouts import readout_fleet, spread
from companion.theory import depth

RULE = ["kind", "steps", "adapting", "turned", "model", "rule"]  # what names a fleet


@dataclass(frozen=True)
class Config:
    """``alphas`` are inner rates to start from, relative to the largest curvature: the first one at
    which no run diverges in training is taken. ``rule_alpha`` is the step of a rule that itself
    adapts within the task; ``noise`` is that of regression. ``kinds`` of task come with the inner
    steps trained for."""

    kinds: Sequence[tuple[str, Sequence[int]]] = (
        ("regression", (1, 3)), ("boundaries", (3,)), ("mlp", (3,)))
    rules: Sequence[str] = ("SGD", "learned rate", "Meta-SGD", "Meta-Curvature", "KFO", "KFO, psd",
                            "KFO, nonlinear")
    own_axes: Sequence[str] = ("learned rate", "Meta-SGD", "KFO")
    dim: int = 10
    outputs: int = 3
    support: int = 20
    least: float = 0.1
    most: float = 3.0
    correlation: float = 0.5
    noise: float = 0.5
    hidden: int = 20
    width: int = 10
    alphas: Sequence[float] = (1.0, 0.5, 0.2)
    rule_alpha: float = 0.01
    seeds: int = 20
    budget: Budget = Budget(steps=600, tasks=20, rate=0.04, query=50, test_tasks=300,
                            test_query=50)


PROFILES = {
    "quick": Config(kinds=(("regression", (1, 3)),), seeds=5,
                    budget=replace(Config.budget, steps=200, test_tasks=200)),
    "full": Config(),
}


def points(config: Config) -> list[Point]:
    """A fleet for every kind of task, number of inner steps, model and rule; rules that adapt, on
    the shallow model after most steps; and some rules on inputs spread along the coordinates."""

    def point(kind: str, steps: int, model: str, rule: str, adapting: bool = False,
              turned: bool = True) -> Point:
        return dict(zip(RULE, (kind, steps, adapting, turned, model, rule), strict=True))

    found = []
    for kind, counts in config.kinds:
        found += [point(kind, steps, model, rule) for steps in counts
                  for model in ("shallow", "deep") for rule in config.rules]
        found += [point(kind, max(counts), "shallow", rule, adapting=True)
                  for rule in config.rules if rule != "SGD"]
    return found + [point("regression", 1, "shallow", rule, turned=False)
                    for rule in config.own_axes]


def fleet_of(config: Config, point: Point, alpha: float, device: str = "cpu") -> Fleet:
    """A run for every seed at an inner rate."""
    kind = point["kind"]
    setting = {"scales": spread(config.dim, config.least, config.most), "alpha": alpha,
               "outputs": config.outputs, "correlation": config.correlation,
               "turned": point["turned"], "noise": config.noise if kind == "regression" else 0.0,
               "hidden": config.hidden if kind == "mlp" else 0}
    return readout_fleet("boundaries" if kind == "boundaries" else "regression", [setting],
                         range(config.seeds), support=config.support, device=device)


def model_of(config: Config, point: Point) -> Model:
    """The network of a point and its rule. The deep model has one linear layer more."""
    mlp = point["kind"] == "mlp"
    added = [config.width * (2 if mlp else 1)] if point["model"] == "deep" else []
    body = (config.dim, config.hidden) if mlp else (config.dim,)
    net = nets.mlp((*body, *added, config.outputs), "tanh", bias=mlp, linear_layers=len(added))
    return Model(net, rule=point["rule"], steps=point["steps"],
                 rule_alpha=config.rule_alpha if point["adapting"] else None)


def measure(config: Config, point: Point, device: str) -> list[Row]:
    """A row for every seed: risks before and after the steps trained for, accuracy after them, and
    how many numbers the model and its rule have."""
    model = model_of(config, point)
    numbers = counted(start(fleet_of(config, point, 1.0), model))
    for alpha in config.alphas:
        fleet = fleet_of(config, point, alpha, device)
        with suppress(Diverged):
            params = train(fleet, model, config.budget)
            risk, accuracy = scores(fleet, model, params, config.budget, (0, model.steps)).means
            columns = {"before": risk[:, 0], "after": risk[:, 1], "accuracy": accuracy[:, 1]}
            return rows_of({**point, **numbers}, [alpha], fleet.seeds, columns)
    lost = {"alpha": 0.0, "before": CAP, "after": CAP, "accuracy": None}
    return [{**point, **numbers, "alpha": 0.0, "seed": seed} | lost for seed in range(config.seeds)]


def floors(config: Config) -> dict[str, float]:
    """The least risks after one step on regression: with one rate, one Kronecker product, and any
    preconditioner."""
    point = {"kind": "regression", "turned": False}
    (family,) = fleet_of(config, point, 1.0).run(0)
    s, c = family.covariance.numpy(), family.task_covariance.numpy()
    rest = (float(config.support), config.noise)
    left, right = depth.best_kronecker(s, c, *rest)
    return {"one rate": depth.shallow_risk(s, c, depth.best_shallow_step(s, c, *rest), *rest),
            "one Kronecker product": depth.preconditioned_risk(np.kron(left, right.T), s, c, *rest),
            "any preconditioner": depth.preconditioned_risk(
                depth.best_preconditioner(s, c, *rest), s, c, *rest)}


def gains(table: pd.DataFrame) -> pd.DataFrame:
    """The risk of the shallow model with one learned rate over that of every other fleet, after
    the steps trained for; a fleet that was lost at every rate counts as CAP."""
    plain = {"model": "shallow", "rule": "learned rate", "adapting": False}
    return tables.contrast(table, RULE, "after", plain, swap=True)


def synthetic(record: Record) -> Finding:
    """D3: the shallow model with KFO has a smaller risk than with one learned rate."""
    rows = tables.where(gains(record.table), rule="KFO", model="shallow", adapting=False,
                        turned=True)
    return tables.judge(rows, "risk of one learned rate / KFO", ["kind", "steps"], above=1)


EXPERIMENT = Experiment("rules", "meta-optimizers on shallow and deep models", PROFILES, points,
                        measure, {"D3/synthetic": synthetic}, ("cuda", "cpu"))
