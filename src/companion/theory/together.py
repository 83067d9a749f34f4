"""What a landscape of tasks leaves to a learned step: start and preconditioner together.

Tasks are those of :class:`companion.theory.landscape.Mixture` with one inner step W+ = W - P G, G
the gradient of m samples, and **one P for easy and hard tasks** that is learned: by the optimizer
alone at NAL's start, or together with the start, as MAML does. With ``outputs`` K > 1, W is [K, d],
the groups' centres differ by R a b.T (rank one, the case treated here), their optima have the
variance v/(Kd) in every entry, and the noise of the outputs is independent.

By symmetry about a and b a step needs four rates, ``rates[o, i]``: of a (o = 0) or its complement,
on b (i = 0) or its complement. Let e be the mean squared error of a group's start in such a block
of size n_o n_i, u = 1/m, e_o the sum of e over i. The excess risk is the groups' mean of

    (rho/2) sum_oi [e (1 - q rho)^2 + u q^2 (rho^2 e + n_i rho^2 e_o + n_o n_i sigma^2 rho)],

q = rates[o, i]. It is a convex quadratic in the rates, and in the start. Source:
the companion's own; book/together derives the case of one output.
"""

from collections.abc import Callable
from math import prod
from typing import Any, NamedTuple

import numpy as np
from numpy.polynomial import Chebyshev
from scipy.optimize import minimize, minimize_scalar

from companion.checks import Array, at_least, real, require
from companion.theory.landscape import Mixture, ceiling

_REAL = 1e-6  # the largest imaginary part of a root that counts as real
_GRID = 41  # of the ratios of two factors that the Kronecker search tries first


class Learned(NamedTuple):
    """A start, its ``weight`` on the easy centre; the step's ``rates``, [2, 2]; the excess
    ``risk``; and the ``spread`` h, the least over the largest share of a squared error that the
    step leaves, of both groups and all blocks."""

    weight: float
    rates: Array
    risk: float
    spread: float


class Comparison(NamedTuple):
    """``nal``: NAL's start with the step that is best for it. ``maml``: the best start and step.
    ``critical``: all critical points of the risk in start and step, by rising weight."""

    nal: Learned
    maml: Learned
    critical: tuple[Learned, ...]

    @property
    def ratio(self) -> float:
        """risk(NAL) / risk(MAML) >= 1; inf where only the latter is 0, and 1 where both are."""
        if self.maml.risk == 0:
            return float("inf") if self.nal.risk > 0 else 1.0
        return self.nal.risk / self.maml.risk

    @property
    def ceiling(self) -> float:
        """(1 + h)^2/(4h) at the h of MAML's step: the ratio is at most this."""
        return float(ceiling(self.maml.spread))


class _Groups(NamedTuple):
    """Numbers of the easy and the hard group, [2]; ``sizes`` are (1, K - 1) and (1, d - 1)."""

    shares: Array
    rho: Array
    variances: Array
    distance: float
    inverse_support: float
    noise: float
    weight_nal: float
    sizes: tuple[Array, Array]


def _groups(mixture: Mixture, outputs: int = 1) -> _Groups:
    require(np.ndim(mixture.risk_nal) == 0, "mixture", "hold numbers", "arrays",
            "call once per mixture")
    p, steps = float(np.asarray(mixture.hard_fraction)), int(np.asarray(mixture.steps))
    require(0 < p < 1, "hard_fraction", "lie inside (0, 1)", p, "one group alone has no landscape")
    require(steps == 1, "steps", "be 1", steps, "a learned step is treated for one inner step")
    at_least("outputs", outputs, 1, "a task has an output", whole=True)
    pairs = ((mixture.rho_easy, mixture.rho_hard), (mixture.var_easy, mixture.var_hard))
    rho, variances = (np.array(pair, dtype=float) for pair in pairs)
    d, distance, support, noise = (float(np.asarray(value)) for value in (
        mixture.dim, mixture.distance, mixture.support, mixture.noise))
    sizes = np.array([1.0, outputs - 1]), np.array([1.0, d - 1])
    return _Groups(np.array([1 - p, p]), rho, variances, distance, 1 / support, noise,
                   float(mixture.weight_nal), sizes)


