r"""What a shallow model reaches in one step: rungs between no adaptation and least squares.

Tasks are those of :mod:`companion.theory.depth`: y = w*.x + z, x ~ N(0, S), w* ~ (0, C), z ~ N(0,
noise^2), with m = ``support`` samples, and one step from w = 0. On the whitened inputs K x, K =
(S + ridge I)^-1/2, a shallow model with one rate takes the step of the preconditioner rate (S +
ridge I)^-1. Derived in book/depth/shallow.
"""

import math
from functools import cache
from typing import NamedTuple

import numpy as np
import sympy as sp
from numpy.typing import ArrayLike
from scipy.optimize import minimize_scalar

from companion.checks import Array, at_least, one_number, require, support_size
from companion.theory import depth
from companion.theory.gaussian import check_covariance

_GRID = 201  # of weights in [0, 1] between full whitening and none


class RidgeWhitening(NamedTuple):
    """The step ``rate`` on the inputs (S + ``ridge`` I)^-1/2 x, and the ``preconditioner`` that it
    amounts to, rate (S + ridge I)^-1, [d, d]."""

    rate: float
    ridge: float
    preconditioner: Array


def _inputs(covariance: ArrayLike) -> Array:
    covariance = check_covariance("covariance", covariance)
    require(covariance.ndim == 2, "covariance.shape", "be [d, d]", covariance.shape,
            "call once per family")
    least = np.linalg.eigvalsh(covariance)[0]
    require(least > 0, "covariance", "be positive definite: its least eigenvalue must be > 0",
            least, "drop dead inputs")
    return covariance


def _samples(support: float, noise: float) -> tuple[float, float]:
    size, sigma = support_size(support), at_least("noise", noise, 0, "it is a standard deviation")
    return one_number("support", size), one_number("noise", sigma)


def ridge_whitening(covariance: ArrayLike, support: float, noise: float = 0.0) -> RidgeWhitening:
    """The best preconditioner for tasks of covariance C = I/d: a ridge-whitening of the inputs.

    P* = rate (S + ridge I)^-1, rate = m/(m + 1), ridge = (tr S + d noise^2)/(m + 1). Without noise
    it needs the inputs' covariance and m alone, and holds for any C = c I; with noise, ``noise`` is
    relative to ``sqrt(E |w*|^2)``, the length of the optima. m = math.inf gives S^-1.

    ``covariance`` is S, [d, d], positive definite; ``support`` m >= 1; ``noise`` >= 0. ValueError:
    an argument out of range. Source: derived in book/depth/shallow; without noise it is the inverse
    of the matrix Gamma of Zhang, Frei and Bartlett (2024).
    """
    covariance, (size, sigma) = _inputs(covariance), _samples(support, noise)
    d, u = len(covariance), 1 / size
    rate = 1 / (1 + u)
    ridge = float(np.trace(covariance) + d * sigma**2) * u * rate
    inverse = np.linalg.inv(covariance + ridge * np.eye(d))
    return RidgeWhitening(rate, ridge, np.asarray(rate * inverse))


def whitened(covariance: ArrayLike, task_covariance: ArrayLike,
             ridge: float) -> tuple[Array, Array]:
    """The covariances K S K and K^-1 C K^-1 of the tasks that the inputs K x pose, K = (S + ridge
    I)^-1/2: y = w*.x = (K^-1 w*).(K x). ``ridge`` 0 whitens fully; math.inf leaves all as it is.
    Both [d, d]. ValueError: shapes that do not match, S not positive definite, a negative ridge."""
    covariance = _inputs(covariance)
    tasks = check_covariance("task_covariance", task_covariance)
    require(tasks.shape == covariance.shape, "task_covariance.shape", f"be {covariance.shape}",
            tasks.shape, "it is that of w*, for one output")
    ridge = float(at_least("ridge", ridge, 0, "0 whitens fully", infinite=True))
    if math.isinf(ridge):
        return covariance, tasks
    values, axes = np.linalg.eigh(covariance)
    root = np.sqrt(values + ridge)
    back = (axes * root) @ axes.T
    inputs, turned = (axes * (values / root**2)) @ axes.T, back @ tasks @ back
    return (inputs + inputs.T) / 2, (turned + turned.T) / 2


