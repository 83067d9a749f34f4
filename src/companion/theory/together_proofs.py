"""The theorems of :mod:`companion.theory.together`, proved by SymPy.

One output, no label noise. T is a group's variance plus the squared distance of the start to its
centre, M_j the groups' mean of rho^j T, k = 1 + (d + 1)/m, e = k - 1, K = p (1 - p) rho_E rho_H
(rho_E - rho_H)^2. Derived in book/together.

**Between two ratios.** Let r(P) = risk(NAL, P) / min_w risk(w, P) be the ratio at a step that both
share, P_N the best step at NAL's start, P_M MAML's. Then r(P_N) <= ratio <= r(P_M): on the left
MAML's risk is that of its best step or more, on the right NAL's is. It holds for any tasks and any
set of steps, and r(P_M) is at most the ceiling (1 + h)^2/(4h) at MAML's step.
"""

from functools import cache
from types import SimpleNamespace

import sympy as sp

from companion.theory.gaussian import gram_sandwich
from companion.theory.signs import has_sign


@cache
def symbols() -> SimpleNamespace:
    """``a`` and ``b`` stand for rho_E and rho_H, ``p_E`` and ``p_H`` for the groups' shares: only
    their ratio matters, so that they need not sum to 1. ``u`` is 1/m, ``x`` the odds of the weight
    on the easy centre and ``lam`` = x/(1 + x) that weight."""
    names = ("a", "b", "p_E", "p_H", "R", "v_E", "v_H", "T_E", "T_H", "d", "u", "e", "x", "q")
    found = SimpleNamespace(**{name: sp.Symbol(name, positive=True) for name in names})
    found.lam = found.x / (1 + found.x)
    return found


def moment(j: int) -> sp.Expr:
    """M_j."""
    s = symbols()
    return s.p_E * s.a**j * s.T_E + s.p_H * s.b**j * s.T_H


@cache
def derive() -> SimpleNamespace:
    """``well``, T_E T_H / M_3; ``risk``, (e M_1 + K well)/(2k), what the best rate leaves; that
    ``rate``, M_2/(k M_3); ``bare``, the T of a start of weight lam where v_E = v_H = 0;
    ``transition``, the e at which the start of odds q a/b is as good as NAL's, for equal shares
    and no variances."""
    s = symbols()
    coupling = s.p_E * s.p_H * s.a * s.b * (s.a - s.b) ** 2
    well = s.T_E * s.T_H / moment(3)
    return SimpleNamespace(
        well=well, risk=(s.e * moment(1) + coupling * well) / (2 * (1 + s.e)),
        rate=moment(2) / ((1 + s.e) * moment(3)),
        bare={s.T_E: ((1 - s.lam) * s.R) ** 2, s.T_H: (s.lam * s.R) ** 2},
        transition=(s.a - s.b) ** 2 / (s.a + s.b) ** 2 * (
            s.a * s.q**2 + 2 * (s.a + s.b) * s.q + s.b) / (s.a + s.b * s.q**2))


def _moment() -> bool:
    s = symbols()
    easy, other = sp.symbols("e_1 e_2", positive=True)
    found = gram_sandwich(s.a * sp.eye(2), sp.diag(easy, other), s.u)
    whole = s.a**2 * (easy + other)
    form = [s.a**2 * error + s.u * (s.a**2 * error + whole) for error in (easy, other)]
    return bool((found - sp.diag(*form)).expand() == sp.zeros(2, 2))


def _scalar() -> bool:
    s, d, alpha = symbols(), derive(), sp.Symbol("alpha", real=True)
    risk = sum(share * rho * t * ((1 - alpha * rho) ** 2 + s.e * (alpha * rho) ** 2) / 2
               for share, rho, t in ((s.p_E, s.a, s.T_E), (s.p_H, s.b, s.T_H)))
    (rate,) = sp.solve(sp.diff(risk, alpha), alpha)
    return bool(sp.cancel(rate - d.rate) == 0 and sp.cancel(risk.subs(alpha, rate) - d.risk) == 0
                and sp.diff(risk, alpha, 2).is_positive)


