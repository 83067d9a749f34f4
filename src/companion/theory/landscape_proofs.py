"""The theorems on :class:`companion.theory.landscape.Mixture`, derived and proved by SymPy.

Tasks and symbols are those of book/landscape/gap.
"""

from functools import cache
from types import SimpleNamespace

import sympy as sp

from companion.theory.landscape import contraction
from companion.theory.signs import has_sign


@cache
def symbols() -> SimpleNamespace:
    """The symbols of the derivation. ``u`` is 1/m, so that u = 0 is the full batch."""
    names = ("rho_E", "rho_H", "R", "v_E", "v_H", "alpha", "sigma", "a_E", "a_H", "d")
    return SimpleNamespace(**{name: sp.Symbol(name, positive=True) for name in names},
                           p=sp.Symbol("p", nonnegative=True), u=sp.Symbol("u", nonnegative=True),
                           lam=sp.Symbol("lambda", real=True),
                           k=sp.Symbol("k", integer=True, positive=True))


@cache
def derive() -> SimpleNamespace:
    """The closed forms in :func:`symbols`; ``a_E``, ``a_H`` stand for rho c^k of each group.
    Fields: ``leftover_easy``, ``leftover_hard`` (rho c^k), ``noise`` (the risk that label noise
    adds), ``risk`` (of the weight lambda), ``weight_maml`` (its minimiser), ``weight_nal`` and
    ``gap``."""
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
        gap=sp.factor(risk.subs(s.lam, weight_nal) - risk.subs(s.lam, weight_maml)))


def _gap() -> bool:
    s, d, odds = symbols(), derive(), sp.Symbol("odds", positive=True)
    gap = s.R**2 / 2 * (s.p * (1 - s.p) * _cross()) ** 2
    gap /= ((1 - s.p) * s.rho_E + s.p * s.rho_H) ** 2 * ((1 - s.p) * s.a_E + s.p * s.a_H)
    return bool(sp.simplify(d.gap - gap) == 0
                and has_sign(gap.subs(s.p, 1 / (1 + odds)), 1, strict=False))


def _cross() -> sp.Expr:
    s = symbols()
    return s.rho_E * s.a_H - s.rho_H * s.a_E


def _zeros() -> bool:
    s, d = symbols(), derive()
    root = _cross().subs({s.a_E: d.leftover_easy, s.a_H: d.leftover_hard}).subs(s.k, 1)
    rest = 2 - s.alpha * (1 + (s.d + 1) * s.u) * (s.rho_E + s.rho_H)
    c_easy, c_hard = sp.symbols("c_E c_H", positive=True)
    cofactors = [sp.cancel((c_hard**k - c_easy**k) / (c_hard - c_easy)) for k in range(1, 6)]
    factored = s.alpha * s.rho_E * s.rho_H * (s.rho_E - s.rho_H) * rest
    return sp.expand(root - factored) == 0 and all(has_sign(one, 1) for one in cofactors)


def _limit() -> sp.Expr:
    s = symbols()
    return 1 + derive().weight_nal ** 2 * s.R**2 / s.v_H


def _limits() -> bool:
    s, d = symbols(), derive()
    at = {s.alpha: 1 / s.rho_E, s.u: 0, s.k: 1}
    ratio = (d.risk.subs(s.lam, d.weight_nal) / d.risk.subs(s.lam, 0)).subs(s.a_E, 0)
    return bool(d.leftover_easy.subs(at) == 0 and sp.simplify(ratio - _limit()) == 0)


@cache
def identity() -> SimpleNamespace:
    """The identity ratio = 1 + (l_N - l_M)^2 R^2 / [l_M v_E + (1 - l_M) v_H + l_M (1 - l_M) R^2 +
    nu], in symbols: ``ratio``, and its ``nal`` and ``maml`` (l_N, l_M in (0, 1)) and ``nu`` >= 0,
    the noise term over [(1-p) a_E + p a_H]/2. The other symbols are those of :func:`symbols`."""
    s = symbols()
    nal, maml = sp.symbols("lambda_N lambda_M", real=True)
    nu = sp.Symbol("nu", positive=True)
    spread = maml * s.v_E + (1 - maml) * s.v_H + nu
    gain = (nal - maml) ** 2 * s.R**2 / (spread + maml * (1 - maml) * s.R**2)
    return SimpleNamespace(ratio=1 + gain, nal=nal, maml=maml, nu=nu)


def _identity() -> bool:
    s, d, i = symbols(), derive(), identity()
    whole = ((1 - s.p) * s.a_E + s.p * s.a_H) / 2
    risk = i.maml * s.v_E + (1 - i.maml) * s.v_H + i.nu  # over ``whole``, as nu is
    risk += s.R**2 * ((s.lam - i.maml) ** 2 + i.maml * (1 - i.maml))
    parts = (d.risk / whole + i.nu - risk).subs(i.maml, d.weight_maml)
    ratio = risk.subs(s.lam, i.nal) / risk.subs(s.lam, i.maml)
    return bool(sp.cancel(parts) == 0 and sp.cancel(ratio - i.ratio) == 0)


