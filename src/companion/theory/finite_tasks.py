r"""How many tasks NAL and MAML need: what each learns from T tasks, to the first order in 1/T.

Both empirical objectives are least squares, so the minimiser from T tasks errs by -A^-1 z / T^(1/2)
in the limit, with A the Hessian, z normal of mean 0 and covariance Cov g, and g the gradient of one
task's objective at the population's minimiser, E g = 0. T times the excess of the own objective
over its optimum converges in distribution to a variable whose mean is the **sandwich** constant
C = tr(A^-1 Cov g) / 2 (Huber 1967). Cov g needs moments of an
empirical covariance up to order 4: :func:`moment` for any covariance, :func:`trace_moment` as
polynomials.
Derived in book/landscape/numerics.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import numpy as np
import sympy as sp

from companion.checks import Array, at_least, require, step_size, support_size
from companion.theory.gaussian import minimiser_maml, minimiser_nal, pairings, q_matrix
from companion.theory.landscape import Mixture, contraction

Matching = Iterable[tuple[int, int]]


class Groups(Protocol):
    """Groups of tasks, as :class:`companion.tasks.regressions.LinearFamily` holds and checks them:
    x ~ N(0, covariance), w* ~ N(centre, (variance / d) I), labels with noise."""

    @property
    def covariances(self) -> Array:
        """Of the inputs, [group, d, d]."""

    @property
    def centres(self) -> Array:
        """Of the optima, [group, d]."""

    @property
    def variances(self) -> Array:
        """E|w* - centre|^2, [group]."""

    @property
    def weights(self) -> Array:
        """Of the groups, [group], normalised where they are used."""

    @property
    def noise(self) -> float:
        """The standard deviation of the labels' noise."""


@dataclass(frozen=True)
class Sandwich:
    """A method's population: ``minimiser`` w [d], ``hessian`` A [d, d] of its objective, and
    ``spread`` Cov g [d, d], the covariance of one task's gradient at w."""

    minimiser: Array
    hessian: Array
    spread: Array

    @property
    def constant(self) -> float:
        """C = tr(A^-1 Cov g) / 2: the own objective's expected excess from T tasks is C / T."""
        return float(np.trace(np.linalg.solve(self.hessian, self.spread)) / 2)

    @property
    def covariance(self) -> Array:
        """A^-1 Cov g A^-1 [d, d]: T times the covariance of what T tasks teach."""
        half = np.linalg.solve(self.hessian, self.spread)
        return np.linalg.solve(self.hessian, half.T)


def _samples(name: str, value: float) -> float:
    return float(at_least(name, value, 1, "a task is scored on one sample or more", whole=True))


def _errors(groups: Groups, w: Array) -> tuple[Array, Array]:
    """The groups' shares [group], and E (w - w*)(w - w*)^T of each [group, d, d]."""
    off, d = w - groups.centres, len(w)
    spread = (groups.variances / d)[:, None, None] * np.eye(d)
    return groups.weights / groups.weights.sum(), off[:, :, None] * off[:, None, :] + spread


def sandwich_nal(groups: Groups, samples: float) -> Sandwich:
    """NAL from pooled least squares on ``samples`` n of every task, any covariance. By Wick

        Cov g = E[S M S + (S M S + tr(S M) S + s^2 S) / n],  A = E[S],

    with S a task's covariance, M = E (w - w*)(w - w*)^T of its group, s the noise. ValueError: n is
    not whole or not at least 1; a singular E[S]."""
    n = _samples("samples", samples)
    w = minimiser_nal(groups.covariances, groups.centres, groups.weights)
    share, errors = _errors(groups, w)
    s = groups.covariances
    both = s @ errors @ s
    size = (np.trace(s @ errors, axis1=1, axis2=2) + groups.noise**2)[:, None, None]
    each = both + (both + size * s) / n
    return Sandwich(w, np.einsum("g,gij->ij", share, s), np.einsum("g,gij->ij", share, each))


def sandwich_maml(groups: Groups, alpha: float, support: float, query: float) -> Sandwich:
    """MAML with one inner step on m = ``support`` samples, scored on q = ``query`` others, any
    covariance. With S_hat of the support, B = I - a S_hat, U = B M B + (a^2 s^2 / m) S_hat,

        Cov g = E[B (S U S + (S U S + tr(S U) S + s^2 S) / q) B],  A = E[Q],

    a polynomial of degree 4 in S_hat: its mean is the sum over pairings of :func:`moment`. Exact
    for every m, math.inf included. ValueError: a number out of range, m or q not whole, a singular
    E[Q]."""
    a, m, q = float(step_size(alpha)), float(support_size(support)), _samples("query", query)
    require(math.isinf(m) or m == math.floor(m), "support", "be a whole number, or math.inf", m,
            "a step sees whole samples")
    w = minimiser_maml(groups.covariances, groups.centres, a, m, groups.weights)
    share, errors = _errors(groups, w)
    hessians = q_matrix(groups.covariances, a, m)
    total, label = np.zeros(hessians.shape[1:]), groups.noise**2
    for p, s, error, hessian in zip(share, groups.covariances, errors, hessians, strict=True):
        def mean(subscripts: str, *factors: Any, s: Array = s) -> Array:
            return moment(subscripts, factors, s, a, m)

        same = mean("ab,bc,cd,de,ef,fg,gh->ah", "B", s, "B", error, "B", s, "B")
        size = mean("ab,bc,cd,da,ef,fg,gh->eh", s, "B", error, "B", "B", s, "B")
        if label and not math.isinf(m):
            unit = a**2 * label / m
            same = same + unit * mean("ab,bc,cd,de,ef->af", "B", s, "S", s, "B")
            size = size + unit * mean("ab,ba,ef,fg,gh->eh", s, "S", "B", s, "B")
        total = total + p * (same + (same + size + label * hessian) / q)
    return Sandwich(w, np.einsum("g,gij->ij", share, hessians), total)


