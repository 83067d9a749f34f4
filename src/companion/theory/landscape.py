"""The easy/hard mixture: what MAML gains over training without adaptation (NAL), in closed form.

Tasks as in :mod:`companion.theory.gaussian`, with isotropic inputs x ~ N(0, rho I). An easy task
has rho = rho_easy, a hard one, of probability ``hard_fraction``, rho = rho_hard. The optima of a
group lie around its centre with total variance E|w* - c|^2 = var; the centres are ``distance``
apart. Only the position on the line between the centres matters: ``weight`` is 1 at the easy
centre, 0 at the hard one. Derived in book/landscape/gap.
"""

from dataclasses import KW_ONLY, dataclass, fields, replace
from functools import cached_property
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.polynomial import Polynomial
from numpy.typing import ArrayLike
from scipy.optimize import minimize_scalar

from companion.checks import Array, at_least, real, require, step_count, step_size, support_size

_STEPS = 2001  # of the grid on which a best step is looked for


def contraction(rho: Any, alpha: Any, dim: Any, inverse_support: Any) -> Any:
    """The factor of the mean squared error in one step: c = (1 - a rho)^2 + (d + 1) a^2 rho^2 / m,
    the T of :func:`companion.theory.gaussian.q_matrix` on multiples of I; numbers or symbols."""
    return (1 - alpha * rho) ** 2 + (dim + 1) * inverse_support * (alpha * rho) ** 2


def _safe_ratio(top: Array, bottom: Array, otherwise: ArrayLike) -> Array:
    """top / bottom, and ``otherwise`` where bottom is 0."""
    zero = bottom == 0
    return np.where(zero, otherwise, top / np.where(zero, 1.0, bottom))


