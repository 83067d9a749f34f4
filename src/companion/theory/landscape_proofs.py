"""The theorems on :class:`companion.theory.landscape.Mixture`, derived and proved by SymPy.

Tasks and symbols are those of book/landscape/gap.
"""

from functools import cache
from types import SimpleNamespace

import sympy as sp

from companion.theory.landscape import contraction
from companion.theory.signs import proved_sign


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


@cache
def proofs() -> dict[str, bool]:
    """The theorems of book/landscape/gap, proved anew: name -> whether the proof went through.

    ``gap``: it is R^2/2 times a square over positive terms. ``zeros``: the rest of its root has the
    single zero alpha_0 for one step, and more steps add none (shown up to 5). ``limit``, at alpha =
    1/rho_E, m = infinity: 1 + lambda^2 R^2/v_H. ``monotone``: it rises in R, rho_E/rho_H, 1/v_H.
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
