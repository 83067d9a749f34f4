"""The inner loop, for one task. Batch it from outside with ``torch.func.vmap``."""

from collections.abc import Callable
from typing import Any

import torch
from torch.func import grad

from companion.checks import require, step_count
from companion.meta_optimizers import Params, Update

Loss = Callable[[Params, Any], torch.Tensor]


def adapt(loss: Loss, params: Params, support: Any, *, steps: int, update: Update) -> Params:
    """Parameters after ``steps`` inner steps on ``support``: theta <- theta - update(grad loss(theta, support)).

    Args:
        loss: (params, batch) -> scalar.
        params: a dict of tensors, the initialisation; it is not changed.
        support: whatever ``loss`` takes as a batch, usually (x, y).
        steps: >= 0; 0 returns the initialisation.
        update: gradients -> updates, for example :func:`companion.meta_optimizers.sgd`.

    Raises:
        ValueError: steps below 0 or not whole.

    Differentiable throughout, so that the outer loop sees second-order terms.
    """
    count = step_count(steps)
    require(count.ndim == 0, "steps", "be one number", steps, "every task takes the same number of steps")
    for _ in range(int(count)):
        updates = update(grad(loss)(params, support))
        params = {name: value - updates[name] for name, value in params.items()}
    return params
