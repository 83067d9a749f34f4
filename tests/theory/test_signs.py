"""What factoring shows about a sign, strictly and weakly, and what is refused."""

import pytest
import sympy as sp

from companion.theory.signs import has_sign, proved_sign

x, y = sp.symbols("x y", positive=True)
z = sp.Symbol("z", real=True)
n = sp.Symbol("n", nonnegative=True)
bare = sp.Symbol("bare")


@pytest.mark.parametrize(
    ("expression", "sign"),
    [(x + y, 1), (-x * y / (x + 1), -1), (x - x, 0), (1 / -x, -1), (z**2 + 1, 1), (n + x, 1),
     (sp.Integer(-3), -1), (-((-x - 1) ** 3), 1), ((-x - y) ** 2, 1), (sp.sqrt(2) * x, 1)],
)
def test_shown_signs(expression: sp.Expr, sign: int) -> None:
    assert proved_sign(expression) == proved_sign(expression, strict=False) == sign
    assert has_sign(expression, sign)
    assert not has_sign(expression, 2 if sign == 0 else -sign)


@pytest.mark.parametrize(
    ("expression", "sign"),
    [((x - y) ** 2, 1), (-((x - y) ** 2) * x, -1), ((z - 1) ** 2, 1), (z**2, 1), ((x - 1) ** 2, 1),
     (n, 1), (-n * x, -1), (z**2 + n, 1), (x / (x - y) ** 2, 1)],
)
def test_what_may_vanish_has_a_weak_sign_only(expression: sp.Expr, sign: int) -> None:
    assert proved_sign(expression, strict=False) == sign
    assert not has_sign(expression, sign)
    with pytest.raises(ValueError, match=r"may vanish; .*strict=False"):
        proved_sign(expression)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("expression", [x - y, z + 1, x**2 - x + 1, (x - y) ** 3, z * x, z**3])
def test_unknown_signs_are_refused(expression: sp.Expr, strict: bool) -> None:
    assert not has_sign(expression, 1, strict=strict)
    with pytest.raises(ValueError, match="every factor must be a sum of positive terms"):
        proved_sign(expression, strict=strict)


@pytest.mark.parametrize("expression", [bare**2, bare**2 + 1, x * bare, (bare - 1) ** 2])
def test_symbols_that_are_not_declared_are_named(expression: sp.Expr) -> None:
    for strict in (True, False):
        with pytest.raises(ValueError, match=r"every symbol must be declared .* got bare;"):
            proved_sign(expression, strict=strict)


@pytest.mark.parametrize("expression", [sp.sqrt(x) + 1, sp.exp(x), x**n, sp.I * x, 1 / (x - x)])
def test_only_real_rational_functions(expression: sp.Expr) -> None:
    with pytest.raises(ValueError, match="expression must be rational in its symbols"):
        proved_sign(expression)
