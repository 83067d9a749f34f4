"""What upper layers do to the gradients of the layers below them, beside an external rule fitted to
do the same (paper D, claim D4)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.func import grad, vjp, vmap

from companion import nets, tables
from companion.checks import Array
from companion.experiment import Experiment, rounded
from companion.fleets import Budget, Model, train
from companion.meta_optimizers import Params
from companion.nets import Net
from companion.records import Point, Record, Row
from companion.tables import Finding
from companion.tasks import Fleet
from companion.tasks.readouts import readout_fleet, spread

BOTTOM, UPPER = (0, 1), (2, 3)  # hidden layers; the fifth layer is the head
_ROUNDS = 60  # of the alternating fit
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
    "quick": Config(looks=(0, 200), pairs=150, seeds=5,
                    budget=Budget(steps=200, tasks=20, rate=0.04, query=50)),
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


def network(config: Config, activation: str, hidden: int = len(BOTTOM + UPPER)) -> Net:
    """The ``hidden`` layers are as wide as the inputs, so that all have one shape."""
    return nets.mlp((*[config.dim] * (hidden + 1), config.outputs), activation, bias=False)


def bottom_gradients(config: Config, fleet: Fleet, activation: str, params: Params,
                     purpose: str) -> tuple[dict[int, Array], dict[int, Array]]:
    """Gradients of the bottom layers on drawn supports, layer -> [run, task, dim, dim].

    First those in the whole network; then those in the smaller one, the bottom layers with the head
    upon them, for the same errors at the outputs.
    """
    whole, small = network(config, activation), network(config, activation, len(BOTTOM))
    loss, names = fleet.loss(whole.apply), [f"{i}.weight" for i in BOTTOM]
    head = {f"{len(BOTTOM)}.weight": f"{len(BOTTOM + UPPER)}.weight"}

    def both(params: Params, normal: dict[str, torch.Tensor], family: Any) -> tuple[Params, Params]:
        x, y = fleet.make(normal, family).support
        full = grad(loss)(params, (x, y))
        top = {name: params[source] for name, source in head.items()}
        bottom = {name: params[name] for name in names}
        back = vjp(lambda some: small.apply(some | top, x), bottom)[1]
        return {name: full[name] for name in names}, back((whole.apply(params, x) - y) / len(y))[0]

    normal = fleet.draw(fleet, purpose, config.pairs, 0)(0)
    sides = vmap(vmap(both, in_dims=(None, 0, None)))(params, normal, *fleet.settings)
    first, second = ({i: side[name].cpu().numpy() for i, name in zip(BOTTOM, names, strict=True)}
                     for side in sides)
    return first, second


def fit_kronecker(inputs: Array, targets: Array) -> tuple[Array, Array]:
    """The factors (left, right) of least sum over tasks of ``|left G right - target|^2``, [task, n,
    m] each: an external optimizer, fitted by least squares for one factor after the other."""
    left, right = np.eye(inputs.shape[1]), np.eye(inputs.shape[2])
    for _ in range(_ROUNDS):
        moved = left @ inputs
        right = np.linalg.pinv(np.einsum("tai,taj->ij", moved, moved)) @ np.einsum(
            "tai,taj->ij", moved, targets)
        moved = inputs @ right
        left = np.einsum("tai,tbi->ab", targets, moved) @ np.linalg.pinv(
            np.einsum("tai,tbi->ab", moved, moved))
    return left, right


def cosine(a: Array, b: Array) -> float:
    """The mean over tasks of the cosine between two gradients, [task, n, m]."""
    sizes = np.sqrt(np.square(a).sum((1, 2)) * np.square(b).sum((1, 2)))
    return float((np.einsum("tij,tij->t", a, b) / np.where(sizes > 0, sizes, 1)).mean())


def compare(config: Config, fleet: Fleet, activation: str, params: Params) -> list[Row]:
    """A row for every layer and seed: the mean cosine on held-out tasks between the layer's
    gradients in the whole network and in the small one, ``raw``, after the fitted rule,
    ``aligned``, and after that of the other layer, ``shuffled``."""
    fit, test = (bottom_gradients(config, fleet, activation, params, f"align/{side}")
                 for side in ("fit", "test"))
    rows = []
    for run, seed in enumerate(fleet.seeds):
        rules = {layer: fit_kronecker(fit[1][layer][run], fit[0][layer][run]) for layer in BOTTOM}
        for layer, other in zip(BOTTOM, BOTTOM[::-1], strict=True):
            target, small = test[0][layer][run], test[1][layer][run]
            cosines = {name: cosine(left @ small @ right, target) for name, (left, right) in
                       (("aligned", rules[layer]), ("shuffled", rules[other]))}
            rows.append({"layer": layer, "seed": seed}
                        | rounded(raw=cosine(small, target), **cosines))
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


def above(table: pd.DataFrame) -> pd.DataFrame:
    """How far the fitted rule's cosine is above that of the other layer's rule."""
    return tables.contrast(table, CASE, "aligned", "shuffled", tables.difference)


def nonlinear(record: Record) -> Finding:
    """D4: in nonlinear networks the fitted rule is above the control, at every look."""
    rows = tables.where(above(record.table), activation=("relu", "tanh"))
    return tables.judge(rows, "cosine above that of the other layer's rule", CASE, above=0)


EXPERIMENT = Experiment("alignment", "upper layers beside an external rule fitted to them",
                        PROFILES, points, measure, {"D4/nonlinear": nonlinear}, ("cuda", "cpu"))
