"""What the outer loop minimises, for one task: objective(params, task) -> scalar."""

from collections.abc import Callable

import torch
from torch.utils._pytree import tree_map

from companion.adaptation import Loss, adapt
from companion.meta_optimizers import Params, Update
from companion.tasks import Task

Objective = Callable[[Params, Task], torch.Tensor]


def nal(loss: Loss) -> Objective:
    """Plain training, no adaptation in the loop (NAL): the loss of support and query samples together.

    Both sides must be the same structure of tensors with samples first; ``loss`` takes their mean.
    """

    def objective(params: Params, task: Task) -> torch.Tensor:
        both = tree_map(lambda s, q: torch.cat([s, q]), task.support, task.query)
        return loss(params, both)

    return objective


def maml(loss: Loss, *, steps: int, update: Update) -> Objective:
    """MAML: the query loss after ``steps`` inner steps on the support, with second-order terms. Source: paper L."""

    def objective(params: Params, task: Task) -> torch.Tensor:
        return loss(adapt(loss, params, task.support, steps=steps, update=update), task.query)

    return objective
