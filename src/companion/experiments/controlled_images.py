"""MAML against NAL on image tasks whose landscape we set (paper L, claims L5 and L6)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import pandas as pd

from companion import nets, tables
from companion.errors import Diverged
from companion.experiment import Experiment, rounded
from companion.fleets import Budget, Model, train
from companion.measures import controlled as measures
from companion.meta_optimizers import Params
from companion.nets import Net
from companion.records import Point, Record, Row
from companion.tables import Finding
from companion.tasks import Fleet
from companion.tasks.controlled import controlled_fleet

FAR, SPREAD = "packed, far", "spread"  # the landscapes that the claims are about
HALF = 0.5  # the share of hard tasks, unless training tasks have one of their own


@dataclass(frozen=True)
class Config:
    """``landscapes``: whether hard tasks contradict the easy ones, and the share of their classes
    whose labels are permuted in every task; of the easy tasks' classes ``permuted_easy`` is.
    ``alphas``: the inner rates of every network. Training tasks with a share of ``fractions`` hard
    are at the lowest contrast, in the landscapes of the claims, for MAML alone."""

    source: str = "omniglot"
    alphas: Mapping[str, Sequence[float]] = field(default_factory=lambda: {
        "linear": (0.3, 0.6, 1.0, 1.5), "erf": (0.1, 0.2, 0.4, 0.8),
        "relu": (0.1, 0.2, 0.4, 0.8)})
    landscapes: Mapping[str, tuple[bool, float]] = field(default_factory=lambda: {
        FAR: (True, 0.0), "packed, near": (False, 0.0), "half spread, far": (True, 0.5),
        "half spread, near": (False, 0.5), SPREAD: (True, 1.0)})
    contrasts: Sequence[float] = (1.0, 0.6, 0.4)
    fractions: Sequence[float] = (0.0, 1.0)
    permuted_easy: float = 0.5
    images: Mapping[str, int] = field(default_factory=lambda: {
        "classes": 4, "drawings": 10, "variants": 10, "dim": 5, "shots": 15, "queries": 5})
    seeds: int = 20
    budget: Budget = Budget(steps=300, tasks=10, rate=0.02, test_tasks=300, batch=100)


PROFILES = {
    "quick": Config(
        "glyphs", {"linear": (0.6, 1.0), "erf": (0.2, 0.4)},
        {FAR: (True, 0.0), "packed, near": (False, 0.0), SPREAD: (True, 1.0)}, (1.0, 0.4), seeds=4,
        budget=replace(Config.budget, steps=80, test_tasks=100)),
    "full": Config(),
}


def network(name: str, dim: int) -> Net:
    """"linear"; "erf", two layers of which the second is fixed; "relu", two layers: f(c x) = c f(x)
    but for erf. None normalises its batch, so the contrast acts."""
    if name == "linear":
        return nets.linear(dim)
    return nets.two_layer(dim, 8, "erf") if name == "erf" else nets.mlp((dim, 16, 1), bias=False)


def points(config: Config) -> list[Point]:
    """A fleet of every landscape and seed for every network, contrast and share of hard tasks."""
    return [{"net": net, "contrast": contrast, "fraction": fraction} for net in config.alphas
            for contrast in config.contrasts for fraction in (HALF, *config.fractions)
            if fraction == HALF or contrast == min(config.contrasts)]


def names(config: Config, point: Point) -> list[str]:
    """The landscapes of a point."""
    return list(config.landscapes) if point["fraction"] == HALF else [FAR, SPREAD]


def fleet_of(config: Config, point: Point, alpha: float, fraction: float,
             device: str = "cpu") -> Fleet:
    """Every landscape of the point at every seed, a ``fraction`` of its tasks hard."""
    settings = []
    for far, permuted in (config.landscapes[name] for name in names(config, point)):
        settings.append({"far": far, "permuted_hard": permuted, "alpha": alpha,
                         "permuted_easy": config.permuted_easy, "contrast": point["contrast"],
                         "fraction": fraction})
    return controlled_fleet(config.source, settings, range(config.seeds), **config.images,
                            device=device)


def solutions(fleet: Fleet, model: Model, budget: Budget) -> Params | None:
    """What the runs of a fleet come to; None where one of them diverges."""
    try:
        return train(fleet, model, budget)
    except Diverged:
        return None


def measure(config: Config, point: Point, device: str) -> list[Row]:
    """One row for every method, inner rate, landscape and seed: risks after one step on tasks half
    of which are hard, of the images trained on (``valid``) and of new ones, and the theory's."""
    net, share = network(point["net"], config.images["dim"]), point["fraction"]
    support, rates = config.images["classes"] * config.images["shots"], config.alphas[point["net"]]
    whose = [(name, seed) for name in names(config, point) for seed in range(config.seeds)]
    families = fleet_of(config, point, rates[0], HALF)
    said = [measures.predict(families.run(i)[0], seed, support, share)
            for i, (_, seed) in enumerate(whose)]
    rows: list[Row] = []
    for method in ("nal", "maml") if share == HALF else ("maml",):
        model, params = Model(net, method), None
        for alpha in rates:
            if method == "maml" or params is None:  # NAL has no inner rate before the test
                fleet = fleet_of(config, point, alpha, share, device)
                params = solutions(fleet, model, config.budget)
            asked = fleet_of(config, point, alpha, HALF, device)
            columns = measures.columns(asked, model, params, config.budget, support)
            rows += [{**point, "landscape": name, "method": method, "alpha": alpha, "seed": seed}
                     | rounded(**{key: values[i] for key, values in columns.items()},
                               predicted=getattr(said[i], method),
                               predicted_hard=getattr(said[i], f"{method}_hard"))
                     for i, (name, seed) in enumerate(whose)]
    return rows


def networks(record: Record) -> pd.DataFrame:
    """The rows of networks with a hidden layer: in a linear model the theory is no question."""
    return record.table[record.table["net"] != "linear"]


def packed_minus_spread(record: Record) -> Finding:
    """L5: at the lowest contrast MAML gains more where hard tasks are packed and far than where
    they are spread."""
    return tables.judge(measures.differences(networks(record), FAR, SPREAD),
                        "log(risk NAL / MAML), packed and far minus spread", ["net"], above=0)


def below_the_ceiling(record: Record) -> Finding:
    """L5: in every setting the measured ratio is below the ceiling at the measured h."""
    return tables.judge(measures.slack(networks(record)), "log(ceiling / measured ratio)",
                        measures.SETTING, above=0)


def more_hard_tasks(record: Record) -> Finding:
    """L6: the more of MAML's training tasks are hard, the smaller is its risk on hard tasks."""
    return tables.judge(measures.slopes(networks(record)),
                        "slope of -log(risk on hard tasks) against the share of hard tasks",
                        ["net", "landscape"], above=0)


EXPERIMENT = Experiment(
    "controlled_images", "MAML against NAL on image tasks whose landscape we set", PROFILES, points,
    measure, {"L5/controlled": packed_minus_spread, "L5/controlled ceiling": below_the_ceiling,
              "L6/controlled": more_hard_tasks}, ("cpu",))
