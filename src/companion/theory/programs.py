"""Derived formulas in an order in which a page's script can evaluate them: each is a SymPy
expression in the knobs and in the names before it.

Two functions are not SymPy's own: ``orelse(x, y)`` is y where x is 0/0, and ``powers(c, k)`` is
1 + c + ... + c^(k - 1).
"""

from collections.abc import Mapping

import numpy as np
import sympy as sp
from numpy.typing import ArrayLike

from companion.checks import Array
from companion.theory.landscape import contraction
from companion.theory.landscape_proofs import symbols

ORELSE, POWERS = sp.Function("orelse"), sp.Function("powers")
Program = Mapping[str, sp.Expr]


def _powers(c: Array, k: Array) -> Array:
    return sum((np.where(k > j, c**j, 0.0) for j in range(int(np.max(k)))), np.zeros_like(c))


CALLS = {"orelse": lambda x, y: np.where(np.isnan(x), y, x), "powers": _powers}


def evaluate(program: Program, values: Mapping[str, ArrayLike]) -> dict[str, Array]:
    """All names of a program, given its knobs; numbers or arrays that broadcast together."""
    known: dict[str, Array] = {name: np.asarray(value, float) for name, value in values.items()}
    with np.errstate(divide="ignore", invalid="ignore"):
        for name, expression in program.items():
            used = sorted(expression.free_symbols, key=str)
            found = sp.lambdify(used, expression, [CALLS, "numpy"])
            known[name] = np.asarray(found(*(known[symbol.name] for symbol in used)))
    return {name: known[name] for name in program}


def mixture() -> Program:
    """What :class:`companion.theory.landscape.Mixture` has, in :func:`symbols` and R: the weights
    ``l_N``, ``l_M`` of the easy centre and their complements ``q_N``, ``q_M``, ``h``, ``ceiling``,
    ``alpha_0``, ``ratio``, and the shares ``keep_E``, ``keep_H`` of the way that the mean step
    leaves. The ratio is that of prf:thm-identity with (l_N - l_M) = l_N q_M - l_M q_N, which does
    not cancel. Derived in book/landscape/gap."""
    s = symbols()
    names = "c_E c_H l_N q_N l_M q_M nu"
    c_easy, c_hard, l_n, q_n, l_m, q_m, nu = sp.symbols(names, nonnegative=True)
    before = (1 - s.p) * s.rho_E, s.p * s.rho_H
    after = before[0] * c_easy**s.k, before[1] * c_hard**s.k
    noise = (s.alpha**2 * s.sigma**2 * s.d * s.u
             * ((1 - s.p) * s.rho_E**2 * POWERS(c_easy, s.k)
                + s.p * s.rho_H**2 * POWERS(c_hard, s.k)))
    spread = l_m * s.v_E + q_m * s.v_H + nu + l_m * q_m * s.R**2
    one_group = sp.Eq(s.p * (1 - s.p), 0)
    share = ORELSE((sp.Min(c_easy, c_hard) / sp.Max(c_easy, c_hard)) ** s.k, 1)
    h = sp.Symbol("h", positive=True)
    return {
        "c_E": contraction(s.rho_E, s.alpha, s.d, s.u),
        "c_H": contraction(s.rho_H, s.alpha, s.d, s.u),
        "l_N": before[0] / sum(before), "q_N": before[1] / sum(before),
        "l_M": ORELSE(after[0] / sum(after), l_n), "q_M": ORELSE(after[1] / sum(after), q_n),
        "nu": ORELSE(noise / sum(after), 0),
        "ratio": 1 + ORELSE((l_n * q_m - l_m * q_n) ** 2 * s.R**2 / spread, 0),
        "h": sp.Piecewise((1, one_group), (share, True)),
        "ceiling": 1 + (1 - h) ** 2 / (4 * h),
        "alpha_0": 2 / ((1 + (s.d + 1) * s.u) * (s.rho_E + s.rho_H)),
        "keep_E": (1 - s.alpha * s.rho_E) ** s.k, "keep_H": (1 - s.alpha * s.rho_H) ** s.k}


def preconditioner() -> Program:
    """One step from the mean start along two directions, of input variances ``s_1``, ``s_2`` and
    variances of the optima ``g_1``, ``g_2``, with ``u`` = 1/m and noise ``sigma``: the best rate
    ``rate``, whitening with a ridge ``W_1``, ``W_2`` at its best rate, the best preconditioner
    ``P_1``, ``P_2``, and the share of the risk before adaptation that each leaves. Derived in
    book/depth/shallow."""
    u, sigma = sp.symbols("u sigma", nonnegative=True)
    s, g = sp.symbols("s_1 s_2", positive=True), sp.symbols("g_1 g_2", positive=True)
    before, tau = sp.symbols("before tau", positive=True)
    linear = [b**2 * c for b, c in zip(s, g, strict=True)]
    bend = [(1 + u) * b**3 * c + tau * b**2 for b, c in zip(s, g, strict=True)]

    def best(along: tuple[sp.Expr, sp.Expr]) -> sp.Expr:
        return (sum(x * one for x, one in zip(along, linear, strict=True))
                / sum(x**2 * one for x, one in zip(along, bend, strict=True)))

    def left(step: tuple[sp.Expr, sp.Expr]) -> sp.Expr:
        return (1 + sum(x**2 * down - 2 * x * up for x, up, down
                        in zip(step, linear, bend, strict=True)) / before)

    ridge, rate, scale = sp.symbols("ridge rate scale", nonnegative=True)
    white, full = sp.symbols("W_1 W_2", positive=True), sp.symbols("P_1 P_2", positive=True)
    bare = tuple(1 / (b + ridge) for b in s)
    return {
        "before": sum(b * c for b, c in zip(s, g, strict=True)),
        "tau": u * (before + sigma**2),
        "rate": best((sp.Integer(1), sp.Integer(1))),
        "ridge": u / (1 + u) * (sum(s) + 2 * sigma**2 / sum(g)),
        "scale": best(bare),
        "W_1": scale / (s[0] + ridge), "W_2": scale / (s[1] + ridge),
        "P_1": linear[0] / bend[0], "P_2": linear[1] / bend[1],
        "left_rate": left((rate, rate)), "left_white": left(white), "left_full": left(full)}
