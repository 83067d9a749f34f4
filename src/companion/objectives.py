"""What the outer loop minimises, for one task: objective(params, task) -> scalar."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.utils._pytree import tree_map

from companion.adaptation import Loss, adapt, check_devices
from companion.meta_optimizers import Params, Update
from companion.tasks import Task

Objective = Callable[[Params, Task], torch.Tensor]


def _sides(task: Any) -> Task:
    """``task`` if it has the two sides of a task; ValueError otherwise."""
    if not (hasattr(task, "support") and hasattr(task, "query")):
        raise ValueError(f"a task must have support and query, got {type(task).__name__}; use companion.tasks.Task")
    found: Task = task
    return found


def nal(loss: Loss) -> Objective:
    """Plain training, no adaptation in the loop (NAL): the loss of support and query samples together.

    Both sides must be the same structure of tensors with samples first; ``loss`` takes their mean.

    Raises (the objective does):
        ValueError: a task without support or query, or sides that do not stack.
    """

    def stacked(support: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
        if support.ndim == 0 or support.shape[1:] != query.shape[1:]:
            shapes = f"{tuple(support.shape)} and {tuple(query.shape)}"
            raise ValueError(f"support and query must agree but for the number of samples, got {shapes}; samples first")
        return torch.cat([support, query])

    def objective(params: Params, task: Task) -> torch.Tensor:
        support, query = _sides(task)
        check_devices(params, query)
        return loss(params, tree_map(stacked, support, query))

    return objective


def _adaptive(loss: Loss, steps: int, update: Update, first_order: bool) -> Objective:
    def objective(params: Params, task: Task) -> torch.Tensor:
        support, query = _sides(task)
        check_devices(params, query)
        return loss(adapt(loss, params, support, steps=steps, update=update, first_order=first_order), query)

    return objective


def maml(loss: Loss, *, steps: int, update: Update) -> Objective:
    """MAML: the query loss after ``steps`` inner steps on the support, with second-order terms.

    F(theta) = loss(theta_k, query), theta_{j+1} = theta_j - update(grad loss(theta_j, support)). Source: paper L.
    """
    return _adaptive(loss, steps, update, first_order=False)


def first_order_maml(loss: Loss, *, steps: int, update: Update) -> Objective:
    """First-order MAML: the value of :func:`maml`; its gradient takes the inner gradients as constants.

    With plain SGD the meta-gradient is the query gradient at the adapted parameters. A learned rate in ``update``
    keeps its derivative. Source: Finn et al. (2017).
    """
    return _adaptive(loss, steps, update, first_order=True)


def anil(loss: Loss, *, steps: int, update: Update, adapted: Iterable[str]) -> Objective:
    """ANIL: MAML whose inner loop moves only the entries of the parameters named in ``adapted``.

    The others are trained by the outer loop alone. Source: Raghu et al. (2020).

    Raises (the objective does):
        ValueError: a name that the parameters do not have.
    """
    names = frozenset([adapted] if isinstance(adapted, str) else adapted)

    def objective(params: Params, task: Task) -> torch.Tensor:
        unknown = sorted(names - params.keys())
        if unknown or not names:
            raise ValueError(f"adapted must name some of {', '.join(params)}, got {unknown or 'none'}; see net.init")
        fixed = {name: value for name, value in params.items() if name not in names}
        inner = {name: value for name, value in params.items() if name in names}
        return maml(lambda own, batch: loss(fixed | own, batch), steps=steps, update=update)(inner, task)

    return objective