def _well() -> bool:
    s, d, root = symbols(), derive(), sp.Symbol("s", positive=True)
    scaled = {s.p_E: root**3, s.p_H: 1, s.R: 1, s.e: 0}  # the others are but factors
    well, rate = (sp.cancel(value.subs(d.bare).subs(scaled)) for value in (d.well, d.rate))
    top = root * s.a / s.b
    shares = [((1 - rate * rho) ** 2).subs(s.x, top) for rho in (s.a, s.b)]
    ends = [tuple(sp.cancel(value.subs(s.x, at)).subs(s.q, 0) for value in (rate, well))
            for at in (s.q, 1 / s.q)]
    return (has_sign(sp.diff(well, s.x) / (root * s.a - s.b * s.x), 1)
            and sp.cancel(shares[0] - shares[1] / root**2) == 0
            and ends == [(1 / s.a, 0), (1 / s.b, 0)])


def _balanced() -> bool:
    s, d = symbols(), derive()
    nal = {s.x: s.p_E * s.a / (s.p_H * s.b)}
    slope = sp.diff(d.risk.subs(d.bare), s.x).subs(nal)
    rate = d.rate.subs(d.bare).subs(nal).subs(s.p_E, s.p_H)
    left = [(1 - rate * rho) ** 2 + s.e * (rate * rho) ** 2 for rho in (s.a, s.b)]
    equal = 2 / ((1 + s.e) * (s.a + s.b))
    return (has_sign(slope / (s.p_H - s.p_E), 1, strict=False) and sp.cancel(rate - equal) == 0
            and sp.cancel(left[0] - left[1]) == 0)


def _transition() -> bool:
    s, d = symbols(), derive()
    half = {s.p_E: sp.Rational(1, 2), s.p_H: sp.Rational(1, 2), s.R: 1}  # R^2 is but a factor
    risk = sp.cancel((d.risk * (1 + s.e)).subs(d.bare).subs(half))
    difference = sp.factor(risk.subs(s.x, s.q * s.a / s.b) - risk.subs(s.x, s.a / s.b))
    worse = difference / (s.q - 1) ** 2
    dear = sp.cancel(sp.diff(worse, s.e))
    top = d.transition.subs(s.q, s.a / s.b)
    fewest = s.a * s.b * (s.a + s.b) ** 2 / ((s.a - s.b) * (s.a**3 - s.b**3))
    return (sp.cancel(worse - dear * (s.e - d.transition)) == 0
            and has_sign(dear, 1) and sp.cancel(top * fewest - 1) == 0
            and has_sign(sp.diff(d.transition, s.q) / (s.a - s.b * s.q), 1, strict=False))


def _samples() -> bool:
    s = symbols()
    near, dear, low, deep = sp.symbols("M x W y", nonnegative=True)
    ratio = (s.e * near + low + deep) / (s.e * (near + dear) + low)
    return has_sign(sp.diff(ratio, s.e), -1, strict=False)


def _full() -> bool:
    s, d = symbols(), derive()
    one = (sp.diag(s.T_E, 0, 0), sp.diag(s.T_H, 0, 0))
    before, pull, cost = (sp.zeros(3, 3) for _ in range(3))
    for share, rho, error in zip((s.p_E, s.p_H), (s.a, s.b), one, strict=True):
        before += share * rho * error
        pull += share * rho**2 * error
        cost += share * rho**3 * ((1 + s.u) * error + s.u * error.trace() * sp.eye(3))
    risk = (before - pull * cost.inv() * pull).trace() / 2
    return bool(sp.cancel(risk - d.risk.subs(s.e, 2 * s.u)) == 0)


def _parallel() -> bool:
    s = symbols()
    x, y = (sp.Matrix(2, 2, lambda i, j, n=n: sp.Symbol(f"{n}{min(i, j)}{max(i, j)}"))
            for n in "xy")
    pull = x / s.a + y / s.b  # X = p_E rho_E^3 E, and likewise Y
    left = x / s.a**2 + y / s.b**2 - pull * (x + y).inv() * pull
    parallel = x * (x + y).inv() * y
    return bool((left - (1 / s.a - 1 / s.b) ** 2 * parallel).applyfunc(sp.cancel)
                == sp.zeros(2, 2))


