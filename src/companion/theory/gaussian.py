r"""Linear regression tasks with Gaussian inputs: moments, Q matrices, minimisers and risks.

A task is x ~ N(0, S), y = x.w* + z, z ~ N(0, noise**2). Adaptation takes ``steps`` steps of
gradient descent on the squared loss, each on a fresh batch of ``support`` samples:
w+ = w - alpha S_hat (w - w*) + (alpha/support) X.z. The excess risk is the mean over tasks and
batches of (w+ - w*).S (w+ - w*)/2. Derived in book/landscape/setting and book/landscape/gap.
"""

from collections.abc import Iterator, Sequence
from functools import cache

import numpy as np
import sympy as sp
from numpy.typing import ArrayLike, NDArray

from companion.checks import (
    Array,
    at_least,
    one_number,
    real,
    require,
    step_count,
    step_size,
    support_size,
)

_SLACK = 1e-10  # relative asymmetry or negativity that rounding may leave in a covariance


def pairings(items: Sequence[int]) -> Iterator[list[tuple[int, int]]]:
    """Every way to split ``items`` into unordered pairs."""
    if not items:
        yield []
        return
    first, *rest = items
    for i, partner in enumerate(rest):
        for others in pairings(rest[:i] + rest[i + 1 :]):
            yield [(first, partner), *others]


def wick(covariance: sp.Matrix, indices: Sequence[int]) -> sp.Expr:
    """The moment E[x_i x_j ...] of x ~ N(0, covariance), i, j, ... = ``indices``, which may repeat.
    It is the sum over pairings of products of covariances; an odd number of indices gives 0.
    Source: Isserlis (1918), Wick (1950)."""
    if len(indices) % 2:
        return sp.Integer(0)
    return sp.Add(*(sp.Mul(*(covariance[indices[a], indices[b]] for a, b in pairs))
                    for pairs in pairings(range(len(indices)))))


def gram_sandwich(covariance: sp.Matrix, middle: sp.Matrix, inverse_support: sp.Expr) -> sp.Matrix:
    """E[S_hat M S_hat] entry by entry from Wick's theorem, S_hat = X.T X / m of m samples. Of the
    m**2 pairs of samples (s, t), m have s = t and need a fourth moment; for the rest x_s and x_t
    are independent. ``inverse_support`` is 1/m."""
    d = covariance.rows

    def entry(a: int, b: int) -> sp.Expr:
        same = sum(wick(covariance, (a, c, e, b)) * middle[c, e]
                   for c in range(d) for e in range(d))
        apart = (covariance * middle * covariance)[a, b]
        return inverse_support * same + (1 - inverse_support) * apart

    return sp.Matrix(d, d, entry)


@cache
def proofs() -> dict[str, bool]:
    """Theorems of book/landscape, gone through by SymPy: name -> whether it went through. ``step``:
    Q from Wick's theorem, any covariance (in two dimensions). ``gap``: F(w) - F(w_MAML) is half the
    squared distance in E[Q] for every w, two tasks of any Q and optima."""
    alpha, u = sp.symbols("alpha u", positive=True)

    def symmetric(name: str) -> sp.Matrix:
        return sp.Matrix(2, 2, lambda i, j: sp.Symbol(f"{name}{min(i, j)}{max(i, j)}"))

    def square(vector: sp.Matrix, metric: sp.Matrix) -> sp.Expr:
        return (vector.T * metric * vector)[0] / 2

    s, eye = symmetric("s"), sp.eye(2)
    q = (eye - alpha * s) * s * (eye - alpha * s) + alpha**2 * u * ((s * s).trace() * s + s**3)
    step = s - 2 * alpha * s * s + alpha**2 * gram_sandwich(s, s, u) - q
    easy, hard, p = symmetric("e"), symmetric("h"), sp.Symbol("p")
    w, best, one = (sp.Matrix(sp.symbols(f"{name}:2")) for name in ("w", "b", "o"))
    other = best + (1 - p) / p * hard.inv() * easy * (best - one)  # so that best is w_MAML
    risk = [(1 - p) * square(at - one, easy) + p * square(at - other, hard) for at in (w, best)]
    gap = risk[0] - risk[1] - square(w - best, (1 - p) * easy + p * hard)
    return {"step": step.expand() == sp.zeros(2, 2), "gap": sp.cancel(gap) == 0}


