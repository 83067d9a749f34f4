"""Two-class tasks whose labels -1 and +1 are swapped at random: how much of an optimum is left.

A task with the optimum w* has -w* when its labels are swapped. ``balance`` is the mean order b in
[-1, 1]: 1 where labels are fixed, 0 where both orders are equally likely. Then the optima of a task
have the mean b w* and the spread (1 - b^2) w* w*.T, so that NAL and MAML learn what
:func:`companion.theory.gaussian.minimiser_nal` and its fellow give for the optima b w*.
"""

from functools import cache

import numpy as np
import sympy as sp
from numpy.typing import ArrayLike

from companion.checks import Array, real, require


def risks(w: ArrayLike, q: ArrayLike, optima: ArrayLike, balance: ArrayLike) -> Array:
    """The mean of (w - o w*).Q (w - o w*)/2 over the order o = -1, 1 of every task.

    It is [(w - b w*).Q (w - b w*) + (1 - b^2) w*.Q w*]/2. Shapes: w [d], q [task, d, d], optima
    [task, d], balance [task]; the result is [task]. With b = 0 in every task it is (w.Q w + w*.Q
    w*)/2, least at w = 0 whatever Q is: **with permuted labels the optima average to nothing, R =
    0, NAL and MAML both learn 0, and MAML gains nothing**.

    That needs neither Gaussian inputs nor fresh batches. Let a linear head be adapted by k steps
    of gradient descent on squared loss, from w on labels y, any samples, any alpha. The
    adapted head is affine in (w, y) without a constant: from -w on -y it is the negative one, whose
    loss on -y is the same. So the mean loss F over both orders has F(-w) = F(w); it is a convex
    quadratic in w, hence F(0) <= (F(w) + F(-w))/2 = F(w). Take the mean over tasks: 0 is a
    minimiser for every k, and k = 0 is NAL. :func:`proofs` goes through it.

    ValueError: shapes that do not match, or a balance outside [-1, 1].
    """
    w, q, optima, balance = (real(name, value) for name, value in (
        ("w", w), ("q", q), ("optima", optima), ("balance", balance)))
    require(optima.ndim == 2 and w.shape == optima.shape[1:], "w.shape", f"be {optima.shape[1:]}",
            w.shape, "give one entry per input")
    tasks, d = optima.shape
    for name, array, shape in (("q", q, (tasks, d, d)), ("balance", balance, (tasks,))):
        require(array.shape == shape, f"{name}.shape", f"be {shape}", array.shape,
                "give one entry per task")
    require(np.abs(balance) <= 1, "balance", "lie in [-1, 1]", balance, "it is a mean of -1 and 1")
    error = w - balance[:, None] * optima
    around = (1 - balance**2) * np.einsum("ti,tij,tj->t", optima, q, optima)
    return np.asarray((np.einsum("ti,tij,tj->t", error, q, error) + around) / 2)


@cache
def proofs() -> dict[str, bool]:
    """The theorem of :func:`risks`, gone through by SymPy for two inputs, a sample to adapt on and
    one to be scored on, all of them symbols, k = 0, 1, 2. ``permuted``: the loss from -w on
    labels -y is that from w on y, so the mean over both orders has no gradient at w = 0; and it is
    a quadratic whose second derivatives are those of a square."""
    alpha, target, sign = sp.symbols("alpha t o")
    w, x, y, at = (sp.Matrix(rows, columns, sp.symbols(f"{name}:{rows * columns}"))
                   for name, rows, columns in (("w", 2, 1), ("x", 1, 2), ("y", 1, 1), ("q", 1, 2)))
    held, adapted = True, w
    for _ in range(3):
        loss = (sign * target - (at * adapted.subs(dict(zip(y, sign * y, strict=True))))[0]) ** 2
        mirrored = loss.subs(sign, -1).subs(dict(zip(w, -w, strict=True)), simultaneous=True)
        both = loss.subs(sign, 1) + loss.subs(sign, -1)
        slope = sp.Matrix([both]).jacobian(w).T
        row = (at * adapted).jacobian(w)
        held &= sp.expand(mirrored - loss.subs(sign, 1)) == 0
        held &= slope.subs(dict.fromkeys(w, 0)).expand() == sp.zeros(2, 1)
        held &= (slope.jacobian(w) - 4 * row.T * row).expand() == sp.zeros(2, 2)
        adapted = adapted - alpha * x.T * (x * adapted - y)
    return {"permuted": bool(held)}
