"""Losses for one task: loss(params, batch) -> scalar, made from a network's ``apply``.

Every loss and metric raises ValueError for a batch that is no pair (x, y).
"""

from typing import Any

import torch
from torch.nn import functional as F

from companion.adaptation import Loss
from companion.meta_optimizers import Params
from companion.nets import Apply


def pair(batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """``batch`` as (x, y), with as many samples in each; ValueError otherwise."""
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        got = type(batch).__name__ + (f" of {len(batch)}" if hasattr(batch, "__len__") else "")
        raise ValueError(f"a batch must be a pair (x, y), got {got}; give inputs and labels")
    x, y = batch
    if (not (isinstance(x, torch.Tensor) and isinstance(y, torch.Tensor))
        or x.shape[:1] != y.shape[:1]):
        shapes = [tuple(getattr(side, "shape", ())) for side in (x, y)]
        raise ValueError(f"x and y must be tensors with as many samples, got shapes {shapes}; "
                         f"samples come first")
    return x, y


def squared_error(apply: Apply) -> Loss:
    """Half the mean squared error, ``mean_n |apply(x_n) - y_n|^2 / 2``, in squared units of y.

    The loss raises ValueError for labels of another shape than the outputs.
    """

    def loss(params: Params, batch: Any) -> torch.Tensor:
        x, y = pair(batch)
        outputs = apply(params, x)
        # broadcasting [n] against [n, 1] would silently compare all pairs
        if outputs.shape != y.shape:
            raise ValueError(f"y must have the outputs' shape {tuple(outputs.shape)}, got "
                             f"{tuple(y.shape)}; reshape it")
        return (outputs - y).square().sum() / (2 * len(y))

    return loss


def cross_entropy(apply: Apply) -> Loss:
    """Mean cross-entropy in nats of outputs [sample, class] against class numbers y [sample].

    The loss raises ValueError for labels that are not whole.
    """

    def loss(params: Params, batch: Any) -> torch.Tensor:
        x, y = pair(batch)
        if y.dtype != torch.int64 or y.ndim != 1:  # vmap takes other dtypes than a single task
            raise ValueError(f"y must be class numbers [sample], got {y.dtype} {tuple(y.shape)}; "
                             f"use .long()")
        return F.cross_entropy(apply(params, x), y)

    return loss


def logistic(apply: Apply) -> Loss:
    """Mean logistic loss in nats: log(1 + exp(-s f(x))), s = 2y - 1, f(x) the logit of class 1.

    Outputs and labels are [sample]; labels of 0 and 1 are floating numbers, so that they may also
    be probabilities. The loss raises ValueError for others.
    """

    def loss(params: Params, batch: Any) -> torch.Tensor:
        x, y = pair(batch)
        outputs = apply(params, x)
        if outputs.shape != y.shape or not y.dtype.is_floating_point:
            raise ValueError(f"y must be floating and have the outputs' shape "
                             f"{tuple(outputs.shape)}, got {y.dtype} {tuple(y.shape)}; use "
                             f".to(x.dtype)")
        return F.binary_cross_entropy_with_logits(outputs, y)

    return loss


def accuracy(apply: Apply) -> Loss:
    """The share of labels [sample] that are right, in [0, 1]: a metric, without a gradient.

    Outputs [sample, class] stand for their largest; outputs [sample], logits, for class 1 where
    they are positive. The metric raises ValueError for labels of another shape.
    """

    def metric(params: Params, batch: Any) -> torch.Tensor:
        x, y = pair(batch)
        outputs = apply(params, x)
        classes = outputs.argmax(-1) if outputs.ndim > 1 else outputs > 0
        if classes.shape != y.shape:
            raise ValueError(f"y must be [sample] like the classes, {tuple(classes.shape)}, got "
                             f"{tuple(y.shape)}; reshape it")
        return (classes == y).to(outputs.dtype).mean()

    return metric
