r"""Which half of a linear model must adapt: what one step can reach when the other half is frozen.

W = U B, U [outputs, hidden] above and B [hidden, inputs] below; one step on both moves W by -alpha
(U U.T G + G B.T B) + alpha^2 G W.T G. B alone moves it by -alpha U U.T G, the preconditioner (U
U.T) kron I, whose factor acts on the outputs; U alone by -alpha G B.T B, I kron (B.T B), whose
factor acts on the inputs. Tasks are those of :mod:`companion.theory.depth` with S = diag(inputs)
and C = diag(outputs) kron diag(tasks), and the step is from W = 0. Derived in
book/depth/meta_optimizers.
"""

from functools import cache
from typing import Any

import numpy as np
import sympy as sp
from numpy.typing import ArrayLike
from scipy.optimize import nnls

from companion.checks import Array, at_least, one_number, real, require, support_size


def _moments(c: Any, s: Any, length: Any, u: Any, noise: Any) -> tuple[Any, Any]:
    """Diagonal entries g of E[vec(G) vec(G).T] and x of E[vec(W*) vec(-G).T], at W = 0: c the
    variance of the entry of W*, s that of its input, ``length`` the output's, u = 1/m."""
    return (1 + u) * c * s**2 + u * (length + noise**2) * s, c * s


def _variances(name: str, values: ArrayLike, count: int | None = None) -> Array:
    array = real(name, values)
    require(array.ndim == 1 and array.size > 0 and count in (None, array.size), f"{name}.shape",
            "be [o] or [d], one or more" if count is None else f"be [{count}], as inputs",
            array.shape, "one variance each")
    require(array > 0, name, "be positive", array, "leave out what is never there")
    return array


def half_risks(inputs: ArrayLike, tasks: ArrayLike, outputs: ArrayLike, support: float,
               noise: float = 0.0) -> dict[str, float]:
    """The least excess risk after one step from W = 0, by what adapts.

    With c = outputs_a tasks_i, g and x the second moments of G and of (W*, -G), it is ``sum_ai s_i
    (g p^2 - 2 x p + c) / 2`` for a diagonal preconditioner p_ai. "no step": p = 0; "one rate": one
    number, the shallow model's; "bottom adapts": l_a, the diagonal of alpha U U.T; "top adapts":
    r_i, that of alpha B.T B; "both adapt": l_a + r_i, neither negative; "P*": x/g, any
    preconditioner. Second moments of G are diagonal, so that off-diagonal entries of U U.T and B.T
    B add risk alone. Products U B = 0 with any such factors need a width of d + o at least.

    ``inputs`` [d], ``tasks`` [d] and ``outputs`` [o] are positive, ``noise`` is the standard
    deviation of the labels' noise. ValueError: shapes that do not match, or an argument out of
    range. Source: derived in book/depth/meta_optimizers.
    """
    s = _variances("inputs", inputs)
    c = np.outer(_variances("outputs", outputs), _variances("tasks", tasks, len(s)))
    u = 1 / one_number("support", support_size(support))
    sigma = one_number("noise", at_least("noise", noise, 0, "noise is a standard deviation"))
    g, x = _moments(c, s, (c @ s)[:, None], u, sigma)

    def risk(p: ArrayLike) -> float:
        return float(np.sum(s * (g * np.square(p) - 2 * x * p + c)) / 2)

    def best(axis: int | None) -> Array:
        """The best entries that do not vary along an axis, or along either."""
        return np.asarray(np.sum(s * x, axis, keepdims=True) / np.sum(s * g, axis, keepdims=True))

    each = np.sqrt(s * g)
    columns = [np.broadcast_to(unit[:, None], c.shape) for unit in np.eye(len(c))]
    columns += [np.broadcast_to(unit, c.shape) for unit in np.eye(len(s))]
    design = np.stack([(each * column).ravel() for column in columns], axis=1)
    factors = nnls(design, (each * x / g).ravel())[0]
    both = factors[: len(c), None] + factors[len(c) :]
    return {"no step": risk(0.0), "one rate": risk(best(None)), "bottom adapts": risk(best(1)),
            "top adapts": risk(best(0)), "both adapt": risk(both), "P*": risk(x / g)}


@cache
def proofs() -> dict[str, bool]:
    """Theorems of book/depth/meta_optimizers, gone through by SymPy.

    ``frozen``: what a step on either half and on both does to U B, two outputs, three hidden units
    and two inputs; ``one output``: there a step on B alone is that of one rate, ``alpha |U|^2``.
    For every d and o: ``top``: 1/P*_ai changes with the output by -noise^2 / (m outputs_a^2
    tasks_i), so that adapting the top alone reaches P* where there is no noise (or outputs are
    alike), and not otherwise. ``bottom``: adapting the bottom alone reaches it where inputs and
    tasks are isotropic; with noise and two outputs of unlike variances, nowhere else.
    """
    s, t, s_2, t_2, o, o_2, u, total, sigma = sp.symbols("s t s_2 t_2 o o_2 u T sigma",
                                                         positive=True)

    def inverse(s: sp.Expr, t: sp.Expr, o: sp.Expr) -> sp.Expr:
        g, x = _moments(o * t, s, o * total, u, sigma)
        return g / x

    def gap(o: sp.Expr) -> sp.Expr:
        return inverse(s, t, o) - inverse(s_2, t_2, o)

    change = sp.diff(inverse(s, t, o), o) + u * sigma**2 / (o**2 * t)
    tasks = gap(o) - gap(o_2) - u * sigma**2 * (1 / o - 1 / o_2) * (1 / t - 1 / t_2)
    inputs = gap(o).subs(t_2, t) - (1 + u) * (s - s_2)
    alpha = sp.Symbol("alpha")
    above, below, gradient, bottom, top, both = _steps(alpha, 2)
    factors = above * above.T * gradient, gradient * below.T * below
    product = above * below
    frozen = (bottom - product + alpha * factors[0], top - product + alpha * factors[1],
              both - product + alpha * (factors[0] + factors[1])
              - alpha**2 * gradient * product.T * gradient)
    above, below, gradient, bottom, *_ = _steps(alpha, 1)
    one = bottom - above * below + alpha * above.norm() ** 2 * gradient
    return {"top": sp.simplify(change) == 0,
            "bottom": sp.simplify(tasks) == 0 and sp.simplify(inputs) == 0,
            "one output": one.applyfunc(sp.expand).is_zero_matrix,
            "frozen": all(rest.applyfunc(sp.expand).is_zero_matrix for rest in frozen)}


def _steps(alpha: sp.Symbol, outputs: int) -> tuple[sp.Matrix, ...]:
    """U, B, G, and U B after a step of tr(G.T U B) on B alone, on U alone, and on both."""
    above, below, gradient = (
        sp.Matrix(*shape, lambda i, j, name=name: sp.Symbol(f"{name}_{i}{j}", real=True))
        for name, shape in (("u", (outputs, 3)), ("b", (3, 2)), ("g", (outputs, 2))))
    loss = (gradient.T * above * below).trace()
    moved_above, moved_below = (half - alpha * sp.diff(loss, half) for half in (above, below))
    return (above, below, gradient, above * moved_below, moved_above * below,
            moved_above * moved_below)
