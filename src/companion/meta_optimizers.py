"""Update rules of the inner loop: a rule maps gradients (a dict like the parameters) to updates to subtract."""

from collections.abc import Callable

import torch

Params = dict[str, torch.Tensor]
Update = Callable[[Params], Params]


def sgd(alpha: float | torch.Tensor) -> Update:
    """Plain gradient descent: update = alpha * gradient.

    ``alpha`` is a positive number, or a tensor (which may be learned or vmapped and is not range-checked).

    Raises:
        ValueError: a number that is not positive and finite.
    """
    if not isinstance(alpha, torch.Tensor) and not 0 < alpha < float("inf"):
        raise ValueError(f"alpha must be positive and finite, got {alpha}; steps=0 switches adaptation off")
    return lambda gradients: {name: alpha * gradient for name, gradient in gradients.items()}