def adapted_constant(groups: Groups, alpha: float, support: float, samples: float) -> float:
    """K: NAL from T tasks of ``samples``, adapted like MAML, has the expected excess risk of w_NAL
    plus K / T. Its own objective is flat at w_NAL, the adapted risk is not, so that the drift
    E[w_T] - w_NAL = b / T counts too:

        K = b.E[Q](w_NAL - w_MAML) + tr(E[Q] V) / 2,  b = A^-1 E[S_hat A^-1 S_hat (w_NAL - w*)],

    with V of :attr:`Sandwich.covariance`. Errors as in :func:`sandwich_maml`."""
    own, n = sandwich_nal(groups, samples), _samples("samples", samples)
    s, inverse = groups.covariances, np.linalg.inv(own.hessian)
    share = groups.weights / groups.weights.sum()
    both = s @ inverse @ s
    each = both + (both + np.trace(s @ inverse, axis1=1, axis2=2)[:, None, None] * s) / n
    drift = inverse @ np.einsum("g,gij,gj->i", share, each, own.minimiser - groups.centres)
    q = np.einsum("g,gij->ij", share, q_matrix(s, alpha, support))
    best = minimiser_maml(s, groups.centres, alpha, support, groups.weights)
    return float(drift @ q @ (own.minimiser - best) + np.trace(q @ own.covariance) / 2)


def tasks_to_keep(constant: float, gap: float, share: float = 0.9) -> float:
    """T from which MAML keeps ``share`` of ``gap``, its gain over NAL learned from infinitely many
    tasks: C / ((1 - share) gap), to the first order; inf where there is no gain. ValueError:
    ``share`` outside [0, 1)."""
    require(0 <= share < 1, "share", "lie in [0, 1)", share, "no finite T keeps all of the gain")
    return math.inf if gap == 0 else constant / ((1 - share) * gap)


def tasks_to_win(constant: float, adapted: float, gap: float) -> float:
    """T from which MAML beats NAL, both from T tasks: (C - K) / gap to the first order, 0 where it
    does from the start; ``adapted`` is K of :func:`adapted_constant`. inf without a gain."""
    if constant <= adapted:
        return 0.0
    return math.inf if gap == 0 else (constant - adapted) / gap


def _loops(one: Matching, other: Matching) -> int:
    """How many loops two perfect matchings of the same items form together."""
    first, second = ({a: b for pair in pairs for a, b in (pair, pair[::-1])}
                     for pairs in (one, other))
    left, count = set(first), 0
    while left:
        here, count = min(left), count + 1
        while here in left:
            left -= {here, first[here]}
            here = second[first[here]]
    return count