def _monotone() -> bool:
    s, i = symbols(), identity()
    odds, t, x, apart = sp.symbols("odds t x apart", positive=True)
    bare = _limit().subs(s.rho_E, t * s.rho_H).subs(s.p, 1 / (1 + odds))
    inside = i.ratio.subs(i.nal, i.maml + apart).subs(i.maml, 1 / (1 + x))  # l_N != l_M
    return (all(has_sign(sp.diff(bare, y), sign) for y, sign in ((s.R, 1), (s.v_H, -1), (t, 1)))
            and all(has_sign(sp.diff(inside, y), sign)
                    for y, sign in ((s.R, 1), (s.v_E, -1), (s.v_H, -1), (i.nu, -1))))


def _supremum() -> bool:
    s, d, i = symbols(), derive(), identity()
    g_easy, g_hard, apart, x = sp.symbols("g_E g_H apart x", positive=True)
    nal, left = d.weight_nal, {s.a_E: s.rho_E * g_easy, s.a_H: s.rho_H * g_hard}
    saturated = 1 + (i.nal - i.maml) ** 2 / (i.maml * (1 - i.maml))
    here = saturated.subs({i.nal: nal, i.maml: d.weight_maml.subs(left)})
    below = (saturated - i.ratio).subs(i.nal, i.maml + apart).subs(i.maml, 1 / (1 + x))
    return (sp.limit(i.ratio - saturated, s.R, sp.oo) == 0 and has_sign(below, 1)
            and all(sp.cancel(here - 1 - nal * (1 - nal) * (1 - h) ** 2 / h) == 0
                    for h in (g_easy / g_hard, g_hard / g_easy)))


def _ceiling() -> bool:
    h, x, y, mean = sp.symbols("h x y mu", positive=True)
    lam = sp.Symbol("lambda", real=True)
    top = (1 + h) ** 2 / (4 * h)
    chord = (1 + h - mean) / h - 1 / mean  # the chord lies above 1/mu on [h, 1]
    between = chord.subs(mean, (h + x) / (1 + x)).subs(h, 1 / (1 + y))
    square = top - mean * (1 + h - mean) / h
    sharp = (1 - h) ** 2 / (4 * h) - lam * (1 - lam) * (1 - h) ** 2 / h
    falls = sp.diff(top, h).subs(h, 1 / (1 + y))
    return (has_sign(between, 1) and sp.cancel(chord - (1 - mean) * (mean - h) / (h * mean)) == 0
            and sp.cancel(square - (1 + h - 2 * mean) ** 2 / (4 * h)) == 0
            and sp.cancel(sharp - (1 - h) ** 2 * (1 - 2 * lam) ** 2 / (4 * h)) == 0
            and has_sign(sharp, 1, strict=False) and has_sign(falls, -1)
            and top.subs(h, 1) == 1 and _least_squares())


@cache
def _least_squares() -> bool:
    """Three tasks of one input: with A the roots of p_i rho_i, b = A w*, H the leftovers and r the
    residual of NAL, the risks are r.H r / 2 and r.V (V.T H^-1 V)^-1 V.T r / 2, V spanning A's
    complement."""
    roots, left, b = (sp.Matrix(sp.symbols(f"{name}:3", positive=True)) for name in ("s", "l", "b"))
    h = sp.diag(*left)

    def fit(metric: sp.Matrix) -> sp.Matrix:
        return b - roots * (roots.T * metric * b)[0] / (roots.T * metric * roots)[0]

    nal, maml = fit(sp.eye(3)), fit(h)
    v = sp.Matrix([[-roots[1], -roots[2]], [roots[0], 0], [0, roots[0]]])
    whole = (nal.T * v * (v.T * h.inv() * v).inv() * v.T * nal)[0]
    return bool(sp.cancel((nal.T * roots)[0]) == 0
                and sp.cancel((maml.T * h * maml)[0] - whole) == 0)


def _few() -> bool:
    moved, t, m = sp.symbols("x t m", positive=True)  # x = a s, t = tr(S^2)/s^2
    left = (1 - moved) ** 2 + moved**2 * (t + 1) / m
    least = (1 + t) / (m + 1 + t)
    return has_sign(left - least, 1, strict=False) and has_sign(sp.diff(least, t), 1)


