r"""Tasks as a diagnosis sees them: known by their moments, or by data sets.

Of a task we need three things: the curvature of its squared loss, the risk of any start after
adaptation, a quadratic (w.Q w)/2 - b.w + c, and the risk after one preconditioned step. From the
moments all are exact. From n samples (x_s, y_s) they are U-statistics, means over distinct samples:
those that a step is taken on are never those that it is judged on. So they are unbiased for any
inputs and labels, and each sample serves in every role. With z = (x, y) and v = (-w, 1)

    risk = v.H v / 2,  H = E z z.T - 2 a E z_s (x_s.x_t) z_t.T + a^2 [(1 - 1/m) E z_s (x_s.x_r)
        (x_r.x_t) z_t.T + (1/m) E z_s (x_s.x_r)^2 z_s.T],  a the step, m its samples,

less half of the residual variance about the least-squares fit, so that it is an excess risk.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from companion.checks import Array, at_least, real, require
from companion.theory import gaussian, preconditioners

Quadratic = tuple[Array, Array, Array]  # Q [task, d, d], b [task, d], c [task]


class Observed(Protocol):
    """What a diagnosis asks of tasks, in the order of the tasks."""

    @property
    def covariances(self) -> Array:
        """Second moments of the inputs, or estimates, [task, d, d]."""

    @property
    def variances(self) -> Array:
        """The eigenvalues of the covariances, rising, [task, d]."""

    @property
    def optima(self) -> Array:
        """Optima, or their least-squares estimates, [task, d]."""

    @property
    def noise(self) -> Array:
        """Standard deviation of the labels' noise, [task]."""

    @property
    def blur(self) -> Array:
        """The covariance of the estimates of the optima, [task, d, d]."""

    def adapted(self, alpha: float) -> Quadratic:
        """The risk of a start after adaptation with the step ``alpha``."""

    def risks(self, w: Array, preconditioner: Array) -> Array:
        """The risks after one step from w, [task]."""

    def rate(self, w: Array, along: Array, weights: Array) -> float:
        """The rate r of the least mean risk from w with the preconditioner r ``along``."""

    def some(self, index: NDArray[Any]) -> Self:
        """Some of the tasks."""


@dataclass(frozen=True, eq=False)
class Known:
    """Tasks of known ``covariances``, ``optima`` and ``noise`` (as :class:`Observed` has them),
    with normal inputs, adapted in ``steps`` steps of ``support`` fresh samples each."""

    covariances: Array
    optima: Array
    noise: Array
    support: float
    steps: int = 1

    @cached_property
    def variances(self) -> Array:
        """See :class:`Observed`."""
        return np.asarray(np.linalg.eigvalsh(self.covariances))

    @property
    def blur(self) -> Array:
        """None: the optima are known."""
        return np.zeros_like(self.covariances)

    @cached_property
    def _powers(self) -> tuple[Array, Array, Array]:
        """S^2, S^3 + u (S^3 + tr(S^2) S) and u tr(S^2), of which one step's Q is made."""
        s, u = self.covariances, 1 / self.support
        square = s @ s
        traces = np.trace(square, axis1=1, axis2=2)
        return square, (1 + u) * (square @ s) + u * traces[:, None, None] * s, u * traces

    def adapted(self, alpha: float) -> Quadratic:
        """See :class:`Observed`."""
        if self.steps == 1:
            square, cube, noisy = self._powers
            q = self.covariances - 2 * alpha * square + alpha**2 * cube
            rest = alpha**2 * self.noise**2 * noisy / 2
        else:
            how = (self.covariances, alpha, self.support)
            q = gaussian.q_matrix(*how, steps=self.steps)
            rest = gaussian.noise_risk(*how, self.noise, steps=self.steps)
        b = np.einsum("tij,tj->ti", q, self.optima)
        return q, b, (b * self.optima).sum(1) / 2 + rest

    def _weighted(self, weights: Array) -> preconditioners.Tasks:
        return preconditioners.Tasks(self.covariances, self.optima, weights, 1 / self.support,
                                     self.noise**2)

    def risks(self, w: Array, preconditioner: Array) -> Array:
        """See :class:`Observed`."""
        alike = np.full(len(self.optima), 1 / len(self.optima))
        return preconditioners.task_risks(w, preconditioner, self._weighted(alike))

    def rate(self, w: Array, along: Array, weights: Array) -> float:
        """See :class:`Observed`."""
        return preconditioners.rate_along(w, along, self._weighted(weights))

    def some(self, index: NDArray[Any]) -> Self:
        """See :class:`Observed`."""
        return type(self)(self.covariances[index], self.optima[index], self.noise[index],
                          self.support, self.steps)


