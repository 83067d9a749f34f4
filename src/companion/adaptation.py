"""The inner loop, for one task. Batch it from outside with ``torch.func.vmap``."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.func import grad, vmap
from torch.utils._pytree import tree_leaves

from companion import compiling
from companion.compiling import Loss as Loss
from companion.meta_optimizers import Alpha, AnyUpdate, Params, as_inner


def check_alike(params: Params, batch: Any) -> None:
    """ValueError unless every tensor of ``params`` and ``batch`` is on one device, and every
    floating one of one dtype."""
    tensors = [leaf for leaf in tree_leaves((params, batch)) if isinstance(leaf, torch.Tensor)]
    if len({tensor.device for tensor in tensors}) > 1:
        model, data = (", ".join(sorted({str(leaf.device) for leaf in tree_leaves(tree)
                                         if isinstance(leaf, torch.Tensor)}))
                       for tree in (params, batch))
        raise ValueError(f"parameters and data must be on one device, got {model} and {data}; "
                         f"move one with .to(...)")
    floats = {tensor.dtype for tensor in tensors if tensor.is_floating_point()}
    if len(floats) > 1:
        raise ValueError(f"parameters and data must have one floating dtype, got "
                         f"{', '.join(sorted(map(str, floats)))}; convert one with .to(dtype), or "
                         f"name it in net.init")


def adapt(loss: Loss, params: Params, support: Any, *, steps: int, update: AnyUpdate,
          first_order: bool = False) -> Params:
    """Parameters after ``steps`` inner steps: theta <- theta - update(grad loss(theta, support)).

    Differentiable throughout, so that the outer loop sees second-order terms. Raises ValueError
    for steps below 0 or not whole, and for parameters and data of different devices or dtypes.

    Args:
        loss: (params, batch) -> scalar.
        params: the initialisation; it is not changed.
        support: whatever ``loss`` takes as a batch, usually (x, y).
        update: gradients -> updates, for example :func:`companion.meta_optimizers.sgd`, or an
            :class:`companion.meta_optimizers.InnerOptimizer`.
        first_order: treat the inner gradients, and the parameters that ``update`` looks at, as
            constants; parameters of ``update`` keep their derivatives.
    """
    return after_steps(loss, params, support, steps=[steps], update=update,
                       first_order=first_order)[0]


def after_steps(loss: Loss, params: Params, support: Any, *, steps: Sequence[int],
                update: AnyUpdate, first_order: bool = False) -> list[Params]:
    """:func:`adapt` for each number of inner steps in ``steps``, along one path."""
    counts = [_count(count, params, support) for count in steps]
    inner = as_inner(update)
    seen, state = {0: params}, inner.init(params)
    for step in range(1, max(counts, default=0) + 1):
        at = {name: value.detach() for name, value in params.items()} if first_order else params
        updates, state = inner.update(compiling.slope(loss, at, support), state, at)
        params = _moved(params, updates)
        if step in counts:
            seen[step] = params
    return [seen[count] for count in counts]


def evaluate(loss: Loss, params: Params, tasks: Any, *, steps: Sequence[int], update: AnyUpdate,
             metrics: Mapping[str, Loss] | None = None,
             chunk_size: int | None = None) -> dict[str, torch.Tensor]:
    """Scores on the queries of ``tasks`` after each number of inner steps: {metric: [task, k]}.

    Errors as in :func:`adapt`.

    Args:
        loss: what adaptation descends on, (params, batch) -> scalar.
        params: of one run, without a run axis; for a fleet ``vmap`` this function.
        tasks: a :class:`companion.tasks.Task`, every tensor [task, ...].
        steps: numbers of inner steps, in any order; one path serves all.
        metrics: names and functions (params, batch) -> scalar; by default {"loss": loss}.
        chunk_size: tasks computed at once, all by default.
    """
    scores = metrics or {"loss": loss}

    def judge(support: Any, query: Any) -> dict[str, torch.Tensor]:
        path = after_steps(loss, params, support, steps=steps, update=update)
        return {name: torch.stack([score(one, query) for one in path])
                for name, score in scores.items()}

    with torch.no_grad():
        found: dict[str, torch.Tensor] = vmap(judge, chunk_size=chunk_size)(*tasks)
    return found


def adapt_with_rule(loss: Loss, params: Params, rule: Params, support: Any, *, steps: int,
                    apply: Callable[[Params, Params], Params],
                    rule_alpha: Alpha) -> tuple[Params, Params]:
    """Parameters and rule after ``steps`` inner steps in which the meta-optimizer adapts as well.

    From the second step on the rule first takes a step, of size ``rule_alpha``, on the support
    loss, which depends on it through the update before: with D(r) = loss(theta_{j-1} - apply(r,
    g_{j-1}), support), r <- r - rule_alpha grad D(r); then theta_{j+1} = theta_j - apply(r, g_j).
    ``apply`` is that of a :class:`companion.meta_optimizers.Rule`; neither ``params`` nor ``rule``
    is changed. Otherwise :func:`adapt`. Source: paper D's released code.
    """

    def after(rule: Params, start: Params, gradients: Params) -> torch.Tensor:
        return loss(_moved(start, apply(rule, gradients)), support)

    before: tuple[Params, Params] | None = None
    for _ in range(_count(steps, params, support)):
        slope = compiling.slope(loss, params, support)
        if before is not None:
            turn = grad(after)(rule, *before)
            rule = {name: value - rule_alpha * turn[name] for name, value in rule.items()}
        before = (params, slope)
        params = _moved(params, apply(rule, slope))
    return params, rule


def _count(steps: int, params: Params, support: Any) -> int:
    if not steps >= 0 or steps % 1:  # in plain Python, which torch.compile can follow
        raise ValueError(f"steps must be a whole number of at least 0, got {steps}; steps=0 means "
                         f"no adaptation")
    check_alike(params, support)
    return int(steps)


def _moved(params: Params, updates: Params) -> Params:
    return {name: value - updates[name] for name, value in params.items()}
