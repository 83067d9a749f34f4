"""Meta-optimizers: a rule maps gradients (a dict like the parameters) to updates to subtract.

The outer loop trains a rule's parameters together with the initialisation. Each rule here is
alpha * T(gradients), T the identity at the start: there it gives exactly the update of :func:`sgd`.
Bound to its parameters, ``rule.bind(rule_params)``, it is an ``update`` for
:func:`companion.objectives.maml`; :func:`companion.objectives.learned` trains it.
"""

from collections.abc import Callable, Sequence
from functools import partial
from math import prod
from typing import NamedTuple

import torch

from companion.checks import at_least, require
from companion.updates import (
    Alpha,
    AnyUpdate,
    InnerOptimizer,
    Params,
    Update,
    as_inner,
    chain,
    check_rate,
    momentum,
    sgd,
)

__all__ = ["RULES", "Alpha", "AnyUpdate", "InnerOptimizer", "Params", "Rule", "Update", "as_inner",
           "as_matrix", "chain", "fixed_rate", "held_kfo", "kfo", "learned_rate", "meta_curvature",
           "meta_sgd", "momentum", "nonlinear_kfo", "per_step_rates", "sgd"]


def _stateless(rule: Params, gradients: Params) -> Params:
    raise ValueError("a rule used by apply, or adapting by rule_alpha, must have no state, got one "
                     "that has; use rule.bind")


class Rule(NamedTuple):
    """``init(params)`` makes a rule's parameters for a model, ``apply(rule, gradients)`` updates.

    A rule with a state has no ``apply`` but ``stateful``, which makes an :class:`InnerOptimizer`
    of its parameters.
    """

    init: Callable[[Params], Params]
    apply: Callable[[Params, Params], Params] = _stateless
    stateful: Callable[[Params], InnerOptimizer] | None = None

    def bind(self, rule: Params) -> InnerOptimizer:
        """The rule with these parameters, as ``update`` of :func:`companion.adaptation.adapt`."""
        return self.stateful(rule) if self.stateful else as_inner(partial(self.apply, rule))


def fixed_rate(alpha: Alpha) -> Rule:
    """:func:`sgd` as a rule, with no parameters of its own."""
    update = sgd(alpha)
    return Rule(lambda params: {}, lambda rule, gradients: update(gradients))


def _own(rule: Params, key: str, shape: Sequence[int]) -> torch.Tensor:
    """The part ``key`` of a rule; ValueError where the rule was made for another model."""
    got = tuple(rule[key].shape) if key in rule else "none"
    if got != tuple(shape):
        raise ValueError(f"{key} of the rule must have shape {tuple(shape)}, got {got}; make it by "
                         f"init of this model")
    return rule[key]


def learned_rate(alpha: Alpha) -> Rule:
    """One learned rate for the whole model: update = alpha * scale * G, ``scale`` [] 1 at first."""
    check_rate(alpha)
    return Rule(lambda params: {"scale": next(iter(params.values())).new_ones(())},
                lambda rule, gradients: {name: alpha * (_own(rule, "scale", ()) * g)
                                         for name, g in gradients.items()})


def meta_sgd(alpha: Alpha) -> Rule:
    """A learned rate for every parameter: update = alpha * scale * G, elementwise.

    ``<name>.scale`` has the shape of G and starts at 1. Source: Li et al. (2017).
    """
    check_rate(alpha)
    return Rule(lambda params: {f"{name}.scale": torch.ones_like(value)
                                for name, value in params.items()},
                lambda rule, gradients: {name: alpha * (_own(rule, f"{name}.scale", g.shape) * g)
                                         for name, g in gradients.items()})


def per_step_rates(alpha: Alpha, steps: int) -> Rule:
    """A learned rate for every tensor and inner step: update = alpha * scale_t * G in step t.

    ``<name>.scales`` [steps] start at 1; steps after the last take its rate. Raises ValueError
    below one step. Source: MAML++, Antoniou et al. (2019).
    """
    check_rate(alpha)
    at_least("steps", steps, 1, "as many as the inner loop has", whole=True)

    def update(rule: Params, gradients: Params, step: int, params: Params) -> tuple[Params, int]:
        at = min(step, steps - 1)
        return {name: alpha * (_own(rule, f"{name}.scales", (steps,))[at] * g)
                for name, g in gradients.items()}, step + 1

    return Rule(lambda params: {f"{name}.scales": value.new_ones(steps)
                                for name, value in params.items()},
                stateful=lambda rule: InnerOptimizer(lambda params: 0, partial(update, rule)))


def _modes(name: str, value: torch.Tensor) -> list[int]:
    """Sizes of a tensor's modes: outputs, inputs, a convolution's kernel; a scalar is a vector."""
    if value.ndim > 5:
        raise ValueError(f"{name} must be a scalar, a vector, a matrix or a convolution "
                         f"[out, in, ...] of at most 3 dimensions, got shape {tuple(value.shape)}; "
                         f"adapt it by a rule for any shape, or reshape it")
    return [*value.shape[:2], *([prod(value.shape[2:])] if value.ndim > 2 else [])] or [1]


def _eye(size: int, like: torch.Tensor) -> torch.Tensor:
    return torch.eye(size, dtype=like.dtype, device=like.device)


