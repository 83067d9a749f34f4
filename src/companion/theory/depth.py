r"""Deep linear models under gradient descent, and the preconditioners that they learn (paper D).

A deep linear model is W = W_L ... W_1, from the inputs (first) to the outputs (last). G is the
gradient of the loss with respect to W; layer l is moved by U_l.T G B_l.T, U_l the product of the
layers above it and B_l of those below. Tasks are regressions y = W* x + z, x ~ N(0, S), z ~ N(0,
noise^2), vec(W*) of mean 0 and covariance C; vec stacks the rows, so that vec(L G R) = (L kron R.T)
vec(G). A preconditioner P takes one step W = P vec(-G) from W = 0 with the gradient of m samples.
Derived in book/depth/shallow and book/depth/linear_layers.
"""

import operator
from collections.abc import Sequence
from functools import reduce
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import sympy as sp
from numpy.typing import ArrayLike

from companion.checks import Array, at_least, real, require, step_size, support_size
from companion.theory.gaussian import check_covariance, noise_risk, q_matrix

_ROUNDS, _SETTLED = 10_000, 1e-14  # of the fit of two factors: most rounds, least relative gain


def _times(factors: Sequence[Any], empty: Any) -> Any:
    """The product of ``factors``, the last one leftmost; ``empty`` where there is none."""
    return reduce(lambda below, above: above @ below, factors) if factors else empty


def _around(layers: Sequence[Any], identity: Any) -> list[tuple[Any, Any]]:
    """(U_l, B_l) of every layer: what is above it and below it."""
    outputs, inputs = layers[-1].shape[0], layers[0].shape[1]
    return [(_times(layers[i + 1 :], identity(outputs)), _times(layers[:i], identity(inputs)))
            for i in range(len(layers))]


def _updated(layers: Sequence[Any], gradient: Any, alpha: Any, identity: Any) -> Any:
    return _times([layer - alpha * (above.T @ gradient @ below.T) for layer, (above, below)
                   in zip(layers, _around(layers, identity), strict=True)], None)


def _slope(layers: Sequence[Any], gradient: Any, identity: Any) -> Any:
    return reduce(operator.add, (above @ above.T @ gradient @ below.T @ below
                                 for above, below in _around(layers, identity)))


def update_residuals(sizes: Sequence[int]) -> tuple[sp.Matrix, sp.Matrix]:
    """Both identities of the deep update in symbols, for layers of ``sizes``, inputs first: the
    product of the moved layers less the formula of :func:`deep_update`, and its derivative at alpha
    = 0 plus :func:`first_order_update`. The layers' gradients are those of tr(G.T W_L ... W_1).
    Both are zero: the proof, for these sizes. ValueError: fewer than two sizes, or one below 1."""
    at_least("sizes", sizes, 1, "a layer has at least one unit", whole=True)
    require(len(sizes) >= 2, "sizes", "be two or more", list(sizes), "depth 1 is (d, o)")
    layers = [sp.Matrix(out, into, lambda i, j, n=n: sp.Symbol(f"w{n}_{i}{j}"))
              for n, (into, out) in enumerate(pairwise(sizes))]
    gradient = sp.Matrix(sizes[-1], sizes[0], lambda i, j: sp.Symbol(f"g{i}{j}"))
    alpha = sp.Symbol("alpha")
    loss = sp.expand((gradient.T @ _times(layers, None)).trace())
    moved = _times([layer - alpha * sp.diff(loss, layer) for layer in layers], None)
    exact = moved - _updated(layers, gradient, alpha, sp.eye)
    slope = moved.diff(alpha).subs(alpha, 0) + _slope(layers, gradient, sp.eye)
    return exact.applyfunc(sp.expand), slope.applyfunc(sp.expand)


def _layers(weights: Sequence[ArrayLike]) -> list[Array]:
    layers = [real(f"weights[{i}]", weight) for i, weight in enumerate(weights)]
    require(len(layers) > 0, "weights", "hold a layer or more", 0, "depth 1 is the shallow model")
    for i, layer in enumerate(layers):
        follows = layer.ndim == 2 and (i == 0 or layer.shape[1] == layers[i - 1].shape[0])
        require(follows and layer.size > 0, f"weights[{i}].shape",
                "be [outputs, inputs] and follow the layer before", layer.shape, "reorder")
    return layers


def _gradient(gradient: ArrayLike, layers: Sequence[Array]) -> Array:
    array, shape = real("gradient", gradient), (len(layers[-1]), layers[0].shape[1])
    require(array.shape == shape, "gradient.shape", f"be that of the product, {shape}", array.shape,
            "see product")
    return array


def product(weights: Sequence[ArrayLike]) -> Array:
    """The map of a deep linear model, W_L ... W_1 [outputs, inputs], from its layers, inputs first;
    ValueError, here and below: no layer, one that is no matrix, or shapes that do not fit."""
    return np.asarray(_times(_layers(weights), None))