@dataclass(frozen=True, eq=False)
class Sampled:
    """Tasks known by data sets ``x`` [sample, d] and ``y`` [sample], as many samples each as there
    are, adapted in one step of ``support`` samples. See :func:`of_samples`."""

    x: Sequence[Array]
    y: Sequence[Array]
    support: float
    covariances: Array
    optima: Array
    noise: Array

    @cached_property
    def variances(self) -> Array:
        """See :class:`Observed`."""
        return np.asarray(np.linalg.eigvalsh(self.covariances))

    @cached_property
    def blur(self) -> Array:
        """See :class:`Observed`: noise^2 (X.T X)^-1."""
        inverse = np.linalg.pinv(self.covariances, hermitian=True)
        sizes = [noise**2 / len(x) for noise, x in zip(self.noise, self.x, strict=True)]
        return np.asarray(np.array(sizes)[:, None, None] * inverse)

    @cached_property
    def _moments(self) -> Array:
        """The three terms of H, [3, task, d + 1, d + 1]."""
        found, u = [], 1 / self.support
        for x, y in zip(self.x, self.y, strict=True):
            n, z = len(x), np.column_stack([x, y])
            pairs, triples = n * (n - 1), n * (n - 1) * (n - 2)
            second, cross, lengths = x.T @ x, x.T @ z, (x * x).sum(1)
            once = x.T @ (lengths[:, None] * z)  # the step's sample is its judge
            twice = z.T @ ((x @ second * x).sum(1)[:, None] * z)
            all_one = z.T @ (lengths[:, None] ** 2 * z)
            apart = (cross.T @ second @ cross - once.T @ cross - cross.T @ once - twice
                     + 2 * all_one)
            found.append([z.T @ z / n,
                          (cross.T @ cross - z.T @ (lengths[:, None] * z)) / pairs,
                          (1 - u) * apart / triples + u * (twice - all_one) / pairs])
        return np.stack(found, axis=1)

    def adapted(self, alpha: float) -> Quadratic:
        """See :class:`Observed`."""
        h = np.tensordot(np.array([1, -2 * alpha, alpha**2]), self._moments, 1)
        return h[:, :-1, :-1], h[:, :-1, -1], (h[:, -1, -1] - self.noise**2) / 2

    def _terms(self, w: Array, preconditioner: Array) -> tuple[Array, Array, Array]:
        """c, l and q [task] with risk (c - 2 r l + r^2 q)/2 after a step of r ``preconditioner``,
        the residual variance included."""
        found, u = [], 1 / self.support
        for x, y in zip(self.x, self.y, strict=True):
            n, off = len(x), y - x @ w
            slopes = off[:, None] * x
            to = x @ preconditioner  # to @ slopes.T: what each sample's step does to each label
            own = (to * slopes).sum(1)
            moved = to @ slopes.sum(0) - own
            squares = np.sum((to.T @ to) * (slopes.T @ slopes)) - own @ own
            pairs = n * (n - 1)
            apart = (moved @ moved - squares) / (pairs * (n - 2))
            found.append((off @ off / n, off @ moved / pairs,
                          (1 - u) * apart + u * squares / pairs))
        constant, linear, bend = np.array(found).T
        return constant, linear, bend

    def risks(self, w: Array, preconditioner: Array) -> Array:
        """See :class:`Observed`."""
        constant, linear, bend = self._terms(w, preconditioner)
        return np.asarray((constant - 2 * linear + bend - self.noise**2) / 2)

    def rate(self, w: Array, along: Array, weights: Array) -> float:
        """See :class:`Observed`; 0 where, by these estimates, any step is worse than none."""
        _, linear, bend = self._terms(w, along)
        top, bottom = weights @ linear, weights @ bend
        return max(float(top / bottom), 0.0) if bottom > 0 else 0.0

    def some(self, index: NDArray[Any]) -> Self:
        """See :class:`Observed`."""
        return type(self)([self.x[i] for i in index], [self.y[i] for i in index], self.support,
                          self.covariances[index], self.optima[index], self.noise[index])