def meta_curvature(alpha: Alpha) -> Rule:
    """A matrix for every mode of every parameter: update = alpha * G x_1 M_1 x_2 M_2 x_3 M_3.

    ``<name>.M1`` acts on the outputs, ``.M2`` on the inputs, ``.M3`` on the positions of the
    kernel; a vector has M1 alone. They start as identities. Both functions raise ValueError for a
    shape of another kind. Source: Park and Oliva (2019).
    """
    check_rate(alpha)

    def init(params: Params) -> Params:
        return {f"{name}.M{i}": _eye(size, value) for name, value in params.items()
                for i, size in enumerate(_modes(name, value), 1)}

    def apply(rule: Params, gradients: Params) -> Params:
        updates = {}
        for name, g in gradients.items():
            moved = g.reshape(_modes(name, g))
            for axis, size in enumerate(moved.shape):
                mode = _own(rule, f"{name}.M{axis + 1}", (size, size))
                moved = torch.tensordot(mode, moved.movedim(axis, 0), 1).movedim(0, axis)
            updates[name] = alpha * moved.reshape(g.shape)
        return updates

    return Rule(init, apply)


def as_matrix(name: str, value: torch.Tensor) -> torch.Tensor:
    """A gradient as KFO sees it, [..., n, m]; ValueError for a shape of another kind.

    Dense [out, in]; vector [n, 1]; scalar [1, 1]; convolution [out, in-channels, kernel].
    """
    sizes = _modes(name, value)
    return value.reshape(sizes if len(sizes) > 1 else [*sizes, 1])


def _identities(params: Params, layers: Sequence[str]) -> Params:
    """Identities for every parameter and layer: a left factor [n, n] and a right one [m, m]."""
    return {f"{name}.{side}{layer}": _eye(size, value)
            for name, value in params.items() for layer in layers
            for side, size in zip("LR", as_matrix(name, value).shape[-2:], strict=True)}


def _sandwich(rule: Params, name: str, matrix: torch.Tensor, layer: str = "", *,
              psd: bool = False) -> torch.Tensor:
    n, m = matrix.shape[-2:]
    left, right = _own(rule, f"{name}.L{layer}", (n, n)), _own(rule, f"{name}.R{layer}", (m, m))
    return left.mT @ (left @ matrix @ right.mT) @ right if psd else left @ matrix @ right


def kfo(alpha: Alpha, *, psd: bool = False) -> Rule:
    """The linear Kronecker-factored meta-optimizer: update = alpha * L G R.

    ``<name>.L`` and ``.R`` start as identities. On vec(G), its rows stacked, L G R is
    (L kron R.T) vec(G). With ``psd`` it is L.T L G R.T R, whose Kronecker matrix is symmetric and
    positive semidefinite: never an ascent. Shapes and errors are those of :func:`as_matrix`; the
    filters of a convolution share their factors. Source: paper D's released code.
    """
    check_rate(alpha)

    def apply(rule: Params, gradients: Params) -> Params:
        return {name: alpha * _sandwich(rule, name, as_matrix(name, g), psd=psd).reshape(g.shape)
                for name, g in gradients.items()}

    return Rule(lambda params: _identities(params, [""]), apply)


def held_kfo(alpha: Alpha) -> Rule:
    """KFO with factors that are given and not learned, and one learned rate: update = alpha * scale
    * L G R.

    ``<name>.L`` and ``.R`` are identities until the caller puts others in their place, and have no
    meta-gradient; ``scale`` [] starts at 1. Shapes and errors are those of :func:`kfo`.
    """
    check_rate(alpha)

    def apply(rule: Params, gradients: Params) -> Params:
        held = {key: value.detach() for key, value in rule.items() if key != "scale"}
        rate = alpha * _own(rule, "scale", ())
        return {name: rate * _sandwich(held, name, as_matrix(name, g)).reshape(g.shape)
                for name, g in gradients.items()}

    return Rule(lambda params: learned_rate(alpha).init(params) | _identities(params, [""]), apply)


def nonlinear_kfo(alpha: Alpha) -> Rule:
    """KFO with two hidden layers: update = alpha * [G + K3(relu(K2(relu(K1(G)))))].

    K_i(G) = L_i G R_i; ``<name>.L1``, ``.R1``, ... are identities at first, but L3, which is 0.
    Shapes and errors as for :func:`kfo`. Source: paper D names a nonlinear meta-optimizer; this
    form is the companion's.
    """
    check_rate(alpha)

    def init(params: Params) -> Params:
        return {key: torch.zeros_like(value) if key.endswith(".L3") else value
                for key, value in _identities(params, "123").items()}

    def apply(rule: Params, gradients: Params) -> Params:
        updates = {}
        for name, g in gradients.items():
            matrix = hidden = as_matrix(name, g)
            for layer in "12":
                hidden = torch.relu(_sandwich(rule, name, hidden, layer))
            updates[name] = alpha * (matrix + _sandwich(rule, name, hidden, "3")).reshape(g.shape)
        return updates

    return Rule(init, apply)


RULES: dict[str, Callable[[Alpha], Rule]] = {
    "SGD": fixed_rate, "learned rate": learned_rate, "Meta-SGD": meta_sgd,
    "Meta-Curvature": meta_curvature, "KFO": kfo, "KFO, psd": partial(kfo, psd=True),
    "KFO, nonlinear": nonlinear_kfo}
HELD: dict[str, Callable[[Alpha], Rule]] = {"KFO, held": held_kfo}
STEPWISE: dict[str, Callable[[Alpha, int], Rule]] = {"per-step rates": per_step_rates}


def rule_named(name: str, alpha: Alpha, steps: int = 1) -> Rule:
    """The rule of that name, of RULES, HELD or STEPWISE, at a rate and for so many inner steps;
    ValueError for an unknown name."""
    plain = RULES | HELD
    known = [*plain, *STEPWISE]
    require(name in known, "rule", f"be one of {', '.join(known)}", repr(name), "see RULES")
    return plain[name](alpha) if name in plain else STEPWISE[name](alpha, steps)