def _errors(g: _Groups, weight: float) -> Array:
    """Mean squared errors of the start, [group, 2, 2]."""
    blocks = np.outer(*g.sizes)
    errors = g.variances[:, None, None] * blocks / blocks.sum()
    errors[:, 0, 0] += (g.distance * np.array([1 - weight, weight])) ** 2
    return np.asarray(errors)


def _left(g: _Groups, rates: Array) -> Array:
    """The shares of the squared errors that a step leaves, [group, 2, 2]."""
    moved = g.rho[:, None, None] * rates
    spread = (moved**2 * g.sizes[1]).sum(-1, keepdims=True)
    return np.asarray((1 - moved) ** 2 + g.inverse_support * (moved**2 + spread))


def _learned(g: _Groups, weight: float, rates: Array) -> Learned:
    left, blocks = _left(g, rates), np.outer(*g.sizes)
    noise = g.inverse_support * g.noise**2 * g.rho * (blocks * rates**2).sum()
    risk = (_errors(g, weight) * left).sum((1, 2)) + noise
    present = left[:, blocks > 0]
    spread = float(present.min() / present.max()) if present.max() > 0 else 1.0
    return Learned(weight, rates, float((g.shares * g.rho) @ risk / 2), spread)


def learned(mixture: Mixture, weight: float, rates: Array, *, outputs: int = 1) -> Learned:
    """The exact risk of a start on the line of the centres and of a step, [2, 2]: the formula at
    the head of this module. ``mixture.alpha`` is not used, here and below. ValueError: a mixture
    with array fields, more than one inner step or a single group, a number that is not finite, or
    rates of another shape."""
    step, at = real("rates", rates), real("weight", weight)
    require(step.shape == (2, 2), "rates.shape", "be (2, 2)", step.shape,
            "a rate for each block of outputs and inputs")
    return _learned(_groups(mixture, outputs), float(at), step)


class _Tie(NamedTuple):
    """The possible steps: rates = ``factor`` times a free number of every ``member``, [2, 2]."""

    member: Array
    factor: Array


_ONE = _Tie(np.zeros((2, 2)), np.ones((2, 2)))
_FREE = _Tie(np.arange(4.0).reshape(2, 2), np.ones((2, 2)))


def _product(share: float) -> _Tie:
    """L G R, where L is ``share`` on the complement of a and 1 - ``share`` on a."""
    return _Tie(np.array([[0.0, 1.0], [0.0, 1.0]]), np.array([[1 - share] * 2, [share] * 2]))


class _Quadratics(NamedTuple):
    """In the weight: twice the risk before the step, and N, D of every block; its rate q adds D q^2
    - 2 N q."""

    before: Chebyshev
    pull: Any
    cost: Any

    def tied(self, tie: _Tie) -> list[tuple[Any, Any]]:
        """N and D of every free number of a tie."""
        return [((self.pull * tie.factor)[tie.member == k].sum(),
                 (self.cost * tie.factor**2)[tie.member == k].sum())
                for k in np.unique(tie.member)]


def _quadratics(g: _Groups) -> _Quadratics:
    weight = Chebyshev.identity(domain=[0, 1])
    before, pull, cost = (np.full((2, 2), 0 * weight) for _ in range(3))
    far, blocks = (g.distance * (1 - weight)) ** 2, np.outer(*g.sizes)
    for share, rho, variance in zip(g.shares, g.rho, g.variances, strict=True):
        error = np.array(variance * blocks / blocks.sum(), dtype=object)
        error[0, 0] = error[0, 0] + far
        sums = error.sum(1, keepdims=True)
        sampled = rho**2 * (error + g.sizes[1] * sums) + blocks * g.noise**2 * rho
        before = before + share * rho * error
        pull = pull + share * rho**2 * error
        cost = cost + share * rho * (rho**2 * error + g.inverse_support * sampled)
        far = (g.distance * weight) ** 2
    return _Quadratics(before.sum(), pull, cost)