def deep_update(weights: Sequence[ArrayLike], gradient: ArrayLike, alpha: float) -> Array:
    """The map after one gradient step on every layer, exactly: prod_l (W_l - alpha U_l.T G B_l.T).
    Depth 2, W = UB: W - alpha (U U.T G + G B.T B) + alpha^2 G W.T G. ``gradient`` is G [o, d]."""
    layers, alpha = _layers(weights), float(step_size(alpha))
    return np.asarray(_updated(layers, _gradient(gradient, layers), alpha, np.eye))


def first_order_update(weights: Sequence[ArrayLike], gradient: ArrayLike) -> Array:
    """What :func:`deep_update` subtracts per small alpha: sum_l U_l U_l.T G B_l.T B_l."""
    layers = _layers(weights)
    return np.asarray(_slope(layers, _gradient(gradient, layers), np.eye))


def effective_preconditioner(weights: Sequence[ArrayLike]) -> Array:
    """The matrix of :func:`first_order_update` on vec(G): sum_l (U_l U_l.T) kron (B_l.T B_l).
    Symmetric, positive semidefinite, [o * d, o * d]. For one output and two layers, y = b.(A.T x),
    it is ``A A.T + |b|^2 I``."""
    around = _around(_layers(weights), np.eye)
    return np.asarray(sum(np.kron(above @ above.T, below.T @ below) for above, below in around))


def optimal_step(rho: ArrayLike, dim: ArrayLike, support: ArrayLike) -> Array:
    """The step that minimises the risk after it, for isotropic inputs: m / (rho (m + d + 1)). It
    minimises rho (1 - eta rho)^2 + (d + 1) eta^2 rho^3 / m, m = ``support`` (math.inf gives 1/rho).
    Arguments are broadcast. ValueError: rho not positive, dim or support below 1."""
    rho, dim = real("rho", rho), at_least("dim", dim, 1, "there is at least one input", whole=True)
    require(rho > 0, "rho", "be positive", rho, "it is a variance")
    return np.asarray(1 / (rho * (1 + (dim + 1) / support_size(support))))


class _Moments(NamedTuple):
    """Input covariance; second moments [o, d, o, d] at W = 0: E[W* W*], E[G G], E[W* (-G)]."""

    covariance: Array
    tasks: Array
    gradients: Array
    cross: Array

    def matrices(self) -> tuple[Array, Array, Array]:
        """The second moments as [o * d, o * d]."""
        tasks, gradients, cross = (m.reshape(m.shape[0] * m.shape[1], -1) for m in self[1:])
        return tasks, gradients, cross


def _moments(covariance: ArrayLike, task_covariance: ArrayLike, support: float,
             noise: float) -> _Moments:
    covariance = check_covariance("covariance", covariance)
    require(covariance.ndim == 2, "covariance.shape", "be [d, d]", covariance.shape,
            "call once per family")
    d = len(covariance)
    require(np.linalg.eigvalsh(covariance)[0] > 0, "covariance", "be positive definite", covariance,
            "drop dead inputs")
    tasks = check_covariance("task_covariance", task_covariance)
    outputs, rest = divmod(tasks.shape[-1], d)
    require(tasks.ndim == 2 and rest == 0, "task_covariance.shape", f"be [o * {d}, o * {d}]",
            tasks.shape, "it is that of vec(W*)")
    u = float(1 / support_size(support))
    sigma = float(at_least("noise", noise, 0, "noise is a standard deviation"))
    c = tasks.reshape(outputs, d, outputs, d)
    turned = c + u * c.transpose(0, 3, 2, 1)
    gradients = np.einsum("ki,aibj,jl->akbl", covariance, turned, covariance)
    traces = np.einsum("ij,aibj->ab", covariance, c) + sigma**2 * np.eye(outputs)
    gradients += u * np.einsum("ab,kl->akbl", traces, covariance)
    return _Moments(covariance, c, gradients, np.einsum("aibj,jl->aibl", c, covariance))


def _risk(p: Any, moments: _Moments) -> float:
    tasks, gradients, cross = moments.matrices()
    error = p @ gradients @ p.T - p @ cross.T - cross @ p.T + tasks
    weight = np.kron(np.eye(len(moments.tasks)), moments.covariance)
    return float(np.sum(weight * error) / 2)


def preconditioned_risk(preconditioner: ArrayLike, covariance: ArrayLike,
                        task_covariance: ArrayLike, support: float, noise: float = 0.0) -> float:
    """The excess risk after one preconditioned step from 0: ``E |P vec(-G) - vec(W*)|^2 / 2`` in
    the norm of I kron S. P and C, the covariance of vec(W*), are [o * d, o * d]; S, that of the
    inputs, [d, d], positive definite; ``noise`` is the standard deviation of the labels' noise.
    ValueError: shapes that do not match, or an argument out of range."""
    moments = _moments(covariance, task_covariance, support, noise)
    p, shape = real("preconditioner", preconditioner), moments.matrices()[0].shape
    require(p.shape == shape, "preconditioner.shape", f"be {shape}", p.shape, "it acts on vec(G)")
    return _risk(p, moments)


