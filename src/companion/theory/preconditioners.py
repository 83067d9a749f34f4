r"""One step with one preconditioner for all tasks, and the start that goes with it.

Task i is x ~ N(0, S_i), y = w_i*.x + z, z ~ N(0, noise^2). One step from w on m = ``support``
samples is w+ = w - P g, g their mean gradient. With e = w - w_i* and u = 1/m the excess risk is

    [e.S e - 2 e.S P S e + tr(P.T S P K)] / 2,    K = (1 + u) S e e.T S + u (e.S e + noise^2) S,

the last by Wick's theorem. For one w it is convex and quadratic in P, for one P in w; in both
together it is not, and may have several minima. P need not be symmetric.

Shapes, here and below: ``covariances`` [task, d, d], ``optima`` [task, d], ``weights`` [task] >= 0,
normalised, ``noise`` a number or [task], ``w`` [d], ``preconditioner`` [d, d]. ValueError: shapes
that do not match, or an argument out of range. Derived in book/together.
"""

import math
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from companion.checks import Array, at_least, one_number, real, require, support_size
from companion.theory import gaussian
from companion.theory.rate_search import Profile

KINDS = ("rate", "full")
_CONVERGED = 1e-13  # of a residual over its start: conjugate gradients have ended
_SETTLED, _ROUNDS = 1e-11, 500  # of alternating minimisation: least relative gain, most rounds
_FAR = 4  # standard deviations of the optima: where a start is away from all tasks
_RANK = 1e-13  # an eigenvalue below this share of the largest counts as none


class Tasks(NamedTuple):
    """Tasks after checks: S [task, d, d], w* [task, d], weights of sum 1, 1/m, noise^2 [task]."""

    covariances: Array
    optima: Array
    weights: Array
    inverse_support: float
    variances: Array

    def errors(self, w: Array) -> tuple[Array, Array, Array]:
        """e = w - w*, S e, and u (e.S e + noise^2), which the samples add per unit of tr."""
        error = w - self.optima
        slope = np.einsum("tij,tj->ti", self.covariances, error)
        size = self.inverse_support * ((error * slope).sum(1) + self.variances)
        return error, slope, size


class Joint(NamedTuple):
    """A start ``w`` and a ``preconditioner`` with their ``risk``, which is at least ``bound`` for
    any other pair; ``descent``: the risks of the rounds that led there."""

    risk: float
    w: Array
    preconditioner: Array
    bound: float
    descent: tuple[float, ...]


def tasks_of(covariances: ArrayLike, optima: ArrayLike, support: float,
             weights: ArrayLike | None = None, noise: ArrayLike = 0.0) -> Tasks:
    """The tasks, checked once for all the functions below."""
    covariances, optima, weights = gaussian.check_tasks(covariances, optima, weights)
    sigma = at_least("noise", noise, 0, "noise is a standard deviation")
    require(sigma.shape in ((), weights.shape), "noise.shape", f"be () or {weights.shape}",
            sigma.shape, "give one number, or one per task")
    size = one_number("support", support_size(support))
    return Tasks(covariances, optima, weights, 1 / size, np.broadcast_to(sigma**2, weights.shape))


def _start(w: ArrayLike, tasks: Tasks) -> Array:
    array, shape = real("w", w), tasks.optima.shape[1:]
    require(array.shape == shape, "w.shape", f"be [d] = {shape}", array.shape,
            "give one entry per input")
    return array


def _matrix(name: str, value: ArrayLike, tasks: Tasks) -> Array:
    array, shape = real(name, value), tasks.covariances.shape[1:]
    require(array.shape == shape, f"{name}.shape", f"be [d, d] = {shape}", array.shape,
            "it maps gradients to steps")
    return array


def _traces(p: Array, s: Array) -> Array:
    """tr(P.T S P S), [task]; a single rate needs no products."""
    if np.array_equal(p, p[0, 0] * np.eye(len(p))):
        return np.asarray(p[0, 0] ** 2 * np.einsum("tij,tij->t", s, s))
    product = s @ p
    other = product.swapaxes(1, 2) if np.array_equal(p, p.T) else p @ s
    return np.asarray(np.einsum("tij,tij->t", product, other))


def task_risks(w: ArrayLike, preconditioner: ArrayLike, tasks: Tasks) -> Array:
    """The excess risk of every task after the step, [task]: the formula at the head."""
    start, p = _start(w, tasks), _matrix("preconditioner", preconditioner, tasks)
    error, slope, size = tasks.errors(start)
    move = slope @ p.T
    left, s = error - move, tasks.covariances
    risks = np.einsum("ti,tij,tj->t", left, s, left, optimize=True)
    if tasks.inverse_support:
        seen = np.einsum("ti,tij,tj->t", move, s, move, optimize=True)
        risks = risks + tasks.inverse_support * seen + size * _traces(p, s)
    return np.asarray(risks / 2)