def of_samples(x: Sequence[Array], y: Sequence[Array], support: float) -> Sampled:
    """The tasks of data sets: least squares for the optima, with the residuals' variance."""
    fits = [np.linalg.lstsq(one, labels)[:3:2] for one, labels in zip(x, y, strict=True)]
    variances = [np.sum((labels - one @ w) ** 2) / (len(one) - rank)  # dead features fit nothing
                 for one, labels, (w, rank) in zip(x, y, fits, strict=True)]
    return Sampled(x, y, support, np.stack([one.T @ one / len(one) for one in x]),
                   np.stack([w for w, _ in fits]), np.sqrt(variances))


def sampled(data: Sequence[Any], support: float, *, features: Any = None,
            intercept: bool = False) -> Sampled:
    """Data sets (x, y), one a task, after checks. See :func:`companion.diagnosis.diagnose`."""
    xs: list[Array] = []
    ys: list[Array] = []
    for i, pair in enumerate(data):
        require(isinstance(pair, Sequence) and len(pair) == 2, f"data[{i}]", "be a pair (x, y)",
                type(pair).__name__, "give one pair per task")
        x, y = pair if features is None else _seen(i, pair[0], pair[1], features)
        x, y = real(f"data[{i}] x", x), real(f"data[{i}] y", y)
        require(x.ndim == 2, f"data[{i}] x.shape", "be [sample, d]", x.shape,
                "images need features=, a module that maps them to [sample, d]")
        y = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y
        require(y.shape == x.shape[:1], f"data[{i}] y.shape", f"be [sample] = {x.shape[:1]}",
                y.shape, "give one label per sample")
        x = np.column_stack([x, np.ones(len(x))]) if intercept else x
        require(not xs or x.shape[1] == xs[0].shape[1], f"data[{i}] x.shape",
                f"be [sample, {xs[0].shape[1] if xs else 0}] as before", x.shape,
                "all tasks share their features")
        needed = x.shape[1] + 2
        require(len(x) >= max(needed, 3), f"the samples of data[{i}]",
                f"be at least d + 2 = {needed} for {x.shape[1]} features"
                + (", with the intercept" if intercept else ""),
                len(x), "too few: give more samples, or fewer features")
        xs.append(x)
        ys.append(y)
    require(len(xs) > 1, "tasks", "be two or more", len(xs), "one task has no landscape")
    middle = of_samples(xs, ys, support).optima.mean(0)  # which keeps numbers small
    return of_samples(xs, [y - x @ middle for x, y in zip(xs, ys, strict=True)], support)


def _seen(task: int, images: Any, labels: Any, features: Any) -> tuple[Any, Any]:
    """Features of images as a module sees them, and labels -1 and 1 of two classes."""
    import torch  # only here: what has no images needs no torch

    batch = torch.as_tensor(images)
    batch = batch.float() / 255 if batch.dtype == torch.uint8 else batch
    like = next(features.parameters(), None) if isinstance(features, torch.nn.Module) else None
    batch = batch if like is None else batch.to(like)  # its dtype and device
    with torch.no_grad():
        x = features(batch)
        require(task > 0 or torch.equal(x, features(batch)), "features",
                "map equal images to equal features", "a module that draws, as in dropout",
                "call its .eval() first")
    y = np.asarray(labels)
    if y.dtype.kind in "iub":
        classes = np.unique(y)
        require(len(classes) == 2, f"data[{task}] y", "have two classes, or be real numbers",
                f"{len(classes)} classes", "make a task of each pair, or of one class and the rest")
        y = np.where(y == classes[1], 1.0, -1.0)
    return np.asarray(x.cpu()), y


def known(covariances: ArrayLike, optima: ArrayLike, noise: ArrayLike, support: float,
          steps: int) -> Known:
    """Tasks of known moments, after checks."""
    tasks = preconditioners.tasks_of(covariances, optima, support, None, noise)
    count = len(tasks.optima)
    require(count > 1, "tasks", "be two or more", count, "one task has no landscape")
    at_least("steps", steps, 1, "without a step there is nothing to compare", whole=True)
    return Known(tasks.covariances, tasks.optima - tasks.optima.mean(0),
                 np.sqrt(tasks.variances), float(support), int(steps))