def _one_minus_power(base: Array, steps: Array) -> Array:
    """1 - (1 - base)^steps for base <= 1, without cancellation."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(steps == 0, 0.0, -np.expm1(steps * np.log1p(-np.minimum(base, 1.0))))


@dataclass(frozen=True, eq=False)
class Mixture:
    """An easy/hard mixture of isotropic linear regressions, and the exact risks of NAL and MAML.
    Every field is a number or an array; all are broadcast together, and so is every result.
    ValueError: a field out of range, NaN, or shapes that do not broadcast. Setting: paper L."""

    rho_easy: ArrayLike  # input variance of easy tasks, > 0
    rho_hard: ArrayLike  # the same of hard tasks; either group may in fact be the harder
    dim: ArrayLike  # d, the number of inputs, whole, >= 1
    support: ArrayLike  # m, samples per inner step, >= 1; math.inf is the full batch
    alpha: ArrayLike  # inner step, >= 0; 0 (no adaptation) and values beyond 2/rho are allowed
    _: KW_ONLY
    hard_fraction: ArrayLike = 0.5  # p, the probability of a hard task, in [0, 1]
    distance: ArrayLike = 1.0  # R, between the centres, >= 0
    var_easy: ArrayLike = 0.0  # v_E = E|w* - c_E|^2, the total variance of the easy optima, >= 0
    var_hard: ArrayLike = 0.0  # v_H, the same of the hard optima
    noise: ArrayLike = 0.0  # sigma, the standard deviation of the labels' noise, >= 0
    steps: ArrayLike = 1  # k, inner steps, each on a fresh batch of m samples, whole, >= 0

    def __post_init__(self) -> None:
        for name in ("rho_easy", "rho_hard"):
            rho = real(name, getattr(self, name))
            require(rho > 0, name, "be positive", rho, "it is the variance of each input")
        at_least("dim", self.dim, 1, "it counts the inputs", whole=True)
        support_size(self.support)
        step_size(self.alpha)
        fraction = real("hard_fraction", self.hard_fraction)
        require((fraction >= 0) & (fraction <= 1), "hard_fraction", "lie in [0, 1]", fraction,
                "it is the probability of a hard task")
        at_least("distance", self.distance, 0, "it is the distance of the two centres")
        at_least("var_easy", self.var_easy, 0, "it is a variance, E|w* - c|^2")
        at_least("var_hard", self.var_hard, 0, "it is a variance, E|w* - c|^2")
        at_least("noise", self.noise, 0, "noise is a standard deviation")
        step_count(self.steps)
        shapes = {field.name: np.shape(getattr(self, field.name)) for field in fields(self)}
        try:
            object.__setattr__(self, "_shape", np.broadcast_shapes(*shapes.values()))
        except ValueError as error:
            raise ValueError(f"fields must broadcast together, got {shapes}; add axes of length 1"
                             ) from error
        with np.errstate(over="ignore", invalid="ignore"):
            require(np.isfinite(self._shared.scale), "c^steps", "be finite", self._shared.scale,
                    "this alpha diverges: take fewer or smaller steps")

    def _out(self, value: Array) -> Array:
        """``value`` in the common shape of the fields and itself; where that is (), a scalar."""
        return np.array(np.broadcast_to(value, np.broadcast_shapes(value.shape, self._shape)))[()]  # type: ignore[attr-defined]

    @cached_property
    def _fields(self) -> SimpleNamespace:
        values = {field.name: np.asarray(getattr(self, field.name), dtype=np.float64)
                  for field in fields(self)}
        return SimpleNamespace(**values, inverse_support=1 / values["support"])

    @cached_property
    def _contractions(self) -> tuple[Array, Array]:
        """c of the easy and of the hard tasks."""
        f = self._fields
        easy, hard = (np.asarray(contraction(rho, f.alpha, f.dim, f.inverse_support))
                      for rho in (f.rho_easy, f.rho_hard))
        return easy, hard

    @cached_property
    def _shared(self) -> SimpleNamespace:
        """Shared parts: ``easy`` and ``hard`` are (1-p) a_E and p a_H over ``scale`` = max(c)^k."""
        f, (c_easy, c_hard) = self._fields, self._contractions
        top = np.maximum(c_easy, c_hard)
        divisor = np.where(top == 0, 1.0, top)
        easy = (1 - f.hard_fraction) * f.rho_easy * (c_easy / divisor) ** f.steps
        hard = f.hard_fraction * f.rho_hard * (c_hard / divisor) ** f.steps
        # c_H - c_E, factored: it vanishes exactly where the hardness is equal
        bend = f.alpha * (1 + (f.dim + 1) * f.inverse_support) * (f.rho_easy + f.rho_hard)
        difference = f.alpha * (f.rho_easy - f.rho_hard) * (2 - bend)
        powers = np.sign(difference) * _one_minus_power(np.abs(difference) / divisor, f.steps)
        return SimpleNamespace(easy=easy, hard=hard, scale=top**f.steps,
                               cross=f.rho_easy * f.rho_hard * powers)

    @cached_property
    def _noise(self) -> Array:
        """What label noise adds: the groups' mean of (a s rho)^2 d/(2m) (1 + c + ... + c^(k-1))."""
        f = self._fields
        total = np.zeros(())
        if not np.any(f.noise * f.inverse_support):
            return total
        for share, rho in ((1 - f.hard_fraction, f.rho_easy), (f.hard_fraction, f.rho_hard)):
            step = f.alpha * rho
            drop = step * (2 - step * (1 + (f.dim + 1) * f.inverse_support))  # 1 - c
            sums = _safe_ratio(_one_minus_power(drop, f.steps), drop, f.steps)
            total = total + share * (step * f.noise) ** 2 * f.dim * f.inverse_support * sums / 2
        return total

    def _scaled_risk(self, weight: Array) -> Array:
        """The risk of ``weight`` without noise, over ``scale``."""
        f, shared = self._fields, self._shared
        easy = shared.easy * (f.var_easy + ((1 - weight) * f.distance) ** 2)
        hard = shared.hard * (f.var_hard + (weight * f.distance) ** 2)
        return np.asarray((easy + hard) / 2)

    @cached_property
    def _scaled_gap(self) -> Array:
        f, shared, p = self._fields, self._shared, self._fields.hard_fraction
        root = p * (1 - p) * shared.cross * f.distance / ((1 - p) * f.rho_easy + p * f.rho_hard)
        return _safe_ratio(root**2, shared.easy + shared.hard, 0.0) / 2

    @cached_property
    def weight_nal(self) -> Array:
        """Where NAL settles: (1-p) rho_E / ((1-p) rho_E + p rho_H), on the easy centre."""
        f = self._fields
        easy, hard = (1 - f.hard_fraction) * f.rho_easy, f.hard_fraction * f.rho_hard
        return self._out(easy / (easy + hard))

    @cached_property
    def weight_maml(self) -> Array:
        """Where MAML settles: (1-p) a_E / ((1-p) a_E + p a_H), a = rho c^k; as NAL for 0/0."""
        shared = self._shared
        return self._out(_safe_ratio(shared.easy, shared.easy + shared.hard, self.weight_nal))

    def risk(self, weight: ArrayLike) -> Array:
        """The excess risk after adapting from lambda c_E + (1 - lambda) c_H, lambda = ``weight``.
        [(1-p) a_E (v_E + (1-lambda)^2 R^2) + p a_H (v_H + lambda^2 R^2)] / 2 + noise term, in
        squared units of y. ``weight`` may be any real number and is broadcast with the fields."""
        scaled = self._scaled_risk(real("weight", weight))
        return self._out(self._shared.scale * scaled + self._noise)

    @cached_property
    def risk_nal(self) -> Array:
        """The excess risk after adaptation from NAL's minimiser."""
        return self.risk(self.weight_nal)

    @cached_property
    def risk_maml(self) -> Array:
        """The excess risk after adaptation from MAML's minimiser."""
        return self.risk(self.weight_maml)

    @cached_property
    def gap(self) -> Array:
        """risk_nal - risk_maml >= 0, from its factored form: no difference of two close numbers."""
        return self._out(self._shared.scale * self._scaled_gap)

    @cached_property
    def ratio(self) -> Array:
        """risk_nal / risk_maml >= 1; inf where only risk_maml is 0, and 1 where both are."""
        gap = self._scaled_gap
        with np.errstate(divide="ignore", over="ignore", invalid="ignore"):  # scale may underflow
            noise = np.where(self._noise == 0, 0.0, self._noise / self._shared.scale)
            risk = self._scaled_risk(self.weight_maml) + noise
            return self._out(1 + _safe_ratio(gap, risk, np.where(gap > 0, np.inf, 0.0)))

    @cached_property
    def equal_hardness_step(self) -> Array:
        """The step that leaves both groups equally unsolved: 2m / ((m + d + 1)(rho_E + rho_H))."""
        f = self._fields
        return self._out(2 / ((1 + (f.dim + 1) * f.inverse_support) * (f.rho_easy + f.rho_hard)))


