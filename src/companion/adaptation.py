"""The inner loop, for one task. Batch it from outside with ``torch.func.vmap``."""

from collections.abc import Callable
from typing import Any

import torch
from torch.func import grad
from torch.utils._pytree import tree_leaves

from companion.meta_optimizers import Params, Update

Loss = Callable[[Params, Any], torch.Tensor]


def check_devices(params: Params, batch: Any) -> None:
    """ValueError unless every tensor of ``params`` and ``batch`` is on one device."""
    here = {leaf.device for leaf in tree_leaves((params, batch)) if isinstance(leaf, torch.Tensor)}
    if len(here) > 1:
        own = ", ".join(sorted({str(value.device) for value in params.values()}))
        data = ", ".join(sorted({str(leaf.device) for leaf in tree_leaves(batch) if isinstance(leaf, torch.Tensor)}))
        raise ValueError(f"parameters and data must be on one device, got {own} and {data}; move one with .to(...)")


def adapt(loss: Loss, params: Params, support: Any, *, steps: int, update: Update, first_order: bool = False) -> Params:
    """Parameters after ``steps`` inner steps on ``support``: theta <- theta - update(grad loss(theta, support)).

    Args:
        loss: (params, batch) -> scalar.
        params: a dict of tensors, the initialisation; it is not changed.
        support: whatever ``loss`` takes as a batch, usually (x, y).
        steps: >= 0; 0 returns the initialisation.
        update: gradients -> updates, for example :func:`companion.meta_optimizers.sgd`.
        first_order: treat the inner gradients as constants; parameters of ``update`` keep their derivatives.

    Raises:
        ValueError: steps below 0 or not whole; parameters and data on different devices.

    Differentiable throughout, so that without ``first_order`` the outer loop sees second-order terms.
    """
    if not steps >= 0 or steps % 1:  # in plain Python, which torch.compile can follow
        raise ValueError(f"steps must be a whole number of at least 0, got {steps}; steps=0 means no adaptation")
    check_devices(params, support)
    for _ in range(int(steps)):
        at = {name: value.detach() for name, value in params.items()} if first_order else params
        updates = update(grad(loss)(at, support))
        params = {name: value - updates[name] for name, value in params.items()}
    return params