def check_covariance(name: str, value: ArrayLike) -> Array:
    """``value`` as float64 [..., d, d]; ValueError unless symmetric and positive semidefinite."""
    array = real(name, value)
    require(array.ndim >= 2 and array.shape[-1] == array.shape[-2] > 0, f"{name}.shape",
            "be [..., d, d]", array.shape, "stack one square matrix per task")
    scale = np.abs(array).max(axis=(-1, -2))
    skew = np.abs(array - array.swapaxes(-1, -2)).max(axis=(-1, -2))
    require(skew <= _SLACK * scale, name, "be symmetric: its largest |S - S.T| must be 0", skew,
            "use (S + S.T) / 2")
    try:  # a root is found several times faster than eigenvalues
        np.linalg.cholesky(array + _SLACK * scale[..., None, None] * np.eye(array.shape[-1]))
    except np.linalg.LinAlgError:
        least = np.linalg.eigvalsh(array)[..., 0]
        require(least >= -_SLACK * scale, name,
                "be positive semidefinite: its least eigenvalue must be >= 0", least,
                "a covariance has no negative variance; check the order of its factors")
    return array


def _powers(covariance: ArrayLike, alpha: ArrayLike, support: ArrayLike,
            steps: int) -> Iterator[Array]:
    """S, T(S), ..., T^steps(S), T(M) = E[(I - alpha S_hat) M (I - alpha S_hat)], after checks."""
    covariance = check_covariance("covariance", covariance)
    alpha = step_size(alpha)[..., None, None]
    inverse_support = 1 / support_size(support)[..., None, None]
    count = step_count(steps)
    require(count.ndim == 0, "steps", "be one number", steps, "call once per number of steps")
    matrix, shrink = covariance, np.eye(covariance.shape[-1]) - alpha * covariance
    yield matrix
    for _ in range(int(count)):
        trace = np.einsum("...ij,...ji->...", covariance, matrix)[..., None, None]
        spread = covariance @ matrix @ covariance + trace * covariance
        matrix = np.asarray(shrink @ matrix @ shrink + alpha**2 * inverse_support * spread)
        yield matrix


def q_matrix(covariance: ArrayLike, alpha: ArrayLike, support: ArrayLike, *,
             steps: int = 1) -> Array:
    """The matrix Q of a task: after adapting from w, its risk is (w - w*).Q (w - w*)/2 and noise.

    With S the covariance, a = alpha and m = support, one step gives
    Q = (I - aS) S (I - aS) + (a^2/m)(tr(S^2) S + S^3). For k steps, each with a fresh batch,
    Q = T^k(S), T(M) = (I - aS) M (I - aS) + (a^2/m)(S M S + tr(S M) S).

    S and Q are [..., d, d]; alpha >= 0 and support >= 1, math.inf for the full batch, are broadcast
    with the leading axes. ValueError: an argument out of range, or a covariance that is none.
    """
    *_, last = _powers(covariance, alpha, support, steps)
    return last


def noise_risk(covariance: ArrayLike, alpha: ArrayLike, support: ArrayLike, noise: ArrayLike = 0.0,
               *, steps: int = 1) -> Array:
    """What label noise adds to a task's excess risk in the inner steps, whatever w: shape [...]. k
    steps, each with a fresh batch, add (a^2 s^2 / 2m) sum_{j<k} tr(S T^j(S)), s = ``noise``, the
    standard deviation of the labels' noise; the other arguments are those of :func:`q_matrix`."""
    sigma = at_least("noise", noise, 0, "noise is a standard deviation")
    powers = list(_powers(covariance, alpha, support, steps))
    traces = sum((np.einsum("...ij,...ji->...", powers[0], power) for power in powers[:-1]),
                 np.zeros(powers[0].shape[:-2]))
    return np.asarray(step_size(alpha) ** 2 * sigma**2 / (2 * support_size(support)) * traces)


def check_tasks(covariances: ArrayLike, optima: ArrayLike,
                weights: ArrayLike | None) -> tuple[Array, Array, Array]:
    """Covariances [task, d, d], optima [task, d] and weights [task] of sum 1, or ValueError."""
    covariances = check_covariance("covariances", covariances)
    optima = real("optima", optima)
    require(covariances.ndim == 3, "covariances.shape", "be [task, d, d]", covariances.shape,
            "stack one per task")
    shape = covariances.shape[:2]
    require(optima.shape == shape, "optima.shape", f"be [task, d] = {shape}", optima.shape,
            "give one optimum per covariance")
    return covariances, optima, check_weights(weights, shape[0])


