"""Least squares on the support of a task: no adaptation by steps, but the whole of it at once."""

from typing import Any

import torch

from companion import nets
from companion.checks import Array
from companion.fleets import Budget, measure
from companion.losses import accuracy, squared_error
from companion.meta_optimizers import Params
from companion.tasks import Fleet


def least_squares(fleet: Fleet, dim: int, budget: Budget) -> tuple[Array, Array]:
    """Mean risk and accuracy over test tasks, [run] each, of the linear model of one output and
    least squared error on the support, the shortest one. Labels 0 and 1 count as -1/2 and 1/2; its
    outputs for them are no logits, so the risk is NaN there, and the accuracy elsewhere."""
    apply = nets.linear(dim).apply
    loss, right = squared_error(apply), accuracy(apply)

    def judge(params: Params, drawn: Any, *settings: Any) -> tuple[torch.Tensor, torch.Tensor]:
        (x, y), query = fleet.make(drawn, *settings[:-1])
        fitted = {"0.weight": (torch.linalg.pinv(x) @ (y - 0.5 if fleet.classes else y))[None]}
        none = x.new_tensor(torch.nan)
        return (none, right(fitted, query)) if fleet.classes else (loss(fitted, query), none)

    risk, shares = (part.numpy().mean(1) for part in measure(fleet, judge, {}, budget))
    return risk, shares
