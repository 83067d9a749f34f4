r"""The easy/hard mixture: what MAML gains over plain training without adaptation (NAL), in closed
form.

Tasks as in :mod:`companion.theory.gaussian`, with isotropic inputs x ~ N(0, rho I). An easy task
has rho = rho_easy, a hard one, of probability ``hard_fraction``, rho = rho_hard. The optima of a
group lie around its centre with total variance E|w* - c|^2 = var; the centres are ``distance``
apart. Only the position on the
line between the centres matters: ``weight`` is 1 at the easy centre, 0 at the hard one.
Derived in book/landscape/gap.
"""

from dataclasses import KW_ONLY, dataclass, fields
from functools import cache, cached_property
from types import SimpleNamespace

import numpy as np
import sympy as sp
from numpy.polynomial import Polynomial
from numpy.typing import ArrayLike

from companion.checks import Array, at_least, real, require, step_count, step_size, support_size
from companion.theory.signs import proved_sign


@cache
def symbols() -> SimpleNamespace:
    """The symbols of the derivation. ``u`` is 1/m, so that u = 0 is the full batch."""
    positive = "rho_E rho_H R v_E v_H alpha sigma a_E a_H d"
    names = {name: sp.Symbol(name, positive=True) for name in positive.split()}
    names |= {name: sp.Symbol(name, nonnegative=True) for name in ("p", "u")}
    names["lam"] = sp.Symbol("lambda", real=True)
    names["k"] = sp.Symbol("k", integer=True, positive=True)
    return SimpleNamespace(**names)


def contraction(rho: sp.Expr, alpha: sp.Expr, dim: sp.Expr, inverse_support: sp.Expr) -> sp.Expr:
    """c = (1 - a rho)^2 + (d + 1) a^2 rho^2 / m: the factor by which one step shrinks the mean
    squared error.

    It is the T of :func:`companion.theory.gaussian.q_matrix` on multiples of I. Works on numbers
    and symbols.
    Source: derived in book/landscape/gap.
    """
    return (1 - alpha * rho) ** 2 + (dim + 1) * inverse_support * (alpha * rho) ** 2


@cache
def derive() -> SimpleNamespace:
    """The closed forms, derived by SymPy in :func:`symbols`; ``a_E``, ``a_H`` stand for rho c^k of
    each group.

    Fields: ``leftover_easy``, ``leftover_hard`` (rho c^k), ``noise`` (the risk that label noise
    adds), ``risk`` (of the weight lambda), ``weight_maml`` (its minimiser), ``weight_nal``,
    ``gap``.
    """
    s = symbols()
    c_easy, c_hard = (contraction(rho, s.alpha, s.d, s.u) for rho in (s.rho_E, s.rho_H))

    def noise(rho: sp.Expr, c: sp.Expr) -> sp.Expr:
        steps = (1 - c**s.k) / (1 - c)  # 1 + c + ... + c^(k-1)
        return rho**2 * s.alpha**2 * s.sigma**2 * s.d * s.u * steps / 2

    easy, hard = s.v_E + (1 - s.lam) ** 2 * s.R**2, s.v_H + s.lam**2 * s.R**2
    risk = ((1 - s.p) * s.a_E * easy + s.p * s.a_H * hard) / 2
    (weight_maml,) = sp.solve(sp.diff(risk, s.lam), s.lam)
    weight_nal = weight_maml.subs({s.a_E: s.rho_E, s.a_H: s.rho_H})
    return SimpleNamespace(
        leftover_easy=s.rho_E * c_easy**s.k, leftover_hard=s.rho_H * c_hard**s.k,
        noise=(1 - s.p) * noise(s.rho_E, c_easy) + s.p * noise(s.rho_H, c_hard), risk=risk,
        weight_maml=weight_maml, weight_nal=weight_nal,
        gap=sp.factor(risk.subs(s.lam, weight_nal) - risk.subs(s.lam, weight_maml)),
    )