def _matching() -> bool:
    s, d = symbols(), derive()
    g_easy, g_hard, odds = sp.symbols("g_E g_H odds", positive=True)
    left = {s.a_E: s.rho_E * g_easy, s.a_H: s.rho_H * g_hard}
    whole = (1 - s.p) * s.a_E + s.p * s.a_H
    match = s.p * g_hard / ((1 - s.p) * g_easy + s.p * g_hard)
    hard = s.a_H * (s.v_H + s.lam**2 * s.R**2) / 2
    falls = [weight.subs(s.p, odds / (1 + odds)).diff(odds)
             for weight in (d.weight_nal, d.weight_maml)]
    return (sp.cancel(match / (1 - match) - s.p / (1 - s.p) * g_hard / g_easy) == 0
            and sp.cancel(d.weight_maml.subs(left) - d.weight_nal.subs(s.p, match)) == 0
            and sp.cancel(d.risk.diff(s.lam) - whole * s.R**2 * (s.lam - d.weight_maml)) == 0
            and all(has_sign(slope, -1) for slope in falls)
            and has_sign(hard.subs(s.lam, 1 / (1 + odds)).diff(odds), -1)
            and all(weight.subs(s.p, 1) == 0 for weight in (d.weight_nal, d.weight_maml)))


@cache
def share() -> SimpleNamespace:
    """The ratio as a function of the odds o = p/(1 - p): ``odds``; ``quadratic``, q0 + q1 o + q2
    o^2; and ``cubic``, whose one positive root is the peak. ``noise_easy`` and ``noise_hard`` are
    twice the noise terms of the groups; the other symbols are those of :func:`symbols`."""
    s = symbols()
    odds, n_easy, n_hard = sp.symbols("o n_E n_H", positive=True)
    rest = [s.a_E * s.v_E + n_easy, s.a_H * s.v_H + n_hard]
    q = (s.a_E * rest[0], s.a_E * rest[1] + s.a_H * rest[0] + s.R**2 * s.a_E * s.a_H,
         s.a_H * rest[1])
    cubic = (2 * s.rho_H * q[2] * odds**3 + s.rho_H * q[1] * odds**2
             - s.rho_E * q[1] * odds - 2 * s.rho_E * q[0])
    return SimpleNamespace(odds=odds, noise_easy=n_easy, noise_hard=n_hard, cubic=cubic,
                           quadratic=q[0] + q[1] * odds + q[2] * odds**2)


def _share() -> bool:
    s, d, o = symbols(), derive(), share()
    noise = ((1 - s.p) * o.noise_easy + s.p * o.noise_hard) / 2
    maml = (d.risk.subs(s.lam, d.weight_maml) + noise).subs(s.p, o.odds / (1 + o.odds))
    shared = 2 * (1 + o.odds) * (s.a_E + o.odds * s.a_H)  # of the gap and of the risk
    root = s.R * o.odds * _cross() / (s.rho_E + o.odds * s.rho_H)
    forms = (maml - o.quadratic / shared, d.gap.subs(s.p, o.odds / (1 + o.odds)) - root**2 / shared)
    slope = 2 / o.odds - 2 * s.rho_H / (s.rho_E + o.odds * s.rho_H) - (
        o.quadratic.diff(o.odds) / o.quadratic)  # of the logarithm of the gain
    below = o.odds * (s.rho_E + o.odds * s.rho_H) * o.quadratic
    signs = zip(sp.Poly(o.cubic, o.odds).all_coeffs(), (1, 1, -1, -1), strict=True)
    return (all(sp.cancel(form) == 0 for form in forms) and sp.cancel(slope + o.cubic / below) == 0
            and has_sign(below, 1) and all(has_sign(one, sign) for one, sign in signs))


@cache
def proofs() -> dict[str, bool]:
    """The theorems of book/landscape/gap, proved anew: name -> whether the proof went through.

    ``gap``: it is R^2/2 times a square over positive terms. ``zeros``: the rest of its root has the
    single zero alpha_0 for one step, and more steps add none (shown up to 5). ``identity``: the
    ratio of :func:`identity`, for any leftovers, p and noise. ``monotone``: where l_N != l_M it
    rises in R and falls in v_E, v_H and nu, all strictly; the limit rises in rho_E/rho_H too.
    ``limit``, at alpha = 1/rho_E, m = infinity: 1 + l_N^2 R^2/v_H. ``supremum``: as R grows the
    ratio rises to 1 + l_N (1 - l_N)(1 - h)^2/h. ``ceiling``: the steps to (1 + h)^2/(4h) that are
    algebra: 1/mu <= (1 + h - mu)/h on [h, 1], the square that is completed, both risks as least
    squares (three tasks), and supremum <= ceiling. ``few``: what one step on m samples leaves is
    at least (1 + t)/(m + 1 + t). ``matching``: NAL on the share q settles where MAML does on p;
    from there on the risk on the mixture rises, while that on hard tasks falls until q = 1.
    ``share``: in p the ratio has one peak, at the root of :func:`share`, by Descartes' rule.
    """
    return {"gap": _gap(), "zeros": _zeros(), "identity": _identity(), "monotone": _monotone(),
            "limit": _limits(), "supremum": _supremum(), "ceiling": _ceiling(), "few": _few(),
            "matching": _matching(), "share": _share()}