def check_weights(weights: ArrayLike | None, tasks: int) -> Array:
    """Weights of ``tasks`` tasks, >= 0, over their sum; alike where there are none."""
    if weights is None:
        return np.full(tasks, 1 / tasks)
    weights = at_least("weights", weights, 0, "they are normalised, but none may be negative")
    require(weights.shape == (tasks,), "weights.shape", f"be [task] = {(tasks,)}", weights.shape,
            "give one per task")
    require(weights.sum() > 0, "weights", "have a positive sum", weights,
            "give at least one task a weight")
    return np.asarray(weights / weights.sum())


def weighted_centre(matrices: Array, optima: Array, weights: Array, name: str = "E[M]") -> Array:
    """The minimiser of E (w - w*).M (w - w*), E[M]^-1 E[M w*]: [t, d, d], [t, d], [t] -> [d];
    ValueError where E[M] is singular."""
    mean = np.einsum("t,tij->ij", weights, matrices)
    eigenvalues = np.linalg.eigvalsh(mean)
    require(eigenvalues[0] > len(mean) * np.finfo(float).eps * eigenvalues[-1],
            f"{name}, the mean over tasks,",
            "be non-singular, so that the minimiser is unique: its least eigenvalue must be > 0",
            eigenvalues[0], "some direction is left to no task; add tasks, or change alpha")
    return np.linalg.solve(mean, np.einsum("t,tij,tj->i", weights, matrices, optima))


def minimiser_nal(covariances: ArrayLike, optima: ArrayLike,
                  weights: ArrayLike | None = None) -> Array:
    """What plain training without adaptation (NAL) learns: w_NAL = E[S]^-1 E[S w*]. Shape [d].
    ``covariances`` are [task, d, d], ``optima`` [task, d], ``weights`` [task] >= 0, normalised.
    ValueError: shapes that do not match, weights out of range, a singular E[S]."""
    return weighted_centre(*check_tasks(covariances, optima, weights), "E[Sigma]")


def minimiser_maml(covariances: ArrayLike, optima: ArrayLike, alpha: ArrayLike, support: ArrayLike,
                   weights: ArrayLike | None = None, *, steps: int = 1) -> Array:
    """What MAML learns: w_MAML = E[Q]^-1 E[Q w*], Q from :func:`q_matrix`. Shape [d]. Arguments and
    errors as in :func:`minimiser_nal` and :func:`q_matrix`."""
    covariances, optima, weights = check_tasks(covariances, optima, weights)
    q = q_matrix(covariances, alpha, support, steps=steps)
    return weighted_centre(q, optima, weights, "E[Q]")


def excess_risk(w: ArrayLike, covariances: ArrayLike, optima: ArrayLike, alpha: ArrayLike,
                support: ArrayLike, weights: ArrayLike | None = None, noise: ArrayLike = 0.0, *,
                steps: int = 1) -> Array:
    """The excess risk of the initialisation w: E (w - w*).Q (w - w*)/2 + :func:`noise_risk`. ``w``
    is [..., d] and the result [...], in squared units of y. With ``alpha=0`` it is the excess risk
    without adaptation. The other arguments are those of :func:`minimiser_maml`."""
    covariances, optima, weights = check_tasks(covariances, optima, weights)
    w, d = real("w", w), optima.shape[1]
    require(w.ndim >= 1 and w.shape[-1] == d, "w.shape", f"end in d = {d}", w.shape,
            "give one entry per input")
    q = q_matrix(covariances, alpha, support, steps=steps)
    error = w[..., None, :] - optima
    risks = np.einsum("...ti,tij,...tj->...t", error, q, error) / 2
    return np.asarray((risks + noise_risk(covariances, alpha, support, noise, steps=steps))
                      @ weights)


def _variances(covariances: ArrayLike, weights: ArrayLike | None) -> Array:
    """The variances along the eigenvectors of each task of positive weight, [task, d], rising."""
    covariances = check_covariance("covariances", covariances)
    require(covariances.ndim == 3, "covariances.shape", "be [task, d, d]", covariances.shape,
            "stack one per task")
    used = check_weights(weights, len(covariances)) > 0
    return np.asarray(np.linalg.eigvalsh(covariances[used]))


def _counting(variances: Array) -> NDArray[np.bool_]:
    """Which of ``variances`` [task, d], rising, count: rounding may leave a little where a singular
    covariance has none. ValueError: none does."""
    counts = variances > variances.shape[-1] * np.finfo(float).eps * variances[:, -1:]
    require(counts.any(), "covariances", "have a direction with variance", 0.0,
            "tasks without inputs have no hardness")
    return np.asarray(counts)


