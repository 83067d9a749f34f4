"""The rungs of the ladder (paper D): rules that a shallow model can use, and layers added to it."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from companion import nets, tables
from companion.checks import Array
from companion.fleets import Model, start
from companion.meta_optimizers import Params
from companion.tasks import Fleet
from companion.tasks.readouts import spread
from companion.theory import whitening

CASE = ["kind", "model", "family", "steps"]
FAMILIES = ("neither", "inputs", "tasks", "both")  # what is spread
RATES = ("one rate", "per-step rates", "per-parameter rates")
WHITENED = ("whitened", "whitened, per-step rates", "best ridge")
LAYERS = ("1 added", "2 added", "3 added", "4 added")
OTHERS = ("no step", "least squares")
DEEP = "deep"  # the number of added layers that is best on validation tasks


class Rung(NamedTuple):
    """A rule, and on which inputs it is used: as they are, or whitened with the ridge for tasks
    without structure ("free"), or the one that is best for the family ("best")."""

    rule: str = "SGD"
    ridge: str = ""


RUNGS: Mapping[str, Rung] = {
    "one rate": Rung("learned rate"), "per-step rates": Rung("per-step rates"),
    "per-parameter rates": Rung("Meta-SGD"), "whitened": Rung("learned rate", "free"),
    "whitened, per-step rates": Rung("per-step rates", "free"),
    "best ridge": Rung("learned rate", "best"), "matrix": Rung("KFO")}


def differing(model: str, family: str, steps: int) -> list[str]:
    """Those of RUNGS that differ: with one step and one tensor a rate per step is one rate, white
    inputs need no whitening, and one ridge is best unless the tasks are spread too."""

    def differs(rung: str) -> bool:
        once = model == "linear" and steps == 1 and "per-step" in rung
        white = RUNGS[rung].ridge and family not in ("inputs", "both")
        return not (once or white or (rung == "best ridge" and family != "both"))

    return [*filter(differs, RUNGS)]


def variances(family: str, wide: Array) -> tuple[Array, Array]:
    """Of the inputs and, times their number, of the optima, along the axes: ``wide`` where the
    family says that they are spread, else 1, [dim]."""
    flat = np.ones_like(wide)
    return (wide if family in ("inputs", "both") else flat,
            wide if family in ("tasks", "both") else flat)


def setting(rung: str, family: str, scales: tuple[int, float, float], support: int,
            hidden: int) -> dict[str, Any]:
    """Arguments of :func:`companion.tasks.readouts.readout`; ``scales`` are the number of inputs,
    the least and the largest standard deviation, ``hidden`` is 0 for linear models."""
    inputs, optima = variances(family, np.square(spread(*scales)))
    found: dict[str, Any] = {"scales": np.sqrt(inputs).tolist()}
    found |= {"hidden": hidden} if hidden else {"tasks": np.sqrt(optima).tolist()}
    ridge, covariance = RUNGS.get(rung, Rung()).ridge, np.diag(inputs)
    if ridge == "free":
        found["ridge"] = whitening.ridge_whitening(covariance, support).ridge
    elif ridge == "best":
        found["ridge"] = whitening.best_ridge(covariance, np.diag(optima) / len(optima), support)
    return found


def model_of(rung: str, steps: int, dim: int, hidden: int) -> Model:
    """The network of a rung with its rule; added layers are as wide as the inputs of the last."""
    added = int(rung.split()[0]) if rung in LAYERS else 0
    body = (dim, hidden) if hidden else (dim,)
    net = nets.mlp((*body, *[body[-1]] * added, 1), "tanh", bias=hidden > 0, linear_layers=added)
    return Model(net, method="nal" if rung == "no step" else "maml", steps=steps,
                 rule=RUNGS.get(rung, Rung()).rule)


def begin(fleet: Fleet, model: Model, apart: float) -> Params:
    """Where runs start: rates per step, if there are several, from 1/``apart`` to ``apart`` times
    the inner rate."""
    params, ends = start(fleet, model), np.log(apart) * (model.steps > 1)
    scales = torch.linspace(-ends, ends, model.steps).exp().to(fleet.alpha)
    return {name: value * scales if name.endswith(".scales") else value
            for name, value in params.items()}


def at_best(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of every rung at its best start rate on validation tasks, and those of DEEP, with
    the risk ``after`` the steps trained for, and the accuracy ``right``."""
    best = tables.best(table, [*CASE, "rung"])
    layers = tables.where(best, rung=LAYERS)
    deep = tables.best(layers, CASE, choice="rung").assign(rung=DEEP)
    every = pd.concat([best, deep], ignore_index=True)
    for name, column in (("after", "risk"), ("right", "accuracy")):
        every[name] = [row[f"{column}_{row['steps']}"] for _, row in every.iterrows()]
    return every


def over(table: pd.DataFrame, base: str, asked: Sequence[str] = ()) -> pd.DataFrame:
    """Risk of every rung, or of those ``asked``, over that of the rung ``base``, after the steps
    trained for."""
    rows = at_best(table).dropna(subset="after")
    if asked:
        rows = tables.where(rows, rung=(*asked, base))
    return tables.contrast(rows, [*CASE, "rung"], "after", {"rung": base})