@cache
def proofs() -> dict[str, bool]:
    """The theorems of book/landscape/gap, proved anew by SymPy: name -> whether it went through.

    ``gap``: it is R^2/2 times a square over positive terms. ``zeros``: for one step the rest of its
    root has the single zero alpha_0, and more steps add none (shown up to 5). ``limit``: 1 +
    lambda^2 R^2/v_H at alpha = 1/rho_E, m = infinity. ``monotone``: the limit rises in R and
    rho_E/rho_H and falls in v_H.
    """
    s, d = symbols(), derive()
    odds, t = sp.symbols("odds t", positive=True)
    cross = s.rho_E * s.a_H - s.rho_H * s.a_E
    gap = s.R**2 / 2 * (s.p * (1 - s.p) * cross) ** 2
    gap /= ((1 - s.p) * s.rho_E + s.p * s.rho_H) ** 2 * ((1 - s.p) * s.a_E + s.p * s.a_H)
    root = cross.subs({s.a_E: d.leftover_easy, s.a_H: d.leftover_hard}).subs(s.k, 1)
    rest = 2 - s.alpha * (1 + (s.d + 1) * s.u) * (s.rho_E + s.rho_H)
    c_easy, c_hard = sp.symbols("c_E c_H", positive=True)
    cofactors = [sp.cancel((c_hard**k - c_easy**k) / (c_hard - c_easy)) for k in range(1, 6)]
    at = {s.alpha: 1 / s.rho_E, s.u: 0, s.k: 1}
    ratio = (d.risk.subs(s.lam, d.weight_nal) / d.risk.subs(s.lam, 0)).subs(s.a_E, 0)
    limit = 1 + d.weight_nal**2 * s.R**2 / s.v_H
    signs = [(s.R, 1), (s.v_H, -1), (t, 1)]
    bare = limit.subs(s.rho_E, t * s.rho_H).subs(s.p, 1 / (1 + odds))
    return {
        "gap": sp.simplify(d.gap - gap) == 0 and proved_sign(gap.subs(s.p, 1 / (1 + odds))) == 1,
        "zeros": sp.expand(root - s.alpha * s.rho_E * s.rho_H * (s.rho_E - s.rho_H) * rest) == 0
        and all(proved_sign(cofactor) == 1 for cofactor in cofactors),
        "limit": d.leftover_easy.subs(at) == 0 and sp.simplify(ratio - limit) == 0,
        "monotone": all(proved_sign(sp.diff(bare, x)) == sign for x, sign in signs),
    }


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
    r"""An easy/hard mixture of isotropic linear-regression tasks, and the exact risks of NAL and
    MAML on it.

    Every field is a number or an array; all are broadcast together, and so is every result.

    Args:
        rho_easy: input variance of easy tasks, > 0: gradient descent contracts at the rate 1 -
            alpha rho.
        rho_hard: the same of hard tasks. Either group may in fact be the harder.
        dim: d, the number of inputs, whole, >= 1.
        support: m, samples per inner step, >= 1; ``math.inf`` is the full batch.
        alpha: inner step, >= 0, finite; 0 (no adaptation) and values beyond 2/rho are allowed.
        hard_fraction: p, the probability of a hard task, in [0, 1].
        distance: R, between the centres, >= 0.
        var_easy: v_E = E|w* - c_E|^2, the total variance of the easy optima, >= 0.
        var_hard: v_H, the same of the hard optima.
        noise: sigma, the standard deviation of the labels' noise, >= 0.
        steps: k, inner steps, each on a fresh batch of m samples, whole, >= 0.

    Raises:
        ValueError: a field out of range, NaN, or shapes that do not broadcast.

    Source: derived in book/landscape/gap; the setting is that of paper L, abstract.
    """

    rho_easy: ArrayLike
    rho_hard: ArrayLike
    dim: ArrayLike
    support: ArrayLike
    alpha: ArrayLike
    _: KW_ONLY
    hard_fraction: ArrayLike = 0.5
    distance: ArrayLike = 1.0
    var_easy: ArrayLike = 0.0
    var_hard: ArrayLike = 0.0
    noise: ArrayLike = 0.0
    steps: ArrayLike = 1

    def __post_init__(self) -> None:
        for name in ("rho_easy", "rho_hard"):
            rho = real(name, getattr(self, name))
            require(rho > 0, name, "be positive", rho, "it is the variance of each input")
        at_least("dim", self.dim, 1, "it counts the inputs", whole=True)
        support_size(self.support)
        step_size(self.alpha)
        fraction = real("hard_fraction", self.hard_fraction)
        inside = (fraction >= 0) & (fraction <= 1)
        require(inside, "hard_fraction", "lie in [0, 1]", fraction,
                "it is the probability of a hard task")
        at_least("distance", self.distance, 0, "it is the distance of the two centres")
        for name in ("var_easy", "var_hard"):
            at_least(name, getattr(self, name), 0, "it is a variance, E|w* - c|^2")
        at_least("noise", self.noise, 0, "noise is a standard deviation")
        step_count(self.steps)
        shapes = {field.name: np.shape(getattr(self, field.name)) for field in fields(self)}
        try:
            object.__setattr__(self, "_shape", np.broadcast_shapes(*shapes.values()))
        except ValueError as error:
            raise ValueError(
                f"fields must broadcast together, got {shapes}; add axes of length 1"
            ) from error
        with np.errstate(over="ignore", invalid="ignore"):
            grown = self._shared.scale
        require(np.isfinite(grown), "c^steps", "be finite", grown,
                "this alpha diverges: take fewer or smaller steps")

    def _out(self, value: Array) -> Array:
        """``value`` in the common shape of the fields and itself; a NumPy scalar where that is
        ()."""
        return np.array(np.broadcast_to(value, np.broadcast_shapes(value.shape, self._shape)))[()]  # type: ignore[attr-defined]

    @cached_property
    def _fields(self) -> SimpleNamespace:
        values = {field.name: np.asarray(getattr(self, field.name), dtype=np.float64)
                  for field in fields(self)}
        return SimpleNamespace(**values,
                               inverse_support=1 / np.asarray(self.support, dtype=np.float64))

    @cached_property
    def _shared(self) -> SimpleNamespace:
        """What the risks share. ``easy`` and ``hard`` are (1-p) a_E and p a_H over ``scale`` =
        max(c)^k."""
        f = self._fields
        c_easy, c_hard = (
            contraction(rho, f.alpha, f.dim, f.inverse_support) for rho in (f.rho_easy, f.rho_hard)
        )
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
        """The risk that label noise adds: the mean over groups of (a s rho)^2 d/(2m) (1 + c + ... +
        c^(k-1))."""
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
        f, shared = self._fields, self._shared
        p = f.hard_fraction
        root = p * (1 - p) * shared.cross * f.distance / ((1 - p) * f.rho_easy + p * f.rho_hard)
        return _safe_ratio(root**2, shared.easy + shared.hard, 0.0) / 2

    @cached_property
    def weight_nal(self) -> Array:
        """Where NAL settles: (1-p) rho_E / ((1-p) rho_E + p rho_H), the weight on the easy
        centre."""
        f = self._fields
        easy, hard = (1 - f.hard_fraction) * f.rho_easy, f.hard_fraction * f.rho_hard
        return self._out(easy / (easy + hard))

    @cached_property
    def weight_maml(self) -> Array:
        """Where MAML settles: (1-p) a_E / ((1-p) a_E + p a_H), a = rho c^k; NAL's weight where no
        error is left."""
        shared = self._shared
        return self._out(_safe_ratio(shared.easy, shared.easy + shared.hard, self.weight_nal))

    def risk(self, weight: ArrayLike) -> Array:
        """The excess risk after adapting from lambda c_E + (1 - lambda) c_H, lambda = ``weight``,
        noise included.

        [(1-p) a_E (v_E + (1-lambda)^2 R^2) + p a_H (v_H + lambda^2 R^2)] / 2 + noise term, in
        squared units of y. ``weight`` may be any real number and is broadcast with the fields.
        """
        return self._out(
            self._shared.scale * self._scaled_risk(real("weight", weight)) + self._noise
        )

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
        """risk_nal - risk_maml >= 0, from its factored form: the difference of two close numbers is
        never taken."""
        return self._out(self._shared.scale * self._scaled_gap)

    @cached_property
    def ratio(self) -> Array:
        """risk_nal / risk_maml >= 1; inf where only risk_maml is 0, and 1 where both are."""
        with np.errstate(
            divide="ignore", over="ignore", invalid="ignore"
        ):  # 0/0 and x/0 where scale underflows
            noise = np.where(self._noise == 0, 0.0, self._noise / self._shared.scale)
            risk = self._scaled_risk(self.weight_maml) + noise
            return self._out(
                1 + _safe_ratio(self._scaled_gap, risk, np.where(self._scaled_gap > 0, np.inf, 0.0))
            )

    @cached_property
    def equal_hardness_step(self) -> Array:
        """alpha_0 = 2m / ((m + d + 1)(rho_E + rho_H)): the step that leaves both kinds of task
        equally unsolved."""
        f = self._fields
        return self._out(2 / ((1 + (f.dim + 1) * f.inverse_support) * (f.rho_easy + f.rho_hard)))


