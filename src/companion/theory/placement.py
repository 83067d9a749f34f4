"""Where two groups of linear regressions must lie for MAML to gain most: hardness has directions.

Groups as in :class:`companion.tasks.regressions.LinearFamily`, of any covariance. Derived in
book/landscape/gap.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from companion.checks import Array, at_least, require
from companion.theory.gaussian import noise_risk, q_matrix, weighted_centre


class Placement(NamedTuple):
    """Two centres, [2, d], the second at 0, and the ratio risk(NAL) / risk(MAML) there."""

    ratio: float
    centres: Array


def _cost(metrics: Array, q: Array, weights: Array, name: str) -> Array:
    """A with risk (c_1 - c_2).A (c_1 - c_2)/2, where the start minimises the mean of ``metrics``:
    w - c_2 = E[M]^-1 p_1 M_1 (c_1 - c_2)."""
    d = q.shape[-1]
    move = np.stack([weighted_centre(metrics, np.stack([axis, np.zeros(d)]), weights, name)
                     for axis in np.eye(d)], axis=1)
    rest = np.eye(d) - move
    return np.asarray(weights[0] * rest.T @ q[0] @ rest + weights[1] * move.T @ q[1] @ move)


def best_placed(covariances: ArrayLike, alpha: float, support: float, *, distance: float,
                variances: ArrayLike, weights: ArrayLike = (0.5, 0.5), noise: float = 0.0,
                steps: int = 1) -> Placement:
    """The centres of two groups, ``distance`` apart, at which MAML gains most over NAL.

    Both risks are (c_1 - c_2).A (c_1 - c_2)/2 + r, r the part of the groups' variances and of the
    noise. So the largest ratio is the largest generalised eigenvalue of (R^2 A_NAL + 2 r I, R^2
    A_MAML + 2 r I), and its eigenvector is the direction of c_1 - c_2. Shapes: covariances [2, d,
    d], variances E|w* - c|^2 and weights [2]; the other arguments are numbers, as in
    :func:`companion.theory.gaussian.q_matrix`. ValueError: an argument out of range, shapes that
    do not match, a singular E[S] or E[Q], or r = 0.
    """
    q = q_matrix(covariances, alpha, support, steps=steps)
    covariances = np.asarray(covariances, dtype=float)
    require(q.ndim == 3 and len(q) == 2, "covariances.shape", "be [2, d, d]", q.shape,
            "give one matrix per group")
    spreads = at_least("variances", variances, 0, "a variance is not negative")
    shares = at_least("weights", weights, 0, "a probability is not negative")
    for name, array in (("variances", spreads), ("weights", shares)):
        require(array.shape == (2,), f"{name}.shape", "be (2,)", array.shape, "give one per group")
    require(shares.sum() > 0, "weights", "have a positive sum", shares, "give one a weight")
    apart = at_least("distance", distance, 0, "it is the distance of the two centres")
    shares = shares / shares.sum()
    around = np.trace(q, axis1=1, axis2=2) * spreads / (2 * q.shape[-1])
    rest = shares @ (around + noise_risk(covariances, alpha, support, noise, steps=steps))
    require(rest > 0, "the risk at the centres", "be positive", float(rest),
            "without a spread of optima or noise the ratio may be infinite")
    nal, maml = (float(apart) ** 2 * _cost(metrics, q, shares, name) + 2 * rest * np.eye(q.shape[1])
                 for metrics, name in ((covariances, "E[Sigma]"), (q, "E[Q]")))
    inverse = np.linalg.inv(np.linalg.cholesky(maml))
    ratios, vectors = np.linalg.eigh(inverse @ nal @ inverse.T)
    direction = inverse.T @ vectors[:, -1]
    towards = np.sign(direction[np.argmax(np.abs(direction))])  # of the two signs, which is free
    centre = direction * (towards * float(apart) / np.linalg.norm(direction))
    return Placement(float(ratios[-1]), np.stack([centre, np.zeros_like(centre)]))
