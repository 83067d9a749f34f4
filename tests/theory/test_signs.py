import pytest
import sympy as sp

from companion.theory.signs import proved_sign

x, y = sp.symbols("x y", positive=True)
z = sp.Symbol("z", real=True)


@pytest.mark.parametrize(
    ("expression", "sign"),
    [(x + y, 1), (-x * y / (x + 1), -1), ((x - y) ** 2, 1), (-((x - y) ** 2) * x, -1), (x - x, 0),
     (1 / -x, -1), ((z - 1) ** 2, 1), (sp.Integer(-3), -1)],
)
def test_shown_signs(expression: sp.Expr, sign: int) -> None:
    assert proved_sign(expression) == sign


@pytest.mark.parametrize("expression", [x - y, z + 1, x**2 - x + 1, (x - y) ** 3])
def test_unknown_signs_are_refused(expression: sp.Expr) -> None:
    with pytest.raises(ValueError, match="square or a sum of positive terms"):
        proved_sign(expression)
