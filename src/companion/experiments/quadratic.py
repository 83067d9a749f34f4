"""The linear theory carried over to two-layer networks: every task by its quadratic model at its
teacher (paper L).

Near the teacher T_i a task is linear regression with H_i for the covariance and phi = df/dW for the
inputs. With m samples Q_i = H - 2 a H^2 + a^2 ((1 - 1/m) H^3 + E[(phi.H phi) phi phi^T] / m); phi
is not Gaussian, so the last mean is drawn. Derived in book/landscape/two_layer.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch.func import vmap

from companion.checks import Array
from companion.tasks import teachers
from companion.tasks.teachers import Teachers, curvature, features
from companion.theory.gaussian import q_matrix, weighted_centre


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