def ceiling(spread: ArrayLike) -> Array:
    """The most that MAML can gain: risk(NAL) / risk(MAML) <= (1 + h)^2 / (4h), h = ``spread``.
    It holds for any mixture, covariances, inner steps, samples and noise, h its hardness spread
    (:func:`companion.theory.gaussian.hardness_spread`): 1 at h = 1, inf at h = 0. ValueError: h
    outside [0, 1]. Source: derived in book/landscape/gap; Marshall and Olkin (1990)."""
    h = real("spread", spread)
    require((h >= 0) & (h <= 1), "spread", "lie in [0, 1]", h, "see hardness_spread")
    with np.errstate(divide="ignore", over="ignore"):
        return np.asarray(1 + (1 - h) ** 2 / (4 * h))[()]


def hardness_spread(mixture: Mixture) -> Array:
    """The hardness spread h of the mixture: min over max of c_E^k and c_H^k, in [0, 1]. It is 1
    where only one group has a probability, where both are equally hard, and where nothing is left
    of either; 0 where only one of the two is solved exactly. Broadcast as the fields are."""
    f = mixture._fields
    c_easy, c_hard = mixture._contractions
    ratio = _safe_ratio(np.minimum(c_easy, c_hard), np.maximum(c_easy, c_hard), 1.0) ** f.steps
    one_group = (f.hard_fraction == 0) | (f.hard_fraction == 1)
    return mixture._out(np.where(one_group, 1.0, ratio))


def supremum(mixture: Mixture) -> Array:
    """The least upper bound of the ratio over R, v_E and v_H: 1 + l (1 - l) (1 - h)^2 / h, l the
    weight of NAL and h the :func:`hardness_spread`. Without noise it is the ratio at v_E = v_H = 0
    and any R > 0; else the limit for a large R. It is at most :func:`ceiling`, and equal to it
    where l = 1/2, that is (1 - p) rho_E = p rho_H; inf at h = 0."""
    h, both = hardness_spread(mixture), mixture.weight_nal * (1 - mixture.weight_nal)
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        return mixture._out(np.where(both == 0, 1.0, 1 + both * (1 - h) ** 2 / h))


def matching_fraction(mixture: Mixture) -> Array:
    """The share q of hard tasks on which NAL, trained, settles where MAML does on the share p.

    q/(1 - q) = p/(1 - p) (c_H/c_E)^k. From q on, more hard tasks raise NAL's adapted risk on the
    mixture; MAML's rises from p on. Where no group leaves anything, q = p. Source: derived in
    book/landscape/gap."""
    f, shared = mixture._fields, mixture._shared
    easy, hard = shared.easy / f.rho_easy, shared.hard / f.rho_hard
    return mixture._out(_safe_ratio(hard, easy + hard, f.hard_fraction))