def _shrinks() -> bool:
    s, d = symbols(), derive()
    near = {s.T_E: s.v_E + s.R**2, s.T_H: s.v_H}
    one = d.risk.subs(s.e, 0).subs(near)
    along = d.risk.subs(s.e, 0).subs({s.T_E: s.v_E / s.d + s.R**2, s.T_H: s.v_H / s.d})
    beside = (s.d - 1) / s.d * d.risk.subs(s.e, 0).subs({s.T_E: s.v_E, s.T_H: s.v_H})
    first = s.p_H * s.b * (1 - s.b / s.a) ** 2 / 2
    far = {s.T_E: s.v_E / s.d + s.q, s.T_H: s.x}  # NAL's start as v_H falls to 0
    apart = (d.rate.subs(s.e, 0).subs(far) - 1 / s.a) / (s.a - s.b)
    return (all(sp.cancel(sp.limit(risk / s.v_H, s.v_H, 0) - first) == 0
                for risk in (one, along + beside)) and has_sign(apart, 1))


@cache
def proofs() -> dict[str, bool]:
    """The theorems, gone through anew: name -> whether the proof went through. All have one output,
    no label noise, R > 0 and the start on the line of the centres, but for ``parallel``.

    ``moment``: the second moment of the step in a block, from Wick's theorem. ``scalar``: at its
    best rate M_2/(k M_3) a start leaves (e M_1 + K W)/(2k), W = T_E T_H/M_3. M_1/2 is the loss
    before adaptation, which NAL minimises.

    ``well``, m = infinity and v_E = v_H = 0: W is 0 at either centre, with the rate that solves the
    other group, 1/rho_E at the hard centre and 1/rho_H at the easy one, and has a single maximum
    between them, at the odds (p_E/p_H)^(1/3) rho_E/rho_H, where c_E/c_H = (p_H/p_E)^(2/3). So
    **MAML specialises**: h = 0, risk 0, while NAL with its best rate keeps a positive risk. Equal
    hardness is that maximum for p = 1/2, and then it is NAL's start.

    ``balanced``, any m, v_E = v_H = 0: at NAL's start the risk at the best rate rises with the
    weight on the easy centre for p > 1/2 and falls for p < 1/2 (m finite or not); for p = 1/2 that
    start is critical, and its best rate is alpha_0: both groups are left equally unsolved.

    ``transition``, v_E = v_H = 0, p = 1/2: the start of odds q rho_E/rho_H is better than NAL's
    where e < E(q), E as in :func:`derive`, and E is largest at q = rho_E/rho_H. So **the ratio is 1
    exactly for m <= m***, :func:`companion.theory.together.fewest_samples`: then the optimizer
    alone rescues NAL, by equal hardness; above m* it is larger than 1.

    ``samples``, any p and variances: the ratio, the largest over starts of (e M_1' + K W')/(e M_1 +
    K W), primes at NAL's start, where M_1' <= M_1, does not rise with e = (d + 1)/m: for a start
    with W <= W' the quotient falls, the others are below 1. More samples, or fewer inputs, never
    lower the gain.

    ``full``, v_E = v_H = 0: a full P leaves what one rate leaves with a single input, so e = 2/m.
    By ``samples`` **a full P, which depth can learn, never lowers MAML's gain there**.
    ``shrinks``, m = infinity, v_E > 0, as v_H falls to 0: both of MAML's risks fall as p rho_H (1 -
    rho_H/rho_E)^2 v_H/2, reached at the hard centre (W rises in T_E >= v_E and in T_H >= v_H, so
    none is lower), but NAL's is smaller with a full P, whose best rates along the line and beside
    it differ, for d >= 2. So there **a full P lowers the gain**.

    ``parallel``, m = infinity, any start, on the line or off it: the best P leaves (1/rho_E -
    1/rho_H)^2 tr(X (X + Y)^-1 Y)/2, X = p_E rho_E^3 E and likewise Y.
    """
    return {"moment": _moment(), "scalar": _scalar(), "well": _well(), "balanced": _balanced(),
            "transition": _transition(), "samples": _samples(), "full": _full(),
            "parallel": _parallel(), "shrinks": _shrinks()}
