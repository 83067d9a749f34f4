"""The outer loop, for a whole fleet of runs at once.

The leading axis of every tensor is the run (a seed at a setting), then comes the task: params
[run, ...], tasks [run, task, ...], settings [run, ...]. A fleet gives what its runs give one by
one. A single run needs no run axis: :func:`run_gradient`.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch.func import grad_and_value, vmap
from torch.utils._pytree import tree_leaves, tree_map

from companion import checkpoints, compiling
from companion.checkpoints import Checkpoint
from companion.checks import at_least, require
from companion.errors import Diverged, OutOfMemory, RecordError
from companion.meta_optimizers import Params

Objective = Callable[..., torch.Tensor]  # (params, task, *settings) of one task -> scalar
Gradient = Callable[..., tuple[Params, torch.Tensor]]  # of a fleet -> gradients, values
Draw = Callable[[int], Any]  # step -> the fleet's tasks of that step; must depend on nothing else
Watch = Callable[[int, Params, torch.Tensor], None]
_LOOK_EVERY = 50  # steps between looks for values that are not finite: a look waits for the device


def fleet_gradient(objective: Objective, *, chunk_size: int | None = None,
                   task_chunk: int | None = None, compiled: bool = False) -> Gradient:
    """The gradient of the mean of ``objective`` over tasks, for every run of a fleet.

    A function of params, tasks and settings that gives gradients [run, ...] and values [run]. It
    raises OutOfMemory, and ValueError where these do not have the same number of runs.

    Args:
        objective: ``(params, task, *settings)`` -> scalar, for one task.
        chunk_size: runs computed at once; all by default. Smaller needs less memory and gives the
            same numbers.
        task_chunk: tasks of a run, likewise. For convolutions on a CPU 1 of each is fastest.
        compiled: use ``torch.compile``, which pays in long runs: its first call takes seconds for a
            small network. Of a block of one task, as convolutions on a CPU want it, the losses are
            compiled that the objectives of :mod:`companion.objectives` are made of: a minute or two
            for a convolutional network, whatever the number of inner steps, and seconds where the
            compiler's cache has them. Where it is not possible the plain function is used.
    """
    for name, size in (("chunk_size", chunk_size), ("task_chunk", task_chunk)):
        if size is not None:
            at_least(name, size, 1, "leave it out to compute all at once", whole=True)

    def of_run(params: Params, tasks: Any, *settings: Any) -> Any:
        axes = (None, 0, *[None] * len(settings))
        each = vmap(grad_and_value(objective), in_dims=axes)(params, tasks, *settings)
        return tree_map(lambda leaf: leaf.sum(0), each)

    def of_many(params: Params, tasks: Any, *settings: Any) -> Any:
        return vmap(of_run)(params, tasks, *settings)

    many = compiling.compiled(of_many) if compiled else of_many
    pieces = compiling.compiled_pieces() if compiled else compiling.PLAIN

    def block(params: Params, tasks: Any, *settings: Any) -> Any:
        if tree_leaves(tasks)[0].shape[:2] != (1, 1):
            return many(params, tasks, *settings)
        with compiling.using(pieces):
            return _of_one(objective, params, tasks, *settings)

    def of_runs(params: Params, tasks: Any, *settings: Any) -> Any:
        parts = [block(params, some, *settings) for some in _pieces(tasks, 1, task_chunk)]
        count = tree_leaves(tasks)[0].shape[1]
        return tree_map(lambda *leaves: sum(leaves) / count, *parts)

    def of_fleet(*everything: Any) -> Any:  # params, tasks, *settings
        runs = {int(leaf.shape[0]) for leaf in tree_leaves(everything)}
        require(len(runs) == 1, "params, tasks and settings", "start with one run axis",
                sorted(runs), "stack the runs")
        try:
            parts = [of_runs(*some) for some in _pieces(everything, 0, chunk_size)]
            return tree_map(lambda *leaves: torch.cat(leaves), *parts)
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
                raise OutOfMemory(f"the fleet must fit into memory, got {runs.pop()} runs, "
                                  f"{chunk_size or 'all'} at once; pass a smaller chunk_size"
                                  ) from error
            raise

    return of_fleet


def run_gradient(objective: Objective, *, task_chunk: int | None = None,
                 compiled: bool = False) -> Gradient:
    """:func:`fleet_gradient` of one run: nothing has a run axis, so tasks are [task, ...]."""
    fleet = fleet_gradient(objective, task_chunk=task_chunk, compiled=compiled)

    def gradient(*everything: Any) -> tuple[Params, torch.Tensor]:
        slopes, values = fleet(*tree_map(lambda leaf: leaf[None], everything))
        return {name: slope[0] for name, slope in slopes.items()}, values[0]

    return gradient


def _pieces(tree: Any, axis: int, size: int | None) -> Iterator[Any]:
    """``tree`` in pieces of at most ``size`` along an axis of every leaf, or whole."""
    length = tree_leaves(tree)[0].shape[axis]
    if size is None or size >= length:
        yield tree
        return
    for first in range(0, length, size):
        few = min(size, length - first)
        yield tree_map(lambda leaf, first=first, few=few: leaf.narrow(axis, first, few), tree)


def _of_one(objective: Objective, params: Params, tasks: Any,
            *settings: Any) -> tuple[Params, torch.Tensor]:
    """One task of one run by plain autograd: vmap would turn a convolution into a grouped one, slow
    on a CPU, and torch.func would keep the graph of the backward pass."""
    task, rest = tree_map(lambda leaf: leaf[0, 0], tasks), tree_map(lambda leaf: leaf[0], settings)
    with torch.enable_grad():
        leaves = {name: value[0].detach().requires_grad_() for name, value in params.items()}
        value = objective(leaves, task, *rest)
        found = torch.autograd.grad(value, list(leaves.values()), allow_unused=True,
                                    materialize_grads=True)
    return ({name: slope[None] for name, slope in zip(leaves, found, strict=True)},
            value.detach()[None])


class Optimizer(NamedTuple):
    """``init(params)`` -> moments; ``update(gradients, moments, step)`` -> (updates, moments)."""

    init: Callable[[Params], Params]
    update: Callable[[Params, Params, int], tuple[Params, Params]]  # updates are subtracted


Rate = float | torch.Tensor | Callable[[int], float | torch.Tensor]


def _check_rate(rate: Rate) -> None:
    require(not isinstance(rate, int | float) or 0 < rate < float("inf"), "rate",
            "be positive and finite", rate, "it is the outer loop's step")


def _rate_at(rate: Rate) -> Callable[[int, torch.Tensor], float | torch.Tensor]:
    """step, tensor [run, ...] -> the rate, shaped to multiply the tensor."""
    _check_rate(rate)

    def at(step: int, like: torch.Tensor) -> float | torch.Tensor:
        now = rate(step) if callable(rate) else rate
        if isinstance(now, torch.Tensor) and now.ndim:
            return now.reshape(-1, *[1] * (like.ndim - 1))
        return now

    return at


def sgd(rate: Rate) -> Optimizer:
    """Plain gradient descent; ``rate`` a number, a tensor [run], or a function of the step."""
    at = _rate_at(rate)
    return Optimizer(lambda params: {}, lambda gradients, moments, step: (
        {name: at(step, g) * g for name, g in gradients.items()}, moments))


def adam(rate: Rate, *, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8) -> Optimizer:
    """Adam; ``rate`` as in :func:`sgd`. Source: Kingma and Ba (2015)."""
    at, (b1, b2) = _rate_at(rate), betas

    def init(params: Params) -> Params:
        return {f"{kind}.{name}": torch.zeros_like(value)
                for name, value in params.items() for kind in ("m", "v")}

    def update(gradients: Params, moments: Params, step: int) -> tuple[Params, Params]:
        new, updates = {}, {}
        for name, g in gradients.items():
            m = new[f"m.{name}"] = torch.lerp(g, moments[f"m.{name}"], b1)
            v = new[f"v.{name}"] = torch.lerp(g * g, moments[f"v.{name}"], b2)
            size = (v / (1 - b2 ** (step + 1))).sqrt() + eps
            updates[name] = at(step, g) * m / (1 - b1 ** (step + 1)) / size
        return updates, new

    return Optimizer(init, update)


def cosine(rate: float, steps: int) -> Callable[[int], float]:
    """A rate that falls from ``rate`` to 0 over ``steps`` along half a cosine."""
    _check_rate(rate)
    return lambda step: rate * (1 + torch.cos(torch.tensor(torch.pi * step / steps)).item()) / 2


def train(gradient: Gradient, params: Params, draw: Draw, *, optimizer: Optimizer, steps: int,
          settings: tuple[Any, ...] = (), watch: Watch | None = None,
          checkpoint: Checkpoint | None = None) -> Params:
    """Train a fleet for ``steps`` outer steps; returns the parameters, [run, ...].

    Raises Diverged, with the step and the runs, where an objective is not finite; OutOfMemory;
    RecordError for a checkpoint that is damaged or of another run; ValueError for steps below 0 or
    not whole.

    Args:
        gradient: from :func:`fleet_gradient`; or from :func:`run_gradient`, then nothing below has
            a run axis.
        params: where the runs start, [run, ...]; not changed.
        draw: step -> tasks [run, task, ...], of the step alone: a resumed run sees the same.
        settings: further arguments of the objective, trees of tensors [run, ...].
        watch: called as watch(step, params, values) with the parameters before each step, and their
            objective [run].
        checkpoint: keep the state there every so many steps, and go on from it if it is there: on a
            CPU to the same bits as without a break. The file is removed at the end.
    """
    steps = int(at_least("steps", steps, 0, "0 steps return the start", whole=True))
    if checkpoint is not None:
        at_least("checkpoint.every", checkpoint.every, 1, "it counts steps", whole=True)
    params, moments, start, values = dict(params), optimizer.init(params), 0, None
    if checkpoint is not None and checkpoint.path.exists():
        params, moments, start = checkpoints.resume(checkpoint, params, moments)
        if start > steps:
            raise RecordError(f"{checkpoint.path} must be of a step up to {steps}, got {start}: a "
                              "longer run left it; remove it")
    for step in range(start, steps):
        gradients, values = gradient(params, draw(step), *settings)
        if step % _LOOK_EVERY == 0 or step == steps - 1:
            _look(values, step)
        if watch is not None:
            watch(step, params, values)
        with torch.no_grad():
            updates, moments = optimizer.update(gradients, moments, step)
            params = {name: value - updates[name] for name, value in params.items()}
        if checkpoint is not None and (step + 1) % checkpoint.every == 0 and step + 1 < steps:
            checkpoints.keep(checkpoint, params, moments, step + 1)
    if values is not None:  # a step was made, and they say whether there is a run axis
        _look(sum(value.reshape(*values.shape, -1).sum(-1) for value in params.values()), steps)
    if checkpoint is not None:
        checkpoint.path.unlink(missing_ok=True)
    return params


def _look(values: Any, step: int) -> None:
    bad = (~torch.isfinite(values)).nonzero()
    if len(bad):
        which = f" of run {int(bad[0])} ({len(bad)} of {len(values)} runs)" if values.ndim else ""
        raise Diverged(step, f"the objective{which}")