def risk(w: ArrayLike, preconditioner: ArrayLike, covariances: ArrayLike, optima: ArrayLike,
         support: float, weights: ArrayLike | None = None, noise: ArrayLike = 0.0) -> float:
    """The mean of :func:`task_risks`, in squared units of y. With P = alpha I it is
    :func:`companion.theory.gaussian.excess_risk` of one step."""
    tasks = tasks_of(covariances, optima, support, weights, noise)
    return float(tasks.weights @ task_risks(w, preconditioner, tasks))


def rate_along(w: Array, along: Array, tasks: Tasks) -> float:
    """:func:`best_rate`, for tasks after checks."""
    _, slope, size = tasks.errors(w)
    move, s = slope @ along.T, tasks.covariances
    bottom = (1 + tasks.inverse_support) * np.einsum("ti,tij,tj->t", move, s, move, optimize=True)
    if tasks.inverse_support:
        bottom = bottom + size * _traces(along, s)
    top, below = tasks.weights @ (slope * move).sum(1), tasks.weights @ bottom
    return float(top / below) if below > 0 else 0.0


def best_rate(w: ArrayLike, covariances: ArrayLike, optima: ArrayLike, support: float,
              weights: ArrayLike | None = None, noise: ArrayLike = 0.0, *,
              along: ArrayLike | None = None) -> float:
    """The rate r of least risk from w with P = r M, M = ``along`` [d, d], the identity by default:
    r = E[e.S M S e] / E[tr(M.T S M K)]; 0 where every gradient vanishes and any rate is best."""
    tasks = tasks_of(covariances, optima, support, weights, noise)
    identity = np.eye(tasks.optima.shape[1])
    matrix = identity if along is None else _matrix("along", along, tasks)
    return rate_along(_start(w, tasks), matrix, tasks)


def _inverse(matrix: Array) -> Array:
    """The pseudo-inverse of a covariance."""
    values, axes = np.linalg.eigh(matrix)
    kept = values > _RANK * len(values) * values[-1]
    return np.asarray((axes[:, kept] / values[kept]) @ axes[:, kept].T)


def descend(w: ArrayLike, tasks: Tasks, start: Array | None = None) -> Iterator[Array]:
    """Preconditioners of falling risk from w, the last the best: conjugate gradients on E[S P K] =
    E[S e e.T S], preconditioned with E[S]^-1 and E[K]^-1. They start at ``start``, by default the
    best multiple of I; where several are best they end at one near it. Stopped early they change
    the directions that matter most, and fit few tasks less closely."""
    w, s, d = _start(w, tasks), tasks.covariances, tasks.optima.shape[1]
    p = rate_along(w, np.eye(d), tasks) * np.eye(d) if start is None else start
    yield p
    _, slope, size = tasks.errors(w)
    weighted = tasks.weights[:, None] * slope
    once = (1 + tasks.inverse_support) * weighted
    scaled = ((tasks.weights * size)[:, None, None] * s).reshape(-1, d)

    def operator(p: Array) -> Array:
        image = np.einsum("tij,tj->ti", s, slope @ p.T).T @ once
        if tasks.inverse_support:
            products = (s.reshape(-1, d) @ p).reshape(s.shape)
            image = image + products.transpose(1, 0, 2).reshape(d, -1) @ scaled
        return np.asarray(image)

    second = once.T @ slope + scaled.reshape(s.shape).sum(0)
    left, right = _inverse(np.einsum("t,tij->ij", tasks.weights, s)), _inverse(second)
    residual = weighted.T @ slope - operator(p)
    towards = direction = left @ residual @ right
    size_now = first = float(np.sum(residual * towards))
    for _ in range(2 * d * d):
        if size_now <= _CONVERGED**2 * first or size_now <= 0:
            return
        image = operator(direction)
        curvature = float(np.sum(direction * image))
        if curvature <= 0:  # rounding: nothing is left to gain
            return
        p = p + size_now / curvature * direction
        yield p
        residual = residual - size_now / curvature * image
        towards = left @ residual @ right
        before, size_now = size_now, float(np.sum(residual * towards))
        direction = towards + size_now / before * direction