def best_fraction(mixture: Mixture) -> float:
    """The share p of hard tasks at which :attr:`Mixture.ratio` is largest, whatever
    ``hard_fraction`` is. In the odds o = p/(1 - p) the ratio is 1 plus a multiple of o^2 / [(rho_E
    + o rho_H)^2 (q0 + q1 o + q2 o^2)]: it rises to one peak, the positive root of 2 rho_H q2 o^3 +
    rho_H q1 o^2 - rho_E q1 o - 2 rho_E q0, and falls. Where the easy (hard) tasks are solved
    exactly, it rises as p falls to 0 (rises to 1): then 0 (1) is returned, a limit. ValueError: a
    mixture with array fields, or one whose ratio is 1 for every p."""
    require(np.ndim(mixture.risk_nal) == 0, "mixture", "hold numbers", "arrays",
            "call once per mixture")
    even = replace(mixture, hard_fraction=0.5)
    require(even.ratio > 1, "mixture", "have a ratio above 1 at some share", float(even.ratio),
            "give it groups that lie apart and are not equally hard")
    f, easy, hard = even._fields, 2 * even._shared.easy, 2 * even._shared.hard
    noises = (replace(mixture, hard_fraction=share)._noise for share in (0.0, 1.0))
    rest_easy, rest_hard = (
        left * var + (2 * noise / even._shared.scale if noise else 0.0)
        for left, var, noise in zip((easy, hard), (f.var_easy, f.var_hard), noises, strict=True))
    q1 = easy * rest_hard + hard * rest_easy + f.distance**2 * easy * hard
    roots = Polynomial([-2 * f.rho_easy * easy * rest_easy, -f.rho_easy * q1, f.rho_hard * q1,
                        2 * f.rho_hard * hard * rest_hard]).trim().roots()
    odds = roots.real[(np.abs(roots.imag) < 1e-6 * np.abs(roots)) & (roots.real > 0)]
    if not odds.size:
        return float(hard == 0)
    shares = odds / (1 + odds)
    return float(shares[np.argmax(replace(mixture, hard_fraction=shares).ratio)])


def best_step(mixture: Mixture, method: str) -> float:
    """The inner step at which ``method``, "nal" or "maml", has its least risk. NAL's minimiser does
    not depend on the step, MAML's is learned anew for each; ``mixture.alpha`` is not used. Both
    risks are rational in alpha: all critical points are roots of a polynomial, and the best of
    those, of 0 and of a grid is returned. ValueError for a mixture with array fields."""
    if method not in ("nal", "maml"):
        raise ValueError(f'method must be "nal" or "maml", got {method!r}; name one of the two')
    require(np.ndim(mixture.risk_nal) == 0, "mixture", "hold numbers", "arrays",
            "call once per mixture")
    f = mixture._fields
    steps, p = int(f.steps), float(f.hard_fraction)
    alpha = Polynomial([0.0, 1.0])

    def group(rho: Array) -> tuple[Polynomial, Polynomial]:
        """rho c^k and the noise term as polynomials in alpha."""
        c = Polynomial([1.0]) * contraction(rho, alpha, f.dim, f.inverse_support)
        powers = [c**j for j in range(steps + 1)]
        noise = rho**2 * f.noise**2 * f.dim * f.inverse_support / 2 * alpha**2
        return rho * powers[-1], noise * sum(powers[:-1], Polynomial([0.0]))

    (easy, noise_easy), (hard, noise_hard) = group(f.rho_easy), group(f.rho_hard)
    easy, hard, noise = (1 - p) * easy, p * hard, (1 - p) * noise_easy + p * noise_hard
    if method == "nal":
        weight = mixture.weight_nal
        far_easy, far_hard = ((1 - weight) * f.distance) ** 2, (weight * f.distance) ** 2
        risk = (easy * (f.var_easy + far_easy) + hard * (f.var_hard + far_hard)) / 2 + noise
        slope = risk.deriv()
    else:  # at the best weight the distance costs R^2 easy hard / (easy + hard)
        whole, product = easy + hard, easy * hard
        slope = ((easy * f.var_easy + hard * f.var_hard) / 2 + noise).deriv() * whole**2
        slope = slope + f.distance**2 / 2 * (product.deriv() * whole - product * whole.deriv())
    roots = slope.trim().roots()
    real_roots = roots.real[(np.abs(roots.imag) < 1e-6 * (1 + np.abs(roots))) & (roots.real > 0)]
    # the roots of many steps are ill-conditioned, so a grid stands beside them; every part of both
    # risks rises beyond the step at which the flatter group's c is least
    last = 1 / (min(f.rho_easy, f.rho_hard) * (1 + (f.dim + 1) * f.inverse_support))
    candidates = np.sort(np.concatenate([np.linspace(0, last, _STEPS),
                                         real_roots[real_roots <= last]]))

    def risks(alpha: ArrayLike) -> Array:
        there = replace(mixture, alpha=alpha)
        return there.risk_nal if method == "nal" else there.risk_maml

    found = risks(candidates)
    best = int(np.argmin(found))
    near = candidates[max(best - 1, 0)], candidates[min(best + 1, len(found) - 1)]
    fine = minimize_scalar(risks, bounds=near, method="bounded", options={"xatol": 1e-12 * last})
    return float(fine.x if fine.fun < found[best] else candidates[best])
