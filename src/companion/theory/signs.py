"""Sign proofs by factoring: an expression is positive where each of its factors visibly is."""

from typing import Any

import sympy as sp

from companion.checks import require


def _never_negative(factor: sp.Expr) -> tuple[bool, bool]:
    """Whether ``factor`` is visibly >= 0, and whether > 0: a sum of positive multiples of monomials
    that are not negative, one of which is positive."""
    symbols = sorted(factor.free_symbols, key=str)
    if not symbols:
        return bool(factor >= 0), bool(factor > 0)
    weak, strict = True, False
    for powers, coefficient in sp.Poly(factor, *symbols).terms():
        raised = [symbol for symbol, power in zip(symbols, powers, strict=True) if power]
        signed = [symbol for symbol, power in zip(symbols, powers, strict=True)
                  if power % 2 and not symbol.is_nonnegative]
        weak = weak and bool(coefficient > 0) and not signed
        strict = strict or all(symbol.is_positive for symbol in raised)
    return weak, weak and strict


def proved_sign(expression: Any, *, strict: bool = True) -> int:
    """The sign of a rational ``expression``, where factoring shows it: 1, -1, or 0 for zero itself.

    Numerator and denominator are factored. With ``strict``, every factor must be, up to its sign, a
    sum of positive terms: then 1 says > 0, and -1 says < 0, wherever the expression is defined.
    With ``strict=False`` a factor may also vanish, as the square (x - y)^2 does: then 1 says >= 0,
    -1 says <= 0. ValueError: a factor whose sign is not shown, a symbol that is not declared real,
    positive or nonnegative, or an expression that is not rational with real coefficients.
    """
    expression = sp.sympify(expression)
    symbols = sorted(expression.free_symbols, key=str)
    unknown = ", ".join(str(symbol) for symbol in symbols if not symbol.is_real)
    require(not unknown, "every symbol", "be declared real, positive or nonnegative", unknown,
            "declare it, as in sp.Symbol('x', positive=True): a complex square has no sign")
    require(expression.is_rational_function(*symbols) and not expression.has(sp.I), "expression",
            "be rational in its symbols, with real coefficients", expression,
            "substitute a positive symbol for a root, a power or a function")
    sign = 1
    for part in sp.fraction(sp.cancel(sp.together(expression))):
        coefficient, factors = sp.factor_list(part)
        if coefficient == 0:
            return 0
        sign *= 1 if coefficient > 0 else -1
        for factor, power in factors:
            shown = _never_negative(sp.expand(factor))
            mirrored = _never_negative(sp.expand(-factor))
            if mirrored[strict] and not shown[strict]:
                sign *= (-1) ** power
            elif not shown[strict] and (strict or power % 2):
                raise ValueError(_refusal(factor, power, strict))
    return sign


def _refusal(factor: sp.Expr, power: int, strict: bool) -> str:
    if strict and (power % 2 == 0 or any(_never_negative(sp.expand(sign * factor))[0]
                                         for sign in (1, -1))):
        return (f"every factor must be positive, up to its sign, got {factor**power}, which may "
                "vanish; substitute what excludes its zeros (y = x + s, s > 0), or pass "
                "strict=False to show only >= 0 or <= 0")
    return (f"every factor must be a sum of positive terms{'' if strict else ' or a square'}, got "
            f"{factor}; make its symbols positive, or substitute what makes it so (p = 1/(1 + s), "
            "s > 0)")


def has_sign(expression: Any, sign: int, *, strict: bool = True) -> bool:
    """Whether :func:`proved_sign` shows ``sign``, 1, -1 or 0; False where it shows nothing."""
    try:
        return proved_sign(expression, strict=strict) == sign
    except ValueError:
        return False