def _best_step(g: _Groups, parts: _Quadratics, tie: _Tie, weight: float) -> Learned:
    """The best step of a tie at a start: N/D for every free number, 0 where nothing is left."""
    values = [(pull(weight), cost(weight)) for pull, cost in parts.tied(tie)]
    free = np.array([pull / cost if cost > 0 else 0.0 for pull, cost in values])
    rates = tie.factor * free[tie.member.astype(int)]
    return _learned(g, weight, np.where(np.outer(*g.sizes) > 0, rates, 0.0))


def _critical(g: _Groups, parts: _Quadratics, tie: _Tie) -> tuple[Learned, ...]:
    """All critical points. With the best step the risk is (before - sum N^2/D)/2, rational in the
    weight; at most two of the D move with it, so its critical points are roots of a polynomial of
    degree 5 or 9. They lie in [0, 1]: for any step the best start is a mean of the centres."""
    if g.distance == 0:  # any start is as good
        return (_best_step(g, parts, tie, g.weight_nal),)
    moving = [(n, d) for n, d in parts.tied(tie) if np.any(n.coef[1:]) or np.any(d.coef[1:])]
    squares = [d**2 for _, d in moving]
    slope = prod(squares, start=parts.before.deriv())
    for k, (n, d) in enumerate(moving):
        rest = prod(squares[:k] + squares[k + 1 :], start=n)
        slope = slope - rest * (2 * n.deriv() * d - n * d.deriv())
    roots = slope.trim(1e-15 * np.abs(slope.coef).max()).roots()
    weights = np.sort(roots.real[np.abs(roots.imag) < _REAL])
    inside = weights[(weights > -_REAL) & (weights < 1 + _REAL)].clip(0, 1)
    return tuple(_best_step(g, parts, tie, float(weight)) for weight in inside)


def _compared(g: _Groups, parts: _Quadratics, tie: _Tie) -> Comparison:
    nal, critical = _best_step(g, parts, tie, g.weight_nal), _critical(g, parts, tie)
    return Comparison(nal, min((*critical, nal), key=lambda one: one.risk), critical)


def scalar(mixture: Mixture, *, outputs: int = 1) -> Comparison:
    """One learned rate. For one output and no noise the risk at the best rate is (1/2k) [(k - 1)
    M_1 + p(1-p) rho_E rho_H (rho_E - rho_H)^2 T_E T_H / M_3], k = 1 + (d + 1)/m, T = v + the
    squared distance of the start to the group's centre, M_j the groups' mean of rho^j T: what few
    samples leave of the loss before adaptation, and a well at either centre. Errors as in
    :func:`learned`."""
    g = _groups(mixture, outputs)
    return _compared(g, _quadratics(g), _ONE)


def full(mixture: Mixture, *, outputs: int = 1) -> Comparison:
    """A learned preconditioner of all Kd entries, the start on the line of the centres: there P =
    N D^-1, N and D the groups' means of rho^2 E and rho K, shares the symmetry of E, and ``rates``
    are its values. NAL's start is on the line; off it MAML may do better, see
    :func:`off_the_line`. Errors as in :func:`learned`."""
    g = _groups(mixture, outputs)
    return _compared(g, _quadratics(g), _FREE)