def hardness_spread(covariances: ArrayLike, alpha: float, support: float,
                    weights: ArrayLike | None = None, *, steps: int = 1) -> float:
    """The hardness spread h of a family of tasks, in [0, 1]: 1 where all are equally hard.

    It is the smallest over the largest of what adaptation leaves, the eigenvalues of S^-1/2 Q
    S^-1/2 of :func:`q_matrix`, over all tasks of positive weight and all directions with variance.
    S and Q commute: a direction of variance s keeps l <- (1 - a s)^2 l + (a^2/m)(s^2 l + tr(S^2
    L)) a step. h = 0 where one step solves a direction exactly, and some other one is left. Where
    nothing is left of anything, h = 1, as there is nothing to gain. Shapes [task, d, d] and [task];
    ``alpha``, ``support`` and ``steps`` are numbers. ValueError: an argument out of range, no
    variance at all, or an overflow. Source: derived in book/landscape/setting.
    """
    return spread_of_variances(_variances(covariances, weights), alpha, support, steps=steps)


def spread_of_variances(variances: Array, alpha: float, support: float, *,
                        steps: int = 1) -> float:
    """:func:`hardness_spread` of tasks whose covariances have the eigenvalues ``variances`` [task,
    d], rising, all of positive weight; the other arguments and errors are its."""
    variances = np.maximum(variances, 0)
    counts = _counting(variances)
    step, inverse_support, count = (one_number(name, array) for name, array in (
        ("alpha", step_size(alpha)), ("support", 1 / support_size(support)),
        ("steps", step_count(steps))))
    moved = step * variances
    require(moved < 1e100, "alpha", "be below 1e100 over the largest variance", alpha,
            "such a step diverges: take a smaller one")
    rest = 1 - moved  # below its rounding error it is 0: the side on which the ceiling holds
    rest[np.abs(rest) <= 4 * rest.shape[-1] * np.finfo(float).eps * moved[:, -1:]] = 0.0
    left, scale = np.ones_like(variances), np.zeros((len(variances), 1))
    for _ in range(int(count)):
        noisy = (moved**2 * left).sum(-1, keepdims=True)
        left = rest**2 * left + inverse_support * (moved**2 * left + noisy)
        most = np.where(counts, left, 0.0).max(-1, keepdims=True)
        most[most == 0] = 1.0
        left, scale = left / most, scale + np.log(most)
    with np.errstate(divide="ignore"):
        logarithms = (np.log(left) + scale)[counts]
    most_left = logarithms.max()
    return 1.0 if np.isneginf(most_left) else float(np.exp(logarithms.min() - most_left))


def effective_dimension(covariance: ArrayLike) -> Array:
    """The effective dimension of a task's inputs, D = tr(S^2) / ||S||^2, between 1 and d: [...].
    ||S|| is the largest eigenvalue; D = d for S = rho I. ValueError: not a covariance, or 0."""
    covariance = check_covariance("covariance", covariance)
    largest = np.linalg.eigvalsh(covariance)[..., -1]
    require(largest > 0, "covariance", "not vanish: its largest eigenvalue must be > 0", largest,
            "drop tasks without inputs")
    scaled = covariance / largest[..., None, None]
    return np.asarray(np.einsum("...ij,...ij->...", scaled, scaled))


def least_spread(covariances: ArrayLike, support: float, weights: ArrayLike | None = None) -> float:
    """A bound below the :func:`hardness_spread` after one step from m = ``support`` samples.

    It is (1 + D)/(m + 1 + D), D the least :func:`effective_dimension` of the tasks of positive
    weight: along a direction of variance s is left (1 - a s)^2 + (a^2/m)(tr(S^2) + s^2), for every
    step a at least (1 + t)/(m + 1 + t), t = tr(S^2)/s^2 >= D. So h >= (1 + D)/(m + 1 + D) while no
    direction is left more than it had; where the largest leftover is L > 1, h is at least this over
    L. Arguments and errors as there. Source: derived in book/landscape/gap.
    """
    variances = _variances(covariances, weights)
    samples = one_number("support", support_size(support))
    with_inputs = variances[_counting(variances).any(-1)]
    dimension = ((with_inputs / with_inputs[:, -1:]) ** 2).sum(-1).min()
    return float((1 + dimension) / (samples + 1 + dimension))