def whitened_risk(covariance: ArrayLike, task_covariance: ArrayLike, support: float,
                  noise: float = 0.0, *, ridge: float) -> float:
    """The least excess risk of a shallow model after one step on whitened inputs, at its best rate:
    :func:`companion.theory.depth.shallow_risk` of the tasks of :func:`whitened`. ``ridge=math.inf``
    is the shallow model on the inputs as they are. Arguments and errors as there."""
    family = whitened(covariance, task_covariance, ridge)
    rate = depth.best_shallow_step(*family, support, noise)
    return depth.shallow_risk(*family, rate, support, noise)


def best_ridge(covariance: ArrayLike, task_covariance: ArrayLike, support: float,
               noise: float = 0.0) -> float:
    """The ridge of least :func:`whitened_risk`, 0 and math.inf included: what a search over one
    number can find, which takes labels. It is sought as ridge = s t/(1 - t), s the mean variance, t
    on a grid in [0, 1] and then between the neighbours of the best; where S is a multiple of I any
    ridge is as good. Arguments as there."""
    inputs = _inputs(covariance)
    mean = float(np.trace(inputs) / len(inputs))

    def ridge(weight: float) -> float:
        return math.inf if weight >= 1 else mean * weight / (1 - weight)

    def risk(weight: float) -> float:
        return whitened_risk(covariance, task_covariance, support, noise, ridge=ridge(weight))

    grid = np.linspace(0, 1, _GRID)
    best = int(np.argmin([risk(weight) for weight in grid]))
    ends = grid[max(best - 1, 0)], grid[min(best + 1, _GRID - 1)]
    near = float(minimize_scalar(risk, bounds=ends, method="bounded",
                                 options={"xatol": 1e-9}).x)
    return ridge(min((float(grid[best]), near), key=risk))


def least_squares_risk(dim: int, support: float, noise: float = 0.0) -> float:
    """The excess risk of least squares on the support, for any S and C: d noise^2 / (2 (m - d -
    1)), since E[(X.T X)^-1] = S^-1/(m - d - 1). It is 0 without noise, and infinite for m = d and m
    = d + 1 with noise. ValueError: fewer samples than inputs, or an argument out of range. Source:
    the mean of the inverse Wishart distribution."""
    at_least("dim", dim, 1, "there is at least one input", whole=True)
    size, sigma = _samples(support, noise)
    require(size >= dim, "support", f"be at least dim = {dim}", support,
            "with fewer samples the solution is not unique, and its risk depends on S and C")
    if sigma == 0:
        return 0.0
    return dim * sigma**2 / (2 * (size - dim - 1)) if size > dim + 1 else math.inf


def ladder(covariance: ArrayLike, task_covariance: ArrayLike, support: float,
           noise: float = 0.0) -> dict[str, float]:
    """The excess risk of every rung after one step, by name.

    "no step": tr(S C)/2; "one rate": the shallow model at its best one; "ridge-whitened": the same
    on inputs whitened with the ridge of :func:`ridge_whitening` for the tasks' length, "best
    ridge": with that of :func:`best_ridge`; "P*": the best preconditioner; "least squares" on the
    support, where m >= d. Every rung but the last is a preconditioner, so none of them is below
    "P*", which depends on the eigenvalues of S C alone. Arguments and errors as in
    :func:`companion.theory.depth.best_preconditioner`, for one output; C must not vanish."""
    family = (covariance, task_covariance, support, noise)
    d, tasks = len(_inputs(covariance)), check_covariance("task_covariance", task_covariance)
    whole = whitened_risk(*family, ridge=math.inf)  # which checks the shapes
    length = math.sqrt(float(np.trace(tasks)))
    require(length > 0, "task_covariance", "not vanish", 0.0, "equal tasks need no step")
    free = ridge_whitening(covariance, support, noise / length).ridge
    best = depth.best_preconditioner(*family)
    rungs = {"no step": float(np.sum(np.asarray(covariance) * tasks) / 2), "one rate": whole,
             "ridge-whitened": whitened_risk(*family, ridge=free),
             "best ridge": whitened_risk(*family, ridge=best_ridge(*family)),
             "P*": depth.preconditioned_risk(best, *family)}
    if support >= d:
        rungs["least squares"] = least_squares_risk(d, support, noise)
    return rungs