def best_step(mixture: Mixture, method: str) -> float:
    """The inner step at which ``method`` ("nal" or "maml") has its least risk; ``mixture.alpha`` is
    not used.

    NAL's minimiser does not depend on the step, MAML's is learned anew for each. Both risks are
    rational in alpha; all critical points are found as polynomial roots, and the best of those >= 0
    (and 0) is returned.

    Raises:
        ValueError: another method, or a mixture with array fields.

    Source: derived in book/landscape/gap.
    """
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
        slope = (
            (easy * (f.var_easy + far_easy) + hard * (f.var_hard + far_hard)) / 2 + noise
        ).deriv()
    else:  # at the best weight the distance costs R^2 easy hard / (easy + hard)
        whole, product = easy + hard, easy * hard
        slope = ((easy * f.var_easy + hard * f.var_hard) / 2 + noise).deriv() * whole**2
        slope = slope + f.distance**2 / 2 * (product.deriv() * whole - product * whole.deriv())
    roots = slope.trim().roots()
    real_roots = roots.real[(np.abs(roots.imag) < 1e-6 * (1 + np.abs(roots))) & (roots.real > 0)]
    candidates = np.concatenate([[0.0], real_roots])
    values = {field.name: getattr(mixture, field.name) for field in fields(mixture)} | {
        "alpha": candidates
    }
    there = Mixture(**values)
    return float(candidates[np.argmin(there.risk_nal if method == "nal" else there.risk_maml)])
