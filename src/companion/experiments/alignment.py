"""What upper layers do to the gradients of the layers below them, beside an external rule fitted to
do the same (paper D, claim D4)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from companion import nets, tables
from companion.checks import Array
from companion.experiment import Experiment, rounded
from companion.fleets import Budget, Model, train
from companion.measures import upper_layers
from companion.measures.kronecker import cosine
from companion.meta_optimizers import Params
from companion.nets import Net
from companion.records import Point, Record, Row
from companion.tables import Finding
from companion.tasks import Fleet
from companion.tasks.readouts import readout_fleet, spread

BOTTOM, HIDDEN = (0, 1), 4  # bottom layers, and how many are below the head, the fifth
CASE = ["activation", "look", "layer"]


@dataclass(frozen=True)
class Config:
    """Five layers without biases on shared features. ``looks`` are the outer steps at which
    gradients are compared, on ``pairs`` tasks to fit and as many to test."""

    activations: Sequence[str] = ("relu", "tanh", "identity")
    dim: int = 10
    outputs: int = 3
    support: int = 20
    least: float = 0.1
    most: float = 3.0
    correlation: float = 0.5
    hidden: int = 20
    alpha: float = 1.0
    looks: Sequence[int] = (0, 50, 200, 600)
    pairs: int = 300
    seeds: int = 20
    budget: Budget = Budget(steps=600, tasks=20, rate=0.04, query=50)


PROFILES = {
    "quick": Config(looks=(0, 200), pairs=150, seeds=5, budget=replace(Config.budget, steps=200)),
    "full": Config(),
}


def points(config: Config) -> list[Point]:
    """A fleet for every activation."""
    return [{"activation": name} for name in config.activations]


def fleet_of(config: Config, device: str = "cpu") -> Fleet:
    """A run for every seed."""
    setting = {"scales": spread(config.dim, config.least, config.most), "alpha": config.alpha,
               "outputs": config.outputs, "correlation": config.correlation,
               "hidden": config.hidden}
    return readout_fleet("regression", [setting], range(config.seeds), support=config.support,
                         device=device)


def network(config: Config, activation: str, hidden: int = HIDDEN) -> Net:
    """The ``hidden`` layers are as wide as the inputs, so that all have one shape."""
    return nets.mlp((*[config.dim] * (hidden + 1), config.outputs), activation, bias=False)


def bottom_gradients(config: Config, fleet: Fleet, activation: str, params: Params,
                     purpose: str) -> tuple[Array, Array]:
    """:func:`companion.measures.upper_layers.bottom_gradients` of these networks, on ``pairs``."""
    whole, small = network(config, activation), network(config, activation, len(BOTTOM))
    return upper_layers.bottom_gradients(fleet, whole, small, [f"{i}.weight" for i in BOTTOM],
                                         params, purpose, config.pairs)


def compare(config: Config, fleet: Fleet, activation: str, params: Params) -> list[Row]:
    """A row for every layer and seed: the mean cosine on held-out tasks of its gradients in the two
    networks, ``raw``, after its fitted rule, ``aligned``, and the other layer's, ``shuffled``."""
    fit, test = (bottom_gradients(config, fleet, activation, params, f"align/{side}")
                 for side in ("fit", "test"))
    left, right = upper_layers.fitted(*fit)
    rows = []
    for run, seed in enumerate(fleet.seeds):
        for layer in BOTTOM:
            target, small = (side[layer, run] for side in test)
            aligned, shuffled = (cosine(left[rule, run] @ small @ right[rule, run], target)
                                 for rule in (layer, 1 - layer))
            rows.append({"layer": layer, "seed": seed} | rounded(
                raw=cosine(small, target), aligned=aligned, shuffled=shuffled))
    return rows


def measure(config: Config, point: Point, device: str) -> list[Row]:
    """The rows of :func:`compare` at every look during meta-training."""
    fleet, activation = fleet_of(config, device), point["activation"]
    kept: dict[int, Params] = {}

    def watch(step: int, params: Params, values: torch.Tensor) -> None:
        if step in config.looks:
            kept[step] = {name: value.double() for name, value in params.items()}

    kept[config.budget.steps] = train(fleet, Model(network(config, activation)), config.budget,
                                      watch=watch)
    return [{**point, "look": look} | row for look in sorted(set(kept) & set(config.looks))
            for row in compare(config, fleet, activation, kept[look])]


def nonlinear(record: Record) -> Finding:
    """D4: in nonlinear networks the fitted rule is above the control, at every look."""
    rows = tables.contrast(tables.where(record.table, activation=("relu", "tanh")), CASE, "aligned",
                           "shuffled", tables.difference)
    return tables.judge(rows, "cosine above that of the other layer's rule", CASE, above=0)


EXPERIMENT = Experiment("alignment", "upper layers beside an external rule fitted to them",
                        PROFILES, points, measure, {"D4/nonlinear": nonlinear}, ("cuda", "cpu"))
