"""Exact population losses of two-layer networks f(W; x) = sum_j s(<w_j, x>), x ~ N(0, rho I).

With C the covariance rho <., .> of two preactivations u, v, K = E[s(u) s(v)] is

* erf, s(u) = erf(u / sqrt 2): (2/pi) asin(C_uv / sqrt((1 + C_uu)(1 + C_vv))); Williams (1997);
* relu: sqrt(C_uu C_vv)/(2 pi) (sin t + (pi - t) cos t), cos t = C_uv / sqrt(C_uu C_vv); Cho and
  Saul (2009).

Everything is differentiable twice, student = teacher included, and works under ``torch.func``.
Checked in book/landscape/two_layer.
"""

from collections.abc import Callable
from math import pi
from typing import Any

import torch
from torch.func import jacrev

Kernel = Callable[[torch.Tensor, torch.Tensor, "torch.Tensor | float"], torch.Tensor]


def _erf(a: torch.Tensor, b: torch.Tensor, rho: torch.Tensor | float) -> torch.Tensor:
    size_a, size_b = (1 + rho * side.square().sum(-1) for side in (a, b))
    return 2 / pi * torch.asin(rho * a @ b.mT / (size_a[:, None] * size_b).sqrt())


def _lengths(a: torch.Tensor) -> torch.Tensor:
    return a.square().sum(-1).clamp_min(torch.finfo(a.dtype).tiny).sqrt()


def _angles(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The angle of every pair of rows and its sine, [k, k']."""
    cosine = (a @ b.mT / (_lengths(a)[:, None] * _lengths(b))).clamp(-1, 1)
    return torch.acos(cosine), (1 - cosine.square()).sqrt()


# Autograd through acos gives NaN at the angle 0, where student = teacher. Here are the closed forms
# for rho = 1: of the kernel's gradient, and of that gradient's own derivative.


class _Gradient(torch.autograd.Function):
    """(a, b, g) -> sum_jl g_jl dK_jl/da; 2 pi dK_jl/da_j = |b_l| sin t a_j/|a_j| + (pi - t) b_l."""

    generate_vmap_rule = True

    @staticmethod
    def forward(a: torch.Tensor, b: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
        angle, sine = _angles(a, b)
        along = (g * sine * _lengths(b)).sum(-1) / _lengths(a)
        return (along[:, None] * a + (g * (pi - angle)) @ b) / (2 * pi)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, v: torch.Tensor) -> Any:
        a, b, g = ctx.saved_tensors
        angle, sine = _angles(a, b)
        len_a, len_b = _lengths(a)[:, None], _lengths(b)[:, None]
        unit_a, unit_b = a / len_a, b / len_b
        # e is the unit vector in the plane of the pair that is orthogonal to a; where the angle is
        # 0 or pi it has no direction, and every term that it is in carries a factor sin t = 0
        off = unit_b - torch.cos(angle)[..., None] * unit_a[:, None]
        e = torch.where(sine[..., None] > 0,
                        off / sine.clamp_min(torch.finfo(a.dtype).tiny)[..., None], 0)
        v_a, v_e = (unit_a * v).sum(-1)[:, None], (e * v[:, None]).sum(-1)
        weight = g * sine * len_b.mT / len_a
        to_a = weight.sum(-1)[:, None] * (v - v_a * unit_a) + ((weight * v_e)[..., None] * e).sum(1)
        # f is as e, but orthogonal to b
        f = torch.cos(angle)[..., None] * e - sine[..., None] * unit_a[:, None]
        to_b = (g * sine * v_a).sum(0)[:, None] * unit_b - ((g * sine * v_e)[..., None] * f).sum(0)
        to_b = to_b + (g * (pi - angle)).mT @ v
        to_g = sine * len_b.mT * v_a + (pi - angle) * (v @ b.mT)
        return tuple(value / (2 * pi) for value in (to_a, to_b, to_g))


class _ArcCosine(torch.autograd.Function):
    """(a, b) -> K [k, k'] of the ReLU for rho = 1."""

    generate_vmap_rule = True

    @staticmethod
    def forward(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        angle, sine = _angles(a, b)
        lengths = _lengths(a)[:, None] * _lengths(b)
        return lengths * (sine + (pi - angle) * torch.cos(angle)) / (2 * pi)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> Any:
        a, b = ctx.saved_tensors
        return _gradient(a, b, g), _gradient(b, a, g.mT)


_gradient: Callable[..., torch.Tensor] = _Gradient.apply
_arc_cosine: Callable[..., torch.Tensor] = _ArcCosine.apply
KERNELS: dict[str, Kernel] = {"erf": _erf, "relu": lambda a, b, rho: rho * _arc_cosine(a, b)}


def _check(student: torch.Tensor, teacher: torch.Tensor, activation: str) -> None:
    if activation not in KERNELS:
        raise ValueError(f"activation must have a closed form, {' or '.join(KERNELS)}, got "
                         f"{activation!r}; draw samples")
    for name, side in (("student", student), ("teacher", teacher)):
        if not (side.ndim == 2 and side.dtype.is_floating_point
                and side.shape[-1] == student.shape[-1]):
            raise ValueError(f"{name} must be a float tensor [hidden, dim] with the other's dim, "
                             f"got {side.dtype} {tuple(side.shape)}; batch with torch.func.vmap")


def population_loss(student: torch.Tensor, teacher: torch.Tensor, rho: torch.Tensor | float,
                    activation: str) -> torch.Tensor:
    """E (f(W; x) - f(T; x))^2 / 2 over x ~ N(0, rho I), exactly:
    (1/2)(sum K(w_i, w_j) - 2 sum K(w_i, t_l) + sum K(t_l, t_n)), W = ``student`` [k, d],
    T = ``teacher`` [k', d]. Twice differentiable but at a zero row of a ReLU network, where the
    loss has a kink and the derivative along that row is taken as 0. ValueError: an ``activation``
    other than "erf" and "relu"; shapes that do not match."""
    _check(student, teacher, activation)
    pairs = (student, student), (student, teacher), (teacher, teacher)
    squared, cross, target = (KERNELS[activation](a, b, rho).sum() for a, b in pairs)
    return (squared - 2 * cross + target) / 2


def hessian(student: torch.Tensor, teacher: torch.Tensor, rho: torch.Tensor | float,
            activation: str) -> torch.Tensor:
    """The Hessian of :func:`population_loss` in the student's weights, row by row, [kd, kd]; at
    student = teacher it is E[phi phi^T], phi = df/dW."""

    def loss(flat: torch.Tensor) -> torch.Tensor:
        return population_loss(flat.reshape(student.shape), teacher, rho, activation)

    matrix: torch.Tensor = jacrev(jacrev(loss))(student.reshape(-1))
    return matrix
