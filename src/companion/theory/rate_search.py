r"""The best rate of one step for all tasks with its best start: a global search over one number.

With e = w - w_i*, u = 1/m and B = S^3 + u (S^3 + tr(S^2) S) the risk of the start w and the rate r
is [e.S e - 2 r e.S^2 e + r^2 (e.B e + u noise^2 tr S^2)]/2, a mean over tasks. At the best w it is
a function of r that may have several minima. On an interval [a, b] with the middle c put the
tangent 2 r c - c^2 <= r^2 in place of r^2: what is left is linear in r for every w, so its least
value over w is concave in r, and no rate in [a, b] is better than the lesser of its values at a and
b. No best rate of any w exceeds the largest s/((1 + u) s^2 + u tr S^2), s a variance of a task.
Derived in book/together.
"""

import heapq
import math
from itertools import pairwise

import numpy as np
from scipy.optimize import minimize_scalar

from companion.checks import Array

_CERTIFIED, _INTERVALS = 1e-6, 4000  # relative slack of the bound, most intervals looked at
_RANK = 1e-13  # an eigenvalue below this share of the largest counts as none


class Profile:
    """The least risk over w at one rate. Arguments are those of
    :class:`companion.theory.preconditioners.Tasks`, checked there."""

    def __init__(self, covariances: Array, optima: Array, weights: Array, inverse_support: float,
                 variances: Array) -> None:
        s, u, p = covariances, inverse_support, weights
        square = s @ s
        traces = np.trace(square, axis1=1, axis2=2)
        powers = (s, square, (1 + u) * square @ s + u * traces[:, None, None] * s)
        self.middle = p @ optima  # which keeps the constants small
        optima = optima - self.middle
        self.matrices = np.stack([np.einsum("t,tij->ij", p, m) for m in powers])
        self.vectors = np.stack([np.einsum("t,tij,tj->i", p, m, optima) for m in powers])
        self.numbers = np.stack([np.einsum("t,ti,tij,tj->", p, optima, m, optima, optimize=True)
                                 for m in powers])
        self.numbers[2] += u * p @ (variances * traces)
        along = np.linalg.eigvalsh(s[p > 0])
        counts = along > _RANK * along.max()
        own = (1 + u) * along**2 + u * traces[p > 0, None]
        self.most = float((along[counts] / own[counts]).max())  # of any best rate

    def least(self, rate: float, square: float) -> tuple[float, Array]:
        """The least over w, and w, with ``square`` in place of r^2; -inf where there is none."""
        mix = np.array([1, -2 * rate, square])
        values, axes = np.linalg.eigh(np.tensordot(mix, self.matrices, 1))
        if values[0] < -_RANK * len(values) * np.abs(values).max():
            return -math.inf, self.middle
        kept = values > _RANK * len(values) * values[-1]
        pull = axes[:, kept].T @ (mix @ self.vectors)
        return (float(mix @ self.numbers - pull @ (pull / values[kept])) / 2,
                self.middle + axes[:, kept] @ (pull / values[kept]))

    def at(self, rate: float) -> float:
        """The least risk at one rate."""
        return self.least(rate, rate**2)[0]

    def bound(self, a: float, b: float) -> float:
        """A number below the risk of every w and every rate in [a, b]."""
        c = (a + b) / 2
        return max(0.0, min(self.least(end, 2 * end * c - c**2)[0] for end in (a, b)))

    def search(self) -> tuple[float, float]:
        """The rate of least risk, and a bound below all risks: the interval of the least bound is
        halved until nothing in it can be better by more than the slack."""
        grid = np.append(0.0, np.geomspace(self.most * 1e-3, self.most, 24))
        values = [self.at(float(rate)) for rate in grid]
        where = int(np.argmin(values))
        ends = grid[max(where - 1, 0)], grid[min(where + 1, len(grid) - 1)]
        rate, value = float(grid[where]), values[where]
        near = minimize_scalar(self.at, bounds=ends, method="bounded",
                               options={"xatol": 1e-10 * self.most})
        if near.fun < value:
            rate, value = float(near.x), float(near.fun)
        heap = [(self.bound(a, b), a, b) for a, b in pairwise(grid)]
        heapq.heapify(heap)
        for _ in range(_INTERVALS):
            if heap[0][0] >= value * (1 - _CERTIFIED):
                break
            _, a, b = heapq.heappop(heap)
            c = (a + b) / 2
            if (there := self.at(c)) < value:
                near = minimize_scalar(self.at, bounds=(a, b), method="bounded",
                                       options={"xatol": 1e-10 * self.most})
                rate, value = min((there, c), (float(near.fun), float(near.x)))[::-1]
            for part in ((a, c), (c, b)):
                heapq.heappush(heap, (self.bound(*part), *part))
        return rate, min(value, heap[0][0])
