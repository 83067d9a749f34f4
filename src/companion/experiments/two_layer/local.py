"""The linear theory carried over to two-layer networks: every task by its quadratic model at its
teacher (paper L).

Near the teacher T_i a task's loss is (W - T_i).H_i (W - T_i)/2, H_i = E[phi phi^T], phi = df/dW:
linear regression with H_i for the covariance and phi for the inputs. With m samples
Q_i = H - 2 a H^2 + a^2 ((1 - 1/m) H^3 + E[(phi.H phi) phi phi^T] / m); phi is not Gaussian, so the
last mean is drawn. Derived in book/landscape/two_layer.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch.func import grad, vmap

from companion import streams
from companion.checks import Array
from companion.nets import two_layer
from companion.tasks import teachers
from companion.tasks.teachers import Teachers
from companion.theory.gaussian import q_matrix, weighted_centre
from companion.theory.kernels import KERNELS, hessian

_DRAWS = 4000  # inputs for a mean that has no closed form


def features(activation: str, weights: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """phi = df/dW at every input: weights [hidden, dim], x [sample, dim] -> [sample, hidden *
    dim]."""
    apply = two_layer(1, 1, activation).apply

    def output(w: torch.Tensor, one: torch.Tensor) -> torch.Tensor:
        return apply({"weight": w}, one[None])[0]

    found: torch.Tensor = vmap(grad(output), in_dims=(None, 0))(weights, x).flatten(1)
    return found


def curvature(
    activation: str, weights: torch.Tensor, rho: torch.Tensor, x: torch.Tensor
) -> torch.Tensor:
    """H = E[phi phi^T] of one teacher, [hidden * dim, hidden * dim]; ``x`` [draw, dim], standard
    normal, is used only where the activation has no closed form."""
    if activation in KERNELS:
        return hessian(weights, weights, rho, activation)
    phi = features(activation, weights, rho.sqrt() * x)
    return phi.mT @ phi / len(phi)


def _inputs(seed: int, dim: int) -> torch.Tensor:
    generator = streams.torch_stream(seed, "two_layer/inputs")
    return torch.randn(_DRAWS, dim, generator=generator, dtype=torch.float64)


def _teachers(of: Teachers, seed: int, count: int) -> dict[str, torch.Tensor]:
    draw = streams.normals([seed], "two_layer/local", teachers.shapes(of, count),
                           dtype=torch.float64)(0)
    return {name: value[0] for name, value in draw.items()}


def mean_curvature(
    activation: str, of: Teachers, group: int, seed: int, count: int = 50
) -> torch.Tensor:
    """The mean H of ``count`` teachers of a group: its spectrum is how fast gradient descent solves
    such tasks."""
    drawn = _teachers(of, seed, count)["teacher"]
    x = _inputs(seed, drawn.shape[-1])
    weights = of.centres[group] + of.spread[group] * drawn
    return vmap(lambda w: curvature(activation, w, of.rho[group], x))(weights).mean(0)


def leftover(activation: str, weights: torch.Tensor, rho: torch.Tensor, h: Array, alpha: float,
             support: int | None, x: torch.Tensor) -> Array:
    """Q of one teacher, E[(I - a H_hat) H (I - a H_hat)], from its curvature ``h`` and, for
    samples, drawn ``x``."""
    if support is None:
        return q_matrix(h, alpha, np.inf)
    phi = features(activation, weights, rho.sqrt() * x).numpy()
    sizes = np.einsum("ni,ij,nj->n", phi, h, phi, optimize=True)
    fourth = (phi * sizes[:, None]).T @ phi / len(phi)  # E[(phi.H phi) phi phi^T]
    return np.asarray(
        h - 2 * alpha * h @ h + alpha**2 * ((1 - 1 / support) * h @ h @ h + fourth / support)
    )


class Prediction(NamedTuple):
    """What the quadratic model says: both risks after one step, and the distance of the centres up
    to permutation."""

    risk_nal: float
    risk_maml: float
    distance: float


def predict(activation: str, of: Teachers, alpha: float, support: int | None, seed: int,
            count: int = 100) -> Prediction:
    """The risks of NAL and MAML after one step by the linear theory, from ``count`` drawn teachers
    of one family.

    The easy centre's hidden units are permuted to lie nearest to the hard centre's, for that is the
    same function.
    """
    easy = teachers.aligned(of.centres[teachers.EASY], of.centres[teachers.HARD])
    of = of._replace(centres=torch.stack([easy, of.centres[teachers.HARD]]))
    drawn = _teachers(of, seed, count)
    weights, rho, _ = vmap(teachers.teacher, in_dims=(None, 0))(of, drawn)
    x = _inputs(seed, weights.shape[-1])
    h = vmap(lambda w, r: curvature(activation, w, r, x))(weights, rho).numpy()
    h = (h + h.swapaxes(1, 2)) / 2
    tasks = zip(weights, rho, h, strict=True)
    q = np.stack([leftover(activation, *task, alpha, support, x) for task in tasks])
    optima = weights.flatten(1).numpy()
    equal = np.full(count, 1 / count)

    def risk(matrices: Array) -> float:
        error = weighted_centre(matrices, optima, equal) - optima
        return float(np.einsum("ti,tij,tj->t", error, q, error).mean() / 2)

    return Prediction(risk(h), risk(q), float((easy - of.centres[teachers.HARD]).norm()))
