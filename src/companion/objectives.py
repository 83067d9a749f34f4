"""What the outer loop minimises, for one task: objective(params, task) -> scalar."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch.utils._pytree import tree_map

from companion import compiling
from companion.adaptation import Loss, adapt, adapt_with_rule, after_steps, check_alike
from companion.meta_optimizers import Alpha, AnyUpdate, Params, Rule
from companion.tasks import Task

Objective = Callable[[Params, Task], torch.Tensor]


def _sides(params: Params, task: Any) -> tuple[Any, Any]:
    """Support and query of ``task``; ValueError where one is missing, or on another device."""
    if not (hasattr(task, "support") and hasattr(task, "query")):
        raise ValueError(f"a task must have support and query, got {type(task).__name__}; use "
                         f"companion.tasks.Task")
    check_alike(params, task.query)
    return task.support, task.query


def nal(loss: Loss) -> Objective:
    """Plain training, without adaptation (NAL): the loss of support and query samples together.

    The objective raises ValueError unless a task has both sides, and these are the same structure
    of tensors, samples first.
    """

    def stacked(support: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
        if support.ndim == 0 or support.shape[1:] != query.shape[1:]:
            shapes = f"{tuple(support.shape)} and {tuple(query.shape)}"
            raise ValueError(f"support and query must agree but for the number of samples, got "
                             f"{shapes}; samples first")
        return torch.cat([support, query])

    def objective(params: Params, task: Task) -> torch.Tensor:
        return compiling.value(loss, params, tree_map(stacked, *_sides(params, task)))

    return objective


def _adaptive(loss: Loss, steps: int, update: AnyUpdate, first_order: bool) -> Objective:
    def objective(params: Params, task: Task) -> torch.Tensor:
        support, query = _sides(params, task)
        moved = adapt(loss, params, support, steps=steps, update=update, first_order=first_order)
        return compiling.value(loss, moved, query)

    return objective


def maml(loss: Loss, *, steps: int, update: AnyUpdate) -> Objective:
    """MAML: the query loss after ``steps`` inner steps on the support, with second-order terms.

    F(theta) = loss(theta_k, query), theta_{j+1} = theta_j - update(grad loss(theta_j, support)).
    Source: paper L.
    """
    return _adaptive(loss, steps, update, first_order=False)


def first_order_maml(loss: Loss, *, steps: int, update: AnyUpdate) -> Objective:
    """First-order MAML: the value of :func:`maml`, its gradient with inner gradients constant.

    With plain SGD the meta-gradient is the query gradient at the adapted parameters. A learned rate
    in ``update`` keeps its derivative. Source: Finn et al. (2017).
    """
    return _adaptive(loss, steps, update, first_order=True)


def anil(loss: Loss, *, steps: int, update: AnyUpdate, adapted: Iterable[str]) -> Objective:
    """ANIL: MAML whose inner loop moves only the entries of the parameters named in ``adapted``.

    The others are trained by the outer loop alone. The objective raises ValueError for a name that
    the parameters do not have. Source: Raghu et al. (2020).
    """
    split = _splitter(adapted)

    def objective(params: Params, task: Task) -> torch.Tensor:
        fixed, inner = split(params)
        part = maml(lambda some, batch: loss(fixed | some, batch), steps=steps, update=update)
        return part(inner, task)

    return objective


def _splitter(adapted: Iterable[str]) -> Callable[[Params], tuple[Params, Params]]:
    names = frozenset([adapted] if isinstance(adapted, str) else adapted)

    def split(params: Params) -> tuple[Params, Params]:
        unknown = sorted(names - params.keys())
        if unknown or not names:
            raise ValueError(f"adapted must name some of {', '.join(params)}, got "
                             f"{unknown or 'none'}; see net.init")
        fixed = {name: value for name, value in params.items() if name not in names}
        return fixed, {name: value for name, value in params.items() if name in names}

    return split


_MARK = "rule/"  # before the names of a meta-optimizer's parameters


def joined(params: Params, rule: Params) -> Params:
    """A model's parameters and its meta-optimizer's, as ``rule/<name>``, in one dict."""
    return params | {f"{_MARK}{name}": value for name, value in rule.items()}


def parted(both: Params) -> tuple[Params, Params]:
    """The model's parameters and the meta-optimizer's, out of :func:`joined`."""
    rule = {name.removeprefix(_MARK): value
            for name, value in both.items() if name.startswith(_MARK)}
    return {name: value for name, value in both.items() if not name.startswith(_MARK)}, rule


def counted(both: Params) -> dict[str, int]:
    """How many numbers a run of a fleet has: the model, and as ``own_parameters`` its rule."""
    model, rule = (sum(value[0].numel() for value in part.values()) for part in parted(both))
    return {"parameters": model, "own_parameters": rule}


def path_by_rule(loss: Loss, both: Params, support: Any, *, steps: Sequence[int], rule: Rule,
                 rule_alpha: Alpha | None = None) -> list[Params]:
    """The model's parameters after each number of inner steps by its rule, from :func:`joined`.

    With ``rule_alpha`` the rule adapts too, as in :func:`companion.adaptation.adapt_with_rule`; one
    with a state cannot.
    """
    params, own = parted(both)
    if rule_alpha is None:
        return after_steps(loss, params, support, steps=steps, update=rule.bind(own))
    return [adapt_with_rule(loss, params, own, support, steps=count, apply=rule.apply,
                            rule_alpha=rule_alpha)[0] for count in steps]


def adapted_by_rule(loss: Loss, both: Params, support: Any, *, steps: int, rule: Rule,
                    rule_alpha: Alpha | None = None) -> Params:
    """:func:`path_by_rule` after one number of inner steps."""
    return path_by_rule(loss, both, support, steps=[steps], rule=rule, rule_alpha=rule_alpha)[0]


def learned(loss: Loss, *, steps: int, rule: Rule, rule_alpha: Alpha | None = None,
            adapted: Iterable[str] | None = None) -> Objective:
    """MAML with a meta-optimizer trained together with the initialisation: objective(both, task).

    ``both`` is :func:`joined`, of the model's parameters and of ``rule.init`` of those that adapt:
    those named in ``adapted``, as in :func:`anil`, or all. Within the task they move as in
    :func:`adapted_by_rule`. The objective raises ValueError for a name that the parameters do not
    have, or a rule made for another model. Source: paper D, abstract; its released code.
    """
    split = (lambda params: ({}, params)) if adapted is None else _splitter(adapted)

    def objective(both: Params, task: Task) -> torch.Tensor:
        params, own = parted(both)
        support, query = _sides(params, task)
        fixed, inner = split(params)

        def part(some: Params, batch: Any) -> torch.Tensor:
            return loss(fixed | some, batch)

        moved = adapted_by_rule(part, joined(inner, own), support, steps=steps, rule=rule,
                                rule_alpha=rule_alpha)
        return compiling.value(part, moved, query)

    return objective