def best(w: ArrayLike, covariances: ArrayLike, optima: ArrayLike, support: float,
         weights: ArrayLike | None = None, noise: ArrayLike = 0.0) -> Array:
    """The preconditioner of least risk from w, [d, d], the end of :func:`descend`. For one centred
    family, w* ~ (0, C) and w = 0, it is :func:`companion.theory.depth.best_preconditioner`, P*."""
    tasks = tasks_of(covariances, optima, support, weights, noise)
    return _last(descend(w, tasks))


def _last(path: Iterator[Array]) -> Array:
    return deque(path, maxlen=1).pop()


def leftover(preconditioner: ArrayLike, tasks: Tasks) -> Array:
    """Q of every task, [task, d, d], with risk (w - w*).Q (w - w*)/2 and a noise term: Q = (I - P
    S).T S (I - P S) + u (S A S + tr(S A) S), A = P.T S P."""
    p, s = _matrix("preconditioner", preconditioner, tasks), tasks.covariances
    rest = np.eye(len(p)) - p @ s
    q = rest.swapaxes(1, 2) @ s @ rest
    if tasks.inverse_support:
        inner = p.T @ s @ p
        traces = (s * inner).sum((1, 2))[:, None, None]
        q = q + tasks.inverse_support * (s @ inner @ s + traces * s)
    return np.asarray((q + q.swapaxes(1, 2)) / 2)


def minimiser(preconditioner: ArrayLike, covariances: ArrayLike, optima: ArrayLike, support: float,
              weights: ArrayLike | None = None, noise: ArrayLike = 0.0) -> Array:
    """The start of least risk for one preconditioner, E[Q]^-1 E[Q w*] with Q of :func:`leftover`,
    [d]; that of MAML for P = alpha I. ValueError also where E[Q] is singular."""
    tasks = tasks_of(covariances, optima, support, weights, noise)
    q = leftover(preconditioner, tasks)
    return gaussian.weighted_centre(q, tasks.optima, tasks.weights, "E[Q]")


def _centre(q: Array, tasks: Tasks, near: Array) -> Array:
    """The minimiser of E[(w - w*).Q (w - w*)] nearest to ``near``: E[Q] may be singular."""
    pull = np.einsum("t,tij,tj->i", tasks.weights, q, tasks.optima - near, optimize=True)
    return np.asarray(near + _inverse(np.einsum("t,tij->ij", tasks.weights, q)) @ pull)


def together(covariances: ArrayLike, optima: ArrayLike, support: float,
             weights: ArrayLike | None = None, noise: ArrayLike = 0.0, *,
             kind: str = "full", starts: int = 8) -> Joint:
    """The start and the step of least risk, learned together. ``kind`` "rate": P = r I; "full": any
    P, [d, d].

    For a rate the least risk over w is a function of one number. Its search is global: ``bound``
    holds for every start and rate, and is within 1e-6 of the risk unless the search gave up. For a
    full P start and preconditioner are improved in turn, each exactly, from the start of the best
    rate, from NAL's, and from up to ``starts`` points away from all tasks, along the principal axes
    of their optima; the best end is returned, which may be a local minimum (with the full batch and
    few tasks there are several), and ``bound`` is 0. ``descent`` never rises."""
    require(kind in KINDS, "kind", f"be one of {', '.join(KINDS)}", repr(kind), "see together")
    tasks = tasks_of(covariances, optima, support, weights, noise)
    d, profile = tasks.optima.shape[1], Profile(*tasks)
    rate, bound = profile.search()
    w = profile.least(rate, rate**2)[1]
    first = float(tasks.weights @ task_risks(w, rate * np.eye(d), tasks))
    if kind == "rate":
        return Joint(first, w, rate * np.eye(d), min(bound, first), (first,))
    nal = _centre(tasks.covariances, tasks, profile.middle)
    at_least("starts", starts, 0, "0 leaves two", whole=True)
    _, spread, axes = np.linalg.svd(tasks.optima - profile.middle)
    far = [profile.middle + sign * _FAR * spread[0] / math.sqrt(len(tasks.weights)) * axis
           for axis in axes for sign in (1, -1)]
    ends = [_alternate(start, tasks) for start in (w, nal, *far[:int(starts)])]
    return min(ends, key=lambda end: end.risk)


def _alternate(w: Array, tasks: Tasks) -> Joint:
    """Preconditioner and start in turn, until the risk falls no more."""
    p, descent = None, [math.inf]
    for _ in range(_ROUNDS):
        p = _last(descend(w, tasks, p))
        w = _centre(leftover(p, tasks), tasks, w)
        descent.append(float(tasks.weights @ task_risks(w, p, tasks)))
        if descent[-2] - descent[-1] <= _SETTLED * descent[1]:
            break
    assert p is not None
    return Joint(descent[-1], w, p, 0.0, tuple(descent[1:]))
