"""Sign proofs by factoring: an expression is positive where each of its factors visibly is."""

import sympy as sp


def _all_coefficients_positive(factor: sp.Expr) -> bool:
    """True for a sum of positive multiples of monomials in positive symbols."""
    symbols = sorted(factor.free_symbols, key=str)
    if not symbols:
        return bool(factor > 0)
    return (all(symbol.is_positive for symbol in symbols)
            and all(coefficient > 0 for coefficient in sp.Poly(factor, *symbols).coeffs()))


def proved_sign(expression: sp.Expr) -> int:
    """The sign of a rational ``expression`` over positive symbols, where factoring shows it.
    Numerator and denominator are factored. A factor of even power counts as a square; any other
    must be, up to its sign, a sum of positive terms, else ValueError. Returns 1, -1, or 0 for the
    zero expression; with a square among the factors the expression may also vanish."""
    sign = 1
    for part in sp.fraction(sp.cancel(sp.together(expression))):
        coefficient, factors = sp.factor_list(part)
        if coefficient == 0:
            return 0
        sign *= 1 if coefficient > 0 else -1
        for factor, power in factors:
            if power % 2 == 0 and factor.is_real is not False:
                continue
            if _all_coefficients_positive(sp.expand(-factor)):
                sign = -sign
            elif not _all_coefficients_positive(sp.expand(factor)):
                raise ValueError(
                    f"every factor must be a square or a sum of positive terms, got {factor}; make "
                    "its symbols positive, or substitute what makes it so (p = 1/(1 + s), s > 0)")
    return sign