def kronecker(mixture: Mixture, outputs: int) -> Comparison:
    """A learned step L G R, the start on the line of the centres.

    Four rates l_o r_i suffice: for given R the risk is convex in L and does not change where L is
    turned by an orthogonal matrix that fixes a, so the mean over all of them is as good; then the
    same for R. For a given l_2 : l_1 >= 0 the r_i are a linear problem and all critical starts the
    roots of a polynomial; that one number is sought on a grid, then around the best of it.
    ``critical`` has the critical points at the number found. With one output this is :func:`full`;
    errors as in :func:`learned`."""
    g = _groups(mixture, outputs)
    parts = _quadratics(g)

    def least(best: Callable[[_Tie], Learned]) -> _Tie:
        grid = np.linspace(0, 1, _GRID)
        risks = [best(_product(float(share))).risk for share in grid]
        k = int(np.argmin(risks))
        ends = grid[max(k - 1, 0)], grid[min(k + 1, _GRID - 1)]
        near = minimize_scalar(lambda share: best(_product(share)).risk, bounds=ends,
                               method="bounded", options={"xatol": 1e-10})
        return _product(float(near.x) if near.fun < risks[k] else float(grid[k]))

    at_nal = least(lambda tie: _best_step(g, parts, tie, g.weight_nal))
    nal = _best_step(g, parts, at_nal, g.weight_nal)
    found = _compared(g, parts, least(lambda tie: _compared(g, parts, tie).maml))
    return found._replace(nal=nal, maml=min(found.maml, nal, key=lambda one: one.risk))


def off_line_risk(mixture: Mixture, weight: float, offset: float) -> float:
    """The risk at the best P, one output, of a start ``offset`` away from the line of the centres:
    tr(M - N D^-1 N)/2 with the matrices of :func:`full`, M the groups' mean of rho E. ValueError as
    in :func:`learned`, and for dim 1, where there is nothing beside the line."""
    g = _groups(mixture)
    d, u = 1 + int(g.sizes[1][1]), g.inverse_support
    require(d >= 2, "dim", "be at least 2", d, "with one input every start is on the line")
    before, pull, cost = np.zeros((3, d, d))
    for share, rho, variance, along in zip(g.shares, g.rho, g.variances, (weight - 1, weight),
                                           strict=True):
        apart = np.zeros(d)
        apart[:2] = along * g.distance, offset
        error = np.outer(apart, apart) + variance / d * np.eye(d)
        sampled = rho**2 * (error + np.trace(error) * np.eye(d)) + rho * g.noise**2 * np.eye(d)
        before += share * rho * error
        pull += share * rho**2 * error
        cost += share * rho * (rho**2 * error + u * sampled)
    return float(np.trace(before - pull @ np.linalg.pinv(cost, hermitian=True) @ pull) / 2)


def off_the_line(mixture: Mixture) -> tuple[float, float, float]:
    """Weight, offset and risk of the best start for a full P, on the line or off it: a search from
    every critical point on the line and from points beside it, never above :func:`full`. Errors as
    in :func:`off_line_risk`."""
    on, apart = full(mixture), float(np.asarray(mixture.distance))
    best = (on.maml.weight, 0.0, on.maml.risk)
    for weight in {one.weight for one in (*on.critical, on.nal)} | {0.25, 0.5, 0.75}:
        for beside in (0.02, 0.15, 0.4):
            found = minimize(lambda at: off_line_risk(mixture, at[0], at[1] * apart),
                             [weight, beside], method="Nelder-Mead",
                             options={"xatol": 1e-8, "fatol": 1e-15})
            if found.fun < best[2] * (1 - 1e-9):
                best = float(found.x[0]), abs(float(found.x[1])) * apart, float(found.fun)
    return best


def fewest_samples(rho_easy: float, rho_hard: float, dim: int) -> float:
    """m* = (d + 1) rho_E rho_H (rho_E + rho_H)^2 / [(rho_E - rho_H)(rho_E^3 - rho_H^3)]: with two
    equally frequent groups without spread and no noise, one learned rate and m <= m* samples,
    NAL's start with the rate 2m/((m + d + 1)(rho_E + rho_H)) that leaves both groups equally hard
    is the best there is, and the ratio 1; above m* MAML gains. A full P with the start on the line
    is the case ``dim=1``. inf at rho_E = rho_H. ValueError: a variance <= 0, a dim below 1."""
    easy, hard = _groups(Mixture(rho_easy, rho_hard, dim, 1, 0.0)).rho
    apart = (easy - hard) * (easy**3 - hard**3)
    return float((dim + 1) * easy * hard * (easy + hard) ** 2 / apart) if apart else float("inf")
