"""The linear theory carried over to two-layer networks, every task by its quadratic model at its
teacher; and what it is compared with (paper L).

Near the teacher T_i a task is linear regression with H_i for the covariance and phi = df/dW for the
inputs. With m samples Q_i = H - 2 a H^2 + a^2 ((1 - 1/m) H^3 + E[(phi.H phi) phi phi^T] / m); phi
is not Gaussian, so the last mean is drawn. Derived in book/landscape/two_layer.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy import stats
from torch.func import grad, vmap

from companion.checks import Array
from companion.evaluation import Interval, bootstrap
from companion.fleets import Budget, Model, measure
from companion.meta_optimizers import Params
from companion.tasks import Fleet, teachers
from companion.tasks.teachers import Teachers, curvature, features
from companion.theory.gaussian import q_matrix, weighted_centre
from companion.theory.kernels import KERNELS


def leftover(activation: str, weights: torch.Tensor, rho: torch.Tensor, h: Array, alpha: float,
             support: int | None, x: torch.Tensor) -> Array:
    """Q of one teacher, E[(I - a H_hat) H (I - a H_hat)], from its curvature ``h`` and, for
    samples, drawn standard normal ``x`` [draw, dim]."""
    if support is None:
        return q_matrix(h, alpha, np.inf)
    phi = features(activation, weights, rho.sqrt() * x).numpy()
    sizes = np.einsum("ni,ij,nj->n", phi, h, phi, optimize=True)
    fourth = (phi * sizes[:, None]).T @ phi / len(phi)  # E[(phi.H phi) phi phi^T]
    second = (1 - 1 / support) * h @ h @ h + fourth / support
    return np.asarray(h - 2 * alpha * h @ h + alpha**2 * second)


class Prediction(NamedTuple):
    """What the quadratic model says: both risks after one step, and the distance of the centres up
    to permutation."""

    risk_nal: float
    risk_maml: float
    distance: float


def predict(activation: str, family: Teachers, alpha: float, support: int | None, seed: int,
            count: int = 100) -> Prediction:
    """The risks of NAL and MAML after one step, from ``count`` drawn teachers of one family.

    The easy centre's hidden units are permuted to lie nearest to the hard centre's, for that is the
    same function.
    """
    hard = family.centres[teachers.HARD]
    easy = teachers.aligned(family.centres[teachers.EASY], hard)
    family = family._replace(centres=torch.stack([easy, hard]))
    normal = teachers.drawn(family, seed, count)
    weights, rho, _ = vmap(teachers.teacher, in_dims=(None, 0))(family, normal)
    x = teachers.inputs(seed, weights.shape[-1])
    h = vmap(lambda w, r: curvature(activation, w, r, x))(weights, rho).numpy()
    h = (h + h.swapaxes(1, 2)) / 2
    q = np.stack([leftover(activation, *task, alpha, support, x)
                  for task in zip(weights, rho, h, strict=True)])
    optima = weights.flatten(1).numpy()

    def risk(matrices: Array) -> float:
        error = weighted_centre(matrices, optima, np.full(count, 1 / count)) - optima
        return float(np.einsum("ti,tij,tj->t", error, q, error).mean() / 2)

    return Prediction(risk(h), risk(q), float((easy - hard).norm()))


def predictions(fleet: Fleet, activation: str, support: int | None) -> dict[str, Sequence[float]]:
    """The :func:`predict` of every run, with its inner rate, as columns [run]."""
    said = [predict(activation, fleet.run(i)[0], float(fleet.alpha[i]), support, seed)
            for i, seed in enumerate(fleet.seeds)]
    return {"predicted_nal": [each.risk_nal for each in said],
            "predicted_maml": [each.risk_maml for each in said],
            "alpha": fleet.alpha.tolist(), "distance": [each.distance for each in said]}


def by_group(fleet: Fleet, model: Model, params: Params, budget: Budget,
             activation: str) -> dict[str, Array]:
    """Mean risk after one step over all tasks, named as the method; and by group of tasks the risk
    before it and after it and the gradient's norm before it, as columns [run]. Exact where the
    activation has a closed form."""
    loss = fleet.loss(model.net.apply)

    def judge(params: Params, normal: Any, family: Any, alpha: Any) -> tuple[torch.Tensor, ...]:
        task = fleet.make(normal, family)
        weights, rho, group = teachers.teacher(family, normal)
        exact, query = loss, task.query
        if activation in KERNELS:
            exact, query = teachers.population(activation), (weights, rho)
        moved = model.adapt(loss, params, task.support, alpha, 1)
        slope = grad(exact)(params, query)["weight"]
        return group, exact(params, query), exact(moved, query), slope.square().sum().sqrt()

    group, *values = measure(fleet, judge, params, budget)
    found = {model.method: values[1].mean(1).numpy()}
    for name, share in (("easy", 1 - group), ("hard", group)):
        for what, each in zip(("before", "after", "gradient"), values, strict=True):
            mean = (each * share).sum(1) / share.sum(1)
            found[f"{model.method}_{name}_{what}"] = mean.numpy()
    return found


def order(table: pd.DataFrame) -> Interval:
    """Spearman's correlation over settings of predicted and measured ratio NAL / MAML, each of
    means over seeds; its bootstrap interval over seeds."""
    risks = table.set_index(["sweep", "x", "seed"])[
        ["nal", "maml", "predicted_nal", "predicted_maml"]]

    def statistic(drawn: Array) -> Array:
        means = drawn.mean(axis=-2).reshape(*drawn.shape[:-2], 4, -1)
        ranks = [stats.rankdata(means[..., i, :] / means[..., i + 1, :], axis=-1) for i in (0, 2)]
        a, b = (rank - rank.mean(axis=-1, keepdims=True) for rank in ranks)
        return np.asarray((a * b).sum(-1) / np.sqrt((a * a).sum(-1) * (b * b).sum(-1)))

    return bootstrap(statistic, risks.unstack(["sweep", "x"]).to_numpy())  # [seed, 4 * setting]
