"""What an inner step subtracts: functions of the gradients, and optimisers with a state per task.

Gradients and updates are dicts like the parameters. A rule that remembers within the task, counts
steps or looks at the model's parameters is an :class:`InnerOptimizer`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch.utils._pytree import tree_map

from companion.checks import require

Params = dict[str, torch.Tensor]
Update = Callable[[Params], Params]
Alpha = float | torch.Tensor


class InnerOptimizer(NamedTuple):
    """A rule with a state in every task, a tree of tensors and Python numbers.

    ``init(params) -> state``; ``update(gradients, state, params) -> (updates, state)``, ``params``
    being those the gradients are of.
    """

    init: Callable[[Params], Any]
    update: Callable[[Params, Any, Params], tuple[Params, Any]]


AnyUpdate = Update | InnerOptimizer


def as_inner(update: AnyUpdate) -> InnerOptimizer:
    """``update`` as an :class:`InnerOptimizer`; a function of the gradients alone has no state."""
    if isinstance(update, InnerOptimizer):
        return update
    if not callable(update):
        raise ValueError(f"update must be a function of the gradients or an InnerOptimizer, got "
                         f"{type(update).__name__}; bind a rule to its parameters by rule.bind")
    return InnerOptimizer(lambda params: (), lambda g, state, params: (update(g), state))


def chain(*updates: AnyUpdate) -> InnerOptimizer:
    """Each takes the updates of the one before as its gradients, as momentum before :func:`sgd`."""
    parts = [as_inner(update) for update in updates]

    def update(gradients: Params, states: Any, params: Params) -> tuple[Params, Any]:
        new = []
        for part, state in zip(parts, states, strict=True):
            gradients, after = part.update(gradients, state, params)
            new.append(after)
        return gradients, tuple(new)

    return InnerOptimizer(lambda params: tuple(part.init(params) for part in parts), update)


def check_rate(alpha: Alpha) -> None:
    """ValueError for a number that is not positive and finite; tensors, maybe learned, pass."""
    if not isinstance(alpha, torch.Tensor) and not 0 < alpha < float("inf"):
        raise ValueError(f"alpha must be positive and finite, got {alpha}; steps=0 switches "
                         f"adaptation off")


def sgd(alpha: Alpha) -> Update:
    """Plain gradient descent: update = alpha * gradient; errors as in :func:`check_rate`."""
    check_rate(alpha)
    return lambda gradients: {name: alpha * gradient for name, gradient in gradients.items()}


def momentum(decay: float) -> InnerOptimizer:
    """Heavy-ball momentum before a rate: v <- decay v + G, v = 0 at first; the update is v.

    Raises ValueError for ``decay`` outside [0, 1).
    """
    require(0 <= decay < 1, "decay", "lie in [0, 1)", decay, "0 has no memory")

    def update(gradients: Params, state: Params, params: Params) -> tuple[Params, Params]:
        new = {name: decay * state[name] + g for name, g in gradients.items()}
        return new, new

    return InnerOptimizer(partial(tree_map, torch.zeros_like), update)