def best_preconditioner(covariance: ArrayLike, task_covariance: ArrayLike, support: float,
                        noise: float = 0.0) -> Array:
    """The preconditioner of least :func:`preconditioned_risk`, [o * d, o * d]:
    P* = E[vec(W*) vec(-G).T] E[vec(G) vec(G).T]^-1, for one output and regular C
    [(1 + 1/m) S + (tr(S C) + noise^2)/m C^-1]^-1, which tends to S^-1 as m grows."""
    _, gradients, cross = _moments(covariance, task_covariance, support, noise).matrices()
    values = np.linalg.eigvalsh(gradients)
    require(values[0] > len(values) * np.finfo(float).eps * values[-1], "E[vec(G) vec(G).T]",
            "be non-singular", values[0], "a direction has no tasks and no noise: any step along "
            "it is best; drop it or add noise")
    return np.asarray(np.linalg.solve(gradients, cross.T).T)


def best_kronecker(covariance: ArrayLike, task_covariance: ArrayLike, support: float,
                   noise: float = 0.0) -> tuple[Array, Array]:
    """The factors of the best step W = left (-G) right, one Kronecker product: [o, o] and [d, d].

    The risk is quadratic in either factor, so they are fitted in turn, from left = I and from the
    left factor of the Kronecker product nearest to P*; the better end is returned, ``|left|^2 =
    o``. It is P* for C = C_o kron C_i without noise. Source: derived in book/depth/meta_optimizers.
    """
    full = best_preconditioner(covariance, task_covariance, support, noise)
    moments = _moments(covariance, task_covariance, support, noise)
    outputs, d = moments.tasks.shape[:2]
    blocks = full.reshape(outputs, d, outputs, d).transpose(0, 2, 1, 3).reshape(outputs**2, d**2)
    nearest = np.linalg.svd(blocks)[0][:, 0].reshape(outputs, outputs)
    ends = [_fit_factors(left, moments) for left in (np.eye(outputs), nearest)]
    left, right = min(ends, key=lambda pair: _risk(np.kron(pair[0], pair[1].T), moments))
    scale = np.sqrt(outputs) / np.linalg.norm(left) * (1 if np.trace(left) >= 0 else -1)
    return left * scale, right / scale


def _fit_factors(left: Array, moments: _Moments) -> tuple[Array, Array]:
    """Least squares for the right factor, then for the left one, until the risk falls no more."""
    covariance, _, gradients, crossed = moments
    before = np.inf
    for _ in range(_ROUNDS):
        right = np.linalg.solve(np.einsum("ca,cb,aibk->ik", left, left, gradients),
                                np.einsum("ca,cjai->ij", left, crossed))
        seen = right @ covariance @ right.T
        cross = np.einsum("ajbk,jl,kl->ab", crossed, covariance, right)
        left = np.linalg.solve(np.einsum("aibk,ik->ab", gradients, seen), cross.T).T
        now = _risk(np.kron(left, right.T), moments)
        if before - now <= _SETTLED * abs(now):
            break
        before = now
    return left, right


def shallow_risk(covariance: ArrayLike, task_covariance: ArrayLike, alpha: float, support: float,
                 noise: float = 0.0, *, steps: int = 1) -> float:
    """The least excess risk of a shallow linear model after ``steps`` steps of size alpha. It
    starts from the tasks' mean, for nothing else can be learned: the sum over outputs of tr(Q
    C_aa)/2 and of the noise term, Q of :func:`companion.theory.gaussian.q_matrix`, with fresh
    samples in every step. Arguments as in :func:`preconditioned_risk`."""
    covariance, tasks, *_ = _moments(covariance, task_covariance, support, noise)
    q = q_matrix(covariance, alpha, support, steps=steps)
    noisy = len(tasks) * noise_risk(covariance, alpha, support, noise, steps=steps)
    return float(np.sum(q * np.einsum("aiaj->ij", tasks)) / 2 + noisy)


def best_shallow_step(covariance: ArrayLike, task_covariance: ArrayLike, support: float,
                      noise: float = 0.0) -> float:
    """The inner step of least :func:`shallow_risk` for one step, arguments as there. For one output
    tr(S^2 C) / [(1 + 1/m) tr(S^3 C) + tr(S^2)(tr(S C) + noise^2)/m], which is :func:`optimal_step`
    where S and C are isotropic. ValueError: neither tasks nor noise, so that any step is best."""
    covariance, _, gradients, cross = _moments(covariance, task_covariance, support, noise)
    top, bottom = (np.einsum("aial,il->", moment, covariance) for moment in (cross, gradients))
    require(bottom > 0, "task_covariance or noise", "be positive somewhere", 0.0,
            "where every gradient is 0 any step is best")
    return float(top / bottom)