def moment(subscripts: str, factors: Sequence[Any], covariance: Array, alpha: float,
           support: float) -> Array:
    """The mean of a product in the notation of np.einsum, of matrices and of "S" for S_hat = X^T X
    / m and "B" for I - alpha S_hat, x ~ N(0, covariance), m = ``support``, maybe math.inf:

        E[prod_t S_hat_{i_t j_t}] = sum over pairings of the ends i_t, j_t of m^(loops - k) prod S,

    S the covariance of the paired ends, k the number of factors S_hat, ``loops`` of the pairing
    with the pairs (i_t, j_t): one loop for every sample that may be chosen freely."""
    if "B" in [each for each in factors if isinstance(each, str)]:
        i = next(i for i, each in enumerate(factors) if isinstance(each, str) and each == "B")
        plain, drawn = ([*factors[:i], each, *factors[i + 1 :]]
                        for each in (np.eye(len(covariance)), "S"))
        return moment(subscripts, plain, covariance, alpha, support) - alpha * moment(
            subscripts, drawn, covariance, alpha, support)
    words, out = subscripts.split("->")
    terms = list(zip(words.split(","), factors, strict=True))
    fixed = [(word, each) for word, each in terms if not isinstance(each, str)]
    ends = "".join(word for word, each in terms if isinstance(each, str))
    own = [(2 * t, 2 * t + 1) for t in range(len(ends) // 2)]
    total: Array = np.zeros([len(covariance)] * len(out))
    for pairs in pairings(range(len(ends))):
        weight = (1 / support) ** (len(own) - _loops(pairs, own))
        if weight:
            paired = ",".join([word for word, _ in fixed] + [ends[a] + ends[b] for a, b in pairs])
            matrices = [each for _, each in fixed] + [covariance] * len(pairs)
            total = total + weight * np.einsum(f"{paired}->{out}", *matrices, optimize="greedy")
    return total


D, U = sp.symbols("d u", positive=True)  # the dimension, and 1 / m


@cache
def trace_moment(*powers: int) -> sp.Poly:
    """E[tr(S_hat^k) tr(S_hat^l) ...] for k, l, ... = ``powers`` and covariance I, a polynomial in d
    and u = 1/m: the pairings of :func:`moment`, each worth d^(loops of indices) u^(k - loops)."""
    own, joined, begin = [], [], 0
    for power in powers:
        slots = range(begin, begin + power)
        own += [(2 * t, 2 * t + 1) for t in slots]
        joined += [(2 * t + 1, 2 * (begin + (t - begin + 1) % power)) for t in slots]
        begin += power
    terms = (D ** _loops(pairs, joined) * U ** (len(own) - _loops(pairs, own))
             for pairs in pairings(range(2 * len(own))))
    return sp.Poly(sp.Add(*terms), D, U)


def constant_nal(mixture: Mixture, samples: float) -> Array:
    """C of NAL for the isotropic mixture, broadcast over its fields, from n = ``samples``:

        C = sum_g p_g [rho^2 (e^2 + v)(1 + (d + 1)/n) + s^2 rho d / n] / (2 sum_g p_g rho),

    e the distance of w_NAL from the centre of group g. Compare :func:`sandwich_nal`."""
    n, d = _samples("samples", samples), np.asarray(mixture.dim)
    total, curvature = np.zeros(()), np.zeros(())
    for p, rho, square in _isotropic(mixture, mixture.weight_nal):
        noise = np.asarray(mixture.noise) ** 2 * rho * d / n
        total = total + p * (rho**2 * square * (1 + (d + 1) / n) + noise)
        curvature = curvature + p * rho
    return np.asarray(total / (2 * curvature))


def constant_maml(mixture: Mixture, query: float) -> Array:
    """C of MAML for the isotropic mixture and one step, broadcast over its fields, scored on q =
    ``query`` samples; with b_jk.. = E[tr(B^j) tr(B^k) ..], B = I - a rho S_hat at covariance I,

        C = sum_g p_g {rho^2 (e^2 + v) [(1 + 1/q) b_4 + b_22 / q] / d + noise} / (2 sum_g p_g a_g),

    polynomials in d, 1/m and a rho from :func:`trace_moment`. Compare :func:`sandwich_maml`."""
    require(np.equal(mixture.steps, 1), "mixture.steps", "be 1", mixture.steps,
            "the closed form is for one inner step")
    u, d = 1 / _samples("query", query), np.asarray(mixture.dim, dtype=float)
    alpha, inverse = np.asarray(mixture.alpha), 1 / np.asarray(mixture.support, dtype=float)
    t = {powers: sp.lambdify((D, U), trace_moment(*powers).as_expr())(d, inverse)
         for powers in ((1,), (2,), (3,), (4,), (1, 1), (1, 2), (2, 2))}
    label, total, curvature = np.asarray(mixture.noise) ** 2, np.zeros(()), np.zeros(())
    for p, rho, square in _isotropic(mixture, mixture.weight_maml):
        a = alpha * rho
        b2 = d - 2 * a * t[1,] + a**2 * t[2,]
        b4 = d - 4 * a * t[1,] + 6 * a**2 * t[2,] - 4 * a**3 * t[3,] + a**4 * t[4,]
        b22 = (d * (d - 4 * a * t[1,] + 2 * a**2 * t[2,]) + 4 * a**2 * t[1, 1]
               - 4 * a**3 * t[1, 2] + a**4 * t[2, 2])
        b2s = t[1,] - 2 * a * t[2,] + a**2 * t[3,]
        b2_s = d * t[1,] - 2 * a * t[1, 1] + a**2 * t[1, 2]
        inner = alpha**2 * label * inverse * rho**3 * ((1 + u) * b2s + u * b2_s)
        total = total + p * (rho**2 * square / d * ((1 + u) * b4 + u * b22) + inner
                             + label * rho * u * b2)
        curvature = curvature + p * rho * contraction(rho, alpha, d, inverse)
    return np.asarray(total / (2 * curvature))


def _isotropic(mixture: Mixture, weight: Array) -> list[tuple[Array, Array, Array]]:
    """Of both groups: share, rho, and E |w - w*|^2 at ``weight`` on the easy centre."""
    p, far = np.asarray(mixture.hard_fraction), np.asarray(mixture.distance)
    return [(1 - p, np.asarray(mixture.rho_easy),
             np.asarray(mixture.var_easy + ((1 - weight) * far) ** 2)),
            (p, np.asarray(mixture.rho_hard), np.asarray(mixture.var_hard + (weight * far) ** 2))]