@cache
def proofs() -> dict[str, bool]:
    """Theorems of book/depth/shallow, gone through by SymPy for every dimension d.

    ``ridge``: in the eigenbasis of S, in which C = I/d is diagonal too, the entry of P* along a
    variance s is rate/(s + ridge). ``converse``: so it is for C^-1 = a I + b S, and only then:
    P*^-1 - (S + ridge I)/rate is linear in C^-1. ``step``: the best single step for any S and C,
    from the traces of S C, S^2 C, S^3 C and S^2 alone; S is a non-commutative symbol, powers of
    which stand for themselves in any dimension. ``isotropic``: it is m/(rho (m + d + 1)) for S =
    rho I and C = c I.
    """
    s, m, d, trace, tau, rate = sp.symbols("s m d trace tau rate", positive=True)
    sigma, a, b, ridge, inverse = sp.symbols("sigma a b ridge inverse", real=True)
    entry = 1 / ((1 + 1 / m) * s + (trace / d + sigma**2) / m * d)
    free = m / (m + 1) / (s + (trace + d * sigma**2) / (m + 1))
    left = (1 + 1 / m) * s + tau * inverse - (s + ridge) / rate
    (only,) = sp.solve(left, inverse)
    line = sp.expand(only - (ridge / (rate * tau) + (1 / rate - 1 - 1 / m) / tau * s))
    reached = sp.simplify((1 + 1 / m) * s + tau * (a + b * s)
                          - (s + tau * a / (1 + 1 / m + tau * b)) * (1 + 1 / m + tau * b))
    risk, (alpha, u, noise, square, first, second, third) = step_risk()
    (least,) = sp.solve(sp.diff(risk, alpha), alpha)
    formula = second / ((1 + u) * third + u * square * (first + noise**2))
    rho, c = sp.symbols("rho c", positive=True)
    isotropic = least.subs({first: rho * c * d, second: rho**2 * c * d, third: rho**3 * c * d,
                            square: rho**2 * d, noise: 0, u: 1 / m})
    return {"ridge": sp.simplify(entry - free) == 0, "converse": line == 0 and reached == 0,
            "step": sp.simplify(least - formula) == 0 and sp.diff(risk, alpha, 2).is_positive,
            "isotropic": sp.simplify(isotropic - m / (rho * (m + d + 1))) == 0}


def step_risk() -> tuple[sp.Expr, tuple[sp.Symbol, ...]]:
    """tr(Q C)/2 and the noise term of one step, and the symbols in it: alpha, 1/m, the noise, tr
    S^2, tr(S C), tr(S^2 C), tr(S^3 C). (I - alpha S) S (I - alpha S) is multiplied out with a non-
    commutative S, and the trace against C is taken term by term, so it holds for every d."""
    symbols = sp.symbols("alpha u sigma q t_1 t_2 t_3", positive=True)
    alpha, u, noise, square, t1, t2, t3 = symbols
    s = sp.Symbol("S", commutative=False)
    q = sp.expand((1 - alpha * s) * s * (1 - alpha * s) + alpha**2 * u * (square * s + s**3))
    traced = sum((q.coeff(s, power) * trace for power, trace in ((1, t1), (2, t2), (3, t3))),
                 sp.Integer(0))
    return (traced + alpha**2 * u * noise**2 * square) / 2, symbols
