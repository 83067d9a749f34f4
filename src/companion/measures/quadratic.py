"""The linear theory carried over to two-layer networks, every task by its quadratic model at its
teacher; and what it is compared with (paper L).

Near the teacher T_i a task is linear regression with H_i for the covariance and phi = df/dW for the
inputs. With m samples Q_i = H - 2 a H^2 + a^2 ((1 - 1/m) H^3 + E[(phi.H phi) phi phi^T] / m); phi
is not Gaussian, so the last mean is drawn. Derived in book/landscape/two_layer.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import linalg
from torch.func import grad_and_value, vmap

from companion.checks import Array
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
    """What the quadratic model says: both risks after one step; the distance of the centres up to
    permutation; the hardness spread h of the tasks, over all directions; and by group what a step
    leaves, the mean of tr(Q) / tr(H)."""

    risk_nal: float
    risk_maml: float
    distance: float
    spread: float
    left_easy: float
    left_hard: float


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
    weights, rho, group = vmap(teachers.teacher, in_dims=(None, 0))(family, normal)
    x = teachers.inputs(seed, weights.shape[-1])
    h = vmap(lambda w, r: curvature(activation, w, r, x))(weights, rho).numpy()
    h = (h + h.swapaxes(1, 2)) / 2
    q = np.stack([leftover(activation, *task, alpha, support, x)
                  for task in zip(weights, rho, h, strict=True)])
    optima = weights.flatten(1).numpy()

    def risk(matrices: Array) -> float:
        error = weighted_centre(matrices, optima, np.full(count, 1 / count)) - optima
        return float(np.einsum("ti,tij,tj->t", error, q, error).mean() / 2)

    left = np.trace(q, axis1=1, axis2=2) / np.trace(h, axis1=1, axis2=2)
    means = (float(left[group.numpy() == one].mean()) for one in (teachers.EASY, teachers.HARD))
    return Prediction(risk(h), risk(q), float((easy - hard).norm()), spread(h, q), *means)


def spread(h: Array, q: Array) -> float:
    """The hardness spread: the least over the largest eigenvalue of H^-1/2 Q H^-1/2, over tasks and
    directions, [task, n, n] each."""
    left = np.stack([linalg.eigh(after, before, eigvals_only=True)
                     for after, before in zip(q, h, strict=True)])
    return float(max(left.min(), 0.0) / left.max())


def predictions(fleet: Fleet, activation: str, support: int | None) -> dict[str, Sequence[float]]:
    """The :func:`predict` of every run, with its inner rate, as columns [run]."""
    said = [predict(activation, fleet.run(i)[0], float(fleet.alpha[i]), support, seed)
            for i, seed in enumerate(fleet.seeds)]
    return {"predicted_nal": [each.risk_nal for each in said],
            "predicted_maml": [each.risk_maml for each in said],
            "alpha": fleet.alpha.tolist(), "distance": [each.distance for each in said],
            "h": [each.spread for each in said], "left_easy": [each.left_easy for each in said],
            "left_hard": [each.left_hard for each in said]}


def by_group(fleet: Fleet, model: Model, params: Params, budget: Budget,
             activation: str) -> dict[str, Array]:
    """Mean risk after one step over all tasks, named as the method; by group of tasks the risk
    before it and after it; and the gradients of both, as columns [run].

    The gradient "before" is that of f_i at w, "after" that of f_i(w+) in w, (I - a H_i) grad
    f_i(w+). A group's ``pull`` is the norm of its share of the mean gradient, and ``imbalance`` the
    norm of the whole mean over the sum of both pulls: 0 where the groups balance, as they do at a
    stationary point. Exact where the activation has a closed form.
    """
    loss = fleet.loss(model.net.apply)

    def judge(params: Params, normal: Any, family: Any, alpha: Any) -> tuple[torch.Tensor, ...]:
        task = fleet.make(normal, family)
        weights, rho, group = teachers.teacher(family, normal)
        exact, query = loss, task.query
        if activation in KERNELS:
            exact, query = teachers.population(activation), (weights, rho)

        def adapted(params: Params) -> torch.Tensor:
            return exact(model.adapt(loss, params, task.support, alpha, 1), query)

        before, after = grad_and_value(exact)(params, query), grad_and_value(adapted)(params)
        return (group, before[1], after[1], before[0]["weight"].flatten(),
                after[0]["weight"].flatten())

    group, *risks, before, after = measure(fleet, judge, params, budget)
    shares = {"easy": 1 - group, "hard": group}
    found = {model.method: risks[1].mean(1)}
    for when, risk, slopes in zip(("before", "after"), risks, (before, after), strict=True):
        pulls = {name: (slopes * share[..., None]).mean(1) for name, share in shares.items()}
        for name, share in shares.items():
            found[f"{model.method}_{name}_{when}"] = (risk * share).sum(1) / share.sum(1)
            found[f"{model.method}_{name}_pull_{when}"] = pulls[name].norm(dim=-1)
        found[f"{model.method}_imbalance_{when}"] = (
            sum(pulls.values()).norm(dim=-1) / sum(pull.norm(dim=-1) for pull in pulls.values()))
    return {name: value.numpy() for name, value in found.items()}
